/* kernels/random_cuda.cu: Philox4x32-10 (Salmon et al. 2011), a block of four words a thread, and numbers made from it.
 *
 * Normals take the steps of rand_cpu.c one by one, each rounded by itself: with no fused multiply-adds and the exact
 * roundings of IEEE 754 for quotients and roots they have the CPU's bits. */
#include "kernels/cuda_vec.cuh"

enum { THREADS = 256 };
enum kind { BITS, UNIFORM, NORMAL };

/* One round of the bijection; Salmon et al. 2011, sec. 3.3. */
static __device__ __forceinline__ void philox_round(uint32_t c[4], uint32_t key0, uint32_t key1)
{
    const uint32_t hi0 = __umulhi(0xD2511F53u, c[0]), lo0 = 0xD2511F53u * c[0];
    const uint32_t hi1 = __umulhi(0xCD9E8D57u, c[2]), lo1 = 0xCD9E8D57u * c[2];

    c[0] = hi1 ^ c[1] ^ key0;
    c[1] = lo1;
    c[2] = hi0 ^ c[3] ^ key1;
    c[3] = lo0;
}

static __device__ __forceinline__ void philox(uint32_t c[4], const struct krng &r, uint32_t block)
{
    c[0] = block;
    for (int j = 0; j < 3; j++)
        c[j + 1] = r.ctr[j];
    for (uint32_t round = 0; round < 10; round++)
        philox_round(c, r.key[0] + round * 0x9E3779B9u, r.key[1] + round * 0xBB67AE85u);
}

/* a b + c, rounded twice */
static __device__ __forceinline__ float mul_add(float a, float b, float c)
{
    return __fadd_rn(__fmul_rn(a, b), c);
}

/* -ln((u+1) 2^-32) as in rand_cpu.c: ln(1+f) = 2 artanh(f/(2+f)) around the nearest power of two, and around 1 from
 * 1 - (u+1) 2^-32 taken before rounding. */
static __device__ __forceinline__ float minus_log(uint32_t u)
{
    const float x = (float)(u + 1u), below_one = __fmul_rn((float)~u, 0x1p-32f);
    const int bits = __float_as_int(x), half = (bits & 0x7fffff) > 0x3504f3;      /* the significand is over sqrt(2) */
    const bool near_one = below_one < 0.2928932f;
    const float m = __fmul_rn(__int_as_float((bits & 0x7fffff) | 0x3f800000), half ? 0.5f : 1.0f);
    const float f = near_one ? -below_one : __fsub_rn(m, 1.0f), s = __fdiv_rn(f, __fadd_rn(2.0f, f));
    const float q = __fmul_rn(s, s), k = near_one ? 0.0f : (float)(32 - ((bits >> 23) - 127 + half));
    float p = mul_add(1.0f / 9, q, 1.0f / 7);

    p = mul_add(p, q, 1.0f / 5);
    p = mul_add(p, q, 1.0f / 3);
    p = mul_add(__fmul_rn(s, q), p, s);
    p = __fsub_rn(__fmul_rn(k, 0x1.7f7d1cp-20f), __fadd_rn(p, p));
    return mul_add(k, 0x1.62e4p-1f, p);                                            /* ln 2 in two parts */
}

/* cos and sin of 2 pi u 2^-32 as in rand_cpu.c: Taylor series around the nearest quarter turn. */
static __device__ __forceinline__ void cos_sin(uint32_t u, float *c, float *s)
{
    const uint32_t quarter = (u + 0x20000000u) >> 30;
    const uint32_t flip_c = ((quarter + 1u) & 2u) << 30, flip_s = (quarter & 2u) << 30;
    const float t = __fmul_rn((float)(int32_t)(u - (quarter << 30)), 0x1.921fb6p-30f), q = __fmul_rn(t, t);
    float a = mul_add(q, -1.0f / 3628800, 1.0f / 40320), b = mul_add(q, 1.0f / 362880, -1.0f / 5040);

    a = mul_add(a, q, -1.0f / 720);
    a = mul_add(a, q, 1.0f / 24);
    a = mul_add(a, q, -0.5f);
    a = mul_add(a, q, 1.0f);
    b = mul_add(b, q, 1.0f / 120);
    b = mul_add(b, q, -1.0f / 6);
    b = mul_add(__fmul_rn(b, q), t, t);
    *c = __uint_as_float(__float_as_uint(quarter & 1u ? b : a) ^ flip_c);
    *s = __uint_as_float(__float_as_uint(quarter & 1u ? a : b) ^ flip_s);
}

/* Box & Muller 1958 on words (0,1) and (2,3); words as they are travel in the floats' bits. */
template <enum kind KIND>
static __device__ __forceinline__ void numbers(float v[4], const struct krng &r, uint32_t block)
{
    uint32_t w[4];

    philox(w, r, block);
    for (int j = 0; j < 4; j += 2) {
        if (KIND == NORMAL) {
            const float radius = __fsqrt_rn(__fmul_rn(2.0f, minus_log(w[j])));

            cos_sin(w[j + 1], &v[j], &v[j + 1]);
            v[j] = __fmul_rn(radius, v[j]);
            v[j + 1] = __fmul_rn(radius, v[j + 1]);
        } else {
            v[j] = KIND == BITS ? __uint_as_float(w[j]) : __fmul_rn((float)(w[j] >> 8), 0x1p-24f);
            v[j + 1] = KIND == BITS ? __uint_as_float(w[j + 1]) : __fmul_rn((float)(w[j + 1] >> 8), 0x1p-24f);
        }
    }
}

/* y[-skip] is lane 0 of block `block`; with V = 4 that is y[0], and aligned. */
template <enum kind KIND, int V, typename T>
static __global__ void random_kernel(T *y, int64_t n, struct krng r, uint32_t block, int skip)
{
    CUDA_EACH(i, (n + skip + 3) / 4) {
        const int64_t at = 4 * i - skip;
        float v[4];

        numbers<KIND>(v, r, block + (uint32_t)i);
        if (V == 4 && at + 4 <= n)
            store_vec<4>(y + at, v);
        else
            for (int j = 0; j < 4; j++)
                if (at + j >= 0 && at + j < n)
                    store(&y[at + j], v[j]);
    }
}

template <enum kind KIND, typename T>
static int draw(struct kctx *k, T *y, int64_t n, const struct krng *r, uint64_t first)
{
    const uint64_t max_elements = (uint64_t)1 << 34;            /* the block number is one counter word */
    const int skip = (int)(first % 4);

    if (n < 0 || first > max_elements || (uint64_t)n > max_elements - first)
        return K_ARG;
    if (n > 0)
        CUDA_BY_VEC(cuda_aligned(y) && !skip, 4, V,
                    LAUNCH(k, (random_kernel<KIND, V, T>), cuda_blocks((n + skip + 3) / 4, THREADS), THREADS, 0, y, n,
                           *r, (uint32_t)(first / 4), skip));
    return cuda_launched(k);
}

/* A word is 32 bits of storage, whatever they stand for. */
static int random_bits(struct kctx *k, uint32_t *y, int64_t n, const struct krng *r, uint64_t first)
{
    return draw<BITS>(k, (float *)y, n, r, first);
}

static int random_uniform(struct kctx *k, float *y, int64_t n, const struct krng *r, uint64_t first)
{
    return draw<UNIFORM>(k, y, n, r, first);
}

static int random_normal(struct kctx *k, void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first)
{
    CUDA_BY_TYPE(type, T, return draw<NORMAL>(k, (T *)y, n, r, first));
    return K_OK;
}

void cuda_fill_random(struct kern *k)
{
    k->random_bits = random_bits;
    k->random_uniform = random_uniform;
    k->random_normal = random_normal;
}
