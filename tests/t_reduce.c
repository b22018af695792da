/* tests/t_reduce.c: sums and losses against doubles. A kernel adds a term through at most 11 f32 roundings and rounds
 * the result once, so sums are held to 12 * 2^-24 of the sum of magnitudes, whatever their length. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

static const double share = 12 * 0x1p-24;       /* of the sum of magnitudes */

static const int64_t lengths[] = { 1, 2, 7, 15, 16, 17, 63, 64, 65, 255, 257, 1023, 1024, 1031, 16384, 16385, 200003 };

static bool near(double got, double want, double magnitude, const char *what, int64_t n)
{
    if (fabs(got - want) <= share * magnitude + 1e-45)
        return true;
    tap_note("%s of %lld: %.9g, want %.9g", what, (long long)n, got, want);
    return false;
}

/* sum, sum of squares, dot: three results and their magnitudes. */
static void reference(const struct buf *x, const struct buf *z, double want[3], double size[3])
{
    memset(want, 0, 3 * sizeof *want);
    memset(size, 0, 3 * sizeof *size);
    for (int64_t i = 0; i < x->n; i++) {
        const double a = x->v[i], b = z->v[i];
        want[0] += a, want[1] += a * a, want[2] += a * b;
        size[0] += fabs(a), size[1] += a * a, size[2] += fabs(a * b);
    }
}

static bool three(const struct kern *kern, int threads, float out[3], const struct buf *x, const struct buf *z)
{
    struct kctx *k = kit_ctx(kern, threads);

    out[0] = out[1] = out[2] = NAN;
    return kern->sum(k, &out[0], x->p, x->type, x->n) == K_OK
        && kern->sum_squares(k, &out[1], x->p, x->type, x->n) == K_OK
        && kern->dot(k, &out[2], x->p, z->p, x->type, x->n) == K_OK;
}

static void test_sums(const struct kern *kern, enum dtype type)
{
    bool ok = true;

    for (size_t i = 0; i < LEN(lengths); i++) {
        struct buf x = buf_random(type, lengths[i], 10 + i, 1), z = buf_random(type, lengths[i], 50 + i, 3);
        double want[3], size[3];
        float got[3], again[3];
        reference(&x, &z, want, size);
        ok &= three(kern, 1, got, &x, &z);
        ok &= near((double)got[0], want[0], size[0], "sum", x.n);
        ok &= near((double)got[1], want[1], size[1], "sum of squares", x.n);
        ok &= near((double)got[2], want[2], size[2], "dot", x.n);
        for (int threads = 2; threads <= 3; threads++)
            ok &= three(kern, threads, again, &x, &z) && !memcmp(got, again, sizeof got);
        buf_free(&x);
        buf_free(&z);
    }
    tap_ok(ok, "%s: sum, sum of squares, dot; type %d", kern->name, type);
}

/* 50 million numbers, whose f32 running sum would stop growing: all positive, so the relative error itself is held to
 * 1e-6. One instruction set per call; plain memory, as the doubles of a struct buf would be too many. */
static void test_long(const struct kern *kern)
{
#if defined(__SANITIZE_ADDRESS__)
    const int64_t n = 5000000;                  /* slow enough */
#else
    const int64_t n = 50000000;
#endif
    float *x = malloc(sizeof *x * (size_t)n), got = 0, squares = 0;
    double want = 0, want_squares = 0;
    uint32_t u = 1;

    for (int64_t i = 0; i < n; i++) {
        u = u * 1664525u + 1013904223u;
        x[i] = 0.1f + (float)(u >> 8) * 0x1p-28f;
        want += (double)x[i];
        want_squares += (double)x[i] * (double)x[i];
    }
    kern->sum(kit_ctx(kern, 2), &got, x, F32, n);
    kern->sum_squares(kit_ctx(kern, 2), &squares, x, F32, n);
    tap_ok(fabs((double)got / want - 1) < 1e-6 && fabs((double)squares / want_squares - 1) < 1e-6,
           "%s: %lld terms, relative errors %.1e %.1e", kern->name, (long long)n, (double)got / want - 1,
           (double)squares / want_squares - 1);
    free(x);
}

/* The sum of a constant is where rounding errors line up. */
static void test_constant(const struct kern *kern)
{
    const int64_t n = 3000001;
    float *x = malloc(sizeof *x * (size_t)n), got = 0;
    double worst = 0;

    for (int c = 1; c <= 20; c++) {
        for (int64_t i = 0; i < n; i++)
            x[i] = (float)c / 21;
        kern->sum(kit_ctx(kern, 2), &got, x, F32, n);
        worst = fmax(worst, fabs((double)got / ((double)x[0] * (double)n) - 1));
    }
    tap_ok(worst < 1e-6, "%s: constants, worst relative error %.1e", kern->name, worst);
    free(x);
}

static void test_nonfinite(const struct kern *kern, enum dtype type)
{
    static const uint32_t bad32[] = { 0x7f800000, 0xff800000, 0x7f800001, 0xffffffff, 0x7fc00000 };
    static const uint16_t bad16[][5] = { { 0x7c00, 0xfc00, 0x7c01, 0xffff, 0x7e00 },
                                         { 0x7f80, 0xff80, 0x7f81, 0xffff, 0x7fc0 } };
    bool ok = true;

    for (size_t l = 0; l < LEN(lengths); l++) {
        const int64_t n = lengths[l];
        struct buf x = buf_random(type, n, l, 1);
        int64_t want = 0, got = -1;
        for (int64_t i = n - 1; i >= 0; i -= 1 + i / 3) {       /* the last element always */
            const size_t b = (size_t)want % 5;
            memcpy((char *)x.p + (size_t)i * dtype_bytes(type),
                   type == F32 ? (const void *)&bad32[b] : (const void *)&bad16[type - F16][b], dtype_bytes(type));
            want++;
        }
        ok &= kern->count_nonfinite(kit_ctx(kern, 2), &got, x.p, type, n) == K_OK && got == want;
        buf_free(&x);
        x = buf_random(type, n, l, type == F16 ? 1e4 : 1e30);
        ok &= kern->count_nonfinite(kit_ctx(kern, 3), &got, x.p, type, n) == K_OK && got == 0;
        buf_free(&x);
    }
    tap_ok(ok, "%s: Inf and NaN are counted, large numbers are not; type %d", kern->name, type);
}

/* ---- columns ---- */

static const struct { int64_t B, rows, C, ld; } shapes[] = {
    { 1, 1, 1, 1 }, { 2, 7, 3, 5 }, { 1, 8, 16, 16 }, { 3, 9, 17, 40 }, { 2, 64, 65, 65 }, { 1, 4097, 4, 4 },
    { 2, 1031, 130, 131 }, { 1, 20000, 33, 33 }, { 1, 77, 2561, 2561 },
};

static void test_col_sum(const struct kern *kern, enum dtype type)
{
    bool ok = true;

    for (size_t s = 0; s < LEN(shapes); s++) {
        const int64_t rows = shapes[s].rows, C = shapes[s].C, ld = shapes[s].ld;
        struct buf x = buf_random(type, (rows - 1) * ld + C, s, 1), out = buf_random(F32, C, 40 + s, 10);
        struct buf same = buf_copy(&out), work = buf_raw(kern->col_sum_bytes(rows, C));
        double *want = malloc(sizeof *want * (size_t)C), largest = 0;
        for (int add = 1; add >= 0; add--) {                    /* onto random numbers, then over poison */
            for (int64_t c = 0; c < C; c++) {
                double size = 0;
                want[c] = add ? out.v[c] : 0;
                for (int64_t r = 0; r < rows; r++) {
                    want[c] += x.v[r * ld + c];
                    size += fabs(x.v[r * ld + c]);
                }
                largest = fmax(largest, size);
            }
            ok &= kern->col_sum(kit_ctx(kern, 1), out.p, add, x.p, ld, type, rows, C, work.p) == K_OK;
            ok &= buf_near(&out, want, 0x1p-23, share * largest, "col_sum %lld x %lld", (long long)rows, (long long)C);
            buf_poison(&work);
            ok &= kern->col_sum(kit_ctx(kern, 3), same.p, add, x.p, ld, type, rows, C, work.p) == K_OK;
            ok &= buf_same(&out, &same, "3 threads") && buf_intact(&out) && buf_intact(&work);
            buf_poison(&out);
            buf_poison(&same);
        }
        free(want);
        buf_free(&x);
        buf_free(&out);
        buf_free(&same);
        buf_free(&work);
    }
    tap_ok(ok, "%s: column sums, written and accumulated; type %d", kern->name, type);
}

static void test_image_sum(const struct kern *kern, enum dtype type)
{
    bool ok = true;

    for (size_t s = 0; s < LEN(shapes); s++) {
        const int64_t B = shapes[s].B, HW = shapes[s].rows, C = shapes[s].C, ld = shapes[s].ld;
        const size_t last = (size_t)((B - 1) * C) * dtype_bytes(type), bytes = (size_t)C * dtype_bytes(type);
        struct buf x = buf_random(type, (B * HW - 1) * ld + C, s, 1);
        struct buf out = buf_new(type, B * C), alone = buf_new(type, C);
        double *want = calloc((size_t)(B * C), sizeof *want);
        for (int64_t i = 0; i < B * HW; i++)
            for (int64_t c = 0; c < C; c++)
                want[i / HW * C + c] += x.v[i * ld + c];
        ok &= kern->image_sum(kit_ctx(kern, 2), out.p, x.p, ld, type, B, HW, C) == K_OK && buf_intact(&out);
        ok &= buf_near(&out, want, kit_rel[type], share * 6 * (double)HW, "image_sum %zu", s);   /* |x| < 6 */
        ok &= kern->image_sum(kit_ctx(kern, 1), alone.p, (char *)x.p + (size_t)((B - 1) * HW * ld) * dtype_bytes(type),
                              ld, type, 1, HW, C) == K_OK;
        ok &= !memcmp(alone.p, (char *)out.p + last, bytes);
        free(want);
        buf_free(&x);
        buf_free(&out);
        buf_free(&alone);
    }
    tap_ok(ok, "%s: sums over images, alone as in a batch; type %d", kern->name, type);
}

/* ---- mean squared error ---- */

static const struct { int64_t B, HW, C; } images[] = {
    { 1, 1, 1 }, { 3, 5, 4 }, { 2, 33, 7 }, { 5, 64, 4 }, { 2, 4096, 4 }, { 1, 1024, 33 }, { 3, 9001, 13 },
    { 3, 40009, 11 },
};

struct loss {
    struct buf x, z, w, m;
    int64_t B, HW, C;
};

static struct loss loss_new(enum dtype type, size_t i)
{
    struct loss l = { .B = images[i].B, .HW = images[i].HW, .C = images[i].C };
    const int64_t n = l.B * l.HW * l.C;

    l.x = buf_random(type, n, i, 1);
    l.z = buf_random(type, n, 20 + i, 1);
    l.w = buf_random(F32, l.B, 40 + i, 2);
    l.m = buf_random(F32, l.B * l.HW, 60 + i, 1);
    return l;
}

static void loss_free(struct loss *l)
{
    buf_free(&l->x);
    buf_free(&l->z);
    buf_free(&l->w);
    buf_free(&l->m);
}

static int run_mse(const struct kern *kern, int threads, void *out, const struct loss *l, bool masked, int64_t b0,
                   int64_t B)
{
    const size_t at = (size_t)(b0 * l->HW * l->C) * dtype_bytes(l->x.type);

    return kern->mse(kit_ctx(kern, threads), out, (char *)l->x.p + at, (char *)l->z.p + at, l->x.type,
                     (float *)l->w.p + b0, masked ? (float *)l->m.p + b0 * l->HW : NULL, B, l->HW, l->C);
}

/* The difference is rounded once and squared: two more roundings than a plain sum, and one of the product with m. */
static bool check_mse(const struct kern *kern, const struct loss *l, bool masked)
{
    const int64_t n = l->HW * l->C;
    struct buf out = buf_new(F32, l->B), other = buf_new(F32, l->B);
    double want, size;
    bool ok = run_mse(kern, 1, out.p, l, masked, 0, l->B) == K_OK && buf_intact(&out);

    buf_read(&out);
    for (int64_t b = 0; b < l->B; b++) {
        want = size = 0;
        for (int64_t i = 0; i < n; i++) {
            const double d = l->x.v[b * n + i] - l->z.v[b * n + i], m = masked ? l->m.v[b * l->HW + i / l->C] : 1;
            want += m * d * d;
            size += fabs(m) * d * d;
        }
        want *= l->w.v[b] / (double)n;
        size *= fabs(l->w.v[b]) / (double)n;
        ok &= near(out.v[b], want, size * 16 / 12, masked ? "masked mse" : "mse", n);
    }
    for (int64_t b = 0; b < l->B; b++)
        ok &= run_mse(kern, 1, (float *)other.p + b, l, masked, b, 1) == K_OK;
    ok = ok && buf_same(&out, &other, "one image at a time");
    for (int threads = 2; threads <= 3; threads++) {
        buf_poison(&other);
        ok &= run_mse(kern, threads, other.p, l, masked, 0, l->B) == K_OK;
        ok = ok && buf_same(&out, &other, "%d threads", threads);
    }
    buf_free(&out);
    buf_free(&other);
    return ok;
}

static bool check_mse_back(const struct kern *kern, struct loss *l, bool masked)
{
    const int64_t n = l->HW * l->C, total = l->B * n;
    struct buf d = buf_random(F32, l->B, 9, 1), dx = buf_new(l->x.type, total);
    double *want = malloc(sizeof *want * (size_t)total);
    bool ok;

    for (int64_t i = 0; i < total; i++)
        want[i] = d.v[i / n] * 2 * l->w.v[i / n] / (double)n * (masked ? l->m.v[i / l->C] : 1)
            * (l->x.v[i] - l->z.v[i]);
    ok = kern->mse_back(kit_ctx(kern, 2), dx.p, d.p, l->x.p, l->z.p, l->x.type, l->w.p, masked ? l->m.p : NULL, l->B,
                        l->HW, l->C) == K_OK;
    /* four f32 roundings, then one of the type; 16-bit subnormals */
    ok = ok && buf_near(&dx, want, kit_rel[l->x.type] + 4 * 0x1p-24, l->x.type == F16 ? 0x1p-25 : 1e-40, "mse_back")
        && buf_intact(&dx);
    ok &= kern->mse_back(kit_ctx(kern, 3), l->x.p, d.p, l->x.p, l->z.p, l->x.type, l->w.p, masked ? l->m.p : NULL, l->B,
                         l->HW, l->C) == K_OK;
    ok = ok && buf_same(&dx, &l->x, "in place, 3 threads") && buf_intact(&l->x);
    free(want);
    buf_free(&d);
    buf_free(&dx);
    return ok;
}

static void test_mse(const struct kern *kern, enum dtype type)
{
    bool ok = true, back = true;

    for (size_t i = 0; i < LEN(images); i++)
        for (int masked = 0; masked < 2; masked++) {
            struct loss l = loss_new(type, i);
            ok &= check_mse(kern, &l, masked);
            back &= check_mse_back(kern, &l, masked);
            loss_free(&l);
        }
    tap_ok(ok, "%s: mse, with and without a mask, alone as in a batch; type %d", kern->name, type);
    tap_ok(back, "%s: its gradient, in place too; type %d", kern->name, type);
}

/* More images than partial sums have room for. */
static void test_many_images(const struct kern *kern)
{
    struct loss l = { .B = 1300, .HW = 3, .C = 5 };

    l.x = buf_random(F32, l.B * 15, 1, 1);
    l.z = buf_random(F32, l.B * 15, 2, 1);
    l.w = buf_random(F32, l.B, 3, 1);
    l.m = buf_random(F32, l.B * 3, 4, 1);
    tap_ok(check_mse(kern, &l, true), "%s: mse of 1300 images", kern->name);
    loss_free(&l);
}

static void test_refused(const struct kern *kern)
{
    struct kctx *k = kit_ctx(kern, 1);
    float x[4] = { 1, 2, 3, 4 }, out = 9;
    int64_t count = 9;
    bool ok = true;

    ok &= kern->sum(k, &out, x, F32, 0) == K_OK && kern->dot(k, &out, x, x, F32, 0) == K_OK;
    ok &= kern->mse(k, &out, x, x, F32, x, NULL, 1, 0, 4) == K_OK;
    ok &= kern->image_sum(k, &out, x, 4, F32, 1, 0, 4) == K_OK;
    ok &= kern->col_sum(k, &out, false, x, 1, F32, 0, 1, NULL) == K_OK && kern->col_sum_bytes(0, 3) == 0;
    ok &= kern->sum(k, &out, x, F32, -1) == K_ARG && kern->sum_squares(k, &out, x, N_DTYPE, 1) == K_ARG;
    ok &= kern->count_nonfinite(k, &count, x, F32, -1) == K_ARG && kern->dot(k, &out, x, x, N_DTYPE, 4) == K_ARG;
    ok &= kern->col_sum(k, &out, false, x, 1, F32, 1, 2, x) == K_ARG;
    ok &= kern->image_sum(k, &out, x, 1, F32, 1, 1, 2) == K_ARG;
    ok &= kern->mse(k, &out, x, x, F32, x, NULL, -1, 1, 1) == K_ARG;
    ok &= kern->mse_back(k, x, x, x, x, N_DTYPE, x, NULL, 1, 1, 1) == K_ARG;
    tap_ok(ok && out == 9 && count == 9, "%s: nothing to do, and what is refused", kern->name);
}

int main(void)
{
    const struct kern *kern;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        for (int t = 0; t < N_DTYPE; t++) {
            test_sums(kern, t);
            test_nonfinite(kern, t);
            test_col_sum(kern, t);
            test_image_sum(kern, t);
            test_mse(kern, t);
        }
        test_many_images(kern);
        test_constant(kern);
        test_refused(kern);
    }
    test_long(kern_cpu(NULL));
    test_long(kern_cpu("portable"));
    return tap_done();
}
