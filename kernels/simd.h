/* kernels/simd.h: one vocabulary of vectors for every instruction set.
 *
 * Each *_cpu.c is compiled once per instruction set with -DISA=name and that set's compiler flags; the same
 * text then means 4, 8 or 16 lanes. Only this header knows intrinsics. A `vf` holds VL floats. Loads and
 * stores convert from and to the storage type, which callers pass as a constant after BY_TYPE(), so that
 * no branch is left in the loop.
 *
 *     static inline void silu_run(void *y, const void *x, enum dtype t, int64_t n)   (always inlined)
 *     for (i = 0; i + VL <= n; i += VL) v_store(y, i, t, v_silu(v_load(x, i, t)));
 *     if (i < n) v_store_n(y, i, t, v_silu(v_load_n(x, i, t, n - i)), n - i);
 *
 * A tail computes exactly what the body computes: the missing lanes are zero. No contraction is left to the
 * compiler (-ffp-contract=off): v_fma() is a fused multiply-add wherever the processor has one. */
#ifndef UNICON_KERNELS_SIMD_H
#define UNICON_KERNELS_SIMD_H

#include <math.h>
#include <string.h>
#include "kernels/kern.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ISA_JOIN2(a, b) a##_##b
#define ISA_JOIN(a, b) ISA_JOIN2(a, b)
#define ISA_NAME(x) ISA_JOIN(x, ISA)       /* fill_norm -> fill_norm_avx512 */
#define ISA_STR2(x) #x
#define ISA_STR(x) ISA_STR2(x)

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

#if defined(__AVX512BF16__)
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));

/* Calls `...` with T a constant equal to `type`; the statement is expanded three times. */
#define BY_TYPE(type, ...)                                                    \
    do {                                                                      \
        switch (type) {                                                       \
        case F32: { static const enum dtype T = F32; __VA_ARGS__; break; }    \
        case F16: { static const enum dtype T = F16; __VA_ARGS__; break; }    \
        case BF16: { static const enum dtype T = BF16; __VA_ARGS__; break; }  \
        default: return K_ARG;                                                \
        }                                                                     \
    } while (0)

/* ---- scalars ---- */

INLINE int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

INLINE float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

INLINE uint32_t bits_of_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

INLINE float f32_of_bf16(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* Round to nearest even; NaN stays NaN. */
INLINE uint16_t bf16_of_f32(float f)
{
    uint32_t u = bits_of_f32(f);

    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

INLINE float f32_of_f16(uint16_t h)
{
    /* Shift exponent and mantissa into place, then let one multiplication renormalise subnormals. */
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, em = (uint32_t)(h & 0x7fffu) << 13;
    float f;

    if ((h & 0x7c00u) == 0x7c00u)
        return f32_from_bits(sign | 0x7f800000u | em);
    f = f32_from_bits(em) * 0x1p112f;
    return f32_from_bits(sign | bits_of_f32(f));
}

INLINE uint16_t f16_of_f32(float f)
{
    const uint32_t u = bits_of_f32(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    uint32_t r;

    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x1ffu));
    if (a >= 0x477ff000u)                       /* rounds to 65520 or more: infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) {                      /* subnormal: the adder rounds at 2^-24 */
        r = bits_of_f32(f32_from_bits(a) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | r);
    }
    r = a - 0x38000000u;
    return (uint16_t)(sign | ((r + 0xfffu + ((r >> 13) & 1u)) >> 13));
}

INLINE float s_load(const void *p, int64_t i, enum dtype t)
{
    if (t == F32)
        return ((const float *)p)[i];
    if (t == F16)
        return f32_of_f16(((const uint16_t *)p)[i]);
    return f32_of_bf16(((const uint16_t *)p)[i]);
}

INLINE void s_store(void *p, int64_t i, enum dtype t, float x)
{
    if (t == F32)
        ((float *)p)[i] = x;
    else if (t == F16)
        ((uint16_t *)p)[i] = f16_of_f32(x);
    else
        ((uint16_t *)p)[i] = bf16_of_f32(x);
}

/* ---- vectors ---- */

INLINE vf v_set(float x)
{
    return x - (vf){ 0 };
}

INLINE vf v_zero(void)
{
    return (vf){ 0 };
}

INLINE vf v_from_bits(vi u)
{
    return (vf)u;
}

#if VL == 16
INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf v_fnma(vf a, vf b, vf c) { return (vf)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf v_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf v_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf v_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
INLINE vf v_round(vf a) { return (vf)_mm512_roundscale_ps((__m512)a, 8); }
#elif VL == 8
INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf v_fnma(vf a, vf b, vf c) { return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf v_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
INLINE vf v_round(vf a) { return (vf)_mm256_round_ps((__m256)a, 8); }
#else
INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf v_fnma(vf a, vf b, vf c) { return c - a * b; }
INLINE vf v_max(vf a, vf b) { vi m = a > b; return (vf)(((vi)a & m) | ((vi)b & ~m)); }
INLINE vf v_min(vf a, vf b) { vi m = a < b; return (vf)(((vi)a & m) | ((vi)b & ~m)); }
INLINE vf v_sqrt(vf a)
{
    for (int i = 0; i < VL; i++)
        a[i] = sqrtf(a[i]);
    return a;
}
/* To nearest even by the adder, for |a| < 2^22; larger values are whole already. */
INLINE vf v_round(vf a)
{
    const vi big = (vf)((vi)a & 0x7fffffff) >= v_set(0x1p22f), sign = (vi)a & (int32_t)0x80000000;
    const vf magic = (vf)((vi)v_set(0x1.8p23f) | sign), r = (a + magic) - magic;

    return (vf)(((vi)a & big) | ((vi)r & ~big));
}
#endif

/* The upper 32 bits of every lane's 64-bit product. */
INLINE vu v_mul_high(vu a, vu b)
{
#if VL == 16
    const __m512i even = _mm512_mul_epu32((__m512i)a, (__m512i)b);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), _mm512_srli_epi64((__m512i)b, 32));
    return (vu)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
#elif VL == 8
    const __m256i even = _mm256_mul_epu32((__m256i)a, (__m256i)b);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), _mm256_srli_epi64((__m256i)b, 32));
    return (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
    for (int i = 0; i < VL; i++)
        a[i] = (uint32_t)((uint64_t)a[i] * b[i] >> 32);
    return a;
#endif
}

INLINE vf v_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* Sums and maxima over lanes, always by halves: lane i with lane i + VL/2, and so on. */
#if VL >= 8
INLINE __m128 halves_sum(vf a)
{
#if VL == 16
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
#else
    const __m256 h = (__m256)a;
#endif
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

INLINE __m128 halves_max(vf a)
{
#if VL == 16
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
#else
    const __m256 h = (__m256)a;
#endif
    return _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}
#else
INLINE vf halves_sum(vf a) { return a; }
INLINE vf halves_max(vf a) { return a; }
#endif

INLINE float v_sum(vf a)
{
    float t[4];
    const __typeof__(halves_sum(a)) q = halves_sum(a);

    memcpy(t, &q, sizeof t);
    return (t[0] + t[2]) + (t[1] + t[3]);
}

INLINE float v_max_lane(vf a)
{
    float t[4];
    const __typeof__(halves_max(a)) q = halves_max(a);

    memcpy(t, &q, sizeof t);
    t[0] = t[0] > t[2] ? t[0] : t[2];
    t[1] = t[1] > t[3] ? t[1] : t[3];
    return t[0] > t[1] ? t[0] : t[1];
}

INLINE vf v_loadf(const float *p)
{
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}

INLINE void v_storef(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}

INLINE vf v_load(const void *p, int64_t i, enum dtype t)
{
    if (t == F32)
        return v_loadf((const float *)p + i);
#if VL == 16
    const __m256i h = _mm256_loadu_si256((const void *)((const uint16_t *)p + i));
    if (t == F16)
        return (vf)_mm512_cvtph_ps(h);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#elif VL == 8
    const __m128i h = _mm_loadu_si128((const void *)((const uint16_t *)p + i));
    if (t == F16)
        return (vf)_mm256_cvtph_ps(h);
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#else
    vf r;
    for (int j = 0; j < VL; j++)
        r[j] = s_load(p, i + j, t);
    return r;
#endif
}

INLINE void v_store(void *p, int64_t i, enum dtype t, vf x)
{
    if (t == F32) {
        v_storef((float *)p + i, x);
        return;
    }
#if VL == 16
    uint16_t *h = (uint16_t *)p + i;
    if (t == F16) {
        _mm256_storeu_si256((void *)h, _mm512_cvtps_ph((__m512)x, 0));
        return;
    }
#if HAS_BF16_DOT                                /* one instruction; results under 2^-126 become zero */
    _mm256_storeu_si256((void *)h, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    const vu u = (vu)x, r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    const vi is_nan = x != x;
    _mm256_storeu_si256((void *)h, _mm512_cvtepi32_epi16((__m512i)((is_nan & (vi)nan) | (~is_nan & (vi)r))));
#endif
#elif VL == 8
    uint16_t *h = (uint16_t *)p + i;
    if (t == F16) {
        _mm_storeu_si128((void *)h, _mm256_cvtps_ph((__m256)x, 0));
        return;
    }
    const vu u = (vu)x, r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    const vi is_nan = x != x;
    const __m256i w = (__m256i)((is_nan & (vi)nan) | (~is_nan & (vi)r));
    _mm_storeu_si128((void *)h, _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
#else
    for (int j = 0; j < VL; j++)
        s_store(p, i + j, t, x[j]);
#endif
}

/* The first n <= VL lanes; the others read as zero and are not written. */
INLINE vf v_load_n(const void *p, int64_t i, enum dtype t, int64_t n)
{
#if VL == 16
    const __mmask16 m = (__mmask16)((1u << n) - 1);
    if (t == F32)
        return (vf)_mm512_maskz_loadu_ps(m, (const float *)p + i);
    const __m256i h = _mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i);
    if (t == F16)
        return (vf)_mm512_cvtph_ps(h);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#else
    if (t == F32) {
        float b[VL] = { 0 };
        for (int64_t j = 0; j < n; j++)
            b[j] = ((const float *)p)[i + j];
        return v_loadf(b);
    }
    uint16_t b[VL] = { 0 };
    for (int64_t j = 0; j < n; j++)
        b[j] = ((const uint16_t *)p)[i + j];
    return v_load(b, 0, t);
#endif
}

INLINE void v_store_n(void *p, int64_t i, enum dtype t, vf x, int64_t n)
{
    if (t == F32) {
#if VL == 16
        _mm512_mask_storeu_ps((float *)p + i, (__mmask16)((1u << n) - 1), (__m512)x);
#else
        for (int64_t j = 0; j < n; j++)
            ((float *)p)[i + j] = x[j];
#endif
        return;
    }
    uint16_t b[VL];
    v_store(b, 0, t, x);
#if VL == 16
    _mm256_mask_storeu_epi16((uint16_t *)p + i, (__mmask16)((1u << n) - 1), _mm256_loadu_si256((const void *)b));
#else
    for (int64_t j = 0; j < n; j++)
        ((uint16_t *)p)[i + j] = b[j];
#endif
}

/* The same for a loop over n elements by VL: all lanes, or the n that are left. */
INLINE vf v_load_upto(const void *p, int64_t i, enum dtype t, int64_t n)
{
    return n >= VL ? v_load(p, i, t) : v_load_n(p, i, t, n);
}

INLINE void v_store_upto(void *p, int64_t i, enum dtype t, vf x, int64_t n)
{
    if (n >= VL)
        v_store(p, i, t, x);
    else
        v_store_n(p, i, t, x, n);
}

/* Turn VL rows of VL lanes: r[i][j] becomes r[j][i]. */
INLINE void v_transpose(vf r[VL])
{
#if VL == 16
    __m512 t[16];

    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            const __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + h + 2]);
            r[i + 2 * h] = (vf)_mm512_unpacklo_pd(a, b);
            r[i + 2 * h + 1] = (vf)_mm512_unpackhi_pd(a, b);
        }
    for (int i = 0; i < 4; i++) {       /* r[4q+i]: lanes i of the four quarters, rows 4q.. */
        t[i] = _mm512_shuffle_f32x4((__m512)r[i], (__m512)r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4((__m512)r[i], (__m512)r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4((__m512)r[8 + i], (__m512)r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4((__m512)r[8 + i], (__m512)r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = (vf)_mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = (vf)_mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = (vf)_mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = (vf)_mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
#else
    float b[VL][VL];

    for (int i = 0; i < VL; i++)
        v_storef(b[i], r[i]);
    for (int i = 0; i < VL; i++)
        for (int j = 0; j < VL; j++)
            r[i][j] = b[j][i];
#endif
}

/* ---- functions of one variable ----
 * Polynomials are minimax fits by tests/reference/fit_erf.py. Bounds are of max(a, x) form with x second: that order
 * lets NaN through.
 *
 * exp(x) = 2^n exp(r) with n whole and |r| <= ln(2)/2; ln 2 comes in two parts, n times the upper one is exact. */
INLINE vf v_exp_reduce(vf x, vf *n)             /* r of x; |x| <= 104 */
{
    const vf magic = v_set(0x1.8p23f);          /* leaves round(x log2 e) in the low bits */

    *n = v_fma(x, v_set(0x1.715476p+0f), magic) - magic;
    return v_fnma(*n, v_set(0x1.7f7d1cp-20f), v_fnma(*n, v_set(0x1.62e400p-1f), x));
}

INLINE vf v_exp_poly(vf r)                      /* relative error 3e-9 before rounding */
{
    vf p = v_fma(v_set(0x1.6a244cp-10f), r, v_set(0x1.1239d4p-7f));

    p = v_fma(p, r, v_set(0x1.5558f2p-5f));
    p = v_fma(p, r, v_set(0x1.555492p-3f));
    p = v_fma(p, r, v_set(0x1.fffffcp-2f));
    p = v_fma(p, r, v_set(1.0f));
    return v_fma(p, r, v_set(1.0f));
}

INLINE vf v_scale2(vf p, vf n)                  /* p 2^n for whole n in [-126,127] */
{
#if VL == 16
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * v_from_bits((vi)(((vu)(n + v_set(0x1.8p23f)) + 127) << 23));
#endif
}

/* Relative error 1e-7; subnormal results included. Below -103.97 gives 0, above 88.72 Inf. */
INLINE vf v_exp(vf x)
{
    vf n, r = v_exp_reduce(v_min(v_set(89.0f), v_max(v_set(-104.0f), x)), &n), p = v_exp_poly(r);

#if VL == 16
    return v_scale2(p, n);
#else
    const vf half = v_round(v_set(0.5f) * n);   /* two factors, so that 2^128 and subnormals come out */
    return v_scale2(v_scale2(p, half), n - half);
#endif
}

/* exp for x <= 0, the softmax's case: exp(x) under 2^-126 is flushed to zero. */
INLINE vf v_exp_neg(vf x)
{
    vf n, r = v_exp_reduce(v_max(v_set(-87.4f), x), &n);

    return (vf)((vi)v_scale2(v_exp_poly(r), n) & ~(vi)(x < v_set(-87.4f)));
}

INLINE vf v_silu(vf x)
{
    return x / (v_set(1.0f) + v_exp(-x));
}

/* silu'(x) = s (1 + x (1-s)), s = sigmoid(x). 1-s comes as s exp(-x), which cancels nothing for large x. Beyond 87 the
 * slope is 0 or 1 in f32. */
INLINE vf v_silu_slope(vf x)
{
    const vf z = v_min(v_set(87.0f), v_max(v_set(-87.0f), x)), e = v_exp(-z), s = v_set(1.0f) / (v_set(1.0f) + e);

    return v_fma(z * s, e * s, s);
}

INLINE vf v_quick_gelu(vf x)                    /* CLIP: x * sigmoid(1.702 x) */
{
    return x / (v_set(1.0f) + v_exp(v_set(-1.702f) * x));
}

INLINE vf v_relu(vf x)
{
    return v_max(v_zero(), x);
}

/* The normal tail Phi(-|x|) = erfc(|x|/sqrt 2)/2 = exp(-x^2/2) (1/2 + |x| R(|x|)), and *e = exp(-x^2/2). Error below
 * 1e-7, and 1e-6 of the value down to x = -4. Above 13.2 the tail stays at 5e-40: *a is |x| or 13.2. */
INLINE vf v_normal_tail(vf x, vf *a, vf *e)
{
    static const float c[] = {                  /* R(s), s = 2|x|/5.5 - 1, highest power first */
        0x1.f32b54p-13f, -0x1.f86476p-12f, 0x1.18980ap-12f, -0x1.1a90c8p-11f, 0x1.cf1218p-10f, -0x1.a499dep-9f,
        0x1.5fce3ep-8f, -0x1.342ceap-7f, 0x1.06e4eap-6f, -0x1.afe84cp-6f, 0x1.572eb0p-5f, -0x1.072e92p-4f,
        0x1.846f44p-4f, -0x1.130266p-3f
    };
    const vf b = v_min(v_set(13.2f), (vf)((vi)x & 0x7fffffff)), top = v_min(v_set(5.5f), b);
    const vf s = v_fma(top, v_set(2 / 5.5f), v_set(-1.0f));
    vf n, r = v_exp_reduce(v_set(-0.5f) * b * b, &n), p = v_set(c[0]);

    for (int i = 1; i < 14; i++)
        p = v_fma(p, s, v_set(c[i]));
    *a = b;
    *e = v_scale2(v_exp_poly(r), n);
    return *e * v_fma(p, top, v_set(0.5f));
}

/* x Phi(x) = max(x,0) - |x| Phi(-|x|): no cancellation for negative x. */
INLINE vf v_gelu(vf x)
{
    vf a, e, tail = v_normal_tail(x, &a, &e);

    return v_fnma(a, tail, v_relu(x));
}

/* ---- fixed ground shared by the *_cpu.c files ---- */

/* This thread's scratch block. Inside a parallel region only. */
INLINE char *thread_scratch(const struct kctx *k, int thread)
{
    return (char *)k->scratch + (size_t)thread * k->scratch_bytes;
}

#define SCRATCH_BYTES ((size_t)3 << 20)         /* every kernel fits its per-thread needs in this */

#endif
