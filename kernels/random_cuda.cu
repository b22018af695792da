/* kernels/random_cuda.cu: to be written. */
#include "kernels/cuda.cuh"

void cuda_fill_random(struct kern *k)
{
    (void)k;
}
