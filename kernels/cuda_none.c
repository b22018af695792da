/* kernels/cuda_none.c: the CUDA twin of a build without CUDA. */
#include "kernels/dev.h"

const struct kern *kern_cuda(void)
{
    return NULL;
}

int dev_cuda_probe(struct dev_cuda_info *out, int max, const char **why)
{
    (void)out;
    (void)max;
    if (why)
        *why = "this build has no CUDA";
    return K_LAUNCH;
}
