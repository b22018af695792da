/* kernels/pack_cuda.cu: to be written. */
#include "kernels/cuda.cuh"

void cuda_fill_pack(struct kern *k)
{
    (void)k;
}
