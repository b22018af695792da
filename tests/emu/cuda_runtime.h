/* tests/emu/cuda_runtime.h: the part of CUDA that unicon uses, for the host's C++ compiler, so that the CUDA twin can
 * be run, checked and debugged where there is no device. Found in place of the toolkit's header by -Itests/emu.
 *
 * It is as strict as a device may be:
 *  - threads of a block are fibers that run one after the other from barrier to barrier, in an order that
 *    UNICON_EMU_ORDER chooses (0 forward, 1 backward, else shuffled by that seed): a missing barrier changes results
 *  - a barrier that not all living threads reach ends the program with the kernel's name
 *  - queued work runs only when the host waits for it, so that what the host reads, frees or changes too early is wrong
 *  - device memory cannot be touched by the host: outside kernels and copies its pages have no access
 *  - shared memory and what cudaMalloc gives are filled with NaN (mapped memory is not); asynchronous copies land only
 *    when they are waited for, or at once where the order is shuffled
 *  - launches are checked against the limits of a device
 * It is not a model of time. */
#ifndef UNICON_TESTS_EMU_CUDA_RUNTIME_H
#define UNICON_TESTS_EMU_CUDA_RUNTIME_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define UNICON_EMU 1
#define CUDART_VERSION 13000

/* ---- the language ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{ x, y, z, w }; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2{ x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return float4{ x, y, z, w }; }
static inline float2 make_float2(float x, float y) { return float2{ x, y }; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

void emu_barrier(int id, int count);            /* count 0: all threads of the block */
/* Lanes in `mask` meet; the last to come runs all(lane), lane[i] being what lane i brought, NULL where not in mask. */
void emu_warp(unsigned mask, void *mine, void (*all)(void *const lane[32], unsigned mask));
void *emu_shared(size_t bytes, size_t align);   /* the calling thread's next array of the block's shared memory */
void *emu_dynamic_shared(void);
[[noreturn]] void emu_die(const char *what);
int emu_lane(void);

static inline void __syncthreads(void) { emu_barrier(0, 0); }
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __syncwarp(unsigned mask = 0xffffffffu) { emu_warp(mask, NULL, NULL); }

struct emu_shuffle { uint64_t in, out; int from; };
void emu_shuffle_all(void *const lane[32], unsigned mask);
template <typename T> static inline T emu_shuffle_from(unsigned mask, T v, int from)
{
    struct emu_shuffle s = { 0, 0, from };

    static_assert(sizeof(T) <= 8, "shuffles carry up to 8 bytes");
    memcpy(&s.in, &v, sizeof v);
    emu_warp(mask, &s, emu_shuffle_all);
    memcpy(&v, &s.out, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_sync(unsigned m, T v, int from, int width = 32)
{
    return emu_shuffle_from(m, v, (emu_lane() & ~(width - 1)) | (from & (width - 1)));
}
template <typename T> static inline T __shfl_xor_sync(unsigned m, T v, int x, int width = 32)
{
    (void)width;
    return emu_shuffle_from(m, v, emu_lane() ^ x);
}
template <typename T> static inline T __shfl_down_sync(unsigned m, T v, int by, int width = 32)
{
    const int to = emu_lane() + by;

    return emu_shuffle_from(m, v, (emu_lane() & (width - 1)) + by < width ? to : emu_lane());
}
template <typename T> static inline T __shfl_up_sync(unsigned m, T v, int by, int width = 32)
{
    return emu_shuffle_from(m, v, (emu_lane() & (width - 1)) - by >= 0 ? emu_lane() - by : emu_lane());
}
unsigned __ballot_sync(unsigned mask, int p);
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

template <typename T> static inline T __ldg(const T *p) { return *p; }
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b) { return a / b; }
/* rounded twice, once of 53 bits: __fmaf_rn is exact where it matters, and slow */
static inline float emu_fmaf(float a, float b, float c) { return (float)((double)a * b + c); }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
#define fmaf(a, b, c) emu_fmaf(a, b, c)
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
static inline int __float_as_int(float x) { int i; memcpy(&i, &x, 4); return i; }
static inline unsigned __float_as_uint(float x) { unsigned i; memcpy(&i, &x, 4); return i; }
static inline float __int_as_float(int i) { float x; memcpy(&x, &i, 4); return x; }
static inline float __uint_as_float(unsigned i) { float x; memcpy(&x, &i, 4); return x; }
static inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline void __trap(void) { emu_die("__trap"); }
static inline size_t __cvta_generic_to_shared(const void *p) { return (size_t)p; }

/* ---- the runtime ---- */

typedef enum {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101, cudaErrorNotReady = 600, cudaErrorUnknown = 999,
    cudaErrorGraphExecUpdateFailure = 910, cudaErrorNotSupported = 801
} cudaError_t;
typedef struct emu_stream *cudaStream_t;
typedef struct emu_event *cudaEvent_t;
typedef struct emu_graph *cudaGraph_t;
typedef struct emu_graph_exec *cudaGraphExec_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaEventDefault = 0, cudaHostAllocDefault = 0 };
enum { cudaEnableDefault = 0 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int l2CacheSize;
};
typedef struct { int result; } cudaGraphExecUpdateResultInfo;
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
    enum cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaGetDevice(int *d);
cudaError_t cudaSetDevice(int d);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d);
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaDriverGetVersion(int *v);
cudaError_t cudaRuntimeGetVersion(int *v);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphGetNodes(cudaGraph_t g, void **nodes, size_t *n);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t x, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info);
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **fn, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *found);
cudaError_t emu_allow_shared(const void *kernel, int bytes);
template <typename F> static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute what, int value)
{
    return what == cudaFuncAttributeMaxDynamicSharedMemorySize ? emu_allow_shared((const void *)kernel, value)
                                                               : cudaSuccess;
}

/* ---- launching: arguments are copied when the launch is queued ---- */

void emu_queue_kernel(cudaStream_t s, const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                      std::function<void()> body);
template <typename... P, typename... A>
static inline void emu_launch(cudaStream_t s, const char *name, dim3 grid, dim3 block, size_t shared,
                              void (*kernel)(P...), A... args)
{
    std::tuple<typename std::decay<P>::type...> own(args...);

    emu_queue_kernel(s, name, (const void *)kernel, grid, block, shared, [kernel, own] { std::apply(kernel, own); });
}
/* Any other work in a stream's order, with access to device memory: what the emulated libraries do. */
void emu_queue_work(cudaStream_t s, const char *name, std::function<void()> work);

#endif
