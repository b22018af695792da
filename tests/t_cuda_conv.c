/* tests/t_cuda_conv.c: convolutions and linear layers on the device as on the CPU, each way that the planner knows,
 * with scratch for all pixels at once and for some at a time. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "kernels/cuda_gemm.h"
#include "kernels/cuda_product.h"

enum { BIAS = 1, ROW_ADD = 2, RESIDUAL = 4, IN_PLACE = 8, ALL = BIAS | ROW_ADD | RESIDUAL, ROW_GAP = 3, RES_GAP = 5 };

struct conv_case {
    const char *why;
    enum kpack_kind kind;
    int64_t B;
    int n_part;
    struct kgeom g[3];
    int64_t gap_x, gap_y;
    float alpha;
    enum kact act;
    int with;
};

#define FWD K_PACK_FWD
#define UP K_PACK_UP
#define NO_G { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
#define ONE(...) 1, { { __VA_ARGS__ }, NO_G, NO_G }
#define LINEAR(rows, Ci, Co) 1, rows, Ci, 1, rows, Co, 1, 1, 1, 0, 0, 1

static const struct conv_case cases[] = {
    /* why                        kind B    H   W  Ci  Ho  Wo  Co KH KW s pt pl up  gaps alpha act, with */
    { "3x3",                       FWD, 2, ONE(5,  7, 16,  5,  7, 24, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, BIAS },
    { "3x3, odd channels",         FWD, 2, ONE(5,  7,  5,  5,  7, 33, 3, 3, 1, 1, 1, 1), 3, 1, 1, 0, ALL },
    { "3x3, latents in",           FWD, 1, ONE(9,  8,  4,  9,  8, 40, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, BIAS },
    { "3x3, latents out",          FWD, 1, ONE(9,  8, 40,  9,  8,  4, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, BIAS },
    { "3x3, one pixel",            FWD, 3, ONE(1,  1,  8,  1,  1, 40, 3, 3, 1, 1, 1, 1), 0, 0, 1, K_ACT_SILU, ALL },
    { "3x3, not padded",           FWD, 2, ONE(6,  7, 24,  4,  5, 17, 3, 3, 1, 0, 0, 1), 8, 8, 1, 0, 0 },
    { "3x3, wider than a tile",    FWD, 2, ONE(13, 11, 32, 13, 11, 168, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, ALL },
    { "3x3, deep",                 FWD, 1, ONE(3,  4, 328, 3,  4, 72, 3, 3, 1, 1, 1, 1), 8, 0, 1, 0, BIAS },
    { "3x3 stride 2",              FWD, 2, ONE(7,  9, 16,  4,  5, 24, 3, 3, 2, 1, 1, 1), 0, 0, 1, 0, BIAS },
    { "3x3 stride 2, 0 1 0 1",     FWD, 2, ONE(8,  6, 16,  4,  3, 33, 3, 3, 2, 0, 0, 1), 8, 2, 1, 0, ROW_ADD },
    { "5x5",                       FWD, 1, ONE(6,  5, 17,  6,  5, 16, 5, 5, 1, 2, 2, 1), 0, 0, 1, K_ACT_RELU, BIAS },
    { "4x4 stride 2",              FWD, 1, ONE(6,  8,  8,  3,  4,  8, 4, 4, 2, 1, 1, 1), 0, 0, 1, 0, RESIDUAL },
    { "3x1, pads that differ",     FWD, 1, ONE(5,  4,  8,  7,  4,  8, 3, 1, 1, 2, 0, 1), 0, 0, 1, 0, 0 },
    { "1x1 stride 2",              FWD, 2, ONE(5,  7, 16,  3,  4, 24, 1, 1, 2, 0, 0, 1), 0, 0, 1, 0, 0 },
    { "up, phases",                UP,  2, ONE(3,  5, 16,  6, 10, 24, 3, 3, 1, 1, 1, 2), 0, 0, 1, 0, BIAS },
    { "up, phases, everything",    UP,  2, ONE(4,  3, 13,  8,  6, 33, 3, 3, 1, 1, 1, 2), 2, 3, -0.7f, K_ACT_SILU, ALL },
    { "up, phases, one pixel",     UP,  2, ONE(1,  1, 40,  2,  2,  4, 3, 3, 1, 1, 1, 2), 0, 0, 1, 0,
      RESIDUAL | IN_PLACE },
    { "up",                        FWD, 2, ONE(3,  5, 16,  6, 10, 24, 3, 3, 1, 1, 1, 2), 0, 0, 1, 0, BIAS },
    { "up, odd target",            FWD, 2, ONE(4,  5, 16,  7,  9, 24, 3, 3, 1, 1, 1, 2), 8, 8, 1, 0, ALL },
    { "up, 5x5",                   FWD, 1, ONE(3,  2,  4,  6,  4,  7, 5, 5, 1, 2, 2, 2), 0, 0, 1, 0, 0 },
    { "linear",                    FWD, 1, ONE(LINEAR(77, 40, 64)),   0, 0, 1, 0, 0 },
    { "linear, bias",              FWD, 1, ONE(LINEAR(77, 40, 64)),   8, 8, 0.3f, 0, BIAS },
    { "linear, residual",          FWD, 1, ONE(LINEAR(33, 64, 40)),   0, 0, 1, 0, BIAS | RESIDUAL },
    { "linear, no bias, residual", FWD, 1, ONE(LINEAR(33, 64, 40)),   0, 8, 1, 0, RESIDUAL },
    { "linear, in place",          FWD, 1, ONE(LINEAR(33, 64, 40)),   0, 8, -2, 0, RESIDUAL | IN_PLACE },
    { "linear, odd",               FWD, 1, ONE(LINEAR(13, 37, 21)),   1, 1, 1, 0, ALL | IN_PLACE },
    { "linear, gelu",              FWD, 1, ONE(LINEAR(20, 24, 32)),   0, 0, 4, K_ACT_GELU, BIAS },
    { "linear, quick gelu",        FWD, 1, ONE(LINEAR(20, 24, 32)),   0, 0, -4, K_ACT_QUICK_GELU, BIAS },
    { "one row",                   FWD, 1, ONE(LINEAR(1, 320, 48)),   0, 0, 1, K_ACT_SILU, BIAS },
    { "alpha 0",                   FWD, 1, ONE(LINEAR(9, 8, 8)),      0, 0, 0, 0, BIAS | RESIDUAL },
    { "no channels",               FWD, 1, ONE(LINEAR(9, 0, 8)),      8, 0, 1, 0, BIAS | RESIDUAL },
    { "geglu",                     FWD, 1, ONE(LINEAR(31, 40, 80)),   0, 0, 1, K_ACT_GEGLU, BIAS },
    { "geglu, odd, everything",    FWD, 2, ONE(3,  5, 19,  3,  5, 34, 1, 1, 1, 0, 0, 1), 2, 3, 1, K_ACT_GEGLU, ALL },
    { "halves and shortcut",       FWD, 2, 3, { { 5, 4, 16, 5, 4, 40, 3, 3, 1, 1, 1, 1 },
      { 5, 4, 24, 5, 4, 40, 3, 3, 1, 1, 1, 1 }, { 5, 4, 8, 5, 4, 40, 1, 1, 1, 0, 0, 1 } }, 8, 8, 1, K_ACT_SILU, ALL },
    { "odd halves and shortcut",   FWD, 2, 3, { { 5, 4, 13, 5, 4, 33, 3, 3, 1, 1, 1, 1 },
      { 5, 4, 20, 5, 4, 33, 3, 3, 1, 1, 1, 1 }, { 5, 4, 7, 5, 4, 33, 1, 1, 1, 0, 0, 1 } }, 1, 0, 1, 0,
      ALL | IN_PLACE },
    { "stride 2 and shortcut",     FWD, 2, 2, { { 7, 6, 16, 4, 3, 24, 3, 3, 2, 1, 1, 1 },
      { 4, 3, 8, 4, 3, 24, 1, 1, 1, 0, 0, 1 }, NO_G }, 0, 0, 0.5f, 0, RESIDUAL },
    { "up, two halves",            UP,  2, 2, { { 3, 4, 16, 6, 8, 40, 3, 3, 1, 1, 1, 2 },
      { 3, 4, 24, 6, 8, 40, 3, 3, 1, 1, 1, 2 }, NO_G }, 0, 0, 1, K_ACT_RELU, ALL },
    { "up and a shortcut",         FWD, 2, 2, { { 3, 4, 16, 6, 7, 40, 3, 3, 1, 1, 1, 2 },
      { 6, 7, 24, 6, 7, 40, 1, 1, 1, 0, 0, 1 }, NO_G }, 0, 0, 1, 0, BIAS },
    { "low rank under geglu",      FWD, 1, 2, { { LINEAR(15, 40, 48) }, { LINEAR(15, 8, 48) }, NO_G }, 0, 0, 1,
      K_ACT_GEGLU, ALL },
};

/* Sizes of Stable Diffusion 1.5, where there is a device. */
static const struct conv_case real_cases[] = {
    { "resnet 320",        FWD, 2, ONE(64, 64, 320, 64, 64, 320, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, ALL },
    { "resnet 1280",       FWD, 2, ONE(8, 8, 1280, 8, 8, 1280, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, ALL },
    { "down 640",          FWD, 2, ONE(32, 32, 640, 16, 16, 640, 3, 3, 2, 1, 1, 1), 0, 0, 1, 0, BIAS },
    { "up 1280",           UP,  2, ONE(8, 8, 1280, 16, 16, 1280, 3, 3, 1, 1, 1, 2), 0, 0, 1, 0, BIAS },
    { "up 640, odd",       FWD, 1, ONE(14, 20, 640, 27, 39, 640, 3, 3, 1, 1, 1, 2), 0, 0, 1, 0, BIAS },
    { "odd map",           FWD, 1, ONE(53, 77, 320, 53, 77, 320, 3, 3, 1, 1, 1, 1), 0, 0, 1, 0, BIAS },
    { "feed forward",      FWD, 1, ONE(LINEAR(8192, 320, 2560)), 0, 0, 1, K_ACT_GEGLU, BIAS },
    { "projection",        FWD, 1, ONE(LINEAR(2048, 1280, 1280)), 0, 0, 1, 0, RESIDUAL | IN_PLACE },
    { "decoder, several portions", FWD, 1, ONE(256, 256, 256, 512, 512, 64, 3, 3, 1, 1, 1, 2), 0, 0, 1, 0, BIAS },
    { "joined at 1920",    FWD, 2, 2, { { 16, 16, 1280, 16, 16, 1280, 3, 3, 1, 1, 1, 1 },
      { 16, 16, 640, 16, 16, 1280, 3, 3, 1, 1, 1, 1 }, NO_G }, 0, 0, 1, 0, ALL },
};

struct types {
    enum dtype x, w, y;
};

static const struct types usual[] = { { F32, F32, F32 }, { F16, F16, F16 }, { BF16, BF16, BF16 }, { BF16, BF16, F32 } };
static const struct types mixed[] = { { BF16, F32, BF16 }, { F32, BF16, F32 }, { F16, BF16, F32 }, { F16, F16, BF16 } };

/* ---- operands ---- */

struct operands {
    struct kconv host, dev;
    struct kpack kpack[3];
    struct mirror x[3], w[3], bias, row_add, residual, y;
    void *before;                       /* y's values at the beginning, of its type */
};

/* Rows of n values, `gap` NaNs between them. */
static struct mirror gapped(enum dtype type, int64_t rows, int64_t n, int64_t gap, uint64_t seed)
{
    const int64_t all = rows ? rows * (n + gap) - gap : 0;
    float *v = malloc(sizeof *v * (size_t)(all + 1));
    struct mirror m;

    seed = seed * 77 + 5;
    for (int64_t i = 0; i < all; i++)
        v[i] = i % (n + gap) < n ? (float)kit_normal(&seed) : NAN;
    m = mirror_of(type, all, v);
    free(v);
    return m;
}

/* The host has f32 packs of the values that the device has. */
static void add_part(struct operands *o, const struct conv_case *s, int i, const struct types *t)
{
    const struct kgeom *g = &s->g[i];
    const bool glu = s->act == K_ACT_GEGLU;
    const int64_t taps = (int64_t)g->KH * g->KW;
    struct kpack *p = &o->kpack[i], f32;
    void *host;

    o->x[i] = gapped(t->x, s->B * g->H * g->W, g->Ci, s->gap_x, (uint64_t)i + 1);
    o->w[i] = mirror_random(t->w, g->Co * taps * g->Ci, 11 + (uint64_t)i, 1 / sqrt((double)(taps * g->Ci + 1)));
    *p = (struct kpack){ s->kind, t->w, t->w, g->Co, g->Ci, g->KH, g->KW, 0, g->Ci, glu };
    f32 = *p;
    f32.src = f32.dst = F32;
    host = aligned_alloc(64, (kit_cpu->pack_bytes(&f32) + 127) / 64 * 64);
    kit_cpu->pack(kit_cpu_ctx(), host, &f32, o->w[i].f);
    o->host.part[i] = (struct kpart){ o->x[i].f, F32, g->Ci + s->gap_x, host, F32, s->kind, glu, *g };
    o->dev.part[i] = (struct kpart){ o->x[i].dev, t->x, g->Ci + s->gap_x, mirror_space(kit_cuda->pack_bytes(p)), t->w,
                                     s->kind, glu, *g };
}

/* y begins as random numbers: what is between its rows stays. */
static struct operands operands_make(const struct conv_case *s, const struct types *t)
{
    const struct kgeom *g = &s->g[0];
    const int64_t N = s->act == K_ACT_GEGLU ? g->Co / 2 : g->Co, px = s->B * g->Ho * g->Wo;
    const bool in_place = s->with & IN_PLACE, residual = s->with & RESIDUAL;
    struct operands o = { .host = { .dir = K_FWD, .B = s->B, .n_part = s->n_part, .alpha = s->alpha, .act = s->act,
                                    .y_type = F32, .ldy = N + s->gap_y, .row_add_ld = g->Co + ROW_GAP,
                                    .residual_ld = N + (in_place ? s->gap_y : s->gap_y ? RES_GAP : 0) } };

    o.dev = o.host;
    o.dev.y_type = t->y;
    for (int i = 0; i < s->n_part; i++)
        add_part(&o, s, i, t);
    o.y = mirror_random(t->y, px * (N + s->gap_y), 21, 1);
    o.before = malloc((size_t)o.y.n * dtype_bytes(t->y) + 1);
    dev_cuda_get(kit_queue, o.before, o.y.dev, (size_t)o.y.n * dtype_bytes(t->y));
    o.host.y = o.y.f, o.dev.y = o.y.dev;
    o.bias = mirror_random(F32, g->Co, 22, 1);
    o.row_add = gapped(t->y, s->B, g->Co, ROW_GAP, 23);
    o.residual = in_place ? o.y : gapped(t->y, px, N, o.host.residual_ld - N, 24);
    if (s->with & BIAS)
        o.host.bias = o.bias.f, o.dev.bias = o.bias.dev;
    if (s->with & ROW_ADD)
        o.host.row_add = o.row_add.f, o.dev.row_add = o.row_add.dev;
    if (residual)
        o.host.residual = o.residual.f, o.dev.residual = o.residual.dev;
    return o;
}

static void operands_free(struct operands *o)
{
    for (int i = 0; i < o->host.n_part; i++)
        free((void *)(uintptr_t)o->host.part[i].pack);
    free(o->before);
    cuda_kit_release();
}

static bool pack_on_device(struct operands *o)
{
    bool ok = true;

    for (int i = 0; i < o->host.n_part; i++)
        ok &= kit_cuda->pack(kit_cuda_ctx(), (void *)(uintptr_t)o->dev.part[i].pack, &o->kpack[i], o->w[i].dev) == K_OK;
    return ok;
}

static int on_device(struct operands *o, struct kctx *k)
{
    if (dev_cuda_put(kit_queue, o->y.dev, o->before, (size_t)o->y.n * dtype_bytes(o->y.type)))
        return K_LAUNCH;
    return kit_cuda->conv(k, &o->dev);
}

/* Scratch that holds about a third of the rows. */
static struct kctx little_scratch(const struct operands *o)
{
    struct kctx k = *kit_cuda_ctx();
    struct product p[4];
    int64_t rows;

    product_cut(p, &o->dev);
    rows = product_rows(&p[0]) / 3 + 1;
    k.scratch_bytes = CUDA_WORKSPACE + product_columns_bytes(&p[0], rows) + (size_t)(rows * p[0].Co) * 4 + 1024;
    k.scratch_bytes = k.scratch_bytes / 64 * 64;
    return k;
}

/* ---- parity ---- */

static double allowed(const struct conv_case *s, const struct types *t)
{
    /* phases have sums of weights, rounded to the pack's type; on the CPU here they are f32 */
    return s->kind == K_PACK_UP ? fmax(kit_near[t->y], kit_near[t->w]) : kit_near[t->y];
}

static bool check(const struct conv_case *s, const struct types *t)
{
    static const char *const name[] = { "as planned", "cuBLASLt", "tiles", "tiles by mma.sync" };
    struct operands o = operands_make(s, t);
    bool ok = pack_on_device(&o) && kit_cpu->conv(kit_cpu_ctx(), &o.host) == K_OK;

    for (int way = 0; way < (int)LEN(name); way++)
        for (int small = 0; small < 1 + (way == 1 + PRODUCT_LT); small++) {
            struct kctx k = small ? little_scratch(&o) : *kit_cuda_ctx();
            int rc = K_OK;

            product_forced = way;
            CUDA_TWICE(&o.y, rc = rc ? rc : on_device(&o, &k));
            product_forced = 0;
            ok &= rc == K_OK && mirror_near(&o.y, allowed(s, t), "%s, %s %s to %s, %s%s", s->why, dtype_name(t->x),
                                            dtype_name(t->w), dtype_name(t->y), name[way],
                                            small ? ", in portions" : "");
        }
    operands_free(&o);
    return ok;
}

static void test_cases(const struct conv_case *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool ok = true;

        for (size_t t = 0; t < LEN(usual); t++)
            ok &= check(&s[i], &usual[t]);
        tap_ok(ok, "%s%s", s[i].why, cuda_kit_odd ? ", odd addresses" : "");
    }
}

static void test_mixed(void)
{
    for (size_t t = 0; t < LEN(mixed); t++) {
        bool ok = true;

        for (size_t i = 1; i < LEN(cases); i += 7)
            ok &= check(&cases[i], &mixed[t]);
        tap_ok(ok, "%s, %s, %s", dtype_name(mixed[t].x), dtype_name(mixed[t].w), dtype_name(mixed[t].y));
    }
}

/* ---- what else is in the batch ---- */

/* The bits of the second of three images, with the others as they are or not. */
static bool bits_of_second(struct operands *o, const struct conv_case *s, bool others, void *out)
{
    const struct kgeom *g = &s->g[0];
    const size_t image = (size_t)(g->Ho * g->Wo * o->dev.ldy) * dtype_bytes(o->y.type);
    const size_t x_image = (size_t)(g->H * g->W * g->Ci) * dtype_bytes(o->x[0].type);
    char *zero = calloc(1, x_image);
    bool ok = true;

    for (int i = 0; i < 3 && others; i += 2)
        ok &= !dev_cuda_put(kit_queue, (char *)o->x[0].dev + (size_t)i * x_image, zero, x_image);
    ok &= on_device(o, kit_cuda_ctx()) == K_OK
        && !dev_cuda_get(kit_queue, out, (char *)o->y.dev + image, image);
    free(zero);
    return ok;
}

static void test_batch(void)
{
    static const struct conv_case some[] = {
        { "3x3",    K_PACK_FWD, 3, ONE(5, 7, 16, 5, 7, 24, 3, 3, 1, 1, 1, 1), 0, 0, 1, K_ACT_NONE, ALL },
        { "phases", K_PACK_UP,  3, ONE(3, 5, 16, 6, 10, 24, 3, 3, 1, 1, 1, 2), 0, 0, 1, K_ACT_NONE, ALL },
    };
    static char first[1 << 16], second[1 << 16];

    for (size_t i = 0; i < LEN(some); i++)
        for (size_t t = 0; t < LEN(usual); t++) {
            struct operands o = operands_make(&some[i], &usual[t]);
            const size_t image = (size_t)(some[i].g[0].Ho * some[i].g[0].Wo * 24) * dtype_bytes(o.y.type);
            bool ok = pack_on_device(&o) && bits_of_second(&o, &some[i], false, first)
                && bits_of_second(&o, &some[i], true, second);

            tap_ok(ok && !memcmp(first, second, image), "%s, %s: an image's bits whatever the others are", some[i].why,
                   dtype_name(o.y.type));
            operands_free(&o);
        }
}

/* ---- arguments ---- */

static const char *spoil(struct kconv *c, int i)
{
    struct kgeom *g = &c->part[0].g;

    switch (i) {
    case 0: return c->n_part = 0, "no parts";
    case 1: return c->n_part = 4, "four parts";
    case 2: return c->B = -1, "negative B";
    case 3: return c->y_type = N_DTYPE, "no such type of y";
    case 4: return c->ldy = g->Co - 1, "pixels of y that overlap";
    case 5: return c->part[0].ldx = g->Ci - 1, "pixels of x that overlap";
    case 6: return c->part[0].type = N_DTYPE, "no such type of x";
    case 7: return c->part[0].pack_type = N_DTYPE, "no such type of pack";
    case 8: return c->part[0].pack_kind = K_PACK_DX, "a pack for the other direction";
    case 9: return c->part[0].glu = true, "a gated pack without a gate";
    case 10: return c->act = K_ACT_GEGLU, "a gate without a gated pack";
    case 11: return c->act = (enum kact)99, "no such activation";
    case 12: return g->stride = 3, "stride 3";
    case 13: return g->up = 3, "up 3";
    case 14: return g->up = 2, g->pad_t = 0, "up without padding";
    case 15: return g->KH = 65, g->KW = 1, "65 taps";
    case 16: return g->H = -1, "negative H";
    case 17: return c->part[0].pack_kind = K_PACK_UP, "phases without up";
    case 18: return c->dir = (enum kdir)7, "no such direction";
    case 19: return c->residual = c->y, c->residual_ld = 1, "pixels of the residual that overlap";
    case 20: return c->row_add = c->y, c->row_add_ld = 1, "rows of row_add that overlap";
    case 21: return c->n_part = 2, c->part[1] = c->part[0], c->part[1].g.Co++, "parts of different outputs";
    default: return NULL;
    }
}

static void test_arguments(void)
{
    const struct types *t = &usual[0];
    struct operands o = operands_make(&cases[0], t);
    struct kctx small = *kit_cuda_ctx();
    struct kconv c;
    bool ok = true;

    for (int i = 0;; i++) {
        const char *what;

        c = o.dev;
        what = spoil(&c, i);
        if (!what)
            break;
        if (kit_cuda->conv(kit_cuda_ctx(), &c) != K_ARG) {
            tap_note("takes: %s", what);
            ok = false;
        }
    }
    tap_ok(ok && mirror_near(&o.y, 0, "refused"), "what is wrong is refused, and y stays");
    c = o.dev;
    c.dir = K_DX;
    tap_ok(kit_cuda->conv(kit_cuda_ctx(), &c) == K_MISSING, "gradients are missing, which is said");
    for (int i = 0; i < 3; i++) {
        c = o.dev;
        *(i == 0 ? &c.B : i == 1 ? &c.part[0].g.Ho : &c.part[0].g.Co) = 0;
        ok &= kit_cuda->conv(kit_cuda_ctx(), &c) == K_OK;
    }
    tap_ok(ok && mirror_near(&o.y, 0, "empty"), "empty convolutions do nothing");
    small.scratch_bytes = CUDA_WORKSPACE;
    tap_ok(kit_cuda->conv(&small, &o.dev) == K_SCRATCH, "too little scratch is said");
    operands_free(&o);
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        test_cases(cases, LEN(cases));
    }
    cuda_kit_odd = false;
    test_mixed();
    if (!cuda_kit_small())
        test_cases(real_cases, LEN(real_cases));
    test_batch();
    test_arguments();
    return cuda_kit_end();
}
