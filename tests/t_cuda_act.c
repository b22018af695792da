/* tests/t_cuda_act.c: activations and softmax, on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

/* One rounding on the way out; f32: exponentials and error functions of a few units in the last place. */
static const double near[N_DTYPE] = { 2e-6, 0x1p-11, 0x1p-8 };

static const struct {
    enum kunary f;
    const char *name;
} functions[] = { { K_SILU, "silu" }, { K_GELU, "gelu" }, { K_QUICK_GELU, "quick_gelu" }, { K_RELU, "relu" } };

static void unary_one(int f, enum dtype t, int64_t n, double scale)
{
    const enum kunary as = functions[f].f;
    struct mirror x = mirror_random(t, n, (uint64_t)n, scale), y = mirror_new(t, n), z = mirror_of(t, n, x.f);
    bool ok = kit_cpu->unary(kit_cpu_ctx(), as, y.f, x.f, F32, n) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->unary(kit_cuda_ctx(), as, y.dev, x.dev, t, n) == K_OK);
    ok &= kit_cuda->unary(kit_cuda_ctx(), as, z.dev, z.dev, t, n) == K_OK;
    z.f = y.f;
    ok &= mirror_near(&y, near[t], "%s", functions[f].name) && mirror_near(&z, near[t], "in place");
    tap_ok(ok, "%s %s %lld, values to %g", functions[f].name, dtype_name(t), (long long)n, 4 * scale);
    cuda_kit_release();
}

static void unary(int f, enum dtype t)
{
    static const int64_t sizes[] = { 1, 7, 8, 9, 255, 2049, 10007 };

    for (size_t i = 0; i < LEN(sizes); i++)
        unary_one(f, t, sizes[i], 2);
    unary_one(f, t, 4096, 30);
    if (!cuda_kit_small())
        unary_one(f, t, (int64_t)4 * 4096 * 320 + 3, 2);
}

/* Where exponentials overflow and underflow, every value by itself. */
static void unary_edges(int f)
{
    static const float x0[] = {
        -INFINITY, -0x1p127f, -1e4f, -127, -104, -89, -88.7f, -88, -87.3f, -50, -20, -10, -5, -1, -1e-3f, -1e-30f, 0,
        1e-30f, 1e-3f, 1, 5, 10, 20, 50, 89, 1e4f, 0x1p127f, INFINITY
    };
    struct mirror x = mirror_of(F32, LEN(x0), x0), y = mirror_new(F32, LEN(x0));
    float want[LEN(x0)], got[LEN(x0)];
    bool ok = kit_cpu->unary(kit_cpu_ctx(), functions[f].f, want, x.f, F32, x.n) == K_OK
           && kit_cuda->unary(kit_cuda_ctx(), functions[f].f, y.dev, x.dev, F32, x.n) == K_OK;

    mirror_read(&y, got);
    for (size_t i = 1; i < LEN(x0); i++)        /* -Inf times 0: NaN or 0, nobody's business */
        if (!(got[i] == want[i] || fabsf(got[i] - want[i]) <= 1e-5f * fabsf(want[i]) + 1e-6f)) {
            tap_note("of %g: %g, not %g", (double)x0[i], (double)got[i], (double)want[i]);
            ok = false;
        }
    tap_ok(ok, "%s at the edges", functions[f].name);
    cuda_kit_release();
}

static void nan_through(int f)
{
    static const float x0[] = { 1, NAN, 2, -3, NAN };
    bool ok = true;

    for (int t = 0; t < N_DTYPE; t++) {
        struct mirror x = mirror_of((enum dtype)t, LEN(x0), x0);
        float got[LEN(x0)];

        ok &= kit_cuda->unary(kit_cuda_ctx(), functions[f].f, x.dev, x.dev, x.type, x.n) == K_OK;
        mirror_read(&x, got);
        for (size_t i = 0; i < LEN(x0); i++)
            ok &= isnan(got[i]) == isnan(x0[i]);
    }
    tap_ok(ok, "%s lets NaN through", functions[f].name);
    cuda_kit_release();
}

static void geglu_one(enum dtype t, int64_t rows, int64_t D)
{
    struct mirror x = mirror_random(t, 2 * rows * D, (uint64_t)D, 2), y = mirror_new(t, rows * D);
    bool ok = kit_cpu->geglu(kit_cpu_ctx(), y.f, x.f, F32, rows, D) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->geglu(kit_cuda_ctx(), y.dev, x.dev, t, rows, D) == K_OK);
    tap_ok(mirror_near(&y, near[t], "geglu") && ok, "geglu %s %lldx%lld", dtype_name(t), (long long)rows, (long long)D);
    cuda_kit_release();
}

static void geglu(enum dtype t)
{
    static const int64_t shape[][2] = { { 1, 1 }, { 7, 3 }, { 5, 8 }, { 3, 12 }, { 2, 1280 }, { 11, 333 } };

    for (size_t i = 0; i < LEN(shape); i++)
        geglu_one(t, shape[i][0], shape[i][1]);
    if (!cuda_kit_small()) {
        geglu_one(t, 4 * 4096, 1280);
        geglu_one(t, 4 * 64, 5120);
    }
}

/* The same rows elsewhere in memory, one by one: sums must not depend on how elements are fetched. */
static bool same_bits_elsewhere(const struct mirror *x, const struct mirror *y, int64_t rows, int64_t D)
{
    const bool odd = cuda_kit_odd;
    const size_t bytes = (size_t)(rows * D) * dtype_bytes(x->type);
    struct mirror from, to;
    unsigned char *a = malloc(bytes), *b = malloc(bytes);
    bool ok = a && b;

    cuda_kit_odd = !odd;
    from = mirror_of(x->type, x->n, x->f);
    to = mirror_new(x->type, x->n);
    cuda_kit_odd = odd;
    for (int64_t r = 0; r < rows; r++) {
        const size_t at = (size_t)(r * D) * dtype_bytes(x->type);
        ok &= kit_cuda->softmax(kit_cuda_ctx(), (char *)to.dev + at, (char *)from.dev + at, x->type, 1, D) == K_OK;
    }
    ok = ok && !dev_cuda_get(kit_queue, a, y->dev, bytes) && !dev_cuda_get(kit_queue, b, to.dev, bytes)
      && !memcmp(a, b, bytes);
    free(a);
    free(b);
    return ok;
}

static void softmax_one(enum dtype t, int64_t rows, int64_t D, double scale)
{
    struct mirror x = mirror_random(t, rows * D, (uint64_t)D, scale), y = mirror_new(t, rows * D);
    struct mirror z = mirror_of(t, x.n, x.f);
    bool ok = kit_cpu->softmax(kit_cpu_ctx(), y.f, x.f, F32, rows, D) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->softmax(kit_cuda_ctx(), y.dev, x.dev, t, rows, D) == K_OK);
    ok &= kit_cuda->softmax(kit_cuda_ctx(), z.dev, z.dev, t, rows, D) == K_OK;
    z.f = y.f;
    ok &= mirror_near(&y, near[t], "softmax") && mirror_near(&z, near[t], "in place");
    if (rows < 100)
        ok &= same_bits_elsewhere(&x, &y, rows, D);
    tap_ok(ok, "softmax %s %lldx%lld, values to %g", dtype_name(t), (long long)rows, (long long)D, 4 * scale);
    cuda_kit_release();
}

static void softmax(enum dtype t)
{
    static const int64_t shape[][2] = {
        { 1, 1 }, { 3, 2 }, { 9, 7 }, { 5, 31 }, { 17, 77 }, { 8, 256 }, { 7, 1016 }, { 3, 1023 }, { 3, 1024 },
        { 2, 1025 }, { 2, 2311 }, { 2, 4096 }
    };

    for (size_t i = 0; i < LEN(shape); i++)
        softmax_one(t, shape[i][0], shape[i][1], 3);
    softmax_one(t, 5, 100, 40);
    if (!cuda_kit_small()) {
        softmax_one(t, 8 * 4096, 77, 3);
        softmax_one(t, 4096, 4096, 3);
    }
}

/* A NaN or +Inf spoils its row only; -Inf is a weight of 0. Large values do not overflow. */
static void softmax_edges(enum dtype t)
{
    const float x0[] = {
        1, NAN, 2, 3, INFINITY, 2, -INFINITY, 0, 0, -INFINITY, -INFINITY, -INFINITY, 6e4f, 6e4f, -6e4f
    };
    struct mirror x = mirror_of(t, LEN(x0), x0);
    float got[LEN(x0)];
    bool ok = kit_cuda->softmax(kit_cuda_ctx(), x.dev, x.dev, t, 5, 3) == K_OK;

    mirror_read(&x, got);
    for (int i = 0; i < 3; i++)
        ok &= isnan(got[i]) && isnan(got[9 + i]);
    ok &= isnan(got[4]) && got[6] == 0 && got[7] == 0.5f && got[8] == 0.5f;
    ok &= got[12] == 0.5f && got[13] == 0.5f && got[14] == 0;
    tap_ok(ok, "softmax %s at the edges", dtype_name(t));
    cuda_kit_release();
}

static void wrong_arguments(void)
{
    const struct kern *c = kit_cuda;
    struct kctx *k = kit_cuda_ctx();
    void *y = mirror_space(64);
    struct dev_cuda_counts before, after;
    bool ok;

    tap_ok(c->unary(k, K_N_UNARY, y, y, F32, 1) == K_ARG && c->unary(k, (enum kunary)-1, y, y, F32, 1) == K_ARG
           && c->unary(k, K_SILU, y, y, N_DTYPE, 1) == K_ARG && c->unary(k, K_SILU, y, y, F32, -1) == K_ARG,
           "unary refuses");
    tap_ok(c->geglu(k, y, y, F32, -1, 1) == K_ARG && c->geglu(k, y, y, F32, 1, -1) == K_ARG
           && c->geglu(k, y, y, N_DTYPE, 1, 1) == K_ARG, "geglu refuses");
    tap_ok(c->softmax(k, y, y, F32, -1, 1) == K_ARG && c->softmax(k, y, y, F32, 1, -1) == K_ARG
           && c->softmax(k, y, y, N_DTYPE, 1, 1) == K_ARG, "softmax refuses");
    dev_cuda_counts(kit_queue, &before);
    ok = !c->unary(k, K_RELU, NULL, NULL, F16, 0) && !c->geglu(k, NULL, NULL, F32, 0, 4)
      && !c->geglu(k, NULL, NULL, F32, 4, 0) && !c->softmax(k, NULL, NULL, BF16, 0, 4)
      && !c->softmax(k, NULL, NULL, BF16, 4, 0);
    dev_cuda_counts(kit_queue, &after);
    tap_ok(ok && after.launches == before.launches, "sizes of 0 launch nothing");
    cuda_kit_release();
}

static void all_of(enum dtype t)
{
    for (int f = 0; f < (int)LEN(functions); f++)
        unary(f, t);
    geglu(t);
    softmax(t);
    softmax_edges(t);
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        for (int t = 0; t < N_DTYPE; t++)
            all_of((enum dtype)t);
    }
    for (int f = 0; f < (int)LEN(functions); f++) {
        unary_edges(f);
        nan_through(f);
    }
    wrong_arguments();
    return cuda_kit_end();
}
