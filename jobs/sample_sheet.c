/* jobs/sample_sheet.c: see sample_sheet.h. */
#include "jobs/sample_sheet.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/font.h"

enum { MAX_CAPTION = 5 * SPEC_MAX_TEXT };

/* ---- where things are ---- */

static void find(const struct sample_sheet *s, int64_t point, int64_t index, int k, int *row, int *column)
{
    const int64_t along = s->swept ? point : index, below = s->swept ? index : 0, deep = s->swept ? s->count : 1;

    *row = (int)(s->first + (along / SHEET_MAX_COLUMNS * deep + below) * s->n_drawn + s->place[k]);
    *column = (int)(along % SHEET_MAX_COLUMNS);
}

static int make_grid(struct sample_sheet *s, const struct sample_inputs *in, const struct sweep *w,
                     const unsigned *held, struct err *e)
{
    const struct pipeline_request *q = &in->request;
    const int64_t along = s->swept ? w->n : q->count, bands = (along + SHEET_MAX_COLUMNS - 1) / SHEET_MAX_COLUMNS;
    int64_t columns = along < SHEET_MAX_COLUMNS ? along : SHEET_MAX_COLUMNS, rows;
    int given = 0;

    for (int k = 0; k < q->n_input; k++) {
        bool drawn = false;

        for (int64_t i = 0; i < w->n; i++)
            drawn |= !(held[i] >> k & 1);
        s->place[k] = drawn ? s->n_drawn++ : -1;
        given += (in->picture[k] != NULL) + (in->mask[k] != NULL);
    }
    given += in->n_control;
    s->first = given > 0;
    columns = given > columns ? given : columns;
    rows = s->first + bands * (s->swept ? s->count : 1) * s->n_drawn;
    if (rows > SHEET_MAX_ROWS)
        return err_set(e, E_ARG, "--sheet: %" PRId64 " rows of pictures do not fit on it; there is room for %d rows of "
                       "%d: make fewer pictures in a run", rows, SHEET_MAX_ROWS, SHEET_MAX_COLUMNS);
    return sheet_init(&s->sheet, font_builtin(), (int)rows, (int)columns, q->width, q->height, e);
}

/* ---- text ---- */

static bool is_swept(const struct sweep *w, const char *name)
{
    for (int k = 0; k < w->n_key; k++)
        if (!strcmp(w->key[k].key->name, name))
            return true;
    return false;
}

/* Values for a label, without commas: only between them may a line end. */
static void label_values(char buf[2 * SWEEP_TEXT], const struct sweep *w, int64_t point)
{
    char text[SWEEP_TEXT];
    size_t n = 0;

    sweep_text(text, w, point);
    for (const char *p = text; *p; p++) {
        if (*p == ' ' && p > text && p[-1] != ',') {
            memcpy(buf + n, "\xC2\xA0", 2);                         /* a blank that does not break */
            n += 2;
        } else if (*p != ',')
            buf[n++] = *p;
    }
    buf[n] = '\0';
}

static int add_labels(struct sample_sheet *s, const struct sample_inputs *in, const struct sweep *w, int64_t point,
                      unsigned held, struct err *e)
{
    char number[48], values[2 * SWEEP_TEXT] = "", seed[48] = "";
    int rc = OK;

    if (s->swept)
        label_values(values, w, point);
    for (int64_t i = 0; i < s->count && !rc; i++) {
        if (s->swept && s->count > 1)
            snprintf(number, sizeof number, "%" PRId64 "-%" PRId64, point, i);
        else
            snprintf(number, sizeof number, "%" PRId64, s->swept ? point : i);
        if (!s->swept || (s->count > 1 && !is_swept(w, "seed")))
            snprintf(seed, sizeof seed, " seed %" PRIu64, in->request.seed + (uint64_t)i);
        for (int k = 0; k < in->request.n_input && !rc; k++) {
            const bool top = s->place[k] == 0;
            int row, column;

            if (s->place[k] < 0)
                continue;
            find(s, point, i, k, &row, &column);
            rc = sheet_label(&s->sheet, row, column, e, "%s #%s%s%s%s%s", in->name[k], number,
                             held >> k & 1 ? " as given" : "", top ? seed : "", top && *values ? "\n" : "",
                             top ? values : "");
        }
    }
    return rc;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

/* A paragraph each: the prompt; how it was drawn; what was swept. */
static int add_caption(struct sample_sheet *s, const struct sample_inputs *in, const struct spec *spec,
                       const struct sweep *w, struct err *e)
{
    const struct pipeline_request *q = &in->request;
    const char *prompt = spec_text(spec, "prompt"), *task = spec_text(spec, "task"), *how = spec_text(spec, "schedule");
    char *text = malloc(MAX_CAPTION);
    size_t n = 0;
    int rc;

    if (!text)
        return err_set(e, E_NOMEM, "out of memory for a caption");
    for (; prompt[n]; n++)
        text[n] = prompt[n] == '\n' || prompt[n] == '\r' ? ' ' : prompt[n];
    n += (size_t)snprintf(text + n, MAX_CAPTION - n, "%s%s", n ? "\n" : "(no prompt)\n",
                          last_part(spec_text(spec, "base")));
    for (int k = 1; k <= in->n_unicon; k++)
        n += (size_t)snprintf(text + n, MAX_CAPTION - n, "%s%s", k > 1 ? ", " : " + ", in->partner[k]);
    for (int i = 0; i < in->n_control; i++)
        n += (size_t)snprintf(text + n, MAX_CAPTION - n, " + ControlNet %s", in->control[i].name);
    if (task || how)
        n += (size_t)snprintf(text + n, MAX_CAPTION - n, "; %s", task ? task : how);
    n += (size_t)snprintf(text + n, MAX_CAPTION - n, "; %s", spec_text(spec, "sampler"));
    if (!is_swept(w, "steps"))
        n += (size_t)snprintf(text + n, MAX_CAPTION - n, ", %d step%s", q->steps, q->steps > 1 ? "s" : "");
    if (!is_swept(w, "cfg"))
        n += (size_t)snprintf(text + n, MAX_CAPTION - n, ", cfg %g", q->cfg);
    n += (size_t)snprintf(text + n, MAX_CAPTION - n, ", %" PRId64 " x %" PRId64, q->width, q->height);
    if (s->swept && s->count == 1 && !is_swept(w, "seed"))
        n += (size_t)snprintf(text + n, MAX_CAPTION - n, ", seed %" PRIu64, q->seed);
    if (s->swept)
        snprintf(text + n, MAX_CAPTION - n, "\nsweep %s", spec_text(spec, "sweep"));
    rc = sheet_caption(&s->sheet, text, e);
    free(text);
    return rc;
}

/* ---- what was given ---- */

/* A mask as the model sees it, a square for each latent. */
static int mask_picture(struct image *out, const struct sample_inputs *in, int k, struct err *e)
{
    const int64_t f = vae_factor(&in->base->vae), H = in->request.height, W = in->request.width;
    const int rc = image_new(out, H, W, 3, PIXEL_U8, e);

    for (int64_t i = 0; !rc && i < H * W; i++)
        memset((unsigned char *)out->px + 3 * i, (int)(in->mask[k][i / W / f * (W / f) + i % W / f] * 255 + 0.5f), 3);
    return rc;
}

static int add_given(struct sample_sheet *s, const struct sample_inputs *in, struct err *e)
{
    struct image mask = { 0 };
    int column = 0, rc = OK;

    for (int k = 0; k < in->request.n_input && !rc; k++) {
        const struct image *cell[] = { &s->given[k], &mask };

        for (int i = 0; i < 2 && !rc; i++) {
            if (i ? !in->mask[k] : !in->picture[k])
                continue;
            rc = i ? mask_picture(&mask, in, k, e) : OK;
            rc = rc ? rc : sheet_put(&s->sheet, 0, column++, cell[i], e);
        }
        image_free(&mask);
    }
    for (int i = 0; i < in->n_control && !rc; i++) {
        const struct image seen = { .H = in->request.height, .W = in->request.width, .C = 3, .type = PIXEL_F32,
                                    .px = in->control[i].picture };
        struct image cell = { 0 };

        rc = image_convert(&cell, &seen, 3, PIXEL_U8, e);
        rc = rc ? rc : sheet_put(&s->sheet, 0, column++, &cell, e);
        image_free(&cell);
    }
    return rc;
}

static int label_given(struct sample_sheet *s, const struct sample_inputs *in, struct err *e)
{
    int column = 0, rc = OK;

    for (int k = 0; k < in->request.n_input && !rc; k++) {
        const char *partner = k ? in->partner[k] : "";

        for (int i = 0; i < 2 && !rc; i++)
            if (i ? in->mask[k] : in->picture[k])
                rc = sheet_label(&s->sheet, 0, column++, e, "%s%s%s%s", in->name[k], k ? " " : "", partner,
                                 i ? " mask" : "");
        if (!rc && in->picture[k])
            rc = image_from_signed(&s->given[k], in->picture[k], in->request.height, in->request.width, 3, PIXEL_U8, e);
    }
    for (int i = 0; i < in->n_control && !rc; i++)
        rc = sheet_label(&s->sheet, 0, column++, e, "%s", in->control[i].name);
    return rc;
}

/* ---- life ---- */

int sample_sheet_open(struct sample_sheet *s, const struct sample_inputs *in, const struct spec *spec,
                      const struct sweep *w, const unsigned *held, struct err *e)
{
    int rc;

    *s = (struct sample_sheet){ .count = in->request.count, .swept = w->n_key > 0 };
    rc = make_grid(s, in, w, held, e);
    rc = rc ? rc : add_caption(s, in, spec, w, e);
    rc = rc ? rc : label_given(s, in, e);
    for (int64_t i = 0; i < w->n && !rc; i++)
        rc = add_labels(s, in, w, i, held[i], e);
    rc = rc ? rc : sheet_open(&s->sheet, e);
    return rc ? rc : add_given(s, in, e);
}

void sample_sheet_close(struct sample_sheet *s)
{
    for (int k = 0; k < PAIR_MAX_INPUT; k++)
        image_free(&s->given[k]);
    sheet_free(&s->sheet);
}

int sample_sheet_put(struct sample_sheet *s, int64_t point, int64_t index, int k, const struct image *picture,
                     struct err *e)
{
    int row, column;

    if (s->place[k] < 0)
        return OK;
    find(s, point, index, k, &row, &column);
    return sheet_put(&s->sheet, row, column, picture ? picture : &s->given[k], e);
}
