/* core/rng_torch.c: MT19937 with torch's three ways to normal numbers, and Philox as its CUDA kernels use it. Where
 * torch's bits depend on a fused multiply-add, one stands here; nothing else is fused. */
#include "core/rng_torch.h"

#include <math.h>
#include <string.h>
#include "core/rng.h"
#include "kernels/simd.h"

enum { MT_N = 624, MT_M = 397, GROUP = 16, HALF = 8 };

static const double two_pi = 6.283185307179586;

/* ---- CPU: the sequence ---- */

void rng_torch_cpu_seed(struct rng_torch_cpu *g, uint64_t seed)
{
    g->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < MT_N; i++)
        g->state[i] = 1812433253u * (g->state[i - 1] ^ g->state[i - 1] >> 30) + i;
    g->next = MT_N;
    g->has_kept = false;
    g->kept = 0;
}

static uint32_t twist(uint32_t high, uint32_t low, uint32_t far)
{
    const uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);

    return far ^ y >> 1 ^ (0x9908b0dfu & (0u - (low & 1u)));
}

static void next_state(struct rng_torch_cpu *g)
{
    uint32_t *s = g->state;

    for (int i = 0; i < MT_N - MT_M; i++)
        s[i] = twist(s[i], s[i + 1], s[i + MT_M]);
    for (int i = MT_N - MT_M; i < MT_N - 1; i++)
        s[i] = twist(s[i], s[i + 1], s[i + MT_M - MT_N]);
    s[MT_N - 1] = twist(s[MT_N - 1], s[0], s[MT_M - 1]);
    g->next = 0;
}

static uint32_t temper(uint32_t y)
{
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

uint32_t rng_torch_cpu_u32(struct rng_torch_cpu *g)
{
    if (g->next >= MT_N)
        next_state(g);
    return temper(g->state[g->next++]);
}

/* [0,1) with 53 bits; the high word is drawn first. */
static double uniform_53(struct rng_torch_cpu *g)
{
    const uint64_t high = rng_torch_cpu_u32(g), low = rng_torch_cpu_u32(g);

    return (double)((high << 32 | low) & (((uint64_t)1 << 53) - 1)) * 0x1p-53;
}

/* As rng_torch_cpu_u32() one after the other, but by what is left of a state. */
void rng_torch_cpu_uniform(struct rng_torch_cpu *g, float *dst, int64_t n)
{
    while (n > 0) {
        int64_t m;
        if (g->next >= MT_N)
            next_state(g);
        m = lesser(n, MT_N - g->next);
        for (int64_t i = 0; i < m; i++)
            dst[i] = (float)(int32_t)(temper(g->state[g->next + i]) & 0xffffffu) * 0x1p-24f;
        g->next += (int)m;
        dst += m;
        n -= m;
    }
}

void rng_torch_cpu_below(struct rng_torch_cpu *g, int64_t *dst, int64_t n, uint32_t below)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = rng_torch_cpu_u32(g);
        dst[i] = below ? u % below : u;
    }
}

/* ---- fewer than 16 normals: Box-Muller in double, one at a time, the second of a pair kept for whoever comes ---- */

static double normal_one(struct rng_torch_cpu *g)
{
    double u1, r, angle;

    if (g->has_kept) {
        g->has_kept = false;
        return g->kept;
    }
    u1 = uniform_53(g);
    r = sqrt(-2 * log1p(-uniform_53(g)));
    angle = two_pi * u1;
    g->kept = r * sin(angle);
    g->has_kept = true;
    return r * cos(angle);
}

/* ---- 16 normals in f32: torch's AVX2 kernel, with the polynomials of Cephes (Moshier) ---- */

/* The natural logarithm of x in (0,1], normal numbers: x = m 2^e with m in [sqrt(1/2), sqrt(2)). */
INLINE float log_cephes(float x)
{
    const uint32_t bits = bits_of_f32(x);
    float e = (float)((int32_t)(bits >> 23) - 126), m = f32_from_bits((bits & 0x807fffffu) | 0x3f000000u), z, y;
    const bool low = m < 0.707106781186547524f;

    e = low ? e - 1 : e;
    m = m - 1 + (low ? m : 0);
    z = m * m;
    y = fmaf(7.0376836292e-2f, m, -1.1514610310e-1f);
    y = fmaf(y, m, 1.1676998740e-1f);
    y = fmaf(y, m, -1.2420140846e-1f);
    y = fmaf(y, m, 1.4249322787e-1f);
    y = fmaf(y, m, -1.6668057665e-1f);
    y = fmaf(y, m, 2.0000714765e-1f);
    y = fmaf(y, m, -2.4999993993e-1f);
    y = fmaf(y, m, 3.3333331174e-1f);
    y = fmaf(y * m, z, e * -2.12194440e-4f);
    y = fmaf(z, -0.5f, y);
    return fmaf(e, 0.693359375f, m + y);
}

/* Sine and cosine of x >= 0: the octant's number, x less that many pi/4 in three steps, two polynomials. */
INLINE void sincos_cephes(float x, float *sine, float *cosine)
{
    const int32_t j = ((int32_t)(x * 1.27323954473516f) + 1) & ~1;
    const float y = (float)j;
    float z, s, c;

    x = fmaf(y, -0.78515625f, x);
    x = fmaf(y, -2.4187564849853515625e-4f, x);
    x = fmaf(y, -3.77489497744594108e-8f, x);
    z = x * x;
    c = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f);
    c = fmaf(c * z, z, z * -0.5f) + 1;
    s = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f);
    s = fmaf(s * z, x, x);
    *sine = (j & 2 ? c : s) * (j & 4 ? -1.0f : 1.0f);
    *cosine = (j & 2 ? s : c) * ((j + 2) & 4 ? -1.0f : 1.0f);
}

/* 16 uniforms to 16 normals in place. The sum with 0 makes -0 a 0, as torch's "times std plus mean" does. */
INLINE void normal_groups(float *d, int64_t n)
{
    for (; n >= GROUP; n -= GROUP, d += GROUP)
        for (int j = 0; j < HALF; j++) {
            const float r = sqrtf(-2 * log_cephes(1 - d[j]));
            float s, c;
            sincos_cephes(6.2831855f * d[j + HALF], &s, &c);
            d[j] = r * c + 0;
            d[j + HALF] = r * s + 0;
        }
}
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void normal_groups_fma(float *d, int64_t n)
{
    normal_groups(d, n);
}
#endif

static void normal_f32(float *d, int64_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        normal_groups_fma(d, n);
        return;
    }
#endif
    normal_groups(d, n);
}

/* ---- 16 normals in f16 or bf16: the same equations, each step rounded to the type, functions by libm ---- */

INLINE float rounded(double x, enum dtype type)
{
    return type == F16 ? f32_of_f16(f16_of_f32((float)x)) : f32_of_bf16(bf16_of_f32((float)x));
}

/* Uniforms have the type's precision: 11 or 8 bits of one word. */
INLINE void normal_short(struct rng_torch_cpu *g, uint16_t *d, enum dtype type)
{
    const float unit = type == F16 ? 0x1p-11f : 0x1p-8f;
    const uint32_t mask = type == F16 ? 0x7ff : 0xff;
    float u[GROUP];

    for (int j = 0; j < GROUP; j++)
        u[j] = (float)(rng_torch_cpu_u32(g) & mask) * unit;
    for (int j = 0; j < HALF; j++) {
        const float l = rounded(logf(1 - u[j]), type), r = rounded(sqrtf(rounded(-2 * l, type)), type);
        const float angle = rounded(two_pi * (double)u[j + HALF], type);
        s_store(d, j, type, r * rounded(cosf(angle), type) + 0);
        s_store(d, j + HALF, type, r * rounded(sinf(angle), type) + 0);
    }
}

/* Whole groups first; then the last 16 places are drawn and transformed again if the groups do not end there. */
static void normal_many(struct rng_torch_cpu *g, void *dst, enum dtype type, int64_t n)
{
    const int64_t rest = n % GROUP;

    if (type == F32) {
        float *d = dst, *last = d + n - GROUP;
        rng_torch_cpu_uniform(g, d, n);
        normal_f32(d, n);
        if (rest) {
            rng_torch_cpu_uniform(g, last, GROUP);
            normal_f32(last, GROUP);
        }
        return;
    }
    for (uint16_t *d = dst; d - (uint16_t *)dst < n - rest; d += GROUP)
        normal_short(g, d, type);
    for (int64_t i = 0; i < rest; i++)
        (void)rng_torch_cpu_u32(g);
    if (rest)
        normal_short(g, (uint16_t *)dst + n - GROUP, type);
}

void rng_torch_cpu_normal(struct rng_torch_cpu *g, void *dst, enum dtype type, int64_t n)
{
    if (n >= GROUP)
        normal_many(g, dst, type, n);
    else
        for (int64_t i = 0; i < n; i++)
            s_store(dst, i, type, (float)normal_one(g));
}

/* ---- CUDA ---- */

enum { BLOCK = 256, MAX_BLOCKS = 108 * 2048 / BLOCK };

void rng_torch_cuda_seed(struct rng_torch_cuda *g, uint64_t seed)
{
    *g = (struct rng_torch_cuda){ .seed = seed };
}

/* Number k of the four that thread `thread` makes in its round `round`: curand's Box-Muller, sine first. */
static float normal_cuda(const struct rng_torch_cuda *g, uint64_t thread, uint64_t round, int k)
{
    const uint64_t at = g->offset / 4 + round;
    const struct krng r = { { (uint32_t)g->seed, (uint32_t)(g->seed >> 32) },
                            { (uint32_t)(at >> 32), (uint32_t)thread, (uint32_t)(thread >> 32) } };
    const uint64_t word = 4 * (at & 0xffffffffu) + (k & 2);
    const float u = fmaf((float)rng_u32(&r, word), 0x1p-32f, 0x1p-33f);
    const float v = fmaf((float)rng_u32(&r, word + 1), 0x1p-32f * 6.2831855f, 0x1p-33f * 6.2831855f);

    return sqrtf(-2 * logf(u)) * (k & 1 ? cosf(v) : sinf(v)) + 0;
}

/* Threads are as many as elements in blocks of 256, up to what the GPU holds. Each makes four numbers a round, for
 * places that are the number of threads apart. */
void rng_torch_cuda_normal(struct rng_torch_cuda *g, void *dst, enum dtype type, int64_t n)
{
    const int64_t n_thread = BLOCK * lesser((n + BLOCK - 1) / BLOCK, MAX_BLOCKS);

    if (n <= 0)
        return;
    for (int64_t i = 0; i < n; i++) {
        const int64_t turn = i / n_thread;
        s_store(dst, i, type, normal_cuda(g, (uint64_t)(i % n_thread), (uint64_t)(turn / 4), (int)(turn % 4)));
    }
    g->offset += 4 * (uint64_t)((n - 1) / (4 * n_thread) + 1);
}
