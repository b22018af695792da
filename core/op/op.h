/* core/op/op.h: every differentiable operation. An op checks shapes, takes its output from the tape, calls one
 * kernel and notes its backward if a gradient flows through any input. NULL with e set on failure, and the message
 * names the weight or tensor. Sizes: B images, H W rows and columns, C channels, T tokens, D width, N heads.
 * Gradients reach every tensor input that needs them; raw weights and biases (f32) when they are watched. */
#ifndef UNICON_CORE_OP_OP_H
#define UNICON_CORE_OP_OP_H

#include "core/tape.h"
#include "core/weight.h"

/* What a product does on its way out: y = act(alpha*sum + bias + row_add[image]) + residual. Fused where nothing in
 * it needs saving for a gradient, otherwise the same values by separate steps. */
struct op_epilogue {
    enum kact act;              /* K_ACT_GEGLU halves the channels */
    struct tensor *row_add;     /* (B,Co) or NULL */
    struct tensor *residual;    /* like y, or NULL */
};

/* Low-rank term beside a linear layer, Hu et al. 2021: y += scale * (x A^T) B^T.  A (r,Ci)   B (Co,r) */
struct op_lora {
    struct weight *down, *up;
    float scale;
};

/* y (..,Co) = x (..,Ci) W^T + b. Rows are all leading dimensions. lora: n_lora terms. epi may be NULL. For row_add the
 * first dimension of x is the image. */
struct tensor *op_linear(struct tape *t, struct tensor *x, struct weight *w, const struct op_lora *lora, int n_lora,
                         const struct op_epilogue *epi, struct err *e);

/* y = base + the terms' sum, for a base (..,Co) that serves several adapters of x (..,Ci). */
struct tensor *op_low_rank(struct tape *t, struct tensor *base, struct tensor *x, const struct op_lora *lora,
                           int n_lora, struct err *e);

struct op_conv_geom {
    int stride;                 /* 1 or 2 */
    int pad_t, pad_l, pad_b, pad_r;
};

/* y (B,Ho,Wo,Co) from x (B,H,W,Ci); Ho = (H + pad_t + pad_b - KH)/stride + 1. x2, if not NULL, is joined to x along
 * channels without a copy (Ci = C + C2). w1x1, if not NULL, with input x1x1 (and x1x1b): a 1x1 shortcut summed in. */
struct op_shortcut {
    struct weight *w;
    struct tensor *x, *x2;
};
struct tensor *op_conv(struct tape *t, struct tensor *x, struct tensor *x2, struct weight *w, struct op_conv_geom g,
                       const struct op_shortcut *shortcut, const struct op_epilogue *epi, struct err *e);

/* Nearest-neighbour doubling cropped to (Ho,Wo), then 3x3 same convolution: y (B,Ho,Wo,Co). */
struct tensor *op_upsample_conv(struct tape *t, struct tensor *x, struct weight *w, int64_t Ho, int64_t Wo,
                                struct err *e);

/* softmax(scale q k^T) v per head. q (B,Tq,N*D)  k, v (B,Tk,N*D) -> (B,Tq,N*D). scale 0: 1/sqrt(D). */
struct tensor *op_attention(struct tape *t, struct tensor *q, struct tensor *k, struct tensor *v, int64_t N,
                            float scale, bool causal, struct err *e);

/* y = gamma (x - mean)/sqrt(var + eps) + beta per group of C/G channels, then SiLU if silu. x (B,..,C). gamma, beta
 * (C) f32. */
struct tensor *op_group_norm(struct tape *t, struct tensor *x, struct tensor *gamma, struct tensor *beta, int64_t G,
                             float eps, bool silu, struct err *e);
/* The same in two halves, for images that are worked on in bands of rows; nothing of it is recorded. Statistics (B,G)
 * f32 of all of x; then any rows of an image, x (1,..,C), normalised with those of image b. */
struct op_group_stats {
    struct tensor *mean, *rstd;
};
int op_group_stats(struct tape *t, struct op_group_stats *out, struct tensor *x, int64_t G, float eps, struct err *e);
struct tensor *op_group_norm_rows(struct tape *t, struct tensor *x, const struct op_group_stats *s, int64_t b,
                                  struct tensor *gamma, struct tensor *beta, bool silu, struct err *e);
struct tensor *op_layer_norm(struct tape *t, struct tensor *x, struct tensor *gamma, struct tensor *beta, float eps,
                             struct err *e);

struct tensor *op_unary(struct tape *t, enum kunary f, struct tensor *x, struct err *e);
struct tensor *op_geglu(struct tape *t, struct tensor *x, struct err *e);          /* (..,2D) -> (..,D) */
struct tensor *op_softmax(struct tape *t, struct tensor *x, struct err *e);        /* over the last dimension */

struct tensor *op_axpby(struct tape *t, float a, struct tensor *x, float b, struct tensor *z, struct err *e);
struct tensor *op_add(struct tape *t, struct tensor *x, struct tensor *z, struct err *e);
struct tensor *op_scale(struct tape *t, float a, struct tensor *x, struct err *e);
struct tensor *op_mul(struct tape *t, struct tensor *x, struct tensor *z, struct err *e);
/* y[b] = a[b] x[b] + c[b] z[b]; a, c (B) f32 on the device, not differentiated; c and z may be NULL. */
struct tensor *op_row_axpby(struct tape *t, struct tensor *a, struct tensor *x, struct tensor *c, struct tensor *z,
                            struct err *e);
struct tensor *op_cast(struct tape *t, struct tensor *x, enum dtype type, struct err *e);

/* Shapes. Views share data with their input and cost nothing. */
struct tensor *op_reshape(struct tape *t, struct tensor *x, int n_dim, const int64_t *dim, struct err *e);
struct tensor *op_rows(struct tape *t, struct tensor *x, int64_t first, int64_t n, struct err *e);  /* view of images */
struct tensor *op_join(struct tape *t, struct tensor *x, struct tensor *z, struct err *e);          /* along C */
struct tensor *op_join_rows(struct tape *t, struct tensor *x, struct tensor *z, struct err *e);     /* along B */
/* Copy of a range of C. */
struct tensor *op_channels(struct tape *t, struct tensor *x, int64_t first, int64_t n, struct err *e);

struct tensor *op_nearest(struct tape *t, struct tensor *x, int64_t Ho, int64_t Wo, struct err *e);
struct tensor *op_bilinear(struct tape *t, struct tensor *x, int64_t Ho, int64_t Wo, bool align_corners,
                           struct err *e);

/* Rows of table (V,D) f32/f16/bf16 by id (host integers, copied when it runs): (n,D) of `type`. */
struct tensor *op_gather(struct tape *t, struct tensor *table, const int32_t *id, int64_t n, enum dtype type,
                         struct err *e);
struct tensor *op_time_embed(struct tape *t, struct tensor *time, int64_t dim, enum dtype type, struct err *e);

/* Weighted mean squared error per image, summed over images: (1) f32. w (B) f32 or NULL for 1/B each; mask (B,H,W)
 * f32 or NULL. x, z (B,..,C); gradients reach x and z. */
struct tensor *op_mse(struct tape *t, struct tensor *x, struct tensor *z, struct tensor *w, struct tensor *mask,
                      struct err *e);

/* For op files: fail with a message; run a kernel and turn its status into a message naming `what`. */
struct tensor *op_fail(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int op_run(struct err *e, const char *what, int kstatus);

#endif
