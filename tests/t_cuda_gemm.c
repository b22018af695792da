/* tests/t_cuda_gemm.c: products of plain matrices on the device as on the CPU: both ways round, batches, all types. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdio.h>

#include "core/tensor.h"
#include "kernels/cuda_gemm.h"

struct gemm_case {
    const char *why;
    int64_t M, N, K, n;
    int64_t gap_a, gap_b, gap_c;
    float alpha, beta;
    enum batch { APART, SHARED_B, INTERLEAVED } batch;
};

static const struct gemm_case cases[] = {
    { "one element",           1,   1,   1, 1, 0, 0, 0, 1, 0, APART },
    { "one row",               1,  40,  77, 1, 0, 0, 0, 1, 0, APART },
    { "one column",           33,   1,  19, 2, 1, 3, 2, 0.5f, 1, APART },
    { "nothing to sum",        5,   7,   0, 2, 0, 0, 1, 1, 0.5f, APART },
    { "a tile less one",      31,  31,  31, 1, 0, 0, 0, 1, 0, APART },
    { "a tile and one",       33,  65,  33, 3, 7, 2, 1, -2, 0.5f, APART },
    { "whole vectors",        64,  80,  40, 2, 8, 0, 8, 0.3f, 0, APART },
    { "heads side by side",   20,  24,  40, 4, 0, 0, 0, 1, 0, INTERLEAVED },
    { "heads, gaps",          20,  17,   9, 3, 5, 3, 1, 1, -1, INTERLEAVED },
    { "one B for all",        13,  20,  33, 3, 0, 8, 0, 1, 1, SHARED_B },
};

/* n matrices of rows x columns: elements they span. */
static int64_t lay(const struct gemm_case *s, int64_t rows, int64_t columns, int64_t gap, bool shared, int64_t *ld,
                   int64_t *stride)
{
    *ld = (s->batch == INTERLEAVED ? s->n * columns : columns) + gap;
    *stride = shared ? 0 : s->batch == INTERLEAVED ? columns : rows * *ld + 2 * gap;
    return rows && columns ? (s->n - 1) * *stride + (rows - 1) * *ld + columns : 0;
}

struct operands {
    struct kgemm g;
    struct mirror a, b, c;
};

static struct operands operands_make(const struct gemm_case *s, bool trans_a, bool trans_b, enum dtype a, enum dtype b,
                                     enum dtype c)
{
    struct operands o = { .g = { .M = s->M, .N = s->N, .K = s->K, .n = s->n, .a_type = a, .b_type = b, .c_type = c,
                                 .trans_a = trans_a, .trans_b = trans_b, .alpha = s->alpha, .beta = s->beta } };
    struct kgemm *g = &o.g;

    o.a = mirror_random(a, lay(s, trans_a ? s->K : s->M, trans_a ? s->M : s->K, s->gap_a, false, &g->lda, &g->stride_a),
                        1, 1);
    o.b = mirror_random(b, lay(s, trans_b ? s->N : s->K, trans_b ? s->K : s->N, s->gap_b, s->batch == SHARED_B, &g->ldb,
                               &g->stride_b), 2, 1 / sqrt((double)s->K + 1));
    o.c = mirror_random(c, lay(s, s->M, s->N, s->gap_c, false, &g->ldc, &g->stride_c), 3, 1);
    return o;
}

static bool on_cpu(const struct operands *o)
{
    struct kgemm g = o->g;

    g.a = o->a.f, g.b = o->b.f, g.c = o->c.f;
    g.a_type = g.b_type = g.c_type = F32;
    return kit_cpu->gemm(kit_cpu_ctx(), &g) == K_OK;
}

/* C begins as `before`: what is between its rows stays. */
static bool on_device(struct operands *o, struct kctx *k, const void *before)
{
    struct kgemm g = o->g;

    g.a = o->a.dev, g.b = o->b.dev, g.c = o->c.dev;
    return dev_cuda_put(kit_queue, o->c.dev, before, (size_t)o->c.n * dtype_bytes(o->c.type)) == K_OK
        && kit_cuda->gemm(k, &g) == K_OK;
}

static bool check(const struct gemm_case *s, bool trans_a, bool trans_b, enum dtype a, enum dtype b, enum dtype c)
{
    struct operands o = operands_make(s, trans_a, trans_b, a, b, c);
    static unsigned char before[1 << 20];
    bool ok = dev_cuda_get(kit_queue, before, o.c.dev, (size_t)o.c.n * dtype_bytes(c)) == K_OK;

    ok &= on_cpu(&o);
    CUDA_TWICE(&o.c, ok &= on_device(&o, kit_cuda_ctx(), before));
    ok &= mirror_near(&o.c, kit_near[c], "%s: %s%s", s->why, trans_a ? "A'" : "A", trans_b ? "B'" : "B");
    cuda_kit_release();
    return ok;
}

static void test_cases(void)
{
    for (size_t i = 0; i < LEN(cases); i++)
        for (int t = 0; t < N_DTYPE; t++) {
            bool ok = true;

            for (int way = 0; way < 4; way++) {
                ok &= check(&cases[i], way & 1, way & 2, (enum dtype)t, (enum dtype)t, (enum dtype)t);
                ok &= check(&cases[i], way & 1, way & 2, (enum dtype)t, (enum dtype)t, F32);
            }
            tap_ok(ok, "%s, %s", cases[i].why, dtype_name((enum dtype)t));
        }
}

/* Types that cuBLASLt does not multiply with each other. */
static void test_mixed(void)
{
    for (size_t i = 0; i < LEN(cases); i++) {
        bool ok = true;

        for (int t = 0; t < 27; t++)
            ok &= check(&cases[i], t & 1, t & 2, (enum dtype)(t % 3), (enum dtype)(t / 3 % 3), (enum dtype)(t / 9));
        tap_ok(ok, "%s, types mixed", cases[i].why);
    }
}

/* The plain kernel stands in where cuBLASLt has no way, which must not hide that it has none at all. */
static void test_cublaslt(void)
{
    static const struct gemm_case s = { "by cuBLASLt", 64, 80, 40, 2, 8, 16, 8, 0.5f, 1, APART };

    for (int t = 0; t < N_DTYPE; t++)
        for (int way = 0; way < 4; way++) {
            struct operands o = operands_make(&s, way & 1, way & 2, (enum dtype)t, (enum dtype)t,
                                              way ? F32 : (enum dtype)t);
            struct cuda_product p = { .g = o.g };
            bool ok = on_cpu(&o);

            p.g.a = o.a.dev, p.g.b = o.b.dev, p.g.c = o.c.dev;
            ok &= lt_multiply(kit_cuda_ctx(), &p) && dev_cuda_sync(kit_queue) == K_OK;
            tap_ok(ok && mirror_near(&o.c, kit_near[o.c.type], "%s", s.why), "%s, %s, way %d", s.why,
                   dtype_name((enum dtype)t), way);
            cuda_kit_release();
        }
}

/* More shapes than are remembered, and the first ones again. */
static void test_many(void)
{
    const int64_t n = cuda_kit_small() ? 1100 : 3000;
    bool ok = true;

    for (int64_t i = 0; i < n + 50; i++) {
        const struct gemm_case s = { "many", 1 + i % n % 37, 1 + i % n / 37, 3, 1, 0, 0, 0, 1, 0, APART };
        ok &= check(&s, false, true, F32, F32, F32);
    }
    tap_ok(ok, "%d shapes", (int)n);
}

static void test_big(void)
{
    static const struct gemm_case big[] = {
        { "linear 320",     16384,  320,  320, 1, 0, 0, 0, 1, 0, APART },
        { "linear 2560",     4096, 2560,  320, 1, 0, 0, 0, 1, 0, APART },
        { "scores",          1024, 1024,  160, 8, 0, 0, 0, 0.1f, 0, APART },
        { "deep",              64, 1280, 11520, 1, 0, 0, 0, 1, 0, APART },
    };

    for (size_t i = 0; i < LEN(big) && !cuda_kit_small(); i++)
        for (int t = 0; t < N_DTYPE; t++)
            tap_ok(check(&big[i], false, true, (enum dtype)t, (enum dtype)t, F32), "%s, %s", big[i].why,
                   dtype_name((enum dtype)t));
}

static const char *spoil(struct kgemm *g, int i)
{
    switch (i) {
    case 0: return g->M = -1, "negative M";
    case 1: return g->N = -1, "negative N";
    case 2: return g->K = -1, "negative K";
    case 3: return g->n = -1, "negative n";
    case 4: return g->a_type = N_DTYPE, "no such type of A";
    case 5: return g->b_type = N_DTYPE, "no such type of B";
    case 6: return g->c_type = N_DTYPE, "no such type of C";
    case 7: return g->lda = 4, "rows of A that overlap";
    case 8: return g->ldb = 6, "rows of B that overlap";
    case 9: return g->ldc = 6, "rows of C that overlap";
    case 10: return g->trans_a = true, "rows of A' that overlap";
    case 11: return g->trans_b = true, g->ldb = 4, "rows of B' that overlap";
    default: return NULL;
    }
}

static void test_arguments(void)
{
    const struct gemm_case s = { "arguments", 6, 7, 5, 1, 0, 0, 0, 1, 0, APART };
    struct operands o = operands_make(&s, false, false, F32, F32, F32);
    struct kctx small = *kit_cuda_ctx();
    struct kgemm g;
    bool ok = true;

    for (int i = 0;; i++) {
        const char *what;

        g = o.g;
        g.a = o.a.dev, g.b = o.b.dev, g.c = o.c.dev;
        what = spoil(&g, i);
        if (!what)
            break;
        if (kit_cuda->gemm(kit_cuda_ctx(), &g) != K_ARG) {
            tap_note("takes: %s", what);
            ok = false;
        }
    }
    tap_ok(ok && mirror_near(&o.c, 0, "refused"), "what is wrong is refused, and C stays");
    for (int i = 0; i < 3; i++) {
        g = o.g;
        g.c = o.c.dev;
        *(i == 0 ? &g.M : i == 1 ? &g.N : &g.n) = 0;
        ok &= kit_cuda->gemm(kit_cuda_ctx(), &g) == K_OK;
    }
    tap_ok(ok && mirror_near(&o.c, 0, "empty"), "empty products do nothing");
    small.scratch_bytes = 4096;
    tap_ok(kit_cuda->gemm(&small, &o.g) == K_SCRATCH, "too little scratch is said");
    cuda_kit_release();
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        test_cases();
        test_mixed();
    }
    cuda_kit_odd = false;
    test_cublaslt();
    test_many();
    test_big();
    test_arguments();
    return cuda_kit_end();
}
