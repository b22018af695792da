/* core/diffusion/noise.h: where an image's random numbers come from: named Philox streams (the default; any order of
 * drawing gives the same), or one of PyTorch's sequences, drawn in the order of the reference pipelines.
 *
 *     struct noise n;
 *     noise_init(&n, NOISE_TORCH_CPU, F32, 42);
 *     if (noise_draw(&n, dev, RNG_NOISE, 0, 0, x, work, e)) ...                                                */
#ifndef UNICON_CORE_DIFFUSION_NOISE_H
#define UNICON_CORE_DIFFUSION_NOISE_H

#include "core/rng.h"
#include "core/rng_torch.h"
#include "core/tape.h"

enum noise_kind { NOISE_PHILOX, NOISE_TORCH_CPU, NOISE_TORCH_CUDA };

struct noise {
    enum noise_kind kind;
    enum dtype type;            /* what torch is asked for: its f16 and bf16 numbers are others than its f32 ones */
    uint64_t seed;
    union {
        struct rng_torch_cpu cpu;
        struct rng_torch_cuda cuda;
    } torch;
};

void noise_init(struct noise *n, enum noise_kind kind, enum dtype type, uint64_t seed);

/* Standard normals for x (R,H,W,C) f32, dense. Philox: rows are the streams (seed, purpose, step, row), (.., row +
 * 1), ..
 * in x's own order. torch: the sequence's next (R,C,H,W), turned. work: host arena, marked and released. */
int noise_draw(struct noise *n, struct device *dev, enum rng_purpose purpose, uint32_t step, uint64_t row,
               struct tensor *x, struct arena *work, struct err *e);

#endif
