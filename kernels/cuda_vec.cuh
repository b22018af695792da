/* kernels/cuda_vec.cuh: V neighbouring elements of a storage type as V floats, by accesses as wide as they go. V is 1,
 * or 4 or 8 with addresses that are multiples of 16 bytes (of 8 for four 16-bit elements).
 *
 *     template <typename T, int V> static __global__ void scale_kernel(T *y, const T *x, float a, int64_t n)
 *     {
 *         CUDA_EACH_VEC(i, n, V) {
 *             float v[V];
 *             load_vec<V>(v, x + i);
 *             ...
 *             store_vec<V>(y + i, v);
 *         }
 *         ... the n % V elements at the end, one by one
 *     }
 *     ...
 *     CUDA_BY_VEC(cuda_aligned(y, x), cuda_vec<T>, V, LAUNCH(k, (scale_kernel<T, V>), ...)) */
#ifndef UNICON_KERNELS_CUDA_VEC_CUH
#define UNICON_KERNELS_CUDA_VEC_CUH

#include "kernels/cuda.cuh"

/* Elements of T in 16 bytes. */
template <typename T> constexpr int cuda_vec = 16 / (int)sizeof(T);

static __device__ __forceinline__ void load_pair(float v[2], const f16 *, unsigned bits)
{
    v[0] = ptx_f16_to_f32(bits & 0xffff);
    v[1] = ptx_f16_to_f32(bits >> 16);
}

static __device__ __forceinline__ void load_pair(float v[2], const bf16 *, unsigned bits)
{
    v[0] = __uint_as_float(bits << 16);
    v[1] = __uint_as_float(bits & 0xffff0000u);
}

static __device__ __forceinline__ unsigned pair_bits(const f16 *, const float v[2])
{
    return ptx_pack_f16(v[0], v[1]);
}

static __device__ __forceinline__ unsigned pair_bits(const bf16 *, const float v[2])
{
    return ptx_pack_bf16(v[0], v[1]);
}

template <int V, typename T> static __device__ __forceinline__ void load_vec(float *v, const T *x)
{
    if constexpr (V == 1) {
        v[0] = load(x);
    } else if constexpr (sizeof(T) == 4) {
        for (int i = 0; i < V; i += 4) {
            const float4 q = *(const float4 *)(x + i);
            v[i] = q.x, v[i + 1] = q.y, v[i + 2] = q.z, v[i + 3] = q.w;
        }
    } else if constexpr (V == 4) {
        const uint2 q = *(const uint2 *)x;
        load_pair(v, x, q.x), load_pair(v + 2, x, q.y);
    } else {
        const uint4 q = *(const uint4 *)x;
        load_pair(v, x, q.x), load_pair(v + 2, x, q.y), load_pair(v + 4, x, q.z), load_pair(v + 6, x, q.w);
    }
}

template <int V, typename T> static __device__ __forceinline__ void store_vec(T *y, const float *v)
{
    if constexpr (V == 1) {
        store(y, v[0]);
    } else if constexpr (sizeof(T) == 4) {
        for (int i = 0; i < V; i += 4)
            *(float4 *)(y + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    } else if constexpr (V == 4) {
        *(uint2 *)y = make_uint2(pair_bits(y, v), pair_bits(y, v + 2));
    } else {
        *(uint4 *)y = make_uint4(pair_bits(y, v), pair_bits(y, v + 2), pair_bits(y, v + 4), pair_bits(y, v + 6));
    }
}

/* i is the first element of each whole vector. */
#define CUDA_EACH_VEC(i, n, V)                                                                                      \
    for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * (V); i + (V) <= (n);                        \
         i += (int64_t)gridDim.x * blockDim.x * (V))

/* Run STATEMENT with V standing for `width`, a constant, if `wide`, and for 1 otherwise. */
#define CUDA_BY_VEC(wide, width, V, ...)                                                                               \
    do {                                                                                                            \
        if (wide) {                                                                                                 \
            constexpr int V = width;                                                                                \
            __VA_ARGS__;                                                                                            \
        } else {                                                                                                    \
            constexpr int V = 1;                                                                                    \
            __VA_ARGS__;                                                                                            \
        }                                                                                                           \
    } while (0)

/* Are all of these multiples of 16? NULL is. */
static inline bool cuda_aligned(const void *a, const void *b = NULL, const void *c = NULL)
{
    return (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) & 15) == 0;
}

#endif
