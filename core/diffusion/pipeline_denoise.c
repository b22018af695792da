/* core/diffusion/pipeline_denoise.c: from noise to latents: for each step of the sampler one pass of the UNet over all
 * rows, guidance, the step, the mask. Rows of the UNet: with guidance those of the negative prompt, then the prompt's.
 *
 * An image's random numbers are drawn in the order of the reference pipelines, so that torch's sequences give the same:
 * the latents of x, the initial noise, with a mask the latents of the masked picture (drawn and not used), then a
 * step's
 * noise as it comes. */
#include "core/diffusion/pipeline_run.h"

#include <string.h>

struct batch {
    struct run *r;
    struct tape *t;
    int64_t n, first, rows;         /* rows: n, or 2n with guidance */
    struct noise *noise;            /* (n), host */
    struct tensor *z;               /* (n,h,w,C) f32: the latents that walk */
    struct tensor *x0, *start;      /* the picture's latents; the initial noise; like z */
    struct tensor *fresh;           /* a step's noise */
    struct tensor *mask;            /* (h,w) f32 */
    struct tensor *time;            /* (rows) */
    struct unet_text text;
    struct sampler_state state;
};

static const struct kern *kern(const struct batch *b) { return b->r->dev->kern; }
static struct kctx *ctx(const struct batch *b) { return &b->r->dev->ctx; }

/* ---- setting up ---- */

static struct tensor *latents_new(struct batch *b, struct err *e)
{
    return tape_new(b->t, F32, 4, (int64_t[]){ b->n, b->r->h, b->r->w, b->r->C }, e);
}

static int draw(struct batch *b, enum rng_purpose purpose, uint32_t step, struct tensor *x, struct err *e)
{
    int rc = OK;

    for (int64_t i = 0; i < b->n && !rc; i++) {
        struct tensor *row = op_rows(b->t, x, i, 1, e);

        rc = row ? noise_draw(&b->noise[i], b->r->dev, purpose, step, row, &b->r->stage[STAGE_DENOISE].mem.stage, e)
                 : e->code;
    }
    return rc;
}

/* The initial noise: drawn, or what the caller brought. */
static int start_noise(struct batch *b, struct err *e)
{
    const struct pipeline_request *q = b->r->q;
    const size_t row = (size_t)(b->r->h * b->r->w * b->r->C) * sizeof(float);

    b->start = latents_new(b, e);
    if (!b->start)
        return e->code;
    if (!q->noise)
        return draw(b, RNG_NOISE, 0, b->start, e);
    for (int64_t i = 0; i < b->n && kern(b)->computes; i++)
        memcpy((char *)b->start->data + (size_t)i * row,
               (const char *)q->noise + (q->noise_rows > 1 ? (size_t)(b->first + i) : 0) * row, row);
    return OK;
}

/* Each image has its own draw from the picture's posterior. */
static int picture_latents(struct batch *b, struct err *e)
{
    const struct run *r = b->r;
    struct tensor *noise = NULL, *own, *z, *to;
    int rc = OK;

    if (!r->moments)
        return OK;
    b->x0 = latents_new(b, e);
    if (!b->x0 || (!r->q->x_mode && !(noise = latents_new(b, e))))
        return e->code;
    if (noise)
        rc = draw(b, RNG_LATENT, 0, noise, e);
    for (int64_t i = 0; i < b->n && !rc; i++) {
        const struct tape_mark m = tape_mark(b->t);

        if (!(to = op_rows(b->t, b->x0, i, 1, e)) || (noise && !(own = op_rows(b->t, noise, i, 1, e)))
            || !(z = vae_latents(b->t, r->base->vae, r->moments, noise ? own : NULL, e)))
            return e->code;
        tape_into(b->t, to);
        rc = op_scale(b->t, 1, z, e) ? OK : e->code;
        tape_release(b->t, m);
    }
    return rc;
}

static int take_mask(struct batch *b, struct err *e)
{
    const struct run *r = b->r;

    if (!r->q->x_mask)
        return OK;
    b->mask = tape_new(b->t, F32, 2, (int64_t[]){ r->h, r->w }, e);
    if (b->mask && kern(b)->computes)
        memcpy(b->mask->data, r->q->x_mask, tensor_bytes(b->mask));
    return b->mask ? OK : e->code;
}

/* Keys and values of every row's prompt. */
static int take_text(struct batch *b, struct err *e)
{
    const struct run *r = b->r;
    const int64_t T = r->words->dim[1], D = r->words->dim[2], n = T * D;
    struct tensor *words = tape_new(b->t, F32, 3, (int64_t[]){ b->rows, T, D }, e);
    const int64_t per = b->n * n;

    if (!words)
        return e->code;
    for (int64_t half = 0; half < b->rows / b->n; half++)       /* ldx 0: the same row n times */
        if (op_run(e, "text", kern(b)->permute(ctx(b), (float *)words->data + half * per,
                                               (float *)r->words->data + half * n, F32,
                                               &(struct kview4){ { 1, 1, b->n, n }, { 0, 0, 0, 1 } })))
            return e->code;
    words = op_cast(b->t, words, r->type, e);
    return words ? unet_text(b->t, r->unet, words, NULL, &b->text, e) : e->code;
}

/* z = a x0 + b noise at step i */
static int mix(struct batch *b, int i, struct tensor *z, struct err *e)
{
    double keep, add;

    sampler_mix(&b->r->sampler, i, &keep, &add);
    return op_run(e, "noise", kern(b)->axpby(ctx(b), z->data, (float)keep, b->x0->data, (float)add, b->start->data, F32,
                                             tensor_count(z)));
}

/* Pure noise for a walk from the first step, the noised picture for one from the middle, the picture for none. */
static int begin_latents(struct batch *b, int from, struct err *e)
{
    const struct run *r = b->r;

    if (from >= r->sampler.n_asked)
        return mix(b, r->sampler.n_step, b->z, e);
    if (from > 0)
        return mix(b, from, b->z, e);
    return op_run(e, "noise", kern(b)->axpby(ctx(b), b->z->data, (float)r->sampler.init_scale, b->start->data, 0, NULL,
                                             F32, tensor_count(b->z)));
}

/* ---- a step ---- */

/* What the UNet says about b->z at step i, guided: (n,h,w,C) f32 */
static struct tensor *predict(struct batch *b, int i, struct err *e)
{
    const struct run *r = b->r;
    const int64_t n = tensor_count(b->z);
    const float scale = (float)sampler_input_scale(&r->sampler, i);
    struct tape *t = b->t;
    struct tensor *in = tape_new(t, F32, 4, (int64_t[]){ b->rows, r->h, r->w, r->C }, e), *y, *own, *other;

    if (!in)
        return NULL;
    for (int64_t half = 0; half < b->rows / b->n; half++)
        if (op_run(e, "latents",
                   kern(b)->axpby(ctx(b), (float *)in->data + half * n, scale, b->z->data, 0, NULL, F32, n)))
            return NULL;
    if (op_run(e, "time", kern(b)->fill(ctx(b), b->time->data, F32, b->rows, (float)r->sampler.time[i]))
        || !(in = op_cast(t, in, r->type, e)) || !(y = unet_forward(t, r->unet, in, b->time, &b->text, NULL, e))
        || !(y = op_cast(t, y, F32, e)))
        return NULL;
    if (!r->guided)
        return y;
    if (!(other = op_rows(t, y, 0, b->n, e)) || !(own = op_rows(t, y, b->n, b->n, e))
        || !(own = op_axpby(t, 1, own, -1, other, e)))
        return NULL;
    return op_axpby(t, 1, other, (float)r->q->cfg, own, e);
}

/* The known part is put back at the level that comes next. */
static int put_back(struct batch *b, int next, struct err *e)
{
    const struct run *r = b->r;
    const struct tape_mark m = tape_mark(b->t);
    const int64_t HW = r->h * r->w;
    struct tensor *known = tape_like(b->t, b->z, e);
    int rc = known ? mix(b, next, known, e) : e->code;

    for (int64_t i = 0; i < b->n && !rc; i++) {
        float *z = (float *)b->z->data + i * HW * r->C, *k = (float *)known->data + i * HW * r->C;

        rc = op_run(e, "mask", kern(b)->lerp_mask(ctx(b), z, b->mask->data, z, k, F32, HW, r->C));
    }
    tape_release(b->t, m);
    return rc;
}

static int step(struct batch *b, int i, struct err *e)
{
    const struct run *r = b->r;
    const struct tape_mark m = tape_mark(b->t);
    const bool draws = sampler_draws(&r->sampler, i);
    struct tensor *eps = predict(b, i, e);
    int rc = eps ? OK : e->code;

    if (!rc && draws)
        rc = draw(b, RNG_STEP, (uint32_t)i, b->fresh, e);
    rc = rc ? rc : sampler_step(r->dev, &r->sampler, &b->state, i, b->z, eps, draws ? b->fresh : NULL, e);
    tape_release(b->t, m);
    return rc || !b->mask ? rc : put_back(b, i + 1, e);
}

/* A dry run needs no more than two steps to see all; the rest costs what the second did. */
static int walk(struct batch *b, int from, struct err *e)
{
    struct run *r = b->r;
    const int n = r->sampler.n_step;

    r->n_total = (r->q->count + r->q->batch - 1) / r->q->batch * (n - from);
    for (int i = from; i <= n; i++) {
        const struct kcount had = r->dev->count;
        int rc = progress_tick(&r->sink->progress, "sampling", r->n_done, r->n_total)
            ? err_set(e, E_CANCEL, "stopped while sampling") : OK;

        if (rc || i == n)
            return rc;
        rc = step(b, i, e);
        if (rc)
            return rc;
        r->n_done++;
        if (!r->dev->kern->computes && i > from) {
            r->dev->count.flops += (n - 1 - i) * (r->dev->count.flops - had.flops);
            r->dev->count.calls += (n - 1 - i) * (r->dev->count.calls - had.calls);
            return OK;
        }
    }
    return OK;
}

static int make_room(struct batch *b, struct err *e)
{
    struct run *r = b->r;

    b->noise = arena_push(&b->t->mem->meta, (size_t)b->n * sizeof *b->noise, e);
    b->z = tensor_new(&r->keep_meta, &r->keep, F32, 4, (int64_t[]){ b->n, r->h, r->w, r->C }, e);
    b->fresh = b->noise && b->z ? latents_new(b, e) : NULL;
    b->time = b->fresh ? tape_new(b->t, F32, 1, &b->rows, e) : NULL;
    if (!b->time)
        return e->code;
    for (int64_t i = 0; i < b->n; i++)
        noise_init(&b->noise[i], r->q->rng, r->q->rng_type, r->q->seed + (uint64_t)(b->first + i));
    return sampler_state_init(&b->state, &r->sampler, &b->t->mem->meta, &b->t->mem->step, b->z, e);
}

struct tensor *pipeline_denoise(struct run *r, int64_t first, int64_t n, struct err *e)
{
    struct batch b = { .r = r, .t = &r->stage[STAGE_DENOISE].t, .n = n, .first = first, .rows = r->guided ? 2 * n : n };
    const struct tape_mark m = tape_mark(b.t);
    const int from = pipeline_start(r->q->x_noise, r->sampler.n_asked);
    int rc = make_room(&b, e);

    rc = rc ? rc : picture_latents(&b, e);
    rc = rc ? rc : start_noise(&b, e);
    rc = rc ? rc : take_mask(&b, e);
    if (!rc && b.mask && r->q->rng != NOISE_PHILOX)
        rc = draw(&b, RNG_LATENT, 1, b.fresh, e);
    rc = rc ? rc : take_text(&b, e);
    rc = rc ? rc : begin_latents(&b, from, e);
    if (!rc && from < r->sampler.n_asked)
        rc = walk(&b, from, e);
    tape_release(b.t, m);
    return rc ? NULL : b.z;
}
