/* core/tape.h: eager operations with memory of what was done. An op runs at once; if gradients flow through
 * any of its inputs it notes its backward here. Model code is written once and serves sampling (nothing noted),
 * guidance (gradients of latents) and training.
 *
 *     struct tape t;
 *     if (tape_init(&t, &dev, &mem, e)) ...
 *     t.recording = true;
 *     tape_watch(w, dw);                           gradients of w accumulate in dw (f32, the caller's)
 *     y = op_linear(&t, x, &layer, e);  ...  loss = op_mse(...);
 *     if (tape_backward(&t, loss, NULL, e)) ...    seed: ones, or a tensor like loss
 *     tape_reset(&t);                              step arena and gradients are empty again
 *
 * Memory. `meta` (host) holds tensor structs and notes; `step` (the device's place) holds activations; `grads`
 * (the device's) is the pool that activation gradients come from and go back to as soon as they have been used;
 * `scratch` (the device's) is for workspaces inside one kernel call. Inference marks and releases:
 *
 *     struct tensor *y = tape_like(...);           made first, below the mark
 *     struct tape_mark m = tape_mark(t);
 *     ... ops ...;
 *     tape_into(t, y);  op_add(t, h, x, e);        the last op writes into y
 *     tape_release(t, m);                          a no-op while recording: backward still needs the inside
 *
 * A checkpointed segment forgets its inside and recomputes it in the backward pass (Chen et al. 2016). */
#ifndef UNICON_CORE_TAPE_H
#define UNICON_CORE_TAPE_H

#include "core/device.h"
#include "core/pool.h"
#include "core/tensor.h"

struct tape;

/* Propagate the gradient of a note's output to its inputs. Recording is off while it runs. */
typedef int tape_back_fn(struct tape *t, void *saved, struct err *e);

struct tape_note {
    struct tape_note *before;
    tape_back_fn *back;
    void *saved;        /* in meta; begins as the op likes */
    struct tensor *out; /* its gradient is given back to the pool after `back` ran */
};

struct tape_memory {
    struct arena meta;                      /* host */
    struct arena step, grad_arena, scratch; /* the device's place */
    struct pool grads;
};

struct tape {
    struct device *dev;
    struct tape_memory *mem;
    bool recording;
    struct tape_note *last;
    struct tensor *into;    /* the next op's result, see tape_into */
    struct tensor *result;  /* in a segment's forward run: where its result goes, see tape_segment */
    bool forgetting;        /* in a segment's forward run: same arithmetic as recording, nothing noted */
    bool keeping;           /* tape_release does nothing: for a segment of code whose results lie above its marks where
                             * it records */
    struct tape_owed *owed; /* gradients on their way to leaves that keep them in another type */
};

struct tape_mark {
    size_t meta, step;
};

/* Caps are address space to reserve, not memory used; see arena_init. */
struct tape_caps {
    size_t meta, step, grads, scratch;
};

int tape_memory_init(struct tape_memory *m, const struct device *d, const struct tape_caps *caps, struct err *e);
void tape_memory_free(struct tape_memory *m);
void tape_init(struct tape *t, struct device *d, struct tape_memory *m);
void tape_reset(struct tape *t); /* forget notes, empty step, meta and grads */

/* Peak bytes of step + grads + scratch together on the device, since tape_memory_init. The three arenas'
 * high-water marks are added: that is what has to be reserved. */
size_t tape_peak_bytes(const struct tape_memory *m);

struct tensor *tape_new(struct tape *t, enum dtype type, int n_dim, const int64_t *dim, struct err *e);
struct tensor *tape_like(struct tape *t, const struct tensor *x, struct err *e);

/* The result tensor of an op: `into` if set (E_ARG when its shape or type differ), else new. */
struct tensor *tape_out(struct tape *t, enum dtype type, int n_dim, const int64_t *dim, struct err *e);
void tape_into(struct tape *t, struct tensor *y);

struct tape_mark tape_mark(const struct tape *t);
void tape_release(struct tape *t, struct tape_mark m);

/* Leaves. tape_watch: gradients are wanted; `grad` (same sizes; same type, or f32) is the caller's and
 * accumulates. grad NULL: allocated from the pool and left there for the caller to read before tape_reset; a tensor
 * that outlives the reset must then be watched anew. An op's result may be watched too, with grad NULL. */
void tape_watch(struct tensor *x, struct tensor *grad);

/* Note that y = op(...); marks y as needing a gradient. Returns y, or NULL with e set. */
struct tensor *tape_note(struct tape *t, tape_back_fn *back, void *saved, struct tensor *y, struct err *e);
void *tape_save(struct tape *t, size_t bytes, struct err *e); /* cleared memory for `saved` */

/* Where an op's backward puts the gradient of input x: a tensor of x's type. *accumulate says whether one is
 * there already (add to it) or not (write it). NULL with e->code == OK when x needs none. */
struct tensor *tape_grad(struct tape *t, struct tensor *x, bool *accumulate, struct err *e);

/* The same for a parameter (weights, biases, tables): its gradient is f32 whatever x's own type. */
struct tensor *tape_grad_f32(struct tape *t, struct tensor *x, bool *accumulate, struct err *e);

/* Add d (like x) to x's gradient: for ops whose kernels cannot accumulate. */
int tape_grad_add(struct tape *t, struct tensor *x, const struct tensor *d, struct err *e);

/* In the backward of y: hand y's gradient on to x, which has as many elements, by moving the memory where x has no
 * gradient yet. `back` may overwrite y's gradient first (it is the note's own), so kernels that work in place need
 * no second block. Nothing happens if x needs no gradient. */
int tape_grad_move(struct tape *t, struct tensor *x, struct tensor *y, struct err *e);

/* Run backward from y. seed: dy, like y, or NULL for ones. Notes are consumed. */
int tape_backward(struct tape *t, struct tensor *y, struct tensor *seed, struct err *e);

/* Run fn(ctx, in[], n_in) -> result so that only the result is kept; the backward pass runs fn again. fn must be
 * a pure function of in[], ctx and watched leaves, and ctx must live until then. Without recording it just marks, runs
 * and releases. The result, of result_like's shape and type, is copied out of the segment unless fn's last op wrote it
 * in place, after tape_into(t, t->result). */
typedef struct tensor *tape_segment_fn(struct tape *t, void *ctx, struct tensor **in, int n_in, struct err *e);
enum { TAPE_MAX_SEGMENT_IN = 8 };
struct tensor *tape_segment(struct tape *t, tape_segment_fn *fn, void *ctx, struct tensor **in, int n_in,
                            struct tensor *result_like, struct err *e);

#endif
