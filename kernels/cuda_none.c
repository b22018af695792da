/* kernels/cuda_none.c: kernels/dev.h and the CUDA twin of a build without CUDA. */
#include "kernels/cuda_product.h"
#include "kernels/dev.h"

#include "kernels/cuda_gemm.h"

static const char none[] = "this build has no CUDA";

const struct kern *kern_cuda(void)
{
    return NULL;
}

int product_tiles(struct kctx *k, const struct product *p, const struct product_plan *plan)
{
    (void)k;
    (void)p;
    (void)plan;
    return K_MISSING;
}

int dev_cuda_probe(struct dev_cuda_info *out, int max, const char **why)
{
    (void)out;
    (void)max;
    if (why)
        *why = none;
    return K_LAUNCH;
}

int dev_cuda_open(struct dev_queue **out, int device, const char **why)
{
    (void)device;
    *out = NULL;
    if (why)
        *why = none;
    return K_LAUNCH;
}

void dev_cuda_close(struct dev_queue *q) { (void)q; }
const char *dev_cuda_why(void) { return none; }
size_t dev_cuda_step(void) { return (size_t)32 << 20; }
size_t dev_cuda_most(void) { return 0; }

void *dev_cuda_reserve(size_t bytes)
{
    (void)bytes;
    return NULL;
}

int dev_cuda_commit(void *base, size_t from, size_t to)
{
    (void)base;
    (void)from;
    (void)to;
    return K_LAUNCH;
}

void dev_cuda_unreserve(void *base, size_t committed, size_t bytes)
{
    (void)base;
    (void)committed;
    (void)bytes;
}

int64_t dev_cuda_free_bytes(struct dev_queue *q)
{
    (void)q;
    return 0;
}

int dev_cuda_put(struct dev_queue *q, void *dst, const void *src, size_t bytes)
{
    (void)q;
    (void)dst;
    (void)src;
    (void)bytes;
    return K_LAUNCH;
}

int dev_cuda_get(struct dev_queue *q, void *dst, const void *src, size_t bytes)
{
    return dev_cuda_put(q, dst, src, bytes);
}

int dev_cuda_sync(struct dev_queue *q)
{
    (void)q;
    return K_LAUNCH;
}

int dev_cuda_pace(struct dev_queue *q) { return dev_cuda_sync(q); }

int dev_cuda_graph_begin(struct dev_queue *q, uint64_t key)
{
    (void)key;
    return dev_cuda_sync(q);
}

int dev_cuda_graph_end(struct dev_queue *q) { return dev_cuda_sync(q); }

void dev_cuda_counts(const struct dev_queue *q, struct dev_cuda_counts *out)
{
    (void)q;
    *out = (struct dev_cuda_counts){ 0, 0, 0 };
}

/* Tests ask for it by name. */
bool lt_multiply(struct kctx *k, const struct cuda_product *p)
{
    (void)k;
    (void)p;
    return false;
}
