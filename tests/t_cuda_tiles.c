/* tests/t_cuda_tiles.c: products on tensor cores against sums in doubles: every tile, share of K, geometry and way
 * out. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "kernels/cuda_product.h"

#define PLAN(m, n, k, s) { .way = PRODUCT_TILES, .tile_m = m, .tile_n = n, .tile_k = k, .stages = s, .split = 1 }
static const struct product_plan plans[] = {
    PLAN(128, 160, 32, 4), PLAN(128, 128, 32, 4), PLAN(128, 64, 32, 4), PLAN(64, 64, 32, 4),
    PLAN(128, 160, 64, 3), PLAN(128, 128, 64, 6), PLAN(128, 64, 64, 3), PLAN(64, 64, 64, 6),
    PLAN(128, 160, 64, 6), PLAN(128, 128, 64, 3), PLAN(128, 64, 64, 6), PLAN(64, 64, 64, 3),
};

static uint64_t seed;

/* A product: pointers are the device's in p; the mirrors have the same on the host. */
struct test {
    struct product p;
    struct mirror x[3], w[3], bias, row_add, residual, y;
    void *before;                       /* y as it is before a run: NaN where it is written, or the residual */
};

/* ---- the same in doubles ---- */

/* Sum over parts, taps and channels of pixel (b,i,j) with row n of the packs. */
static double sum_of(const struct test *t, int64_t b, int64_t i, int64_t j, int64_t n)
{
    double sum = 0;

    for (int k = 0; k < t->p.n_part; k++) {
        const struct product_part *q = &t->p.part[k];
        const int64_t H = q->up == 2 ? t->p.Ho : q->H, W = q->up == 2 ? t->p.Wo : q->W;

        for (int tap = 0; tap < q->KH * q->KW; tap++) {
            const int64_t y = i * q->stride - q->pad_t + tap / q->KW, x = j * q->stride - q->pad_l + tap % q->KW;
            const float *px, *w = t->w[k].f + (n * q->KH * q->KW + tap) * q->Cp;

            if (y < 0 || y >= H || x < 0 || x >= W)
                continue;
            px = t->x[k].f + ((b * q->H + y / q->up) * q->W + x / q->up) * q->ldx;
            for (int64_t c = 0; c < q->Ci; c++)
                sum += (double)px[c] * (double)w[c];
        }
    }
    return sum;
}

static double gelu(double x) { return 0.5 * x * (1 + erf(x * sqrt(0.5))); }

static double act_of(double v, double gate, enum kact act)
{
    switch (act) {
    case K_ACT_SILU: return v / (1 + exp(-v));
    case K_ACT_GELU: return gelu(v);
    case K_ACT_QUICK_GELU: return v / (1 + exp(-1.702 * v));
    case K_ACT_RELU: return v > 0 ? v : 0;
    case K_ACT_GEGLU: return v * gelu(gate);
    default: return v;
    }
}

/* Row `row` of the packs, which is output channel n as biases count. */
static double before_act(const struct test *t, int64_t b, int64_t i, int64_t j, int64_t row, int64_t n)
{
    double v = (double)t->p.alpha * sum_of(t, b, i, j, row);

    if (t->p.bias)
        v += (double)t->bias.f[n];
    if (t->p.row_add)
        v += (double)t->row_add.f[b * t->p.row_add_ld + n];
    return v;
}

static int64_t y_channels(const struct product *p) { return p->act == K_ACT_GEGLU ? p->Co / 2 : p->Co; }

/* Where pixel m of the product is in y. */
static int64_t y_pixel(const struct product *p, int64_t m)
{
    const int64_t j = m % p->Wo, i = m / p->Wo % p->Ho, b = m / p->Wo / p->Ho;

    return (b * p->Hy + i * p->y_step + p->y_i) * p->Wy + j * p->y_step + p->y_j;
}

/* Channels of pixel m to t->y.f. */
static void want_pixel(struct test *t, int64_t m)
{
    const struct product *p = &t->p;
    const int64_t j = m % p->Wo, i = m / p->Wo % p->Ho, b = m / p->Wo / p->Ho, C = y_channels(p);
    const bool glu = p->act == K_ACT_GEGLU;

    for (int64_t n = 0; n < C; n++) {
        const double v = before_act(t, b, i, j, glu ? 2 * n : n, n);
        const double gate = glu ? before_act(t, b, i, j, 2 * n + 1, C + n) : 0;

        t->y.f[y_pixel(p, m) * p->ldy + n] =
            (float)(act_of(v, gate, p->act)
                    + (p->residual ? (double)t->residual.f[y_pixel(p, m) * p->residual_ld + n] : 0));
    }
}

/* ---- making them ---- */

static int any(int n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (uint64_t)n);
}

static int64_t any_of(int n, const int64_t *of) { return of[any(n)]; }
#define ANY(...) any_of(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t), (int64_t[]){ __VA_ARGS__ })

/* (Co,taps,Cp) with zeros behind Ci, aligned as packs are. */
static struct mirror weights(enum dtype type, const struct product_part *q, int64_t Co)
{
    const int64_t rows = Co * q->KH * q->KW;
    float *v = malloc((size_t)(rows * q->Cp) * sizeof *v);
    const bool odd = cuda_kit_odd;
    struct mirror m;

    for (int64_t i = 0; i < rows * q->Cp; i++)
        v[i] = i % q->Cp < q->Ci ? (float)(0.2 * kit_normal(&seed)) : 0;
    cuda_kit_odd = false;
    m = mirror_of(type, rows * q->Cp, v);
    cuda_kit_odd = odd;
    free(v);
    return m;
}

/* One of: 1x1; 3x3 with stride 1 or 2; 2x2 as a phase of K_PACK_UP has it; 3x3 over a doubled image; 5x3. */
static void make_part(struct test *t, int k, int kind, int64_t Ci, int64_t gap)
{
    struct product_part *q = &t->p.part[k];
    static const struct { int KH, KW, stride, pad, up; } kinds[] = {
        { 1, 1, 1, 0, 1 }, { 3, 3, 1, 1, 1 }, { 3, 3, 2, 1, 1 }, { 2, 2, 1, 1, 1 }, { 3, 3, 1, 1, 2 },
        { 5, 3, 2, 0, 1 }, { 8, 8, 1, 3, 1 },
    };

    q->KH = kinds[kind].KH;
    q->KW = kinds[kind].KW;
    q->stride = kinds[kind].stride;
    q->pad_t = kinds[kind].pad;
    q->pad_l = kind == 3 ? 0 : kinds[kind].pad;
    q->up = kinds[kind].up;
    q->H = q->up == 2 ? (t->p.Ho + 1) / 2 : t->p.Ho * q->stride - (q->stride == 2 && any(2));
    q->W = q->up == 2 ? (t->p.Wo + 1) / 2 : t->p.Wo * q->stride - (q->stride == 2 && any(2));
    q->Ci = Ci;
    q->Cp = (Ci + 7) / 8 * 8;
    q->ldx = Ci + gap;
    t->x[k] = mirror_random(t->p.type, t->p.B * q->H * q->W * q->ldx, seed++, 1);
    t->w[k] = weights(t->p.type, q, t->p.Co);
    q->x = t->x[k].dev;
    q->w = t->w[k].dev;
}

/* The way out; `extra` bits: bias, row_add, residual, residual in place. */
static void make_out(struct test *t, enum dtype y_type, enum kact act, int extra, int step, int64_t gap)
{
    struct product *p = &t->p;
    int64_t n_y, C;
    float *before;

    p->act = act;
    p->alpha = extra & 1 ? 1 : 0.75f;
    p->y_type = y_type;
    p->y_step = step;
    p->y_i = step == 2 ? any(2) : 0;
    p->y_j = step == 2 ? any(2) : 0;
    p->Hy = p->Ho * step;
    p->Wy = p->Wo * step;
    C = y_channels(p);
    p->ldy = C + gap;
    n_y = p->B * p->Hy * p->Wy * p->ldy;
    t->bias = mirror_random(F32, p->Co, seed++, 1);
    p->row_add_ld = p->Co + any(2) * 8;
    t->row_add = mirror_random(y_type, p->B * p->row_add_ld, seed++, 1);
    t->y = mirror_new(y_type, n_y);
    p->residual_ld = extra & 8 ? p->ldy : C + any(3) * 4;
    t->residual = mirror_random(y_type, p->B * p->Hy * p->Wy * p->residual_ld, seed++, 1);
    p->y = t->y.dev;
    p->bias = extra & 1 ? t->bias.dev : NULL;
    p->row_add = extra & 2 ? t->row_add.dev : NULL;
    p->residual = extra & 8 ? t->y.dev : extra & 4 ? t->residual.dev : NULL;
    before = malloc((size_t)n_y * sizeof *before);
    for (int64_t i = 0; i < n_y; i++)
        before[i] = t->y.f[i] = 0.5f;   /* stays between pixels and channels */
    for (int64_t m = 0; m < p->B * p->Ho * p->Wo; m++)
        for (int64_t n = 0; n < C; n++)
            before[y_pixel(p, m) * p->ldy + n] = extra & 8 ? t->residual.f[y_pixel(p, m) * p->ldy + n] : NAN;
    t->before = malloc((size_t)n_y * dtype_bytes(y_type));
    dtype_from_f32(t->before, y_type, before, n_y);
    free(before);
}

/* ---- running ---- */

static int run(const struct test *t, const struct product_plan *plan)
{
    const size_t sums = (size_t)(t->p.B * t->p.Ho * t->p.Wo * t->p.Co) * sizeof(float);
    const size_t bytes = plan->split > 1 ? (size_t)plan->split * sums : 0;
    struct kctx k = *kit_cuda_ctx();

    k.scratch = mirror_space(bytes);
    k.scratch_bytes = bytes;
    if (dev_cuda_put(kit_queue, t->y.dev, t->before, (size_t)t->y.n * dtype_bytes(t->y.type)))
        return K_LAUNCH;
    return product_tiles(&k, &t->p, plan);
}

/* Compare every pixel, or one of `every`. */
static void check(struct test *t, const struct product_plan *plan, int64_t every, const char *what)
{
    const struct product *p = &t->p;
    bool ok = true;
    float *got;

    CUDA_TWICE(&t->y, ok &= run(t, plan) == K_OK);
    if (every > 1) {
        got = malloc((size_t)t->y.n * sizeof *got);
        mirror_read(&t->y, got);
        memcpy(t->y.f, got, (size_t)t->y.n * sizeof *got);
        free(got);
    }
    for (int64_t m = 0; m < p->B * p->Ho * p->Wo; m += every)
        want_pixel(t, m);
    tap_ok(mirror_near(&t->y, kit_near[p->y_type], "%s", what) && ok,
           "%s: %dx%dx%d, %d stages, split %d, %s to %s, B %d, %dx%d, Co %d, %d parts, %dx%d taps, Ci %d, act %d, "
           "step %d%s", what, plan->tile_m, plan->tile_n, plan->tile_k, plan->stages, plan->split,
           dtype_name(p->type), dtype_name(p->y_type), (int)p->B, (int)p->Ho, (int)p->Wo, (int)p->Co, p->n_part,
           p->part[0].KH, p->part[0].KW, (int)p->part[0].Ci, (int)p->act, p->y_step, cuda_kit_odd ? ", odd" : "");
    free(t->before);
    cuda_kit_release();
}

static struct test sized(enum dtype type, int64_t B, int64_t Ho, int64_t Wo, int64_t Co, int n_part)
{
    struct test t;

    memset(&t, 0, sizeof t);
    t.p.type = type;
    t.p.B = B;
    t.p.Ho = Ho;
    t.p.Wo = Wo;
    t.p.Co = Co;
    t.p.n_part = n_part;
    return t;
}

/* Everything by chance. */
static void by_chance(struct product_plan plan, int n)
{
    for (int i = 0; i < n; i++) {
        const enum kact act = (enum kact)any(6);
        const int64_t near = plan.tile_n + ANY(-plan.tile_n + 4, -9, -1, 0, 1, 8);
        const bool singly = i % 4 == 3;
        struct test t = sized(any(2) ? F16 : BF16, 1 + any(3), 1 + any(9), 1 + any(11),
                              act == K_ACT_GEGLU ? near / 2 * 2 : near, 1 + any(3));

        plan.split = 1 + any(3);
        for (int k = 0; k < t.p.n_part; k++) {
            const int64_t Ci = singly ? ANY(1, 4, 5, 33) : ANY(8, 24, 32, 40, 72, 136);

            make_part(&t, k, any(40) ? any(6) : 6, Ci, singly ? any(4) : 8 * any(2));
        }
        make_out(&t, (enum dtype)any(3), act, any(16), 1 + any(2), ANY(0, 0, 8, 3));
        check(&t, &plan, 1, "by chance");
    }
}

/* Rows of a linear layer at and around whole tiles, more blocks of K than stages, and fewer than shares. */
static void linear(struct product_plan plan)
{
    static const int64_t rows[] = { 1, 63, 64, 65, 128, 129 }, depth[] = { 8, 32, 128, 160, 264, 64 };

    for (int i = 0; i < 6; i++) {
        struct test t = sized(i % 2 ? F16 : BF16, 1, 1, rows[i], i % 2 ? 2 * plan.tile_n : plan.tile_n, 1);

        plan.split = 1 + i % 3;
        make_part(&t, 0, 0, depth[i], 0);
        make_out(&t, t.p.type, i == 4 ? K_ACT_GEGLU : K_ACT_NONE, i % 2 ? 5 : 1, 1, 0);
        check(&t, &plan, 1, "linear");
    }
}

/* The bits of an image are the same whatever images come before and after it. */
static void alone(const struct product_plan *plan)
{
    const int64_t B = 3, Ho = 7, Wo = 11;
    struct test t = sized(BF16, B, Ho, Wo, 72, 1);
    const size_t bytes = (size_t)(Ho * Wo * 72) * 2;
    unsigned char *all = malloc(bytes * (size_t)B), *one = malloc(bytes);
    bool ok = true;

    make_part(&t, 0, 1, 40, 0);
    make_out(&t, BF16, K_ACT_SILU, 1, 1, 0);
    ok &= run(&t, plan) == K_OK && !dev_cuda_get(kit_queue, all, t.y.dev, bytes * (size_t)B);
    t.p.B = 1;
    for (int64_t b = 0; b < B; b++) {
        t.p.part[0].x = (const char *)t.x[0].dev + (size_t)(b * Ho * Wo * 40) * 2;
        ok &= run(&t, plan) == K_OK && !dev_cuda_get(kit_queue, one, t.y.dev, bytes)
              && !memcmp(one, all + (size_t)b * bytes, bytes);
    }
    tap_ok(ok, "%dx%dx%d split %d: an image alone has the bits that it has among others", plan->tile_m, plan->tile_n,
           plan->tile_k, plan->split);
    free(all);
    free(one);
    free(t.before);
    cuda_kit_release();
}

static void refused(void)
{
    struct test t = sized(F16, 1, 4, 4, 16, 1);
    struct product_plan plan = plans[0];
    struct kctx k;
    bool ok = true;

    make_part(&t, 0, 1, 8, 0);
    make_out(&t, F16, K_ACT_NONE, 0, 1, 0);
    k = *kit_cuda_ctx();
    k.scratch_bytes = 0;
#define REFUSED(what, field, value, rc)                                                                             \
    do {                                                                                                            \
        struct test one = t;                                                                                        \
        struct product_plan plan_one = plan;                                                                        \
        one.field = value;                                                                                          \
        tap_ok(product_tiles(&k, &one.p, &plan_one) == (rc), what);                                                 \
    } while (0)
    REFUSED("f32 is not for tensor cores", p.type, F32, K_ARG);
    REFUSED("an odd pack", p.part[0].w, (const char *)t.p.part[0].w + 2, K_ARG);
    REFUSED("more than 64 taps", p.part[0].KH, 33, K_ARG);
    REFUSED("no parts", p.n_part, 0, K_ARG);
    REFUSED("fewer than no pixels", p.Ho, -1, K_ARG);
    REFUSED("no pixels", p.Ho, 0, K_OK);
    REFUSED("no channels", p.Co, 0, K_OK);
    t.p.Co = 15;
    REFUSED("half a gate", p.act, K_ACT_GEGLU, K_ARG);
    t.p.Co = 16;
    plan.split = 0;
    ok &= product_tiles(&k, &t.p, &plan) == K_ARG;
    plan.split = 2;
    ok &= product_tiles(&k, &t.p, &plan) == K_SCRATCH;
    plan.split = 1;
    plan.tile_n = 96;
    ok &= product_tiles(&k, &t.p, &plan) == K_ARG;
    tap_ok(ok, "plans that cannot be");
    free(t.before);
    cuda_kit_release();
}

/* Layers of the model, one pixel in some hundred compared. */
static void full_size(struct product_plan plan)
{
    struct test t = sized(BF16, 4, 64, 64, 320, 1);

    make_part(&t, 0, 1, 320, 0);
    make_out(&t, BF16, K_ACT_NONE, 7, 1, 0);
    check(&t, &plan, 241, "3x3 at 64x64");
    t = sized(F16, 4, 8, 8, 1280, 2);
    make_part(&t, 0, 1, 1280, 0);
    make_part(&t, 1, 0, 640, 0);
    make_out(&t, F16, K_ACT_NONE, 5, 1, 0);
    plan.split = 8;
    check(&t, &plan, 17, "3x3 and a shortcut at 8x8");
    t = sized(F16, 1, 1, 16384, 2560, 1);
    make_part(&t, 0, 0, 320, 0);
    make_out(&t, F16, K_ACT_GEGLU, 1, 1, 0);
    plan.split = 1;
    check(&t, &plan, 241, "feed-forward");
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++)
        for (size_t i = 0; i < LEN(plans); i++) {
            struct product_plan plan = plans[i];

            cuda_kit_odd = odd;
            by_chance(plan, cuda_kit_small() ? odd ? 2 : i < 4 ? 9 : 4 : 200);
            if (odd)
                continue;
            if (i < 8)
                linear(plan);
            plan.split = 2;
            alone(&plan);
            if (!cuda_kit_small())
                full_size(plan);
        }
    cuda_kit_odd = false;
    refused();
    return cuda_kit_end();
}
