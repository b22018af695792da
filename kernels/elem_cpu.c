/* kernels/elem_cpu.c: element by element arithmetic, conversion between storage types, copies, permutations, tables.
 *
 * Every output element depends on a handful of input elements and on no sum but its own, so work is cut into blocks of
 * any size and threads take blocks. */
#include "kernels/simd.h"
#include "kernels/view.h"

#include "kernels/isa.h"

enum {
    BLOCK = 8192,               /* elements of one task */
    BIG = 32768,                /* elements from which threads pay */
    TALL = 64, WIDE = 16,       /* a transposed tile: some cache lines of input by one of output */
    STRIP = 1024                /* mask values laid out per element */
};

static bool bad(enum dtype type, int64_t a, int64_t b)
{
    return (unsigned)type >= N_DTYPE || a < 0 || b < 0;
}

/* ---- fill, cast ---- */

INLINE void fill_run(enum dtype T, void *y, float value, int64_t i, int64_t end)
{
    for (; i < end; i += VL)
        v_store_upto(y, i, T, v_set(value), end - i);
}

static int fill_block(void *y, enum dtype type, float value, int64_t i, int64_t end)
{
    BY_TYPE(type, fill_run(T, y, value, i, end));
    return K_OK;
}

static int fill(struct kctx *k, void *y, enum dtype type, int64_t n, float value)
{
    if (bad(type, n, 0))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n >= BIG)
    for (int64_t i = 0; i < n; i += BLOCK)
        fill_block(y, type, value, i, lesser(n, i + BLOCK));
    return K_OK;
}

INLINE void cast_run(enum dtype TY, enum dtype TX, void *y, int64_t iy, const void *x, int64_t ix, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        v_store_upto(y, iy + i, TY, v_load_upto(x, ix + i, TX, n - i), n - i);
}

/* n elements; the same type is copied bit for bit. */
static int cast_block(void *y, enum dtype y_type, int64_t iy, const void *x, enum dtype x_type, int64_t ix, int64_t n)
{
    const size_t size = dtype_bytes(y_type);

    if (y_type == x_type) {
        memcpy((char *)y + (size_t)iy * size, (const char *)x + (size_t)ix * size, (size_t)n * size);
        return K_OK;
    }
    switch (y_type) {
    case F32: BY_TYPE(x_type, cast_run(F32, T, y, iy, x, ix, n)); break;
    case F16: BY_TYPE(x_type, cast_run(F16, T, y, iy, x, ix, n)); break;
    default: BY_TYPE(x_type, cast_run(BF16, T, y, iy, x, ix, n));
    }
    return K_OK;
}

static int cast(struct kctx *k, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n)
{
    if (bad(y_type, n, 0) || bad(x_type, n, 0))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n >= BIG)
    for (int64_t i = 0; i < n; i += BLOCK)
        cast_block(y, y_type, i, x, x_type, i, lesser(n - i, BLOCK));
    return K_OK;
}

/* ---- sums and products ---- */

/* y = a x + b z, or a x + b without z */
INLINE void axpby_run(enum dtype T, void *y, float a, const void *x, float b, const void *z, int64_t i, int64_t end)
{
    const vf va = v_set(a), vb = v_set(b);

    for (; i < end; i += VL) {
        const vf rest = z ? vb * v_load_upto(z, i, T, end - i) : vb;
        v_store_upto(y, i, T, v_fma(va, v_load_upto(x, i, T, end - i), rest), end - i);
    }
}

static int axpby_block(void *y, float a, const void *x, float b, const void *z, enum dtype type, int64_t i, int64_t end)
{
    BY_TYPE(type, axpby_run(T, y, a, x, b, z, i, end));
    return K_OK;
}

static int axpby(struct kctx *k, void *y, float a, const void *x, float b, const void *z, enum dtype type, int64_t n)
{
    if (bad(type, n, 0))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n >= BIG)
    for (int64_t i = 0; i < n; i += BLOCK)
        axpby_block(y, a, x, b, z, type, i, lesser(n, i + BLOCK));
    return K_OK;
}

static int row_axpby(struct kctx *k, void *y, const float *a, const void *x, const float *c, const void *z,
                     enum dtype type, int64_t B, int64_t n)
{
    if (bad(type, B, n))
        return K_ARG;
#pragma omp parallel for collapse(2) num_threads(k->n_threads) schedule(static) if (B * n >= BIG)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < n; i += BLOCK)
            axpby_block(y, a[b], x, z ? c[b] : 0, z, type, b * n + i, b * n + lesser(n, i + BLOCK));
    return K_OK;
}

INLINE void mul_run(enum dtype T, void *y, const void *x, const void *z, int64_t i, int64_t end)
{
    for (; i < end; i += VL)
        v_store_upto(y, i, T, v_load_upto(x, i, T, end - i) * v_load_upto(z, i, T, end - i), end - i);
}

static int mul_block(void *y, const void *x, const void *z, enum dtype type, int64_t i, int64_t end)
{
    BY_TYPE(type, mul_run(T, y, x, z, i, end));
    return K_OK;
}

static int mul(struct kctx *k, void *y, const void *x, const void *z, enum dtype type, int64_t n)
{
    if (bad(type, n, 0))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n >= BIG)
    for (int64_t i = 0; i < n; i += BLOCK)
        mul_block(y, x, z, type, i, lesser(n, i + BLOCK));
    return K_OK;
}

/* y = m x + (1-m) z over elements [i,end), at most STRIP. The mask is first laid out per element, so that latents of
 * four channels need no vector of four. */
INLINE void lerp_run(enum dtype T, void *y, const float *m, const void *x, const void *z, int64_t C, int64_t i,
                     int64_t end)
{
    float strip[STRIP + VL];

    for (int64_t at = 0, p = i / C; at < end - i; p++) {
        const int64_t stop = lesser(end, (p + 1) * C) - i;
        for (; at < stop; at++)
            strip[at] = m[p];
    }
    for (int64_t at = 0; i < end; i += VL, at += VL) {
        const vf w = v_load_upto(strip, at, F32, end - i), rest = (v_set(1.0f) - w) * v_load_upto(z, i, T, end - i);
        v_store_upto(y, i, T, v_fma(w, v_load_upto(x, i, T, end - i), rest), end - i);
    }
}

static int lerp_block(void *y, const float *m, const void *x, const void *z, enum dtype type, int64_t C, int64_t i,
                      int64_t end)
{
    BY_TYPE(type, lerp_run(T, y, m, x, z, C, i, end));
    return K_OK;
}

static int lerp_mask(struct kctx *k, void *y, const float *m, const void *x, const void *z, enum dtype type,
                     int64_t BHW, int64_t C)
{
    if (bad(type, BHW, C))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (BHW * C >= BIG)
    for (int64_t i = 0; i < BHW * C; i += STRIP)
        lerp_block(y, m, x, z, type, C, i, lesser(BHW * C, i + STRIP));
    return K_OK;
}

/* ---- copies ---- */

INLINE void add_run(enum dtype T, void *y, int64_t iy, const void *x, int64_t ix, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        v_store_upto(y, iy + i, T, v_load_upto(y, iy + i, T, n - i) + v_load_upto(x, ix + i, T, n - i), n - i);
}

static int add_block(void *y, int64_t iy, const void *x, int64_t ix, enum dtype type, int64_t n)
{
    BY_TYPE(type, add_run(T, y, iy, x, ix, n));
    return K_OK;
}

static int copy_rows(struct kctx *k, void *y, int64_t ldy, const void *x, int64_t ldx, enum dtype type, int64_t rows,
                     int64_t n, bool accumulate)
{
    if (bad(type, rows, n) || ldy < n || ldx < n)
        return K_ARG;
#pragma omp parallel for collapse(2) num_threads(k->n_threads) schedule(static) if (rows * n >= BIG)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i += BLOCK) {
            if (accumulate)
                add_block(y, r * ldy + i, x, r * ldx + i, type, lesser(n - i, BLOCK));
            else
                cast_block(y, type, r * ldy + i, x, type, r * ldx + i, lesser(n - i, BLOCK));
        }
    return K_OK;
}

/* The dimension but the last along which x is densest; the last itself where x is densest there. */
static int view_dense_dim(const struct kview4 *v)
{
    int best = 3;

    for (int d = 2; d >= 0; d--)
        if (v->dim[d] > 1 && v->stride[d] && v->stride[3] && v->stride[d] < v->stride[best])
            best = d;
    return best;
}

/* y[r*ldy + c] = x[r*rx + c*cx] for R <= TALL, C <= WIDE elements. x is read along r and y written along c, whole
 * lines at a time: a line of either is touched once, however the strides fall on the cache's sets. The first `next`
 * columns of the tile that follows are asked for meanwhile. Scalar on purpose: strided vectors take longer. */
#if defined(__clang__)
#define SCALAR
#else
#define SCALAR __attribute__((optimize("no-tree-vectorize")))
#endif
#define DEFINE_TILE(name, type)                                                                                     \
    SCALAR static void name(type *y, int64_t ldy, const type *x, int64_t rx, int64_t cx, int64_t R, int64_t C,      \
                            int64_t next)                                                                           \
    {                                                                                                               \
        type t[WIDE][TALL];                                                                                         \
                                                                                                                    \
        for (int64_t c = 0; c < C; c++) {                                                                           \
            if (c < next)                                                                                           \
                for (int64_t r = 0; r < R; r += (int64_t)(64 / sizeof *x))                                          \
                    __builtin_prefetch(x + r * rx + (c + C) * cx);                                                  \
            for (int64_t r = 0; r < R; r++)                                                                         \
                t[c][r] = x[r * rx + c * cx];                                                                       \
        }                                                                                                           \
        for (int64_t r = 0; r < R; r++)                                                                             \
            for (int64_t c = 0; c < C; c++)                                                                         \
                y[r * ldy + c] = t[c][r];                                                                           \
    }
DEFINE_TILE(tile16, uint16_t)
DEFINE_TILE(tile32, uint32_t)

/* All of the last dimension for a run of n <= TALL along dimension d: y from iy on, ldy apart; x from ix on. With
 * d = 3, along which x is densest, n is 1. */
static void permute_run(void *y, int64_t iy, int64_t ldy, const void *x, int64_t ix, size_t size,
                        const struct kview4 *v, int d, int64_t n)
{
    const int64_t C = v->dim[3], cx = v->stride[3], rx = v->stride[d];

    if (d == 3 && cx == 1) {
        memcpy((char *)y + (size_t)iy * size, (const char *)x + (size_t)ix * size, (size_t)C * size);
        return;
    }
    for (int64_t c = 0; c < C; c += WIDE) {
        const int64_t have = lesser(C - c, WIDE), next = lesser(C - c - have, WIDE);
        if (size == 2)
            tile16((uint16_t *)y + iy + c, ldy, (const uint16_t *)x + ix + c * cx, rx, cx, n, have, next);
        else
            tile32((uint32_t *)y + iy + c, ldy, (const uint32_t *)x + ix + c * cx, rx, cx, n, have, next);
    }
}

static int permute(struct kctx *k, void *y, const void *x, enum dtype type, const struct kview4 *v)
{
    struct kview4 m;
    int64_t ld[4], outer[3], n_outer = 1, n_runs, step, total;
    int d;

    if (bad(type, 0, 0))
        return K_ARG;
    for (int i = 0; i < 4; i++)
        if (v->dim[i] < 0 || v->stride[i] < 0)
            return K_ARG;
    total = v->dim[0] * v->dim[1] * v->dim[2] * v->dim[3];
    if (!total)
        return K_OK;
    m = view_merged(v);
    d = view_dense_dim(&m);
    ld[3] = 1;
    for (int i = 2; i >= 0; i--)
        ld[i] = ld[i + 1] * m.dim[i + 1];
    step = d == 3 ? 1 : TALL;                           /* of dimension d per run */
    for (int i = 0; i < 3; i++) {
        outer[i] = i == d ? (m.dim[i] + step - 1) / step : m.dim[i];
        n_outer *= outer[i];
    }
    n_runs = n_outer;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (total >= BIG)
    for (int64_t run = 0; run < n_runs; run++) {
        const int64_t i2 = run % outer[2], i1 = run / outer[2] % outer[1], i0 = run / outer[2] / outer[1];
        const int64_t at[3] = { d == 0 ? i0 * step : i0, d == 1 ? i1 * step : i1, d == 2 ? i2 * step : i2 };
        permute_run(y, at[0] * ld[0] + at[1] * ld[1] + at[2] * ld[2], d == 3 ? 0 : ld[d], x,
                    at[0] * m.stride[0] + at[1] * m.stride[1] + at[2] * m.stride[2], dtype_bytes(type), &m, d,
                    d == 3 ? 1 : lesser(m.dim[d] - at[d], TALL));
    }
    return K_OK;
}

/* ---- tables ---- */

static bool bad_ids(const int32_t *id, int64_t n, int64_t V)
{
    for (int64_t i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= V)
            return true;
    return false;
}

static int gather(struct kctx *k, void *y, enum dtype y_type, const void *table, enum dtype table_type,
                  const int32_t *id, int64_t n, int64_t V, int64_t D)
{
    if (bad(y_type, n, V) || bad(table_type, D, 0) || bad_ids(id, n, V))
        return K_ARG;
    if (!D)
        return K_OK;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n * D >= BIG)
    for (int64_t i = 0; i < n; i++)
        cast_block(y, y_type, i * D, table, table_type, id[i] * D, D);
    return K_OK;
}

INLINE void gather_back_run(enum dtype T, float *dtable, const void *dy, const int32_t *id, int64_t n, int64_t D,
                            int64_t c0, int64_t c1)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = c0; c < c1; c += VL) {
            const int64_t at = id[i] * D + c;
            v_store_upto(dtable, at, F32, v_load_upto(dtable, at, F32, c1 - c) + v_load_upto(dy, i * D + c, T, c1 - c),
                       c1 - c);
        }
}

static int gather_back_columns(float *dtable, const void *dy, enum dtype type, const int32_t *id, int64_t n, int64_t D,
                               int64_t c0, int64_t c1)
{
    BY_TYPE(type, gather_back_run(T, dtable, dy, id, n, D, c0, c1));
    return K_OK;
}

/* Tasks are column ranges: each takes every row, in order, as equal ids ask for. */
static int gather_back(struct kctx *k, float *dtable, const void *dy, enum dtype type, const int32_t *id, int64_t n,
                       int64_t V, int64_t D)
{
    enum { COLUMNS = 128 };

    if (bad(type, n, V) || D < 0 || bad_ids(id, n, V))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n * D >= BIG)
    for (int64_t c = 0; c < D; c += COLUMNS)
        gather_back_columns(dtable, dy, type, id, n, D, c, lesser(D, c + COLUMNS));
    return K_OK;
}

/* Frequencies and angles are rounded where the models' own code rounds them, sines and cosines only at the end. */
static int time_embed(struct kctx *k, void *y, enum dtype type, const float *t, int64_t B, int64_t dim)
{
    const int64_t half = dim / 2;

    if (bad(type, B, dim) || dim % 2)
        return K_ARG;
#pragma omp parallel for collapse(2) num_threads(k->n_threads) schedule(static) if (B * dim >= BIG)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < half; i++) {
            const float power = -9.210340371976184f * (float)i / (float)half;        /* ln 10000 */
            const float angle = t[b] * (float)exp((double)power);
            s_store(y, b * dim + i, type, (float)cos((double)angle));
            s_store(y, b * dim + half + i, type, (float)sin((double)angle));
        }
    return K_OK;
}

void ISA_NAME(fill_elem)(struct kern *k)
{
    k->fill = fill;
    k->cast = cast;
    k->axpby = axpby;
    k->mul = mul;
    k->row_axpby = row_axpby;
    k->lerp_mask = lerp_mask;
    k->copy_rows = copy_rows;
    k->permute = permute;
    k->gather = gather;
    k->gather_back = gather_back;
    k->time_embed = time_embed;
}
