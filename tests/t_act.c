/* tests/t_act.c: activations and softmax against doubles; their accuracy over the whole range of an f32, which is also
 * that of the exponential and the normal tail in kernels/simd.h. The double slopes are held against differences. */
#include <math.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

static const int64_t lengths[] = { 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1023, 8192, 8193, 70001 };
static const char *const names[K_N_UNARY] = { "silu", "gelu", "quick_gelu", "relu" };

/* ---- the equations ---- */

static double value(enum kunary f, double x)
{
    switch (f) {
    case K_SILU: return x / (1 + exp(-x));
    case K_GELU: return 0.5 * x * erfc(-x / sqrt(2));
    case K_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    default: return x > 0 ? x : 0;
    }
}

static double slope(enum kunary f, double x)
{
    const double c = f == K_QUICK_GELU ? 1.702 : 1, s = 1 / (1 + exp(-c * x));

    if (f == K_RELU)
        return x > 0;
    if (f == K_GELU)
        return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
    return s + c * x * s * (1 / (1 + exp(c * x)));
}

static void test_reference(void)
{
    bool ok = true;

    for (int f = 0; f < K_RELU; f++)
        for (double x = -9; x < 9; x += 0.37) {
            const double h = 1e-5, d = (value(f, x + h) - value(f, x - h)) / (2 * h);
            ok &= fabs(d - slope(f, x)) < 1e-9;         /* h^2 and 1e-16/h */
        }
    tap_ok(ok, "the slopes agree with differences");
}

/* ---- every type, length, thread count; in place ---- */

typedef int (*run_fn)(const struct kern *kern, struct kctx *k, int what, const struct buf *y, const struct buf *dy,
                      const struct buf *x);

static int run_unary(const struct kern *kern, struct kctx *k, int f, const struct buf *y, const struct buf *dy,
                     const struct buf *x)
{
    if (dy)
        return kern->unary_back(k, f, y->p, dy->p, x->p, y->type, y->n);
    return kern->unary(k, f, y->p, x->p, y->type, y->n);
}

/* Two and three threads give the bits of y. */
static bool same_threads(const struct kern *kern, run_fn run, int what, const struct buf *y, const struct buf *dy,
                         const struct buf *x)
{
    bool ok = true;

    for (int threads = 2; threads <= 3; threads++) {
        struct buf z = buf_new(y->type, y->n);
        ok &= run(kern, kit_ctx(kern, threads), what, &z, dy, x) == K_OK && buf_same(y, &z, "threads")
            && buf_intact(&z);
        buf_free(&z);
    }
    return ok;
}

/* Values are a few f32 roundings of terms up to |x| off, slopes of terms up to 2; then one rounding to the type. */
static bool unary_case(const struct kern *kern, enum kunary f, enum dtype type, int64_t n)
{
    struct buf x = buf_random(type, n, (uint64_t)n, 3), dy = buf_random(type, n, (uint64_t)n + 1, 1);
    struct buf y = buf_new(type, n), dx = buf_new(type, n), want = buf_new(F32, n), here;
    bool ok = run_unary(kern, kit_ctx(kern, 1), f, &y, NULL, &x) == K_OK
        && run_unary(kern, kit_ctx(kern, 1), f, &dx, &dy, &x) == K_OK;

    for (int64_t i = 0; i < n; i++)
        want.v[i] = value(f, x.v[i]);
    ok &= buf_near(&y, want.v, kit_rel[type] + 1e-6, 1e-7, "%s of %lld", names[f], (long long)n) && buf_intact(&y);
    for (int64_t i = 0; i < n; i++)
        want.v[i] = dy.v[i] * slope(f, x.v[i]);
    ok &= buf_near(&dx, want.v, kit_rel[type] + 1e-6, 2e-6, "%s slope of %lld", names[f], (long long)n)
        && buf_intact(&dx);
    ok &= same_threads(kern, run_unary, f, &y, NULL, &x) && same_threads(kern, run_unary, f, &dx, &dy, &x);
    here = buf_copy(&x);
    ok &= run_unary(kern, kit_ctx(kern, 2), f, &here, NULL, &here) == K_OK && buf_same(&y, &here, "in place");
    buf_free(&here);
    here = buf_copy(&dy);
    ok &= run_unary(kern, kit_ctx(kern, 2), f, &here, &here, &x) == K_OK && buf_same(&dx, &here, "in place");
    buf_free(&here);
    buf_free(&x);
    buf_free(&dy);
    buf_free(&y);
    buf_free(&dx);
    buf_free(&want);
    return ok;
}

static void test_unary(const struct kern *kern, enum dtype type)
{
    for (int f = 0; f < K_N_UNARY; f++) {
        bool ok = true;
        for (size_t i = 0; i < LEN(lengths); i++)
            ok &= unary_case(kern, f, type, lengths[i]);
        tap_ok(ok, "%s: %s and its slope, type %d", kern->name, names[f], type);
    }
}

/* ---- accuracy in f32 ---- */

/* f on a grid of n points from lo on; the error within rel of the value plus abs. */
static bool accurate(const struct kern *kern, enum kunary f, bool back, double lo, double hi, double rel, double abs)
{
    enum { N = 40001 };
    struct buf x = buf_new(F32, N), one = buf_new(F32, N), y = buf_new(F32, N), want = buf_new(F32, N);
    bool ok;

    for (int64_t i = 0; i < N; i++) {
        buf_set(&x, i, lo + (hi - lo) * (double)i / (N - 1));
        buf_set(&one, i, 1);
        want.v[i] = back ? slope(f, x.v[i]) : value(f, x.v[i]);
    }
    ok = run_unary(kern, kit_ctx(kern, 1), f, &y, back ? &one : NULL, &x) == K_OK
        && buf_near(&y, want.v, rel, abs, "%s%s on [%g,%g]", names[f], back ? " slope" : "", lo, hi);
    buf_free(&x);
    buf_free(&one);
    buf_free(&y);
    buf_free(&want);
    return ok;
}

static void test_accuracy(const struct kern *kern)
{
    bool ok;

    /* x e/(e+1) with e = exp(x): 1e-7 of the exponential and three roundings. Below -88.7 exp(-x) is infinite and the
     * value, under 3e-37, is lost. */
    ok = accurate(kern, K_SILU, false, -110, 110, 4e-7, 3e-37) && accurate(kern, K_SILU, false, -1, 1, 4e-7, 1e-300)
        && accurate(kern, K_QUICK_GELU, false, -0.5, 0.5, 4e-7, 1e-300);
    tap_ok(ok, "%s: silu to 4e-7 over the range of the exponential", kern->name);
    /* 1.702 x is rounded, which counts |1.702 x| fold in the exponential. */
    tap_ok(accurate(kern, K_QUICK_GELU, false, -52, 60, 6e-6, 3e-37), "%s: quick_gelu", kern->name);
    /* The tail falls off below -4, where gelu is under 1.3e-4; below -5.5, where gelu is under 1.1e-7, the fit ends and
     * errors are absolute ones. */
    ok = accurate(kern, K_GELU, false, -4, 14, 1e-6, 1e-300) && accurate(kern, K_GELU, false, -5.5, -4, 5e-6, 1e-300)
        && accurate(kern, K_GELU, false, -0.01, 0.01, 4e-7, 1e-300) && accurate(kern, K_GELU, false, -20, -5, 0, 2e-9);
    tap_ok(ok, "%s: gelu to 1e-6 of its value down to -4", kern->name);
    /* The tail itself is within 1e-7, and x times the density as good. */
    ok = accurate(kern, K_GELU, true, -20, 20, 0, 2.5e-7) && accurate(kern, K_SILU, true, -110, 110, 0, 2.5e-7)
        && accurate(kern, K_QUICK_GELU, true, -60, 60, 0, 4e-7);
    tap_ok(ok, "%s: slopes", kern->name);
}

/* NaN goes through; infinities and numbers too large to square give the limits. */
static void test_special(const struct kern *kern)
{
    static const float big[] = { 1e30f, -1e30f, 3e38f, -3e38f, 0.0f, 1e-40f };
    float x[37], y[37], one[37], d[37];
    bool ok = true;

    for (int f = 0; f < K_N_UNARY; f++)
        for (int i = 0; i < 37; i++) {                  /* every lane, and the tail */
            for (int j = 0; j < 37; j++)
                x[j] = big[j % 6], one[j] = 1;
            x[i] = NAN;
            kern->unary(kit_ctx(kern, 1), f, y, x, F32, 37);
            kern->unary_back(kit_ctx(kern, 1), f, d, one, x, F32, 37);
            for (int j = 0; j < 37; j++) {
                const float top = x[j] > 0 ? x[j] : 0, low = x[j] > 1 ? 1.0f : 0.0f;
                ok &= j == i ? isnan(y[j]) : j % 6 == 5 ? y[j] >= 0 && y[j] <= x[j] : fabsf(y[j] - top) < 1e-30f;
                ok &= j == i ? f == K_RELU || isnan(d[j]) : j % 6 >= 4 ? d[j] >= 0 && d[j] <= 1 : d[j] == low
                    || fabsf(d[j] - low) < 1e-30f;
            }
        }
    x[0] = INFINITY;
    for (int f = 0; f < K_N_UNARY; f++)
        ok &= kern->unary(kit_ctx(kern, 1), f, y, x, F32, 1) == K_OK && y[0] == INFINITY;
    tap_ok(ok, "%s: NaN and huge values", kern->name);
}

/* ---- GEGLU ---- */

static const int64_t shapes[][2] = { { 1, 1 }, { 3, 7 }, { 5, 16 }, { 2, 33 }, { 40, 1280 }, { 600, 64 } };

static int run_geglu(const struct kern *kern, struct kctx *k, int D, const struct buf *y, const struct buf *dy,
                     const struct buf *x)
{
    if (dy)
        return kern->geglu_back(k, y->p, dy->p, x->p, y->type, y->n / (2 * D), D);
    return kern->geglu(k, y->p, x->p, y->type, y->n / D, D);
}

static bool geglu_case(const struct kern *kern, enum dtype type, int64_t rows, int64_t D)
{
    struct buf x = buf_random(type, 2 * rows * D, 1, 2), dy = buf_random(type, rows * D, 2, 1);
    struct buf y = buf_new(type, rows * D), dx = buf_new(type, 2 * rows * D), want = buf_new(F32, 2 * rows * D);
    bool ok = run_geglu(kern, kit_ctx(kern, 1), (int)D, &y, NULL, &x) == K_OK
        && run_geglu(kern, kit_ctx(kern, 1), (int)D, &dx, &dy, &x) == K_OK;

    for (int64_t i = 0; i < rows * D; i++) {
        const double *h = x.v + i / D * 2 * D + i % D;
        want.v[i] = h[0] * value(K_GELU, h[D]);
    }
    ok &= buf_near(&y, want.v, kit_rel[type] + 1e-6, 1e-7, "%lld x %lld", (long long)rows, (long long)D)
        && buf_intact(&y);
    for (int64_t i = 0; i < rows * D; i++) {
        const int64_t at = i / D * 2 * D + i % D;
        want.v[at] = dy.v[i] * value(K_GELU, x.v[at + D]);
        want.v[at + D] = dy.v[i] * x.v[at] * slope(K_GELU, x.v[at + D]);
    }
    /* the slope is good to 2.5e-7, and |dy h| stays below 32 */
    ok &= buf_near(&dx, want.v, kit_rel[type] + 1e-6, 8e-6, "%lld x %lld", (long long)rows, (long long)D)
        && buf_intact(&dx);
    ok &= same_threads(kern, run_geglu, (int)D, &y, NULL, &x) && same_threads(kern, run_geglu, (int)D, &dx, &dy, &x);
    buf_free(&x);
    buf_free(&dy);
    buf_free(&y);
    buf_free(&dx);
    buf_free(&want);
    return ok;
}

static void test_geglu(const struct kern *kern, enum dtype type)
{
    bool ok = true;

    for (size_t i = 0; i < LEN(shapes); i++)
        ok &= geglu_case(kern, type, shapes[i][0], shapes[i][1]);
    tap_ok(ok, "%s: geglu and its gradient, type %d", kern->name, type);
}

/* ---- softmax ---- */

static const int64_t row_lengths[] = { 1, 2, 3, 8, 15, 16, 17, 31, 33, 77, 511, 1000, 4097 };

static int run_softmax(const struct kern *kern, struct kctx *k, int D, const struct buf *y, const struct buf *dy,
                       const struct buf *x)
{
    if (dy)
        return kern->softmax_back(k, y->p, dy->p, x->p, y->type, y->n / D, D);
    return kern->softmax(k, y->p, x->p, y->type, y->n / D, D);
}

static void softmax_ref(double *y, const double *x, int64_t D)
{
    double max = -INFINITY, sum = 0;

    for (int64_t i = 0; i < D; i++)
        max = fmax(max, x[i]);
    for (int64_t i = 0; i < D; i++)
        sum += exp(x[i] - max);
    for (int64_t i = 0; i < D; i++)
        y[i] = exp(x[i] - max) / sum;
}

/* dx = y (dy - sum(dy y)); s holds the sums of |dy y| */
static void softmax_back_ref(double *dx, double *s, const double *dy, const double *y, int64_t D)
{
    double sum = 0;

    *s = 0;
    for (int64_t i = 0; i < D; i++)
        sum += dy[i] * y[i], *s += fabs(dy[i] * y[i]);
    for (int64_t i = 0; i < D; i++)
        dx[i] = y[i] * (dy[i] - sum);
}

/* Row 0 is plain, row 1 masked by -Inf but for some, row 2 wide, row 3 far from zero, row 4 one finite entry. */
static struct buf logits(enum dtype type, int64_t rows, int64_t D)
{
    struct buf x = buf_random(type, rows * D, 7, 1);

    for (int64_t r = 1; r < rows; r++)
        for (int64_t i = 0; i < D; i++) {
            const double v = x.v[r * D + i];
            if (r % 5 == 1 && i % 3 && i < D - 1)
                buf_set(&x, r * D + i, -INFINITY);
            if (r % 5 == 2)
                buf_set(&x, r * D + i, 40 * v);
            if (r % 5 == 3)
                buf_set(&x, r * D + i, 1000 + v);
            if (r % 5 == 4 && i != r % D)
                buf_set(&x, r * D + i, -INFINITY);
        }
    return x;
}

static bool softmax_case(const struct kern *kern, enum dtype type, int64_t D)
{
    const int64_t rows = D < 100 ? 33000 / D + 5 : 37;
    struct buf x = logits(type, rows, D), dy = buf_random(type, rows * D, 8, 1);
    struct buf y = buf_new(type, rows * D), dx = buf_new(type, rows * D), want = buf_new(F32, rows * D), here;
    double size, largest = 0;
    bool ok = run_softmax(kern, kit_ctx(kern, 1), (int)D, &y, NULL, &x) == K_OK;

    for (int64_t r = 0; r < rows; r++)
        softmax_ref(want.v + r * D, x.v + r * D, D);
    /* x - max is rounded: |x - max| 2^-24 of y, at most exp(-1) 2^-24 in all; the rest is 4e-7 */
    ok &= buf_near(&y, want.v, kit_rel[type] + 1e-6, 1e-7, "D %lld", (long long)D) && buf_intact(&y);
    ok &= run_softmax(kern, kit_ctx(kern, 1), (int)D, &dx, &dy, &y) == K_OK;
    for (int64_t r = 0; r < rows; r++) {
        softmax_back_ref(want.v + r * D, &size, dy.v + r * D, y.v + r * D, D);
        largest = fmax(largest, size);
    }
    ok &= buf_near(&dx, want.v, kit_rel[type] + 2e-7, 5e-7 * largest, "D %lld back", (long long)D) && buf_intact(&dx);
    ok &= same_threads(kern, run_softmax, (int)D, &y, NULL, &x)
        && same_threads(kern, run_softmax, (int)D, &dx, &dy, &y);
    here = buf_copy(&x);
    ok &= run_softmax(kern, kit_ctx(kern, 2), (int)D, &here, NULL, &here) == K_OK && buf_same(&y, &here, "in place");
    buf_free(&here);
    here = buf_copy(&dy);
    ok &= run_softmax(kern, kit_ctx(kern, 2), (int)D, &here, &here, &y) == K_OK && buf_same(&dx, &here, "in place");
    buf_free(&here);
    buf_free(&x);
    buf_free(&dy);
    buf_free(&y);
    buf_free(&dx);
    buf_free(&want);
    return ok;
}

/* The gradient's formula against differences of sum(dy softmax(x)). */
static void test_softmax_reference(void)
{
    enum { D = 5 };
    double x[D] = { 0.3, -1, 2, 0.5, 1.1 }, y[D], dy[D] = { 1, -2, 0.5, 3, 0.1 }, dx[D], s, f[2];
    bool ok = true;

    softmax_ref(y, x, D);
    softmax_back_ref(dx, &s, dy, y, D);
    for (int i = 0; i < D; i++) {
        const double h = 1e-5, was = x[i];
        for (int side = 0; side < 2; side++) {
            x[i] = was + (side ? h : -h);
            softmax_ref(y, x, D);
            f[side] = 0;
            for (int j = 0; j < D; j++)
                f[side] += dy[j] * y[j];
        }
        x[i] = was;
        ok &= fabs((f[1] - f[0]) / (2 * h) - dx[i]) < 1e-9;
    }
    tap_ok(ok, "the softmax gradient agrees with differences");
}

static void test_softmax(const struct kern *kern, enum dtype type)
{
    bool ok = true;

    for (size_t i = 0; i < LEN(row_lengths); i++)
        ok &= softmax_case(kern, type, row_lengths[i]);
    tap_ok(ok, "%s: softmax and its gradient, type %d", kern->name, type);
}

/* Rows (0, x): y1 = exp(x)/(1 + exp(x)) shows exp for negative x alone, down to 2^-126; below, it may be zero. */
static void test_exp_neg(const struct kern *kern)
{
    enum { N = 20001 };
    struct buf x = buf_new(F32, 2 * N), y = buf_new(F32, 2 * N), want = buf_new(F32, 2 * N);
    bool ok;

    for (int64_t i = 0; i < N; i++) {
        buf_set(&x, 2 * i, 0);
        buf_set(&x, 2 * i + 1, -87.3 * (double)i / (N - 1));
        want.v[2 * i + 1] = exp(x.v[2 * i + 1]) / (1 + exp(x.v[2 * i + 1]));
        want.v[2 * i] = 1 / (1 + exp(x.v[2 * i + 1]));
    }
    ok = run_softmax(kern, kit_ctx(kern, 1), 2, &y, NULL, &x) == K_OK
        && buf_near(&y, want.v, 3e-7, 0, "exp for negative x");
    for (int64_t i = 0; i < N; i++)
        buf_set(&x, 2 * i + 1, i ? -87.34 - 100.0 * (double)i / N : -INFINITY);
    ok &= run_softmax(kern, kit_ctx(kern, 1), 2, &y, NULL, &x) == K_OK;
    buf_read(&y);
    for (int64_t i = 0; i < N; i++)
        ok &= y.v[2 * i] == 1 && y.v[2 * i + 1] >= 0 && y.v[2 * i + 1] < 0x1.01p-126;
    tap_ok(ok, "%s: exp of negative numbers to 3e-7", kern->name);
    buf_free(&x);
    buf_free(&y);
    buf_free(&want);
}

/* A NaN spoils its row, wherever it stands, and no other. */
static void test_softmax_nan(const struct kern *kern)
{
    enum { D = 37 };
    float x[3 * D], y[3 * D];
    bool ok = true;

    for (int at = 0; at < D; at++) {
        for (int i = 0; i < 3 * D; i++)
            x[i] = (float)(i % 7);
        x[D + at] = NAN;
        kern->softmax(kit_ctx(kern, 1), y, x, F32, 3, D);
        for (int i = 0; i < 3 * D; i++)
            ok &= isnan(y[i]) == (i / D == 1);
    }
    tap_ok(ok, "%s: a NaN spoils its row of a softmax and no other", kern->name);
}

static void test_arguments(const struct kern *kern)
{
    struct kctx *k = kit_ctx(kern, 1);
    float p[4];
    bool ok = kern->unary(k, K_N_UNARY, p, p, F32, 4) == K_ARG && kern->unary(k, K_SILU, p, p, N_DTYPE, 4) == K_ARG
        && kern->unary(k, K_SILU, p, p, F32, -1) == K_ARG && kern->unary(k, K_SILU, NULL, NULL, F32, 0) == K_OK;

    ok &= kern->unary_back(k, K_N_UNARY, p, p, p, F32, 4) == K_ARG
        && kern->unary_back(k, K_SILU, p, p, p, F32, -4) == K_ARG
        && kern->unary_back(k, K_SILU, NULL, NULL, NULL, F32, 0) == K_OK;
    ok &= kern->geglu(k, p, p, F32, -1, 1) == K_ARG && kern->geglu(k, NULL, NULL, F32, 3, 0) == K_OK
        && kern->geglu_back(k, p, p, p, F32, 1, -1) == K_ARG
        && kern->geglu_back(k, NULL, NULL, NULL, F32, 0, 3) == K_OK;
    ok &= kern->softmax(k, p, p, F32, 1, -1) == K_ARG && kern->softmax(k, NULL, NULL, F32, 3, 0) == K_OK
        && kern->softmax_back(k, p, p, p, N_DTYPE, 1, 1) == K_ARG
        && kern->softmax_back(k, NULL, NULL, NULL, F32, 0, 3) == K_OK;
    tap_ok(ok, "%s: bad arguments are refused, sizes of 0 do nothing", kern->name);
}

int main(void)
{
    const struct kern *kern;

    test_reference();
    test_softmax_reference();
    for (int i = 0; (kern = kit_twin(i)); i++) {
        for (int t = 0; t < N_DTYPE; t++) {
            test_unary(kern, (enum dtype)t);
            test_geglu(kern, (enum dtype)t);
            test_softmax(kern, (enum dtype)t);
        }
        test_accuracy(kern);
        test_special(kern);
        test_exp_neg(kern);
        test_softmax_nan(kern);
        test_arguments(kern);
    }
    return tap_done();
}
