/* tests/t_rng_torch.c: torch's generators against what torch drew (tests/reference/rng.txt), and the CUDA one against
 * published and emulated vectors. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/rng_torch.h"
#include "core/tensor.h"
#include "tests/tap.h"

enum { MAX_N = 1 << 20, MARGIN = 16 };

static unsigned char *buf;

static uint64_t fnv(const unsigned char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

struct call {
    char kind[16], type[16], how;
    int64_t n;
    const char *want;
};

static enum dtype type_of(const char *name)
{
    return !strcmp(name, "f32") ? F32 : !strcmp(name, "f16") ? F16 : BF16;
}

/* Draw into buf; returns the bytes of an element. */
static size_t make(struct rng_torch_cpu *g, const struct call *c)
{
    if (!strcmp(c->kind, "normal")) {
        rng_torch_cpu_normal(g, buf, type_of(c->type), c->n);
        return dtype_bytes(type_of(c->type));
    }
    if (!strcmp(c->kind, "uniform")) {
        rng_torch_cpu_uniform(g, (float *)(void *)buf, c->n);
        return 4;
    }
    rng_torch_cpu_below(g, (int64_t *)(void *)buf, c->n, (uint32_t)strtoul(c->type, NULL, 10));
    return 8;
}

static bool call_agrees(struct rng_torch_cpu *g, const struct call *c)
{
    char *at = (char *)(uintptr_t)c->want;
    size_t bytes;

    memset(buf, 0xA5, 8 * ((size_t)c->n + MARGIN));
    bytes = make(g, c);
    for (size_t i = 0; i < MARGIN; i++)
        if (buf[bytes * (size_t)c->n + i] != 0xA5)
            return false;
    if (c->how == '#')
        return strtoull(at, NULL, 16) == fnv(buf, bytes * (size_t)c->n);
    for (int64_t i = 0; i < c->n; i++) {
        uint64_t got = 0;
        memcpy(&got, buf + bytes * (size_t)i, bytes);
        if (strtoull(at, &at, 16) != got)
            return false;
    }
    return true;
}

static void test_reference(void)
{
    FILE *f = fopen("tests/reference/rng.txt", "r");
    struct rng_torch_cpu g = { 0 };
    char line[256];
    int n_seed = 0, n_call = 0, n_many = 0, n_wrong = 0;

    while (f && fgets(line, sizeof line, f)) {
        struct call c;
        uint64_t seed;
        int at = 0;
        if (sscanf(line, "seed %" SCNu64, &seed) == 1) {
            rng_torch_cpu_seed(&g, seed);
            n_seed++;
            continue;
        }
        if (sscanf(line, "%15s %15s %" SCNd64 " %c%n", c.kind, c.type, &c.n, &c.how, &at) != 4 || c.n > MAX_N) {
            n_wrong++;
            break;
        }
        c.want = line + at;
        n_call++;
        n_many += c.n >= 16;
        if (!call_agrees(&g, &c)) {
            n_wrong++;
            tap_note("seed number %d: %.100s", n_seed, line);
        }
    }
    tap_ok(n_seed > 120 && n_call > 300 && n_many > 100 && !n_wrong, "%d calls of %d generators: %d differ from torch",
           n_call, n_seed, n_wrong);
    if (f)
        fclose(f);
}

/* ---- vectors that can be read ---- */

static bool same_bits(const float *x, const uint32_t *want, int n)
{
    return !memcmp(x, want, 4 * (size_t)n);
}

static void test_vectors(void)
{
    static const uint32_t of_0[] = { 0xbf901b85, 0xbf93808a, 0xbe804bd6, 0xbede255d, 0x3f594515, 0x3f312783, 0xbea1cc6d,
                                     0xc0075fc1, 0x3ea50138, 0xbfa1b4f4, 0x3eb330ff, 0x3e9dc3bb, 0x3df56f77, 0x3f9e6b93,
                                     0x3f8ef28e, 0xbe7d367c };
    static const uint32_t of_42[] = { 0x3ff6a529, 0x3fbe5f53, 0x3f669567, 0xc006c0db, 0x3f2dacd5, 0xbf9e0591,
                                      0xbd306786, 0xbfcd65ba };
    static const uint32_t last_42[] = { 0xbead8415, 0x3f0499e7 };
    float *x = (float *)(void *)buf;
    struct rng_torch_cpu g, twin;
    uint64_t sum = 0;
    int64_t below[3];

    rng_torch_cpu_seed(&g, 0);
    tap_ok(rng_torch_cpu_u32(&g) == 2357136044u, "the first word of seed 0");
    rng_torch_cpu_seed(&g, 5489);
    for (int i = 0; i < 9999; i++)
        (void)rng_torch_cpu_u32(&g);
    tap_ok(rng_torch_cpu_u32(&g) == 4123659995u, "word 10,000 of seed 5489, as the C++ standard gives it");
    rng_torch_cpu_seed(&g, 0);
    rng_torch_cpu_normal(&g, x, F32, 16);
    tap_ok(same_bits(x, of_0, 16), "torch.randn(16), seed 0");
    rng_torch_cpu_seed(&g, 42);
    rng_torch_cpu_normal(&g, x, F32, 2 * 4 * 8 * 8);
    tap_ok(same_bits(x, of_42, 8) && same_bits(x + 510, last_42, 2), "torch.randn(2,4,8,8), seed 42");
    rng_torch_cpu_seed(&g, 9);
    rng_torch_cpu_seed(&twin, 9);
    rng_torch_cpu_uniform(&g, x, 2000);
    for (int i = 0; i < 2000; i++)
        sum += x[i] != (float)(rng_torch_cpu_u32(&twin) & 0xffffff) * 0x1p-24f;
    tap_ok(!sum && rng_torch_cpu_u32(&g) == rng_torch_cpu_u32(&twin), "uniforms are words in order");
    rng_torch_cpu_normal(&g, x, F32, 1);
    rng_torch_cpu_seed(&g, 9);
    tap_ok(!g.has_kept, "a seed forgets the number kept");
    rng_torch_cpu_below(&g, below, 3, 0);
    rng_torch_cpu_seed(&twin, 9);
    tap_ok(below[0] == rng_torch_cpu_u32(&twin), "no bound: whole words");
}

/* ---- CUDA: vectors of five decimals, from an emulation on the host ---- */

static bool near(const float *x, const double *want, int n)
{
    for (int i = 0; i < n; i++)
        if (!(fabs((double)x[i] - want[i]) < 6e-6))
            return false;
    return true;
}

static void test_cuda(void)
{
    static const double of_0[] = { -0.92466, -0.42534, -2.64385, 0.14518,  -0.12087, -0.57973,
                                   -0.62285, -0.32839, -1.07454, -0.36314, -1.67105, 2.26550 };
    static const double next[] = { 0.18083, -0.55226, 0.92381, -0.73497 };
    static const double of_42[] = { 0.19402, 2.16137, -0.17205, 0.84906, -1.92440, 0.65299, -0.64944, -0.81752 };
    static const double odd[] = { -0.12371, -0.29761, -0.39324, -0.82894, 1.41114, -2.46479, 0.22341, -1.37578 };
    struct rng_torch_cuda g, twin;
    float *x = (float *)(void *)buf, y[4];
    bool ok;

    rng_torch_cuda_seed(&g, 0);
    rng_torch_cuda_normal(&g, x, F32, 12);
    tap_ok(near(x, of_0, 12) && g.offset == 4, "seed 0, as published");
    rng_torch_cuda_normal(&g, x, F32, 4);
    tap_ok(near(x, next, 4) && g.offset == 8, "the next call");
    rng_torch_cuda_normal(&g, x, F32, 0);
    tap_ok(g.offset == 8, "a call for nothing moves nothing");
    rng_torch_cuda_seed(&g, 42);
    rng_torch_cuda_normal(&g, x, F32, 32768);
    tap_ok(near(x, of_42, 8) && g.offset == 4, "seed 42, a latent");
    rng_torch_cuda_seed(&g, 1607339132);
    rng_torch_cuda_normal(&g, x, F32, 300);
    memcpy(y, x, sizeof y);
    tap_ok(near(x, odd, 8), "seed 1607339132");
    rng_torch_cuda_seed(&g, 1607339132);
    rng_torch_cuda_normal(&g, x, F32, 5);
    tap_ok(!memcmp(x, y, sizeof y), "up to 221,184 the length does not matter");

    rng_torch_cuda_seed(&g, 7);
    rng_torch_cuda_normal(&g, x, F32, 4 * 221184 + 3);
    tap_ok(g.offset == 8, "four numbers a thread and three more take two rounds");
    rng_torch_cuda_seed(&twin, 7);
    twin.offset = 4;
    rng_torch_cuda_normal(&twin, y, F32, 3);
    tap_ok(!memcmp(x + 4 * 221184, y, 12), "the second round is the next counter of the first threads");
    ok = true;
    for (int i = 0; i < 1000; i++)
        ok = ok && x[i] != x[221184 + i] && x[i] != x[2 * 221184 + i];
    tap_ok(ok, "the second, third and fourth numbers are others");
    rng_torch_cuda_seed(&g, 0);
    rng_torch_cuda_normal(&g, x, F32, 221184 * 2);
    tap_ok(near(x, of_0, 12) && fabs((double)x[221184] - 0.99114) < 6e-6, "second number of thread 0, seed 0");
    rng_torch_cuda_seed(&g, 0);
    rng_torch_cuda_normal(&g, x, F32, 221184 * 3);
    tap_ok(fabs((double)x[2 * 221184] + 0.48207) < 6e-6, "third number of thread 0, seed 0");

    for (enum dtype t = F16; t <= BF16; t++) {
        static float wide[1000];
        static uint16_t want[1000];
        rng_torch_cuda_seed(&g, 3);
        rng_torch_cuda_normal(&g, wide, F32, 1000);
        dtype_from_f32(want, t, wide, 1000);
        rng_torch_cuda_seed(&g, 3);
        rng_torch_cuda_normal(&g, buf, t, 1000);
        tap_ok(!memcmp(buf, want, sizeof want), "%s is f32 rounded", dtype_name(t));
    }
    rng_torch_cuda_seed(&g, 1);
    rng_torch_cuda_seed(&twin, (uint64_t)1 << 32 | 1);
    rng_torch_cuda_normal(&g, x, F32, 4);
    rng_torch_cuda_normal(&twin, y, F32, 4);
    tap_ok(memcmp(x, y, 16), "all 64 bits of the seed count");
    rng_torch_cuda_seed(&g, 1);
    g.offset = (uint64_t)1 << 34;
    rng_torch_cuda_normal(&g, y, F32, 4);
    tap_ok(memcmp(x, y, 16) && g.offset == ((uint64_t)1 << 34) + 4, "the counter goes past 32 bits");
}

static void test_speed(void)
{
    struct rng_torch_cpu g;
    struct timespec a, b;

    rng_torch_cpu_seed(&g, 1);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    rng_torch_cpu_normal(&g, buf, F32, 1000000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    tap_note("a million normals take %.1f ms",
             (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) * 1e-6);
}

int main(void)
{
    buf = malloc(8 * ((size_t)MAX_N + MARGIN));
    if (!buf)
        return 1;
    test_reference();
    test_vectors();
    test_cuda();
    test_speed();
    free(buf);
    return tap_done();
}
