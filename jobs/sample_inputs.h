/* jobs/sample_inputs.h: what a sample job is made from, opened and checked: model, adapters, prompts, pictures, noise.
 *
 *     struct sample_inputs in;
 *     if (sample_inputs_open(&in, spec, warn, e)) ...
 *     pipeline_run(.., &in.pipe, &in.request, ..);
 *     sample_inputs_close(&in);                                                                               */
#ifndef UNICON_JOBS_SAMPLE_INPUTS_H
#define UNICON_JOBS_SAMPLE_INPUTS_H

#include "core/diffusion/pipeline.h"
#include "core/image.h"
#include "jobs/job_sample.h"
#include "store/base_model.h"
#include "store/controlnet_file.h"
#include "store/lora_file.h"
#include "store/unicon_file.h"

struct sample_control {
    struct controlnet_file *file;
    char name[UNICON_MAX_NAME];
    double weight;
    float *picture;                     /* malloc'ed */
};

struct sample_inputs {
    struct base_model *base;
    struct lora_file *file[LORA_MAX_USE];
    struct lora_set lora;
    struct pipeline_base pipe;          /* of base and lora */
    struct pipeline_request request;    /* batch and what lies below included */
    struct unicon_file *unicon[JOINT_MAX_PAIR];
    int n_unicon;
    char name[PAIR_MAX_INPUT][8];       /* "x", "y", "y2", .. */
    char unicon_name[PAIR_MAX_INPUT][UNICON_MAX_NAME];
    const char *partner[PAIR_MAX_INPUT];    /* of y, y2, ..: the checkpoint's name, as the user says it */
    struct sample_control control[PIPELINE_MAX_CONTROL];
    int n_control;
    struct pair_plan plan;
    bool held[PAIR_MAX_INPUT];          /* is given and stays as it is: nothing to show */
    int32_t prompt[PAIR_MAX_INPUT][PIPELINE_TOKENS], negative[PIPELINE_TOKENS];
    int64_t picture_size[PAIR_MAX_INPUT][2];    /* of their files, (h,w) */
    float *picture[PAIR_MAX_INPUT], *mask[PAIR_MAX_INPUT], *noise[PAIR_MAX_INPUT];     /* malloc'ed or NULL */
};

/* *in is zeroed first and may be closed whether or not this succeeds. */
int sample_inputs_open(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e);
/* The values of another spec that names the same files and sizes: what was read of weights and pictures stays. */
int sample_inputs_again(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e);
void sample_inputs_close(struct sample_inputs *in);

/* "PATH:W" of option `key`: a number after the last colon is the weight, 1 without one. */
int sample_split_weight(const char *key, const char *text, char *path, size_t size, double *weight, struct err *e);
/* A picture that option `key` names: RGB, turned, covering the size of the request. The caller frees it. size, unless
 * NULL: (h,w) of the file. */
int sample_load_picture(struct image *out, int64_t size[2], const struct sample_inputs *in, const struct spec *spec,
                        const char *key, const char *path, enum filter f, struct err *e);

/* "A,B", both within float; false if it is something else. In sample_pairs.c, as all below. */
bool sample_two_numbers(const char *text, double *a, double *b);
/* What follows "NAME=" in "NAME=PATH", a name having no '/' in it; *n is its length, 0 where there is none. */
const char *sample_path_of(const char *text, int *n);
/* Conditions: 1 to n_unicon are those of checkpoints, ControlNets come after them. The name of one; whose name the n
 * bytes are, 0 if nobody's. */
const char *sample_name_of(const struct sample_inputs *in, int k);
int sample_whose(const struct sample_inputs *in, const char *text, size_t n);
/* The value that option `key` has for condition k: the text after "NAME=" where NAME is the condition's, or all of it
 * where there is one that it can be about: of --y all, of other options those of checkpoints. *value is NULL if there
 * is none. */
int sample_value_of(const char **value, const struct sample_inputs *in, const struct spec *spec, const char *key, int k,
                    struct err *e);
int sample_open_checkpoints(struct sample_inputs *in, const struct spec *spec, struct err *e);
/* Pairs, weights and the schedule; pictures are there already. */
int sample_make_pairs(struct sample_inputs *in, const struct spec *spec, struct err *e);
/* Gradient guidance, after those; in sample_guide.c. */
int sample_make_guidance(struct sample_inputs *in, const struct spec *spec, struct err *e);

/* ControlNets, in sample_control.c: the files; when all else is there, their pictures and when they act. */
int sample_open_controls(struct sample_inputs *in, const struct spec *spec, struct err *e);
int sample_make_controls(struct sample_inputs *in, const struct spec *spec, struct err *e);
void sample_close_controls(struct sample_inputs *in);

/* In sample_check.c, what is easily got wrong. Checkpoint of input k: E_FORMAT if it was made for a base of other
 * widths. Names before '=': E_ARG for one that no checkpoint has. A mask of h x w pixels for the picture of input k:
 * E_ARG unless both have one shape, to a latent, or the mask is as large as what is drawn. */
int sample_check_fit(const struct sample_inputs *in, int k, struct err *e);
int sample_check_names(const struct sample_inputs *in, const struct spec *spec, struct err *e);
int sample_check_mask(const struct sample_inputs *in, const char *key, const char *path, int k, int64_t h, int64_t w,
                      struct err *e);

#endif
