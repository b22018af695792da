/* kernels/cuda_product.h: products on the device: how a kconv is cut into them, and the two ways to compute one.
 * Private to kernels/. The planner (cuda_plan.c) is plain C and needs no device.
 *
 * A product is  y(pixel, o) = act(alpha * sum over parts, taps (a,b) and channels c of
 *                                  x(i*stride - pad_t + a, j*stride - pad_l + b, c) w(o, a, b, c) + bias ..) + residual
 * for `B` images of Ho x Wo pixels. Packs are (Co, KH*KW, Cp) with Cp = Ci rounded up to 8 and zeros in between,
 * K-major: a row of a pack is what one output channel needs, taps outside, channels inside.
 *  - K_PACK_UP packs are four of these, 2x2 taps each, one after the other for phases (0,0) (0,1) (1,0) (1,1); a kconv
 *    with such parts becomes four products that write every second pixel
 *  - gated packs have value and gate of a channel side by side: row 2j is value j, row 2j + 1 is gate j. Biases are not
 *    interleaved: bias[j] and bias[Co/2 + j] */
#ifndef UNICON_KERNELS_CUDA_PRODUCT_H
#define UNICON_KERNELS_CUDA_PRODUCT_H

#include "kernels/kern.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PRODUCT_SPLITS = 8 };    /* parts of K at most that PRODUCT_TILES sums apart */

struct product_part {
    const void *x;              /* (B,H,W,Ci), pixels ldx elements apart */
    int64_t ldx;
    const void *w;              /* (Co,KH*KW,Cp) */
    int64_t H, W, Ci, Cp;
    int KH, KW, stride, pad_t, pad_l;
    int up;                     /* 2: x is doubled by nearest neighbour first, cropped to Ho x Wo */
    enum dtype x_type, w_type;
};

struct product {
    enum dtype type;            /* of x and w of all parts; N_DTYPE where they are not the same */
    int64_t B, Ho, Wo, Co;
    int n_part;
    struct product_part part[3];
    float alpha;
    const float *bias;
    const void *row_add;
    int64_t row_add_ld;
    enum kact act;
    const void *residual;       /* at y's pixels */
    int64_t residual_ld;
    void *y;                    /* pixel (i,j) is pixel (i*y_step + y_i, j*y_step + y_j) of an image Hy x Wy */
    enum dtype y_type;
    int64_t ldy, Hy, Wy;
    int y_step, y_i, y_j;
};

enum product_way {
    PRODUCT_LT,                 /* cuBLASLt on the pixels laid out as rows (im2col), in f32, then an epilogue kernel */
    PRODUCT_TILES               /* our tensor-core kernel; 16-bit types; reads pixels where they are (implicit GEMM) */
};

struct product_plan {
    enum product_way way;
    /* PRODUCT_LT: rows (pixels) at a time that fit the scratch; columns in place where no im2col is needed (1x1) */
    int64_t rows;
    bool in_place, direct;      /* in_place: all parts; direct: cuBLASLt writes y itself, no epilogue kernel */
    /* PRODUCT_TILES: tiles 128 x 160, 128 x 128, 128 x 64, 64 x 64. tile_k 32: stages 4, any device. 64: wgmma on
     * capability 9.0 (elsewhere as 32); stages 3 where two blocks share a multiprocessor, 6 where there are too few */
    int tile_m, tile_n, tile_k, stages, split;
};

/* Cut c into products; returns how many (1 or 4), or K_ARG, or K_MISSING for a gradient. */
int product_cut(struct product out[4], const struct kconv *c);

/* What the planner and the two ways agree on. */
int64_t product_rows(const struct product *p);                  /* pixels of y that it computes */
int64_t product_depth(const struct product_part *a);            /* columns of its pack: KH*KW*Cp */
bool product_tiles_can(const struct product *p);                /* one 16-bit type, x in vectors of 16 bytes */
bool product_part_in_place(const struct product *p, int part);  /* x itself is the matrix: no im2col */
bool product_dense(const struct product *p);                    /* y's pixels follow each other, ldy apart */
size_t product_columns_bytes(const struct product *p, int64_t rows);    /* the im2col block, at the scratch's start */

/* The way to compute p on a device of capability cc with n_sm multiprocessors. scratch: bytes of kctx.scratch. The
 * fields of PRODUCT_LT are always filled, so that it can stand in; rows is 0 where the scratch is too small. */
void product_choose(struct product_plan *out, const struct product *p, int cc, int n_sm, size_t scratch);

/* Bytes of scratch that every plan can do with: the twin's scratch_bytes. */
size_t product_scratch_bytes(void);

int product_lt(struct kctx *k, const struct product *p, const struct product_plan *plan);      /* product_cuda.cu */
int product_tiles(struct kctx *k, const struct product *p, const struct product_plan *plan);   /* tiles_cuda.cu */

/* For tests and figures: 0 lets the planner choose, 1 + way forces a way wherever it can do the product. */
enum { PRODUCT_BY_MMA_SYNC = 2 + PRODUCT_TILES };       /* PRODUCT_TILES without wgmma */
extern int product_forced;

#ifdef __cplusplus
}
#endif
#endif
