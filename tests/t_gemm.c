/* tests/t_gemm.c: products of plain matrices on every twin, against loops in doubles:
 *
 *     C (M,N) = alpha * op(A) (M,K) op(B) (K,N) + beta * C, n times with strides
 *
 * An element may be off by the roundings of a chain of K products, 2^-24 of the sum of |products| each, of which
 * min(K, 8 + 2 sqrt(K)) + 1 count because signs vary (conv_plan.c); by those of the epilogue; by one rounding to C's
 * type. Inputs end where a page begins that cannot be read; what lies between rows and matrices of C keeps its bits. */
#include "tests/conv_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

/* Gaps go between the rows as stored, and between matrices. */
struct gemm_case {
    const char *why;
    int64_t M, N, K, n;
    bool trans_a, trans_b;
    float alpha, beta;
    int64_t gap_a, gap_b, gap_c;
    enum batch { APART, SHARED_A, SHARED_B, SHARED_BOTH, INTERLEAVED } batch;
    enum dtype a, b, c;
};

struct matrices {
    struct kgemm g;                     /* all but the pointers */
    struct buf a, b, c;
    double *want, *tol;                 /* like c; tol < 0: the element is not part of the product */
};

static uint64_t seed;

/* ---- layout and reference ---- */

/* Elements that n matrices of rows x columns span; `interleaved` puts row r of all of them side by side. */
static int64_t lay(int64_t n, int64_t rows, int64_t columns, int64_t gap, bool shared, bool interleaved, int64_t *ld,
                   int64_t *stride)
{
    *ld = (interleaved ? n * columns : columns) + gap;
    *stride = shared ? 0 : interleaved ? columns : rows * *ld + 2 * gap;
    return rows && columns && n ? (n - 1) * *stride + (rows - 1) * *ld + columns : 0;
}

static void reference(struct matrices *m)
{
    const struct kgemm *g = &m->g;
    const double K = (double)g->K, c = U * (1 + fmin(K, 8 + 2 * sqrt(K)));

    for (int64_t i = 0; i < m->c.n; i++)
        m->tol[i] = -1;
    for (int64_t at = 0; at < g->n * g->M * g->N; at++) {
        const int64_t i = at / g->N / g->M, r = at / g->N % g->M, q = at % g->N;
        const int64_t to = i * g->stride_c + r * g->ldc + q;
        double sum = 0, mag = 0, old = g->beta != 0 ? g->beta * m->c.v[to] : 0;

        for (int64_t k = 0; k < g->K; k++) {
            const double t = m->a.v[i * g->stride_a + (g->trans_a ? k * g->lda + r : r * g->lda + k)]
                * m->b.v[i * g->stride_b + (g->trans_b ? q * g->ldb + k : k * g->ldb + q)];
            sum += t;
            mag += fabs(t);
        }
        m->want[to] = g->alpha * sum + old;
        m->tol[to] = fabs(g->alpha) * c * mag + 3 * U * (fabs(g->alpha * sum) + fabs(old));
        m->tol[to] += kit_rel[g->c_type] * (fabs(m->want[to]) + m->tol[to]) + (g->c_type == F16 ? 0x1p-25 : 0);
    }
}

static struct matrices matrices_make(const struct gemm_case *s)
{
    const bool inter = s->batch == INTERLEAVED, one_a = s->batch == SHARED_A || s->batch == SHARED_BOTH;
    const bool one_b = s->batch == SHARED_B || s->batch == SHARED_BOTH;
    struct matrices m = { .g = { .M = s->M, .N = s->N, .K = s->K, .n = s->n, .a_type = s->a, .b_type = s->b,
                                 .c_type = s->c, .trans_a = s->trans_a, .trans_b = s->trans_b, .alpha = s->alpha,
                                 .beta = s->beta } };
    struct kgemm *g = &m.g;
    const int64_t in_a = lay(s->n, s->trans_a ? s->K : s->M, s->trans_a ? s->M : s->K, s->gap_a, one_a, inter, &g->lda,
                             &g->stride_a);
    const int64_t in_b = lay(s->n, s->trans_b ? s->N : s->K, s->trans_b ? s->K : s->N, s->gap_b, one_b, inter, &g->ldb,
                             &g->stride_b);
    const int64_t in_c = lay(s->n, s->M, s->N, s->gap_c, false, inter, &g->ldc, &g->stride_c);

    m.a = buf_random(s->a, in_a, ++seed, 1);
    m.b = buf_random(s->b, in_b, ++seed, 1 / sqrt((double)s->K + 1));
    m.c = s->beta != 0 ? buf_random(s->c, in_c, ++seed, 1) : buf_new(s->c, in_c);
    m.want = calloc((size_t)in_c + 1, sizeof *m.want);
    m.tol = calloc((size_t)in_c + 1, sizeof *m.tol);
    reference(&m);
    return m;
}

static void matrices_free(struct matrices *m)
{
    buf_free(&m->a), buf_free(&m->b), buf_free(&m->c);
    free(m->want), free(m->tol);
}

/* ---- running ---- */

static struct buf c_make(const struct matrices *m)
{
    return m->g.beta != 0 ? buf_copy(&m->c) : buf_new(m->g.c_type, m->c.n);
}

static bool run(const struct kern *kern, int n_threads, const struct matrices *m, struct buf *c)
{
    struct kgemm g = m->g;

    g.a = fenced(0, &m->a);
    g.b = fenced(1, &m->b);
    g.c = c->p;
    return kern->gemm(kit_ctx(kern, n_threads), &g) == K_OK && buf_intact(c);
}

/* Every element within its tolerance, all others as they were. */
static bool compare(const struct matrices *m, struct buf *c, const char *why, const char *isa)
{
    const size_t size = dtype_bytes(c->type);

    buf_read(c);
    for (int64_t i = 0; i < c->n; i++) {
        if (m->tol[i] >= 0 ? fabs(c->v[i] - m->want[i]) <= m->tol[i]
                           : !memcmp((char *)c->p + (size_t)i * size, (char *)m->c.p + (size_t)i * size, size))
            continue;
        tap_note("%s, %s, %s %s to %s, %s%s, alpha %g, beta %g: element %lld is %.9g, want %.9g within %.3g", why, isa,
                 type_name[m->g.a_type], type_name[m->g.b_type], type_name[m->g.c_type], m->g.trans_a ? "A'" : "A",
                 m->g.trans_b ? "B'" : "B", m->g.alpha, m->g.beta, (long long)i, c->v[i], m->want[i], m->tol[i]);
        return false;
    }
    return true;
}

static bool check(const struct gemm_case *s)
{
    struct matrices m = matrices_make(s);
    const struct kern *kern;
    bool ok = true;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        struct buf c = c_make(&m);
        const bool ran = run(kern, 1, &m, &c);

        if (!ran)
            tap_note("%s, %s: did not run", s->why, kern->name);
        ok &= ran && compare(&m, &c, s->why, kern->name);
        buf_free(&c);
    }
    matrices_free(&m);
    return ok;
}

/* ---- values ---- */

static const struct { const char *why; int64_t M, N, K; } sizes[] = {
    { "single elements",                   1,   1,   1 },
    { "a product of vectors",              1,   1, 401 },
    { "an outer product",                 13,  33,   1 },
    { "one row",                           1, 320, 800 },
    { "one column",                       15,   1,  77 },
    { "tiles less one",                   13,  31,  15 },
    { "whole tiles",                      14,  32,  16 },
    { "tiles and one",                    15,  33,  17 },
    { "heads of 40 over 77 tokens",       64,  77,  40 },
    { "the same back",                    64,  40,  77 },
    { "blocks of depth",                   7,  40, 901 },
    { "two blocks of depth, odd",          9,  17, 769 },
    { "blocks of rows",                  341,  20,   9 },
    { "blocks of columns",                 6, 345,  11 },
    { "nothing to sum",                    5,  35,   0 },
};

static const float factors[][2] = { { 1, 0 }, { 0.3f, 0 }, { 1, 1 }, { -2, 0.5f }, { 0, 0 }, { 0, 1 }, { 1, -1 } };

static void test_sizes(void)
{
    for (size_t i = 0; i < LEN(sizes); i++) {
        bool ok = true;

        for (int trans = 0; trans < 4; trans++)
            for (int t = 0; t < 27; t++) {
                const float *f = factors[(i + (size_t)(trans * 27 + t)) % LEN(factors)];
                const struct gemm_case s = { sizes[i].why, sizes[i].M, sizes[i].N, sizes[i].K, 1, trans & 1, trans & 2,
                                             f[0], f[1], t % 4, (t + 1) % 3, (t + trans) % 5, APART,
                                             (enum dtype)(t % 3), (enum dtype)(t / 3 % 3), (enum dtype)(t / 9) };
                ok &= check(&s);
            }
        tap_ok(ok, "%s, in all types and both ways round", sizes[i].why);
    }
}

static void test_factors(void)
{
    for (size_t f = 0; f < LEN(factors); f++) {
        bool ok = true;

        for (int t = 0; t < 9; t++)
            for (int64_t K = 0; K < 40; K += 13) {
                const struct gemm_case s = { "factors", 15, 37, K, 1, t % 2, t % 4 > 1, factors[f][0], factors[f][1],
                                             1, 2, 3, APART, (enum dtype)(t % 3), (enum dtype)(t % 3),
                                             (enum dtype)(t / 3) };
                ok &= check(&s);
            }
        tap_ok(ok, "alpha %g, beta %g", factors[f][0], factors[f][1]);
    }
}

static void test_batches(void)
{
    static const char *const name[] = { "apart", "A shared", "B shared", "both shared", "interleaved" };

    for (int batch = APART; batch <= INTERLEAVED; batch++) {
        bool ok = true;

        for (int i = 0; i < 4 * 3 * 2; i++) {
            const enum dtype t = (enum dtype)(i / 4 % 3);
            struct gemm_case s = { name[batch], 15, 20, 33, 3, i & 1, i & 2, 0.5f, (float)(i / 12), 1, 2, 3, APART,
                                   t, t, t };

            s.batch = (enum batch)batch;
            ok &= check(&s);
        }
        tap_ok(ok, "batches: %s", name[batch]);
    }
}

/* ---- the same bits ---- */

static const enum dtype bit_types[][3] = { { F32, F32, F32 }, { BF16, BF16, BF16 }, { F32, F16, BF16 } };

static bool same_in_threads(const struct kern *kern, const struct gemm_case *s)
{
    struct matrices m = matrices_make(s);
    struct buf one = c_make(&m);
    bool ok = run(kern, 1, &m, &one);

    for (int n = 2; n <= 5; n++) {
        struct buf c = c_make(&m);
        ok &= run(kern, n, &m, &c) && buf_same(&c, &one, "%s, %d threads", kern->name, n);
        buf_free(&c);
    }
    buf_free(&one);
    matrices_free(&m);
    return ok;
}

/* Product i of a batch, rows [row, row+rows), alone. A is not transposed. */
static bool same_alone(const struct kern *kern, const struct matrices *m, const struct buf *whole, int64_t i,
                       int64_t row, int64_t rows)
{
    const struct kgemm *g = &m->g;
    const int64_t at = i * g->stride_c + row * g->ldc, n = (rows - 1) * g->ldc + g->N;
    struct matrices part = *m;
    struct buf c, want = buf_view(whole, at, n);
    bool ok;

    part.a = buf_view(&m->a, i * g->stride_a + row * g->lda, (rows - 1) * g->lda + g->K);
    part.b = buf_view(&m->b, i * g->stride_b, m->b.n - i * g->stride_b);
    part.c = buf_view(&m->c, at, n);
    part.g.M = rows;
    part.g.n = 1;
    c = c_make(&part);
    ok = run(kern, 1, &part, &c) && buf_same(&c, &want, "%s: product %lld, %lld rows from %lld on", kern->name,
                                             (long long)i, (long long)rows, (long long)row);
    buf_free(&c);
    return ok;
}

static bool rows_alone(const struct kern *kern, const struct gemm_case *s)
{
    struct matrices m = matrices_make(s);
    struct buf whole = c_make(&m);
    bool ok = run(kern, 1, &m, &whole);

    for (int64_t i = 0; i < s->n; i++) {
        ok &= same_alone(kern, &m, &whole, i, 0, s->M);
        for (int64_t row = i; row + 15 < s->M; row += 37)
            for (int64_t rows = 1; rows <= 15; rows += 7)
                ok &= same_alone(kern, &m, &whole, i, row, rows);
    }
    buf_free(&whole);
    matrices_free(&m);
    return ok;
}

static void test_same(void)
{
    const struct kern *kern;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        bool ok = true, ok_alone = true;

        for (int t = 0; t < 3 * 4; t++) {
            struct gemm_case s = { "same", 120, 75, 801, 2, t & 1, t & 2, 0.7f, (float)(t % 2), 1, 0, 2, APART,
                                   bit_types[t / 4][0], bit_types[t / 4][1], bit_types[t / 4][2] };
            ok &= same_in_threads(kern, &s);
            s.trans_a = false;
            ok_alone &= rows_alone(kern, &s);
        }
        tap_ok(ok, "%s: 1, 2, 3, 4 and 5 threads, same bits", kern->name);
        tap_ok(ok_alone, "%s: a product and its rows alone, same bits", kern->name);
    }
}

/* ---- arguments ---- */

/* Make a sound call of 6x7x5 unsound in the i-th way; NULL after the last. */
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
    case 10: return g->trans_a = true, g->lda = 5, "rows of A' that overlap";
    case 11: return g->trans_b = true, g->ldb = 4, "rows of B' that overlap";
    default: return NULL;
    }
}

static struct kgemm sound(const struct buf *c)
{
    static const float zero[64];

    return (struct kgemm){ .M = 6, .N = 7, .K = 5, .n = 1, .a = zero, .b = zero, .c = c->p, .lda = 5, .ldb = 7,
                           .ldc = 7, .alpha = 1 };
}

static bool refuses(const struct kern *kern, struct kctx *k)
{
    struct buf c = buf_new(F32, 42), fresh = buf_new(F32, 42);
    bool ok = true;

    for (int i = 0;; i++) {
        struct kgemm g = sound(&c);
        const char *what = spoil(&g, i);
        int rc;

        if (!what)
            break;
        rc = kern->gemm(k, &g);
        if (rc != K_ARG)
            tap_note("%s: gemm returns %d for: %s", kern->name, rc, what);
        ok &= rc == K_ARG && buf_same(&c, &fresh, "%s wrote C, refusing: %s", kern->name, what);
    }
    buf_free(&c), buf_free(&fresh);
    return ok;
}

/* Too little scratch is said; empty products do nothing. */
static bool edges(const struct kern *kern)
{
    struct buf c = buf_new(F32, 42), fresh = buf_new(F32, 42);
    struct kctx *k = kit_ctx(kern, 1), small = *k;
    struct kgemm g = sound(&c);
    bool ok;

    small.scratch_bytes = 4096;
    ok = kern->gemm(&small, &g) == K_SCRATCH;
    g.M = 0;
    ok &= kern->gemm(k, &g) == K_OK;
    g.M = 6, g.N = 0;
    ok &= kern->gemm(k, &g) == K_OK;
    g.N = 7, g.n = 0;
    ok &= kern->gemm(k, &g) == K_OK && buf_same(&c, &fresh, "%s: nothing to do", kern->name);
    g.n = 1;
    ok &= kern->gemm(k, &g) == K_OK && buf_intact(&c);
    buf_read(&c);
    for (int64_t i = 0; i < c.n; i++)
        ok &= c.v[i] == 0;
    buf_free(&c), buf_free(&fresh);
    return ok;
}

static void test_arguments(void)
{
    const struct kern *kern;
    struct kern null;

    kern_null(&null, kern_cpu(NULL));
    for (int i = 0; (kern = kit_twin(i)); i++) {
        tap_ok(refuses(kern, kit_ctx(kern, 1)), "%s refuses what the contract does not allow", kern->name);
        tap_ok(edges(kern), "%s: little scratch, nothing to do", kern->name);
    }
    tap_ok(refuses(&null, kit_ctx(kern_cpu(NULL), 1)), "null refuses the same");
}

int main(void)
{
    test_sizes();
    test_factors();
    test_batches();
    test_same();
    test_arguments();
    return tap_done();
}
