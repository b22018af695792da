/* tests/t_rand.c: Philox against published vectors and a scalar copy of its definition, normals against doubles and
 * against the normal law, and the promise that an element depends on nothing but its name. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

/* Salmon et al. 2011, sec. 3.3, one block. */
static void philox(uint32_t c[4], const uint32_t key[2])
{
    uint32_t k0 = key[0], k1 = key[1];

    for (int i = 0; i < 10; i++) {
        const uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        const uint32_t n[4] = { (uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k1,
                                (uint32_t)p0 };
        memcpy(c, n, sizeof n);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static uint32_t word_of(const struct krng *r, uint64_t i)
{
    uint32_t c[4] = { (uint32_t)(i / 4), r->ctr[0], r->ctr[1], r->ctr[2] };

    philox(c, r->key);
    return c[i % 4];
}

static double normal_of(const struct krng *r, uint64_t i)
{
    const uint64_t even = i & ~(uint64_t)1;
    const double u1 = ((double)word_of(r, even) + 1) * 0x1p-32, u2 = (double)word_of(r, even + 1) * 0x1p-32;
    const double angle = 6.283185307179586 * u2;

    return sqrt(-2 * log(u1)) * (i % 2 ? sin(angle) : cos(angle));
}

/* Counters, keys and words as published with the algorithm. */
static const struct { uint32_t c[4], key[2], want[4]; } known[] = {
    { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
    { { 0, 0, 1, 0 }, { 0, 0 }, { 0x844515e1, 0xf08d6eaa, 0x0f19c053, 0x83f875f0 } },
    { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff },
      { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
    { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
      { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
};

static void test_known(const struct kern *kern)
{
    bool ok = true;

    for (size_t i = 0; i < LEN(known); i++) {
        struct krng r = { { known[i].key[0], known[i].key[1] }, { known[i].c[1], known[i].c[2], known[i].c[3] } };
        uint32_t y[4] = { 0 };
        ok &= kern->random_bits(kit_ctx(kern, 1), y, 4, &r, 4ull * known[i].c[0]) == K_OK;
        ok &= !memcmp(y, known[i].want, sizeof y);
    }
    tap_ok(ok, "%s: published Philox4x32-10 vectors", kern->name);
}

static const struct krng stream = { { 0x12345678, 0x9abcdef0 }, { 7, 11, 2 } };

/* Every start and length around the width of a group, far starts, and several threads. */
static void test_elements(const struct kern *kern)
{
    static const uint64_t starts[] = { 0, 1, 2, 3, 5, 63, 64, 66, 1001, 0x3fffffff, 0xfffffffdull, 0x3ffffff00ull };
    static const int64_t lengths[] = { 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 130, 255 };
    bool ok = true;

    for (size_t s = 0; s < LEN(starts) && ok; s++)
        for (size_t l = 0; l < LEN(lengths) && ok; l++) {
            struct buf b = buf_new(F32, lengths[l]), u = buf_new(F32, lengths[l]);
            ok &= kern->random_bits(kit_ctx(kern, 1), b.p, b.n, &stream, starts[s]) == K_OK;
            ok &= kern->random_uniform(kit_ctx(kern, 1), u.p, u.n, &stream, starts[s]) == K_OK;
            buf_read(&u);
            for (int64_t i = 0; i < b.n; i++) {
                const uint32_t want = word_of(&stream, starts[s] + (uint64_t)i);
                ok &= !memcmp((char *)b.p + 4 * i, &want, 4) && u.v[i] == (double)(want >> 8) * 0x1p-24;
            }
            ok &= buf_intact(&b) && buf_intact(&u);
            if (!ok)
                tap_note("first %llu, n %lld", (unsigned long long)starts[s], (long long)lengths[l]);
            buf_free(&b);
            buf_free(&u);
        }
    tap_ok(ok, "%s: bits and uniforms from any start, any length", kern->name);
}

/* The angle's cosine times the radius: three roundings of a number up to 6.7, radius and angle off by 2 units each,
 * allow 2^-22 of the value and 4e-7 where the cosine is small. */
static bool normals_near(const struct kern *kern, int64_t n, uint64_t first, const struct krng *r)
{
    struct buf y = buf_new(F32, n);
    double *want = malloc(sizeof *want * (size_t)n);
    bool ok;

    for (int64_t i = 0; i < n; i++)
        want[i] = normal_of(r, first + (uint64_t)i);
    ok = kern->random_normal(kit_ctx(kern, 2), y.p, F32, n, r, first) == K_OK;
    ok = ok && buf_near(&y, want, 0x1p-22, 4e-7, "normals from %llu", (unsigned long long)first) && buf_intact(&y);
    free(want);
    buf_free(&y);
    return ok;
}

/* Blocks whose first word is extreme: found by going through all 2^34 elements under key 0, counter 0. */
static const struct { uint64_t first; uint32_t word; } extreme[] = {
    { 1124989170ull, 0xfffffffe },
    { 1453024970ull, 0xfffffffd },
    { 1642810008ull, 0xfffffffe },
    { 3304761632ull, 0x00000002 },
    { 4501494404ull, 0x00000002 },
    { 8098165446ull, 0xffffffff },
    { 10112497376ull, 0xfffffffd },
    { 12922966362ull, 0x00000000 },
};

static void test_extreme(const struct kern *kern)
{
    const struct krng zero = { { 0, 0 }, { 0, 0, 0 } };
    bool ok = true;

    for (size_t i = 0; i < LEN(extreme); i++) {
        ok &= word_of(&zero, extreme[i].first) == extreme[i].word;
        ok &= normals_near(kern, 2, extreme[i].first, &zero);
    }
    tap_ok(ok, "%s: radii of the smallest and the largest words", kern->name);
}

static void test_normals(const struct kern *kern)
{
    tap_ok(normals_near(kern, 1 << 18, 0, &stream), "%s: normals near doubles", kern->name);
    for (int t = F16; t <= BF16; t++) {
        const int64_t n = 1003;
        struct buf y = buf_new(t, n), wide = buf_new(F32, n);
        bool ok = kern->random_normal(kit_ctx(kern, 1), y.p, t, n, &stream, 3) == K_OK
            && kern->random_normal(kit_ctx(kern, 1), wide.p, F32, n, &stream, 3) == K_OK;
        buf_read(&y);
        buf_read(&wide);
        for (int64_t i = 0; i < n; i++)
            ok &= y.v[i] == kit_round(t, wide.v[i]);
        tap_ok(ok && buf_intact(&y), "%s: 16-bit normals of type %d are the rounded f32 ones", kern->name, t);
        buf_free(&y);
        buf_free(&wide);
    }
}

/* A draw in one piece, by one thread, is what every other way of drawing it gives. */
static void test_cuts(const struct kern *kern)
{
    const int64_t n = 150001;
    struct buf whole = buf_new(BF16, n), other = buf_new(BF16, n);
    uint64_t s = 5;
    bool ok = kern->random_normal(kit_ctx(kern, 1), whole.p, BF16, n, &stream, 10) == K_OK;

    for (int threads = 2; threads <= 3; threads++) {
        buf_poison(&other);
        ok &= kern->random_normal(kit_ctx(kern, threads), other.p, BF16, n, &stream, 10) == K_OK;
        ok &= buf_same(&whole, &other, "%d threads", threads);
    }
    buf_poison(&other);
    for (int64_t i = 0, m; i < n && ok; i += m) {
        m = 1 + (int64_t)(fabs(kit_normal(&s)) * 200);
        m = m < n - i ? m : n - i;
        ok &= kern->random_normal(kit_ctx(kern, 1), (char *)other.p + 2 * i, BF16, m, &stream, 10 + (uint64_t)i)
            == K_OK;
    }
    ok &= buf_same(&whole, &other, "pieces") && buf_intact(&other);
    tap_ok(ok, "%s: same bits by 1, 2 or 3 threads, whole or in pieces", kern->name);
    buf_free(&whole);
    buf_free(&other);
}

static void test_same_everywhere(void)
{
    const int64_t n = 100003;
    struct buf first = buf_new(F32, n), other = buf_new(F32, n);
    const struct kern *kern = kit_twin(0);
    bool ok = kern->random_normal(kit_ctx(kern, 1), first.p, F32, n, &stream, 1) == K_OK;

    for (int i = 1; (kern = kit_twin(i)); i++) {
        buf_poison(&other);
        ok &= kern->random_normal(kit_ctx(kern, 1), other.p, F32, n, &stream, 1) == K_OK;
        ok &= buf_same(&first, &other, "%s", kern->name);
    }
    tap_ok(ok, "normals have the same bits on every instruction set");
    buf_free(&first);
    buf_free(&other);
}

static void test_limits(const struct kern *kern)
{
    const uint64_t end = (uint64_t)1 << 34;
    struct kctx *k = kit_ctx(kern, 1);
    float y[8] = { 9 };
    uint32_t u[8];

    tap_ok(kern->random_normal(k, y, F32, 0, &stream, 0) == K_OK && y[0] == 9
           && kern->random_normal(k, y, F32, 5, &stream, end - 5) == K_OK
           && kern->random_normal(k, y, F32, 6, &stream, end - 5) == K_ARG
           && kern->random_bits(k, u, 1, &stream, UINT64_MAX) == K_ARG
           && kern->random_uniform(k, y, -1, &stream, 0) == K_ARG
           && kern->random_normal(k, y, N_DTYPE, 1, &stream, 0) == K_ARG,
           "%s: nothing, the last element, and what is refused", kern->name);
}

/* ---- the law of large numbers; one twin, as all give the same bits ---- */

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* sqrt(n) times the largest distance between the sample's distribution function and F; Kolmogorov & Smirnov. */
static double distance(float *x, int64_t n, double F(double))
{
    double d = 0;

    qsort(x, (size_t)n, sizeof *x, by_value);
    for (int64_t i = 0; i < n; i++) {
        const double f = F((double)x[i]);
        d = fmax(d, fmax((double)(i + 1) / (double)n - f, f - (double)i / (double)n));
    }
    return d * sqrt((double)n);
}

static double normal_cdf(double x)
{
    return 0.5 * erfc(-x * 0.7071067811865476);
}

static double uniform_cdf(double x)
{
    return x;
}

static double correlation(const float *x, const float *y, int64_t n)
{
    double xy = 0, xx = 0, yy = 0;

    for (int64_t i = 0; i < n; i++) {
        xy += (double)x[i] * (double)y[i];
        xx += (double)x[i] * (double)x[i];
        yy += (double)y[i] * (double)y[i];
    }
    return xy / sqrt(xx * yy);
}

/* Bounds: 4 standard deviations of each moment's estimate (1, sqrt 2, sqrt 6, sqrt 24 over sqrt n; 1 in 16000), and
 * 1.95 for the distance (1 in 1000). The seed is fixed, so a pass stays a pass. */
static void test_law(const struct kern *kern)
{
    const int64_t n = 1 << 20;
    float *x = malloc(sizeof *x * (size_t)n);
    const double root = sqrt((double)n);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, d;
    int64_t beyond = 0;

    kern->random_normal(kit_ctx(kern, 2), x, F32, n, &stream, 0);
    for (int64_t i = 0; i < n; i++) {
        const double v = (double)x[i];
        m1 += v, m2 += v * v, m3 += v * v * v, m4 += v * v * v * v;
        beyond += fabs(v) > 4;
    }
    m1 /= (double)n, m2 /= (double)n, m3 /= (double)n, m4 /= (double)n;
    tap_ok(fabs(m1) < 4 / root, "normals: mean %.2g", m1);
    tap_ok(fabs(m2 - 1) < 4 * sqrt(2.0) / root, "normals: variance %.5f", m2);
    tap_ok(fabs(m3) < 4 * sqrt(15.0) / root, "normals: third moment %.2g", m3);
    tap_ok(fabs(m4 - 3) < 4 * sqrt(96.0) / root, "normals: fourth moment %.4f", m4);
    d = erfc(4 / sqrt(2.0)) * (double)n;                        /* 66 expected, Poisson */
    tap_ok(fabs((double)beyond - d) < 4 * sqrt(d), "normals: %lld beyond 4 sigma, %.0f expected", (long long)beyond, d);
    tap_ok(fabs(correlation(x, x + 1, n - 1)) < 4 / root && fabs(correlation(x, x + 2, n - 2)) < 4 / root
           && fabs(correlation(x, x + 4, n - 4)) < 4 / root, "normals: neighbours do not correlate");
    d = distance(x, n, normal_cdf);
    tap_ok(d < 1.95, "normals: distance to the normal law %.3f", d);
    kern->random_uniform(kit_ctx(kern, 2), x, n, &stream, 0);
    d = distance(x, n, uniform_cdf);
    tap_ok(d < 1.95 && x[0] >= 0 && x[n - 1] < 1, "uniforms: distance to the uniform law %.3f", d);
    free(x);
}

/* One bit of a name makes another stream. */
static void test_streams(const struct kern *kern)
{
    enum { N = 1 << 16 };
    float *x = malloc(sizeof *x * N), *y = malloc(sizeof *y * N);
    bool ok = true;

    kern->random_normal(kit_ctx(kern, 1), x, F32, N, &stream, 0);
    for (int bit = 0; bit < 160; bit++) {
        struct krng r = stream;
        if (bit < 64)
            r.key[bit / 32] ^= 1u << bit % 32;
        else
            r.ctr[bit / 32 - 2] ^= 1u << bit % 32;
        kern->random_normal(kit_ctx(kern, 1), y, F32, N, &r, 0);
        ok &= fabs(correlation(x, y, N)) < 5.0 / 256;           /* 5 sigma, 160 tries */
    }
    tap_ok(ok, "streams that differ in one bit do not correlate");
    free(x);
    free(y);
}

int main(void)
{
    const struct kern *kern;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        test_known(kern);
        test_elements(kern);
        test_normals(kern);
        test_extreme(kern);
        test_cuts(kern);
        test_limits(kern);
    }
    test_same_everywhere();
    test_law(kern_cpu(NULL));
    test_streams(kern_cpu(NULL));
    return tap_done();
}
