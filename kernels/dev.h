/* kernels/dev.h: the CUDA devices of this machine: what they are, and for one of them memory, copies and a queue of
 * work. All of it is here in a build without CUDA too, where everything fails and says so.
 *
 *     struct dev_cuda_info info[8];
 *     const char *why;
 *     int n = dev_cuda_probe(info, 8, &why);
 *     if (n < 0)
 *         ...                                  no device, and why: "this build has no CUDA"
 *
 *     struct dev_queue *q;
 *     if (dev_cuda_open(&q, 0, &why)) ...
 *     struct kctx k = { .n_threads = 1, .stream = q, .scratch = device_memory, .scratch_bytes = .. };
 *     dev_cuda_put(q, x, host, bytes); kern_cuda()->unary(&k, ..); dev_cuda_get(q, host, x, bytes);
 *     dev_cuda_close(q);
 *
 * A queue is used by one thread at a time. Work on it runs in the order in which it was queued, later than the call
 * returns; only dev_cuda_get, dev_cuda_sync and dev_cuda_pace wait. Failures of work that was queued are told by the
 * next call that waits. */
#ifndef UNICON_KERNELS_DEV_H
#define UNICON_KERNELS_DEV_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kern.h"

struct dev_cuda_info {
    char name[256];
    int major, minor;                   /* compute capability, 9.0 for an H200 */
    int n_sm;                           /* multiprocessors */
    int64_t total_bytes, free_bytes;
    int driver_version, runtime_version;        /* 13000 for 13.0 */
};

/* Describe the first `max` devices and return how many there are in all, at least 1; or K_LAUNCH when there is no
 * device, driver or CUDA in this build. *why (NULL if not wanted) is then a constant sentence, otherwise NULL.
 * Free memory is asked of the device itself, which makes a context on it: for people and plans, not for loops. */
int dev_cuda_probe(struct dev_cuda_info *out, int max, const char **why);

/* ---- a queue ---- */

struct dev_queue;

/* Device number `device` becomes the calling thread's, and a queue on it is made. K_LAUNCH with *why otherwise: no such
 * device, one in use by somebody who wants it alone, too old (below 8.0). */
int dev_cuda_open(struct dev_queue **out, int device, const char **why);
void dev_cuda_close(struct dev_queue *q);               /* NULL is fine; waits for what is queued */

/* What failed last on this thread, "" if nothing did: "attn_kernel: invalid argument". */
const char *dev_cuda_why(void);

/* ---- memory: addresses are reserved once, memory comes behind them in steps ----
 * Sizes and places are multiples of dev_cuda_step(). What is committed is not cleared. */
size_t dev_cuda_step(void);
size_t dev_cuda_most(void);                             /* all the memory that the thread's device has; 0: not known */
void *dev_cuda_reserve(size_t bytes);                   /* NULL: see dev_cuda_why() */
int dev_cuda_commit(void *base, size_t from, size_t to);
void dev_cuda_unreserve(void *base, size_t committed, size_t bytes);   /* waits for all work on the device */

/* Bytes that the queue's device has free now; 0 if it does not say. */
int64_t dev_cuda_free_bytes(struct dev_queue *q);

/* ---- copies ---- */
int dev_cuda_put(struct dev_queue *q, void *dst, const void *src, size_t bytes);    /* src may change at once */
int dev_cuda_get(struct dev_queue *q, void *dst, const void *src, size_t bytes);    /* waits */
int dev_cuda_sync(struct dev_queue *q);

/* Let the host be at most two steps ahead: waits until the step before the last but one is done. */
int dev_cuda_pace(struct dev_queue *q);

/* ---- graphs ----
 * Work queued between begin and end becomes one graph, which is launched at the end; the first time of a key it runs by
 * itself. `key` names the work's shape: work of the same key is taken for the same kernels with other arguments, and if
 * it is not, the graph is made anew. What cannot be in a graph (copies from the host, waiting) ends it there; the rest
 * of the work then runs by itself. The last eight keys are kept. */
int dev_cuda_graph_begin(struct dev_queue *q, uint64_t key);
int dev_cuda_graph_end(struct dev_queue *q);

/* Kernels queued, graphs launched, graphs made so far: for tests and figures. */
struct dev_cuda_counts {
    int64_t launches, graph_launches, graphs_made;
};
void dev_cuda_counts(const struct dev_queue *q, struct dev_cuda_counts *out);

#endif
