/* kernels/elem_cuda.cu: element by element. */
#include "kernels/cuda.cuh"

template <typename T> static __global__ void fill_kernel(T *y, float value, int64_t n)
{
    CUDA_EACH(i, n)
        store(&y[i], value);
}

static int fill(struct kctx *k, void *y, enum dtype type, int64_t n, float value)
{
    if (n > 0)
        CUDA_BY_TYPE(type, T, LAUNCH(k, fill_kernel<T>, cuda_blocks(n, 256), 256, 0, (T *)y, value, n));
    return cuda_launched(k);
}

void cuda_fill_elem(struct kern *k)
{
    k->fill = fill;
}
