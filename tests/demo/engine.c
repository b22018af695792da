/* tests/demo/engine.c: the engine end to end. A small denoiser learns to draw coloured discs and squares from noise,
 * and then draws eight of them.
 *
 *     engine [OUT.ppm]                        default demo/engine.ppm
 *
 * First one training step and one sampling step run on the null device, which says what they will need. Then the same
 * code runs on the CPU, and what was needed is compared with what was said. Exit status 1 if the two differ or if
 * the loss did not fall.
 *
 *   stage       (H,W,C)                     made of
 *   conv_in     (16,16, 3) -> (16,16,32)    3x3
 *   first       (16,16,32)                  residual block; its result is kept for `last`
 *   down        (16,16,32) -> ( 8, 8,64)    3x3, stride 2
 *   middle      ( 8, 8,64)                  residual block, attention with GEGLU, residual block
 *   up          ( 8, 8,64) -> (16,16,32)    doubled, 3x3
 *   last        (16,16,32+32) -> (.. 32)    residual block over both, 1x1 shortcut
 *   conv_out    (16,16,32) -> (16,16, 3)    the noise that was added; Ho et al. 2020, Eq. 14              */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/op/op.h"
#include "core/rng.h"

enum {
    SIDE = 16, PIXELS = SIDE * SIDE * 3, C0 = 32, C1 = 64, D_TIME = 128, N_HEAD = 4, N_GROUP = 8,
    MAX_PARAM = 1 << 19, N_T = 1000,
    N_STEP = 1000, N_BATCH = 32, N_REPORT = 20, N_SAMPLE = 8, N_DDIM = 50,
    SEED = 7
};
static const float LR = 2e-3f, AVERAGE = 0.99f;

/* ---- the model ---- */

struct norm { struct tensor *gamma, *beta; };

struct resnet {
    struct norm norm1, norm2;
    struct weight conv1, conv2, time, shortcut;     /* shortcut.raw is NULL where sizes agree */
};

struct attention {
    struct norm group, layer;
    struct weight q, k, v, out, gate, back;         /* gate (8 C, C): value and gate of GEGLU; back (C, 4 C) */
};

struct net {
    struct device *dev;
    struct arena meta, arena;
    float *value, *grad, *m, *v, *mean;             /* all parameters in one block of MAX_PARAM, and four like it */
    int64_t n;
    struct weight *weights[48];                     /* to pack anew after each step */
    int n_weight;
    struct weight time1, time2, conv_in, down, up, conv_out;
    struct resnet first, mid1, mid2, last;
    struct attention attn;
    struct norm norm_out;
};

/* A slice of the block: normal with deviation `std` around `mean`. */
static struct tensor *param(struct net *n, int n_dim, const int64_t *dim, double std, float mean, struct err *e)
{
    const struct kern *k = n->dev->kern;
    const struct krng r = rng_stream(SEED, RNG_INIT, 0, (uint64_t)n->n);
    struct tensor *x = tensor_wrap(&n->meta, n->value + n->n, F32, n_dim, dim, e);
    struct tensor *g = tensor_wrap(&n->meta, n->grad + n->n, F32, n_dim, dim, e);
    int64_t count;

    if (!x || !g)
        return NULL;
    count = tensor_count(x);
    if (n->n + count > MAX_PARAM)
        return op_fail(e, E_BUG, "more than %d parameters", MAX_PARAM);
    n->n += (count + 15) / 16 * 16;
    tape_watch(x, g);
    if (op_run(e, "init", k->random_normal(&n->dev->ctx, x->data, F32, count, &r, 0))
        || op_run(e, "init", k->axpby(&n->dev->ctx, x->data, (float)std, x->data, mean, NULL, F32, count)))
        return NULL;
    return x;
}

/* weights (Co,K,K,Ci), or (Co,Ci) for K = 1, of gain / sqrt(inputs) and a bias of zeros if `bias`. */
static int layer(struct net *n, struct weight *w, const char *name, int64_t Co, int64_t Ci, int64_t K, double gain,
                 bool bias, struct err *e)
{
    const int64_t conv[] = { Co, K, K, Ci }, linear[] = { Co, Ci };
    struct tensor *raw = param(n, K > 1 ? 4 : 2, K > 1 ? conv : linear, gain / sqrt((double)(K * K * Ci)), 0, e);
    struct tensor *b = raw && bias ? param(n, 1, &Co, 0, 0, e) : NULL;

    if (!raw || (bias && !b))
        return e->code;
    n->weights[n->n_weight++] = w;
    return weight_init(w, name, raw, b, &n->arena, e);
}

static int norm(struct net *n, struct norm *m, int64_t C, struct err *e)
{
    m->gamma = param(n, 1, &C, 0, 1, e);
    m->beta = m->gamma ? param(n, 1, &C, 0, 0, e) : NULL;
    return m->beta ? OK : e->code;
}

static int resnet_make(struct net *n, struct resnet *r, const char *name, int64_t Co, int64_t Ci, struct err *e)
{
    int rc = norm(n, &r->norm1, Ci, e);

    rc = rc ? rc : layer(n, &r->conv1, name, Co, Ci, 3, 1, true, e);
    rc = rc ? rc : layer(n, &r->time, name, Co, D_TIME, 1, 1, true, e);
    rc = rc ? rc : norm(n, &r->norm2, Co, e);
    rc = rc ? rc : layer(n, &r->conv2, name, Co, Co, 3, 0.5, true, e);
    return rc || Co == Ci ? rc : layer(n, &r->shortcut, name, Co, Ci, 1, 1, true, e);
}

static int attention_make(struct net *n, struct attention *a, int64_t C, struct err *e)
{
    int rc = norm(n, &a->group, C, e);

    rc = rc ? rc : layer(n, &a->q, "attn.q", C, C, 1, 1, false, e);
    rc = rc ? rc : layer(n, &a->k, "attn.k", C, C, 1, 1, false, e);
    rc = rc ? rc : layer(n, &a->v, "attn.v", C, C, 1, 1, false, e);
    rc = rc ? rc : layer(n, &a->out, "attn.out", C, C, 1, 0.5, true, e);
    rc = rc ? rc : norm(n, &a->layer, C, e);
    rc = rc ? rc : layer(n, &a->gate, "attn.gate", 8 * C, C, 1, 1, true, e);
    return rc ? rc : layer(n, &a->back, "attn.back", C, 4 * C, 1, 0.5, true, e);
}

static void net_free(struct net *n)
{
    arena_free(&n->arena);
    arena_free(&n->meta);
}

static int net_layers(struct net *n, struct err *e)
{
    int rc = layer(n, &n->time1, "time1", D_TIME, C0, 1, 1, true, e);

    rc = rc ? rc : layer(n, &n->time2, "time2", D_TIME, D_TIME, 1, 1, true, e);
    rc = rc ? rc : layer(n, &n->conv_in, "conv_in", C0, 3, 3, 1, true, e);
    rc = rc ? rc : resnet_make(n, &n->first, "first", C0, C0, e);
    rc = rc ? rc : layer(n, &n->down, "down", C1, C0, 3, 1, true, e);
    rc = rc ? rc : resnet_make(n, &n->mid1, "mid1", C1, C1, e);
    rc = rc ? rc : attention_make(n, &n->attn, C1, e);
    rc = rc ? rc : resnet_make(n, &n->mid2, "mid2", C1, C1, e);
    rc = rc ? rc : layer(n, &n->up, "up", C0, C1, 3, 1, true, e);
    rc = rc ? rc : resnet_make(n, &n->last, "last", C0, 2 * C0, e);
    rc = rc ? rc : norm(n, &n->norm_out, C0, e);
    return rc ? rc : layer(n, &n->conv_out, "conv_out", 3, C0, 3, 0, true, e);
}

static int net_make(struct net *n, struct device *dev, struct err *e)
{
    const size_t bytes = MAX_PARAM * sizeof(float);
    float **block[] = { &n->value, &n->grad, &n->m, &n->v, &n->mean };
    int rc;

    memset(n, 0, sizeof *n);
    n->dev = dev;
    rc = arena_init(&n->meta, "meta", ARENA_HOST, 1 << 20, e);
    rc = rc ? rc : arena_init(&n->arena, "model", dev->place, 16 * bytes, e);
    for (size_t i = 0; i < sizeof block / sizeof *block && !rc; i++) {
        *block[i] = arena_push(&n->arena, bytes, e);
        rc = !*block[i] ? e->code
                        : op_run(e, "parameters", dev->kern->fill(&dev->ctx, *block[i], F32, MAX_PARAM, 0));
    }
    rc = rc ? rc : net_layers(n, e);
    if (rc)
        net_free(n);
    return rc;
}

/* ---- forward, a line per arrow ---- */

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, halve = { 2, 1, 1, 1, 1 };

/* x (B,H,W,Ci), x2 joined to it if not NULL, emb (B,D_TIME) -> (B,H,W,Co) */
static struct tensor *resnet(struct tape *t, struct resnet *r, struct tensor *x, struct tensor *x2, struct tensor *emb,
                             struct err *e)
{
    const struct op_shortcut shortcut = { &r->shortcut, x, x2 };
    const bool same_size = !r->shortcut.raw;
    struct tensor *h = x2 ? op_join(t, x, x2, e) : x, *row;

    if (!h || !(h = op_group_norm(t, h, r->norm1.gamma, r->norm1.beta, N_GROUP, 1e-5f, true, e))
        || !(row = op_linear(t, emb, &r->time, NULL, 0, NULL, e))
        || !(h = op_conv(t, h, NULL, &r->conv1, same, NULL, &(struct op_epilogue){ .row_add = row }, e))
        || !(h = op_group_norm(t, h, r->norm2.gamma, r->norm2.beta, N_GROUP, 1e-5f, true, e)))
        return NULL;
    return op_conv(t, h, NULL, &r->conv2, same, same_size ? NULL : &shortcut,
                   &(struct op_epilogue){ .residual = same_size ? x : NULL }, e);
}

/* x (B,H,W,C): attention among its pixels, then a gated layer on each. */
static struct tensor *attention(struct tape *t, struct attention *a, struct tensor *x, struct err *e)
{
    const int64_t B = x->dim[0], H = x->dim[1], W = x->dim[2], C = x->dim[3];
    struct tensor *h, *q, *k, *v;

    if (!(h = op_group_norm(t, x, a->group.gamma, a->group.beta, N_GROUP, 1e-6f, false, e))
        || !(h = op_reshape(t, h, 3, (int64_t[]){ B, H * W, C }, e))
        || !(x = op_reshape(t, x, 3, (int64_t[]){ B, H * W, C }, e))
        || !(q = op_linear(t, h, &a->q, NULL, 0, NULL, e)) || !(k = op_linear(t, h, &a->k, NULL, 0, NULL, e))
        || !(v = op_linear(t, h, &a->v, NULL, 0, NULL, e)) || !(h = op_attention(t, q, k, v, N_HEAD, 0, false, e))
        || !(x = op_linear(t, h, &a->out, NULL, 0, &(struct op_epilogue){ .residual = x }, e))
        || !(h = op_layer_norm(t, x, a->layer.gamma, a->layer.beta, 1e-5f, e))
        || !(h = op_linear(t, h, &a->gate, NULL, 0, &(struct op_epilogue){ .act = K_ACT_GEGLU }, e))
        || !(x = op_linear(t, h, &a->back, NULL, 0, &(struct op_epilogue){ .residual = x }, e)))
        return NULL;
    return op_reshape(t, x, 4, (int64_t[]){ B, H, W, C }, e);
}

/* x (B,16,16,3), time (B) -> the noise in x, (B,16,16,3) */
static struct tensor *denoise(struct tape *t, struct net *n, struct tensor *x, struct tensor *time, struct err *e)
{
    const struct op_epilogue silu = { .act = K_ACT_SILU };
    struct tensor *emb, *h, *skip;

    if (!(emb = op_time_embed(t, time, C0, F32, e)) || !(emb = op_linear(t, emb, &n->time1, NULL, 0, &silu, e))
        || !(emb = op_linear(t, emb, &n->time2, NULL, 0, &silu, e))
        || !(h = op_conv(t, x, NULL, &n->conv_in, same, NULL, NULL, e))
        || !(skip = resnet(t, &n->first, h, NULL, emb, e))
        || !(h = op_conv(t, skip, NULL, &n->down, halve, NULL, NULL, e))
        || !(h = resnet(t, &n->mid1, h, NULL, emb, e)) || !(h = attention(t, &n->attn, h, e))
        || !(h = resnet(t, &n->mid2, h, NULL, emb, e)) || !(h = op_upsample_conv(t, h, &n->up, SIDE, SIDE, e))
        || !(h = resnet(t, &n->last, h, skip, emb, e))
        || !(h = op_group_norm(t, h, n->norm_out.gamma, n->norm_out.beta, N_GROUP, 1e-5f, true, e)))
        return NULL;
    return op_conv(t, h, NULL, &n->conv_out, same, NULL, NULL, e);
}

/* ---- pictures and noise ---- */

/* Share of the picture that is left at time t: the cosine of Nichol & Dhariwal 2021, Eq. 17. */
static double alpha_bar(int t)
{
    const double c = cos(((double)(t + 1) / N_T + 0.008) / 1.008 * 1.5707963267948966);

    return fmax(c * c, 1e-4);
}

/* px (16,16,3) in [-1,1]: a disc or a square in one of six colours on dark ground, edges one pixel soft. */
static void draw(float *px, const struct krng *r)
{
    static const float colour[6][3] = {
        { 0.9f, 0.2f, 0.2f }, { 0.2f, 0.8f, 0.3f }, { 0.2f, 0.4f, 1.0f },
        { 1.0f, 0.8f, 0.2f }, { 0.8f, 0.3f, 0.9f }, { 0.2f, 0.9f, 0.9f },
    };
    const float *c = colour[rng_below(r, 0, 6)];
    const bool disc = rng_uniform(r, 1) < 0.5;
    const double cx = 5.5 + 5 * rng_uniform(r, 2), cy = 5.5 + 5 * rng_uniform(r, 3), radius = 3 + 2 * rng_uniform(r, 4);

    for (int i = 0; i < SIDE * SIDE; i++) {
        const double dx = i % SIDE - cx, dy = i / SIDE - cy;
        const double outside = (disc ? hypot(dx, dy) : fmax(fabs(dx), fabs(dy))) - radius;
        const double cover = fmin(1, fmax(0, 0.5 - outside));
        for (int j = 0; j < 3; j++)
            px[3 * i + j] = (float)(2 * (0.1 + cover * (c[j] - 0.1)) - 1);
    }
}

struct batch { struct tensor *noisy, *noise, *time; };

/* Row b of a step: a picture, a time t and noise by name; noisy = sqrt(ab) picture + sqrt(1 - ab) noise. On the null
 * device there is nothing to write to. */
static int batch_make(struct tape *t, int step, struct batch *b, struct err *e)
{
    const int64_t image[] = { N_BATCH, SIDE, SIDE, 3 }, rows[] = { N_BATCH };
    const struct krng noise = rng_stream(SEED, RNG_NOISE, (uint32_t)step, 0);
    const struct krng times = rng_stream(SEED, RNG_TIME, (uint32_t)step, 0);
    struct tensor *x = tape_new(t, F32, 4, image, e), *keep = tape_new(t, F32, 1, rows, e);
    struct tensor *add = tape_new(t, F32, 1, rows, e);

    b->noise = tape_new(t, F32, 4, image, e);
    b->time = tape_new(t, F32, 1, rows, e);
    if (!x || !keep || !add || !b->noise || !b->time)
        return e->code;
    for (int i = 0; i < N_BATCH && t->dev->kern->computes; i++) {
        const struct krng shape = rng_stream(SEED, RNG_AUGMENT, (uint32_t)step, (uint64_t)i);
        const int at = (int)rng_below(&times, (uint64_t)i, N_T);
        const double ab = alpha_bar(at);
        draw((float *)x->data + i * PIXELS, &shape);
        ((float *)b->time->data)[i] = (float)at;
        ((float *)keep->data)[i] = (float)sqrt(ab);
        ((float *)add->data)[i] = (float)sqrt(1 - ab);
    }
    if (op_run(e, "noise", t->dev->kern->random_normal(&t->dev->ctx, b->noise->data, F32, tensor_count(x), &noise, 0)))
        return e->code;
    b->noisy = op_row_axpby(t, keep, x, add, b->noise, e);
    return b->noisy ? OK : e->code;
}

/* ---- training ---- */

static void touch(struct net *n)
{
    for (int i = 0; i < n->n_weight; i++)
        weight_touch(n->weights[i]);
}

/* AdamW with a short warm-up and a cosine decay to nothing; `mean` follows the parameters slowly. */
static int update(struct net *n, int step, struct err *e)
{
    const struct kern *k = n->dev->kern;
    const float lr = LR * fminf(1, (float)(step + 1) / 20) * 0.5f * (1 + cosf(3.1415927f * (float)step / N_STEP));
    const float keep = step ? AVERAGE : 0;
    const struct kadamw o = {
        .lr = lr, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .weight_decay = 0.01f,
        .bias1 = 1 - powf(0.9f, (float)(step + 1)), .bias2 = 1 - powf(0.99f, (float)(step + 1)), .grad_scale = 1,
    };
    int rc = op_run(e, "adamw", k->adamw(&n->dev->ctx, n->value, n->m, n->v, n->grad, n->n, &o, NULL, F32));

    touch(n);
    return rc ? rc : op_run(e, "mean", k->axpby(&n->dev->ctx, n->mean, keep, n->mean, 1 - keep, n->value, F32, n->n));
}

static int train_step(struct tape *t, struct net *n, int step, float *loss, struct err *e)
{
    struct batch b;
    struct tensor *y, *mse;
    int rc;

    tape_reset(t);
    t->recording = true;
    rc = op_run(e, "gradients", n->dev->kern->fill(&n->dev->ctx, n->grad, F32, n->n, 0));
    rc = rc ? rc : batch_make(t, step, &b, e);
    if (rc)
        return rc;
    y = denoise(t, n, b.noisy, b.time, e);
    mse = y ? op_mse(t, y, b.noise, NULL, NULL, e) : NULL;
    rc = mse ? tape_backward(t, mse, NULL, e) : e->code;
    if (!rc && n->dev->kern->computes)
        *loss = *(float *)mse->data;
    t->recording = false;
    return rc ? rc : update(n, step, e);
}

/* ---- sampling ---- */

/* One step of DDIM (Song et al. 2021, Eq. 12, eta 0) from time t to `next` (-1: the end), on x (N_SAMPLE,16,16,3). The
 * picture that the noise implies is kept inside [-1,1]. */
static int sample_step(struct tape *t, struct net *n, float *x, int at, int next, struct err *e)
{
    const double ab = alpha_bar(at), ab_next = next < 0 ? 1 : alpha_bar(next);
    struct tensor *in, *time, *eps;

    tape_reset(t);
    in = tape_new(t, F32, 4, (int64_t[]){ N_SAMPLE, SIDE, SIDE, 3 }, e);
    time = tape_new(t, F32, 1, (int64_t[]){ N_SAMPLE }, e);
    if (!in || !time || op_run(e, "time", t->dev->kern->fill(&t->dev->ctx, time->data, F32, N_SAMPLE, (float)at)))
        return e->code;
    if (t->dev->kern->computes)
        memcpy(in->data, x, sizeof *x * N_SAMPLE * PIXELS);
    eps = denoise(t, n, in, time, e);
    if (!eps)
        return e->code;
    for (int i = 0; i < N_SAMPLE * PIXELS && t->dev->kern->computes; i++) {
        const double clean = (x[i] - sqrt(1 - ab) * ((float *)eps->data)[i]) / sqrt(ab);
        const double x0 = fmin(1, fmax(-1, clean));
        x[i] = (float)(sqrt(ab_next) * x0 + sqrt(1 - ab_next) * (x[i] - sqrt(ab) * x0) / sqrt(1 - ab));
    }
    return OK;
}

/* With the mean of the parameters: it draws better than where the last step left them. */
static int sample(struct tape *t, struct net *n, float *x, struct err *e)
{
    const struct kern *k = n->dev->kern;
    const struct krng r = rng_stream(SEED + 1, RNG_NOISE, 0, 0);
    int rc = op_run(e, "noise", k->random_normal(&n->dev->ctx, x, F32, N_SAMPLE * PIXELS, &r, 0));

    rc = rc ? rc : op_run(e, "mean", k->axpby(&n->dev->ctx, n->value, 1, n->mean, 0, NULL, F32, n->n));
    touch(n);
    for (int i = N_DDIM - 1; i >= 0 && !rc; i--)
        rc = sample_step(t, n, x, (i + 1) * N_T / N_DDIM - 1, i * N_T / N_DDIM - 1, e);
    return rc;
}

/* ---- plan, run, picture ---- */

struct figures { int64_t parameters, flops; size_t model_bytes, tape_bytes; };

static void measure(struct figures *f, const struct net *n, const struct tape_memory *mem)
{
    f->parameters = n->n;
    f->model_bytes = arena_high(&n->arena);
    f->tape_bytes = tape_peak_bytes(mem);
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A training step and a sampling step: what the plan and the run both begin with. */
static int dry_run(struct tape *t, struct net *n, struct figures *f, struct err *e)
{
    float loss = 0;
    int rc = train_step(t, n, 0, &loss, e);

    f->flops = n->dev->count.flops;
    return rc ? rc : sample_step(t, n, NULL, N_T - 1, -1, e);
}

static int train(struct tape *t, struct net *n, const struct figures *plan, struct err *e)
{
    const int window = N_STEP / N_REPORT;
    const double began = seconds();
    double sum = 0, first = 0, mean = 0;
    float loss = 0;

    for (int step = 0; step < N_STEP; step++) {
        const int rc = train_step(t, n, step, &loss, e);
        if (rc)
            return rc;
        sum += loss;
        if (step == 0)
            first = loss;
        if ((step + 1) % window)
            continue;
        mean = sum / window;
        sum = 0;
        printf("  step %4d  loss %.4f  %5.1f s\n", step + 1, mean, seconds() - began);
        fflush(stdout);
    }
    printf("trained: %.1f GFLOP/s\n", 1e-9 * (double)plan->flops * N_STEP / (seconds() - began));
    if (!(mean < 0.3 * first))
        return err_set(e, E_BUG, "the loss did not fall: %.4f at first, %.4f at last", first, mean);
    return OK;
}

/* The pictures four to a row, each pixel `ZOOM` wide, with a margin; written aside and renamed. */
static int write_sheet(const char *path, const float *x, struct err *e)
{
    enum { ZOOM = 8, COLUMNS = 4, MARGIN = 8, CELL = SIDE * ZOOM + MARGIN,
           W = COLUMNS * CELL + MARGIN, H = N_SAMPLE / COLUMNS * CELL + MARGIN };
    static unsigned char rgb[H][W][3];
    char aside[4096];
    FILE *f;
    bool ok;

    memset(rgb, 0xFF, sizeof rgb);
    for (int i = 0; i < N_SAMPLE; i++)
        for (int p = 0; p < SIDE * ZOOM * SIDE * ZOOM; p++) {
            const int row = p / (SIDE * ZOOM), col = p % (SIDE * ZOOM);
            const float *px = x + i * PIXELS + (row / ZOOM * SIDE + col / ZOOM) * 3;
            for (int j = 0; j < 3; j++)
                rgb[MARGIN + i / COLUMNS * CELL + row][MARGIN + i % COLUMNS * CELL + col][j]
                    = (unsigned char)lrintf(fminf(1, fmaxf(0, (px[j] + 1) / 2)) * 255);
        }
    snprintf(aside, sizeof aside, "%s.tmp", path);
    f = fopen(aside, "wb");
    if (!f)
        return err_set(e, E_IO, "'%s': %s", aside, strerror(errno));
    fprintf(f, "P6\n%d %d\n255\n", W, H);
    ok = fwrite(rgb, sizeof rgb, 1, f) == 1;
    ok = !fclose(f) && ok && !rename(aside, path);
    return ok ? OK : err_set(e, E_IO, "'%s': %s", path, strerror(errno));
}

/* Everything, on one device; on the null device only as far as it takes to know the figures. */
static int run(const char *device, const char *path, struct figures *plan, struct figures *measured, struct err *e)
{
    static float x[N_SAMPLE * PIXELS];
    const struct tape_caps caps = { 1 << 22, 1 << 28, 1 << 28, 1 << 28 };
    struct tape_memory mem = { 0 };
    struct device dev = { 0 };
    struct net net = { 0 };
    struct tape tape;
    int rc = device_open(&dev, device, 0, e);

    if (rc)
        return rc;
    rc = tape_memory_init(&mem, &dev, &caps, e);
    rc = rc ? rc : net_make(&net, &dev, e);
    if (!rc) {
        tape_init(&tape, &dev, &mem);
        if (!dev.kern->computes) {
            rc = dry_run(&tape, &net, plan, e);
        } else {
            printf("training on %s, %d threads:\n", dev.kern->isa, dev.ctx.n_threads);
            rc = train(&tape, &net, plan, e);
            rc = rc ? rc : sample(&tape, &net, x, e);
            rc = rc ? rc : write_sheet(path, x, e);
        }
        measure(measured, &net, &mem);
        net_free(&net);
    }
    tape_memory_free(&mem);
    device_close(&dev);
    return rc;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "demo/engine.ppm";
    struct figures plan = { 0 }, measured = { 0 };
    struct err e = { 0 };
    int rc = run("null", path, &plan, &plan, &e);

    if (!rc) {
        printf("plan:     %lld parameters, %zu bytes of model, %zu bytes of tape, %.2f GFLOP a step\n",
               (long long)plan.parameters, plan.model_bytes, plan.tape_bytes, 1e-9 * (double)plan.flops);
        rc = run("cpu", path, &plan, &measured, &e);
    }
    if (!rc) {
        printf("measured: %lld parameters, %zu bytes of model, %zu bytes of tape\n", (long long)measured.parameters,
               measured.model_bytes, measured.tape_bytes);
        if (measured.model_bytes != plan.model_bytes || measured.tape_bytes != plan.tape_bytes)
            rc = err_set(&e, E_BUG, "the run did not need what the plan said");
    }
    if (rc)
        fprintf(stderr, "engine: %s\n", e.text);
    else
        printf("%d pictures in %s\n", N_SAMPLE, path);
    return rc != OK;
}
