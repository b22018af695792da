/* kernels/cuda_ptx.cuh: the instructions that CUDA C has no words for, one inline function each. Layouts of fragments
 * are those of the PTX ISA: in an m16n8 accumulator, lane l holds d[0], d[1] at row l/4, columns 2(l%4) and the next,
 * d[2], d[3] eight rows below. Where another compiler than nvcc reads this, it finds declarations only. */
#ifndef UNICON_KERNELS_CUDA_PTX_CUH
#define UNICON_KERNELS_CUDA_PTX_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#ifndef __CUDACC__

/* defined by whoever stands in for the device */
unsigned ptx_f32_to_f16(float x);               /* rounded to nearest even; the bits */
float ptx_f16_to_f32(unsigned x);
unsigned ptx_pack_f16(float low, float high);   /* two of them in a word */
unsigned ptx_pack_bf16(float low, float high);
float ptx_exp2(float x);
static inline int ptx_again(int x) { return x; }
static inline unsigned char *ptx_again(unsigned char *x) { return x; }
void ptx_copy16(void *shared, const void *global, bool there);
void ptx_copy_commit(void);
void ptx_copy_wait_up_to(int n);
template <int N> static inline void ptx_copy_wait(void) { ptx_copy_wait_up_to(N); }
void ptx_ldmatrix_x4(uint32_t r[4], const void *row);
void ptx_ldmatrix_x2(uint32_t r[2], const void *row);
void ptx_ldmatrix_x4_trans(uint32_t r[4], const void *row);
void ptx_ldmatrix_x2_trans(uint32_t r[2], const void *row);
void ptx_mma_k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void ptx_mma_k16_f16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void ptx_mma_k8_bf16(float d[4], const uint32_t a[2], uint32_t b);
void ptx_mma_k8_f16(float d[4], const uint32_t a[2], uint32_t b);

#else

static __device__ __forceinline__ uint32_t ptx_shared(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ unsigned ptx_f32_to_f16(float x)
{
    unsigned short h;

    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

static __device__ __forceinline__ float ptx_f16_to_f32(unsigned x)
{
    float y;

    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((unsigned short)x));
    return y;
}

/* Two values rounded to nearest even, in one word. */
static __device__ __forceinline__ unsigned ptx_pack_f16(float low, float high)
{
    unsigned w;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
    return w;
}

static __device__ __forceinline__ unsigned ptx_pack_bf16(float low, float high)
{
    unsigned w;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
    return w;
}

/* x, of which the compiler knows nothing: what follows from it is computed again rather than kept in registers. */
static __device__ __forceinline__ int ptx_again(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

static __device__ __forceinline__ unsigned char *ptx_again(unsigned char *x)
{
    asm volatile("" : "+l"(x));
    return x;
}

/* 2^x, results below 2^-126 flushed */
static __device__ __forceinline__ float ptx_exp2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 16 bytes, both sides aligned to 16; zeros where not `there` (global is not read then, but must be an address). */
static __device__ __forceinline__ void ptx_copy16(void *shared, const void *global, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(shared)), "l"(global),
                 "r"(there ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void ptx_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All but the last N groups of this thread's copies have landed. */
template <int N> static __device__ __forceinline__ void ptx_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Four 8x8 matrices of 16-bit values: lanes 8i..8i+7 bring the addresses of matrix i's rows (16 bytes each, aligned);
 * r[i] gets row l/4, columns 2(l%4) and the next of matrix i; transposed: row and column change places. */
static __device__ __forceinline__ void ptx_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(ptx_shared(row)) : "memory");
}

static __device__ __forceinline__ void ptx_ldmatrix_x2(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1])
                 : "r"(ptx_shared(row)) : "memory");
}

static __device__ __forceinline__ void ptx_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(ptx_shared(row)) : "memory");
}

static __device__ __forceinline__ void ptx_ldmatrix_x2_trans(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1])
                 : "r"(ptx_shared(row)) : "memory");
}

/* d (16,8) += a (16,K) b (K,8), f32 sums. a[0]: row l/4, columns 2(l%4); a[1]: eight rows below; a[2], a[3]: the same
 * eight columns on. b[0]: rows 2(l%4) and the next, column l/4; b[1]: eight rows on. */
#define PTX_MMA_K16(name, type)                                                                                     \
    static __device__ __forceinline__ void name(float d[4], const uint32_t a[4], const uint32_t b[2])               \
    {                                                                                                               \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                                 \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                        \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                           \
    }
#define PTX_MMA_K8(name, type)                                                                                      \
    static __device__ __forceinline__ void name(float d[4], const uint32_t a[2], uint32_t b)                        \
    {                                                                                                               \
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type ".f32 "                                  \
                     "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"                                                 \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));              \
    }
PTX_MMA_K16(ptx_mma_k16_bf16, "bf16")
PTX_MMA_K16(ptx_mma_k16_f16, "f16")
PTX_MMA_K8(ptx_mma_k8_bf16, "bf16")
PTX_MMA_K8(ptx_mma_k8_f16, "f16")

#endif
#endif
