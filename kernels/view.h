/* kernels/view.h: what the twins ask of a view before they walk it. Private to kernels/. */
#ifndef UNICON_KERNELS_VIEW_H
#define UNICON_KERNELS_VIEW_H

#include "kernels/kern.h"

/* Joins neighbouring dimensions that x walks as one and drops those of size 1: NCHW -> NHWC becomes (N,HW,C). */
static inline struct kview4 view_merged(const struct kview4 *v)
{
    struct kview4 m = { { 1, 1, 1, 1 }, { 0, 0, 0, 0 } };
    int at = 4;

    for (int d = 3; d >= 0; d--) {
        if (v->dim[d] == 1)
            continue;
        if (at < 4 && v->stride[d] == m.stride[at] * m.dim[at]) {
            m.dim[at] *= v->dim[d];
        } else {
            m.dim[--at] = v->dim[d];
            m.stride[at] = v->stride[d];
        }
    }
    return m;
}

#endif
