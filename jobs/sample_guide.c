/* jobs/sample_guide.c: the part of a sample job that is about gradient guidance: whom it aims at, how, in which rows.
 * Whoever is guided needs a picture, must not be held, and some of the picture must be given. */
#include "jobs/sample_inputs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_held(const struct sample_inputs *in, int k)
{
    return in->n_unicon ? in->held[k] : in->request.x_noise <= 0;
}

/* Some of the picture is to be kept: without a mask all of it. */
static bool has_target(const struct sample_inputs *in, int k)
{
    const int64_t f = vae_factor(&in->base->vae), n = in->request.height / f * (in->request.width / f);

    if (!in->picture[k] || !in->mask[k])
        return in->picture[k] != NULL;
    for (int64_t i = 0; i < n; i++)
        if (in->mask[k][i] < 1)
            return true;
    return false;
}

static int no_such(const struct sample_inputs *in, const char *name, struct err *e)
{
    char known[400] = "";

    for (int k = 0; k <= in->n_unicon; k++) {
        const size_t at = strlen(known);

        snprintf(known + at, sizeof known - at, "%s'%s'", k ? ", " : "", in->name[k]);
        if (k)
            snprintf(known + strlen(known), sizeof known - strlen(known), " (%.40s)", in->partner[k]);
    }
    return err_set(e, E_ARG, "--guide '%.60s': there is no input of that name; there is %s", name, known);
}

/* "x", "y2" or a checkpoint's name. */
static int guide_one(struct sample_inputs *in, const char *name, struct err *e)
{
    int k = 0;

    while (k <= in->n_unicon && strcmp(name, in->name[k]) && (!k || strcmp(name, in->partner[k])))
        k++;
    if (k > in->n_unicon)
        return no_such(in, name, e);
    if (!in->picture[k])
        return err_set(e, E_ARG, "--guide %.60s: %s has no picture to aim at: say --%sIMAGE", name, in->name[k],
                       !k ? "x " : in->n_unicon > 1 ? "y NAME=" : "y ");
    if (is_held(in, k))
        return err_set(e, E_ARG, "--guide %.60s: %s has no noise and stays as it is, so there is nothing to guide: "
                       "give it noise, or a mask of what is to be drawn", name, in->name[k]);
    if (!has_target(in, k))
        return err_set(e, E_ARG, "--guide %.60s: the mask of %s is white everywhere, so nothing is given to aim at",
                       name, in->name[k]);
    in->request.guidance.on[k] = true;
    return OK;
}

/* Segments are marked and nobody is named: all that have a picture and a mask. */
static int guide_marked(struct sample_inputs *in, struct err *e)
{
    bool any = false;

    for (int k = 0; k <= in->n_unicon; k++)
        any |= in->request.guidance.on[k] = in->picture[k] && in->mask[k] && !is_held(in, k) && has_target(in, k);
    return any ? OK : err_set(e, E_ARG, "--schedule says guide, but no input has a picture and a mask that leaves "
                              "some of it: say what to aim at, --guide x or y");
}

static int read_range(const char *text, double *from, double *to, struct err *e)
{
    if (!sample_two_numbers(text, from, to) || !(*from >= 0 && *from < *to && *to <= 1))
        return err_set(e, E_ARG, "--guide-range '%.60s': want A,B with 0 <= A < B <= 1, parts of the rows", text);
    return OK;
}

static int not_for(const struct spec *spec, bool wanted, struct err *e)
{
    static const char *const how[] = { "guide-opt", "guide-lr", "guide-steps", "guide-range", "guide-decay" };

    for (size_t i = 0; i < sizeof how / sizeof *how && !wanted; i++)
        if (spec_is_set(spec, how[i]))
            return err_set(e, E_ARG, "--%s says how to guide: say what is guided, --guide x or y", how[i]);
    if (spec_is_set(spec, "guide-decay") && spec_choice(spec, "guide-opt") != GUIDE_ADAMW)
        return err_set(e, E_ARG, "--guide-decay is adamw's, not of --guide-opt %s", spec_text(spec, "guide-opt"));
    return OK;
}

/* --show-schedule tells what will happen: rows that are guided are marked, others are not. */
static int mark_rows(struct sample_inputs *in, struct err *e)
{
    const struct pipeline_guidance *g = &in->request.guidance;
    struct pair_plan *p = &in->plan;
    bool *guided = calloc(p->n_row ? (size_t)p->n_row : 1, sizeof *guided), any = !p->n_row;

    if (!guided)
        return err_set(e, E_NOMEM, "out of memory for %d rows", p->n_row);
    for (int i = 0; i < p->n_row; i++)
        any |= guided[i] = pipeline_guides(g, p, i);
    for (int i = 0; i < p->n_row && any; i++)
        p->row[i].guide = guided[i];
    free(guided);
    return any ? OK : err_set(e, E_ARG, "--guide-range %g,%g: none of the %d rows that would be guided lies there",
                              g->from, g->to, p->n_row);
}

int sample_make_guidance(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    struct pipeline_guidance *g = &in->request.guidance;
    const int n = spec_count(spec, "guide");
    bool marked = false;
    int rc;

    for (int i = 0; i < in->plan.n_row; i++)
        marked |= in->plan.row[i].guide;
    rc = not_for(spec, n || marked, e);
    if (rc || (!n && !marked))
        return rc;
    *g = (struct pipeline_guidance){ .opt = (enum guide_opt)spec_choice(spec, "guide-opt"),
                                     .lr = spec_double(spec, "guide-lr"), .decay = spec_double(spec, "guide-decay"),
                                     .steps = (int)spec_int(spec, "guide-steps") };
    rc = read_range(spec_text(spec, "guide-range"), &g->from, &g->to, e);
    for (int i = 0; i < n && !rc; i++)
        rc = guide_one(in, spec_item(spec, "guide", i), e);
    if (!rc && !n)
        rc = guide_marked(in, e);
    return rc ? rc : mark_rows(in, e);
}
