/* core/diffusion/pipeline_batch.h: some images of a run on their way from noise to latents: what pipeline_denoise.c,
 * pipeline_eps.c and what else works on a batch share.
 *
 * Latents: input k of image i is row k n + i, so the rows of an input lie together. */
#ifndef UNICON_CORE_DIFFUSION_PIPELINE_BATCH_H
#define UNICON_CORE_DIFFUSION_PIPELINE_BATCH_H

#include "core/diffusion/pipeline_run.h"

struct batch {
    struct run *r;
    struct tape *t;
    int64_t n, first;               /* images; which is the first */
    int K;                          /* inputs */
    struct noise *noise;            /* (n), host */
    struct tensor *z;               /* (K n,h,w,C) f32: the latents that walk */
    struct tensor *x0, *start;      /* the pictures' latents; the initial noise; like z */
    struct tensor *fresh;           /* a step's noise of one input, (n,h,w,C) */
    struct tensor *mask[PAIR_MAX_INPUT];        /* (h,w) f32, or NULL */
    struct sampler_state state[PAIR_MAX_INPUT];
    struct guide *guide;            /* what gradient guidance needs, or NULL: pipeline_guide.c */
};

static inline const struct kern *batch_kern(const struct batch *b) { return b->r->dev->kern; }
static inline struct kctx *batch_ctx(const struct batch *b) { return &b->r->dev->ctx; }
static inline int64_t batch_each(const struct batch *b) { return b->r->h * b->r->w * b->r->C; }

/* Numbers of input k in x, which is like z. */
static inline float *batch_at(const struct batch *b, struct tensor *x, int64_t k)
{
    return (float *)x->data + k * b->n * batch_each(b);
}

/* (rows,h,w,C) f32 on the tape */
static inline struct tensor *batch_latents(struct batch *b, int64_t rows, struct err *e)
{
    return tape_new(b->t, F32, 4, (int64_t[]){ rows, b->r->h, b->r->w, b->r->C }, e);
}

/* The rows of input k in x, which is like z. */
static inline struct tensor *batch_input(struct batch *b, struct tensor *x, int k, struct err *e)
{
    return op_rows(b->t, x, k * b->n, b->n, e);
}

/* What the model says of the latents z at a row of the schedule, both guidances done: eps[k] (n,h,w,C) f32 for every
 * input with want[k], NULL for others. Inputs that nobody asks for and that none of those attends to are not computed.
 * While the tape records, gradients flow to z. In pipeline_eps.c. */
int batch_eps(struct batch *b, const struct pair_row *row, struct tensor *z, const bool *want, struct tensor **eps,
              struct err *e);

/* What the ControlNets say of x's rows [first, first + halves n) of the UNet's input, those of the prompts from
 * first_half on; *out is for unet_call. In pipeline_control.c. */
int pipeline_control_add(struct batch *b, struct tensor *in, struct tensor *time, int64_t first, int first_half,
                         int halves, struct unet_added *out, struct err *e);

/* Gradient guidance, in pipeline_guide.c. guide_begin: after the masks; makes room if any row is guided. guide_row:
 * z, before row i takes its step; nothing in rows that are not guided. */
int guide_begin(struct batch *b, struct err *e);
int guide_row(struct batch *b, int i, struct err *e);

#endif
