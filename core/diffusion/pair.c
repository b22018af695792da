/* core/diffusion/pair.c: reads a schedule, checks it, lays out its rows. */
#include "core/diffusion/pair.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/diffusion/sampler.h"

#define BLANKS " \t\r\n"

struct segment {
    double from[PAIR_MAX_INPUT], to[PAIR_MAX_INPUT];        /* as written */
    bool given[PAIR_MAX_INPUT];
    bool guide, free;
};

struct schedule_text {
    const char *at;                     /* what has not been read */
    const char *const *names;           /* or NULL: then messages count the inputs */
    bool list;                          /* levels are as in the list form: 0 is noise, 1 is clean */
    int n_input, n_segment;             /* the segment being read is number n_segment, from 1 */
    struct segment seg[PAIR_MAX_SEGMENT];
};

/* ---- what both forms are made of ---- */

static const char *skip_blanks(struct schedule_text *s)
{
    s->at += strspn(s->at, BLANKS);
    return s->at;
}

/* Digits, a point, an exponent; strtod alone would take signs, nan, inf and hexadecimals too. */
static bool read_level(struct schedule_text *s, double *out)
{
    char *end;

    if (!strchr("0123456789.", *s->at))
        return false;
    *out = strtod(s->at, &end);
    if (end == s->at || strspn(s->at, "0123456789.eE+-") < (size_t)(end - s->at))
        return false;
    s->at = end;
    return true;
}

static struct segment *next_segment(struct schedule_text *s, struct err *e)
{
    if (s->n_segment == PAIR_MAX_SEGMENT) {
        err_set(e, E_ARG, "schedule: more than %d segments", PAIR_MAX_SEGMENT);
        return NULL;
    }
    return &s->seg[s->n_segment++];
}

/* ---- NAME=FROM:TO ---- */

static int find_input(const struct schedule_text *s, const char *name, size_t n)
{
    for (int k = 0; k < s->n_input; k++)
        if (strlen(s->names[k]) == n && !memcmp(s->names[k], name, n))
            return k;
    return -1;
}

static int unknown_input(const struct schedule_text *s, const char *name, size_t n, struct err *e)
{
    char known[160] = "";

    for (int k = 0; k < s->n_input; k++) {
        const size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s'%s'", k ? ", " : "", s->names[k]);
    }
    return err_set(e, E_ARG, "schedule, segment %d: there is no input '%.*s'; there is %s", s->n_segment,
                   n < 40 ? (int)n : 40, name, known);
}

/* "1:0.4" or "0.4", up to `end`. */
static bool read_range(struct schedule_text *s, const char *end, double *from, double *to)
{
    if (!read_level(s, from))
        return false;
    *to = *from;
    if (*s->at == ':') {
        s->at++;
        if (!read_level(s, to))
            return false;
    }
    return s->at == end;
}

static int read_word(struct schedule_text *s, struct segment *seg, struct err *e)
{
    const char *word = s->at;
    const size_t n = strcspn(word, BLANKS "|"), name = strcspn(word, "=" BLANKS "|");
    const int shown = n < 40 ? (int)n : 40;
    int k;

    if (n == 5 && !memcmp(word, "guide", n)) {
        seg->guide = true;
    } else if (n == 4 && !memcmp(word, "free", n)) {
        seg->free = true;
    } else if (name == n) {
        return err_set(e, E_ARG, "schedule, segment %d: '%.*s' is none of NAME=FROM:TO, NAME=LEVEL, guide, free",
                       s->n_segment, shown, word);
    } else {
        k = find_input(s, word, name);
        if (k < 0)
            return unknown_input(s, word, name, e);
        if (seg->given[k])
            return err_set(e, E_ARG, "schedule, segment %d: input '%s' has two levels", s->n_segment, s->names[k]);
        s->at += name + 1;
        if (!read_range(s, word + n, &seg->from[k], &seg->to[k]))
            return err_set(e, E_ARG, "schedule, segment %d: '%.*s': want %s=FROM:TO or %s=LEVEL, numbers from 0 to 1",
                           s->n_segment, shown, word, s->names[k], s->names[k]);
        seg->given[k] = true;
    }
    s->at = word + n;
    return OK;
}

static int read_words(struct schedule_text *s, struct err *e)
{
    struct segment *seg;
    int rc = OK;

    do {
        seg = next_segment(s, e);
        if (!seg)
            return E_ARG;
        while (!rc && *skip_blanks(s) && *s->at != '|')
            rc = read_word(s, seg, e);
        for (int k = 0; k < s->n_input && !rc; k++)
            if (!seg->given[k])
                rc = err_set(e, E_ARG, "schedule, segment %d: input '%s' has no level: say %s=FROM:TO or %s=LEVEL",
                             s->n_segment, s->names[k], s->names[k], s->names[k]);
    } while (!rc && *s->at++ == '|');
    return rc;
}

/* ---- [(l,r),(l,r),0] ---- */

static int not_here(const struct schedule_text *s, const char *want, struct err *e)
{
    return err_set(e, E_ARG, "schedule, segment %d: want %s %s%.20s", s->n_segment, want, *s->at ? "at " : "at its end",
                   s->at);
}

static int read_sign(struct schedule_text *s, char sign, struct err *e)
{
    if (*skip_blanks(s) != sign)
        return not_here(s, (const char[]){ '\'', sign, '\'', '\0' }, e);
    s->at++;
    return OK;
}

static int read_list_level(struct schedule_text *s, double *out, struct err *e)
{
    skip_blanks(s);
    return read_level(s, out) ? OK : not_here(s, "a number from 0 to 1", e);
}

static int read_tuple(struct schedule_text *s, struct segment *seg, int k, struct err *e)
{
    int rc = read_sign(s, '(', e);

    rc = rc ? rc : read_list_level(s, &seg->from[k], e);
    rc = rc ? rc : read_sign(s, ',', e);
    rc = rc ? rc : read_list_level(s, &seg->to[k], e);
    rc = rc ? rc : read_sign(s, ')', e);
    return rc ? rc : read_sign(s, ',', e);
}

static int read_flag(struct schedule_text *s, bool *out, struct err *e)
{
    static const struct { const char *word; bool value; } word[] = {
        { "0", false }, { "1", true }, { "False", false }, { "True", true }
    };

    skip_blanks(s);
    for (size_t i = 0; i < sizeof word / sizeof *word; i++)
        if (!strncmp(s->at, word[i].word, strlen(word[i].word))) {
            s->at += strlen(word[i].word);
            *out = word[i].value;
            return OK;
        }
    return not_here(s, "the guidance flag, 0 or 1,", e);
}

static int read_list_segment(struct schedule_text *s, struct err *e)
{
    struct segment *seg = next_segment(s, e);
    int rc = seg ? read_sign(s, '[', e) : E_ARG;

    for (int k = 0; k < s->n_input && !rc; k++)
        rc = read_tuple(s, seg, k, e);
    if (!rc && *skip_blanks(s) == '(')
        return err_set(e, E_ARG, "schedule, segment %d: levels of more than %d input%s", s->n_segment, s->n_input,
                       s->n_input > 1 ? "s" : "");
    rc = rc ? rc : read_flag(s, &seg->guide, e);
    return rc ? rc : read_sign(s, ']', e);
}

static int read_list(struct schedule_text *s, struct err *e)
{
    const char *begin = s->at;
    bool nested;
    int rc;

    s->list = true;
    s->at++;
    nested = *skip_blanks(s) == '[';
    if (!nested)
        s->at = begin;
    for (;;) {
        rc = read_list_segment(s, e);
        if (rc || *skip_blanks(s) != ',')
            break;
        s->at++;
    }
    if (!rc && nested)
        rc = read_sign(s, ']', e);
    if (!rc && *skip_blanks(s))
        rc = not_here(s, nested ? "nothing more" : "',' and another segment, or nothing more,", e);
    return rc;
}

/* ---- is it a schedule? ---- */

static const char *input_name(const struct schedule_text *s, int k, char *buf, size_t size)
{
    if (s->names)
        snprintf(buf, size, "'%.60s'", s->names[k]);
    else
        snprintf(buf, size, "%d", k + 1);
    return buf;
}

static int wrong_level(const struct schedule_text *s, int i, int k, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

static int wrong_level(const struct schedule_text *s, int i, int k, struct err *e, const char *fmt, ...)
{
    char name[72], what[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(e, E_ARG, "schedule, segment %d, input %s: %s", i + 1, input_name(s, k, name, sizeof name), what);
}

static double clean_level(const struct schedule_text *s) { return s->list ? 1 : 0; }

/* The reference computes in doubles and cuts; with N = 50 and A = 0.7 this is 14, not 15. */
static int step_at(const struct schedule_text *s, double level, int N)
{
    return (int)((s->list ? level : 1 - level) * (N - 1));
}

static int check_level(const struct schedule_text *s, int i, int k, int N, int flags, struct err *e)
{
    const double from = s->seg[i].from[k], to = s->seg[i].to[k], before = i ? s->seg[i - 1].to[k] : from;
    const bool official = flags & PAIR_OFFICIAL;

    if (!(from >= 0 && from <= 1 && to >= 0 && to <= 1))
        return wrong_level(s, i, k, e, "level %g is not in [0,1]", from >= 0 && from <= 1 ? to : from);
    if (s->list ? from > to : from < to)
        return wrong_level(s, i, k, e, "from %.10g to %.10g noise %s", from, to,
                           s->list ? "rises (1 is clean)" : "rises; it can only fall");
    if (official ? step_at(s, before, N) != step_at(s, from, N) : before != from)
        return wrong_level(s, i, k, e, "begins at %.10g, but segment %d ends at %.10g: a gap; "
                           "begin where the last one ended", from, i, before);
    if (!official && i == s->n_segment - 1 && to != clean_level(s))
        return wrong_level(s, i, k, e, "ends at %.10g and would stay noisy: the last segment has to end at %g", to,
                           clean_level(s));
    return OK;
}

/* ---- rows ---- */

static bool is_held(const struct schedule_text *s, int k, int flags)
{
    return !(flags & PAIR_OFFICIAL) && s->seg[0].from[k] == clean_level(s);     /* levels fall: it stays there */
}

/* Rows of segment i by itself: as many as the longest walk has steps. None if all inputs are held. */
static int segment_rows(const struct schedule_text *s, int i, int N, int flags)
{
    int most = 0;

    for (int k = 0; k < s->n_input; k++) {
        const int n = step_at(s, s->seg[i].to[k], N) - step_at(s, s->seg[i].from[k], N) + 1;
        if (!is_held(s, k, flags) && n > most)
            most = n;
    }
    return most;
}

static struct pair_row row_at(const struct schedule_text *s, int i, int at, int rows, int N, int flags)
{
    const struct segment *seg = &s->seg[i];
    struct pair_row row = { .guide = seg->guide, .free = seg->free };

    for (int k = 0; k < s->n_input; k++) {
        const int first = step_at(s, seg->from[k], N), n = step_at(s, seg->to[k], N) - first + 1;
        row.step[k] = is_held(s, k, flags) ? PAIR_HELD : first + n * at / rows;
    }
    return row;
}

static int lay_out(struct pair_plan *out, const struct schedule_text *s, int N, int flags, struct err *e)
{
    struct pair_plan p = { .n_input = s->n_input, .n_step = N };
    int total = 0;

    for (int i = 0; i < s->n_segment; i++) {
        const int rows = segment_rows(s, i, N, flags);
        total += rows > 0 && i > 0 ? rows - 1 : rows;
    }
    p.row = arena_fault_now() ? NULL : calloc(total ? (size_t)total : 1, sizeof *p.row);
    if (!p.row)
        return err_set(e, E_NOMEM, "schedule: no memory for %d rows", total);
    for (int i = 0; i < s->n_segment; i++) {
        const int rows = segment_rows(s, i, N, flags);
        for (int at = i > 0; at < rows; at++)
            p.row[p.n_row++] = row_at(s, i, at, rows, N, flags);
    }
    for (int i = 0; i < p.n_row; i++)
        for (int k = 0; k < p.n_input; k++)
            p.row[i].walks[k] = p.row[i].step[k] != PAIR_HELD
                && (i == p.n_row - 1 || p.row[i + 1].step[k] != p.row[i].step[k]);
    for (int k = 0; k < p.n_input; k++)
        p.start[k] = p.n_row ? p.row[0].step[k] : PAIR_HELD;
    *out = p;
    return OK;
}

static int make_plan(struct pair_plan *out, const struct schedule_text *s, int N, int flags, struct err *e)
{
    int rc = OK;

    for (int i = 0; i < s->n_segment && !rc; i++)
        for (int k = 0; k < s->n_input && !rc; k++)
            rc = check_level(s, i, k, N, flags, e);
    return rc ? rc : lay_out(out, s, N, flags, e);
}

static int check_counts(int n_input, int N, struct err *e)
{
    if (n_input < 1 || n_input > PAIR_MAX_INPUT)
        return err_set(e, E_ARG, "schedule: %d inputs: want 1 to %d", n_input, PAIR_MAX_INPUT);
    if (N < 1 || N > SAMPLER_MAX_STEP)
        return err_set(e, E_ARG, "schedule: %d steps: want 1 to %d", N, SAMPLER_MAX_STEP);
    return OK;
}

int pair_parse(struct pair_plan *out, const char *schedule, const char *const *names, int n_input, int N, int flags,
               struct err *e)
{
    struct schedule_text s = { .at = schedule, .names = names, .n_input = n_input };
    int rc = check_counts(n_input, N, e);

    if (!rc)
        rc = *skip_blanks(&s) == '[' ? read_list(&s, e) : read_words(&s, e);
    return rc ? rc : make_plan(out, &s, N, flags, e);
}

int pair_from_levels(struct pair_plan *out, const double *level, int n_input, int N, int flags, struct err *e)
{
    struct schedule_text s = { .n_input = n_input, .n_segment = 1 };
    int rc = check_counts(n_input, N, e);

    for (int k = 0; k < n_input && !rc; k++)
        s.seg[0].from[k] = level[k];
    return rc ? rc : make_plan(out, &s, N, flags, e);
}

void pair_free(struct pair_plan *p)
{
    free(p->row);
    memset(p, 0, sizeof *p);
}

/* ---- tasks: section 4.3 of the paper ---- */

static const char *const task_name[] = { "y2x", "x2y", "joint", "coarse-y", "coarse-x", "noisy-x2y", NULL };
static const char *const task_schedule[] = {
    "x=1:0 y=0", "x=0 y=1:0", "x=1:0 y=1:0", "x=1:0 y=0.7:0", "x=0.5:0 y=1:0", "x=0.1:0 y=1:0"
};

const char *pair_task(const char *name)
{
    for (int i = 0; task_name[i]; i++)
        if (!strcmp(name, task_name[i]))
            return task_schedule[i];
    return NULL;
}

const char *const *pair_task_names(void) { return task_name; }

/* ---- text ---- */

struct text {
    char *buf;
    size_t size, len;
};

static void put(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(struct text *t, const char *fmt, ...)
{
    const bool room = t->len < t->size;
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(room ? t->buf + t->len : NULL, room ? t->size - t->len : 0, fmt, ap);
    va_end(ap);
    t->len += n > 0 ? (size_t)n : 0;
}

size_t pair_text(char *buf, size_t size, const struct pair_plan *p, const char *const *names, const double *time)
{
    struct text t = { .buf = buf, .size = size };
    const int step_width = snprintf(NULL, 0, "%d", p->n_step - 1);
    int time_width = 0;

    if (size)
        buf[0] = '\0';
    for (int i = 0; time && i < p->n_step; i++) {
        const int n = snprintf(NULL, 0, "%g", time[i]);
        time_width = n > time_width ? n : time_width;
    }
    for (int i = 0; i < p->n_row; i++) {
        const struct pair_row *row = &p->row[i];
        put(&t, "%4d", i);
        for (int k = 0; k < p->n_input; k++) {
            put(&t, "%s%s", k ? "   " : "  ", names[k]);
            if (row->step[k] == PAIR_HELD) {
                put(&t, " held");
                continue;
            }
            put(&t, " %*d", step_width, row->step[k]);
            if (time)
                put(&t, " t=%-*g", time_width, time[row->step[k]]);
            put(&t, row->walks[k] ? " walks" : " waits");
        }
        put(&t, "%s%s\n", row->guide ? "   guide" : "", row->free ? "   free" : "");
    }
    return t.len;
}
