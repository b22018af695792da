/* tests/graph.h: a small UNet with everything in it that a big one has, for tests of the tape: residual blocks with a
 * time embedding, a skip connection joined on the way up, halving and doubling of odd sizes, self and cross attention
 * with low-rank terms, a gated linear layer. Some weights are trained, some frozen; a part may be checkpointed, with
 * a segment inside a segment.
 *
 *     struct graph g;
 *     graph_open(&g, "cpu", 2, BF16, &e);              everything is drawn from a seed
 *     g.segments = true;
 *     graph_step(&g, &e) ... graph_digest(&g) ...      forward, loss, backward
 *     graph_close(&g);                                                                                        */
#ifndef UNICON_TESTS_GRAPH_H
#define UNICON_TESTS_GRAPH_H

#include "core/op/op.h"
#include "core/tape.h"
#include "core/weight.h"

enum { GRAPH_B = 2, GRAPH_H = 7, GRAPH_W = 6, GRAPH_C = 12, GRAPH_T = 5, GRAPH_MAX_PARAM = 64 };

/* One attention: q, k, v and the way out, each with a low-rank term beside it. */
struct graph_attn {
    struct weight q, k, v, o, down[4], up[4];
};

struct graph_block {
    struct tensor *gamma1, *beta1, *gamma2, *beta2;
    struct weight time, conv1, conv2, shortcut;
};

struct graph {
    struct device dev;
    struct arena meta, model; /* structs; weights, inputs and the caller's gradients */
    struct tape_memory mem;
    struct tape t;
    enum dtype type;
    bool segments; /* checkpoint the middle, and attention inside it */
    bool frozen;   /* watch nothing but the latents */

    struct weight conv_in, time1, time2, down, up, conv_out, ff_in, ff_out;
    struct graph_block block[2];
    struct graph_attn self, cross;
    struct tensor *gamma[4], *beta[4]; /* norms around attention, and the last one */
    struct tensor *x, *time, *text, *target, *dx;
    struct tensor *param[GRAPH_MAX_PARAM], *grad[GRAPH_MAX_PARAM];
    int n_param;
    struct tensor *temb, *loss; /* of the last run */
};

int graph_open(struct graph *g, const char *device, int n_threads, enum dtype type, struct err *e);
void graph_close(struct graph *g);

/* The prediction (like x); recording or not is the caller's choice. */
struct tensor *graph_forward(struct graph *g, struct err *e);

/* Inference: forward without recording, from an empty tape. */
int graph_infer(struct graph *g, struct tensor **y, struct err *e);

/* Training: gradients cleared, forward, loss, backward. The tape is not reset. */
int graph_step(struct graph *g, struct err *e);

/* FNV-1a over the loss and all gradients of the last step. */
uint64_t graph_digest(const struct graph *g);

#endif
