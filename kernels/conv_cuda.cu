/* kernels/conv_cuda.cu: convolutions and linear layers: cut into products, each of which goes its way
 * (cuda_product.h). */
#include "kernels/cuda.cuh"

#include "kernels/cuda_product.h"

static int run(struct kctx *k, const struct product *p)
{
    const struct dev_queue *q = cuda_queue(k);
    struct product_plan plan;

    if (product_rows(p) == 0 || p->Co == 0)
        return K_OK;
    if (product_rows(p) > INT32_MAX)
        return K_ARG;
    product_choose(&plan, p, q->cc, q->n_sm, k->scratch_bytes);
    return plan.way == PRODUCT_TILES ? product_tiles(k, p, &plan) : product_lt(k, p, &plan);
}

static int conv(struct kctx *k, const struct kconv *c)
{
    struct product product[4];
    const int n = product_cut(product, c);
    int rc = n < 0 ? n : K_OK;

    for (int i = 0; i < n && !rc; i++)
        rc = run(k, &product[i]);
    return rc;
}

void cuda_fill_conv(struct kern *k)
{
    k->conv = conv;
    if (k->scratch_bytes < product_scratch_bytes())
        k->scratch_bytes = product_scratch_bytes();
}
