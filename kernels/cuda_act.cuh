/* kernels/cuda_act.cuh: activations of one f32 value, for kernels that apply them on the way out and for act_cuda.cu.
 * NaN goes through all of them. */
#ifndef UNICON_KERNELS_CUDA_ACT_CUH
#define UNICON_KERNELS_CUDA_ACT_CUH

#include <cuda_runtime.h>

/* x sigmoid(x). Where exp(-x) overflows, the quotient is -0 as it should be; the fast division also gives 0 for
 * divisors from 2^126 on, where the value is below 2^-119. */
static __device__ __forceinline__ float act_silu(float x)
{
    return __fdividef(x, 1.0f + __expf(-x));
}

/* x Phi(x); Hendrycks & Gimpel 2016 */
static __device__ __forceinline__ float act_gelu(float x)
{
    return 0.5f * x * (1.0f + erff(0.70710678f * x));
}

/* x sigmoid(1.702 x): CLIP's */
static __device__ __forceinline__ float act_quick_gelu(float x)
{
    return __fdividef(x, 1.0f + __expf(-1.702f * x));
}

static __device__ __forceinline__ float act_relu(float x)
{
    return x < 0 ? 0 : x;
}

#endif
