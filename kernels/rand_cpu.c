/* kernels/rand_cpu.c: Philox4x32-10 (Salmon et al. 2011), VL blocks at a time, and numbers made from it.
 *
 * An element is a function of its index alone, so a draw may be cut anywhere and by any number of threads. No fused
 * multiply-adds here: normals, too, have the same bits on every instruction set. */
#include "kernels/simd.h"

#include "kernels/isa.h"

enum {
    GROUP = 4 * VL,             /* elements made at once: VL blocks of four words */
    CHUNK_GROUPS = 256          /* groups that a thread takes at once */
};

static const uint64_t max_elements = (uint64_t)1 << 34;    /* the block number is one counter word */

/* Words of blocks [block, block+VL): x[j] holds word j of each. */
INLINE void philox(vu x[4], const struct krng *r, uint32_t block)
{
    const vu mul0 = (vu){ 0 } + 0xD2511F53u, mul1 = (vu){ 0 } + 0xCD9E8D57u;
    uint32_t key0 = r->key[0], key1 = r->key[1], number[VL];

    for (int i = 0; i < VL; i++)
        number[i] = block + (uint32_t)i;
    memcpy(&x[0], number, sizeof number);
    for (int j = 1; j < 4; j++)
        x[j] = (vu){ 0 } + r->ctr[j - 1];
    for (int round = 0; round < 10; round++) {
        const vu hi0 = v_mul_high(x[0], mul0), lo0 = x[0] * mul0, hi1 = v_mul_high(x[2], mul1), lo1 = x[2] * mul1;
        x[0] = hi1 ^ x[1] ^ key0;
        x[1] = lo1;
        x[2] = hi0 ^ x[3] ^ key1;
        x[3] = lo0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* a0 b0 a1 b1 ...: the first and the second half of the lanes. */
#if VL == 16
#define ZIP_LOW  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VL == 8
#define ZIP_LOW  0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define ZIP_LOW  0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#endif
#define ZIP(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* From word j of VL blocks in x[j] to the order of elements: block by block. */
INLINE void in_order(vu x[4])
{
    const vu a = ZIP(x[0], x[2], ZIP_LOW), b = ZIP(x[1], x[3], ZIP_LOW);
    const vu c = ZIP(x[0], x[2], ZIP_HIGH), d = ZIP(x[1], x[3], ZIP_HIGH);

    x[0] = ZIP(a, b, ZIP_LOW);
    x[1] = ZIP(a, b, ZIP_HIGH);
    x[2] = ZIP(c, d, ZIP_LOW);
    x[3] = ZIP(c, d, ZIP_HIGH);
}

/* -ln((u+1) 2^-32) >= 0 with a relative error of a few 2^-24, also next to u = 2^32-1, where 1 - (u+1) 2^-32 is taken
 * before rounding. ln(1+f) = 2 artanh(s), s = f/(2+f), |s| <= 0.1716: the series' first term left out is 2e-9. */
INLINE vf minus_log(vu u)
{
    const vf one = v_set(1.0f), x = __builtin_convertvector(u + 1u, vf);
    const vf below_one = __builtin_convertvector(~u, vf) * v_set(0x1p-32f);
    const vi near_one = below_one < v_set(0.2928932f);          /* (u+1) 2^-32 > sqrt(1/2) */
    const vi half = ((vi)x & 0x7fffff) > 0x3504f3;              /* the significand lies above sqrt(2) */
    const vi e = (((vi)x >> 23) - 127 - half) & ~near_one;      /* x = m 2^e, m in [sqrt(1/2),sqrt(2)] */
    const vf m = (vf)(((vi)x & 0x7fffff) | 0x3f800000) * v_select(half, v_set(0.5f), one);
    const vf f = v_select(near_one, -below_one, m - one), s = f / (v_set(2.0f) + f), q = s * s;
    const vf k = __builtin_convertvector((32 - e) & ~near_one, vf);
    vf p = v_set(1.0f / 9);

    p = p * q + v_set(1.0f / 7);
    p = p * q + v_set(1.0f / 5);
    p = p * q + v_set(1.0f / 3);
    p = s * q * p + s;
    return k * v_set(0x1.62e4p-1f) + (k * v_set(0x1.7f7d1cp-20f) - (p + p));    /* ln 2 in two parts; k * first exact */
}

/* cos and sin of 2 pi u 2^-32: the angle from the nearest quarter turn is exact before rounding, |t| <= pi/4, and the
 * Taylor series leave out less than 2e-9. */
INLINE void cos_sin(vu u, vf *c, vf *s)
{
    const vu quarter = (u + 0x20000000u) >> 30;
    const vf t = __builtin_convertvector((vi)(u - (quarter << 30)), vf) * v_set(0x1.921fb6p-30f), q = t * t;
    const vi swap = (vi)(quarter & 1u) != 0;
    const vu flip_c = ((quarter + 1u) & 2u) << 30, flip_s = (quarter & 2u) << 30;
    vf a, b;

    a = q * v_set(-1.0f / 3628800) + v_set(1.0f / 40320);
    a = a * q + v_set(-1.0f / 720);
    a = a * q + v_set(1.0f / 24);
    a = a * q + v_set(-0.5f);
    a = a * q + v_set(1.0f);
    b = q * v_set(1.0f / 362880) + v_set(-1.0f / 5040);
    b = b * q + v_set(1.0f / 120);
    b = b * q + v_set(-1.0f / 6);
    b = b * q * t + t;
    *c = (vf)((vu)v_select(swap, b, a) ^ flip_c);
    *s = (vf)((vu)v_select(swap, a, b) ^ flip_s);
}

/* Box & Muller 1958 on words (0,1) and (2,3). */
INLINE void normals(vu x[4])
{
    vf c, s, r;

    for (int j = 0; j < 4; j += 2) {
        r = v_sqrt(v_set(2.0f) * minus_log(x[j]));
        cos_sin(x[j + 1], &c, &s);
        x[j] = (vu)(r * c);
        x[j + 1] = (vu)(r * s);
    }
}

enum kind { BITS, UNIFORM, NORMAL };

/* One group of elements, the first of them 4 * block. */
INLINE void group(vu x[4], enum kind kind, const struct krng *r, uint32_t block)
{
    philox(x, r, block);
    if (kind == NORMAL)
        normals(x);
    in_order(x);
    if (kind == UNIFORM)
        for (int j = 0; j < 4; j++)
            x[j] = (vu)(__builtin_convertvector((vi)(x[j] >> 8), vf) * v_set(0x1p-24f));
}

/* Words as they are, or numbers rounded to T. */
INLINE void put(void *y, int64_t i, enum kind kind, enum dtype T, const vu x[4])
{
    for (int j = 0; j < 4; j++) {
        if (kind == BITS)
            memcpy((uint32_t *)y + i + j * VL, &x[j], sizeof x[j]);
        else
            v_store(y, i + j * VL, T, (vf)x[j]);
    }
}

/* Groups [g,g_end) of the draw, where group 0 begins with the block that holds element `first`; y[0] is `first`. Only
 * the draw's first and last group may stick out. */
INLINE void run(void *y, enum kind kind, enum dtype T, int64_t n, const struct krng *r, uint64_t first, int64_t g,
                int64_t g_end)
{
    const size_t bytes = kind == BITS ? 4 : dtype_bytes(T);
    const int64_t skip = (int64_t)(first % 4);
    vu x[4];

    for (; g < g_end; g++) {
        const int64_t at = g * GROUP - skip;            /* place in y of the group's first element */
        group(x, kind, r, (uint32_t)(first / 4 + (uint64_t)g * VL));
        if (at >= 0 && at + GROUP <= n) {
            put(y, at, kind, T, x);
        } else {
            uint32_t whole[GROUP];
            const int64_t from = at < 0 ? -at : 0, to = n - at < GROUP ? n - at : GROUP;
            put(whole, 0, kind, T, x);
            memcpy((char *)y + (size_t)(at + from) * bytes, (char *)whole + (size_t)from * bytes,
                   (size_t)(to - from) * bytes);
        }
    }
}

static int run_bits(void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first, int64_t g, int64_t end)
{
    (void)type;
    run(y, BITS, F32, n, r, first, g, end);
    return K_OK;
}

static int run_uniform(void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first, int64_t g,
                       int64_t end)
{
    (void)type;
    run(y, UNIFORM, F32, n, r, first, g, end);
    return K_OK;
}

static int run_normal(void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first, int64_t g, int64_t end)
{
    BY_TYPE(type, run(y, NORMAL, T, n, r, first, g, end));
    return K_OK;
}

typedef int run_fn(void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first, int64_t g, int64_t end);

static int draw(struct kctx *k, run_fn *fn, void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first)
{
    int64_t n_group;

    if (n < 0 || (type != F32 && type != F16 && type != BF16) || first > max_elements
        || (uint64_t)n > max_elements - first)
        return K_ARG;
    if (!n)
        return K_OK;
    n_group = (n + (int64_t)(first % 4) - 1) / GROUP + 1;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n_group > CHUNK_GROUPS)
    for (int64_t g = 0; g < n_group; g += CHUNK_GROUPS)
        fn(y, type, n, r, first, g, n_group - g < CHUNK_GROUPS ? n_group : g + CHUNK_GROUPS);
    return K_OK;
}

static int k_random_bits(struct kctx *k, uint32_t *y, int64_t n, const struct krng *r, uint64_t first)
{
    return draw(k, run_bits, y, F32, n, r, first);
}

static int k_random_uniform(struct kctx *k, float *y, int64_t n, const struct krng *r, uint64_t first)
{
    return draw(k, run_uniform, y, F32, n, r, first);
}

static int k_random_normal(struct kctx *k, void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first)
{
    return draw(k, run_normal, y, type, n, r, first);
}

void ISA_NAME(fill_random)(struct kern *k)
{
    k->random_bits = k_random_bits;
    k->random_uniform = k_random_uniform;
    k->random_normal = k_random_normal;
}
