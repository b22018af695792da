/* kernels/resample_cuda.cu: to be written. */
#include "kernels/cuda.cuh"

void cuda_fill_resample(struct kern *k)
{
    (void)k;
}
