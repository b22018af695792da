/* core/diffusion/pipeline_run.h: what the files of the pipeline share: one run while it is under way. */
#ifndef UNICON_CORE_DIFFUSION_PIPELINE_RUN_H
#define UNICON_CORE_DIFFUSION_PIPELINE_RUN_H

#include "core/diffusion/pipeline.h"

/* A model with its memory and tape, for as long as it is needed. */
struct stage {
    struct model_memory mem;
    struct tape_memory tape;
    struct tape t;
    struct tape_memory noted;       /* what the second tape records for gradients; none until it is needed */
    struct tape recorder;
    struct layers l;
    bool open;
};

/* A ControlNet in the UNet's stage. */
struct run_control {
    const struct weights *of;
    struct controlnet *net;
    struct unet_text text;          /* of x's prompts */
    struct tensor *hint;            /* (1,h,w,C) */
};

struct run {
    struct device *dev;
    enum dtype type;
    const struct pipeline_base *base;
    const struct pipeline_request *q;
    const struct pipeline_sink *sink;
    bool guided;                    /* classifier-free guidance: two rows per image */
    int64_t h, w, C;                /* of the latents */
    struct schedule schedule;
    struct sampler sampler;
    struct stage stage[N_STAGE];
    struct arena keep, keep_meta;   /* what goes from stage to stage */
    struct pair_plan own;           /* where the request brings none */
    const struct pair_plan *plan;
    bool *guides, any_guided;       /* by row: gradient guidance acts in it */
    struct tensor *words;           /* input by input: the negative prompt's rows, the prompt's */
    struct tensor *moments[PAIR_MAX_INPUT];
    struct joint *joint[JOINT_MAX_PAIR];    /* of the pairs */
    int32_t id[2 * PAIR_MAX_INPUT * PIPELINE_TOKENS];       /* what `words` are of */
    int n_id, clip_skip;
    struct {
        const struct joint_weights *of;
        struct joint *joint;
    } known[JOINT_MAX_PAIR];        /* checkpoints that are open */
    int n_known;
    bool more;                      /* the models are needed again */
    int64_t n_done, n_total;        /* steps of all batches */
    struct unet *unet;
    struct unet_text text;          /* of the prompts in `words` */
    struct run_control control[PIPELINE_MAX_CONTROL];
    struct vae *decoder;
    struct kcount counted;
    struct pipeline_cost cost;
};

struct pipeline {
    struct run r;
};

/* Images [first, first + n): latents (n,h,w,C) f32, scaled, in r->keep. NULL with e set. */
struct tensor *pipeline_denoise(struct run *r, int64_t first, int64_t n, struct err *e);

/* ControlNets, in pipeline_control.c: open those of the request beside the UNet; do they act at this row? */
int pipeline_control_open(struct run *r, struct err *e);
bool pipeline_control_acts(const struct run *r, const struct pair_row *row);

#endif
