/* kernels/product.h: the one core under every matrix product and convolution of the CPU twin.
 *
 * C (M,N) = sum over runs of A (M,K) B (K,N). The right operand comes in panels of NR columns, packed once or on
 * the way; the left operand is gathered, MR rows by at most KC columns at a time, into a tile that stays in the
 * first-level cache. A convolution differs from a linear layer only in how its rows are gathered, so no patch
 * matrix ever exists.
 *
 *     for each block of columns, each block of rows            <- tasks, in parallel
 *         for each run, each KC of K                           <- always in this order
 *             for each tile of rows: gather A (a_fill)
 *                 for each panel: MR x NR accumulators += A B
 *         hand the finished tile to the epilogue (out)
 *
 * Every element of C is one chain of fused multiply-adds over k in order, continued from block to block, whatever
 * tile it falls in: results depend neither on the number of threads nor on M. */
#ifndef UNICON_KERNELS_PRODUCT_H
#define UNICON_KERNELS_PRODUCT_H

#include "kernels/simd.h"

enum {
    NR = 2 * VL,                        /* columns of a panel: two vectors */
    MR = VL == 16 ? 14 : 6,             /* rows of a tile: 2 MR accumulators, 2 of B and 1 of A fill the registers */
    KC = 384,                           /* depth of a block, in f32; twice that in bf16 pairs */
    LDA = KC + 16,                      /* row stride of the tile: rows fall on different cache sets */
    MAX_PANELS = 320 / NR,              /* columns of a task: KC * 320 floats stay in the second-level cache */
    MAX_TILES = 12,                     /* row tiles of a task over packed weights */
    MAX_TILES_MADE = 24,                /* the same where panels are made on the way, to be used more often */
    MAX_RUNS = 48                       /* three parts of 16: 8x8 taps of stride 2, backward */
};

/* A stretch of K with one way to fetch each operand. `dot`: operands are bf16 pairs and K counts bf16. */
struct run {
    int64_t K;
    bool dot;
    const void *a, *b;                  /* for the two functions below */
    /* Rows [row, row+mr), columns [k, k+kc) of A into tile, row stride LDA floats (2 LDA bf16 if dot). */
    void (*a_fill)(const void *a, void *tile, int64_t row, int mr, int64_t k, int64_t kc);
    /* Panels [panel, panel+n) for [k, k+kc): returns the first, *stride floats from one to the next. buf has room for
     * n * KC * NR floats, for those that must be made. */
    const float *(*b_get)(const void *b, float *buf, int64_t panel, int n, int64_t k, int64_t kc, int64_t *stride);
};

struct product {
    int64_t M, n_panel;
    int max_tiles;                      /* one of the two above */
    int n_run;
    struct run run[MAX_RUNS];
    const void *epilogue;
    /* Take rows [row, row+mr) of panel: tile is (mr,NR) f32. */
    void (*out)(const void *epilogue, int64_t row, int mr, int64_t panel, const float *tile);
    /* Ask for the cache lines that `out` will write, ahead of the last products; may be NULL. */
    void (*out_soon)(const void *epilogue, int64_t row, int mr, int64_t panel);
};

int ISA_NAME(product_run)(struct kctx *k, const struct product *p);

/* Scratch of one thread: the A tile, finished tiles, a block of B. */
enum { TILE_FLOATS = MR * LDA, OUT_FLOATS = MAX_TILES_MADE * MAX_PANELS * MR * NR, B_FLOATS = MAX_PANELS * KC * NR };

/* Panel layout of packs, shared by pack_cpu.c and those that read packs: [panel][k][NR], and where bf16 dot
 * products exist bf16 packs are [panel][k/2][NR][2] with each tap's channels padded to even. */
INLINE bool pack_pairs(enum dtype t)
{
    return HAS_BF16_DOT && t == BF16;
}

INLINE int64_t pack_tap_depth(enum dtype t, int64_t channels)
{
    return pack_pairs(t) ? (channels + 1) / 2 * 2 : channels;
}

/* A product with few columns would waste most of a panel: its pack is [phase][tap][column][channel], channels padded
 * with zeros to whole vectors, and narrow_cpu.c runs vectors along K instead. */
INLINE bool pack_is_narrow(int64_t columns, bool glu)
{
    return !glu && columns <= NR / 4;
}

INLINE int64_t pack_narrow_depth(int64_t channels)
{
    return (channels + 2 * VL - 1) / (2 * VL) * (2 * VL);
}

INLINE int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* n elements to f32. */
INLINE void widen(float *dst, const void *src, int64_t at, enum dtype t, int64_t n)
{
    int64_t i = 0;

    for (; i + VL <= n; i += VL)
        v_storef(dst + i, v_load(src, at + i, t));
    if (i < n)
        v_store_n(dst, i, F32, v_load_n(src, at + i, t, n - i), n - i);
}

#endif
