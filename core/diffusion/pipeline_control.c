/* core/diffusion/pipeline_control.c: ControlNets beside the UNet. What does not depend on the latents, which is the
 * picture and the prompts, goes through them once. At each step they see the rows of x, with all halves of guidance;
 * partners of x know nothing of them. */
#include <string.h>

#include "core/diffusion/pipeline_batch.h"

/* The picture, seen once. */
static int see(struct run *r, const struct pipeline_control *c, struct run_control *to, struct err *e)
{
    struct tape *t = &r->stage[STAGE_DENOISE].t;
    const struct unet_config *u = &c->config->unet;
    const int64_t size[] = { 1, r->q->height, r->q->width, 3 };
    struct tape_mark m;
    struct tensor *x, *y;

    to->hint = tape_new(t, r->type, 4, (int64_t[]){ 1, r->h, r->w, u->width[0] }, e);
    m = tape_mark(t);
    if (!to->hint || !(x = tape_new(t, F32, 4, size, e))
        || device_put(r->dev, x->data, c->picture, tensor_bytes(x), e))
        return e->code;
    if (!(x = op_cast(t, x, r->type, e)) || !(y = controlnet_hint(t, to->net, x, e)))
        return e->code;
    tape_into(t, to->hint);
    y = op_scale(t, 1, y, e);
    tape_release(t, m);
    return y ? OK : e->code;
}

static int open_one(struct run *r, int i, struct err *e)
{
    const struct pipeline_control *c = &r->q->control[i];
    struct stage *s = &r->stage[STAGE_DENOISE];
    struct run_control *to = &r->control[i];
    struct tensor *words;
    struct layers l;
    int rc = OK;

    if (controlnet_factor(c->config) != vae_factor(r->base->vae))
        return err_set(e, E_ARG, "it sees its picture at a factor of %d, the base's latents have %d: it is made for "
                       "another base", (int)controlnet_factor(c->config), (int)vae_factor(r->base->vae));
    if (to->of != c->weights) {             /* else it is open from the request before */
        layers_init(&l, r->dev, r->type, &s->mem, c->weights);
        rc = controlnet_new(&to->net, c->config, &l, e);
        to->of = rc ? NULL : c->weights;
    }
    rc = rc ? rc : see(r, c, to, e);
    if (rc)
        return rc;
    words = op_rows(&s->t, r->words, 0, r->guided ? 2 : 1, e);
    words = words ? op_cast(&s->t, words, r->type, e) : NULL;
    return words ? controlnet_text(&s->t, to->net, words, &to->text, e) : e->code;
}

int pipeline_control_open(struct run *r, struct err *e)
{
    int rc = OK;

    for (int i = 0; i < r->q->n_control && !rc; i++) {
        rc = open_one(r, i, e);
        if (rc)
            err_in(e, "ControlNet '%s'", r->q->control[i].weights->path ? r->q->control[i].weights->path : "?");
    }
    return rc;
}

/* Step i of n, both counted from where x begins: not before `from`, and over by `to`. */
bool pipeline_control_acts(const struct run *r, const struct pair_row *row)
{
    const struct pipeline_request *q = r->q;
    const int begin = r->plan->start[0], n = r->sampler.n_step - begin, i = row->step[0] - begin;

    if (!q->n_control || row->step[0] == PAIR_HELD || n < 1)
        return false;
    return (double)i / n >= q->control_from && (double)(i + 1) / n <= q->control_to;
}

int pipeline_control_add(struct batch *b, struct tensor *in, struct tensor *time, int64_t first, int first_half,
                         int halves, struct unet_added *out, struct err *e)
{
    const struct run *r = b->r;
    struct tensor *x = op_rows(b->t, in, first, halves * b->n, e);
    int rc = OK;

    if (!x || !(time = op_rows(b->t, time, first, halves * b->n, e)))
        return e->code;
    *out = (struct unet_added){ .first = first };
    for (int i = 0; i < r->q->n_control && !rc; i++) {
        struct unet_text text = r->control[i].text;

        text.n_group = halves;
        for (int half = 0; half < halves; half++)
            text.prompt[half] = first_half + half;
        rc = controlnet_forward(b->t, r->control[i].net, x, time, &text, r->control[i].hint, r->q->control[i].weight,
                                out, e);
    }
    return rc;
}
