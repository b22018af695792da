/* tests/t_resample.c: nearest and bilinear resampling against loops in doubles, and against values known by hand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

static const struct shape {
    int64_t B, H, W, C, Ho, Wo;
} shapes[] = {
    { 1, 1, 1, 1, 1, 1 },   { 1, 1, 1, 3, 5, 4 },     { 2, 5, 4, 3, 1, 1 },       { 1, 2, 3, 5, 4, 6 },
    { 2, 7, 5, 17, 3, 11 }, { 1, 4, 4, 33, 7, 3 },    { 3, 8, 8, 20, 16, 16 },    { 1, 37, 37, 40, 74, 74 },
    { 1, 9, 13, 600, 5, 8 }, { 2, 30, 31, 4, 64, 60 }, { 1, 100, 101, 1, 37, 59 }, { 1, 3, 1, 16, 2, 9 },
};

enum mode { NEAREST, CENTRES, CORNERS, N_MODE };
static const char *const names[] = { "nearest", "bilinear", "bilinear, corners aligned" };

/* ---- the equations: output i of n reads inputs a and b of m, b with the weight share ---- */

struct tap_ref {
    int64_t a, b;
    double share;
};

static struct tap_ref tap_ref(enum mode mode, int64_t i, int64_t m, int64_t n)
{
    double at;

    if (mode == NEAREST)
        return (struct tap_ref){ i * m / n, 0, 0 };
    if (mode == CENTRES)
        at = fmax(((double)i + 0.5) * (double)m / (double)n - 0.5, 0);
    else
        at = n > 1 ? (double)i * (double)(m - 1) / (double)(n - 1) : 0;
    at = fmin(at, (double)(m - 1));
    return (struct tap_ref){ (int64_t)at, (int64_t)fmin(floor(at) + 1, (double)(m - 1)), at - floor(at) };
}

/* y += F x, or with `back` dx += F^T dy: y and dx start from zero. */
static void resample_ref(double *out, const double *in, enum mode mode, const struct shape *s, bool back)
{
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t i = 0; i < s->Ho; i++)
            for (int64_t j = 0; j < s->Wo; j++) {
                const struct tap_ref r = tap_ref(mode, i, s->H, s->Ho), q = tap_ref(mode, j, s->W, s->Wo);
                for (int k = 0; k < 4; k++) {
                    const int64_t h = k & 2 ? r.b : r.a, w = k & 1 ? q.b : q.a;
                    const double weight = (k & 2 ? r.share : 1 - r.share) * (k & 1 ? q.share : 1 - q.share);
                    const int64_t small = ((b * s->H + h) * s->W + w) * s->C;
                    const int64_t large = ((b * s->Ho + i) * s->Wo + j) * s->C;
                    for (int64_t c = 0; c < s->C; c++)
                        out[(back ? small : large) + c] += weight * in[(back ? large : small) + c];
                }
            }
}

static double *zeros(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);

    if (!p)
        exit(1);
    return p;
}

static int run(const struct kern *kern, int threads, enum mode mode, bool back, void *y, const void *x,
               enum dtype type, const struct shape *s)
{
    struct kctx *k = kit_ctx(kern, threads);

    if (mode == NEAREST)
        return (back ? kern->nearest_back : kern->nearest)(k, y, x, type, s->B, s->H, s->W, s->C, s->Ho, s->Wo);
    return (back ? kern->bilinear_back : kern->bilinear)(k, y, x, type, s->B, s->H, s->W, s->C, s->Ho, s->Wo,
                                                         mode == CORNERS);
}

/* The last image alone gives the bits that it had in the batch. */
static bool alone(const struct kern *kern, enum mode mode, bool back, const struct buf *y, const struct buf *x,
                  const struct shape *s)
{
    const size_t size = dtype_bytes(x->type);
    const int64_t n = y->n / s->B;
    struct buf one = buf_new(y->type, n), part = buf_new(y->type, n);
    struct shape single = *s;
    bool ok;

    single.B = 1;
    memcpy(part.p, (char *)y->p + (size_t)(y->n - n) * size, (size_t)n * size);
    ok = run(kern, 1, mode, back, one.p, (char *)x->p + (size_t)(x->n - x->n / s->B) * size, x->type, &single) == K_OK
        && buf_same(&one, &part, "an image alone");
    buf_free(&one);
    buf_free(&part);
    return ok;
}

/* Forward: weights and three products rounded, of values below 6. Backward: a pixel adds up to Ho Wo terms in turn,
 * below 6 each and whose roundings mostly cancel; their weights sum to about Ho Wo/(H W). */
static bool resample_case(const struct kern *kern, enum mode mode, bool back, enum dtype type, const struct shape *s)
{
    const int64_t n_small = s->B * s->H * s->W * s->C, n_large = s->B * s->Ho * s->Wo * s->C;
    struct buf x = buf_random(type, back ? n_large : n_small, 1, 1), y = buf_new(type, back ? n_small : n_large);
    const double ratio = fmax(1, (double)(s->Ho * s->Wo) / (double)(s->H * s->W));
    double *want = zeros(y.n);
    bool ok = run(kern, 1, mode, back, y.p, x.p, type, s) == K_OK;

    resample_ref(want, x.v, mode, s, back);
    ok &= buf_near(&y, want, kit_rel[type], mode == NEAREST && !back ? 1e-300 : 1.5e-6 * (back ? ratio : 1),
                   "%lldx%lldx%lld to %lldx%lld", (long long)s->H, (long long)s->W, (long long)s->C, (long long)s->Ho,
                   (long long)s->Wo) && buf_intact(&y);
    for (int threads = 2; threads <= 3; threads++) {
        struct buf z = buf_new(type, y.n);
        ok &= run(kern, threads, mode, back, z.p, x.p, type, s) == K_OK && buf_same(&y, &z, "threads");
        buf_free(&z);
    }
    ok &= alone(kern, mode, back, &y, &x, s);
    free(want);
    buf_free(&x);
    buf_free(&y);
    return ok;
}

/* Two pixels to four, by hand. */
static void test_known(const struct kern *kern)
{
    static const float x[2] = { 0, 12 }, want[N_MODE][4] = { { 0, 0, 12, 12 }, { 0, 3, 9, 12 }, { 0, 4, 8, 12 } };
    static const float down[N_MODE][3] = { { 0, 1, 3 }, { 0.3333333f, 2, 3.6666667f }, { 0, 2, 4 } };
    static const float five[5] = { 0, 1, 2, 3, 4 };
    float y[4];
    bool ok = true;

    for (int mode = 0; mode < N_MODE; mode++) {
        const struct shape s = { 1, 1, 2, 1, 1, 4 }, t = { 1, 5, 1, 1, 3, 1 };
        ok &= run(kern, 1, mode, false, y, x, F32, &s) == K_OK;
        for (int i = 0; i < 4; i++)
            ok &= fabsf(y[i] - want[mode][i]) < 2e-6f;
        ok &= run(kern, 1, mode, false, y, five, F32, &t) == K_OK;
        for (int i = 0; i < 3; i++)
            ok &= fabsf(y[i] - down[mode][i]) < 1e-6f;
    }
    tap_ok(ok, "%s: two pixels to four, five to three", kern->name);
}

/* Sizes at which a position in f32 lands beside a whole number: floor(i * H/Ho) must come from whole numbers. */
static void test_exact(const struct kern *kern)
{
    bool ok = true;

    for (int64_t Ho = 1; Ho < 700; Ho += 3) {
        const struct shape s = { 1, 1, 517, 1, 1, Ho };
        float x[517], y[700];
        for (int i = 0; i < 517; i++)
            x[i] = (float)i;
        ok &= run(kern, 1, NEAREST, false, y, x, F32, &s) == K_OK;
        for (int64_t i = 0; i < Ho; i++)
            ok &= y[i] == (float)(i * 517 / Ho);
    }
    tap_ok(ok, "%s: nearest picks floor(i H/Ho) exactly", kern->name);
}

static void test_arguments(const struct kern *kern)
{
    static const struct shape bad = { 1, 2, 2, 1, -1, 2 }, empty = { 1, 0, 2, 1, 2, 2 }, none = { 1, 2, 2, 0, 2, 2 };
    float p[8];
    bool ok = true;

    for (int mode = 0; mode < N_MODE; mode++)
        for (int back = 0; back < 2; back++)
            ok &= run(kern, 1, mode, back, p, p, F32, &bad) == K_ARG
                && run(kern, 1, mode, back, p, p, N_DTYPE, &shapes[0]) == K_ARG
                && run(kern, 1, mode, back, NULL, NULL, F32, &empty) == K_OK
                && run(kern, 1, mode, back, NULL, NULL, F32, &none) == K_OK;
    tap_ok(ok, "%s: bad arguments are refused, sizes of 0 do nothing", kern->name);
}

/* <dy, F x> = <F^T dy, x> for the references: one transposes the other. */
static void test_reference(void)
{
    bool ok = true;

    for (int mode = 0; mode < N_MODE; mode++)
        for (size_t i = 0; i < LEN(shapes); i++) {
            const struct shape *s = &shapes[i];
            struct buf x = buf_random(F32, s->B * s->H * s->W * s->C, 1, 1);
            struct buf dy = buf_random(F32, s->B * s->Ho * s->Wo * s->C, 2, 1);
            double *y = zeros(dy.n), *dx = zeros(x.n), a = 0, b = 0;
            resample_ref(y, x.v, mode, s, false);
            resample_ref(dx, dy.v, mode, s, true);
            for (int64_t j = 0; j < dy.n; j++)
                a += dy.v[j] * y[j];
            for (int64_t j = 0; j < x.n; j++)
                b += dx[j] * x.v[j];
            ok &= fabs(a - b) < 1e-9 * (1 + fabs(a));
            free(y);
            free(dx);
            buf_free(&x);
            buf_free(&dy);
        }
    tap_ok(ok, "the backward references transpose the forward ones");
}

int main(void)
{
    const struct kern *kern;

    test_reference();
    for (int i = 0; (kern = kit_twin(i)); i++) {
        for (int t = 0; t < N_DTYPE; t++)
            for (int mode = 0; mode < N_MODE; mode++)
                for (int back = 0; back < 2; back++) {
                    bool ok = true;
                    for (size_t j = 0; j < LEN(shapes); j++)
                        ok &= resample_case(kern, mode, back, (enum dtype)t, &shapes[j]);
                    tap_ok(ok, "%s: %s%s, type %d", kern->name, names[mode], back ? ", gradient" : "", t);
                }
        test_known(kern);
        test_exact(kern);
        test_arguments(kern);
    }
    return tap_done();
}
