/* tests/t_elem.c: element by element arithmetic, conversions, copies, permutations and tables against doubles. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

static const int64_t lengths[] = { 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 100, 1023, 8192, 8193, 70001 };

static char *element(const struct buf *b, int64_t i)
{
    return (char *)b->p + (size_t)i * dtype_bytes(b->type);
}

/* ---- flat arithmetic: one call described by its operands ---- */

enum flat { FILL, AXPBY, AXPB, MUL, ROW_AXPBY, ROW_AX, LERP, N_FLAT };
static const char *const flat_names[] = { "fill", "axpby", "axpby without z", "mul", "row_axpby", "row_axpby without z",
                                          "lerp_mask" };

struct flat_case {
    enum flat f;
    enum dtype type;
    int64_t rows, n;            /* rows x n elements; rows are images, or pixels of the mask */
    struct buf x, z, a, c;      /* a, c (rows) f32; a in [0,1] is the mask */
};

static const float alpha = 0.7f, beta = -1.9f;

static int flat_run(const struct kern *kern, int threads, const struct flat_case *q, void *y, void *x, void *z)
{
    struct kctx *k = kit_ctx(kern, threads);
    const int64_t n = q->rows * q->n;

    switch (q->f) {
    case FILL: return kern->fill(k, y, q->type, n, alpha);
    case AXPBY: return kern->axpby(k, y, alpha, x, beta, z, q->type, n);
    case AXPB: return kern->axpby(k, y, alpha, x, beta, NULL, q->type, n);
    case MUL: return kern->mul(k, y, x, z, q->type, n);
    case ROW_AXPBY: return kern->row_axpby(k, y, q->a.p, x, q->c.p, z, q->type, q->rows, q->n);
    case ROW_AX: return kern->row_axpby(k, y, q->a.p, x, NULL, NULL, q->type, q->rows, q->n);
    default: return kern->lerp_mask(k, y, q->a.p, x, z, q->type, q->rows, q->n);
    }
}

static double flat_ref(const struct flat_case *q, int64_t i)
{
    const double x = q->x.v[i], z = q->z.v[i], a = q->a.v[i / q->n], c = q->c.v[i / q->n];

    switch (q->f) {
    case FILL: return (double)alpha;
    case AXPBY: return (double)alpha * x + (double)beta * z;
    case AXPB: return (double)alpha * x + (double)beta;
    case MUL: return x * z;
    case ROW_AXPBY: return a * x + c * z;
    case ROW_AX: return a * x;
    default: return a * x + (1 - a) * z;
    }
}

/* Two or three f32 roundings of terms below 32, then one to the type. */
static bool flat_case(const struct kern *kern, enum flat f, enum dtype type, int64_t rows, int64_t n)
{
    struct flat_case q = { f, type, rows, n, buf_random(type, rows * n, 1, 2), buf_random(type, rows * n, 2, 2),
                           buf_random(F32, rows, 3, 1), buf_random(F32, rows, 4, 1) };
    struct buf y = buf_new(type, rows * n), want = buf_new(F32, rows * n);
    bool ok;

    for (int64_t r = 0; f == LERP && r < rows; r++)
        buf_set(&q.a, r, r % 3 ? fmin(fabs(q.a.v[r]), 1) : (double)(r % 2));
    for (int64_t i = 0; i < rows * n; i++)
        want.v[i] = flat_ref(&q, i);
    ok = flat_run(kern, 1, &q, y.p, q.x.p, q.z.p) == K_OK
        && buf_near(&y, want.v, kit_rel[type], 6e-6, "%s %lld x %lld", flat_names[f], (long long)rows, (long long)n)
        && buf_intact(&y);
    for (int i = 0; i < 4; i++) {                       /* two threads, three, in place of x, in place of z */
        struct buf d = i == 3 ? buf_copy(&q.z) : i == 2 ? buf_copy(&q.x) : buf_new(type, rows * n);
        ok &= flat_run(kern, i == 1 ? 3 : 2, &q, d.p, i == 2 ? d.p : q.x.p, i == 3 ? d.p : q.z.p) == K_OK
            && buf_same(&y, &d, "%s: threads or in place", flat_names[f]) && buf_intact(&d);
        buf_free(&d);
    }
    buf_free(&q.x);
    buf_free(&q.z);
    buf_free(&q.a);
    buf_free(&q.c);
    buf_free(&y);
    buf_free(&want);
    return ok;
}

static void test_flat(const struct kern *kern, enum dtype type)
{
    static const int64_t channels[] = { 1, 3, 4, 5, 16, 33, 320, 1500 };

    for (int f = 0; f < N_FLAT; f++) {
        bool ok = true;
        for (size_t i = 0; i < LEN(lengths); i++)
            ok &= flat_case(kern, f, type, f >= ROW_AXPBY ? 3 : 1, lengths[i]);
        for (size_t i = 0; f == LERP && i < LEN(channels); i++)
            ok &= flat_case(kern, f, type, 70000 / channels[i], channels[i]);
        tap_ok(ok, "%s: %s, type %d", kern->name, flat_names[f], type);
    }
}

/* ---- cast ---- */

/* Every f32 whose upper half is any pattern and whose lower half is near a tie. */
static struct buf patterns(void)
{
    static const uint32_t low[] = { 0, 1, 0x0fff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff };
    struct buf x = buf_new(F32, 65536 * (int64_t)LEN(low));

    for (int64_t i = 0; i < x.n; i++) {
        const uint32_t u = (uint32_t)(i / (int64_t)LEN(low)) << 16 | low[i % (int64_t)LEN(low)];
        memcpy((char *)x.p + 4 * i, &u, 4);
    }
    buf_read(&x);
    return x;
}

/* Equal as numbers, signs of zero and all; NaN to NaN. Under 2^-126 a bf16 may be flushed to zero of its sign. */
static bool converted(struct buf *got, const double *from)
{
    buf_read(got);
    for (int64_t i = 0; i < got->n; i++) {
        const double rounded = kit_round(got->type, from[i]), is = got->v[i];
        const double want = fabs(rounded) >= 0x1p128 ? copysign(INFINITY, rounded) : rounded;
        const bool flushed = got->type == BF16 && is == 0 && fabs(from[i]) < 0x1p-126;
        if (isnan(want) ? isnan(is) : (is == want || flushed) && signbit(is) == signbit(want))
            continue;
        tap_note("cast: %a became %a, want %a", from[i], is, want);
        return false;
    }
    return buf_intact(got);
}

static void test_cast(const struct kern *kern)
{
    struct buf all = patterns();
    bool ok = true, lengths_ok = true;

    for (int t = 0; t < N_DTYPE; t++) {
        struct buf x = buf_new((enum dtype)t, all.n), y = buf_new(F32, all.n), same = buf_new((enum dtype)t, all.n);
        ok &= kern->cast(kit_ctx(kern, 2), x.p, x.type, all.p, F32, all.n) == K_OK && converted(&x, all.v);
        ok &= kern->cast(kit_ctx(kern, 1), y.p, F32, x.p, x.type, all.n) == K_OK && converted(&y, x.v);
        ok &= kern->cast(kit_ctx(kern, 1), same.p, x.type, x.p, x.type, all.n) == K_OK && buf_same(&x, &same, "copy");
        buf_free(&x);
        buf_free(&y);
        buf_free(&same);
    }
    tap_ok(ok, "%s: casts of every pattern round to nearest even", kern->name);
    for (int from = 0; from < N_DTYPE; from++)
        for (int to = 0; to < N_DTYPE; to++)
            for (size_t i = 0; i < LEN(lengths); i++) {
                struct buf x = buf_random((enum dtype)from, lengths[i], 1, 1), y = buf_new((enum dtype)to, x.n);
                lengths_ok &= kern->cast(kit_ctx(kern, 3), y.p, y.type, x.p, x.type, x.n) == K_OK && converted(&y, x.v);
                buf_free(&x);
                buf_free(&y);
            }
    tap_ok(lengths_ok, "%s: casts between all types, all lengths", kern->name);
    buf_free(&all);
}

/* ---- copies ---- */

static bool copy_case(const struct kern *kern, enum dtype type, int64_t rows, int64_t n, bool accumulate)
{
    const int64_t ldx = n + 3, ldy = n + 5;
    struct buf x = buf_random(type, rows * ldx, 1, 1), before = buf_random(type, rows * ldy, 2, 1);
    struct buf y = buf_copy(&before), want = buf_copy(&before), again = buf_copy(&before);
    bool ok = kern->copy_rows(kit_ctx(kern, 1), y.p, ldy, x.p, ldx, type, rows, n, accumulate) == K_OK;

    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < n; c++)                 /* the elements between rows keep their bits */
            buf_set(&want, r * ldy + c, x.v[r * ldx + c] + (accumulate ? before.v[r * ldy + c] : 0));
    ok &= buf_same(&y, &want, "%lld x %lld", (long long)rows, (long long)n) && buf_intact(&y);
    ok &= kern->copy_rows(kit_ctx(kern, 3), again.p, ldy, x.p, ldx, type, rows, n, accumulate) == K_OK
        && buf_same(&y, &again, "threads");
    buf_free(&x);
    buf_free(&before);
    buf_free(&y);
    buf_free(&want);
    buf_free(&again);
    return ok;
}

static void test_copy_rows(const struct kern *kern, enum dtype type)
{
    static const int64_t shapes[][2] = { { 1, 1 }, { 5, 3 }, { 3, 16 }, { 7, 33 }, { 200, 320 }, { 2, 20001 } };

    for (int accumulate = 0; accumulate < 2; accumulate++) {
        bool ok = true;
        for (size_t i = 0; i < LEN(shapes); i++)
            ok &= copy_case(kern, type, shapes[i][0], shapes[i][1], accumulate);
        tap_ok(ok, "%s: copy_rows, %s, type %d", kern->name, accumulate ? "accumulating" : "plain", type);
    }
}

/* ---- permute ---- */

/* Reads x where the strides say, element by element; x holds n elements. */
static bool permute_case(const struct kern *kern, enum dtype type, const struct kview4 *v, int64_t n)
{
    const int64_t *d = v->dim, *s = v->stride, total = d[0] * d[1] * d[2] * d[3];
    struct buf x = buf_random(type, n, 1, 1), y = buf_new(type, total), want = buf_new(type, total);
    const size_t size = dtype_bytes(type);
    int64_t at = 0;
    bool ok = true;

    for (int64_t i = 0; i < d[0]; i++)
        for (int64_t j = 0; j < d[1]; j++)
            for (int64_t k = 0; k < d[2]; k++)
                for (int64_t l = 0; l < d[3]; l++, at++)
                    memcpy(element(&want, at), element(&x, i * s[0] + j * s[1] + k * s[2] + l * s[3]), size);
    for (int threads = 1; threads <= 3; threads++) {
        buf_poison(&y);
        ok &= kern->permute(kit_ctx(kern, threads), y.p, x.p, type, v) == K_OK && buf_intact(&y)
            && buf_same(&y, &want, "permute to (%lld,%lld,%lld,%lld) by (%lld,%lld,%lld,%lld)", (long long)d[0],
                        (long long)d[1], (long long)d[2], (long long)d[3], (long long)s[0], (long long)s[1],
                        (long long)s[2], (long long)s[3]);
    }
    buf_free(&x);
    buf_free(&y);
    buf_free(&want);
    return ok;
}

/* x (sizes by its own order) read in the order `p` of its dimensions. */
static struct kview4 permuted(const int64_t size[4], const int p[4])
{
    const int64_t dense[4] = { size[1] * size[2] * size[3], size[2] * size[3], size[3], 1 };
    struct kview4 v;

    for (int i = 0; i < 4; i++) {
        v.dim[i] = size[p[i]];
        v.stride[i] = dense[p[i]];
    }
    return v;
}

static void test_permute(const struct kern *kern, enum dtype type)
{
    static const int64_t sizes[][4] = { { 1, 1, 1, 1 }, { 2, 3, 4, 5 }, { 1, 7, 1, 9 }, { 3, 67, 2, 33 },
                                        { 2, 5, 130, 18 }, { 64, 1, 1, 64 }, { 1, 3, 65, 200 } };
    static const struct kview4 odd[] = {
        { { 2, 3, 4, 5 }, { 0, 0, 0, 0 } },             /* one element everywhere */
        { { 2, 70, 1, 17 }, { 17, 0, 5, 1 } },          /* rows repeated */
        { { 2, 5, 3, 40 }, { 15, 3, 1, 0 } },           /* elements repeated */
        { { 2, 9, 8, 7 }, { 1000, 3, 50, 400 } },       /* nothing dense */
        { { 3, 1, 20, 90 }, { 5400, 77, 180, 2 } },     /* every second element */
        { { 1, 80, 20, 9 }, { 1, 2, 171, 19 } },        /* dense in no dimension, densest in one that is not last */
        { { 2, 1, 64, 64 }, { 4096, 9, 1, 64 } },       /* squares turned */
    };
    bool ok = true;

    for (size_t i = 0; i < LEN(sizes); i++)
        for (int code = 0; code < 256; code++) {
            const int p[4] = { code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 };
            struct kview4 v;
            if ((1 << p[0] | 1 << p[1] | 1 << p[2] | 1 << p[3]) != 15)
                continue;
            v = permuted(sizes[i], p);
            ok &= permute_case(kern, type, &v, sizes[i][0] * sizes[i][1] * sizes[i][2] * sizes[i][3]);
        }
    tap_ok(ok, "%s: all orders of four dimensions, type %d", kern->name, type);
    ok = true;
    for (size_t i = 0; i < LEN(odd); i++) {
        int64_t n = 1;
        for (int j = 0; j < 4; j++)
            n += (odd[i].dim[j] - 1) * odd[i].stride[j];
        ok &= permute_case(kern, type, &odd[i], n);
    }
    tap_ok(ok, "%s: repeats and gaps, type %d", kern->name, type);
}

/* ---- tables ---- */

static bool gather_case(const struct kern *kern, enum dtype type, enum dtype table_type, int64_t n, int64_t V,
                        int64_t D)
{
    struct buf table = buf_random(table_type, V * D, 1, 1), y = buf_new(type, n * D), want = buf_new(F32, n * D), z;
    int32_t *id = malloc(sizeof *id * (size_t)(n + 1));
    bool ok;

    for (int64_t i = 0; i < n; i++)
        id[i] = (int32_t)(i * i * 7 % V);
    for (int64_t i = 0; i < n * D; i++)
        want.v[i] = kit_round(type, table.v[id[i / D] * D + i % D]);
    ok = kern->gather(kit_ctx(kern, 1), y.p, type, table.p, table_type, id, n, V, D) == K_OK
        && buf_near(&y, want.v, 0, 1e-300, "gather") && buf_intact(&y);
    z = buf_new(type, n * D);
    ok &= kern->gather(kit_ctx(kern, 3), z.p, type, table.p, table_type, id, n, V, D) == K_OK
        && buf_same(&y, &z, "threads");
    buf_poison(&z);
    buf_poison(&y);
    id[n - 1] = n % 2 ? (int32_t)V : -1;
    ok &= kern->gather(kit_ctx(kern, 2), z.p, type, table.p, table_type, id, n, V, D) == K_ARG
        && buf_same(&y, &z, "ids outside the table write nothing");
    free(id);
    buf_free(&table);
    buf_free(&y);
    buf_free(&z);
    buf_free(&want);
    return ok;
}

/* The sums are f32, row after row: the same order here gives the same bits. */
static bool gather_back_case(const struct kern *kern, enum dtype type, int64_t n, int64_t V, int64_t D)
{
    struct buf dy = buf_random(type, n * D, 1, 1), before = buf_random(F32, V * D, 2, 1);
    struct buf want = buf_copy(&before);
    int32_t *id = malloc(sizeof *id * (size_t)(n + 1));
    float *w = malloc(sizeof *w * (size_t)(V * D));
    bool ok = true;

    memcpy(w, before.p, sizeof *w * (size_t)(V * D));
    for (int64_t i = 0; i < n; i++)
        id[i] = (int32_t)(i * i * 7 % V);
    for (int64_t i = 0; i < n * D; i++)
        w[id[i / D] * D + i % D] += (float)dy.v[i];
    memcpy(want.p, w, sizeof *w * (size_t)(V * D));
    for (int threads = 1; threads <= 3; threads++) {
        struct buf d = buf_copy(&before);
        ok &= kern->gather_back(kit_ctx(kern, threads), d.p, dy.p, type, id, n, V, D) == K_OK
            && buf_same(&d, &want, "gather_back") && buf_intact(&d);
        id[0] = (int32_t)V;
        ok &= kern->gather_back(kit_ctx(kern, threads), d.p, dy.p, type, id, n, V, D) == K_ARG
            && buf_same(&d, &want, "ids outside the table add nothing");
        id[0] = 0;
        buf_free(&d);
    }
    free(id);
    free(w);
    buf_free(&dy);
    buf_free(&before);
    buf_free(&want);
    return ok;
}

static void test_gather(const struct kern *kern)
{
    bool ok = true;

    for (int t = 0; t < N_DTYPE; t++)
        for (int u = 0; u < N_DTYPE; u++)
            ok &= gather_case(kern, (enum dtype)t, (enum dtype)u, 1, 1, 1)
                && gather_case(kern, (enum dtype)t, (enum dtype)u, 77, 49, 769)
                && gather_case(kern, (enum dtype)t, (enum dtype)u, 10, 3, 17);
    tap_ok(ok, "%s: gather between all types", kern->name);
    ok = true;
    for (int t = 0; t < N_DTYPE; t++)
        ok &= gather_back_case(kern, (enum dtype)t, 1, 1, 1) && gather_back_case(kern, (enum dtype)t, 77, 49, 769)
            && gather_back_case(kern, (enum dtype)t, 50, 3, 130);
    tap_ok(ok, "%s: gather_back", kern->name);
}

/* ---- time embedding ---- */

static void test_time_embed(const struct kern *kern)
{
    enum { B = 120, DIM = 322 };
    bool ok = true;

    for (int type = 0; type < N_DTYPE; type++) {
        struct buf t = buf_new(F32, B), y = buf_new((enum dtype)type, B * DIM), want = buf_new(F32, B * DIM), z;
        for (int b = 0; b < B; b++) {
            buf_set(&t, b, b < B / 2 ? b : 999 - 7.25 * (b - B / 2));
            for (int i = 0; i < DIM / 2; i++) {
                const float power = (float)(-log(10000)) * (float)i / (float)(DIM / 2);
                const double angle = (double)(float)(t.v[b] * (double)(float)exp((double)power));
                want.v[b * DIM + i] = cos(angle);
                want.v[b * DIM + DIM / 2 + i] = sin(angle);
            }
        }
        /* half a unit of the type, half the least step of f16, and the doubles' own 1e-13 at t = 999 */
        ok &= kern->time_embed(kit_ctx(kern, 1), y.p, y.type, t.p, B, DIM) == K_OK
            && buf_near(&y, want.v, kit_rel[type], type == F16 ? 0x1p-25 : 1e-12, "time_embed") && buf_intact(&y);
        z = buf_new(y.type, y.n);
        ok &= kern->time_embed(kit_ctx(kern, 3), z.p, z.type, t.p, B, DIM) == K_OK && buf_same(&y, &z, "threads");
        buf_free(&t);
        buf_free(&y);
        buf_free(&z);
        buf_free(&want);
    }
    tap_ok(ok, "%s: time_embed to the last bit up to t = 999", kern->name);
}

static void test_arguments(const struct kern *kern)
{
    struct kctx *k = kit_ctx(kern, 1);
    float p[8] = { 0 };
    int32_t id[2] = { 0, 0 };
    const struct kview4 none = { { 2, 0, 3, 4 }, { 1, 1, 1, 1 } }, back = { { 1, 1, 1, 2 }, { 1, 1, 1, -1 } },
                        less = { { 1, -1, 1, 1 }, { 1, 1, 1, 1 } };
    bool ok = kern->fill(k, p, N_DTYPE, 1, 0) == K_ARG && kern->fill(k, p, F32, -1, 0) == K_ARG
        && kern->fill(k, NULL, F32, 0, 0) == K_OK;

    ok &= kern->cast(k, p, F32, p, N_DTYPE, 1) == K_ARG && kern->cast(k, NULL, F32, NULL, F16, 0) == K_OK;
    ok &= kern->axpby(k, p, 1, p, 1, p, F32, -1) == K_ARG && kern->mul(k, p, p, p, N_DTYPE, 1) == K_ARG;
    ok &= kern->row_axpby(k, p, p, p, p, p, F32, -1, 1) == K_ARG && kern->lerp_mask(k, p, p, p, p, F32, 1, -1) == K_ARG;
    ok &= kern->lerp_mask(k, NULL, NULL, NULL, NULL, F32, 5, 0) == K_OK;
    ok &= kern->copy_rows(k, p, 1, p, 2, F32, 1, 2, false) == K_ARG
        && kern->copy_rows(k, p, 2, p, 1, F32, 1, 2, false) == K_ARG
        && kern->copy_rows(k, NULL, 2, NULL, 2, F32, 0, 2, true) == K_OK;
    ok &= kern->permute(k, NULL, NULL, F32, &none) == K_OK && kern->permute(k, p, p, F32, &back) == K_ARG
        && kern->permute(k, p, p, F32, &less) == K_ARG && kern->permute(k, p, p, N_DTYPE, &none) == K_ARG;
    ok &= kern->gather(k, NULL, F32, NULL, F32, id, 2, 1, 0) == K_OK
        && kern->gather(k, p, F32, p, F32, id, 1, 0, 1) == K_ARG
        && kern->gather_back(k, p, p, F32, id, 1, 1, -1) == K_ARG
        && kern->gather_back(k, NULL, NULL, F32, NULL, 0, 1, 4) == K_OK;
    ok &= kern->time_embed(k, p, F32, p, 1, 3) == K_ARG && kern->time_embed(k, NULL, F32, NULL, 0, 4) == K_OK
        && kern->time_embed(k, NULL, F32, p, 2, 0) == K_OK;
    tap_ok(ok, "%s: bad arguments are refused, sizes of 0 do nothing", kern->name);
}

int main(void)
{
    const struct kern *kern;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        for (int t = 0; t < N_DTYPE; t++) {
            test_flat(kern, (enum dtype)t);
            test_copy_rows(kern, (enum dtype)t);
            test_permute(kern, (enum dtype)t);
        }
        test_cast(kern);
        test_gather(kern);
        test_time_embed(kern);
        test_arguments(kern);
    }
    return tap_done();
}
