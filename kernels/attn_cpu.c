/* kernels/attn_cpu.c: attention by blocks of keys with a running softmax; Dao et al. 2022, Rabe & Staats 2021.
 *
 * One task is a block of queries of one head. Its queries lie transposed, LANES of them side by side in vectors; for
 * each block of keys every group of lanes computes its scores (keys, LANES), raises its maxima, takes exponentials and
 * adds P^T V to its output, which stays transposed (D, LANES) until the end:
 *
 *     S^T = K Q^T    top' = max(top, S)    P = 2^(S - top')    r = 2^(top - top')    l = r l + sum P    O = r O + V^T P
 *
 * Blocks of keys are the same for every query, so a query's bits depend on its own row, K and V alone. */
#include <omp.h>

#include "kernels/attn_tile.h"
#include "kernels/isa.h"

enum { KEYS = 112 };            /* a block of keys: whole tiles, an odd number of cache lines */

static const float masked = -1e30f;     /* a score that is not seen; finite, so that differences and products are */

/* Sizes of one call. */
struct plan {
    bool dot;                   /* products of stored bf16 */
    int64_t steps;              /* words of a row of Q or K: D, or pairs of them */
    int64_t q_block, n_q_block; /* queries per task, tasks per head */
    int64_t ldv, o_size;
};

/* A task's scratch; words of dot products hold pairs of bf16. */
struct mem {
    float *q;                   /* (group, steps, LANES) queries, transposed; f32: times scale * log2(e) */
    float *o;                   /* (group, D, LANES) */
    float *top, *sum;           /* (group, LANES) */
    float *k;                   /* (steps, KEYS) */
    float *v;                   /* (KEYS, ldv) */
    float *s;                   /* (KEYS, LANES) scores, then P */
    float *strip;
};

/* Places everything in scratch; returns the number of floats. */
static int64_t place(struct mem *m, const struct plan *p, int64_t D, float *scratch)
{
    const int64_t n_group = p->q_block / LANES;
    float *free = scratch;

    m->q = take(&free, n_group * p->steps * LANES);
    m->o = take(&free, n_group * p->o_size);
    m->top = take(&free, p->q_block);
    m->sum = take(&free, p->q_block);
    m->k = take(&free, p->steps * KEYS);
    m->v = take(&free, KEYS * p->ldv);
    m->s = take(&free, (KEYS + ROWS_MIN) * LANES);
    m->strip = take(&free, strip_size(D));
    return free - scratch;
}

/* Queries per task: enough to pay for packing K and V once more, few enough for the second-level cache. */
static struct plan make_plan(const struct kattn *a)
{
    const int64_t most = a->D <= 80 ? 512 : a->D <= 160 ? 256 : a->D <= 640 ? 128 : 32;
    struct plan p = { .dot = attn_dot(a) };

    p.steps = p.dot ? (a->D + 1) / 2 : a->D;
    p.n_q_block = (a->Tq + most - 1) / most;
    p.q_block = round_up((a->Tq + p.n_q_block - 1) / p.n_q_block, LANES);
    p.n_q_block = (a->Tq + p.q_block - 1) / p.q_block;
    p.ldv = row_stride(a->D);
    p.o_size = (a->D + ROWS_MIN) * LANES;
    return p;
}

/* P from the scores of nk keys, in place, and its sums over keys. */
INLINE void exponentials(int nv, float *s, int64_t nk, const vf *top, vf *sum)
{
    sum[0] = sum[1] = v_zero();
    for (int64_t k = 0; k < nk; k++, s += LANES)
        for (int j = 0; j < nv; j++) {
            const vf p = v_exp2(v_loadf(s + j * VL) - top[j], false);
            sum[j] += p;
            v_storef(s + j * VL, p);
        }
}

#if HAS_BF16_DOT
/* The same for dot products, whose scores still lack the factor c: row i becomes pairs of keys 2i (low) and 2i+1. */
INLINE void exponentials_pairs(float *s, int64_t nk, const vf *top, vf c, vf *sum)
{
    const vf ct[2] = { c * top[0], c * top[1] };
    float *y = s;

    sum[0] = sum[1] = v_zero();
    for (int64_t k = 0; k < nk; k += 2, s += 2 * LANES, y += LANES)
        for (int j = 0; j < 2; j++) {
            const vf even = v_exp2(v_fma(v_loadf(s + j * VL), c, -ct[j]), true);
            const vf odd = k + 1 < nk ? v_exp2(v_fma(v_loadf(s + LANES + j * VL), c, -ct[j]), true) : v_zero();
            sum[j] += even + odd;
            v_storef(y + j * VL, v_bf16_pair(even, odd));
        }
}
#endif

/* Hide key k from the queries before it, lane < k - ahead, and take the maxima that the tiles could not. */
static void mask_above(int nv, float *s, int64_t nk, int64_t ahead, float *top)
{
    for (int j = 0; j < nv; j++) {
        vf t = v_loadf(top + j * VL);
        for (int64_t k = 0; k < nk; k++) {
            float *y = s + k * LANES + j * VL;
            const vf x = v_select(v_lanes(j * VL) < (int32_t)(k - ahead), v_set(masked), v_loadf(y));
            v_storef(y, x);
            t = v_max(t, x);
        }
        v_storef(top + j * VL, t);
    }
}

/* One group of queries meets nk keys; n of its lanes are queries. ahead: first query - first key. */
static void attend(const struct kattn *a, const struct plan *p, const struct mem *m, int64_t group, int64_t n,
                   int64_t nk, int64_t ahead)
{
    float *q = m->q + group * p->steps * LANES, *o = m->o + group * p->o_size, *s = m->s;
    float *top = m->top + group * LANES, *sum = m->sum + group * LANES, ratio[LANES];
    const int nv = n > VL ? 2 : 1;
    const vf c = v_set(p->dot ? a->scale * log2_e : 1.0f);
    vf was[2], now[2], add[2];

    was[0] = v_loadf(top), was[1] = v_loadf(top + VL);
    if (a->causal && ahead < nk - 1) {
        panel(nv, p->dot, TILE_SET, s, m->k, KEYS, q, p->steps, nk, top);
        mask_above(nv, s, nk, ahead, top);
    } else {
        panel(nv, p->dot, TILE_MAX, s, m->k, KEYS, q, p->steps, nk, top);
    }
    now[0] = v_loadf(top), now[1] = v_loadf(top + VL);
#if HAS_BF16_DOT
    if (p->dot)
        exponentials_pairs(s, nk, now, c, add);
    else
#endif
    if (nv > 1)
        exponentials(2, s, nk, now, add);
    else
        exponentials(1, s, nk, now, add);
    for (int j = 0; j < 2; j++) {
        const vf r = v_exp2((was[j] - now[j]) * c, false);
        v_storef(sum + j * VL, v_fma(r, v_loadf(sum + j * VL), add[j]));
        v_storef(ratio + j * VL, r);
    }
    panel(nv, p->dot, TILE_ADD, o, m->v, p->ldv, s, p->dot ? (nk + 1) / 2 : nk, a->D, ratio);
}

INLINE void pack_queries(const struct kattn *a, const struct plan *p, const struct mem *m, const void *q, enum dtype T,
                         int64_t nq)
{
    for (int64_t i = 0; i < nq; i += LANES)
        pack_columns(p->dot, m->q + i * p->steps, LANES, at(q, T, i * a->ldq), T, a->ldq, lesser(nq - i, LANES), a->D,
                     a->scale * log2_e, m->strip);
    memset(m->o, 0, sizeof(float) * (size_t)(round_up(nq, LANES) / LANES * p->o_size));
    memset(m->sum, 0, sizeof(float) * (size_t)p->q_block);
    for (int64_t i = 0; i < p->q_block; i++)
        m->top[i] = masked;
}

/* O / l to its place, and lse = log(sum exp(scale q k)). */
INLINE void finish(const struct kattn *a, const struct plan *p, const struct mem *m, void *o, enum dtype T, float *lse,
                   int64_t nq)
{
    const double c = (p->dot ? (double)a->scale * (double)log2_e : 1.0) * 0.6931471805599453;

    for (int64_t i = 0; i < nq; i += LANES) {
        const int64_t n = lesser(nq - i, LANES);
        const float *y = m->o + i / LANES * p->o_size;
        float r[LANES];

        for (int j = 0; j < LANES; j++)
            r[j] = 1.0f / m->sum[i + j];
        unpack_columns(at(o, T, i * a->ldo), T, a->ldo, y, n, a->D, r, m->strip);
        for (int64_t l = 0; lse && l < n; l++)
            lse[i + l] = (float)(c * (double)m->top[i + l] + log((double)m->sum[i + l]));
    }
}

/* Queries from q0 on, of head n of image b. */
INLINE void attn_task(const struct kattn *a, const struct plan *p, enum dtype T, int64_t b, int64_t n, int64_t q0,
                      float *scratch)
{
    const int64_t D = a->D, nq = lesser(a->Tq - q0, p->q_block), end = a->causal ? q0 + nq : a->Tk;
    struct mem m;

    place(&m, p, D, scratch);
    pack_queries(a, p, &m, at(a->q, T, (b * a->Tq + q0) * a->ldq + n * D), T, nq);
    for (int64_t k0 = 0; k0 < end; k0 += KEYS) {
        const int64_t nk = lesser(a->Tk - k0, KEYS), row = b * a->Tk + k0;
        pack_columns(p->dot, m.k, KEYS, at(a->k, T, row * a->ldk + n * D), T, a->ldk, nk, D, 1.0f, m.strip);
        pack_rows(p->dot, m.v, p->ldv, at(a->v, T, row * a->ldv + n * D), T, a->ldv, nk, D);
        for (int64_t i = 0; i < nq; i += LANES) {
            const int64_t seen = a->causal ? lesser(q0 + i + LANES, q0 + nq) - k0 : nk;  /* by the last query */
            if (seen > 0)
                attend(a, p, &m, i / LANES, nq - i, lesser(seen, nk), q0 + i - k0);
        }
    }
    finish(a, p, &m, at(a->o, T, (b * a->Tq + q0) * a->ldo + n * D), T,
           a->lse ? a->lse + (b * a->N + n) * a->Tq + q0 : NULL, nq);
}

static int attn(struct kctx *k, const struct kattn *a)
{
    struct plan p;
    struct mem m;
    int64_t n_task;

    if (!attn_ok(a))
        return K_ARG;
    if (attn_empty(a))
        return K_OK;
    p = make_plan(a);
    if ((size_t)place(&m, &p, a->D, k->scratch) * sizeof(float) > k->scratch_bytes)
        return K_SCRATCH;
    n_task = a->B * a->N * p.n_q_block;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n_task > 1 && attn_big(a))
    for (int64_t i = 0; i < n_task; i++) {
        const int64_t head = i / p.n_q_block, q0 = i % p.n_q_block * p.q_block;
        float *scratch = (float *)(void *)thread_scratch(k, omp_get_thread_num());
        switch (a->type) {
        case F32: attn_task(a, &p, F32, head / a->N, head % a->N, q0, scratch); break;
        case F16: attn_task(a, &p, F16, head / a->N, head % a->N, q0, scratch); break;
        default: attn_task(a, &p, BF16, head / a->N, head % a->N, q0, scratch); break;
        }
    }
    return K_OK;
}

void ISA_NAME(fill_attn)(struct kern *k)
{
    if (k->scratch_bytes < SCRATCH_BYTES)
        k->scratch_bytes = SCRATCH_BYTES;
    k->attn = attn;
}
