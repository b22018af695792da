/* jobs/sample_sweep.c: see sample_sweep.h. */
#include "jobs/sample_sweep.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_VALUE = 32 };

/* ---- values as text ---- */

/* As few digits as come back as the same number. */
static void number_text(char buf[MAX_VALUE], const struct sweep_key *k, double v)
{
    if (k->key->type == SPEC_INT || k->key->type == SPEC_UINT64) {
        snprintf(buf, MAX_VALUE, "%.0f", v);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(buf, MAX_VALUE, "%.*g", digits, v);
        if (strtod(buf, NULL) == v)
            return;
    }
}

void sweep_text(char buf[SWEEP_TEXT], const struct sweep *w, int64_t point)
{
    size_t n = 0;

    buf[0] = '\0';
    for (int k = 0; k < w->n_key && n < SWEEP_TEXT; k++) {
        char value[MAX_VALUE];

        number_text(value, &w->key[k], w->value[point * w->n_key + k]);
        n += (size_t)snprintf(buf + n, SWEEP_TEXT - n, "%s%s %s", k ? ", " : "", w->key[k].name, value);
    }
}

/* ---- what is swept ---- */

/* Numbers that a run has once, whatever its points are. */
static bool is_shared(const char *name)
{
    static const char *const shared[] = { "width", "height", "count", "batch", "noise-row", "sweep-steps" };

    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        if (!strcmp(name, shared[i]))
            return true;
    return false;
}

/* Lists whose items are numbers, of a checkpoint or not. */
static bool is_by_name(const char *name) { return !strcmp(name, "y-noise") || !strcmp(name, "cond-guidance"); }

static bool is_number(const struct spec_key *k)
{
    return k->type == SPEC_INT || k->type == SPEC_DOUBLE || k->type == SPEC_UINT64 || is_by_name(k->name);
}

/* "y-noise" or "depth.y-noise" */
static int read_key(struct sweep_key *k, const struct spec *spec, const char *text, int n, struct err *e)
{
    const char *name, *dot;

    if (n < 1 || n >= (int)sizeof k->name)
        return err_set(e, E_ARG, "want names of options between commas, then '='");
    snprintf(k->name, sizeof k->name, "%.*s", n, text);
    dot = memrchr(text, '.', (size_t)n);
    name = dot ? k->name + (dot - text) + 1 : k->name;
    snprintf(k->whose, sizeof k->whose, "%.*s", dot ? (int)(dot - text) : 0, text);
    k->key = spec_key_of(spec->kind, name);
    if (!k->key)
        return err_set(e, E_ARG, "there is no option '%s'", name);
    if (!is_number(k->key))
        return err_set(e, E_ARG, "'%s' takes no number", name);
    if (is_shared(name))
        return err_set(e, E_ARG, "'%s' is the same for all pictures of a run", name);
    if (*k->whose && !is_by_name(name))
        return err_set(e, E_ARG, "'%s' is not of one checkpoint: leave out '%s.'", name, k->whose);
    return OK;
}

/* Up to '=', which is there. */
static int read_keys(struct sweep *w, const struct spec *spec, const char *text, struct err *e)
{
    for (;;) {
        const int n = (int)strcspn(text, ",=");
        int rc;

        if (w->n_key == SWEEP_MAX_KEY)
            return err_set(e, E_ARG, "more than %d options", SWEEP_MAX_KEY);
        rc = read_key(&w->key[w->n_key], spec, text, n, e);
        if (rc)
            return rc;
        for (int i = 0; i < w->n_key; i++)
            if (!strcmp(w->key[i].name, w->key[w->n_key].name))
                return err_set(e, E_ARG, "'%s' is named twice", w->key[i].name);
        w->n_key++;
        if (text[n] == '=')
            return OK;
        text += n + 1;
    }
}

/* ---- corners ---- */

/* One value of a corner, which the option itself has to take. */
static int read_value(double *v, const struct sweep_key *k, const char *text, int n, struct err *e)
{
    struct spec probe = spec_new("sample");
    char one[64], *end;
    int rc;

    snprintf(one, sizeof one, "%.*s", n, text);
    rc = spec_set(&probe, k->key->name, one, e);
    spec_free(&probe);
    if (rc)
        return rc;
    *v = strtod(one, &end);
    if (n >= (int)sizeof one || *end || !isfinite(*v))
        return err_set(e, E_ARG, "'%.40s' is no number for %s", one, k->name);
    return fabs(*v) <= 0x1p53 ? OK : err_set(e, E_ARG, "'%.40s' is too large to be swept; 2^53 is the most", one);
}

/* "1,0:1,1:0,1" into (n_corner,n_key) */
static int read_corners(const struct sweep *w, const char *text, double *corner, int *n_corner, struct err *e)
{
    for (*n_corner = 0;; ++*n_corner) {
        if (*n_corner == SWEEP_MAX_CORNER)
            return err_set(e, E_ARG, "more than %d corners", SWEEP_MAX_CORNER);
        for (int k = 0; k < w->n_key; k++) {
            const int n = (int)strcspn(text, ",:");
            const int rc = read_value(&corner[*n_corner * w->n_key + k], &w->key[k], text, n, e);

            if (rc)
                return err_in(e, "corner %d", *n_corner + 1);
            text += n;
            if (k < w->n_key - 1 ? *text != ',' : *text == ',')
                return err_set(e, E_ARG, "corner %d has %s values than the %d option%s before '='", *n_corner + 1,
                               *text == ',' ? "more" : "fewer", w->n_key, w->n_key > 1 ? "s" : "");
            text += *text == ',';
        }
        if (!*text)
            break;
        text++;
    }
    ++*n_corner;
    return *n_corner > 1 ? OK : err_set(e, E_ARG, "one corner is no way to go: want two or more, with ':' between "
                                        "them");
}

/* ---- points ---- */

static double between(const struct sweep_key *k, double a, double b, double t)
{
    const double v = a + (b - a) * t;
    char text[MAX_VALUE];

    if (k->key->type == SPEC_INT || k->key->type == SPEC_UINT64)
        return nearbyint(v);
    snprintf(text, sizeof text, "%.6g", v);
    return strtod(text, NULL);
}

static int make_points(struct sweep *w, const double *corner, int n_corner, struct err *e)
{
    w->value = malloc(sizeof *w->value * (size_t)(w->n * w->n_key));
    if (!w->value)
        return err_set(e, E_NOMEM, "out of memory for %d points", (int)w->n);
    for (int64_t i = 0; i < w->n; i++)
        for (int k = 0; k < w->n_key; k++) {
            const int64_t far = i * (n_corner - 1), line = far / (w->n - 1), rest = far % (w->n - 1);
            const double *a = corner + line * w->n_key + k;

            w->value[i * w->n_key + k] = !rest ? *a
                : between(&w->key[k], *a, a[w->n_key], (double)rest / (double)(w->n - 1));
        }
    return OK;
}

int sweep_open(struct sweep *w, const struct spec *spec, struct err *e)
{
    const char *text = spec_text(spec, "sweep"), *is = text ? strchr(text, '=') : NULL;
    double corner[SWEEP_MAX_CORNER * SWEEP_MAX_KEY];
    int n_corner = 0, rc;

    *w = (struct sweep){ .n = 1 };
    if (!text && spec_is_set(spec, "sweep-steps"))
        return err_set(e, E_ARG, "--sweep-steps is about --sweep: say what is swept, as --sweep cfg=1:15");
    if (!text)
        return OK;
    rc = is ? read_keys(w, spec, text, e)
            : err_set(e, E_ARG, "want OPTION,..=CORNER:CORNER:.., as x-noise,y-noise=1,0:1,1:0,1");
    rc = rc ? rc : read_corners(w, is + 1, corner, &n_corner, e);
    w->n = spec_int(spec, "sweep-steps");
    rc = rc ? rc : make_points(w, corner, n_corner, e);
    return rc ? err_in(e, "--sweep '%.60s'", text) : OK;
}

void sweep_close(struct sweep *w)
{
    free(w->value);
    *w = (struct sweep){ 0 };
}

/* ---- specs ---- */

/* Does a swept value take the place of this item of the list? Without a name y-noise is that of the only checkpoint,
 * however it is called, and cond-guidance is that of all of them together. */
static bool replaces(const struct sweep_key *k, const char *item)
{
    const char *is = strchr(item, '=');

    if (!*k->whose)
        return !is || strcmp(k->key->name, "cond-guidance") != 0;
    return is && (size_t)(is - item) == strlen(k->whose) && !memcmp(item, k->whose, strlen(k->whose));
}

/* The items of others stay, the value comes behind them. */
static int set_item(struct spec *out, const struct sweep_key *k, const char *value, struct err *e)
{
    char item[sizeof k->whose + MAX_VALUE];
    struct spec was = spec_new("sample");
    int rc = spec_overlay(&was, out, e);

    spec_unset(out, k->key->name);
    for (int i = 0; i < spec_count(&was, k->key->name) && !rc; i++)
        if (!replaces(k, spec_item(&was, k->key->name, i)))
            rc = spec_set(out, k->key->name, spec_item(&was, k->key->name, i), e);
    spec_free(&was);
    snprintf(item, sizeof item, "%s%s%s", k->whose, *k->whose ? "=" : "", value);
    return rc ? rc : spec_set(out, k->key->name, item, e);
}

int sweep_spec(struct spec *out, const struct sweep *w, const struct spec *spec, int64_t point, struct err *e)
{
    int rc;

    *out = spec_new("sample");
    rc = spec_overlay(out, spec, e);
    spec_unset(out, "sweep");
    spec_unset(out, "sweep-steps");
    for (int k = 0; k < w->n_key && !rc; k++) {
        char value[MAX_VALUE];

        number_text(value, &w->key[k], w->value[point * w->n_key + k]);
        rc = w->key[k].key->type == SPEC_LIST ? set_item(out, &w->key[k], value, e)
                                              : spec_set(out, w->key[k].key->name, value, e);
    }
    return rc;
}
