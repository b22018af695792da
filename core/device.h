/* core/device.h: where arithmetic happens: a twin of the kernels with its context and scratch.
 *
 *     struct device dev;
 *     if (device_open(&dev, "cpu", 0, e)) ...          "cpu", "cpu:avx2", "cuda", "cuda:1", "null", "null:avx512"
 *     device_put(&dev, x->data, host, bytes, e);
 *     device_close(&dev);
 *
 * The null device computes nothing: ops run on it with real shapes and fake addresses, its arenas count
 * bytes and its context counts FLOPs and traffic, so one dry run tells exactly what a plan will need on
 * the twin that it stands for (null = null:best CPU; null:cuda needs no device).
 *
 * A CUDA device has memory of its own, which only kernels and device_put/device_get may touch, and runs behind the
 * host: what a call returns may not be there yet. See kernels/dev.h. */
#ifndef UNICON_CORE_DEVICE_H
#define UNICON_CORE_DEVICE_H

#include "core/arena.h"
#include "kernels/kern.h"

struct dev_queue;

struct device {
    const struct kern *kern;
    struct kctx ctx;
    int n_threads;              /* of the host, for what it does itself; ctx.n_threads is what kernels may use */
    bool apart;                 /* its memory is not the host's: CUDA, or null standing for it */
    struct dev_queue *queue;    /* CUDA's, also in ctx.stream; else NULL */
    struct kcount count;        /* filled on the null device */
    enum arena_place place;     /* for arenas that hold this device's tensors */
    struct arena threads;       /* ctx.scratch lives here */
    struct kern null;           /* kern points here on the null device */
};

/* n_threads 0: as many as OpenMP would use. Unknown names are E_ARG, missing instruction sets or devices
 * E_DEVICE, each with what to do in the message. */
int device_open(struct device *d, const char *name, int n_threads, struct err *e);
void device_close(struct device *d);

/* Host to device and back; on a host's device plain copies, on the null device nothing. What is put may change when the
 * call returns; get waits for all that was asked of the device before. */
int device_put(struct device *d, void *dst, const void *src, size_t bytes, struct err *e);
int device_get(struct device *d, void *dst, const void *src, size_t bytes, struct err *e);
int device_sync(struct device *d, struct err *e);

/* What is asked of the device between begin and end may be handed to it as one piece; `key` names its shape (see
 * kernels/dev.h). At the end the host waits until it is no more than two such pieces ahead. */
int device_step_begin(struct device *d, uint64_t key, struct err *e);
int device_step_end(struct device *d, struct err *e);

/* Bytes that an arena of the device takes whose high water is `high`; and bytes that the device has free, INT64_MAX for
 * one whose memory is the host's. */
size_t device_arena_bytes(const struct device *d, size_t high);
int64_t device_free_bytes(const struct device *d);

#endif
