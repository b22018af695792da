/* kernels/kern.h: the contract of the kernels room.
 *
 * One struct of functions, filled by twins: kern_cpu() and its instruction sets here, kern_cuda() on a
 * device (NULL in a build without one), kern_null() which computes nothing and counts. Arithmetic on
 * plain pointers and sizes: no allocation, no messages. Every function returns 0 or a negative kstatus.
 *
 *     const struct kern *kern = kern_cpu(NULL);
 *     struct kctx k = { .n_threads = 2, .scratch = mem, .scratch_bytes = kern->scratch_bytes };
 *     if (kern->layer_norm(&k, y, mean, rstd, x, F32, gamma, beta, rows, D, 1e-5f)) ...
 *
 * Rules that hold for every function:
 *  - Memory is channels-last: an image is (B,H,W,C), which is also (B,T,C) with T = H*W.
 *  - `type` is how activations are stored; arithmetic and every reduction are f32 (or wider).
 *    Vectors of parameters (bias, gamma, beta), statistics and parameter gradients are always f32.
 *  - Sizes count elements, strides (`ld*`) count elements of the stored type, *_bytes count bytes.
 *  - Any size may be odd; a size of 0 does nothing. Pointers need the alignment of their type only;
 *    packs, workspaces and scratch are 64-byte aligned.
 *  - Outputs are written whole and never read first, unless the comment says "accumulates".
 *  - A result does not depend on n_threads, nor on what else is in the batch, bit for bit.
 *  - An output may not overlap an input unless the comment says so.
 *  - On the CUDA twin pointers are the device's, results (sums too) are there when the queue has got to them, and
 *    failures of the device may be told later. Raw weights for `pack` may also lie in the host's memory, and may
 *    change when it returns. n_threads is 1. Products choose their way by the number of rows, so an image's last bits
 *    may depend on how many are in the batch, never on which. Backward kernels are K_MISSING so far. */
#ifndef UNICON_KERNELS_KERN_H
#define UNICON_KERNELS_KERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { F32, F16, BF16, N_DTYPE };

static inline size_t dtype_bytes(enum dtype t)
{
    return t == F32 ? 4 : 2;
}

enum kstatus {
    K_OK = 0,
    K_ARG = -1,         /* sizes or types that the contract does not allow */
    K_SCRATCH = -2,     /* kctx.scratch or a workspace is too small */
    K_LAUNCH = -3,      /* the device refused or failed */
    K_MISSING = -4      /* this twin does not have it */
};

/* What the null twin adds up, exactly: FLOPs of the products (1 multiply-add = 2) and of nothing
 * else; bytes read and written once per operand; calls. */
struct kcount {
    int64_t flops, bytes, calls;
};

struct kctx {
    int n_threads;              /* >= 1 */
    void *scratch;              /* n_threads blocks of scratch_bytes, 64-byte aligned */
    size_t scratch_bytes;       /* per thread, >= kern.scratch_bytes */
    void *stream;               /* CUDA: the struct dev_queue (kernels/dev.h) that everything is queued on */
    struct kcount *count;       /* null twin: where to add; may be NULL */
};

/* ---- products: convolutions and linear layers ------------------------------------------------
 * A linear layer is a 1x1 convolution over one image with H = 1 and W = rows.                   */

/* Geometry of a forward convolution; the backward kernels take the same one.
 *   in  (B,H,W,Ci)  weights (Co,KH,KW,Ci)  out (B,Ho,Wo,Co)
 *   out(i,j) = sum over taps (a,b) of w(a,b) . in(i*stride - pad_t + a, j*stride - pad_l + b)
 * Pixels outside are zero. `up` = 2 first doubles the input by nearest neighbour and crops it to
 * (Ho,Wo) (stride 1 and same padding only: how the decoder's up-sampling layers work). */
enum { K_MAX_TAPS = 64 };        /* KH * KW at most */

struct kgeom {
    int64_t H, W, Ci;
    int64_t Ho, Wo, Co;
    int KH, KW;
    int stride;                 /* 1 or 2 */
    int pad_t, pad_l;           /* zero rows above, zero columns left; below and right follow from Ho, Wo */
    int up;                     /* 1, or 2 */
};

/* Weights are packed once for the twin and instruction set that will read them. */
enum kpack_kind {
    K_PACK_FWD,                 /* for conv with dir = K_FWD; any stride; also up = 2 with odd targets */
    K_PACK_DX,                  /* for conv with dir = K_DX, up = 1 */
    K_PACK_UP,                  /* K_FWD, up = 2, 3x3, Ho = 2H, Wo = 2W: four 2x2 phases, 4/9 of the work */
    K_PACK_UP_DX,               /* K_DX of the same: one 4x4 stride-2 product */
    K_N_PACK
};

struct kpack {
    enum kpack_kind kind;
    enum dtype src;             /* of the raw weights (Co,KH,KW,ci_total) */
    enum dtype dst;             /* of the pack */
    int64_t Co, Ci;
    int KH, KW;
    int64_t ci_first, ci_total; /* this pack takes input channels [ci_first, ci_first+Ci) of ci_total */
    bool glu;                   /* rows [0,Co/2) and [Co/2,Co) are value and gate of K_ACT_GEGLU; K_PACK_FWD */
};

enum kact { K_ACT_NONE, K_ACT_SILU, K_ACT_GELU, K_ACT_QUICK_GELU, K_ACT_RELU, K_ACT_GEGLU };

/* One summand of a product. Several parts share the output: the two halves of a skip connection, a
 * shortcut beside the convolution that it joins, a low-rank term beside its base. */
struct kpart {
    const void *x;              /* dir K_FWD: the input (B,H,W,Ci); K_DX: the output's gradient (B,Ho,Wo,Co) */
    enum dtype type;
    int64_t ldx;                /* elements from one pixel of x to the next; image and row strides follow */
    const void *pack;
    enum dtype pack_type;
    enum kpack_kind pack_kind;
    bool glu;                   /* the pack was made with glu */
    struct kgeom g;
};

enum kdir { K_FWD, K_DX };

/* y = act(alpha * sum of parts + bias + row_add[image]) + residual
 * y is (B,Ho,Wo,Co) for K_FWD, (B,H,W,Ci) for K_DX (all parts agree on it); with K_ACT_GEGLU y has
 * Co/2 channels, value * gelu(gate). K_DX takes no bias, row_add or act. Products are f32 fused
 * multiply-adds; with a BF16 pack, BF16 x and an instruction set that has them, bf16 dot products. */
struct kconv {
    enum kdir dir;
    int64_t B;
    int n_part;                 /* 1..3 */
    struct kpart part[3];
    float alpha;
    const float *bias;          /* (Co) or NULL */
    const void *row_add;        /* (B,Co) of y_type, row stride row_add_ld, or NULL: the time embedding */
    int64_t row_add_ld;
    enum kact act;
    const void *residual;       /* like y, of y_type, pixel stride residual_ld, or NULL; may be y itself */
    int64_t residual_ld;
    void *y;
    enum dtype y_type;
    int64_t ldy;                /* elements from one pixel of y to the next */
};

/* C (M,N) = alpha * op(A) (M,K) * op(B) (K,N) + beta * C, `n` times with the strides given.
 * Row-major; trans_a: A is stored (K,M); trans_b: B is stored (N,K). C is not read where beta = 0. */
struct kgemm {
    int64_t M, N, K, n;
    const void *a, *b;
    void *c;
    enum dtype a_type, b_type, c_type;
    int64_t lda, ldb, ldc;
    int64_t stride_a, stride_b, stride_c;
    bool trans_a, trans_b;
    float alpha, beta;
};

/* ---- attention: softmax(scale * Q K^T) V per head, never materialised; Dao et al. 2022 ---------
 *   q, o (B,Tq,N,D)   k, v (B,Tk,N,D): head n of a token at n*D, tokens ld* elements apart, images
 *   T*ld* apart.   lse (B,N,Tq) f32, natural log of the sum of exponentials, NULL when not wanted */
struct kattn {
    enum dtype type;
    int64_t B, N, Tq, Tk, D;
    const void *q, *k, *v;
    void *o;
    int64_t ldq, ldk, ldv, ldo;
    float *lse;
    float scale;
    bool causal;                /* query i sees keys 0..i (Tq = Tk) */
};

/* Gradients of the above. o and lse come from the forward pass. dq, dk, dv have the layouts of q, k, v
 * with their own strides. work is attn_back_bytes() bytes. */
struct kattn_back {
    struct kattn f;
    const void *d_o;
    int64_t ldd_o;
    void *dq, *dk, *dv;
    int64_t lddq, lddk, lddv;
    void *work;
};

enum kunary { K_SILU, K_GELU, K_QUICK_GELU, K_RELU, K_N_UNARY };

/* A tensor of up to four dimensions by strides (elements), outermost first. */
struct kview4 {
    int64_t dim[4], stride[4];
};

/* A named place in the Philox4x32-10 sequence (Salmon et al. 2011): element i of a draw comes from
 * lane i%4 of the block with counter { i/4, ctr[0], ctr[1], ctr[2] } under `key`. */
struct krng {
    uint32_t key[2], ctr[3];
};

struct kadamw {
    double lr, beta1, beta2, eps, weight_decay;         /* doubles, because 1 - 0.999f is not 0.001 */
    double bias1, bias2;        /* 1 - beta1^t, 1 - beta2^t */
    float grad_scale;           /* multiplies g first: clipping and loss scaling */
};

struct kern {
    const char *name;           /* "avx512bf16", "null", ... */
    const char *isa;            /* as name, for people */
    size_t scratch_bytes;       /* what kctx must bring per thread */
    bool computes;              /* false for the null twin: pointers are never read */

    /* -- products -- */
    size_t (*pack_bytes)(const struct kpack *p);
    int (*pack)(struct kctx *k, void *dst, const struct kpack *p, const void *w);
    int (*conv)(struct kctx *k, const struct kconv *c);
    /* dw (Co,KH,KW,Ci) f32 = beta * dw + sum over images and pixels of dy (B,Ho,Wo,Co) x (B,H,W,Ci);
     * beta 0 or 1 (accumulates); ldx, lddy as in kpart. */
    int (*conv_dw)(struct kctx *k, float *dw, float beta, const struct kgeom *g, int64_t B,
                   const void *x, enum dtype x_type, int64_t ldx,
                   const void *dy, enum dtype dy_type, int64_t lddy);
    int (*gemm)(struct kctx *k, const struct kgemm *g);

    /* -- attention -- */
    int (*attn)(struct kctx *k, const struct kattn *a);
    size_t (*attn_back_bytes)(const struct kattn *a, int n_threads);
    int (*attn_back)(struct kctx *k, const struct kattn_back *a);

    /* -- norms: statistics in f32 by two passes (mean first, then squared distance) --
     * GroupNorm, Wu & He 2018 sec. 3.1, then SiLU if silu.  x, y (B,HW,C), y may be x, pixels ldx and
     * ldy apart; G divides C; mean, rstd (B,G) written. y NULL: statistics alone. */
    int (*group_norm)(struct kctx *k, void *y, int64_t ldy, float *mean, float *rstd, const void *x, int64_t ldx,
                      enum dtype type, const float *gamma, const float *beta,
                      int64_t B, int64_t HW, int64_t C, int64_t G, float eps, bool silu);
    /* The same with mean, rstd (B,G) given: any part of the pixels gets the bits that it has in the whole. */
    int (*group_norm_apply)(struct kctx *k, void *y, int64_t ldy, const float *mean, const float *rstd, const void *x,
                            int64_t ldx, enum dtype type, const float *gamma, const float *beta,
                            int64_t B, int64_t HW, int64_t C, int64_t G, bool silu);
    /* dx (B,HW,C) dense written, may be dy; dgamma, dbeta (C) accumulate, both NULL when not wanted.
     * x, dy with pixel strides. work: group_norm_back_bytes(). */
    size_t (*group_norm_back_bytes)(int64_t B, int64_t HW, int64_t C, int64_t G);
    int (*group_norm_back)(struct kctx *k, void *dx, float *dgamma, float *dbeta, const void *dy, int64_t lddy,
                           const void *x, int64_t ldx, const float *mean, const float *rstd, enum dtype type,
                           const float *gamma, const float *beta,
                           int64_t B, int64_t HW, int64_t C, int64_t G, bool silu, void *work);
    /* LayerNorm over rows of D; Ba et al. 2016. y may be x; mean, rstd (rows), both NULL when not wanted. */
    int (*layer_norm)(struct kctx *k, void *y, float *mean, float *rstd, const void *x, enum dtype type,
                      const float *gamma, const float *beta, int64_t rows, int64_t D, float eps);
    /* dx may be dy; dgamma, dbeta (D) accumulate, both NULL when not wanted; work: layer_norm_back_bytes(). */
    size_t (*layer_norm_back_bytes)(int64_t rows, int64_t D);
    int (*layer_norm_back)(struct kctx *k, void *dx, float *dgamma, float *dbeta, const void *dy, const void *x,
                           const float *mean, const float *rstd, enum dtype type, const float *gamma,
                           int64_t rows, int64_t D, void *work);

    /* -- activations; y may be x, dx may be dy (not in GEGLU, whose sizes differ) -- */
    int (*unary)(struct kctx *k, enum kunary f, void *y, const void *x, enum dtype type, int64_t n);
    int (*unary_back)(struct kctx *k, enum kunary f, void *dx, const void *dy, const void *x, enum dtype type,
                      int64_t n);
    /* GEGLU, Shazeer 2020: y (rows,D) = h * gelu(g), x (rows,2D) = [h | g], gelu by erf. */
    int (*geglu)(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D);
    int (*geglu_back)(struct kctx *k, void *dx, const void *dy, const void *x, enum dtype type,
                      int64_t rows, int64_t D);
    /* softmax over rows of D; back needs y: dx = y * (dy - sum(dy * y)). */
    int (*softmax)(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D);
    int (*softmax_back)(struct kctx *k, void *dx, const void *dy, const void *y, enum dtype type,
                        int64_t rows, int64_t D);

    /* -- element by element -- */
    int (*fill)(struct kctx *k, void *y, enum dtype type, int64_t n, float value);
    int (*cast)(struct kctx *k, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n);
    /* y = a*x + b*z over n elements; z NULL: a*x + b. y may be x or z. */
    int (*axpby)(struct kctx *k, void *y, float a, const void *x, float b, const void *z, enum dtype type, int64_t n);
    /* y = x*z, element by element. y may be x or z. */
    int (*mul)(struct kctx *k, void *y, const void *x, const void *z, enum dtype type, int64_t n);
    /* y[b] = a[b]*x[b] + c[b]*z[b] for rows of n; a, c (B) f32; z NULL: a[b]*x[b]. Noise mixing. y may be x or z. */
    int (*row_axpby)(struct kctx *k, void *y, const float *a, const void *x, const float *c, const void *z,
                     enum dtype type, int64_t B, int64_t n);
    /* y = m*x + (1-m)*z with m (B,HW) f32, x, y, z (B,HW,C): masks. y may be x or z. */
    int (*lerp_mask)(struct kctx *k, void *y, const float *m, const void *x, const void *z, enum dtype type,
                     int64_t BHW, int64_t C);
    /* Rows of n elements: y[r*ldy..] = x[r*ldx..]; accumulate: y += x. Joins and splits on C. */
    int (*copy_rows)(struct kctx *k, void *y, int64_t ldy, const void *x, int64_t ldx, enum dtype type,
                     int64_t rows, int64_t n, bool accumulate);
    /* y, dense with sizes v->dim, takes x at strides v->stride (0 repeats): NCHW <-> NHWC and the like. */
    int (*permute)(struct kctx *k, void *y, const void *x, enum dtype type, const struct kview4 *v);
    /* y (n,D) = table (V,D) rows id; ids outside [0,V) are K_ARG on the CPU, rows of NaN on a device. */
    int (*gather)(struct kctx *k, void *y, enum dtype y_type, const void *table, enum dtype table_type,
                  const int32_t *id, int64_t n, int64_t V, int64_t D);
    /* dtable (V,D) f32 accumulates dy rows, in order of n. */
    int (*gather_back)(struct kctx *k, float *dtable, const void *dy, enum dtype type, const int32_t *id,
                       int64_t n, int64_t V, int64_t D);
    /* Sinusoids of t (B): y (B,dim) = [cos(t f) | sin(t f)], f_i = 10000^(-i/(dim/2)); Ho et al. 2020 as
     * latent diffusion orders them. dim even. f_i and t f_i are rounded to f32 as in the models' training: at t = 999
     * the last bit of an angle is 6e-5. */
    int (*time_embed)(struct kctx *k, void *y, enum dtype type, const float *t, int64_t B, int64_t dim);

    /* -- resampling of (B,H,W,C) to (B,Ho,Wo,C) --
     * nearest: source index floor(i * H/Ho). bilinear: half-pixel centres, or corners aligned. */
    int (*nearest)(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W,
                   int64_t C, int64_t Ho, int64_t Wo);
    int (*nearest_back)(struct kctx *k, void *dx, const void *dy, enum dtype type, int64_t B, int64_t H, int64_t W,
                        int64_t C, int64_t Ho, int64_t Wo);
    int (*bilinear)(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W,
                    int64_t C, int64_t Ho, int64_t Wo, bool align_corners);
    int (*bilinear_back)(struct kctx *k, void *dx, const void *dy, enum dtype type, int64_t B, int64_t H,
                         int64_t W, int64_t C, int64_t Ho, int64_t Wo, bool align_corners);

    /* -- reductions, in a fixed order that depends on the sizes alone -- */
    int (*sum)(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n);
    int (*sum_squares)(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n);
    int (*dot)(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, int64_t n);
    /* out = number of elements that are Inf or NaN. */
    int (*count_nonfinite)(struct kctx *k, int64_t *out, const void *x, enum dtype type, int64_t n);
    /* out[c] (+)= sum over rows of x (rows,C), rows ldx apart: gradients of biases. work: col_sum_bytes(). */
    size_t (*col_sum_bytes)(int64_t rows, int64_t C);
    int (*col_sum)(struct kctx *k, float *out, bool accumulate, const void *x, int64_t ldx, enum dtype type,
                   int64_t rows, int64_t C, void *work);
    /* out (B,C) of type = sum over HW of x (B,HW,C), pixels ldx apart: gradient of row_add. */
    int (*image_sum)(struct kctx *k, void *out, const void *x, int64_t ldx, enum dtype type, int64_t B, int64_t HW,
                     int64_t C);
    /* out[b] = w[b]/n * sum of m * (x-z)^2 over rows of n = HW*C; m (B,HW) f32 or NULL. */
    int (*mse)(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, const float *w,
               const float *m, int64_t B, int64_t HW, int64_t C);
    /* dx = d_out[b] * 2 w[b]/n * m * (x-z). dx may be x. */
    int (*mse_back)(struct kctx *k, void *dx, const float *d_out, const void *x, const void *z, enum dtype type,
                    const float *w, const float *m, int64_t B, int64_t HW, int64_t C);

    /* -- optimizer: decoupled weight decay, Loshchilov & Hutter 2019, as torch.optim.AdamW --
     * p, m, v, g (n) f32; shadow, if given, receives p rounded to shadow_type. */
    int (*adamw)(struct kctx *k, float *p, float *m, float *v, const float *g, int64_t n, const struct kadamw *o,
                 void *shadow, enum dtype shadow_type);

    /* -- random numbers: element i of the draw named by r, from `first` on; first + n <= 2^34 (K_ARG), since the
     * block number i/4 is one counter word -- */
    int (*random_bits)(struct kctx *k, uint32_t *y, int64_t n, const struct krng *r, uint64_t first);
    /* Uniform on [0,1): the upper 24 bits times 2^-24. */
    int (*random_uniform)(struct kctx *k, float *y, int64_t n, const struct krng *r, uint64_t first);
    /* Standard normals by Box-Muller on lane pairs (0,1), (2,3): with words a, b of the even and the odd lane,
     * u1 = (a + 1) 2^-32 in (0,1], u2 = b 2^-32, r = sqrt(-2 ln u1), the even lane becomes r cos(2 pi u2), the odd one
     * r sin(2 pi u2). The same f32 values, rounded, for every type; the same bits on every CPU. */
    int (*random_normal)(struct kctx *k, void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first);
};

/* The CPU twin for `isa` ("portable", "avx2", "avx512", "avx512bf16"), the best that this processor runs
 * for NULL. NULL when the name is unknown or the processor lacks it. */
const struct kern *kern_cpu(const char *isa);

/* Names of the instruction sets in this build, worst first, NULL-terminated. */
const char *const *kern_cpu_names(void);

/* The CUDA twin, NULL in a build without one. It is there where no device is: for sizes and plans. */
const struct kern *kern_cuda(void);

/* The null twin: checks arguments as the others do, adds to kctx.count, touches no memory. Pack sizes and
 * workspaces are those of `like`, the twin it stands for, so that a dry run's memory is exact. */
void kern_null(struct kern *out, const struct kern *like);

#endif
