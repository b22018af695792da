/* tests/pair_kit.h: runs of pairs as tests/reference/unicon.py and unicon_more.py describe them: the base sd1 or sd1b,
 * the checkpoints `depth` (with its y-LoRA) and `id` (without), their pictures at 48 x 64 pixels, ten steps, torch's
 * random numbers with seed 4321.
 *
 *     struct pair_kit *kit = pair_kit_open("sd1");
 *     struct pair_run r = { .schedule = "[(0,1),(1,1),0]", .sampler = "ddim", .cfg = 3, .official = true, .n_input = 2,
 *                           .n_pair = 1, .pair = { { 0, 1, 1, 1, &kit->checkpoint[PAIR_DEPTH] } } };
 *     if (!pair_kit_run(kit, &r, &latents, &e)) worst = pair_kit_off(&latents, golden, "to_x_ddim", 2);
 *     pair_kit_close(kit);                                                                                     */
#ifndef UNICON_TESTS_PAIR_KIT_H
#define UNICON_TESTS_PAIR_KIT_H

#include "core/diffusion/pipeline.h"
#include "store/base_model.h"
#include "tests/adapters.h"
#include "tests/golden.h"

enum { PAIR_W = 48, PAIR_H = 64, PAIR_INPUTS = 3, PAIR_LATENTS = 4 * 8 * 6 };
enum { PAIR_DEPTH, PAIR_ID, PAIR_CHECKPOINTS };

struct pair_kit {
    char path[64];                              /* the base, on disk */
    struct base_model *base;
    struct adapters *adapters[PAIR_CHECKPOINTS];
    struct joint_weights checkpoint[PAIR_CHECKPOINTS];
    float *picture[PAIR_INPUTS], *mask;
};

struct pair_run {
    const char *schedule, *sampler;
    double cfg;
    bool official, bf16;
    int n_input, n_pair, n_contrast;
    struct pipeline_pair pair[2];
    struct pipeline_contrast contrast[2];
    const struct lora_set *lora;
    bool masked[PAIR_INPUTS];                   /* with the kit's mask */
    const char *device;                         /* NULL: cpu */
    struct pipeline *through;                   /* NULL: one of its own; else on that one's device */
    bool same_pictures, more;                   /* for the pipeline that it goes through */
};

struct pair_latents {
    float z[PAIR_INPUTS][PAIR_LATENTS];         /* (C,h,w) */
    int n;
};

struct pair_kit *pair_kit_open(const char *base);       /* says why and exits if not */
void pair_kit_close(struct pair_kit *k);

/* y of `depth` has the prompt with its trigger word. */
int pair_kit_run(const struct pair_kit *k, const struct pair_run *r, struct pair_latents *out, struct err *e);
int pair_kit_cost(const struct pair_kit *k, const struct pair_run *r, struct pair_latents *out,
                  struct pipeline_cost *cost, struct err *e);
struct pipeline_base pair_kit_base(const struct pair_kit *k, const struct lora_set *lora);

/* How far the worst input is from the goldens NAME.x, NAME.y, ..; infinity if one is not there. */
double pair_kit_off(const struct pair_latents *got, const struct golden *g, const char *name, int n_input);
double pair_kit_distance(const float *got, const float *want);

#endif
