/* core/diffusion/pipeline_denoise.c: from noise to latents: for each row of the schedule what the model says
 * (pipeline_eps.c), a step for the inputs that walk, the masks.
 *
 * An image's random numbers are drawn in the order of the reference pipelines, so that torch's sequences give the
 * same: the latents of the pictures, the initial noise, with a mask the latents of the masked pictures (drawn and
 * not used), then a step's noise as it comes. */
#include "core/diffusion/pipeline_batch.h"

/* ---- setting up ---- */

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
    const int64_t n = batch_each(b);
    struct tensor *all;
    int rc = OK;

    if (b->K == 1)
        return draw(b, purpose, step, 0, x, e);
    all = batch_latents(b, b->K, e);
    rc = all ? OK : e->code;
    for (int64_t i = 0; i < b->n && !rc; i++) {
        rc = draw_rows(b, i, purpose, step, 0, all, e);
        if (!rc)                                    /* row k to row k n + i */
            rc = op_run(e, "noise", batch_kern(b)->copy_rows(batch_ctx(b), (float *)x->data + i * n, b->n * n,
                                                             all->data, n, F32, b->K, n, false));
    }
    tape_release(b->t, m);
    return rc;
}

/* The initial noise: drawn, or what the caller brought. */
static int start_noise(struct batch *b, struct err *e)
{
    const size_t row = (size_t)batch_each(b) * sizeof(float);
    bool draws = false;
    int rc;

    for (int k = 0; k < b->K; k++)
        draws |= !b->r->q->input[k].noise;
    b->start = batch_latents(b, b->K * b->n, e);
    rc = !b->start ? e->code : draws ? draw_all(b, RNG_NOISE, 0, b->start, e) : OK;
    for (int k = 0; k < b->K && !rc; k++) {
        const struct pipeline_input *in = &b->r->q->input[k];

        for (int64_t i = 0; in->noise && i < b->n && !rc; i++)
            rc = device_put(b->r->dev, (char *)b->start->data + (size_t)(k * b->n + i) * row,
                            (const char *)in->noise + (in->noise_rows > 1 ? (size_t)(b->first + i) : 0) * row, row, e);
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
    b->x0 = batch_latents(b, b->K * b->n, e);
    noise = b->x0 && draws ? batch_latents(b, b->K * b->n, e) : NULL;
    if (!b->x0 || (draws && !noise))
        return e->code;
    rc = op_run(e, "latents", batch_kern(b)->fill(batch_ctx(b), b->x0->data, F32, tensor_count(b->x0), 0));
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
        if (!b->mask[k]
            || device_put(r->dev, b->mask[k]->data, r->q->input[k].mask, tensor_bytes(b->mask[k]), e))
            return e->code;
    }
    if (any) {                                      /* as the reference encodes what it masked */
        const struct tape_mark m = tape_mark(b->t);
        struct tensor *unused = batch_latents(b, b->K * b->n, e);
        const int rc = unused ? draw_all(b, RNG_LATENT, 1, unused, e) : e->code;

        tape_release(b->t, m);
        return rc;
    }
    return OK;
}

/* to = a x0 + b noise at step i, for input k */
static int mix(struct batch *b, int k, int i, struct tensor *to, struct err *e)
{
    double keep, add;

    sampler_mix(&b->r->sampler, i, &keep, &add);
    return op_run(e, "noise",
                  batch_kern(b)->axpby(batch_ctx(b), to->data, (float)keep, batch_at(b, b->x0, k), (float)add,
                                 batch_at(b, b->start, k), F32, b->n * batch_each(b)));
}

/* Pure noise for a walk from the first step, the noised picture for one from the middle, the picture for none. */
static int begin_latents(struct batch *b, int k, struct err *e)
{
    const struct run *r = b->r;
    struct tensor *z = batch_input(b, b->z, k, e);
    const int from = r->plan->start[k];

    if (!z)
        return e->code;
    if (from)
        return mix(b, k, from == PAIR_HELD ? r->sampler.n_step : from, z, e);
    return op_run(e, "noise",
                  batch_kern(b)->axpby(batch_ctx(b), z->data, (float)r->sampler.init_scale,
                                 batch_at(b, b->start, k), 0, NULL, F32, b->n * batch_each(b)));
}

/* ---- a row of the schedule ---- */

/* The known part of input k is put back at the level that comes next: for one that pauses, in the published code that
 * of the next step too, here its own. */
static int put_back(struct batch *b, const struct pair_row *row, int k, struct err *e)
{
    const struct run *r = b->r;
    const struct tape_mark m = tape_mark(b->t);
    const int64_t HW = r->h * r->w, n = batch_each(b);
    const int step = row->step[k], next = row->walks[k] || r->q->official ? step + 1 : step;
    struct tensor *known = batch_latents(b, b->n, e);
    int rc = known ? mix(b, k, step == PAIR_HELD ? r->sampler.n_step : next, known, e) : e->code;

    for (int64_t i = 0; i < b->n && !rc; i++) {
        float *z = (float *)b->z->data + (k * b->n + i) * n;

        rc = op_run(e, "mask", batch_kern(b)->lerp_mask(batch_ctx(b), z, b->mask[k]->data, z,
                                                        (float *)known->data + i * n, F32, HW, r->C));
    }
    tape_release(b->t, m);
    return rc;
}

static int step_input(struct batch *b, const struct pair_row *row, int k, struct tensor *eps, struct err *e)
{
    const struct run *r = b->r;
    const int i = row->step[k];
    const bool draws = sampler_draws(&r->sampler, i);
    struct tensor *z = batch_input(b, b->z, k, e);
    int rc = z ? OK : e->code;

    if (!rc && draws)
        rc = draw(b, RNG_STEP, (uint32_t)i, k, b->fresh, e);
    return rc ? rc : sampler_step(r->dev, &r->sampler, &b->state[k], i, z, eps, draws ? b->fresh : NULL, e);
}

static int do_row(struct batch *b, int i, struct err *e)
{
    const struct pair_row *row = &b->r->plan->row[i];
    const struct tape_mark m = tape_mark(b->t);
    struct tensor *eps[PAIR_MAX_INPUT];
    int rc = guide_row(b, i, e);

    rc = rc ? rc : batch_eps(b, row, b->z, row->walks, eps, e);
    for (int k = 0; k < b->K && !rc; k++)
        if (row->walks[k])
            rc = step_input(b, row, k, eps[k], e);
    tape_release(b->t, m);
    for (int k = 0; k < b->K && !rc; k++)
        if (b->mask[k] && !row->free)
            rc = put_back(b, row, k, e);
    return rc;
}

/* What decides which kernels a row's work is made of: how many images, who walks, who is given, what acts, and where
 * samplers take other formulas. Rows that are taken for alike and are not cost a little time, nothing else. */
static uint64_t shape_of_row(const struct batch *b, int i)
{
    const struct pair_row *row = &b->r->plan->row[i];
    const uint64_t all[] = { (uint64_t)b->n, row->free, b->r->guides[i], pipeline_control_acts(b->r, row) };
    const int last = b->r->sampler.n_step - 1;
    uint64_t h = 0xcbf29ce484222325u;                               /* FNV-1a */

    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        h = (h ^ all[k]) * 0x100000001b3u;
    for (int k = 0; k < b->K; k++) {
        const int s = row->step[k], kind = s == PAIR_HELD ? 0 : s == last ? 1 : s < 4 ? 2 + s : 6;

        h = (h ^ (uint64_t)(kind * 2 + row->walks[k])) * 0x100000001b3u;
    }
    return h;
}

/* A row is one piece of work for the device, where it takes such. */
static int step(struct batch *b, int i, struct err *e)
{
    int rc = device_step_begin(b->r->dev, shape_of_row(b, i), e), end;

    if (rc)
        return rc;
    rc = do_row(b, i, e);
    end = device_step_end(b->r->dev, rc ? NULL : e);
    return rc ? rc : end;
}

/* Rows of a kind cost the same, but for the first of them, which may still make room. */
static bool same_kind(const struct run *r, int i, int j)
{
    const struct pair_plan *p = r->plan;
    const struct pair_row *a = &p->row[i], *b = &p->row[j];

    for (int k = 0; k < p->n_input; k++)
        if (a->walks[k] != b->walks[k] || (a->step[k] == PAIR_HELD) != (b->step[k] == PAIR_HELD))
            return false;
    return a->free == b->free && r->guides[i] == r->guides[j]
        && pipeline_control_acts(r, a) == pipeline_control_acts(r, b);
}

/* A dry run does two rows of each kind; others cost what the second did. True if row i need not be done. */
static bool cost_again(struct batch *b, struct kcount *cost, int i)
{
    int like = 0, last = 0;

    if (batch_kern(b)->computes)
        return false;
    for (int j = 0; j < i && like < 2; j++)
        if (same_kind(b->r, j, i)) {
            like++;
            last = j;
        }
    cost[i] = (struct kcount){ 0 };
    if (like < 2)
        return false;
    cost[i] = cost[last];
    b->r->dev->count.flops += cost[i].flops;
    b->r->dev->count.calls += cost[i].calls;
    return true;
}

static int walk(struct batch *b, struct err *e)
{
    struct run *r = b->r;
    const int n = r->plan->n_row;
    struct kcount *cost = arena_push(&b->t->mem->meta, (size_t)n * sizeof *cost, e);

    r->n_total = (r->q->count + r->q->batch - 1) / r->q->batch * n;
    for (int i = 0; i <= n && cost; i++) {
        const struct kcount had = r->dev->count;
        int rc = progress_tick(&r->sink->progress, "sampling", r->n_done, r->n_total)
            ? err_set(e, E_CANCEL, "stopped while sampling") : OK;

        if (rc || i == n)
            return rc;
        if (!cost_again(b, cost, i)) {
            rc = step(b, i, e);
            cost[i].flops = r->dev->count.flops - had.flops;
            cost[i].calls = r->dev->count.calls - had.calls;
        }
        if (rc)
            return rc;
        r->n_done++;
    }
    return e->code;
}

static int make_room(struct batch *b, struct err *e)
{
    struct run *r = b->r;
    int rc;

    b->noise = arena_push(&b->t->mem->meta, (size_t)b->n * sizeof *b->noise, e);
    b->z = tensor_new(&r->keep_meta, &r->keep, F32, 4, (int64_t[]){ b->K * b->n, r->h, r->w, r->C }, e);
    b->fresh = b->noise && b->z ? batch_latents(b, b->n, e) : NULL;
    rc = b->fresh ? OK : e->code;
    for (int64_t i = 0; i < b->n && !rc; i++)
        noise_init(&b->noise[i], r->q->rng, r->q->rng_type, r->q->seed + (uint64_t)(b->first + i));
    for (int k = 0; k < b->K && !rc; k++)
        rc = sampler_state_init(&b->state[k], &r->sampler, &b->t->mem->meta, &b->t->mem->step, b->fresh, e);
    return rc;
}

struct tensor *pipeline_denoise(struct run *r, int64_t first, int64_t n, struct err *e)
{
    struct batch b = { .r = r, .t = &r->stage[STAGE_DENOISE].t, .n = n, .first = first, .K = r->q->n_input };
    const struct tape_mark m = tape_mark(b.t);
    int rc = make_room(&b, e);

    rc = rc ? rc : picture_latents(&b, e);
    rc = rc ? rc : start_noise(&b, e);
    rc = rc ? rc : take_masks(&b, e);
    rc = rc ? rc : guide_begin(&b, e);
    for (int k = 0; k < b.K && !rc; k++)
        rc = begin_latents(&b, k, e);
    if (!rc && r->plan->n_row)
        rc = walk(&b, e);
    tape_release(b.t, m);
    return rc ? NULL : b.z;
}
