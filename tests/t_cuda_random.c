/* tests/t_cuda_random.c: words, uniform numbers and normals on the device: the CPU's bits, not just near them. */
#include "tests/cuda_kit.h"

#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

static const struct krng streams[] = {
    { { 0, 0 }, { 0, 0, 0 } },
    { { 0x243f6a88u, 0x85a308d3u }, { 0x13198a2eu, 0x03707344u, 0xffffffffu } },
    { { 0xffffffffu, 0xffffffffu }, { 0xffffffffu, 0xffffffffu, 0xffffffffu } }
};
static const uint64_t ends = (uint64_t)1 << 34;         /* of every draw */

struct draw {
    int64_t n;
    uint64_t first;
};

/* Around blocks of four, groups of the CPU's, and where the counter ends. */
static const struct draw draws[] = {
    { 1, 0 }, { 3, 0 }, { 4, 0 }, { 5, 3 }, { 1, 2 }, { 2, 7 }, { 64, 1 }, { 1023, 4 }, { 4099, 6 },
    { 8192, 0x123456780u }, { 7, ((uint64_t)1 << 34) - 7 }, { 16, ((uint64_t)1 << 34) - 16 }
};

static void check(const char *what, enum dtype t, const struct draw *d, int s, struct mirror *y, bool ok)
{
    tap_ok(mirror_near(y, 0, "%s", what) && ok, "%s %s: %lld from %lld of stream %d", what, dtype_name(t),
           (long long)d->n, (long long)d->first, s);
    cuda_kit_release();
}

/* Words are compared as they are, since some are NaN to a float; then zeros take their place between the guards. */
static void bits(const struct draw *d, int s)
{
    struct mirror y = mirror_new(F32, d->n);
    uint32_t *want = malloc((size_t)d->n * sizeof *want), *got = malloc((size_t)d->n * sizeof *got);
    bool ok = want && got && kit_cpu->random_bits(kit_cpu_ctx(), want, d->n, &streams[s], d->first) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->random_bits(kit_cuda_ctx(), y.dev, d->n, &streams[s], d->first) == K_OK);
    ok = ok && !dev_cuda_get(kit_queue, got, y.dev, (size_t)d->n * sizeof *got)
      && !memcmp(got, want, (size_t)d->n * sizeof *got) && !memcmp(got, y.first, (size_t)d->n * sizeof *got);
    memset(y.f, 0, (size_t)d->n * sizeof *y.f);
    ok = ok && !dev_cuda_put(kit_queue, y.dev, y.f, (size_t)d->n * sizeof *y.f);
    y.first = NULL;
    check("bits", F32, d, s, &y, ok);
    free(want);
    free(got);
}

static void uniform(const struct draw *d, int s)
{
    struct mirror y = mirror_new(F32, d->n);
    bool ok = kit_cpu->random_uniform(kit_cpu_ctx(), y.f, d->n, &streams[s], d->first) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->random_uniform(kit_cuda_ctx(), y.dev, d->n, &streams[s], d->first) == K_OK);
    check("uniform", F32, d, s, &y, ok);
}

/* The CPU's f32, rounded once. */
static void normal(enum dtype t, const struct draw *d, int s)
{
    struct mirror f = mirror_new(F32, d->n), y;
    bool ok = kit_cpu->random_normal(kit_cpu_ctx(), f.f, F32, d->n, &streams[s], d->first) == K_OK;

    y = mirror_of(t, d->n, f.f);
    CUDA_TWICE(&y, ok &= kit_cuda->random_normal(kit_cuda_ctx(), y.dev, t, d->n, &streams[s], d->first) == K_OK);
    check("normal", t, d, s, &y, ok);
}

/* Salmon et al.'s own test vector: all ones gives 408f276d 41c83b0e a20bc7c6 6d5451fd. */
static void known_answer(void)
{
    static const uint32_t want[4] = { 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu };
    uint32_t got[4] = { 0 }, *y = mirror_space(sizeof got);
    const bool ok = kit_cuda->random_bits(kit_cuda_ctx(), y, 4, &streams[2], ends - 4) == K_OK
                 && !dev_cuda_get(kit_queue, got, y, sizeof got);

    tap_ok(ok && !memcmp(got, want, sizeof got), "Philox4x32-10 of ones");
    cuda_kit_release();
}

static void wrong_arguments(void)
{
    struct kctx *k = kit_cuda_ctx();
    void *y = mirror_space(64);
    const struct krng *r = &streams[0];

    tap_ok(kit_cuda->random_bits(k, y, -1, r, 0) == K_ARG && kit_cuda->random_bits(k, y, 2, r, ends - 1) == K_ARG
           && kit_cuda->random_uniform(k, y, 1, r, ends + 1) == K_ARG
           && kit_cuda->random_uniform(k, y, 1, r, ~(uint64_t)0) == K_ARG
           && kit_cuda->random_normal(k, y, N_DTYPE, 1, r, 0) == K_ARG
           && kit_cuda->random_normal(k, y, F16, -1, r, 0) == K_ARG, "what is beyond the counter is refused");
    tap_ok(!kit_cuda->random_bits(k, NULL, 0, r, ends) && !kit_cuda->random_uniform(k, NULL, 0, r, 3)
           && !kit_cuda->random_normal(k, NULL, BF16, 0, r, 0), "no numbers, nothing to do");
    cuda_kit_release();
}

int main(void)
{
    static const struct draw large = { 1500001, 5 };

    if (!cuda_kit_begin())
        return 0;
    known_answer();
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        for (int s = 0; s < (int)LEN(streams); s++)
            for (size_t i = 0; i < LEN(draws); i++) {
                bits(&draws[i], s);
                uniform(&draws[i], s);
                for (int t = 0; t < N_DTYPE; t++)
                    normal((enum dtype)t, &draws[i], s);
            }
    }
    normal(F32, &large, 1);
    wrong_arguments();
    return cuda_kit_end();
}
