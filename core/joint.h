/* core/joint.h: what UniCon adds to a UNet: beside every self-attention one across the pair, with a low-rank adapter
 * per branch, and a projection back (paper Eq. 4 and 5; names of the published files). The base's own weights serve in
 * it, so an adapter goes with any base of its sizes.
 *
 *     struct joint *j;
 *     if (joint_new(&j, place, n_place, 768, &weights, &layers, e)) ...
 *     struct joint_run r = { .n_input = 2, .n_pair = 1, .pair = { { 0, 1, 1, 1, j } }, .scale = 1 };
 *     struct unet_call call = { .pairs = &r };
 *     eps = unet_forward(t, u, x, time, &text, &call, e);             rows of x, then rows of y             */
#ifndef UNICON_CORE_JOINT_H
#define UNICON_CORE_JOINT_H

#include "core/layer.h"
#include "core/op/op.h"

enum joint_post { JOINT_CONV, JOINT_CONV_FUSE };        /* P (C,C) for each branch; P (2C,2C) for both together */

/* Where the values are. Names, with B = "down_blocks.0.attentions.0.transformer_blocks.0":
 *   xy, yx  B.attn1n.{to_q,to_k,to_v,to_out.0}.down.weight (r,C), .up.weight (C,r)
 *   y       B.attn1.{..} and B.attn2.{..}, the same endings; NULL: no y-LoRA
 *   post    B.conv1n.weight (C,C) or (2C,2C); a block without one has no joint attention (encoder-less)
 *           and needs no tensors of xy and yx */
struct joint_weights {
    const struct weights *xy, *yx, *y, *post;
    enum joint_post kind;
    double scale;                           /* alpha / rank; the published files say nothing: 1 */
};

/* One low-rank term: y += scale (x down^T) up^T. */
struct joint_term {
    struct weight down, up;
};

enum { JOINT_Q, JOINT_K, JOINT_V, JOINT_O, JOINT_N_TERM };

/* What a transformer block gets. */
struct joint_block {
    struct joint_term xy[JOINT_N_TERM], yx[JOINT_N_TERM];   /* on the joint attention's projections */
    struct joint_term y1[JOINT_N_TERM], y2[JOINT_N_TERM];   /* on self- and text attention of y rows */
    struct weight post;
    struct weight out[2][2];                /* [to][from], 0 x and 1 y: post behind to_out, see joint_fold.c */
    bool has_post;                          /* false: no joint attention here */
};

enum { JOINT_MAX_BLOCK = 64 };

struct joint {
    enum joint_post kind;
    float scale;
    bool has_y;
    bool apart;                             /* terms and projections one by one, as training needs them; else the
                                             * base's products are shared and the way out is folded */
    struct joint_block block[JOINT_MAX_BLOCK];
};

/* A transformer block of the UNet: its name in the checkpoint, its width, the output projection of its
 * self-attention. */
struct joint_place {
    const char *name;
    int64_t C;
    struct weight *out;
};

/* In l->mem; l->weights is not looked at. With l->keep_raw for training, else for sampling. place[n]: the UNet's
 * blocks, cross: the text's width. E_FORMAT names what is missing, has another size ("made for another UNet") or
 * fits nowhere. */
int joint_new(struct joint **out, const struct joint_place *place, int n, int64_t cross, const struct joint_weights *w,
              const struct layers *l, struct err *e);

/* For joint_new: the weights `out`, made when they are first needed. */
int joint_fold(struct joint *j, const struct joint_place *place, int n, const struct layers *l, struct err *e);

/* Rows of a batch by input, and who attends to whom (paper Eq. 8). All rows of an input lie together: input k has rows
 * [k B/n_input, (k+1) B/n_input) of the batch. */
enum { JOINT_MAX_PAIR = 8 };

struct joint_pair {
    int x, y;                               /* inputs; -1: not in this batch, both weights are 0 */
    float wx, wy;                           /* weights of what x and y get; with both 0 y still has its y-LoRA */
    struct joint *joint;
};

struct joint_run {
    int n_input, n_pair;
    struct joint_pair pair[JOINT_MAX_PAIR];
    float scale;                            /* joint scale: multiplies what every row gets; 1 */
    bool unread[JOINT_MAX_PAIR];            /* nobody reads the UNet's output for this input: it may be left undone */
};

/* Rows of a batch of B that somebody reads, as ranges from first[i] on, n[i] long; all of them for r NULL. Returns how
 * many; room for JOINT_MAX_PAIR. */
int joint_read_rows(const struct joint_run *r, int64_t B, int64_t *first, int64_t *n);

/* Low-rank terms of the self- (1) or text attention (2) of input k: those of every joint that has k as its y. Returns
 * how many; out has room for JOINT_MAX_PAIR. */
int joint_y_terms(const struct joint_run *r, int k, int block, int attn, int projection, struct op_lora *out);

#endif
