/* core/diffusion/pipeline.c: the stages of a run, in their order; pipeline_denoise.c has the loop in the middle. */
#include "core/diffusion/pipeline.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/diffusion/pipeline_run.h"

const char *pipeline_stage_name(enum pipeline_stage s)
{
    static const char *const name[N_STAGE] = { "text encoder", "VAE encoder", "UNet", "VAE decoder" };

    return name[s];
}

int pipeline_start(double A, int N) { return A > 0 ? (int)((1 - A) * (N - 1)) : N; }

/* ---- stages and what they cost ---- */

static size_t tape_bytes(const struct device *d, const struct tape_memory *m)
{
    return device_arena_bytes(d, arena_high(&m->step)) + device_arena_bytes(d, arena_high(&m->grad_arena))
        + device_arena_bytes(d, arena_high(&m->scratch)) + (d->apart ? 0 : arena_high(&m->meta));
}

/* Where the device has memory of its own, that is what counts. */
static size_t stage_bytes(const struct device *d, const struct stage *s)
{
    return device_arena_bytes(d, arena_high(&s->mem.model)) + tape_bytes(d, &s->tape) + tape_bytes(d, &s->noted)
        + (d->apart ? 0 : arena_high(&s->mem.meta) + arena_high(&s->mem.stage));
}

/* What has been counted since the last time belongs to `kind`; all that is in use now may be its peak. */
static void account(struct run *r, enum pipeline_stage kind)
{
    const struct device *d = r->dev;
    size_t bytes = device_arena_bytes(d, arena_high(&r->keep)) + device_arena_bytes(d, d->threads.high)
        + (d->apart ? 0 : arena_high(&r->keep_meta));

    for (int i = 0; i < N_STAGE; i++)
        if (r->stage[i].open)
            bytes += stage_bytes(d, &r->stage[i]);
    r->cost.stage[kind].used = true;
    r->cost.stage[kind].flops += r->dev->count.flops - r->counted.flops;
    r->cost.stage[kind].calls += r->dev->count.calls - r->counted.calls;
    r->counted = r->dev->count;
    if (bytes > r->cost.stage[kind].bytes)
        r->cost.stage[kind].bytes = bytes;
    if (bytes > r->cost.peak_bytes)
        r->cost.peak_bytes = bytes;
}

static int stage_open(struct run *r, enum pipeline_stage kind, enum dtype type, const struct weights *weights,
                      enum lora_part part, bool with_lora, struct err *e)
{
    const struct tape_caps caps = { (size_t)1 << 28, (size_t)1 << 38, (size_t)1 << 20, (size_t)1 << 36 };
    struct stage *s = &r->stage[kind];
    int rc;

    memset(s, 0, sizeof *s);
    rc = model_memory_init(&s->mem, r->dev, 0, e);
    rc = rc ? rc : tape_memory_init(&s->tape, r->dev, &caps, e);
    s->open = true;
    if (rc)
        return rc;
    tape_init(&s->t, r->dev, &s->tape);
    layers_init(&s->l, r->dev, type, &s->mem, weights);
    s->l.lora = with_lora ? r->base->lora : NULL;
    s->l.part = part;
    return OK;
}

static void stage_close(struct run *r, enum pipeline_stage kind)
{
    struct stage *s = &r->stage[kind];

    if (!s->open)
        return;
    account(r, kind);
    tape_memory_free(&s->noted);
    tape_memory_free(&s->tape);
    model_memory_free(&s->mem);
    s->open = false;
}

/* A copy that outlives its stage. */
static struct tensor *keep(struct run *r, const struct tensor *x, struct err *e)
{
    struct tensor *y = tensor_new(&r->keep_meta, &r->keep, x->type, x->n_dim, x->dim, e);
    const int64_t n = tensor_count(x);

    if (!y || op_run(e, "keep", r->dev->kern->copy_rows(&r->dev->ctx, y->data, n, x->data, n, x->type, 1, n, false)))
        return NULL;
    return y;
}

static int tick(struct run *r, const char *what, int64_t done, int64_t total, struct err *e)
{
    return progress_tick(&r->sink->progress, what, done, total) ? err_set(e, E_CANCEL, "stopped while %s", what) : OK;
}

/* ---- text: for each input (2,77,D), the negative prompt's first, or (1,77,D) ---- */

/* The prompts of a request in r->id; are they those that `words` are of? */
static bool take_prompts(struct run *r)
{
    const struct pipeline_request *q = r->q;
    int32_t id[2 * PAIR_MAX_INPUT * PIPELINE_TOKENS];
    bool same;
    int n = 0;

    for (int k = 0; k < q->n_input; k++) {
        if (r->guided)
            memcpy(id + PIPELINE_TOKENS * n++, q->input[k].negative, sizeof *id * PIPELINE_TOKENS);
        memcpy(id + PIPELINE_TOKENS * n++, q->input[k].prompt, sizeof *id * PIPELINE_TOKENS);
    }
    same = r->words && n == r->n_id && q->clip_skip == r->clip_skip
        && !memcmp(id, r->id, sizeof *id * PIPELINE_TOKENS * (size_t)n);
    memcpy(r->id, id, sizeof *id * PIPELINE_TOKENS * (size_t)n);
    r->n_id = n;
    r->clip_skip = q->clip_skip;
    return same;
}

static int encode_text(struct run *r, struct err *e)
{
    struct stage *s = &r->stage[STAGE_TEXT];
    struct clip_text *m;
    struct tensor *y;
    int rc = tick(r, "reading the prompt", 0, 1, e);

    rc = rc ? rc : stage_open(r, STAGE_TEXT, F32, r->base->text_weights, LORA_TEXT, true, e);
    rc = rc ? rc : clip_text_new(&m, r->base->text, &s->l, e);
    if (rc)
        return rc;
    y = clip_text_forward(&s->t, m, r->id, r->n_id, r->clip_skip, e);
    r->words = y ? keep(r, y, e) : NULL;
    stage_close(r, STAGE_TEXT);
    return r->words ? tick(r, "reading the prompt", 1, 1, e) : e->code;
}

/* ---- the pictures: moments (1,h,w,2L) of each input that has one ---- */

static int encode_picture(struct run *r, struct vae *v, int k, struct err *e)
{
    const int64_t size[] = { 1, r->q->height, r->q->width, 3 };
    struct tape *t = &r->stage[STAGE_ENCODE].t;
    const struct tape_mark m = tape_mark(t);
    struct tensor *x = tape_new(t, F32, 4, size, e), *y;

    if (!x || device_put(r->dev, x->data, r->q->input[k].picture, tensor_bytes(x), e))
        return e->code;
    y = (x = op_cast(t, x, r->type, e)) ? vae_encode(t, v, x, e) : NULL;
    r->moments[k] = y ? keep(r, y, e) : NULL;
    tape_release(t, m);
    return r->moments[k] ? OK : e->code;
}

static int encode_pictures(struct run *r, struct err *e)
{
    struct stage *s = &r->stage[STAGE_ENCODE];
    int n = 0, done = 0, rc = OK;
    struct vae *v = NULL;

    for (int k = 0; k < r->q->n_input; k++)
        n += r->q->input[k].picture != NULL;
    if (!n)
        return OK;
    rc = stage_open(r, STAGE_ENCODE, r->type, r->base->vae_weights, LORA_UNET, false, e);
    rc = rc ? rc : vae_new(&v, r->base->vae, VAE_ENCODER, &s->l, e);
    for (int k = 0; k < r->q->n_input && !rc; k++)
        if (r->q->input[k].picture) {
            rc = tick(r, "encoding pictures", done++, n, e);
            rc = rc ? rc : encode_picture(r, v, k, e);
        }
    if (rc)
        return rc;
    stage_close(r, STAGE_ENCODE);
    return tick(r, "encoding pictures", n, n, e);
}

/* ---- latents to pixels ---- */

static int open_decoder(struct run *r, struct err *e)
{
    struct stage *s = &r->stage[STAGE_DECODE];
    const int rc = stage_open(r, STAGE_DECODE, r->type, r->base->vae_weights, LORA_UNET, false, e);

    return rc ? rc : vae_new(&r->decoder, r->base->vae, VAE_DECODER, &s->l, e);
}

/* x in the host's memory; NULL stays NULL */
static int on_host(struct run *r, const struct tensor *x, const float **out, struct err *e)
{
    struct arena *a = &r->stage[STAGE_DECODE].t.mem->meta;
    float *p;

    *out = x ? x->data : NULL;
    if (!x || r->dev->place == ARENA_HOST)
        return OK;
    p = arena_push(a, tensor_bytes(x), e);
    *out = p;
    return p ? device_get(r->dev, p, x->data, tensor_bytes(x), e) : e->code;
}

static int hand_over(struct run *r, int64_t i, int k, const struct tensor *pixels, const struct tensor *latents,
                     struct err *e)
{
    const float *y, *z;

    if (!r->dev->kern->computes)
        return OK;
    if (on_host(r, pixels, &y, e) || on_host(r, latents, &z, e))
        return e->code;
    return r->sink->image(r->sink->ctx, i, k, y, z, e);
}

/* Where batches take turns with decoding, all of it is told as sampling: one line that goes on, not two that begin
 * anew. Whoever asks to stop when all is done asks too late. */
static int decode(struct run *r, struct tensor *latents, int64_t first, struct err *e)
{
    const bool turns = r->q->count > r->q->batch;
    struct stage *s = &r->stage[STAGE_DECODE];
    int rc = OK;

    for (int64_t b = 0; b < latents->dim[0] && !rc; b++) {
        const int64_t i = b / r->q->n_input, k = b % r->q->n_input;
        const struct tape_mark m = tape_mark(&s->t);
        struct tensor *z, *y = NULL;

        rc = turns ? tick(r, "sampling", r->n_done, r->n_total, e) : tick(r, "decoding", b, latents->dim[0], e);
        if (rc)
            break;
        if (!(z = op_rows(&s->t, latents, k * (latents->dim[0] / r->q->n_input) + i, 1, e))
            || (!r->q->input[k].unread && !(y = vae_decode(&s->t, r->decoder, z, e))))
            return e->code;
        rc = hand_over(r, first + i, (int)k, y, z, e);
        tape_release(&s->t, m);
        account(r, STAGE_DECODE);
    }
    if (!rc && !turns)
        progress_tick(&r->sink->progress, "decoding", latents->dim[0], latents->dim[0]);
    return rc;
}

/* ---- batches ---- */

/* Keys and values of the prompts, for all batches and steps. */
static int take_text(struct run *r, struct err *e)
{
    struct tape *t = &r->stage[STAGE_DENOISE].t;
    struct joint_run pairs = { .n_input = r->q->n_input, .n_pair = r->q->n_pair };
    struct tensor *words;

    for (int p = 0; p < r->q->n_pair; p++)
        pairs.pair[p] = (struct joint_pair){ .x = r->q->pair[p].x, .y = r->q->pair[p].y, .joint = r->joint[p] };
    words = op_cast(t, r->words, r->type, e);
    return words ? unet_text(t, r->unet, words, &pairs, &r->text, e) : e->code;
}

static int open_joint(struct run *r, const struct joint_weights *w, struct joint **out, struct err *e)
{
    struct joint_place place[UNET_MAX_BLOCK];
    const int n = unet_places(r->unet, place);
    int rc;

    for (int i = 0; i < r->n_known; i++)
        if (r->known[i].of == w) {
            *out = r->known[i].joint;
            return OK;
        }
    if (r->n_known == JOINT_MAX_PAIR)
        return err_set(e, E_ARG, "more than %d checkpoints in the requests of one pipeline", JOINT_MAX_PAIR);
    rc = joint_new(out, place, n, r->base->unet->cross_attention_dim, w, &r->stage[STAGE_DENOISE].l, e);
    r->known[r->n_known].of = w;
    r->known[r->n_known].joint = *out;
    r->n_known += !rc;
    return rc;
}

/* The base, each checkpoint that some pair names, once, and the ControlNets. */
static int open_unet(struct run *r, struct err *e)
{
    struct stage *s = &r->stage[STAGE_DENOISE];
    int rc = OK;

    if (!s->open) {
        r->n_known = 0;
        memset(r->control, 0, sizeof r->control);
        rc = stage_open(r, STAGE_DENOISE, r->type, r->base->unet_weights, LORA_UNET, true, e);
        rc = rc ? rc : unet_new(&r->unet, r->base->unet, &s->l, e);
    }
    for (int p = 0; p < r->q->n_pair && !rc; p++)
        rc = open_joint(r, r->q->pair[p].checkpoint, &r->joint[p], e);
    rc = rc ? rc : take_text(r, e);
    return rc ? rc : pipeline_control_open(r, e);
}

/* Images [first, first + n) from noise to the sink; `only`: they are all there are. */
static int one_batch(struct run *r, int64_t first, int64_t n, bool only, struct err *e)
{
    const size_t kept = arena_mark(&r->keep), kept_meta = arena_mark(&r->keep_meta);
    struct tensor *z = pipeline_denoise(r, first, n, e);
    int rc = z ? OK : e->code;

    if (rc)
        return rc;
    account(r, STAGE_DENOISE);
    if (only && !r->more)
        stage_close(r, STAGE_DENOISE);
    if (!r->stage[STAGE_DECODE].open)
        rc = open_decoder(r, e);
    rc = rc ? rc : decode(r, z, first, e);
    arena_release(&r->keep, kept);
    arena_release(&r->keep_meta, kept_meta);
    return rc;
}

/* What the first full batch cost, the others that are as large cost too. */
static void count_again(struct run *r, const struct pipeline_cost *before, int64_t times)
{
    for (int i = STAGE_DENOISE; i <= STAGE_DECODE; i++) {
        r->cost.stage[i].flops += times * (r->cost.stage[i].flops - before->stage[i].flops);
        r->cost.stage[i].calls += times * (r->cost.stage[i].calls - before->stage[i].calls);
    }
}

/* A dry run does the first batch, counts it for all that are like it, and does what is left over. */
static int all_batches(struct run *r, struct err *e)
{
    const int64_t count = r->q->count, most = r->q->batch < count ? r->q->batch : count, full = count / most;
    const bool only = count == most;
    struct pipeline_cost before;
    int rc = OK;

    account(r, STAGE_DENOISE);
    for (int64_t i = 0; i < full && !rc; i++) {
        before = r->cost;
        rc = one_batch(r, i * most, most, only, e);
        if (!rc && !r->dev->kern->computes) {
            count_again(r, &before, full - 1);
            break;
        }
    }
    if (!rc && count % most)
        rc = one_batch(r, full * most, count % most, only, e);
    return rc;
}

static int check_guidance(const struct device *dev, const struct pipeline_request *q, struct err *e)
{
    const struct pipeline_guidance *g = &q->guidance;

    for (int k = 0; k < PAIR_MAX_INPUT; k++) {
        const bool held = k < q->n_input && (q->plan ? q->plan->start[k] == PAIR_HELD : q->x_noise <= 0);

        if (!g->on[k])
            continue;
        if (k >= q->n_input || !q->input[k].picture || held)
            return err_set(e, E_ARG, "guidance of input %d, which %s", k, k >= q->n_input ? "is not there"
                           : held ? "is held" : "has no picture to aim at");
        if (dev->apart)
            return err_set(e, E_DEVICE, "gradient guidance has no kernels for this device yet: use --device cpu");
        if (g->opt < 0 || g->opt >= N_GUIDE_OPT || g->steps < 1 || !(g->lr >= 0) || !(g->decay >= 0))
            return err_set(e, E_ARG, "guidance with optimizer %d, %d steps of %g, decay %g", (int)g->opt, g->steps,
                           g->lr, g->decay);
    }
    return OK;
}

static int check(const struct device *dev, const struct pipeline_base *b, const struct pipeline_request *q,
                 struct err *e)
{
    const int64_t f = vae_factor(b->vae);

    if (b->unet->in_channels != b->vae->latent_channels || b->unet->out_channels != b->vae->latent_channels)
        return err_set(e, E_ARG, "the UNet takes %" PRId64 " channels and gives %" PRId64 ", the VAE's latents have %"
                       PRId64 ": this base is not one for plain text and pictures", b->unet->in_channels,
                       b->unet->out_channels, b->vae->latent_channels);
    if (b->text->hidden_size != b->unet->cross_attention_dim)
        return err_set(e, E_ARG, "the text encoder gives %" PRId64 " numbers a token, the UNet takes %" PRId64
                       ": they are of different models", b->text->hidden_size, b->unet->cross_attention_dim);
    if (q->width < f || q->height < f || q->width % f || q->height % f)
        return err_set(e, E_ARG, "a size of %" PRId64 " x %" PRId64 " cannot be: both have to be multiples of %" PRId64,
                       q->width, q->height, f);
    if (q->count < 1 || q->batch < 1 || q->n_input < 1 || q->n_input > PAIR_MAX_INPUT || (q->n_input > 1 && !q->plan)
        || (q->plan && q->plan->n_input != q->n_input))
        return err_set(e, E_ARG, "%" PRId64 " images of %d inputs in batches of %" PRId64 " cannot be", q->count,
                       q->n_input, q->batch);
    if (check_guidance(dev, q, e))
        return e->code;
    for (int k = 0; k < q->n_input; k++) {
        const struct pipeline_input *in = &q->input[k];
        const bool whole = q->plan ? q->plan->start[k] == 0 : q->x_noise >= 1;

        if ((!whole || in->mask) && !in->picture)
            return err_set(e, E_ARG, "less noise than 1, or a mask, needs a picture (input %d)", k);
        if (in->noise && in->noise_rows != 1 && in->noise_rows != q->count)
            return err_set(e, E_ARG, "%" PRId64 " rows of noise for %" PRId64 " images", in->noise_rows, q->count);
    }
    return OK;
}

/* One input by itself: a row for each step of the sampler from where it begins. */
static int make_plan(struct run *r, struct err *e)
{
    const int from = pipeline_start(r->q->x_noise, r->sampler.n_asked), n = r->sampler.n_step;

    r->plan = r->q->plan;
    if (r->plan)
        return r->plan->n_step == n ? OK : err_set(e, E_ARG, "a schedule of %d steps for a sampler of %d",
                                                   r->plan->n_step, n);
    r->own = (struct pair_plan){ .n_input = 1, .n_step = n, .start = { from < r->sampler.n_asked ? from : PAIR_HELD } };
    r->own.row = arena_push_zero(&r->keep_meta, (size_t)n * sizeof *r->own.row, e);
    if (!r->own.row)
        return e->code;
    for (int i = from; i < n && r->own.start[0] != PAIR_HELD; i++)
        r->own.row[r->own.n_row++] = (struct pair_row){ .step = { i }, .walks = { true } };
    r->plan = &r->own;
    return OK;
}

/* Rounding must not move a bound such as 0.57 of 100 rows. */
bool pipeline_guides(const struct pipeline_guidance *g, const struct pair_plan *p, int i)
{
    const double place = i + 1e-9 * p->n_row;
    bool on = false, marked = false;

    for (int k = 0; k < PAIR_MAX_INPUT; k++)
        on |= g->on[k];
    for (int j = 0; j < p->n_row && on; j++)
        marked |= p->row[j].guide;
    return on && g->from * p->n_row <= place && place < g->to * p->n_row && (!marked || p->row[i].guide);
}

/* Which rows guidance acts in. If it never does, that is a mistake. */
static int find_guided(struct run *r, struct err *e)
{
    const struct pipeline_guidance *g = &r->q->guidance;
    const int n = r->plan->n_row;
    bool on = false;

    r->guides = arena_push_zero(&r->keep_meta, (size_t)(n ? n : 1) * sizeof *r->guides, e);
    if (!r->guides)
        return e->code;
    for (int k = 0; k < PAIR_MAX_INPUT; k++)
        on |= g->on[k];
    for (int i = 0; i < n && on; i++) {
        r->guides[i] = pipeline_guides(g, r->plan, i);
        r->any_guided |= r->guides[i];
    }
    return !on || !n || r->any_guided ? OK : err_set(e, E_ARG, "guidance from %g to %g of %d rows: none that would be "
                                                     "guided lies there", g->from, g->to, n);
}

/* Prompts and pictures go through their encoders, unless they have been there for the request before. */
static int encode_inputs(struct run *r, struct err *e)
{
    const bool same_text = take_prompts(r), same = same_text && r->q->same_pictures;
    int rc;

    if (same)
        return OK;
    arena_release(&r->keep, 0);
    arena_release(&r->keep_meta, 0);
    r->words = NULL;
    memset(r->moments, 0, sizeof r->moments);
    rc = encode_text(r, e);
    return rc ? rc : encode_pictures(r, e);
}

/* What lies on the UNet's tape is this request's, what its models hold is not. */
static int denoise(struct run *r, struct err *e)
{
    struct stage *s = &r->stage[STAGE_DENOISE];
    struct tape_mark m = { 0 };
    int rc;

    if (s->open)
        m = tape_mark(&s->t);
    rc = open_unet(r, e);
    rc = rc ? rc : all_batches(r, e);
    if (!rc && s->open)
        tape_release(&s->t, m);
    return rc;
}

int pipeline_next(struct pipeline *p, const struct pipeline_request *q, bool more, const struct pipeline_sink *sink,
                  struct pipeline_cost *cost, struct err *e)
{
    struct run *r = &p->r;
    const int64_t f = vae_factor(r->base->vae);
    struct err own = { 0 };
    size_t kept, kept_meta;
    int rc;

    e = e ? e : &own;
    r->q = q;
    r->sink = sink;
    r->more = more;
    r->guided = q->cfg > 1;
    r->h = q->height / f;
    r->w = q->width / f;
    r->any_guided = false;
    r->n_done = 0;
    r->cost = (struct pipeline_cost){ .peak_bytes = 0 };
    r->counted = r->dev->count;
    rc = check(r->dev, r->base, q, e);
    rc = rc ? rc : sampler_init(&r->sampler, q->sampler, &r->schedule, q->steps, q->eta, e);
    rc = rc ? rc : encode_inputs(r, e);
    if (rc)
        return rc;
    kept = arena_mark(&r->keep);
    kept_meta = arena_mark(&r->keep_meta);
    rc = make_plan(r, e);
    rc = rc ? rc : find_guided(r, e);
    rc = rc ? rc : denoise(r, e);
    arena_release(&r->keep, kept);
    arena_release(&r->keep_meta, kept_meta);
    for (int i = 0; i < N_STAGE && !more; i++)
        stage_close(r, (enum pipeline_stage)i);
    if (cost)
        *cost = r->cost;
    return rc;
}

static int open_run(struct run *r, struct device *dev, enum dtype type, const struct pipeline_base *base,
                    struct err *e)
{
    int rc;

    *r = (struct run){ .dev = dev, .type = type, .base = base, .C = base->vae->latent_channels };
    rc = schedule_init(&r->schedule, base->schedule, e);
    rc = rc ? rc : arena_init(&r->keep, "kept", dev->place, (size_t)1 << 36, e);
    return rc ? rc : arena_init(&r->keep_meta, "kept meta", ARENA_HOST, (size_t)1 << 26, e);
}

static void close_run(struct run *r)
{
    for (int i = 0; i < N_STAGE; i++)
        stage_close(r, (enum pipeline_stage)i);
    arena_free(&r->keep_meta);
    arena_free(&r->keep);
}

int pipeline_open(struct pipeline **out, struct device *dev, enum dtype type, const struct pipeline_base *base,
                  struct err *e)
{
    struct pipeline *p = arena_fault_now() ? NULL : malloc(sizeof *p);
    const int rc = p ? open_run(&p->r, dev, type, base, e) : err_set(e, E_NOMEM, "out of memory for a pipeline");

    if (!rc)
        *out = p;
    else if (p)
        pipeline_close(p);
    return rc;
}

void pipeline_close(struct pipeline *p)
{
    if (p)
        close_run(&p->r);
    free(p);
}

int pipeline_run(struct device *dev, enum dtype type, const struct pipeline_base *base,
                 const struct pipeline_request *q, const struct pipeline_sink *sink, struct pipeline_cost *cost,
                 struct err *e)
{
    struct pipeline *p = NULL;
    struct err own = { 0 };
    int rc;

    e = e ? e : &own;
    rc = pipeline_open(&p, dev, type, base, e);
    rc = rc ? rc : pipeline_next(p, q, false, sink, cost, e);
    pipeline_close(p);
    return rc;
}
