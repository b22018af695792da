/* kernels/attn_tile.h: the ground under attention, forward and backward: micro-tiles, powers of two, transposed packs.
 *
 * Both passes keep one side of the score matrix in the lanes of vectors (queries forward, keys backward) and the other
 * side in rows. Every product but one is then
 *
 *     C (rows, LANES) = A^T B,   A (n, rows) read an element at a time and broadcast,   B (n, LANES) read as vectors
 *
 * so neither D nor the number of rows is ever padded, and a softmax runs down the lanes without a horizontal step.
 * An element of C is one chain of multiply-adds in order of n, whichever tile holds it. With bf16 dot products
 * (`dot`) an element of A or B is a pair of bf16 with neighbouring n in 32 bits, and n counts pairs. */
#ifndef UNICON_KERNELS_ATTN_TILE_H
#define UNICON_KERNELS_ATTN_TILE_H

#include "kernels/simd.h"

/* Accumulators fill the registers: 14 x 2 of 32, or 6 x 2 of 16. */
#if VL == 16
enum { LANES = 2 * VL, ROWS_MIN = 8, ROWS_MAX = 14 };
#else
enum { LANES = 2 * VL, ROWS_MIN = 4, ROWS_MAX = 6 };
#endif

enum { SLACK = 64 };            /* floats behind every operand: the last tile may read past the end, never use it */

static const float log2_e = 0x1.715476p+0f;

INLINE int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Element i of p. */
INLINE char *at(const void *p, enum dtype type, int64_t i)
{
    return (char *)(uintptr_t)p + i * (type == F32 ? 4 : 2);
}

/* Hands out n floats of scratch, and SLACK behind them. */
INLINE float *take(float **free, int64_t n)
{
    float *p = *free;

    *free += round_up(n + SLACK, 16);
    return p;
}

INLINE bool attn_ok(const struct kattn *a)
{
    const int64_t row = a->N * a->D;

    return (unsigned)a->type < N_DTYPE && a->B >= 0 && a->N >= 0 && a->Tq >= 0 && a->Tk >= 0 && a->D >= 0
        && a->ldq >= row && a->ldk >= row && a->ldv >= row && a->ldo >= row && (!a->causal || a->Tq == a->Tk);
}

INLINE bool attn_empty(const struct kattn *a)
{
    return !a->B || !a->N || !a->Tq || !a->Tk || !a->D;
}

/* Worth more than one thread. */
INLINE bool attn_big(const struct kattn *a)
{
    return a->B * a->N * a->Tq * a->Tk * a->D > 1 << 16;
}

/* Stored bf16 multiply as they are; scale comes after, and must not turn maxima into minima. */
INLINE bool attn_dot(const struct kattn *a)
{
    return HAS_BF16_DOT && a->type == BF16 && a->scale >= 0;
}

INLINE vi v_lanes(int first)
{
    vi r;

    for (int i = 0; i < VL; i++)
        r[i] = first + i;
    return r;
}

/* 2^x for x <= 127, flushed to zero below 2^-126. Fraction in [-1/2,1/2] by a polynomial with p(0) = 1, minimax in
 * relative error: 9.2e-8 (degree 5), 2.8e-6 (degree 4, for values that are rounded to bf16 afterwards). */
INLINE vf v_exp2(vf x, bool coarse)
{
#if VL == 16
    const vf n = v_round(x), r = x - n;
#else
    /* The adder rounds; its low bits are the biased exponent, and -127 gives the factor 0. */
    const vf magic = v_set(0x1.8p23f + 127), xc = v_max(v_set(-127.0f), x), t = xc + magic, n = t - magic, r = xc - n;
#endif
    vf p;

    if (coarse) {
        p = v_fma(v_set(0.00958285246997f), r, v_set(0.055906425509f));
        p = v_fma(p, r, v_set(0.240240986286f));
        p = v_fma(p, r, v_set(0.693124193253f));
    } else {
        p = v_fma(v_set(0.0013264720151f), r, v_set(0.00967151312734f));
        p = v_fma(p, r, v_set(0.0555073376669f));
        p = v_fma(p, r, v_set(0.240222420747f));
        p = v_fma(p, r, v_set(0.693146977583f));
    }
    p = v_fma(p, r, v_set(1.0f));
#if VL == 16
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (vf)((vi)t << 23);
#endif
}

#if HAS_BF16_DOT
/* Words of two bf16, a's in the low half, b's in the high half; rounded to nearest even. */
INLINE vf v_bf16_pair(vf a, vf b)
{
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);           /* a in words 0..15, then b */
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);

    return (vf)_mm512_permutexvar_epi16(order, both);
}
#endif

/* acc + a * b with a broadcast; dot: acc + a.lo * b.lo + a.hi * b.hi. */
INLINE vf mac(vf acc, const float *a, vf b, bool dot)
{
#if HAS_BF16_DOT
    if (dot) {
        int32_t pair;
        memcpy(&pair, a, sizeof pair);
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
    }
#endif
    (void)dot;
    return v_fma(v_set(*a), b, acc);
}

/* What becomes of a tile's sums, lane by lane. */
enum tile_out {
    TILE_SET,                   /* c = sum */
    TILE_MAX,                   /* c = sum, lane[] = max(lane[], sums) */
    TILE_ADD                    /* c = lane[] * c + sum */
};

/* c (rows, nv*VL), row stride LANES; a (n, rows), row stride lda; b (n, nv*VL), row stride LANES. */
INLINE void tile(int rows, int nv, bool dot, enum tile_out out, float *c, const float *a, int64_t lda, const float *b,
                 int64_t n, float *lane)
{
    vf acc[ROWS_MAX][2], x;

#pragma GCC unroll 16
    for (int m = 0; m < rows; m++)
        acc[m][0] = acc[m][1] = v_zero();
    for (int64_t k = 0; k < n; k++, a += lda, b += LANES) {
        const vf b0 = v_loadf(b), b1 = nv > 1 ? v_loadf(b + VL) : b0;
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++) {
            acc[m][0] = mac(acc[m][0], a + m, b0, dot);
            if (nv > 1)
                acc[m][1] = mac(acc[m][1], a + m, b1, dot);
        }
    }
#pragma GCC unroll 2
    for (int j = 0; j < nv; j++, c += VL, lane += VL) {
        if (out == TILE_ADD) {
            x = v_loadf(lane);
#pragma GCC unroll 16
            for (int m = 0; m < rows; m++)
                v_storef(c + m * LANES, v_fma(x, v_loadf(c + m * LANES), acc[m][j]));
            continue;
        }
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++)
            v_storef(c + m * LANES, acc[m][j]);
        if (out == TILE_MAX) {
            x = v_loadf(lane);
#pragma GCC unroll 16
            for (int m = 0; m < rows; m++)
                x = v_max(x, acc[m][j]);
            v_storef(lane, x);
        }
    }
}

INLINE void tile_any(int rows, int nv, bool dot, enum tile_out out, float *c, const float *a, int64_t lda,
                     const float *b, int64_t n, float *lane)
{
#if HAS_BF16_DOT
    if (dot && nv > 1)
        tile(rows, 2, true, out, c, a, lda, b, n, lane);
    else if (dot)
        tile(rows, 1, true, out, c, a, lda, b, n, lane);
    else
#endif
    if (nv > 1)
        tile(rows, 2, false, out, c, a, lda, b, n, lane);
    else
        tile(rows, 1, false, out, c, a, lda, b, n, lane);
    (void)dot;
}

/* The same for any number of rows, cut evenly. Fewer than ROWS_MIN in the last tile: the rows behind C's last are
 * written too (C and A need that room), and for TILE_MAX the columns behind A's last must repeat an earlier one. */
static void panel(int nv, bool dot, enum tile_out out, float *c, const float *a, int64_t lda, const float *b,
                  int64_t n, int64_t rows, float *lane)
{
    int64_t left = (rows + ROWS_MAX - 1) / ROWS_MAX, m;

    for (; left; left--, rows -= m, a += m, c += m * LANES) {
        m = (rows + left - 1) / left;
        switch (m) {
#if VL == 16
        case 14: tile_any(14, nv, dot, out, c, a, lda, b, n, lane); break;
        case 13: tile_any(13, nv, dot, out, c, a, lda, b, n, lane); break;
        case 12: tile_any(12, nv, dot, out, c, a, lda, b, n, lane); break;
        case 11: tile_any(11, nv, dot, out, c, a, lda, b, n, lane); break;
        case 10: tile_any(10, nv, dot, out, c, a, lda, b, n, lane); break;
        case 9: tile_any(9, nv, dot, out, c, a, lda, b, n, lane); break;
#else
        case 6: tile_any(6, nv, dot, out, c, a, lda, b, n, lane); break;
        case 5: tile_any(5, nv, dot, out, c, a, lda, b, n, lane); break;
#endif
        default: tile_any(ROWS_MIN, nv, dot, out, c, a, lda, b, n, lane); break;
        }
    }
}

/* ---- packing ---- */

/* y (D) = scale * x (D) */
INLINE void copy_row(void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t D, float scale)
{
    const vf s = v_set(scale);
    int64_t d = 0;

    for (; d + VL <= D; d += VL)
        v_store(y, d, y_type, s * v_load(x, d, x_type));
    if (d < D)
        v_store_n(y, d, y_type, s * v_load_n(x, d, x_type, D - d), D - d);
}

enum { AHEAD = 16 };            /* rows: heads lie far apart in memory, where the processor foresees nothing */

/* Fetch row i+AHEAD of n rows while row i is packed. */
INLINE void fetch_ahead(const char *x, int64_t i, int64_t n, int64_t ld_bytes, int64_t bytes)
{
    if (i + AHEAD < n)
        for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch(x + (i + AHEAD) * ld_bytes + b);
}

/* Within every four lanes: a0 b0 a1 b1, a2 b2 a3 b3, a0 a1 b0 b1, a2 a3 b2 b3. */
#if VL == 16
INLINE vf v_zip_lo(vf a, vf b) { return (vf)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
INLINE vf v_zip_hi(vf a, vf b) { return (vf)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
INLINE vf v_pair_lo(vf a, vf b) { return (vf)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x44); }
INLINE vf v_pair_hi(vf a, vf b) { return (vf)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xEE); }
#elif VL == 8
INLINE vf v_zip_lo(vf a, vf b) { return (vf)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
INLINE vf v_zip_hi(vf a, vf b) { return (vf)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
INLINE vf v_pair_lo(vf a, vf b) { return (vf)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x44); }
INLINE vf v_pair_hi(vf a, vf b) { return (vf)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xEE); }
#else
INLINE vf v_zip_lo(vf a, vf b) { return (vf){ a[0], b[0], a[1], b[1] }; }
INLINE vf v_zip_hi(vf a, vf b) { return (vf){ a[2], b[2], a[3], b[3] }; }
INLINE vf v_pair_lo(vf a, vf b) { return (vf){ a[0], a[1], b[0], b[1] }; }
INLINE vf v_pair_hi(vf a, vf b) { return (vf){ a[2], a[3], b[2], b[3] }; }
#endif

/* Four words at `at` of each of the rows 0, 4, 8, .. */
INLINE vf v_load_rows(const char *const *row, int64_t at)
{
#if VL == 16
    __m512 r = _mm512_castps128_ps512(_mm_loadu_ps((const void *)(row[0] + at)));

    r = _mm512_mask_broadcast_f32x4(r, 0x00f0, _mm_loadu_ps((const void *)(row[4] + at)));
    r = _mm512_mask_broadcast_f32x4(r, 0x0f00, _mm_loadu_ps((const void *)(row[8] + at)));
    return (vf)_mm512_mask_broadcast_f32x4(r, 0xf000, _mm_loadu_ps((const void *)(row[12] + at)));
#elif VL == 8
    return (vf)_mm256_loadu2_m128((const void *)(row[4] + at), (const void *)(row[0] + at));
#else
    vf r;
    memcpy(&r, row[0] + at, sizeof r);
    return r;
#endif
}

/* dst[c*ldd + j] = row[j][c] for VL rows of n 32-bit words at any address. f32: times scale, if scales. */
INLINE void transpose(float *dst, int64_t ldd, const char *const row[VL], int64_t n, bool scales, float scale)
{
    const vf f = v_set(scale);
    int64_t c = 0;
    vf r[4], t[4];

    for (; c + 4 <= n; c += 4, dst += 4 * ldd) {
        for (int j = 0; j < 4; j++) {
            r[j] = v_load_rows(row + j, 4 * c);
            if (scales)
                r[j] *= f;
        }
        t[0] = v_zip_lo(r[0], r[1]);
        t[1] = v_zip_lo(r[2], r[3]);
        t[2] = v_zip_hi(r[0], r[1]);
        t[3] = v_zip_hi(r[2], r[3]);
        v_storef(dst, v_pair_lo(t[0], t[1]));
        v_storef(dst + ldd, v_pair_hi(t[0], t[1]));
        v_storef(dst + 2 * ldd, v_pair_lo(t[2], t[3]));
        v_storef(dst + 3 * ldd, v_pair_hi(t[2], t[3]));
    }
    for (; c < n; c++, dst += ldd)
        for (int j = 0; j < VL; j++) {
            memcpy(dst + j, row[j] + 4 * c, 4);
            if (scales)
                dst[j] *= scale;
        }
}

/* dst (steps, ldd) = transposed rows of src, the columns [n, round_up(n, VL)) repeating the last row. f32: steps = D,
 * times scale. dot: steps = (D+1)/2 pairs of raw bf16. strip: strip_size(D) floats. */
INLINE void pack_columns(bool dot, float *dst, int64_t ldd, const void *src, enum dtype type, int64_t ld, int64_t n,
                         int64_t D, float scale, float *strip)
{
    const int64_t size = type == F32 ? 4 : 2;
    const char *row[VL];

    for (int64_t i = 0; i < n; i += VL) {
        for (int j = 0; j < VL; j++) {
            float *y = strip + j * (D + SLACK);
            row[j] = at(src, type, lesser(i + j, n - 1) * ld);
            fetch_ahead(src, i + j, n, ld * size, D * size);
            if (dot ? D % 2 == 0 : type == F32)
                continue;
            if (dot) {
                memcpy(y, row[j], (size_t)(2 * D));
                ((uint16_t *)y)[D] = 0;
            } else {
                copy_row(y, F32, row[j], type, D, 1.0f);
            }
            row[j] = (const char *)y;
        }
        if (dot)
            transpose(dst + i, ldd, row, (D + 1) / 2, false, 1.0f);
        else
            transpose(dst + i, ldd, row, D, true, scale);
    }
}

/* Row stride of a pack (rows, D) that is read column by column: whole cache lines, an odd number of them, so that rows
 * do not fall on each other in the first-level cache. */
INLINE int64_t row_stride(int64_t D)
{
    return round_up(D, 16) + (round_up(D, 16) % 32 ? 0 : 16);
}

/* Floats of room that packing and unpacking one strip of rows take. */
INLINE int64_t strip_size(int64_t D)
{
    return LANES * (row_stride(D) + SLACK);
}

/* dst (n, ldd) f32 = rows of src. dot: dst ((n+1)/2, ldd), bf16 of rows 2i and 2i+1 in pairs, zero behind the last. */
INLINE void pack_rows(bool dot, float *dst, int64_t ldd, const void *src, enum dtype type, int64_t ld, int64_t n,
                      int64_t D)
{
    const int64_t size = type == F32 ? 4 : 2;

#if HAS_BF16_DOT
    if (dot) {
        const uint16_t *x = src;
        for (int64_t i = 0; i < n; i += 2, x += 2 * ld, dst += ldd) {
            fetch_ahead(src, i, n, ld * 2, D * 2);
            fetch_ahead(src, i + 1, n, ld * 2, D * 2);
            for (int64_t d = 0; d < D; d += VL) {
                const __mmask16 m = (__mmask16)(D - d < VL ? (1u << (D - d)) - 1 : 0xffff), both = i + 1 < n ? m : 0;
                const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x + d));
                const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(both, both ? x + ld + d : x));
                _mm512_storeu_si512(dst + d, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
            }
        }
        return;
    }
#endif
    (void)dot;
    for (int64_t i = 0; i < n; i++) {
        fetch_ahead(src, i, n, ld * size, D * size);
        copy_row(dst + i * ldd, F32, at(src, type, i * ld), type, D, 1.0f);
    }
}

/* dst rows i < n of `type` = scale[i] * column i of src (D, LANES). rows: strip_size(D) floats. */
INLINE void unpack_columns(void *dst, enum dtype type, int64_t ld, const float *src, int64_t n, int64_t D,
                           const float *scale, float *rows)
{
    const int64_t ldr = row_stride(D);
    const char *row[VL];

    for (int64_t d = 0; d < D; d += VL) {
        for (int j = 0; j < VL; j++)
            row[j] = (const char *)(src + (d + j < D ? d + j : D - 1) * LANES);
        transpose(rows + d, ldr, row, round_up(n, 4), false, 1.0f);
    }
    for (int64_t i = 0; i < n; i++)
        copy_row(at(dst, type, i * ld), type, rows + i * ldr, F32, D, scale[i]);
}

#endif
