/* core/diffusion/pipeline.h: text and noise to latents to pixels: the page to read for sampling.
 *
 *     struct pipeline_request q = { .n_input = 1, .input[0].prompt = ids, .steps = 50, .cfg = 7.5, ... };
 *     if (pipeline_run(&dev, BF16, &base, &q, &sink, &cost, e)) ...       sink.image is called for every image
 *
 * It works in stages, and each gives back its memory before the next begins: text encoder, VAE encoder (if there is a
 * picture), UNet, VAE decoder. Only where there are several batches UNet and decoder stay side by side, so that images
 * come as they are ready. On the null device the same code tells what a run costs. */
#ifndef UNICON_CORE_DIFFUSION_PIPELINE_H
#define UNICON_CORE_DIFFUSION_PIPELINE_H

#include "core/diffusion/noise.h"
#include "core/diffusion/pair.h"
#include "core/diffusion/sampler.h"
#include "core/joint.h"
#include "core/model/clip_text.h"
#include "core/model/controlnet.h"
#include "core/model/unet.h"
#include "core/model/vae.h"
#include "core/progress.h"

enum { PIPELINE_TOKENS = 77 };

/* A base model; all borrowed. */
struct pipeline_base {
    const struct unet_config *unet;
    const struct vae_config *vae;
    const struct clip_text_config *text;
    const struct schedule_config *schedule;
    const struct weights *unet_weights, *vae_weights, *text_weights;
    const struct lora_set *lora;            /* NULL: none */
};

/* x, y, ..: what one input of a run is made of. A base alone has one. */
struct pipeline_input {
    const int32_t *prompt, *negative;       /* PIPELINE_TOKENS ids each */
    const float *picture;                   /* (height,width,3) in [-1,1], or NULL */
    const float *mask;                      /* (height/8,width/8): 1 generated, 0 kept; or NULL */
    bool mode;                              /* the mean of the picture's latents, not a draw */
    bool unread;                            /* nobody asks for its pixels: it is not decoded */
    const float *noise;                     /* (noise_rows,h,w,C), initial noise in place of drawn; or NULL */
    int64_t noise_rows;                     /* 1: the same for all; else count */
};

/* Inputs x and y of a checkpoint (paper Eq. 8). */
struct pipeline_pair {
    int x, y;
    float wx, wy;
    const struct joint_weights *checkpoint;
};

/* Condition guidance (paper, appendix C): eps += scale (eps - eps with these weights of the pairs), of the prompt that
 * is meant alone. All weights 0: the inputs by themselves; one pair's 0: away from what comes without that
 * condition. */
enum { PIPELINE_MAX_CONTRAST = 8 };
struct pipeline_contrast {
    float scale, wx[JOINT_MAX_PAIR], wy[JOINT_MAX_PAIR];
};

/* A ControlNet and the picture that x follows; all borrowed. */
enum { PIPELINE_MAX_CONTROL = 4 };
struct pipeline_control {
    const struct controlnet_config *config;
    const struct weights *weights;
    const float *picture;                   /* (height,width,3) in [0,1] */
    float weight;
};

/* Gradient guidance (paper, Eq. 7): before a row's step the latents z of all inputs that are not held move against the
 * gradient of sum over k with on[k] of || (1 - mask_k) (x0_k(z) - picture_k) ||^2, x0_k being what the model makes of z
 * with both guidances; no mask: the whole picture. The step is taken in latents of unit variance, z times
 * sampler_input_scale, so that lr means the same for all samplers. */
enum guide_opt { GUIDE_ADAMW, GUIDE_SGD, GUIDE_FIXED, N_GUIDE_OPT };
struct pipeline_guidance {
    bool on[PAIR_MAX_INPUT];                /* none: no guidance */
    enum guide_opt opt;                     /* sgd: momentum 0.9; fixed: lr is the weight of the gradient */
    double lr, decay;                       /* decay: AdamW's, of weights */
    int steps;                              /* of the optimizer in a row; what it remembers ends with the row */
    double from, to;                        /* of S rows those with from S <= i < to S */
};

struct pipeline_request {
    struct pipeline_input input[PAIR_MAX_INPUT];
    int n_input;
    struct pipeline_pair pair[JOINT_MAX_PAIR];
    int n_pair;
    const struct pair_plan *plan;           /* NULL: one input, from x_noise to the end */
    double x_noise;                         /* 1: from pure noise; 0: x as it is; see pipeline_start */
    double joint_scale;                     /* 1 is neutral */
    struct pipeline_contrast contrast[PIPELINE_MAX_CONTRAST];
    int n_contrast;
    struct pipeline_control control[PIPELINE_MAX_CONTROL];
    int n_control;
    double control_from, control_to;        /* fractions of x's steps in which they act: 0 and 1 for all */
    struct pipeline_guidance guidance;      /* in rows marked `guide`; in all rows if the plan marks none */
    bool same_pictures;                     /* as in the request before, if there was one: pictures, not masks */
    bool official;                          /* random numbers and masks as the published code has them */
    int clip_skip;
    int64_t width, height;                  /* pixels, multiples of 8 */
    enum sampler_kind sampler;
    int steps;
    double eta, cfg;                        /* cfg <= 1: the prompt alone, without the negative one */
    int64_t count, batch;                   /* images in all, and at once */
    uint64_t seed;                          /* image i has seed + i */
    enum noise_kind rng;
    enum dtype rng_type;
};

struct pipeline_sink {
    /* Input k of image `index`, in order: rgb (height,width,3) f32 about [-1,1], latents (h,w,C). rgb is NULL for
     * inputs that are unread. Not called on the null device. */
    int (*image)(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e);
    void *ctx;
    struct progress progress;
};

enum pipeline_stage { STAGE_TEXT, STAGE_ENCODE, STAGE_DENOISE, STAGE_DECODE, N_STAGE };

struct pipeline_cost {
    struct {
        int64_t flops, calls;               /* of the whole run; counted on the null device only */
        size_t bytes;                       /* all memory in use at the stage's peak */
        bool used;
    } stage[N_STAGE];
    size_t peak_bytes;
};

const char *pipeline_stage_name(enum pipeline_stage s);

/* The step at which an input of noise A begins: int((1 - A)(N - 1)); N, which is no step, for A = 0. */
int pipeline_start(double A, int N);

/* Is row i of the plan one in which this guidance acts? */
bool pipeline_guides(const struct pipeline_guidance *g, const struct pair_plan *p, int i);

/* Requests one after another over one base: the UNet, the checkpoints and the decoder stay from one to the next, and
 * prompts and pictures that are those of the request before are not encoded again.
 *
 *     struct pipeline *p;
 *     if (pipeline_open(&p, &dev, BF16, &base, e)) ...
 *     for (i = 0; i < n; i++)  if (pipeline_next(p, &request[i], i + 1 < n, &sink, &cost, e)) ...
 *     pipeline_close(p);
 *
 * more: another one follows; without it models go as soon as they have served. Tables of weights are borrowed until
 * pipeline_close and known by their addresses. After a failure there is nothing to do but to close. */
struct pipeline;
int pipeline_open(struct pipeline **out, struct device *dev, enum dtype type, const struct pipeline_base *base,
                  struct err *e);
int pipeline_next(struct pipeline *p, const struct pipeline_request *q, bool more, const struct pipeline_sink *sink,
                  struct pipeline_cost *cost, struct err *e);
void pipeline_close(struct pipeline *p);        /* takes NULL */

/* One request by itself. type: storage of the UNet and the VAE. E_CANCEL if the progress said so. cost may be NULL. */
int pipeline_run(struct device *dev, enum dtype type, const struct pipeline_base *base,
                 const struct pipeline_request *q, const struct pipeline_sink *sink, struct pipeline_cost *cost,
                 struct err *e);

#endif
