/* core/model/transformer.h: the transformer of a UNet's stage, for one branch or for pairs: between unet.c, which binds
 * and walks, and transformer.c, which computes. */
#ifndef UNICON_CORE_MODEL_TRANSFORMER_H
#define UNICON_CORE_MODEL_TRANSFORMER_H

#include "core/model/unet.h"
#include "core/op/op.h"

struct attention {
    struct weight to_q, to_k, to_v, to_out;         /* (C,C); to_k and to_v of text (C,cross) */
};

struct transformer {                                /* T(C) with one block */
    struct norm norm, norm1, norm2, norm3;
    struct weight proj_in, proj_out, ff_proj, ff_out;
    struct attention attn1, attn2;
    int64_t heads, groups;
    int block;                                      /* its place in the forward pass, in unet_text and in a joint */
    bool last;                                      /* behind it nothing mixes rows: those unread may be left out */
};

/* x (B,H,W,C) -> y = x + proj_out(block(proj_in(norm x))). run NULL: every row for itself. */
struct tensor *transformer_forward(struct tape *t, struct transformer *a, struct tensor *x, struct tensor *y,
                                   const struct unet_text *text, const struct joint_run *run, struct err *e);

/* Keys and values of text (P,T,cross), of every input with its own adapters: (P,T,C). */
int transformer_text(struct tape *t, struct transformer *a, struct tensor *text, const struct joint_run *run,
                     struct tensor **k, struct tensor **v, struct err *e);

/* Between transformer.c and transformer_pair.c. Products of the normed tokens of all rows with the base's weights,
 * which self-attention and the joint attention of every pair share; all NULL: each does its own. */
struct shared {
    struct tensor *q, *k, *v;                       /* (B,T,C) */
};

static inline int transformer_inputs(const struct joint_run *r) { return r ? r->n_input : 1; }

/* The rows of input k. */
static inline struct tensor *transformer_rows(struct tape *t, struct tensor *x, const struct joint_run *r, int k,
                                              struct err *e)
{
    const int64_t n = x->dim[0] / transformer_inputs(r);

    return transformer_inputs(r) == 1 ? x : op_rows(t, x, k * n, n, e);
}

/* Will nobody read what this block makes of input k? With gradients everything is done. */
static inline bool transformer_skips(const struct tape *t, const struct transformer *a, const struct joint_run *r,
                                     int k)
{
    return a->last && r && r->unread[k] && !t->recording;
}

/* Adds to the rows of its two inputs, *hx and *hy, what pair p brings; without gradients in place. n: the normed tokens
 * of the batch. */
int transformer_pair(struct tape *t, struct transformer *a, const struct joint_run *r, const struct joint_pair *p,
                     struct tensor *n, const struct shared *base, struct tensor **hx, struct tensor **hy,
                     struct err *e);

#endif
