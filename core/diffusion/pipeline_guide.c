/* core/diffusion/pipeline_guide.c: gradient guidance (UniCon, Eq. 7; the optimizer in place of a fixed weight as in
 * Readout-Guidance, Luo et al. 2024): before the step of a row the latents of x and y move so that what the model makes
 * of them comes nearer to what is given.
 *
 *     L = sum over guided k of || (1 - mask_k) (x0_k(z) - picture_k) ||^2,    x0_k = cx z_k + cm eps_k(z)
 *     u = c z, of unit variance;  u -= lr * (what the optimizer makes of dL/du);  dL/du = dL/dz / c
 *
 * The model runs on a tape of its own, whose notes, activations and gradients go after each optimizer step; what the
 * stage's tape holds stays. A sum, not a mean: nothing underflows in 16 bits. Where the noise is high dL/deps grows
 * with cm^2, so L is multiplied by a power of two that keeps it about 1, and gradients are divided by it. */
#include "core/diffusion/pipeline_batch.h"

#include <math.h>
#include <string.h>

struct guide {
    struct tensor *m, *v;                           /* like z: moments; sgd's sum is m */
    struct tensor *part[PAIR_MAX_INPUT];            /* (n,h,w): (1 - mask)^2, or NULL: the whole */
    struct tensor *weight;                          /* (n): what makes a sum of a mean, scaled */
};

/* ---- room, once for a batch ---- */

static int open_recorder(struct stage *s, struct device *dev, struct err *e)
{
    const struct tape_caps caps = { (size_t)1 << 30, (size_t)1 << 38, (size_t)1 << 38, (size_t)1 << 36 };
    int rc;

    if (s->recorder.mem)
        return OK;
    rc = tape_memory_init(&s->noted, dev, &caps, e);
    if (!rc)
        tape_init(&s->recorder, dev, &s->noted);
    return rc;
}

/* The same for all images. */
static int take_part(struct batch *b, int k, struct err *e)
{
    const float *mask = b->r->q->input[k].mask;
    const int64_t HW = b->r->h * b->r->w;
    struct tensor *x;

    if (!mask)
        return OK;
    x = b->guide->part[k] = tape_new(b->t, F32, 3, (int64_t[]){ b->n, b->r->h, b->r->w }, e);
    for (int64_t i = 0; x && batch_kern(b)->computes && i < b->n * HW; i++)
        ((float *)x->data)[i] = (1 - mask[i % HW]) * (1 - mask[i % HW]);
    return x ? OK : e->code;
}

int guide_begin(struct batch *b, struct err *e)
{
    const struct pipeline_guidance *g = &b->r->q->guidance;
    int rc;

    if (!b->r->any_guided)
        return OK;
    rc = open_recorder(&b->r->stage[STAGE_DENOISE], b->r->dev, e);
    b->guide = rc ? NULL : arena_push_zero(&b->t->mem->meta, sizeof *b->guide, e);
    if (!b->guide || !(b->guide->m = tape_like(b->t, b->z, e)) || !(b->guide->v = tape_like(b->t, b->z, e))
        || !(b->guide->weight = tape_new(b->t, F32, 1, &b->n, e)))
        return e->code;
    for (int k = 0; k < b->K && !rc; k++)
        if (g->on[k])
            rc = take_part(b, k, e);
    return rc;
}

/* ---- the gradient ---- */

static double unit(const struct batch *b, int step) { return sampler_input_scale(&b->r->sampler, step); }

/* About 1 / (cm^2 cfg), the largest cm of those that are guided, as a power of two. */
static double loss_scale(const struct batch *b, const struct pair_row *row)
{
    const struct pipeline_request *q = b->r->q;
    double most = 1, cx, cm;

    for (int k = 0; k < b->K; k++)
        if (q->guidance.on[k]) {
            sampler_x0(&b->r->sampler, row->step[k], &cx, &cm);
            most = fmax(most, cm * cm * fmax(1, q->cfg));
        }
    return exp2(-round(log2(most)));
}

/* The part of the loss that is about input k, of latents z on the recording tape. */
static struct tensor *loss_of(struct batch *rec, const struct pair_row *row, int k, struct tensor *z,
                              struct tensor *eps, struct err *e)
{
    struct tensor *own = batch_input(rec, z, k, e), *given = own ? batch_input(rec, rec->x0, k, e) : NULL, *x0;
    double cx, cm;

    sampler_x0(&rec->r->sampler, row->step[k], &cx, &cm);
    x0 = given ? op_axpby(rec->t, (float)cx, own, (float)cm, eps, e) : NULL;
    return x0 ? op_mse(rec->t, x0, given, rec->guide->weight, rec->guide->part[k], e) : NULL;
}

/* dL/dz times `scale`, like z, on the recording tape of `rec`; NULL with e set. */
static struct tensor *gradient(struct batch *rec, const struct pair_row *row, double scale, struct err *e)
{
    const bool *on = rec->r->q->guidance.on;
    struct tensor *z = tensor_wrap(&rec->t->mem->meta, rec->z->data, F32, 4, rec->z->dim, e), *loss = NULL, *part;
    struct tensor *eps[PAIR_MAX_INPUT];
    int rc;

    if (!z || op_run(e, "guidance", batch_kern(rec)->fill(batch_ctx(rec), rec->guide->weight->data, F32, rec->n,
                                                          (float)(scale * (double)batch_each(rec)))))
        return NULL;
    z->name = "latents";
    tape_watch(z, NULL);
    rec->t->recording = true;
    rc = batch_eps(rec, row, z, on, eps, e);
    for (int k = 0; k < rec->K && !rc; k++) {
        if (!on[k])
            continue;
        part = loss_of(rec, row, k, z, eps[k], e);
        loss = !part || !loss ? part : op_add(rec->t, loss, part, e);
        rc = loss ? OK : e->code;
    }
    rc = rc ? rc : tape_backward(rec->t, loss, NULL, e);
    rec->t->recording = false;
    return rc ? NULL : z->grad;
}

/* ---- the optimizer ---- */

/* t: which step of the row, from 1. The moments of u, but z is what moves: lr and decay follow from u = c z. */
static int adamw(struct batch *b, float *z, float *m, float *v, const float *d, double c, double scale, int t,
                 struct err *e)
{
    const struct pipeline_guidance *g = &b->r->q->guidance;
    const struct kadamw o = { .lr = g->lr / c, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                              .weight_decay = g->decay * c, .bias1 = 1 - pow(0.9, t), .bias2 = 1 - pow(0.999, t),
                              .grad_scale = (float)(1 / (c * scale)) };

    return op_run(e, "guidance", batch_kern(b)->adamw(batch_ctx(b), z, m, v, d, b->n * batch_each(b), &o, NULL, F32));
}

/* m = 0.9 m + dL/du, z -= lr m / c; without momentum m is not kept. */
static int descend(struct batch *b, float *z, float *m, const float *d, double c, double scale, float momentum,
                   struct err *e)
{
    const int64_t n = b->n * batch_each(b);
    const float lr = (float)(b->r->q->guidance.lr / c);
    int rc = batch_kern(b)->axpby(batch_ctx(b), m, momentum, m, (float)(1 / (c * scale)), d, F32, n);

    rc = rc ? rc : batch_kern(b)->axpby(batch_ctx(b), z, 1, z, -lr, m, F32, n);
    return op_run(e, "guidance", rc);
}

static int move(struct batch *b, const struct pair_row *row, const struct tensor *grad, double scale, int t,
                struct err *e)
{
    const int64_t each = b->n * batch_each(b);
    const enum guide_opt opt = b->r->q->guidance.opt;
    int rc = OK;

    for (int k = 0; k < b->K && !rc; k++) {
        const int64_t at = k * each;
        float *z = (float *)b->z->data + at, *m = (float *)b->guide->m->data + at, *v = (float *)b->guide->v->data + at;
        const float *d = (const float *)grad->data + at;

        if (row->step[k] == PAIR_HELD)
            continue;
        rc = opt == GUIDE_ADAMW ? adamw(b, z, m, v, d, unit(b, row->step[k]), scale, t, e)
            : descend(b, z, m, d, unit(b, row->step[k]), scale, opt == GUIDE_SGD ? 0.9f : 0, e);
    }
    return rc;
}

static int forget(struct batch *b, struct err *e)
{
    const struct kern *k = batch_kern(b);
    const int64_t n = tensor_count(b->z);
    const int rc = k->fill(batch_ctx(b), b->guide->m->data, F32, n, 0);

    return op_run(e, "guidance", rc ? rc : k->fill(batch_ctx(b), b->guide->v->data, F32, n, 0));
}

int guide_row(struct batch *b, int i, struct err *e)
{
    const struct pair_row *row = &b->r->plan->row[i];
    const struct progress *progress = &b->r->sink->progress;
    struct batch rec = *b;
    int rc = OK;

    if (!b->r->guides[i])
        return OK;
    rec.t = &b->r->stage[STAGE_DENOISE].recorder;
    rc = forget(b, e);
    for (int t = 1; t <= b->r->q->guidance.steps && !rc; t++) {
        const double scale = loss_scale(b, row);
        struct tensor *grad = gradient(&rec, row, scale, e);

        rc = grad ? move(b, row, grad, scale, t, e) : e->code;
        tape_reset(rec.t);
        if (!rc && progress_tick(progress, "sampling", b->r->n_done, b->r->n_total))
            rc = err_set(e, E_CANCEL, "stopped while sampling");
    }
    return rc;
}
