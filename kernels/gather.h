/* kernels/gather.h: the patches of a convolution as rows of a matrix, read where they lie.
 * Row m of the matrix is pixel (b,i,j) of a grid, m = (b*Gh + i)*Gw + j; column k is channel k % depth of tap
 * k / depth.
 * A tap (dy,dx) reads pixel (i*stride + dy, j*stride + dx) of the input, zero outside of it. */
#ifndef UNICON_KERNELS_GATHER_H
#define UNICON_KERNELS_GATHER_H

#include "kernels/product.h"

struct gather {
    const void *x;
    enum dtype type;
    bool dot;                           /* copy bf16 as it is, for dot products, instead of widening */
    int64_t ld;                         /* elements from pixel to pixel */
    int64_t H, W_px;                    /* input as stored */
    int64_t Hb, Wb;                     /* bounds of the coordinates: twice the above, cropped, when shift is 1 */
    int shift;                          /* 1: coordinates are those of the doubled input */
    int stride;
    int64_t Gh, Gw;
    int64_t C, depth;                   /* channels of a tap; columns of a tap, C or C + 1 (zero) */
    int n_tap;
    int16_t dy[K_MAX_TAPS], dx[K_MAX_TAPS];
};

/* A pack as the right operand of a run. */
struct panels {
    const char *pack;
    enum dtype type;
    bool dot;
    int64_t depth;                      /* k of a whole panel */
    int64_t k0;                         /* where the run begins in it */
    int64_t first_tap;                  /* the same in taps */
};

struct pixel {
    int64_t b, i, j;
};

INLINE struct pixel pixel_at(int64_t m, int64_t Gh, int64_t Gw)
{
    const int64_t line = m / Gw;

    return (struct pixel){ line / Gh, line % Gh, m % Gw };
}

INLINE void pixel_next(struct pixel *p, int64_t Gh, int64_t Gw)
{
    if (++p->j == Gw) {
        p->j = 0;
        if (++p->i == Gh) {
            p->i = 0;
            p->b++;
        }
    }
}

/* Offset in elements of the pixel that `tap` reads for p, or -1 outside. */
INLINE int64_t gather_at(const struct gather *g, const struct pixel *p, int tap)
{
    const int64_t y = p->i * g->stride + g->dy[tap], x = p->j * g->stride + g->dx[tap];

    if (y < 0 || y >= g->Hb || x < 0 || x >= g->Wb)
        return -1;
    return ((p->b * g->H + (y >> g->shift)) * g->W_px + (x >> g->shift)) * g->ld;
}

/* A product of at most NR/4 columns; every run's a is a gather and its b is panels over a narrow pack. */
int ISA_NAME(narrow_run)(struct kctx *k, const struct product *p, int columns);

#endif
