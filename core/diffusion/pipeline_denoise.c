/* core/diffusion/pipeline_denoise.c: from noise to latents: for each row of the schedule one pass of the UNet over all
 * inputs, guidance, a step for those that walk, the masks.
 *
 * Latents: input k of image i is row k n + i. Rows of the UNet lie input by input too, with guidance those of the
 * negative prompt before the prompt's. An image's random numbers are drawn in the order of the reference pipelines, so
 * that torch's sequences give the same: the latents of the pictures, the initial noise, with a mask the latents of the
 * masked pictures (drawn and not used), then a step's noise as it comes. */
#include "core/diffusion/pipeline_run.h"

#include <string.h>

struct batch {
    struct run *r;
    struct tape *t;
    int64_t n, first, halves;       /* halves: 2 with guidance, else 1 */
    int K;                          /* inputs */
    struct noise *noise;            /* (n), host */
    struct tensor *z;               /* (K n,h,w,C) f32: the latents that walk */
    struct tensor *x0, *start;      /* the pictures' latents; the initial noise; like z */
    struct tensor *fresh;           /* a step's noise of one input, (n,h,w,C) */
    struct tensor *mask[PAIR_MAX_INPUT];        /* (h,w) f32, or NULL */
    struct tensor *time;            /* (rows) */
    struct unet_text text;
    struct joint_run joint;
    struct sampler_state state[PAIR_MAX_INPUT];
};

static const struct kern *kern(const struct batch *b) { return b->r->dev->kern; }
static struct kctx *ctx(const struct batch *b) { return &b->r->dev->ctx; }
static int64_t each(const struct batch *b) { return b->r->h * b->r->w * b->r->C; }

/* ---- setting up ---- */

static struct tensor *latents_new(struct batch *b, int64_t rows, struct err *e)
{
    return tape_new(b->t, F32, 4, (int64_t[]){ rows, b->r->h, b->r->w, b->r->C }, e);
}

/* The latents of input k in z-like x. */
static struct tensor *of_input(struct batch *b, struct tensor *x, int k, struct err *e)
{
    return op_rows(b->t, x, k * b->n, b->n, e);
}

static int draw_rows(struct batch *b, int64_t i, enum rng_purpose purpose, uint32_t step, uint64_t row,
                     struct tensor *x, struct err *e)
{
    return noise_draw(&b->noise[i], b->r->dev, purpose, step, row, x, &b->r->stage[STAGE_DENOISE].mem.stage, e);
}

/* For input k of every image. x (n,h,w,C) */
static int draw(struct batch *b, enum rng_purpose purpose, uint32_t step, int k, struct tensor *x, struct err *e)
{
    int rc = OK;

    for (int64_t i = 0; i < b->n && !rc; i++) {
        struct tensor *row = op_rows(b->t, x, i, 1, e);

        rc = row ? draw_rows(b, i, purpose, step, (uint64_t)k, row, e) : e->code;
    }
    return rc;
}

/* For all inputs of each image at once, as one draw of torch's. x like z */
static int draw_all(struct batch *b, enum rng_purpose purpose, uint32_t step, struct tensor *x, struct err *e)
{
    const struct tape_mark m = tape_mark(b->t);
    struct tensor *all;
    int rc = OK;

    if (b->K == 1)
        return draw(b, purpose, step, 0, x, e);
    all = latents_new(b, b->K, e);
    rc = all ? OK : e->code;
    for (int64_t i = 0; i < b->n && !rc; i++) {
        rc = draw_rows(b, i, purpose, step, 0, all, e);
        if (!rc)                                    /* row k to row k n + i */
            rc = op_run(e, "noise", kern(b)->copy_rows(ctx(b), (float *)x->data + i * each(b), b->n * each(b),
                                                       all->data, each(b), F32, b->K, each(b), false));
    }
    tape_release(b->t, m);
    return rc;
}

/* The initial noise: drawn, or what the caller brought. */
static int start_noise(struct batch *b, struct err *e)
{
    const size_t row = (size_t)each(b) * sizeof(float);
    bool draws = false;
    int rc;

    for (int k = 0; k < b->K; k++)
        draws |= !b->r->q->input[k].noise;
    b->start = latents_new(b, b->K * b->n, e);
    rc = !b->start ? e->code : draws ? draw_all(b, RNG_NOISE, 0, b->start, e) : OK;
    for (int k = 0; k < b->K && !rc && kern(b)->computes; k++) {
        const struct pipeline_input *in = &b->r->q->input[k];

        for (int64_t i = 0; in->noise && i < b->n; i++)
            memcpy((char *)b->start->data + (size_t)(k * b->n + i) * row,
                   (const char *)in->noise + (in->noise_rows > 1 ? (size_t)(b->first + i) : 0) * row, row);
    }
    return rc;
}

static int picture_of(struct batch *b, int k, struct tensor *noise, struct err *e)
{
    const struct run *r = b->r;
    int rc = OK;

    for (int64_t i = 0; i < b->n && !rc; i++) {
        const struct tape_mark m = tape_mark(b->t);
        struct tensor *to = op_rows(b->t, b->x0, k * b->n + i, 1, e), *own = NULL, *z;

        if (!to || (!r->q->input[k].mode && !(own = op_rows(b->t, noise, k * b->n + i, 1, e)))
            || !(z = vae_latents(b->t, r->base->vae, r->moments[k], own, e)))
            return e->code;
        tape_into(b->t, to);
        rc = op_scale(b->t, 1, z, e) ? OK : e->code;
        tape_release(b->t, m);
    }
    return rc;
}

/* Each image has its own draw from its pictures' posteriors. The published code draws for inputs without one too. */
static int picture_latents(struct batch *b, struct err *e)
{
    const struct run *r = b->r;
    bool any = false, draws = r->q->official;
    struct tensor *noise;
    int rc = OK;

    for (int k = 0; k < b->K; k++) {
        any |= r->moments[k] != NULL;
        draws |= r->moments[k] && !r->q->input[k].mode;
    }
    if (!any && !draws)
        return OK;
    b->x0 = latents_new(b, b->K * b->n, e);
    noise = b->x0 && draws ? latents_new(b, b->K * b->n, e) : NULL;
    if (!b->x0 || (draws && !noise))
        return e->code;
    rc = op_run(e, "latents", kern(b)->fill(ctx(b), b->x0->data, F32, tensor_count(b->x0), 0));
    if (!rc && draws)
        rc = draw_all(b, RNG_LATENT, 0, noise, e);
    for (int k = 0; k < b->K && !rc; k++)
        if (r->moments[k])
            rc = picture_of(b, k, noise, e);
    return rc;
}

static int take_masks(struct batch *b, struct err *e)
{
    const struct run *r = b->r;
    bool any = r->q->official;

    for (int k = 0; k < b->K; k++) {
        if (!r->q->input[k].mask)
            continue;
        any |= r->q->rng != NOISE_PHILOX;
        b->mask[k] = tape_new(b->t, F32, 2, (int64_t[]){ r->h, r->w }, e);
        if (!b->mask[k])
            return e->code;
        if (kern(b)->computes)
            memcpy(b->mask[k]->data, r->q->input[k].mask, tensor_bytes(b->mask[k]));
    }
    if (any) {                                      /* as the reference encodes what it masked */
        const struct tape_mark m = tape_mark(b->t);
        struct tensor *unused = latents_new(b, b->K * b->n, e);
        const int rc = unused ? draw_all(b, RNG_LATENT, 1, unused, e) : e->code;

        tape_release(b->t, m);
        return rc;
    }
    return OK;
}

/* Keys and values of every row's prompt. */
static int take_text(struct batch *b, struct err *e)
{
    const struct run *r = b->r;
    const int64_t T = r->words->dim[1], D = r->words->dim[2], n = T * D, prompts = b->K * b->halves;
    struct tensor *words = tape_new(b->t, F32, 3, (int64_t[]){ prompts * b->n, T, D }, e);

    if (!words)
        return e->code;
    for (int64_t p = 0; p < prompts; p++)                       /* the same row n times */
        if (op_run(e, "text", kern(b)->permute(ctx(b), (float *)words->data + p * b->n * n,
                                               (float *)r->words->data + p * n, F32,
                                               &(struct kview4){ { 1, 1, b->n, n }, { 0, 0, 0, 1 } })))
            return e->code;
    words = op_cast(b->t, words, r->type, e);
    return words ? unet_text(b->t, r->unet, words, &b->joint, &b->text, e) : e->code;
}

/* to = a x0 + b noise at step i, for input k */
static int mix(struct batch *b, int k, int i, struct tensor *to, struct err *e)
{
    double keep, add;

    sampler_mix(&b->r->sampler, i, &keep, &add);
    return op_run(e, "noise",
                  kern(b)->axpby(ctx(b), to->data, (float)keep, (float *)b->x0->data + k * b->n * each(b), (float)add,
                                 (float *)b->start->data + k * b->n * each(b), F32, b->n * each(b)));
}

/* Pure noise for a walk from the first step, the noised picture for one from the middle, the picture for none. */
static int begin_latents(struct batch *b, int k, struct err *e)
{
    const struct run *r = b->r;
    struct tensor *z = of_input(b, b->z, k, e);
    const int from = r->plan->start[k];

    if (!z)
        return e->code;
    if (from)
        return mix(b, k, from == PAIR_HELD ? r->sampler.n_step : from, z, e);
    return op_run(e, "noise",
                  kern(b)->axpby(ctx(b), z->data, (float)r->sampler.init_scale,
                                 (float *)b->start->data + k * b->n * each(b), 0, NULL, F32, b->n * each(b)));
}

/* ---- a row of the schedule ---- */

/* The UNet's input: each input at its own level and time. */
static struct tensor *rows_in(struct batch *b, const struct pair_row *row, struct err *e)
{
    const struct run *r = b->r;
    const int64_t n = b->n * each(b);
    struct tensor *in = latents_new(b, b->K * b->halves * b->n, e);

    for (int k = 0; k < b->K && in; k++) {
        const bool held = row->step[k] == PAIR_HELD;
        const float scale = held ? 1 : (float)sampler_input_scale(&r->sampler, row->step[k]);
        const float time = held ? 0 : (float)r->sampler.time[row->step[k]];

        if (op_run(e, "time", kern(b)->fill(ctx(b), (float *)b->time->data + k * b->halves * b->n, F32,
                                            b->halves * b->n, time)))
            return NULL;
        for (int64_t half = 0; half < b->halves; half++)
            if (op_run(e, "latents", kern(b)->axpby(ctx(b), (float *)in->data + (k * b->halves + half) * n, scale,
                                                    (float *)b->z->data + k * n, 0, NULL, F32, n)))
                return NULL;
    }
    return in ? op_cast(b->t, in, r->type, e) : NULL;
}

/* What the UNet says of all rows, f32. */
static struct tensor *ask(struct batch *b, struct tensor *in, bool joint, struct err *e)
{
    struct tensor *y;

    b->joint.off = !joint;
    y = unet_forward(b->t, b->r->unet, in, b->time, &b->text, &b->joint, e);
    return y ? op_cast(b->t, y, F32, e) : NULL;
}

/* The half of input k whose prompt is meant. */
static struct tensor *half_of(struct batch *b, struct tensor *y, int k, int64_t half, struct err *e)
{
    return op_rows(b->t, y, (k * b->halves + half) * b->n, b->n, e);
}

/* Guided output of input k, (n,h,w,C): u + cfg (c - u), and with condition guidance + s (c - c without joint
 * attention); paper, appendix C. */
static struct tensor *guide(struct batch *b, struct tensor *y, struct tensor *apart, int k, struct err *e)
{
    const struct pipeline_request *q = b->r->q;
    struct tensor *own = half_of(b, y, k, b->halves - 1, e), *other, *d, *out = own;

    if (own && b->halves == 2) {
        if (!(other = half_of(b, y, k, 0, e)) || !(d = op_axpby(b->t, 1, own, -1, other, e)))
            return NULL;
        out = op_axpby(b->t, 1, other, (float)q->cfg, d, e);
    }
    if (!out || !apart)
        return out;
    if (!(other = half_of(b, apart, k, b->halves - 1, e)) || !(d = op_axpby(b->t, 1, own, -1, other, e)))
        return NULL;
    return op_axpby(b->t, 1, out, (float)q->cond_guidance, d, e);
}

/* The known part of input k is put back at the level that comes next: for one that pauses, in the published code that
 * of the next step too, here its own. */
static int put_back(struct batch *b, const struct pair_row *row, int k, struct err *e)
{
    const struct run *r = b->r;
    const struct tape_mark m = tape_mark(b->t);
    const int64_t HW = r->h * r->w, n = each(b);
    const int step = row->step[k], next = row->walks[k] || r->q->official ? step + 1 : step;
    struct tensor *known = latents_new(b, b->n, e);
    int rc = known ? mix(b, k, step == PAIR_HELD ? r->sampler.n_step : next, known, e) : e->code;

    for (int64_t i = 0; i < b->n && !rc; i++) {
        float *z = (float *)b->z->data + (k * b->n + i) * n;

        rc = op_run(e, "mask", kern(b)->lerp_mask(ctx(b), z, b->mask[k]->data, z, (float *)known->data + i * n, F32,
                                                  HW, r->C));
    }
    tape_release(b->t, m);
    return rc;
}

static int step_input(struct batch *b, const struct pair_row *row, int k, struct tensor *y, struct tensor *apart,
                      struct err *e)
{
    const struct run *r = b->r;
    const int i = row->step[k];
    const bool draws = sampler_draws(&r->sampler, i);
    struct tensor *z = of_input(b, b->z, k, e), *eps = z ? guide(b, y, apart, k, e) : NULL;
    int rc = eps ? OK : e->code;

    if (!rc && draws)
        rc = draw(b, RNG_STEP, (uint32_t)i, k, b->fresh, e);
    return rc ? rc : sampler_step(r->dev, &r->sampler, &b->state[k], i, z, eps, draws ? b->fresh : NULL, e);
}

static int step(struct batch *b, const struct pair_row *row, struct err *e)
{
    const struct tape_mark m = tape_mark(b->t);
    const bool twice = b->r->q->cond_guidance != 0 && b->joint.n_pair;
    struct tensor *in = rows_in(b, row, e), *y = in ? ask(b, in, true, e) : NULL;
    struct tensor *apart = y && twice ? ask(b, in, false, e) : NULL;
    int rc = y && (!twice || apart) ? OK : e->code;

    for (int k = 0; k < b->K && !rc; k++)
        if (row->walks[k])
            rc = step_input(b, row, k, y, apart, e);
    tape_release(b->t, m);
    for (int k = 0; k < b->K && !rc; k++)
        if (b->mask[k] && !row->free)
            rc = put_back(b, row, k, e);
    return rc;
}

/* A dry run needs no more than two rows to see all; the rest costs what the second did. */
static int walk(struct batch *b, struct err *e)
{
    struct run *r = b->r;
    const int n = r->plan->n_row;

    r->n_total = (r->q->count + r->q->batch - 1) / r->q->batch * n;
    for (int i = 0; i <= n; i++) {
        const struct kcount had = r->dev->count;
        int rc = progress_tick(&r->sink->progress, "sampling", r->n_done, r->n_total)
            ? err_set(e, E_CANCEL, "stopped while sampling") : OK;

        if (rc || i == n)
            return rc;
        rc = step(b, &r->plan->row[i], e);
        if (rc)
            return rc;
        r->n_done++;
        if (!r->dev->kern->computes && i > 0) {
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
    const int64_t rows = b->K * b->halves * b->n;
    int rc;

    b->noise = arena_push(&b->t->mem->meta, (size_t)b->n * sizeof *b->noise, e);
    b->z = tensor_new(&r->keep_meta, &r->keep, F32, 4, (int64_t[]){ b->K * b->n, r->h, r->w, r->C }, e);
    b->fresh = b->noise && b->z ? latents_new(b, b->n, e) : NULL;
    b->time = b->fresh ? tape_new(b->t, F32, 1, &rows, e) : NULL;
    rc = b->time ? OK : e->code;
    for (int64_t i = 0; i < b->n && !rc; i++)
        noise_init(&b->noise[i], r->q->rng, r->q->rng_type, r->q->seed + (uint64_t)(b->first + i));
    for (int k = 0; k < b->K && !rc; k++)
        rc = sampler_state_init(&b->state[k], &r->sampler, &b->t->mem->meta, &b->t->mem->step, b->fresh, e);
    b->joint = (struct joint_run){ .n_input = b->K, .n_pair = r->q->n_pair, .scale = (float)r->q->joint_scale };
    for (int p = 0; p < r->q->n_pair; p++) {
        const struct pipeline_pair *q = &r->q->pair[p];

        b->joint.pair[p] = (struct joint_pair){ q->x, q->y, q->wx, q->wy, r->joint[p] };
    }
    return rc;
}

struct tensor *pipeline_denoise(struct run *r, int64_t first, int64_t n, struct err *e)
{
    struct batch b = { .r = r, .t = &r->stage[STAGE_DENOISE].t, .n = n, .first = first, .halves = r->guided ? 2 : 1,
                       .K = r->q->n_input };
    const struct tape_mark m = tape_mark(b.t);
    int rc = make_room(&b, e);

    rc = rc ? rc : picture_latents(&b, e);
    rc = rc ? rc : start_noise(&b, e);
    rc = rc ? rc : take_masks(&b, e);
    rc = rc ? rc : take_text(&b, e);
    for (int k = 0; k < b.K && !rc; k++)
        rc = begin_latents(&b, k, e);
    if (!rc && r->plan->n_row)
        rc = walk(&b, e);
    tape_release(b.t, m);
    return rc ? NULL : b.z;
}
