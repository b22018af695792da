/* core/op/common.h: what op files share: shapes as rows of the last dimension, checks, and the ways a gradient is
 * delivered when a kernel cannot add to it. */
#ifndef UNICON_CORE_OP_COMMON_H
#define UNICON_CORE_OP_COMMON_H

#include <inttypes.h>
#include "core/op/op.h"

enum { OP_TEXT = 96 }; /* room for tensor_text */

static inline const struct kern *op_kern(const struct tape *t) { return t->dev->kern; }
static inline struct kctx *op_ctx(struct tape *t) { return &t->dev->ctx; }

/* Must x's gradient be found later, so that the op has to save what that takes? */
static inline bool op_wants(const struct tape *t, const struct tensor *x) { return t->recording && x && x->needs_grad; }

/* x as (rows, width). */
static inline int64_t op_width(const struct tensor *x) { return x->n_dim ? x->dim[x->n_dim - 1] : 1; }

static inline int64_t op_rows_of(const struct tensor *x)
{
    int64_t n = 1;

    for (int i = 0; i + 1 < x->n_dim; i++)
        n *= x->dim[i];
    return n;
}

const char *op_name(const struct tensor *x); /* its name, or words instead */
int op_code(const struct err *e);            /* e's code after a maker returned NULL */

/* E_ARG unless x and z have the same type and shape. */
int op_check_alike(const char *op, const struct tensor *x, const struct tensor *z, struct err *e);

/* E_ARG unless p is n numbers of f32. */
int op_check_param(const char *op, const struct tensor *p, int64_t n, struct err *e);

/* The place for y of x's shape but another width. */
struct tensor *op_out_width(struct tape *t, const struct tensor *x, int64_t width, struct err *e);

/* y, noted with a copy of `saved` if a gradient is `wanted` behind it. */
struct tensor *op_note(struct tape *t, bool wanted, tape_back_fn *back, const void *saved, size_t bytes,
                       struct tensor *y, struct err *e);

/* Memory for one kernel call or, inside a backward, until the note is done. */
void *op_scratch(struct tape *t, size_t bytes, struct err *e);

/* Where a kernel that only writes puts the gradient of x: x's gradient itself if it has none yet, else scratch that
 * op_grad_close adds to it. `to` is NULL if x needs none. */
struct op_grad {
    struct tensor *x, *to;
    bool add;
};

int op_grad_open(struct tape *t, struct op_grad *g, struct tensor *x, struct err *e);
int op_grad_close(struct tape *t, const struct op_grad *g, struct err *e);

/* The gradient of a parameter for kernels that accumulate: cleared if new. *out is NULL if p needs none. */
int op_grad_param(struct tape *t, struct tensor *p, float **out, struct err *e);

/* bias += column sums of dy. */
int op_grad_bias(struct tape *t, struct tensor *bias, const struct tensor *dy, struct err *e);

#endif
