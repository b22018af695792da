/* kernels/tiles_cuda.cu: to be written. */
#include "kernels/cuda.cuh"

#include "kernels/cuda_product.h"

int product_tiles(struct kctx *k, const struct product *p, const struct product_plan *plan)
{
    (void)k;
    (void)p;
    (void)plan;
    return K_MISSING;
}
