/* jobs/sample_save.c: see sample_save.h. */
#include "jobs/sample_save.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/image_file.h"
#include "store/safetensors.h"

enum { MAX_PATH = 4096 };

/* ---- places ---- */

/* "-007" of so many; nothing if there is one. */
static void number_text(char buf[32], int64_t index, int64_t count, bool always)
{
    int digits = 1;

    buf[0] = '\0';
    for (int64_t last = count - 1; last > 9; last /= 10)
        digits++;
    if (always || count > 1)
        snprintf(buf, 32, "-%0*" PRId64, digits, index);
}

/* "out.png", or of several "out-007.png", at points of a sweep "out-3.png" and "out-3-007.png"; of y "out_y.png" */
static int out_path(const struct sample_job *j, int64_t point, int64_t index, int k, char path[MAX_PATH],
                    struct err *e)
{
    const char *out = spec_text(j->spec, "out"), *slash = strrchr(out, '/'), *dot = strrchr(out, '.');
    const int stem = dot && (!slash || dot > slash) ? (int)(dot - out) : (int)strlen(out);
    char at[32], number[32];
    int n;

    number_text(at, point, j->sweep.n, j->sweep.n_key > 0);
    number_text(number, index, j->in.request.count, false);
    n = snprintf(path, MAX_PATH, "%.*s%s%s%s%s%s", stem, out, at, number, k ? "_" : "", k ? j->in.name[k] : "",
                 out + stem);
    return n < 0 || n >= MAX_PATH ? err_set(e, E_ARG, "the path is too long: '%.60s..'", out) : OK;
}

/* Can files be made where this one is to be? Said before hours of work, not after. */
static int check_place(const char *key, const char *path, struct err *e)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    char directory[MAX_PATH];
    struct stat st;

    if (!path)
        return OK;
    if (snprintf(directory, sizeof directory, "%.*s", slash ? slash == path ? 1 : (int)(slash - path) : 1,
                 slash ? path : ".") >= (int)sizeof directory)
        return err_set(e, E_ARG, "--%s: the path is too long: '%.60s..'", key, path);
    if (stat(directory, &st) || (!S_ISDIR(st.st_mode) && (errno = ENOTDIR)) || access(directory, W_OK | X_OK))
        return err_set(e, E_IO, "--%s '%s': cannot write in '%.200s': %s", key, path, directory, strerror(errno));
    if ((slash && !slash[1]) || (!stat(path, &st) && S_ISDIR(st.st_mode)))
        return err_set(e, E_ARG, "--%s '%s': this is a directory; say which file in it", key, path);
    return OK;
}

/* Latents under a picture's name would take the place of the picture, or the other way round. */
static int check_latents(const char *path, struct err *e)
{
    if (path && !image_can_save(path, PIXEL_U8, NULL))
        return err_set(e, E_ARG, "--save-latents '%s': this is the name of a picture; say one in .safetensors", path);
    return check_place("save-latents", path, e);
}

/* ---- what is written ---- */

/* A copy with size and type as they were chosen, and nothing about where things went. */
static int plain_spec(struct spec *one, const struct sample_job *j, const struct spec *spec, struct err *e)
{
    char text[32];
    int rc;

    *one = spec_new("sample");
    rc = spec_overlay(one, spec, e);
    snprintf(text, sizeof text, "%" PRId64, j->in.request.width);
    rc = rc ? rc : spec_set(one, "width", text, e);
    snprintf(text, sizeof text, "%" PRId64, j->in.request.height);
    rc = rc ? rc : spec_set(one, "height", text, e);
    rc = rc ? rc : spec_set(one, "dtype", dtype_name(j->type), e);
    rc = rc ? rc : spec_set(one, "out", "out.png", e);
    spec_unset(one, "save-latents");
    return rc;
}

/* What made this one picture: the spec with everything that was chosen for it written out. --replay begins with it. */
static int picture_spec(const struct sample_job *j, int64_t index, char **json, struct err *e)
{
    struct spec one;
    char text[32];
    bool many = false;
    int rc = plain_spec(&one, j, &j->one, e);

    snprintf(text, sizeof text, "%" PRIu64, j->in.request.seed + (uint64_t)index);
    rc = rc ? rc : spec_set(&one, "seed", text, e);
    snprintf(text, sizeof text, "%" PRId64, index);
    for (int k = 0; k < j->in.request.n_input; k++)
        many |= j->in.request.input[k].noise_rows > 1;
    if (many)
        rc = rc ? rc : spec_set(&one, "noise-row", text, e);
    rc = rc ? rc : spec_set(&one, "count", "1", e);
    rc = rc ? rc : spec_set(&one, "batch", "1", e);
    spec_unset(&one, "sheet");
    rc = rc ? rc : spec_to_json(json, &one, e);
    spec_free(&one);
    return rc;
}

/* What made all of them, and the sheet. */
static int run_spec(const struct sample_job *j, char **json, struct err *e)
{
    struct spec all;
    int rc = plain_spec(&all, j, j->spec, e);

    if (spec_is_set(&all, "sheet"))
        rc = rc ? rc : spec_set(&all, "sheet", "sheet.png", e);
    rc = rc ? rc : spec_to_json(json, &all, e);
    spec_free(&all);
    return rc;
}

static void keep_latents(struct sample_job *j, int64_t index, int k, const float *z)
{
    const struct pipeline_request *q = &j->in.request;
    const int64_t f = vae_factor(&j->in.base->vae), C = j->in.base->vae.latent_channels;
    const int64_t HW = q->height / f * (q->width / f);
    float *to = j->latents + ((k * j->sweep.n + j->point) * q->count + index) * C * HW;

    for (int64_t i = 0; i < HW; i++)
        for (int64_t c = 0; c < C; c++)
            to[c * HW + i] = z[i * C + c];
}

static json_t *value_json(const struct sweep *w, int64_t point, int k)
{
    const double v = w->value[point * w->n_key + k];
    const enum spec_type type = w->key[k].key->type;

    return type == SPEC_INT || type == SPEC_UINT64 ? json_integer((json_int_t)v) : json_real(v);
}

/* `,"point":3,"sweep":{"cfg":7.5}` or nothing. */
static char *point_json(const struct sample_job *j)
{
    json_t *values = json_object();
    char *text = NULL, *dumped;

    for (int k = 0; k < j->sweep.n_key; k++)
        json_object_set_new(values, j->sweep.key[k].name, value_json(&j->sweep, j->point, k));
    dumped = json_dumps(values, JSON_COMPACT | JSON_REAL_PRECISION(15));
    if (dumped && asprintf(&text, ",\"point\":%" PRId64 ",\"sweep\":%s", j->point, dumped) < 0)
        text = NULL;
    free(dumped);
    json_decref(values);
    return text;
}

/* A quote, a backslash or a control character in the path is escaped in JSON, so a line stays a line. */
static int say_path(const struct sample_job *j, const char *what, const char *path, const char *more, struct err *e)
{
    json_t *name;
    char *quoted, *line = NULL;

    if (!j->env->json) {
        j->env->say(j->env->ctx, path);
        return OK;
    }
    name = json_string(path);
    quoted = json_dumps(name, JSON_ENCODE_ANY);
    json_decref(name);
    if (!quoted || asprintf(&line, "{\"%s\":%s%s}", what, quoted, more) < 0)
        line = NULL;
    if (line)
        j->env->say(j->env->ctx, line);
    free(quoted);
    free(line);
    return line ? OK : err_set(e, E_NOMEM, "out of memory for a line of results");
}

static int say_picture(const struct sample_job *j, const char *path, uint64_t seed, struct err *e)
{
    char *point = j->sweep.n_key && j->env->json ? point_json(j) : NULL, *more = NULL;
    int rc = j->sweep.n_key && j->env->json && !point ? E_NOMEM : OK;

    if (rc || asprintf(&more, ",\"seed\":%" PRIu64 "%s", seed, point ? point : "") < 0)
        rc = err_set(e, E_NOMEM, "out of memory for a line of results");
    else
        rc = say_path(j, "image", path, more, e);
    free(point);
    free(more);
    return rc;
}

int sample_take_image(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e)
{
    struct sample_job *j = ctx;
    const struct pipeline_request *q = &j->in.request;
    struct image m = { 0 };
    char path[MAX_PATH], *json = NULL;
    int rc = OK;

    if (j->latents)
        keep_latents(j, index, k, latents);
    if (!rgb)
        return j->sheet.sheet.image.px ? sample_sheet_put(&j->sheet, j->point, index, k, NULL, e) : OK;
    rc = out_path(j, j->point, index, k, path, e);
    rc = rc ? rc : image_from_signed(&m, rgb, q->height, q->width, 3, PIXEL_U8, e);
    rc = rc ? rc : picture_spec(j, index, &json, e);
    rc = rc ? rc : image_save(path, &m, json, (int)spec_int(j->shared, "quality"), e);
    if (j->sheet.sheet.image.px)
        rc = rc ? rc : sample_sheet_put(&j->sheet, j->point, index, k, &m, e);
    rc = rc ? rc : say_picture(j, path, q->seed + (uint64_t)index, e);
    free(json);
    image_free(&m);
    return rc;
}

int sample_save_latents(struct sample_job *j, struct err *e)
{
    const struct pipeline_request *q = &j->in.request;
    const int64_t f = vae_factor(&j->in.base->vae), C = j->in.base->vae.latent_channels;
    const int64_t rows = j->sweep.n * q->count;
    struct safetensors_item item[PAIR_MAX_INPUT];
    char *json = NULL;
    int rc = j->sweep.n_key ? run_spec(j, &json, e) : picture_spec(j, 0, &json, e);

    for (int k = 0; k < q->n_input; k++)
        item[k] = (struct safetensors_item){ .name = j->in.name[k], .type = STORED_F32, .n_dim = 4,
                                             .dim = { rows, C, q->height / f, q->width / f },
                                             .data = j->latents + k * rows * C * (q->height / f) * (q->width / f) };
    rc = rc ? rc : safetensors_write(spec_text(j->spec, "save-latents"), item, q->n_input,
                                     (const char *const[]){ "unicon", json, NULL }, e);
    free(json);
    return rc;
}

int sample_save_sheet(struct sample_job *j, struct err *e)
{
    const char *path = spec_text(j->spec, "sheet");
    char *json = NULL;
    int rc = run_spec(j, &json, e);

    rc = rc ? rc : image_save(path, &j->sheet.sheet.image, json, (int)spec_int(j->shared, "quality"), e);
    free(json);
    return rc ? rc : say_path(j, "sheet", path, "", e);
}

/* ---- checks ---- */

int sample_check_outputs(const struct spec *spec, struct err *e)
{
    static const char *const picture[] = { "out", "sheet" };
    int rc = OK;

    for (int i = 0; i < 2 && !rc; i++) {
        const char *path = spec_text(spec, picture[i]);

        if (path && (rc = image_can_save(path, PIXEL_U8, e)))
            err_in(e, "--%s", picture[i]);
        rc = rc ? rc : check_place(picture[i], path, e);
    }
    return rc ? rc : check_latents(spec_text(spec, "save-latents"), e);
}

int sample_check_sheet(const struct sample_job *j, struct err *e)
{
    const int64_t K = j->in.request.n_input, each = j->in.request.count * K;
    const char *sheet = spec_text(j->spec, "sheet");
    char path[MAX_PATH];
    int rc = OK;

    for (int64_t i = 0; i < j->sweep.n * each && !rc; i++) {
        rc = out_path(j, i / each, i % each / K, (int)(i % K), path, e);
        if (!rc && !strcmp(path, sheet))
            rc = err_set(e, E_ARG, "--sheet '%s': a picture of the run is written there: say another name", sheet);
    }
    return rc;
}
