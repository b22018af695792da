/* kernels/cuda.cuh: what the files of the CUDA twin share: storage types, launching, shared memory, sums in a fixed
 * order. Private to kernels/.
 *
 *     template <typename T> static __global__ void scale_kernel(T *y, const T *x, float a, int64_t n)
 *     {
 *         CUDA_EACH(i, n)
 *             store(&y[i], a * load(&x[i]));
 *     }
 *     ...
 *     CUDA_BY_TYPE(type, T, LAUNCH(k, scale_kernel<T>, cuda_blocks(n, 256), 256, 0, (T *)y, (const T *)x, a, n));
 *     return cuda_launched(k);
 *
 * These files are also read by the host's C++ compiler, where tests/emu stands in for the device. So that it can:
 *  - kernels are launched by LAUNCH only, and are `static __global__ void`
 *  - shared memory is declared by CUDA_SHARED and CUDA_SHARED_BYTES, at the top of a kernel
 *  - instructions in PTX stand in cuda_ptx.cuh
 *  - whatever is wider than its type (uint4 for eight 16-bit values) is only read where the address allows it  */
#ifndef UNICON_KERNELS_CUDA_CUH
#define UNICON_KERNELS_CUDA_CUH

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

extern "C" {
#include "kernels/kern.h"
}
#include "kernels/cuda_ptx.cuh"
#include "kernels/cuda_queue.h"

/* ---- storage types ---- */

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

static __device__ __forceinline__ float load(const float *p) { return *p; }
static __device__ __forceinline__ float load(const f16 *p) { return ptx_f16_to_f32(p->bits); }
static __device__ __forceinline__ float load(const bf16 *p) { return __uint_as_float((unsigned)p->bits << 16); }

/* To nearest, ties to even; NaN stays NaN. */
static __device__ __forceinline__ unsigned bf16_bits(float x)
{
    const unsigned u = __float_as_uint(x);

    return (u & 0x7fffffffu) > 0x7f800000u ? u >> 16 | 64 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static __device__ __forceinline__ void store(float *p, float x) { *p = x; }
static __device__ __forceinline__ void store(f16 *p, float x) { p->bits = (uint16_t)ptx_f32_to_f16(x); }
static __device__ __forceinline__ void store(bf16 *p, float x) { p->bits = (uint16_t)bf16_bits(x); }

/* x as it would be read back */
template <typename T> static __device__ __forceinline__ float rounded(float x)
{
    T t;

    store(&t, x);
    return load(&t);
}

/* Run STATEMENT with T standing for the storage type; an unknown one makes the kernel call K_ARG. */
#define CUDA_BY_TYPE(type, T, ...)                                                                                  \
    do {                                                                                                            \
        switch (type) {                                                                                             \
        case F32: { using T = float; __VA_ARGS__; break; }                                                           \
        case F16: { using T = struct f16; __VA_ARGS__; break; }                                                     \
        case BF16: { using T = struct bf16; __VA_ARGS__; break; }                                                   \
        default: return K_ARG;                                                                                      \
        }                                                                                                           \
    } while (0)

/* ---- launching ---- */

/* Queue a kernel on the context's stream. The kernel in parentheses if its name has a comma. */
#ifdef __CUDACC__
#define LAUNCH(k, kernel, grid, block, shared_bytes, ...)                                                           \
    do {                                                                                                            \
        cuda_queue(k)->n_launch++;                                                                                  \
        kernel<<<(grid), (block), (shared_bytes), cuda_queue(k)->stream>>>(__VA_ARGS__);                            \
        cuda_check_launch(cuda_queue(k), #kernel);                                                                  \
    } while (0)
#else
#define LAUNCH(k, kernel, grid, block, shared_bytes, ...)                                                           \
    do {                                                                                                            \
        cuda_queue(k)->n_launch++;                                                                                  \
        emu_launch(cuda_queue(k)->stream, #kernel, (grid), (block), (shared_bytes), kernel, __VA_ARGS__);           \
        cuda_check_launch(cuda_queue(k), #kernel);                                                                  \
    } while (0)
#endif

static inline struct dev_queue *cuda_queue(const struct kctx *k) { return (struct dev_queue *)k->stream; }

/* K_OK, or K_LAUNCH if a launch or a call of a library failed since the last time. */
static inline int cuda_launched(const struct kctx *k) { return cuda_take_failure(cuda_queue(k)); }

/* Blocks for n elements, one each thread, at most a few waves: kernels stride by the grid (CUDA_EACH). */
static inline unsigned cuda_blocks(int64_t n, int block)
{
    const int64_t want = (n + block - 1) / block, most = 132 * 32;

    return (unsigned)(want < 1 ? 1 : want < most ? want : most);
}

#define CUDA_EACH(i, n)                                                                                             \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

/* Before a loop over arrays that are to be registers; before one that is better kept as it is. */
#ifdef __CUDACC__
#define CUDA_UNROLL _Pragma("unroll")
#define CUDA_ROLLED _Pragma("unroll 1")
#else
#define CUDA_UNROLL
#define CUDA_ROLLED
#endif

/* A kernel that wants more than 48 KiB of shared memory, and all there is for blocks side by side, says so before
 * launch: the runtime is asked where it was not asked for so much on this device. */
#define CUDA_ALLOW_SHARED(k, kernel, bytes)                                                                         \
    do {                                                                                                            \
        static size_t had[CUDA_N_DEVICE];                                                                           \
        struct dev_queue *asks = cuda_queue(k);                                                                     \
                                                                                                                    \
        if ((bytes) > had[asks->device % CUDA_N_DEVICE]                                                             \
            && cuda_check_call(asks, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,      \
                                                          (int)(bytes)), #kernel)                                   \
            && cuda_check_call(asks, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,   \
                                                          100), #kernel))                                           \
            had[asks->device % CUDA_N_DEVICE] = asks->device < CUDA_N_DEVICE ? (bytes) : 0;                         \
    } while (0)

/* ---- shared memory ---- */

#ifdef __CUDACC__
#define CUDA_SHARED(type, name, n) __shared__ __align__(16) type name[n]
#define CUDA_SHARED_BYTES(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#define CUDA_SHARED(type, name, n) type(&name)[n] = *(type(*)[n])emu_shared(sizeof(type) * (n), 16)
#define CUDA_SHARED_BYTES(name) unsigned char *const name = (unsigned char *)emu_dynamic_shared()
#endif

/* ---- sums in an order that depends on sizes alone ---- */

/* Over the 32 lanes, the same value in all of them. */
static __device__ __forceinline__ float warp_sum(float v)
{
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

static __device__ __forceinline__ float warp_max(float v)
{
    for (int d = 16; d > 0; d /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}

/* Over a block of whole warps, the same value in all threads. space: 32 floats of shared memory, free again after the
 * call (there is a barrier at its end). */
static __device__ __forceinline__ float block_sum(float v, float *space)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, n = ((int)blockDim.x + 31) / 32;
    float all;

    v = warp_sum(v);
    if (lane == 0)
        space[warp] = v;
    __syncthreads();
    all = warp_sum(lane < n ? space[lane] : 0);
    __syncthreads();
    return all;
}

static __device__ __forceinline__ float block_max(float v, float *space)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, n = ((int)blockDim.x + 31) / 32;
    float all;

    v = warp_max(v);
    if (lane == 0)
        space[warp] = v;
    __syncthreads();
    all = warp_max(lane < n ? space[lane] : -INFINITY);
    __syncthreads();
    return all;
}

/* ---- members of the twin, by the file that holds them ---- */

void cuda_fill_elem(struct kern *k);
void cuda_fill_act(struct kern *k);
void cuda_fill_norm(struct kern *k);
void cuda_fill_resample(struct kern *k);
void cuda_fill_reduce(struct kern *k);
void cuda_fill_random(struct kern *k);
void cuda_fill_attn(struct kern *k);
void cuda_fill_pack(struct kern *k);
void cuda_fill_conv(struct kern *k);
void cuda_fill_gemm(struct kern *k);

#endif
