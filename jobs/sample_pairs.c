/* jobs/sample_pairs.c: the part of a sample job that is about pairs: checkpoints, values by name, the schedule. */
#include "jobs/sample_inputs.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- checkpoints ---- */

const char *sample_path_of(const char *text, int *n)
{
    const char *is = strchr(text, '='), *slash = strchr(text, '/');
    const bool named = is && is > text && (!slash || is < slash);

    *n = named ? (int)(is - text) : 0;
    return named ? is + 1 : text;
}

static int open_one(struct sample_inputs *in, const char *text, char *own, size_t size, struct err *e)
{
    int n;
    const char *path = sample_path_of(text, &n);
    int rc = unicon_file_open(&in->unicon[in->n_unicon], path, NULL, e);

    if (rc)
        return err_in(e, "--unicon");
    in->n_unicon++;
    snprintf(own, size, "%.*s", n ? n : (int)size, n ? text : in->unicon[in->n_unicon - 1]->name);
    return OK;
}

int sample_open_checkpoints(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    static const char *const of_pairs[] = { "y-mask", "y-noise", "y-prompt", "task", "schedule", "pair",
                                            "joint-scale", "cond-guidance", "compat" };
    const int n = spec_count(spec, "unicon");
    int rc = OK;

    snprintf(in->name[0], sizeof in->name[0], "x");
    if (!n && !spec_count(spec, "controlnet") && spec_is_set(spec, "y"))
        return err_set(e, E_ARG, "--y is the condition of a pair or of a ControlNet: say which, --unicon PATH or "
                       "--controlnet PATH");
    for (size_t i = 0; i < sizeof of_pairs / sizeof *of_pairs && !n; i++)
        if (spec_is_set(spec, of_pairs[i]))
            return err_set(e, E_ARG, "--%s is about a pair: say of which checkpoint, --unicon PATH", of_pairs[i]);
    if (n >= PAIR_MAX_INPUT)
        return err_set(e, E_ARG, "--unicon: %d checkpoints; at most %d at once", n, PAIR_MAX_INPUT - 1);
    for (int k = 1; k <= n && !rc; k++) {
        char *own = in->unicon_name[k];

        snprintf(in->name[k], sizeof in->name[k], k > 1 ? "y%d" : "y", k);
        rc = open_one(in, spec_item(spec, "unicon", k - 1), own, sizeof in->unicon_name[k], e);
        in->partner[k] = own;
        for (int i = 1; i < k && !rc; i++)
            if (!strcmp(in->partner[i], own))
                rc = err_set(e, E_ARG, "--unicon: two checkpoints are named '%s': say NAME=PATH for one", own);
        rc = rc ? rc : sample_check_fit(in, k, e);
    }
    return rc;
}

/* ---- values by name ---- */

bool sample_two_numbers(const char *text, double *a, double *b)
{
    char *end;

    *a = strtod(text, &end);
    if (end == text || *end != ',')
        return false;
    text = end + 1;
    *b = strtod(text, &end);
    return end != text && !*end && fabs(*a) <= (double)FLT_MAX && fabs(*b) <= (double)FLT_MAX;
}

static bool names(const struct sample_inputs *in, const char *text, size_t n, int k)
{
    const char *own = sample_name_of(in, k);

    return (strlen(own) == n && !memcmp(text, own, n))
        || (k <= in->n_unicon && strlen(in->name[k]) == n && !memcmp(text, in->name[k], n));
}

const char *sample_name_of(const struct sample_inputs *in, int k)
{
    return k <= in->n_unicon ? in->partner[k] : in->control[k - in->n_unicon - 1].name;
}

int sample_whose(const struct sample_inputs *in, const char *text, size_t n)
{
    for (int k = 1; k <= in->n_unicon + in->n_control; k++)
        if (names(in, text, n, k))
            return k;
    return 0;
}

int sample_value_of(const char **value, const struct sample_inputs *in, const struct spec *spec, const char *key, int k,
                    struct err *e)
{
    const int n = in->n_unicon + (strcmp(key, "y") ? 0 : in->n_control);

    *value = NULL;
    for (int i = 0; i < spec_count(spec, key); i++) {
        const char *text = spec_item(spec, key, i), *is = strchr(text, '=');
        const int whose = is ? sample_whose(in, text, (size_t)(is - text)) : 0;

        if (whose > n)
            return err_set(e, E_ARG, "--%s '%.60s': '%s' is a ControlNet, which has no noise of its own: it takes "
                           "--y alone", key, text, sample_name_of(in, whose));
        if (!whose && n > 1)
            return err_set(e, E_ARG, "--%s '%.60s': of which checkpoint? Say NAME=.., NAME as '%s' or '%s'", key, text,
                           sample_name_of(in, 1), sample_name_of(in, 2));
        if ((whose ? whose : 1) != k)
            continue;
        if (*value)
            return err_set(e, E_ARG, "--%s is given twice for '%s'", key, sample_name_of(in, k));
        *value = whose ? is + 1 : text;
    }
    return OK;
}

/* ---- the schedule ---- */

static int no_picture(const struct sample_inputs *in, int k, struct err *e)
{
    const bool named = k && in->n_unicon + in->n_control > 1;

    return err_set(e, E_ARG, "%s begins with less noise than 1 and has no picture: say --%s %s%sIMAGE, or noise 1",
                   in->name[k], k ? "y" : "x", named ? in->partner[k] : "", named ? "=" : "");
}

/* A level by option; by default 0 for a picture that is given whole, else 1. */
static int level_of(const struct sample_inputs *in, const struct spec *spec, int k, double *level, struct err *e)
{
    const char *text = NULL;
    char *end;
    int rc = k ? sample_value_of(&text, in, spec, "y-noise", k, e) : OK;

    *level = k || !spec_is_set(spec, "x-noise") ? in->picture[k] && !in->mask[k] ? 0 : 1 : spec_double(spec, "x-noise");
    if (!rc && text) {
        *level = strtod(text, &end);
        if (*end || end == text || !(*level >= 0 && *level <= 1))
            return err_set(e, E_ARG, "--y-noise '%.60s': want a number from 0 to 1", text);
    }
    if (!rc && *level < 1 && !in->picture[k])
        return no_picture(in, k, e);
    return rc;
}

static int make_plan(struct sample_inputs *in, const struct spec *spec, int n_step, struct err *e)
{
    const bool levels = spec_is_set(spec, "x-noise") || spec_count(spec, "y-noise");
    const int n = in->request.n_input, flags = in->request.official ? PAIR_OFFICIAL : 0;
    const char *schedule = spec_text(spec, "schedule"), *task = spec_text(spec, "task"), *name[PAIR_MAX_INPUT];
    double level[PAIR_MAX_INPUT];
    int rc = OK;

    if ((schedule != NULL) + (task != NULL) + levels > 1)
        return err_set(e, E_ARG, "noise levels, --task and --schedule say the same thing: give one of them");
    if (task && n != 2)
        return err_set(e, E_ARG, "--task is for one checkpoint; for %d say --schedule or noise levels", n - 1);
    for (int k = 0; k < n && !rc; k++) {
        name[k] = in->name[k];
        rc = level_of(in, spec, k, &level[k], e);
    }
    if (rc)
        return rc;
    if (task || schedule) {
        rc = pair_parse(&in->plan, task ? pair_task(task) : schedule, name, n, n_step, flags, e);
        return rc ? err_in(e, task ? "--task %.40s" : "--schedule '%.40s'", task ? task : schedule) : OK;
    }
    return pair_from_levels(&in->plan, level, n, n_step, flags, e);
}

/* Everybody who begins with less than pure noise needs a picture. */
static int check_starts(struct sample_inputs *in, struct err *e)
{
    bool all_held = true;

    for (int k = 0; k < in->request.n_input; k++) {
        in->held[k] = in->plan.start[k] == PAIR_HELD;
        in->request.input[k].unread = in->held[k];
        all_held &= in->held[k];
        if (in->plan.start[k] && !in->picture[k])
            return no_picture(in, k, e);
        if (in->held[k] && in->mask[k])
            return err_set(e, E_ARG, "--%s-mask: %s has no noise and stays as it is, so a mask does nothing: give it "
                           "noise", k ? "y" : "x", in->name[k]);
    }
    return all_held ? err_set(e, E_ARG, "everything is given and nothing is drawn: say which of x and y has noise, as "
                              "--x-noise 1 or --task y2x") : OK;
}

static int set_weights(struct sample_inputs *in, const struct spec *spec, int k, struct err *e)
{
    struct pipeline_pair *p = &in->request.pair[k - 1];
    const char *text;
    const int rc = sample_value_of(&text, in, spec, "pair", k, e);
    double wx, wy;

    *p = (struct pipeline_pair){ 0, k, 1, 1, &in->unicon[k - 1]->weights };
    if (rc || !text)
        return rc;
    if (sample_two_numbers(text, &wx, &wy)) {
        p->wx = (float)wx;
        p->wy = (float)wy;
        return OK;
    }
    return err_set(e, E_ARG, "--pair '%.60s': want two numbers, WX,WY: how much x gets from y and y from x", text);
}

/* "[NAME=]C", "[NAME=]C:WX,WY": by how much away from what comes with these weights, 0,0 if it does not say; of pair
 * `of`, or of all (-1). value: behind the name. */
static int add_contrast(struct sample_inputs *in, const char *text, const char *value, int of, struct err *e)
{
    struct pipeline_request *q = &in->request;
    struct pipeline_contrast c = { .scale = 0 };
    double wx = 0, wy = 0;
    char *end;

    c.scale = strtof(value, &end);
    if (end == value || !(c.scale >= 0 && c.scale <= 100)
        || (*end && (*end != ':' || !sample_two_numbers(end + 1, &wx, &wy))))
        return err_set(e, E_ARG, "--cond-guidance '%.60s': want a number from 0 to 100, and if you like the weights to "
                       "compare with, C:WX,WY", text);
    if (q->n_contrast == PIPELINE_MAX_CONTRAST)
        return err_set(e, E_ARG, "--cond-guidance is given more than %d times", PIPELINE_MAX_CONTRAST);
    for (int i = 0; i < q->n_pair; i++) {
        const bool it = of < 0 || of == i;

        c.wx[i] = it ? (float)wx : q->pair[i].wx;
        c.wy[i] = it ? (float)wy : q->pair[i].wy;
    }
    if (c.scale != 0)
        q->contrast[q->n_contrast++] = c;
    return OK;
}

/* Of one checkpoint by its name, or of all together. */
static int set_contrasts(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    int rc = OK;

    for (int i = 0; i < spec_count(spec, "cond-guidance") && !rc; i++) {
        const char *text = spec_item(spec, "cond-guidance", i), *is = strchr(text, '=');
        const int of = is ? sample_whose(in, text, (size_t)(is - text)) : 0;

        if ((is && !of) || of > in->n_unicon)
            return err_set(e, E_ARG, "--cond-guidance '%.60s': '%.*s' is no checkpoint of a pair", text,
                           is - text < 60 ? (int)(is - text) : 60, text);
        rc = add_contrast(in, text, is ? is + 1 : text, of - 1, e);
    }
    return rc;
}

int sample_make_pairs(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    struct schedule schedule;
    struct sampler sampler;
    int rc;

    if (!in->n_unicon)
        return OK;
    if (in->request.sampler == SAMPLER_PNDM)
        return err_set(e, E_ARG, "--sampler pndm takes some steps twice and cannot walk pairs: take another");
    rc = schedule_init(&schedule, &in->base->schedule, e);
    rc = rc ? rc : sampler_init(&sampler, in->request.sampler, &schedule, in->request.steps, in->request.eta, e);
    rc = rc ? rc : make_plan(in, spec, sampler.n_step, e);
    rc = rc ? rc : check_starts(in, e);
    for (int k = 1; k <= in->n_unicon && !rc; k++)
        rc = set_weights(in, spec, k, e);
    in->request.n_pair = in->n_unicon;
    in->request.plan = &in->plan;
    return rc ? rc : set_contrasts(in, spec, e);
}
