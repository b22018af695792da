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
};

/* x (B,H,W,C) -> y = x + proj_out(block(proj_in(norm x))). run NULL: every row for itself. */
struct tensor *transformer_forward(struct tape *t, struct transformer *a, struct tensor *x, struct tensor *y,
                                   const struct unet_text *text, const struct joint_run *run, struct err *e);

/* Keys and values of text (P,T,cross), of every input with its own adapters: (P,T,C). */
int transformer_text(struct tape *t, struct transformer *a, struct tensor *text, const struct joint_run *run,
                     struct tensor **k, struct tensor **v, struct err *e);

#endif
