/* tests/model_kit.h: the three models on tiny weights, on any device, against what diffusers and transformers compute
 * in float64 (tests/reference/models.py). Relative errors are ||got - want|| / ||want||: of f32 at most 2e-5, a few
 * times what diffusers' own float32 is off by here (1e-6 to 4e-6); of 16 bits in proportion to what diffusers'
 * bfloat16 is.
 *
 *     model_kit_open();
 *     model_test_unet("cpu", F32, "sd1");                 two shapes, a test each
 *     model_kit_close();                                                                                          */
#ifndef UNICON_TESTS_MODEL_KIT_H
#define UNICON_TESTS_MODEL_KIT_H

#include "tests/golden.h"
#include "tests/tiny.h"

struct model_run {
    struct device dev;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct tiny *tiny;
    struct layers l;
    struct err e;
};

extern const double model_forward_f32;

void model_kit_open(void);
void model_kit_close(void);

void model_test_unet(const char *device, enum dtype type, const char *model);
void model_test_vae(const char *device, enum dtype type, const char *model);
void model_test_text(const char *device, enum dtype type, const char *model);

/* The pieces. Whatever fails ends the program and says why. */
void model_begin(struct model_run *r, const char *device, enum dtype type, const char *model, const char *part,
                 bool keep);
void model_end(struct model_run *r);
void model_die(const struct err *e);
const struct golden_tensor *model_golden(const char *name);                     /* NULL if there is none */
const struct golden_tensor *model_want(const char *model, const char *name);   /* MODEL_NAME */
struct tensor *model_input(struct model_run *r, const struct golden_tensor *g, enum dtype type);
double model_off(struct model_run *r, const struct tensor *got, const struct golden_tensor *g);
void model_near(struct model_run *r, const struct tensor *got, const char *model, const char *name, double most);
struct tensor *model_denoise(struct model_run *r, struct unet *u, const char *model, const char *name,
                             struct tensor **x);

#endif
