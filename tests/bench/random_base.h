/* tests/bench/random_base.h: weights of SD1.5's sizes without a file: every tensor is a piece of one block of random
 * numbers. What a model computes with them is finite and means nothing; it costs what the real one does.
 *
 *     struct random_base b;
 *     if (random_base_open(&b)) ...                                    says b.e.text
 *     layers_init(&l, dev, BF16, &mem, &b.unet); unet_new(..); n = unet_places(unet, place);
 *     random_base_adapters(&b, place, n);                              a checkpoint of rank 64, once
 *     random_base_close(&b);                                                                                       */
#ifndef UNICON_TESTS_BENCH_RANDOM_BASE_H
#define UNICON_TESTS_BENCH_RANDOM_BASE_H

#include "core/joint.h"

enum { RANDOM_BASE_RANK = 64 };

struct random_base {
    float *value;
    struct weights unet, vae, text;
    struct weights xy, yx, y, fuse, conv;       /* fuse: depth's kind of projection, conv: identity's */
    struct err e;
};

/* Reads tests/reference/base_keys.txt. */
int random_base_open(struct random_base *b);
int random_base_adapters(struct random_base *b, const struct joint_place *place, int n);
void random_base_close(struct random_base *b);

#endif
