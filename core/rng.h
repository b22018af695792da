/* core/rng.h: random numbers by name, never "the next one of a global generator". A stream is named by (seed,
 * purpose, step, row); element i of it is always the same number, on every device, in any order of drawing.
 * Philox4x32-10, Salmon et al. 2011.
 *
 *     struct krng r = rng_stream(seed, RNG_NOISE, step, row);
 *     kern->random_normal(ctx, x->data, x->type, n, &r, 0);  */
#ifndef UNICON_CORE_RNG_H
#define UNICON_CORE_RNG_H

#include <stdint.h>
#include "kernels/kern.h"

/* Never renumber: the numbers are part of what a seed means. */
enum rng_purpose {
    RNG_INIT = 1,       /* initial weights */
    RNG_NOISE = 2,      /* initial latents, training noise */
    RNG_STEP = 3,       /* noise inside a sampler's step */
    RNG_LATENT = 4,     /* VAE posterior */
    RNG_TIME = 5,       /* training time steps */
    RNG_DROP = 6,       /* prompt and joint dropout */
    RNG_AUGMENT = 7,    /* flips and crops */
    RNG_SHUFFLE = 8,    /* data order */
    RNG_TEST = 99
};

/* key = seed; counter words 1..3 = row (low 32 bits), step, purpose + the row's high bits above bit 8. Purposes stay
 * below 256 and rows below 2^55. Counter word 0 is the element's number / 4: elements stay below 2^34. */
struct krng rng_stream(uint64_t seed, enum rng_purpose purpose, uint32_t step, uint64_t row);

/* Scalars on the host, element `i` of the stream. */
uint32_t rng_u32(const struct krng *r, uint64_t i);
double rng_uniform(const struct krng *r, uint64_t i);           /* [0,1), 24 bits, as kern->random_uniform */
uint64_t rng_below(const struct krng *r, uint64_t i, uint64_t n);       /* unbiased enough: 64-bit multiply-shift */

#endif
