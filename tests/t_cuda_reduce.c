/* tests/t_cuda_reduce.c: sums and losses, on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

/* One, primes, around a leaf, around a block, several blocks. */
static const int64_t sizes[] = { 1, 7, 8, 9, 61, 255, 8191, 8192, 8193, 100003, 999424 };

/* About 0.7 on average, so that a sum is not what its terms leave of each other. */
static struct mirror values(enum dtype type, int64_t n, uint64_t seed)
{
    float *v = malloc(sizeof *v * (size_t)n);
    struct mirror m;

    seed = seed * 977 + (uint64_t)n;
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)(0.7 + kit_normal(&seed));
    m = mirror_of(type, n, v);
    free(v);
    return m;
}

static void *at(const struct mirror *m, int64_t i) { return (char *)m->dev + (size_t)i * dtype_bytes(m->type); }

static int64_t random_size(int i)
{
    static uint64_t seed = 11;

    return i < (int)LEN(sizes) ? sizes[i] : 1 + (int64_t)fabs(kit_normal(&seed) * 20000);
}

static void scalars(enum dtype type, int64_t n)
{
    struct mirror x = values(type, n, 1), z = values(type, n, 2), a = mirror_new(F32, 1), b = mirror_new(F32, 1);
    struct mirror c = mirror_new(F32, 1);
    struct kctx *k = kit_cuda_ctx(), *h = kit_cpu_ctx();
    bool ok = kit_cpu->sum(h, a.f, x.f, F32, n) == K_OK && kit_cpu->sum_squares(h, b.f, x.f, F32, n) == K_OK
        && kit_cpu->dot(h, c.f, x.f, z.f, F32, n) == K_OK;

    CUDA_TWICE(&a, ok &= kit_cuda->sum(k, a.dev, x.dev, type, n) == K_OK);
    CUDA_TWICE(&b, ok &= kit_cuda->sum_squares(k, b.dev, x.dev, type, n) == K_OK);
    CUDA_TWICE(&c, ok &= kit_cuda->dot(k, c.dev, x.dev, z.dev, type, n) == K_OK);
    ok &= mirror_near(&a, 2e-6, "sum") & mirror_near(&b, 2e-6, "sum_squares") & mirror_near(&c, 2e-6, "dot");
    tap_ok(ok, "sum, sum_squares, dot %s %d%s", dtype_name(type), (int)n, cuda_kit_odd ? ", odd addresses" : "");
    cuda_kit_release();
}

/* The same values elsewhere: the order of a sum is that of the sizes alone. */
static void same_elsewhere(enum dtype type)
{
    const int64_t n = 30011;
    struct mirror x = values(type, n, 3), y = mirror_new(type, n + 8);
    float s[9];
    bool ok = true;
    struct mirror out = mirror_new(F32, 9);

    for (int i = 0; i < 9; i++) {
        unsigned char *bytes = malloc((size_t)n * dtype_bytes(type));

        ok &= !dev_cuda_get(kit_queue, bytes, x.dev, (size_t)n * dtype_bytes(type))
            && !dev_cuda_put(kit_queue, at(&y, i % 8), bytes, (size_t)n * dtype_bytes(type));
        free(bytes);
        ok &= kit_cuda->sum(kit_cuda_ctx(), (float *)out.dev + i, at(&y, i % 8), type, n) == K_OK;
    }
    mirror_read(&out, s);
    for (int i = 1; i < 9; i++)
        ok &= !memcmp(&s[0], &s[i], sizeof *s);
    tap_ok(ok, "sum %s: the same bits at every address", dtype_name(type));
    cuda_kit_release();
}

static void nonfinite(enum dtype type, int64_t n)
{
    float *v = calloc((size_t)n, sizeof *v);
    struct mirror x;
    void *out = mirror_space(sizeof(int64_t));
    int64_t want = 0, got = -1;
    bool ok;

    for (int64_t i = 0; i < n; i += 1 + i / 3) {
        v[i] = i % 3 == 0 ? INFINITY : i % 3 == 1 ? -INFINITY : NAN;
        want++;
    }
    x = mirror_of(type, n, v);
    ok = kit_cuda->count_nonfinite(kit_cuda_ctx(), out, x.dev, type, n) == K_OK;
    ok &= !dev_cuda_get(kit_queue, &got, out, sizeof got);
    tap_ok(ok && got == want, "count_nonfinite %s %d: %d, want %d", dtype_name(type), (int)n, (int)got, (int)want);
    free(v);
    cuda_kit_release();
}

static const struct cols {
    int64_t B, HW, C, pad;
    bool big;
} cols[] = {
    { 1, 1, 1, 0, false },     { 2, 3, 5, 2, false },      { 3, 64, 320, 0, false }, { 1, 1000, 37, 0, false },
    { 2, 511, 8, 8, false },   { 1, 2, 5200, 0, false },   { 5, 77, 40, 3, false },  { 1, 4099, 320, 8, true },
    { 1, 70000, 24, 0, false }, { 64, 4096, 320, 0, true }, { 2, 64, 1280, 0, true },
};

static void columns(const struct cols *s, enum dtype type)
{
    const int64_t rows = s->B * s->HW, ldx = s->C + s->pad;
    struct mirror x = values(type, rows * ldx, 1), out = mirror_random(F32, s->C, 5, 10), sum = mirror_new(F32, s->C);
    struct mirror image = mirror_new(type, s->B * s->C), one = mirror_new(type, s->B * s->C);
    void *work = mirror_space(kit_cuda->col_sum_bytes(rows, s->C)), *space = malloc(kit_cpu->col_sum_bytes(rows, s->C));
    float *a = malloc(sizeof *a * (size_t)(2 * image.n));
    struct kctx *k = kit_cuda_ctx(), *h = kit_cpu_ctx();
    bool ok = kit_cpu->col_sum(h, sum.f, false, x.f, ldx, F32, rows, s->C, space) == K_OK
        && kit_cpu->col_sum(h, out.f, true, x.f, ldx, F32, rows, s->C, space) == K_OK
        && kit_cpu->image_sum(h, image.f, x.f, ldx, F32, s->B, s->HW, s->C) == K_OK;

    CUDA_TWICE(&sum, ok &= kit_cuda->col_sum(k, sum.dev, false, x.dev, ldx, type, rows, s->C, work) == K_OK);
    ok &= kit_cuda->col_sum(k, out.dev, true, x.dev, ldx, type, rows, s->C, work) == K_OK;
    CUDA_TWICE(&image, ok &= kit_cuda->image_sum(k, image.dev, x.dev, ldx, type, s->B, s->HW, s->C) == K_OK);
    ok &= mirror_near(&sum, 2e-6, "col_sum") & mirror_near(&out, 2e-6, "col_sum accumulates")
        & mirror_near(&image, kit_near[type], "image_sum");
    for (int64_t b = 0; b < s->B; b++)          /* an image alone */
        ok &= kit_cuda->image_sum(k, at(&one, b * s->C), at(&x, b * s->HW * ldx), ldx, type, 1, s->HW, s->C) == K_OK;
    mirror_read(&image, a);
    mirror_read(&one, a + image.n);
    ok &= !memcmp(a, a + image.n, sizeof *a * (size_t)image.n);
    tap_ok(ok, "col_sum, image_sum %s %dx%dx%d+%d%s", dtype_name(type), (int)s->B, (int)s->HW, (int)s->C, (int)s->pad,
           cuda_kit_odd ? ", odd addresses" : "");
    free(a);
    free(space);
    cuda_kit_release();
}

static void mse(enum dtype type, int64_t B, int64_t HW, int64_t C, bool masked)
{
    const int64_t n = HW * C;
    struct mirror x = values(type, B * n, 1), z = values(type, B * n, 2), w = values(F32, B, 3);
    struct mirror m = masked ? values(F32, B * HW, 4) : (struct mirror){ .dev = NULL };
    struct mirror out = mirror_new(F32, B), one = mirror_new(F32, B);
    struct kctx *k = kit_cuda_ctx();
    float *a = malloc(sizeof *a * (size_t)(2 * B));
    bool ok = kit_cpu->mse(kit_cpu_ctx(), out.f, x.f, z.f, F32, w.f, m.f, B, HW, C) == K_OK;

    CUDA_TWICE(&out, ok &= kit_cuda->mse(k, out.dev, x.dev, z.dev, type, w.dev, m.dev, B, HW, C) == K_OK);
    ok &= mirror_near(&out, 2e-6, "mse");
    for (int64_t b = 0; b < B; b++)             /* an image alone */
        ok &= kit_cuda->mse(k, at(&one, b), at(&x, b * n), at(&z, b * n), type, at(&w, b),
                            masked ? at(&m, b * HW) : NULL, 1, HW, C) == K_OK;
    mirror_read(&out, a);
    mirror_read(&one, a + B);
    ok &= !memcmp(a, a + B, sizeof *a * (size_t)B);
    tap_ok(ok, "mse %s %dx%dx%d%s%s", dtype_name(type), (int)B, (int)HW, (int)C, masked ? " masked" : "",
           cuda_kit_odd ? ", odd addresses" : "");
    free(a);
    cuda_kit_release();
}

static void refused(void)
{
    const struct kern *n = kit_cuda;
    struct kctx *k = kit_cuda_ctx(), small = *k;
    struct mirror x = mirror_random(F32, 64, 1, 1);
    float *const p = x.dev;
    const enum dtype bad = N_DTYPE;

    small.scratch_bytes = 1000;
    tap_ok(n->sum(k, p, p, bad, 4) == K_ARG && n->sum(k, p, p, F32, -4) == K_ARG && n->sum(k, p, p, F32, 0) == K_OK
           && n->sum_squares(k, p, p, bad, 4) == K_ARG && n->sum_squares(k, p, p, F32, -4) == K_ARG
           && n->dot(k, p, p, p, bad, 4) == K_ARG && n->dot(k, p, p, p, F32, -4) == K_ARG
           && n->count_nonfinite(k, (int64_t *)(void *)p, p, bad, 4) == K_ARG
           && n->count_nonfinite(k, (int64_t *)(void *)p, p, F32, -4) == K_ARG, "sums: what is refused");
    tap_ok(n->sum(&small, p, p, F32, 4) == K_SCRATCH && n->image_sum(&small, p, p, 4, F32, 2, 2, 4) == K_SCRATCH
           && n->mse(&small, p, p, p, F32, p, NULL, 2, 2, 4) == K_SCRATCH, "too little scratch");
    tap_ok(n->col_sum(k, p, false, p, 4, bad, 2, 4, p) == K_ARG && n->col_sum(k, p, false, p, 3, F32, 2, 4, p) == K_ARG
           && n->col_sum(k, p, false, p, 4, F32, -2, 4, p) == K_ARG
           && n->col_sum(k, p, false, p, 4, F32, 2, -4, p) == K_ARG
           && n->col_sum(k, p, false, p, 4, F32, 0, 4, p) == K_OK && n->col_sum(k, p, false, p, 4, F32, 2, 0, p) == K_OK
           && !n->col_sum_bytes(0, 4) && !n->col_sum_bytes(4, 0), "col_sum: what is refused");
    tap_ok(n->image_sum(k, p, p, 4, bad, 2, 2, 4) == K_ARG && n->image_sum(k, p, p, 3, F32, 2, 2, 4) == K_ARG
           && n->image_sum(k, p, p, 4, F32, -2, 2, 4) == K_ARG && n->image_sum(k, p, p, 4, F32, 0, 2, 4) == K_OK
           && n->mse(k, p, p, p, bad, p, NULL, 2, 2, 4) == K_ARG && n->mse(k, p, p, p, F32, p, NULL, -2, 2, 4) == K_ARG
           && n->mse(k, p, p, p, F32, p, NULL, 2, -2, -4) == K_ARG
           && n->mse(k, p, p, p, F32, p, NULL, 2, 2, 0) == K_OK, "image_sum, mse: what is refused");
    tap_ok(mirror_near(&x, 0, "untouched"), "nothing was written");
    cuda_kit_release();
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int t = 0; t < N_DTYPE; t++)
        for (int odd = 0; odd < 2; odd++) {
            const enum dtype type = (enum dtype)t;

            cuda_kit_odd = odd;
            for (int i = 0; i < (int)LEN(sizes) + 5; i++)
                scalars(type, random_size(i));
            nonfinite(type, 1);
            nonfinite(type, 8195);
            nonfinite(type, 70001);
            for (size_t i = 0; i < LEN(cols); i++)
                if (!cols[i].big || (!odd && !cuda_kit_small()))
                    columns(&cols[i], type);
            for (int masked = 0; masked < 2; masked++) {
                mse(type, 1, 1, 1, masked);
                mse(type, 3, 1021, 4, masked);
                mse(type, 2, 4096, 4, masked);
                mse(type, 5, 13, 3, masked);
            }
        }
    cuda_kit_odd = false;
    for (int t = 0; t < N_DTYPE; t++)
        same_elsewhere((enum dtype)t);
    refused();
    return cuda_kit_end();
}
