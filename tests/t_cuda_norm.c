/* tests/t_cuda_norm.c: group and layer normalisation, on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

static const struct shape {
    const char *why;
    int64_t B, HW, C, G;
    int pad_x, pad_y;           /* channels beside C in a pixel of x, of y */
    bool silu, big;             /* big: on a real device only */
} shapes[] = {
    { "one element", 1, 1, 1, 1, 0, 0, false, false },
    { "one pixel, one channel in a group", 2, 1, 24, 24, 0, 0, true, false },
    { "prime sizes", 3, 17, 21, 7, 2, 5, true, false },
    { "one group", 2, 97, 37, 1, 3, 0, false, false },
    { "10 channels in a group, one block", 3, 25, 320, 32, 0, 0, true, false },
    { "30 channels in a group, strides", 2, 9, 960, 32, 8, 16, false, false },
    { "8x8, the middle of the denoiser", 2, 64, 1280, 32, 0, 0, true, false },
    { "a group too wide for one block", 1, 9, 5200, 2, 0, 0, false, false },
    { "tiles that split groups", 2, 900, 2600, 4, 0, 0, true, true },
    { "just more than one block has", 2, 833, 40, 4, 0, 0, true, false },
    { "10 channels in a group, blocks", 3, 1030, 80, 8, 0, 0, true, false },
    { "groups of 3 in blocks, odd strides", 2, 4600, 15, 5, 1, 2, false, false },
    { "many blocks of several reads", 1, 41000, 8, 2, 0, 0, true, false },
    { "first block of the 1.5 denoiser", 2, 4096, 320, 32, 0, 0, true, true },
    { "the decoder's last", 1, 262144, 128, 32, 0, 0, true, true },
    { "a skip connection", 4, 1024, 1920, 32, 0, 0, true, true },
    { "images in turns, as scratch has room", 3, 1040, 1300, 1300, 0, 0, true, true },
    { "32 images", 32, 4096, 320, 32, 0, 0, true, true },
};

/* Channels with a mean of their own, so that a group's mean is no mere noise. */
static struct mirror new_x(enum dtype type, const struct shape *s, int64_t ld, double offset)
{
    const int64_t n = s->B * s->HW * ld;
    float *v = malloc(sizeof *v * (size_t)n);
    uint64_t seed = (uint64_t)(n + 7);
    struct mirror x;

    for (int64_t i = 0; i < n; i++)
        v[i] = (float)(kit_normal(&seed) + offset + (double)(i % ld % 5));
    x = mirror_of(type, n, v);
    free(v);
    return x;
}

/* Zeros rather than NaN: between pixels, where nothing may be written, both sides then have the same. */
static struct mirror new_zeros(enum dtype type, int64_t n)
{
    float *v = calloc((size_t)n, sizeof *v);
    struct mirror y = mirror_of(type, n, v);

    free(v);
    return y;
}

/* Both have the same bits, over all of n elements. */
static bool same_bits(const struct mirror *a, const struct mirror *b)
{
    const size_t bytes = (size_t)a->n * dtype_bytes(a->type);
    unsigned char *p = malloc(2 * bytes);
    bool same = !dev_cuda_get(kit_queue, p, a->dev, bytes) && !dev_cuda_get(kit_queue, p + bytes, b->dev, bytes)
        && !memcmp(p, p + bytes, bytes);

    free(p);
    return same;
}

static void *at(const struct mirror *m, int64_t i) { return (char *)m->dev + (size_t)i * dtype_bytes(m->type); }

static bool both_near(struct mirror *mean, struct mirror *rstd, const char *why)
{
    return mirror_near(mean, kit_near[F32], "mean, %s", why) & mirror_near(rstd, kit_near[F32], "rstd, %s", why);
}

struct run {
    enum dtype type;
    const struct shape *s;
    int64_t ldx, ldy;
    struct mirror x, y, mean, rstd, gamma, beta;
};

static bool run_images(struct run *r, struct mirror *y, int64_t first, int64_t n)
{
    const struct shape *s = r->s;
    struct mirror mean = mirror_new(F32, n * s->G), rstd = mirror_new(F32, n * s->G);

    return kit_cuda->group_norm(kit_cuda_ctx(), at(y, first * s->HW * r->ldy), r->ldy, mean.dev, rstd.dev,
                                at(&r->x, first * s->HW * r->ldx), r->ldx, r->type, r->gamma.dev, r->beta.dev, n, s->HW,
                                s->C, s->G, 1e-5f, s->silu) == K_OK;
}

/* An image alone, and any part of the pixels, get the bits that they have in the whole. */
static bool parts_same(struct run *r)
{
    const struct shape *s = r->s;
    struct mirror y = new_zeros(r->type, r->y.n), z = new_zeros(r->type, r->y.n);
    const int64_t cut = (s->HW + 2) / 3;
    bool ok = true;

    for (int64_t b = 0; b < s->B; b++) {
        ok &= run_images(r, &y, b, 1);
        for (int64_t t = 0; t < s->HW; t += cut)
            ok &= kit_cuda->group_norm_apply(kit_cuda_ctx(), at(&z, (b * s->HW + t) * r->ldy), r->ldy,
                                             at(&r->mean, b * s->G), at(&r->rstd, b * s->G),
                                             at(&r->x, (b * s->HW + t) * r->ldx), r->ldx, r->type, r->gamma.dev,
                                             r->beta.dev, 1, s->HW - t < cut ? s->HW - t : cut, s->C, s->G,
                                             s->silu) == K_OK;
    }
    if (!same_bits(&r->y, &y))
        tap_note("%s: an image alone has other bits", s->why), ok = false;
    if (!same_bits(&r->y, &z))
        tap_note("%s: parts have other bits", s->why), ok = false;
    return ok;
}

static void group_norm(const struct shape *s, enum dtype type, double offset)
{
    struct run r = { .type = type, .s = s, .ldx = s->C + s->pad_x, .ldy = s->C + s->pad_y };
    const int64_t n = s->B * s->HW;
    struct mirror mean, rstd;
    bool ok;

    r.x = new_x(type, s, r.ldx, offset);
    r.y = new_zeros(type, n * r.ldy);
    r.gamma = mirror_random(F32, s->C, 2, 1.0);
    r.beta = mirror_random(F32, s->C, 3, 1.0);
    r.mean = mirror_new(F32, s->B * s->G);
    r.rstd = mirror_new(F32, s->B * s->G);
    ok = kit_cpu->group_norm(kit_cpu_ctx(), r.y.f, r.ldy, r.mean.f, r.rstd.f, r.x.f, r.ldx, F32, r.gamma.f, r.beta.f,
                             s->B, s->HW, s->C, s->G, 1e-5f, s->silu) == K_OK;
    CUDA_TWICE(&r.mean, ok &= kit_cuda->group_norm(kit_cuda_ctx(), r.y.dev, r.ldy, r.mean.dev, r.rstd.dev, r.x.dev,
                                                   r.ldx, type, r.gamma.dev, r.beta.dev, s->B, s->HW, s->C, s->G,
                                                   1e-5f, s->silu) == K_OK);
    ok &= both_near(&r.mean, &r.rstd, s->why) & mirror_near(&r.y, kit_near[type], "y, %s", s->why);
    ok &= parts_same(&r);
    mean = mirror_new(F32, r.mean.n);
    rstd = mirror_new(F32, r.mean.n);
    ok &= kit_cuda->group_norm(kit_cuda_ctx(), NULL, 0, mean.dev, rstd.dev, r.x.dev, r.ldx, type, NULL, NULL, s->B,
                               s->HW, s->C, s->G, 1e-5f, s->silu) == K_OK;
    ok &= same_bits(&mean, &r.mean) && same_bits(&rstd, &r.rstd);
    if (!s->pad_x && !s->pad_y) {               /* in place */
        ok &= kit_cuda->group_norm(kit_cuda_ctx(), r.x.dev, r.ldx, mean.dev, rstd.dev, r.x.dev, r.ldx, type,
                                   r.gamma.dev, r.beta.dev, s->B, s->HW, s->C, s->G, 1e-5f, s->silu) == K_OK;
        ok &= same_bits(&r.x, &r.y);
    }
    tap_ok(ok, "group_norm %s %dx%dx%d/%d%s: %s%s", dtype_name(type), (int)s->B, (int)s->HW, (int)s->C, (int)s->G,
           s->silu ? " silu" : "", s->why, cuda_kit_odd ? ", odd addresses" : "");
    cuda_kit_release();
}

/* Statistics of values far from zero, some thousand times their spread: where sums of squares would cancel. */
static void far_from_zero(void)
{
    static const struct shape small = { "far from zero, one block", 2, 50, 20, 2, 0, 0, false, false };
    static const struct shape large = { "far from zero, blocks", 1, 9000, 12, 3, 0, 0, false, false };
    static const struct shape *const both[] = { &small, &large };

    for (size_t i = 0; i < LEN(both); i++) {
        const struct shape *s = both[i];
        struct mirror x = new_x(F32, s, s->C, 3000);
        struct mirror mean = mirror_new(F32, s->B * s->G), rstd = mirror_new(F32, s->B * s->G);
        bool ok = kit_cpu->group_norm(kit_cpu_ctx(), NULL, 0, mean.f, rstd.f, x.f, s->C, F32, NULL, NULL, s->B, s->HW,
                                      s->C, s->G, 1e-5f, false) == K_OK;

        CUDA_TWICE(&rstd, ok &= kit_cuda->group_norm(kit_cuda_ctx(), NULL, 0, mean.dev, rstd.dev, x.dev, s->C, F32,
                                                     NULL, NULL, s->B, s->HW, s->C, s->G, 1e-5f, false) == K_OK);
        tap_ok(mirror_near(&mean, 3e-7, "mean") & mirror_near(&rstd, 1e-5, "rstd") && ok, "group_norm: %s", s->why);
        cuda_kit_release();
    }
}

static void layer_norm(enum dtype type, int64_t rows, int64_t D, double offset)
{
    const struct shape s = { "", rows, 1, D, 1, 0, 0, false, false };
    struct mirror x = new_x(type, &s, D, offset), y = mirror_new(type, rows * D), z = mirror_new(type, rows * D);
    struct mirror gamma = mirror_random(F32, D, 2, 1.0), beta = mirror_random(F32, D, 3, 1.0);
    struct mirror mean = mirror_new(F32, rows), rstd = mirror_new(F32, rows);
    struct kctx *k = kit_cuda_ctx();
    bool ok;

    ok = kit_cpu->layer_norm(kit_cpu_ctx(), y.f, mean.f, rstd.f, x.f, F32, gamma.f, beta.f, rows, D, 1e-5f) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->layer_norm(k, y.dev, mean.dev, rstd.dev, x.dev, type, gamma.dev, beta.dev, rows, D,
                                              1e-5f) == K_OK);
    ok &= mirror_near(&y, kit_near[type], "y") & both_near(&mean, &rstd, "layer_norm");
    for (int64_t r = 0; r < rows; r += 3)       /* some at a time */
        ok &= kit_cuda->layer_norm(k, at(&z, r * D), NULL, NULL, at(&x, r * D), type, gamma.dev, beta.dev,
                                   rows - r < 3 ? rows - r : 3, D, 1e-5f) == K_OK;
    ok &= same_bits(&y, &z);
    ok &= kit_cuda->layer_norm(k, x.dev, NULL, NULL, x.dev, type, gamma.dev, beta.dev, rows, D, 1e-5f) == K_OK;
    ok &= same_bits(&y, &x);
    tap_ok(ok, "layer_norm %s %dx%d%s", dtype_name(type), (int)rows, (int)D, cuda_kit_odd ? ", odd addresses" : "");
    cuda_kit_release();
}

static void refused(void)
{
    const struct kern *n = kit_cuda;
    struct kctx *k = kit_cuda_ctx(), small = *k;
    struct mirror x = mirror_random(F32, 64, 1, 1), m = mirror_new(F32, 64), g = mirror_random(F32, 64, 1, 1);
    float *const p = m.dev, *const q = g.dev;

#define NORM(k, ldy, ldx, type, B, HW, C, G)                                                                        \
    n->group_norm(k, x.dev, ldy, p, p + 32, x.dev, ldx, type, q, q, B, HW, C, G, 0, 0)
#define APPLY(ldy, ldx, type, B, HW, C, G)                                                                          \
    n->group_norm_apply(k, x.dev, ldy, q, q, x.dev, ldx, type, q, q, B, HW, C, G, 0)
    small.scratch_bytes = 1000;
    tap_ok(NORM(k, 8, 8, N_DTYPE, 2, 2, 8, 2) == K_ARG && NORM(k, 8, 8, F32, -1, 2, 8, 2) == K_ARG
           && NORM(k, 8, 8, F32, 2, -2, 8, 2) == K_ARG && NORM(k, 8, 8, F32, 2, 2, -8, 2) == K_ARG
           && NORM(k, 8, 8, F32, 2, 2, 8, 3) == K_ARG && NORM(k, 8, 8, F32, 2, 2, 8, 0) == K_ARG
           && NORM(k, 7, 8, F32, 2, 2, 8, 2) == K_ARG && NORM(k, 8, 7, F32, 2, 2, 8, 2) == K_ARG
           && NORM(&small, 8, 8, F32, 2, 2, 8, 2) == K_SCRATCH, "group_norm: what is refused");
    tap_ok(NORM(k, 8, 8, F32, 0, 2, 8, 2) == K_OK && NORM(k, 8, 8, F32, 2, 0, 8, 2) == K_OK
           && NORM(k, 8, 8, F32, 2, 2, 0, 2) == K_OK && APPLY(8, 8, F32, 0, 2, 8, 2) == K_OK
           && APPLY(8, 8, F32, 2, 0, 8, 2) == K_OK, "group_norm: nothing to do");
    tap_ok(APPLY(8, 8, N_DTYPE, 2, 2, 8, 2) == K_ARG && APPLY(8, 8, F32, 2, 2, 8, 3) == K_ARG
           && APPLY(7, 8, F32, 2, 2, 8, 2) == K_ARG && APPLY(8, 7, F32, 2, 2, 8, 2) == K_ARG
           && APPLY(8, 8, F32, -2, 2, 8, 2) == K_ARG, "group_norm_apply: what is refused");
    tap_ok(n->layer_norm(k, x.dev, p, NULL, x.dev, F32, q, q, 2, 8, 0) == K_ARG
           && n->layer_norm(k, x.dev, p, p, x.dev, N_DTYPE, q, q, 2, 8, 0) == K_ARG
           && n->layer_norm(k, x.dev, p, p, x.dev, F32, q, q, -2, 8, 0) == K_ARG
           && n->layer_norm(k, x.dev, p, p, x.dev, F32, q, q, 2, -8, 0) == K_ARG
           && n->layer_norm(k, x.dev, p, p, x.dev, F32, q, q, 0, 8, 0) == K_OK
           && n->layer_norm(k, x.dev, p, p, x.dev, F32, q, q, 2, 0, 0) == K_OK, "layer_norm: what is refused");
    tap_ok(mirror_near(&x, 0, "untouched"), "nothing was written");
    cuda_kit_release();
}

int main(void)
{
    static const int64_t wide[] = { 1, 3, 31, 320, 512, 513, 768, 1025, 1280, 2048, 2049, 5000 };

    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        for (int t = 0; t < N_DTYPE; t++) {
            for (size_t i = 0; i < LEN(shapes); i++)
                if (!shapes[i].big || (!odd && !cuda_kit_small()))
                    group_norm(&shapes[i], (enum dtype)t, 0.5);
            for (size_t i = 0; i < LEN(wide); i++)
                layer_norm((enum dtype)t, 11, wide[i], 0.5);
        }
    }
    if (!cuda_kit_small())
        layer_norm(BF16, 4 * 4096, 320, 0.5);
    cuda_kit_odd = false;
    far_from_zero();
    refused();
    return cuda_kit_end();
}
