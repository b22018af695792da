/* tests/bench/peak.c: what this machine can do at best, measured by loops that do nothing else. */
#include "tests/bench/bench.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

double bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double bench_time(int (*f)(void *arg), void *arg)
{
    double best = 1e30, total = 0;

    for (int n = 0; n < 3 || (total < 0.2 && n < 10000); n++) {
        const double t0 = bench_now();
        double t;

        if (f(arg))
            return -1;
        t = bench_now() - t0;
        total += t;
        if (t < best)
            best = t;
    }
    return best;
}

enum { CHAINS = 24, ROUNDS = 2000000 };

static volatile float sink;             /* results go here, so that loops are not dropped */

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static int fma_512(void *arg)
{
    __m512 a[CHAINS], b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(1e-3f);
    const int n = *(int *)arg;

    #pragma omp parallel for num_threads(n) private(a) schedule(static)
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < CHAINS; i++)
            a[i] = _mm512_set1_ps((float)i);
        for (int r = 0; r < ROUNDS; r++) {
            #pragma GCC unroll 24
            for (int i = 0; i < CHAINS; i++)
                a[i] = _mm512_fmadd_ps(a[i], b, c);
        }
        for (int i = 1; i < CHAINS; i++)
            a[0] = _mm512_add_ps(a[0], a[i]);
        sink = _mm512_reduce_add_ps(a[0]);
    }
    return 0;
}

__attribute__((target("avx512f,avx512bf16"))) static int dot_512(void *arg)
{
    __m512 a[CHAINS], b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(1e-3f);
    const int n = *(int *)arg;

    #pragma omp parallel for num_threads(n) private(a) schedule(static)
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < CHAINS; i++)
            a[i] = _mm512_set1_ps((float)i);
        for (int r = 0; r < ROUNDS; r++) {
            #pragma GCC unroll 24
            for (int i = 0; i < CHAINS; i++)
                a[i] = _mm512_dpbf16_ps(a[i], (__m512bh)b, (__m512bh)c);
        }
        for (int i = 1; i < CHAINS; i++)
            a[0] = _mm512_add_ps(a[0], a[i]);
        sink = _mm512_reduce_add_ps(a[0]);
    }
    return 0;
}

__attribute__((target("avx2,fma"))) static int fma_256(void *arg)
{
    __m256 a[12], b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(1e-3f);
    const int n = *(int *)arg;

    #pragma omp parallel for num_threads(n) private(a) schedule(static)
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < 12; i++)
            a[i] = _mm256_set1_ps((float)i);
        for (int r = 0; r < ROUNDS; r++) {
            #pragma GCC unroll 12
            for (int i = 0; i < 12; i++)
                a[i] = _mm256_fmadd_ps(a[i], b, c);
        }
        for (int i = 1; i < 12; i++)
            a[0] = _mm256_add_ps(a[0], a[i]);
        sink = a[0][0] + a[0][5];
    }
    return 0;
}
#endif

static double rate(int (*f)(void *), int n_threads, double flops)
{
    double best = bench_time(f, &n_threads);

    for (int i = 0; i < 4; i++) {
        const double t = bench_time(f, &n_threads);
        best = t < best ? t : best;
    }
    return flops * n_threads / best * 1e-9;
}

double peak_f32(int n_threads)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return rate(fma_512, n_threads, 2.0 * 16 * CHAINS * ROUNDS);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return rate(fma_256, n_threads, 2.0 * 8 * 12 * ROUNDS);
#endif
    (void)rate;
    return 0;
}

double peak_bf16(int n_threads)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16"))
        return rate(dot_512, n_threads, 4.0 * 16 * CHAINS * ROUNDS);
#endif
    (void)n_threads;
    return 0;
}

struct copy {
    char *dst, *src;
    size_t bytes;
    int n_threads;
};

static int copy_run(void *arg)
{
    const struct copy *c = arg;
    const size_t part = c->bytes / (size_t)c->n_threads;

    #pragma omp parallel for num_threads(c->n_threads) schedule(static)
    for (int t = 0; t < c->n_threads; t++)
        memcpy(c->dst + part * (size_t)t, c->src + part * (size_t)t, part);
    return 0;
}

double peak_copy(int n_threads, size_t bytes)
{
    struct copy c = { .bytes = bytes / 2, .n_threads = n_threads };
    double t = -1;

    c.dst = aligned_alloc(4096, (c.bytes + 4095) / 4096 * 4096);
    c.src = aligned_alloc(4096, (c.bytes + 4095) / 4096 * 4096);
    if (c.dst && c.src) {
        memset(c.dst, 1, c.bytes);
        memset(c.src, 2, c.bytes);
        t = bench_time(copy_run, &c);
    }
    free(c.dst);
    free(c.src);
    return t > 0 ? 2.0 * (double)c.bytes / t * 1e-9 : 0;
}
