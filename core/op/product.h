/* core/op/product.h: what linear layers and convolutions share: one summand of a product forward and backward, and
 * the steps after a product that could not be fused into it. */
#ifndef UNICON_CORE_OP_PRODUCT_H
#define UNICON_CORE_OP_PRODUCT_H

#include "core/op/common.h"

/* x (B,H,W,g.Ci) meets input channels [first, first + g.Ci) of w. */
struct op_term {
    struct weight *w;
    struct tensor *x;
    int64_t first;
    bool split; /* those channels are one of two ranges */
    struct kgeom g;
};

/* Rows of a linear layer: one image, or B of them where row_add tells them apart. */
struct kgeom op_linear_geom(int64_t rows, int64_t Ci, int64_t Co);

/* The term as part of a product: forward it reads m->x, backward dy. */
int op_term_part(struct tape *t, const struct op_term *m, enum kdir dir, bool glu, const struct tensor *dy,
                 struct kpart *out, struct err *e);

/* x's gradient += alpha * the products `part`, which are backward ones and n of any number; c has B and alpha. */
int op_term_dx(struct tape *t, struct tensor *x, const struct kconv *c, const struct kpart *part, int n, struct err *e);

/* Gradient of m->w from dy, if it is watched. */
int op_term_dw(struct tape *t, const struct op_term *m, int64_t B, const struct tensor *dy, struct err *e);

/* n parts through a kernel that takes three at a time; what c does on its way out is done once. */
int op_product(struct tape *t, const char *what, struct kconv *c, const struct kpart *part, int n, struct err *e);

/* row_add (B,Co) and residual fit y = (B,..,width); rows of the product are Co wide. */
int op_check_epilogue(const char *what, const struct op_epilogue *epi, const struct tensor *x, int64_t Co,
                      struct err *e);

/* Gradients of row_add and, last, of the residual, which takes dy's memory over. */
int op_epilogue_back(struct tape *t, struct tensor *y, struct tensor *row_add, struct tensor *residual, struct err *e);

/* act(h) + residual, as ops of their own; the last of them writes into `into` if that is not NULL. */
struct tensor *op_finish(struct tape *t, struct tensor *h, const struct op_epilogue *epi, struct tensor *into,
                         struct err *e);

#endif
