/* kernels/attn_back_cpu.c: gradients of attention; Dao et al. 2022, appendix B.
 *
 * Scores are computed again from q, k and the forward pass's lse. One task is a run of keys of one head, LANES keys
 * side by side in vectors; their gradients stay transposed (D, LANES) while blocks of queries pass by. Per block
 *
 *     S = Q K^T    P = exp(scale S - lse)    dP = dO V^T    dS = P (dP - delta),   delta = rowsum(dO O)
 *     dV^T += dO^T P    dK^T += Q^T dS    dQ += dS K
 *
 * dQ sums over keys, so each task writes its share to `work`, and shares are added in order of keys. How keys are cut
 * depends on sizes alone. */
#include <omp.h>

#include "kernels/attn_tile.h"
#include "kernels/isa.h"

/* Sizes of one call. */
struct plan {
    bool dot;                   /* products of stored bf16 */
    int64_t steps;              /* words of a row: D, or pairs of them */
    int64_t ldr;                /* row stride of packs that are not transposed */
    int64_t q_block;            /* queries that meet a group of keys at once */
    int64_t chunk, n_chunk;     /* keys per task, tasks per head */
    int64_t part;               /* keys whose packs and gradients lie in scratch at once */
    int64_t d_size;             /* floats of one group's transposed gradient */
};

/* A task's scratch; words of dot products hold pairs of bf16. */
struct mem {
    float *kt, *vt;             /* (group, steps, LANES) */
    float *kr;                  /* (group, LANES, ldr); dot: pairs of keys */
    float *dk, *dv;             /* (group, D, LANES) */
    float *qt, *ot;             /* (steps, q_block): q (f32: times scale * log2(e)) and d_o */
    float *qr, *orow;           /* (q_block, ldr): the same, not transposed; dot: pairs of queries */
    float *dq;                  /* (q_block, ldr) */
    float *lse, *delta;         /* (q_block); lse in powers of two */
    float *s, *ds;              /* (q_block, LANES): S and dP, then P and dS; dot: pairs of queries */
    float *dsr;                 /* dot: (q_block, VL) dS as pairs of keys */
    float *strip;
};

enum { CHUNK_MIN = 256, TASKS = 16, PART_BYTES = 2 << 20 };

static struct plan make_plan(const struct kattn *a)
{
    const int64_t D = a->D;
    struct plan p = { .dot = attn_dot(a) };
    int64_t n = (TASKS + a->N - 1) / a->N;

    p.steps = p.dot ? (D + 1) / 2 : D;
    p.ldr = row_stride(D);
    p.d_size = (D + ROWS_MIN) * LANES;
    p.q_block = D <= 256 ? 112 : D <= 512 ? 64 : D <= 1024 ? 32 : 16;
    if (n > a->Tk / CHUNK_MIN)
        n = a->Tk / CHUNK_MIN;
    if (n < 1)
        n = 1;
    p.chunk = round_up((a->Tk + n - 1) / n, LANES);
    p.n_chunk = (a->Tk + p.chunk - 1) / p.chunk;
    p.part = PART_BYTES / (4 * (2 * p.steps + p.ldr + 2 * (D + ROWS_MIN))) / LANES * LANES;
    if (p.part < LANES)
        p.part = LANES;
    if (p.part > p.chunk)
        p.part = p.chunk;
    return p;
}

/* Places everything in scratch; returns the number of floats. */
static int64_t place(struct mem *m, const struct plan *p, int64_t D, float *scratch)
{
    const int64_t n_group = p->part / LANES, rows = p->q_block + ROWS_MAX;
    float *free = scratch;

    m->kt = take(&free, n_group * p->steps * LANES);
    m->vt = take(&free, n_group * p->steps * LANES);
    m->kr = take(&free, n_group * LANES * p->ldr);
    m->dk = take(&free, n_group * p->d_size);
    m->dv = take(&free, n_group * p->d_size);
    m->qt = take(&free, p->steps * p->q_block);
    m->ot = take(&free, p->steps * p->q_block);
    m->qr = take(&free, p->q_block * p->ldr);
    m->orow = take(&free, p->q_block * p->ldr);
    m->dq = take(&free, rows * p->ldr);
    m->lse = take(&free, p->q_block);
    m->delta = take(&free, p->q_block);
    m->s = take(&free, rows * LANES);
    m->ds = take(&free, rows * LANES);
    m->dsr = take(&free, rows * VL);
    m->strip = take(&free, strip_size(D));
    return free - scratch;
}

/* ---- dQ: the one product whose lanes run along D ---- */

/* c (ROWS_MAX, nv*VL) += a (ROWS_MAX, n) b (n, nv*VL); rows of a are lda apart, of b and c ld. */
INLINE void row_tile(int nv, bool dot, float *c, const float *a, int lda, const float *b, int64_t ld, int64_t n)
{
    vf acc[ROWS_MAX][2];

#pragma GCC unroll 16
    for (int m = 0; m < ROWS_MAX; m++)
        acc[m][0] = acc[m][1] = v_zero();
    for (int64_t k = 0; k < n; k++, a++, b += ld) {
        const vf x0 = v_loadf(b), x1 = nv > 1 ? v_loadf(b + VL) : x0;
#pragma GCC unroll 16
        for (int m = 0; m < ROWS_MAX; m++) {
            acc[m][0] = mac(acc[m][0], a + m * lda, x0, dot);
            if (nv > 1)
                acc[m][1] = mac(acc[m][1], a + m * lda, x1, dot);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS_MAX; m++)
        for (int j = 0; j < nv; j++) {
            float *y = c + m * ld + j * VL;
            v_storef(y, v_loadf(y) + acc[m][j]);
        }
}

#if VL == 16
/* The same for the last 8 columns. */
INLINE void row_tile_half(bool dot, float *c, const float *a, int lda, const float *b, int64_t ld, int64_t n)
{
    __m256 acc[ROWS_MAX];

#pragma GCC unroll 16
    for (int m = 0; m < ROWS_MAX; m++)
        acc[m] = _mm256_setzero_ps();
    for (int64_t k = 0; k < n; k++, a++, b += ld) {
        const __m256 x = _mm256_loadu_ps(b);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS_MAX; m++) {
#if HAS_BF16_DOT
            int32_t pair;
            memcpy(&pair, a + m * lda, sizeof pair);
            if (dot)
                acc[m] = _mm256_dpbf16_ps(acc[m], (__m256bh)_mm256_set1_epi32(pair), (__m256bh)x);
            else
#endif
                acc[m] = _mm256_fmadd_ps(_mm256_set1_ps(a[m * lda]), x, acc[m]);
        }
    }
    (void)dot;
#pragma GCC unroll 16
    for (int m = 0; m < ROWS_MAX; m++)
        _mm256_storeu_ps(c + m * ld, _mm256_add_ps(_mm256_loadu_ps(c + m * ld), acc[m]));
}
#endif

/* c (ROWS_MAX, D) += a (ROWS_MAX, n) b (n, D) */
INLINE void row_tiles(bool dot, float *c, const float *a, const float *b, int64_t ld, int64_t n, int64_t D)
{
    const int lda = dot ? VL : LANES;

    for (; D > VL + VL / 2 || (D > VL && VL < 16); D -= LANES, c += LANES, b += LANES)
        row_tile(2, dot, c, a, lda, b, ld, n);
    for (; D > VL / 2 || (D > 0 && VL < 16); D -= VL, c += VL, b += VL)
        row_tile(1, dot, c, a, lda, b, ld, n);
#if VL == 16
    if (D > 0)
        row_tile_half(dot, c, a, lda, b, ld, n);
#endif
}

/* dq (rows, D) += ds (rows, n) k (n, D). Rows behind the last are written too. */
static void row_panel(bool dot, float *dq, const float *ds, const float *k, int64_t ld, int64_t n, int64_t rows,
                      int64_t D)
{
    for (int64_t i = 0; i < rows; i += ROWS_MAX, dq += ROWS_MAX * ld)
        if (HAS_BF16_DOT && dot)
            row_tiles(true, dq, ds + i * VL, k, ld, n, D);
        else
            row_tiles(false, dq, ds + i * LANES, k, ld, n, D);
}

/* ---- softmax ---- */

/* P over S and dS over dP; if causal, zero for keys behind their query. Lanes behind the last key repeat it: they are
 * as finite as it is, and nothing reads them. */
INLINE void grad_scores(bool causal, const struct mem *m, int64_t nq, int64_t ahead)
{
    for (int64_t i = 0; i < nq; i++) {
        const vf lse = v_set(m->lse[i]), delta = v_set(m->delta[i]);
        for (int j = 0; j < 2; j++) {
            float *s = m->s + i * LANES + j * VL, *ds = m->ds + i * LANES + j * VL;
            vf p = v_exp2(v_loadf(s) - lse, false), d = p * (v_loadf(ds) - delta);
            if (causal) {
                const vi in = v_lanes(j * VL) <= (int32_t)(ahead + i);
                p = v_select(in, p, v_zero());
                d = v_select(in, d, v_zero());
            }
            v_storef(s, p);
            v_storef(ds, d);
        }
    }
}

#if HAS_BF16_DOT
/* The same for dot products: pairs of queries for dV and dK, and dS once more as pairs of keys for dQ. c: scale. The
 * last query of an odd number is paired with zeros. */
INLINE void grad_scores_pairs(bool masks, bool causal, const struct mem *m, int64_t nq, int64_t ahead, vf c)
{
    for (int64_t i = 0; i < nq; i += 2) {
        vf p[2][2], d[2][2];
        for (int r = 0; r < 2; r++) {
            const vf lse = v_set(m->lse[i + r]), delta = v_set(m->delta[i + r]);
            const int64_t seen = i + r >= nq ? 0 : causal ? ahead + i + r + 1 : LANES;
            for (int j = 0; j < 2; j++) {
                const int64_t x = (i + r) * LANES + j * VL;
                p[r][j] = v_exp2(v_fma(v_loadf(m->s + x), c, -lse), true);
                d[r][j] = p[r][j] * (v_loadf(m->ds + x) - delta);
                if (masks) {
                    const vi in = v_lanes(j * VL) < (int32_t)seen;
                    p[r][j] = v_select(in, p[r][j], v_zero());
                    d[r][j] = v_select(in, d[r][j], v_zero());
                }
            }
            _mm512_storeu_si512(m->dsr + (i + r) * VL, (__m512i)_mm512_cvtne2ps_pbh((__m512)d[r][1], (__m512)d[r][0]));
        }
        for (int j = 0; j < 2; j++) {
            v_storef(m->s + i / 2 * LANES + j * VL, v_bf16_pair(p[0][j], p[1][j]));
            v_storef(m->ds + i / 2 * LANES + j * VL, v_bf16_pair(d[0][j], d[1][j]));
        }
    }
}
#endif

/* ---- one block of queries and one group of keys ---- */

/* nk of the group's lanes are keys. ahead: first query - first key. */
static void meet(const struct kattn *a, const struct plan *p, const struct mem *m, int64_t group, int64_t nq,
                 int64_t nk, int64_t ahead)
{
    const int64_t n_word = p->steps * LANES, n_pair = p->dot ? (nq + 1) / 2 : nq;
    const float *kt = m->kt + group * n_word, *vt = m->vt + group * n_word, *kr = m->kr + group * LANES * p->ldr;
    const int nv = nk > VL ? 2 : 1;
    const bool causal = a->causal && ahead < nk - 1;
    float one[LANES];

    for (int i = 0; i < LANES; i++)
        one[i] = 1.0f;
    panel(nv, p->dot, TILE_SET, m->s, m->qt, p->q_block, kt, p->steps, nq, one);
    panel(nv, p->dot, TILE_SET, m->ds, m->ot, p->q_block, vt, p->steps, nq, one);
#if HAS_BF16_DOT
    if (p->dot && (causal || nq % 2))
        grad_scores_pairs(true, causal, m, nq, ahead, v_set(a->scale * log2_e));
    else if (p->dot)
        grad_scores_pairs(false, false, m, nq, ahead, v_set(a->scale * log2_e));
    else
#endif
    if (causal)
        grad_scores(true, m, nq, ahead);
    else
        grad_scores(false, m, nq, ahead);
    panel(nv, p->dot, TILE_ADD, m->dv + group * p->d_size, m->orow, p->ldr, m->s, n_pair, a->D, one);
    panel(nv, p->dot, TILE_ADD, m->dk + group * p->d_size, m->qr, p->ldr, m->ds, n_pair, a->D, one);
    row_panel(p->dot, m->dq, p->dot ? m->dsr : m->ds, kr, p->ldr, p->dot ? (nk + 1) / 2 : nk, nq, a->D);
}

/* ---- one task ---- */

INLINE float row_dot(const void *x, const void *y, enum dtype T, int64_t D)
{
    vf s = v_zero();
    int64_t d = 0;

    for (; d + VL <= D; d += VL)
        s = v_fma(v_load(x, d, T), v_load(y, d, T), s);
    if (d < D)
        s = v_fma(v_load_n(x, d, T, D - d), v_load_n(y, d, T, D - d), s);
    return v_sum(s);
}

/* Keys [k0, k0+nk) of head n of image b, and zeros for their gradients. */
INLINE void pack_keys(const struct kattn *a, const struct plan *p, const struct mem *m, enum dtype T, int64_t b,
                      int64_t n, int64_t k0, int64_t nk)
{
    for (int64_t i = 0; i < nk; i += LANES) {
        const int64_t g = i / LANES, row = b * a->Tk + k0 + i, ng = lesser(nk - i, LANES);
        const char *k = at(a->k, T, row * a->ldk + n * a->D), *v = at(a->v, T, row * a->ldv + n * a->D);
        pack_columns(p->dot, m->kt + g * p->steps * LANES, LANES, k, T, a->ldk, ng, a->D, 1.0f, m->strip);
        pack_columns(p->dot, m->vt + g * p->steps * LANES, LANES, v, T, a->ldv, ng, a->D, 1.0f, m->strip);
        pack_rows(p->dot, m->kr + g * LANES * p->ldr, p->ldr, k, T, a->ldk, ng, a->D);
    }
    memset(m->dk, 0, sizeof(float) * (size_t)(round_up(nk, LANES) / LANES * p->d_size));
    memset(m->dv, 0, sizeof(float) * (size_t)(round_up(nk, LANES) / LANES * p->d_size));
}

INLINE void pack_queries(const struct kattn_back *g, const struct plan *p, const struct mem *m, enum dtype T,
                         int64_t b, int64_t n, int64_t q0, int64_t nq)
{
    const struct kattn *a = &g->f;
    const int64_t row = b * a->Tq + q0;
    const char *q = at(a->q, T, row * a->ldq + n * a->D), *d_o = at(g->d_o, T, row * g->ldd_o + n * a->D);
    const float *lse = a->lse + (b * a->N + n) * a->Tq + q0;

    pack_columns(p->dot, m->qt, p->q_block, q, T, a->ldq, nq, a->D, a->scale * log2_e, m->strip);
    pack_columns(p->dot, m->ot, p->q_block, d_o, T, g->ldd_o, nq, a->D, 1.0f, m->strip);
    pack_rows(p->dot, m->qr, p->ldr, q, T, a->ldq, nq, a->D);
    pack_rows(p->dot, m->orow, p->ldr, d_o, T, g->ldd_o, nq, a->D);
    for (int64_t i = 0; i < nq; i++) {
        m->lse[i] = lse[i] * log2_e;
        m->delta[i] = row_dot(at(d_o, T, i * g->ldd_o), at(a->o, T, (row + i) * a->ldo + n * a->D), T, a->D);
    }
    m->lse[nq] = m->delta[nq] = 0;
    memset(m->dq, 0, sizeof(float) * (size_t)((nq + ROWS_MAX) * p->ldr));
}

/* share (nq, D) = or += dq (nq, ldr) */
INLINE void keep_share(float *share, const float *dq, int64_t ldr, int64_t nq, int64_t D, bool first)
{
    for (int64_t i = 0; i < nq; i++, share += D, dq += ldr)
        for (int64_t d = 0; d < D; d++)
            share[d] = first ? dq[d] : share[d] + dq[d];
}

/* Keys [k0, k0+nk) of head n of image b against all queries. share: this task's (Tq, D) of dQ. */
INLINE void back_part(const struct kattn_back *g, const struct plan *p, const struct mem *m, enum dtype T, int64_t b,
                      int64_t n, int64_t k0, int64_t nk, float *share, bool first)
{
    const struct kattn *a = &g->f;
    float one[LANES], scale[LANES];

    for (int i = 0; i < LANES; i++) {
        one[i] = 1.0f;
        scale[i] = a->scale;
    }
    pack_keys(a, p, m, T, b, n, k0, nk);
    for (int64_t q0 = 0; q0 < a->Tq; q0 += p->q_block) {
        const int64_t nq = lesser(a->Tq - q0, p->q_block);
        const int64_t seen = a->causal ? lesser(nk, q0 + nq - k0) : nk;      /* keys that some query here sees */
        if (seen <= 0 && !first)
            continue;
        pack_queries(g, p, m, T, b, n, q0, nq);
        for (int64_t i = 0; i < seen; i += LANES)
            meet(a, p, m, i / LANES, nq, lesser(nk - i, LANES), q0 - k0 - i);
        keep_share(share + q0 * a->D, m->dq, p->ldr, nq, a->D, first);
    }
    for (int64_t i = 0; i < nk; i += LANES) {
        const int64_t row = b * a->Tk + k0 + i, ng = lesser(nk - i, LANES), o = i / LANES * p->d_size;
        unpack_columns(at(g->dk, T, row * g->lddk + n * a->D), T, g->lddk, m->dk + o, ng, a->D, scale, m->strip);
        unpack_columns(at(g->dv, T, row * g->lddv + n * a->D), T, g->lddv, m->dv + o, ng, a->D, one, m->strip);
    }
}

INLINE void back_task(const struct kattn_back *g, const struct plan *p, enum dtype T, int64_t b, int64_t n, int64_t c,
                      float *share, float *scratch)
{
    const int64_t end = lesser(g->f.Tk, (c + 1) * p->chunk);
    struct mem m;

    place(&m, p, g->f.D, scratch);
    for (int64_t k0 = c * p->chunk; k0 < end; k0 += p->part)
        back_part(g, p, &m, T, b, n, k0, lesser(end - k0, p->part), share, k0 == c * p->chunk);
}

/* dq row (D) of type T = scale * the sum of its shares, which lie `apart` floats apart. */
INLINE void sum_shares(void *dq, enum dtype T, const float *share, int64_t apart, int64_t n, int64_t D, float scale)
{
    for (int64_t d = 0; d < D; d += VL) {
        vf s = d + VL <= D ? v_loadf(share + d) : v_load_n(share, d, F32, D - d);
        for (int64_t c = 1; c < n; c++)
            s += d + VL <= D ? v_loadf(share + c * apart + d) : v_load_n(share + c * apart, d, F32, D - d);
        if (d + VL <= D)
            v_store(dq, d, T, v_set(scale) * s);
        else
            v_store_n(dq, d, T, v_set(scale) * s, D - d);
    }
}

/* ---- the call ---- */

/* Images whose shares lie in `work` at once: enough tasks for the threads. */
static int64_t images_at_once(const struct kattn *a, const struct plan *p, int n_threads)
{
    return lesser(a->B, (4 * (int64_t)n_threads + a->N * p->n_chunk - 1) / (a->N * p->n_chunk));
}

static size_t attn_back_bytes(const struct kattn *a, int n_threads)
{
    struct plan p;

    if (!attn_ok(a) || attn_empty(a))
        return 0;
    p = make_plan(a);
    return sizeof(float) * (size_t)(images_at_once(a, &p, n_threads) * p.n_chunk * a->N * a->Tq * a->D);
}

/* Images [b0, b0+n) */
static void back_images(struct kctx *k, const struct kattn_back *g, const struct plan *p, int64_t b0, int64_t n)
{
    const struct kattn *a = &g->f;
    const int64_t per_image = a->N * p->n_chunk, size = a->Tq * a->D, n_row = n * a->Tq * a->N;

#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n * per_image > 1 && attn_big(a))
    for (int64_t i = 0; i < n * per_image; i++) {
        const int64_t b = b0 + i / per_image, h = i % per_image / p->n_chunk, c = i % p->n_chunk;
        float *scratch = (float *)(void *)thread_scratch(k, omp_get_thread_num()), *share = (float *)g->work + i * size;
        switch (a->type) {
        case F32: back_task(g, p, F32, b, h, c, share, scratch); break;
        case F16: back_task(g, p, F16, b, h, c, share, scratch); break;
        default: back_task(g, p, BF16, b, h, c, share, scratch); break;
        }
    }
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n_row * a->D > 1 << 14)
    for (int64_t i = 0; i < n_row; i++) {
        const int64_t b = i / (a->Tq * a->N), q = i / a->N % a->Tq, h = i % a->N;
        const float *share = (const float *)g->work + ((b * a->N + h) * p->n_chunk * a->Tq + q) * a->D;
        char *dq = at(g->dq, a->type, ((b0 + b) * a->Tq + q) * g->lddq + h * a->D);
        switch (a->type) {
        case F32: sum_shares(dq, F32, share, size, p->n_chunk, a->D, a->scale); break;
        case F16: sum_shares(dq, F16, share, size, p->n_chunk, a->D, a->scale); break;
        default: sum_shares(dq, BF16, share, size, p->n_chunk, a->D, a->scale); break;
        }
    }
}

static int attn_back(struct kctx *k, const struct kattn_back *g)
{
    const int64_t row = g->f.N * g->f.D;
    struct plan p;
    struct mem m;
    int64_t n;

    if (!attn_ok(&g->f) || g->ldd_o < row || g->lddq < row || g->lddk < row || g->lddv < row)
        return K_ARG;
    if (attn_empty(&g->f))
        return K_OK;
    p = make_plan(&g->f);
    if ((size_t)place(&m, &p, g->f.D, k->scratch) * sizeof(float) > k->scratch_bytes)
        return K_SCRATCH;
    n = images_at_once(&g->f, &p, k->n_threads);
    for (int64_t b = 0; b < g->f.B; b += n)
        back_images(k, g, &p, b, lesser(g->f.B - b, n));
    return K_OK;
}

void ISA_NAME(fill_attn_back)(struct kern *k)
{
    if (k->scratch_bytes < SCRATCH_BYTES)
        k->scratch_bytes = SCRATCH_BYTES;
    k->attn_back_bytes = attn_back_bytes;
    k->attn_back = attn_back;
}
