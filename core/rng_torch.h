/* core/rng_torch.h: PyTorch's own generators, so that a seed from a diffusers run gives the same noise here. The CPU
 * generator is a sequence: what a call gives depends on the calls before it. torch 2.1.2 on x86-64 with AVX2 is
 * reproduced bit for bit; the CUDA generator to the last bits of sin, cos and log.
 *
 *     struct rng_torch_cpu g;
 *     rng_torch_cpu_seed(&g, 42);
 *     rng_torch_cpu_normal(&g, latents, F32, 4 * 64 * 64);            torch.randn((1,4,64,64), generator=g)  */
#ifndef UNICON_CORE_RNG_TORCH_H
#define UNICON_CORE_RNG_TORCH_H

#include <stdbool.h>
#include <stdint.h>
#include "kernels/kern.h"

/* MT19937, Matsumoto & Nishimura 1998. */
struct rng_torch_cpu {
    uint32_t state[624];
    int next;                   /* word of `state` to temper next; 624: all are used */
    bool has_kept;              /* draws below 16 numbers make two at a time and keep the second */
    double kept;
};

void rng_torch_cpu_seed(struct rng_torch_cpu *g, uint64_t seed);
uint32_t rng_torch_cpu_u32(struct rng_torch_cpu *g);

/* torch.randn of n contiguous numbers of `type`. */
void rng_torch_cpu_normal(struct rng_torch_cpu *g, void *dst, enum dtype type, int64_t n);
/* torch.rand, f32; torch.randint(0, below), below < 2^32. */
void rng_torch_cpu_uniform(struct rng_torch_cpu *g, float *dst, int64_t n);
void rng_torch_cpu_below(struct rng_torch_cpu *g, int64_t *dst, int64_t n, uint32_t below);

/* Philox4x32-10 as torch's CUDA kernels use it. Calls of more than 221,184 numbers depend on the GPU in torch; here
 * they are those of one with 108 processors of 2048 threads (A100). */
struct rng_torch_cuda {
    uint64_t seed, offset;
};

void rng_torch_cuda_seed(struct rng_torch_cuda *g, uint64_t seed);
void rng_torch_cuda_normal(struct rng_torch_cuda *g, void *dst, enum dtype type, int64_t n);

#endif
