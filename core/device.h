/* core/device.h: where arithmetic happens: a twin of the kernels with its context and scratch.
 *
 *     struct device dev;
 *     if (device_open(&dev, "cpu", 0, e)) ...          "cpu", "cpu:avx2", "null", "null:avx512"
 *     device_close(&dev);
 *
 * The null device computes nothing: ops run on it with real shapes and fake addresses, its arenas count
 * bytes and its context counts FLOPs and traffic, so one dry run tells exactly what a plan will need on
 * the twin that it stands for (null = null:best CPU). */
#ifndef UNICON_CORE_DEVICE_H
#define UNICON_CORE_DEVICE_H

#include "core/arena.h"
#include "kernels/kern.h"

struct device {
    const struct kern *kern;
    struct kctx ctx;
    struct kcount count;        /* filled on the null device */
    enum arena_place place;     /* for arenas that hold this device's tensors */
    struct arena threads;       /* ctx.scratch lives here */
    struct kern null;           /* kern points here on the null device */
};

/* n_threads 0: as many as OpenMP would use. Unknown names are E_ARG, missing instruction sets or devices
 * E_DEVICE, each with what to do in the message. */
int device_open(struct device *d, const char *name, int n_threads, struct err *e);
void device_close(struct device *d);

#endif
