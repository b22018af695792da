/* tests/attn_case.h: one case of attention for tests: its buffers with strides and gaps, its call, and the equations as
 * plain loops in doubles.
 *
 *     struct work w = work_new(&shape, F16, 1);
 *     struct kattn a = work_call(&w, true);
 *     ref_forward(o, lse, &w);
 *     ok = kern->attn(kit_ctx(kern, 2), &a) == K_OK && side_intact(&w.o) && ..
 *     work_free(&w);                                                                                           */
#ifndef UNICON_TESTS_ATTN_CASE_H
#define UNICON_TESTS_ATTN_CASE_H

#include "tests/kit.h"

/* Sizes of a case. gap: unused elements between tokens, so that strides are larger than N*D. packed: q, k and v are
 * thirds of one projection. */
struct shape {
    const char *why;
    int64_t B, N, Tq, Tk, D;
    bool causal;
    int64_t gap;
    bool packed;
};

/* One side of a call: rows of N*D elements `ld` apart inside a buffer. */
struct side {
    struct buf b;
    int64_t first, ld, rows, n;
};

double side_v(const struct side *s, int64_t row, int64_t i);
struct buf side_dense(const struct side *s);            /* the rows without what lies between them */
bool side_intact(const struct side *s);                 /* guards and gaps as they were made */
void side_poison(struct side *s);

/* Everything that one case reads and writes. */
struct work {
    const struct shape *c;
    enum dtype type;
    double scale;
    struct side q, k, v, o, d_o, dq, dk, dv;
    struct buf lse;
};

/* Scale 1/sqrt(D); q and k about normal times `size`, v and d_o about normal, outputs poisoned. */
struct work work_new(const struct shape *c, enum dtype type, double size);
void work_free(struct work *w);
struct kattn work_call(const struct work *w, bool with_lse);
int work_back(const struct kern *kern, int n_threads, struct work *w);         /* K_OK, 1 if the workspace overran */

/* o (B,Tq,N,D), lse (B,N,Tq) */
void ref_forward(double *o, double *lse, const struct work *w);
/* dq (B,Tq,N,D), dk, dv (B,Tk,N,D), from o and lse as stored. */
void ref_backward(double *dq, double *dk, double *dv, const struct work *w);

#endif
