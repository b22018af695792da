/* core/tensor.h: a typed, contiguous, channels-last block of numbers with a name. The struct lives in an
 * arena on the host; `data` lives where its device is. Nothing is ever freed one by one.
 *
 *     struct tensor *x = tensor_new(arena_meta, arena_data, F32, 4, (int64_t[]){ B, H, W, C }, e);  */
#ifndef UNICON_CORE_TENSOR_H
#define UNICON_CORE_TENSOR_H

#include <stdbool.h>
#include <stdint.h>
#include "core/arena.h"
#include "kernels/kern.h"

enum { TENSOR_MAX_DIM = 5 };

struct tensor {
    void *data;
    enum dtype type;
    int n_dim;
    int64_t dim[TENSOR_MAX_DIM];
    const char *name;           /* borrowed: for messages; may be NULL */

    /* Owned by the tape (core/tape.h). */
    bool needs_grad;            /* gradients flow to or through it */
    struct tensor *grad;        /* same type and sizes; NULL until something flowed */
    bool grad_is_leaf;          /* grad belongs to the caller and accumulates across backward passes */
};

const char *dtype_name(enum dtype t);                   /* "f32", "f16", "bf16" */
int64_t tensor_count(const struct tensor *x);           /* product of sizes */
size_t tensor_bytes(const struct tensor *x);
bool tensor_same_shape(const struct tensor *a, const struct tensor *b);

/* "f32 (2,64,64,320)" into buf; returns buf. */
const char *tensor_text(const struct tensor *x, char *buf, size_t size);

/* Struct from `meta` (host arena), data from `data`, not cleared. E_ARG for sizes < 0 or a product past
 * 2^62; NULL with e set on failure. */
struct tensor *tensor_new(struct arena *meta, struct arena *data, enum dtype type, int n_dim, const int64_t *dim,
                          struct err *e);

/* A tensor over memory that the caller owns and that outlives it. */
struct tensor *tensor_wrap(struct arena *meta, void *mem, enum dtype type, int n_dim, const int64_t *dim,
                           struct err *e);

/* Another shape over the same data; counts must agree (E_ARG). No gradient book-keeping: ops use
 * op_reshape. */
struct tensor *tensor_view(struct arena *meta, const struct tensor *x, int n_dim, const int64_t *dim,
                           struct err *e);

/* Convert from and to f32 on the host. n elements. */
void dtype_to_f32(float *dst, const void *src, enum dtype type, int64_t n);
void dtype_from_f32(void *dst, enum dtype type, const float *src, int64_t n);

#endif
