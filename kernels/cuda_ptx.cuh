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
uint64_t ptx_wgmma_tile(const void *shared);
void ptx_wgmma(float *d, int n, uint64_t a, uint64_t b, bool bf16);
template <int N> static inline void ptx_wgmma_bf16(float *d, uint64_t a, uint64_t b) { ptx_wgmma(d, N, a, b, true); }
template <int N> static inline void ptx_wgmma_f16(float *d, uint64_t a, uint64_t b) { ptx_wgmma(d, N, a, b, false); }
void ptx_wgmma_fence(void);
void ptx_wgmma_commit(void);
void ptx_wgmma_wait_up_to(int n);
template <int N> static inline void ptx_wgmma_wait(void) { ptx_wgmma_wait_up_to(N); }
template <int N> static inline void ptx_wgmma_keep(float *) {}
void ptx_copies_to_wgmma(void);

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

/* ---- wgmma: capability 9.0 alone, and there only code compiled for sm_90a ----
 * Four warps multiply a tile (64,16) by a tile (N,16), both in shared memory with K inside, into accumulators (64,N):
 * warp w has rows 16w .. 16w + 15 as N / 8 accumulators m16n8. Rows of a tile are 128 bytes, 64 values of which 16 are
 * used; 16-byte chunk c of row r lies at place c ^ r % 8, and a tile's first row at a multiple of 1024. PTX ISA 9.0,
 * "asynchronous warpgroup level matrix instructions", with their matrix descriptors. */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define PTX_ONLY_90A(statement) statement
#else
#define PTX_ONLY_90A(statement) __trap()
#endif

/* Names a tile; + 2 moves on by 16 of its 64 columns. Rows in groups of 8, 1024 bytes from one to the next; swizzled by
 * 128 bytes. */
static __device__ __forceinline__ uint64_t ptx_wgmma_tile(const void *shared)
{
    return (uint64_t)((ptx_shared(shared) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32
           | (uint64_t)1 << 62;
}

#define PTX_R32                                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                        \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PTX_R64                                                                                                     \
    PTX_R32                                                                                                         \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                             \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define PTX_R80 PTX_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define PTX_F8(i)                                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),     \
        "+f"(d[i + 7])
#define PTX_F32(i) PTX_F8(i), PTX_F8(i + 8), PTX_F8(i + 16), PTX_F8(i + 24)
#define PTX_WGMMA_N(n, type, list, a, b, ...)                                                                       \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type \
                 " {" list "}, %" a ", %" b ", p, 1, 1, 0, 0;}" : __VA_ARGS__ : "l"(ta), "l"(tb))

/* d += tile a x tile b, later: d may not be touched before it is waited for. */
#define PTX_WGMMA(name, type)                                                                                       \
    template <int N> static __device__ __forceinline__ void name(float *d, uint64_t ta, uint64_t tb)                \
    {                                                                                                               \
        static_assert(N == 64 || N == 128 || N == 160, "sizes that are used");                                      \
        if constexpr (N == 64)                                                                                      \
            PTX_ONLY_90A(PTX_WGMMA_N("64", type, PTX_R32, "32", "33", PTX_F32(0)));                                 \
        else if constexpr (N == 128)                                                                                \
            PTX_ONLY_90A(PTX_WGMMA_N("128", type, PTX_R64, "64", "65", PTX_F32(0), PTX_F32(32)));                   \
        else                                                                                                        \
            PTX_ONLY_90A(PTX_WGMMA_N("160", type, PTX_R80, "80", "81", PTX_F32(0), PTX_F32(32), PTX_F8(64),         \
                                     PTX_F8(72)));                                                                  \
        (void)d, (void)ta, (void)tb;                                                                                \
    }
PTX_WGMMA(ptx_wgmma_bf16, "bf16")
PTX_WGMMA(ptx_wgmma_f16, "f16")

/* Before the first product, and before those that follow any other use of their accumulators. */
static __device__ __forceinline__ void ptx_wgmma_fence(void)
{
    PTX_ONLY_90A(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"));
}

static __device__ __forceinline__ void ptx_wgmma_commit(void)
{
    PTX_ONLY_90A(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"));
}

/* All but the last n groups of this warpgroup's products are done. */
template <int n> static __device__ __forceinline__ void ptx_wgmma_wait(void)
{
    PTX_ONLY_90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory"));
}

/* The compiler may not move uses of d (N) to before this: it does not know that waiting has changed them. */
template <int N> static __device__ __forceinline__ void ptx_wgmma_keep(float *d)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* What this thread has stored or copied to shared memory may be read by wgmma after the next barrier. */
static __device__ __forceinline__ void ptx_copies_to_wgmma(void)
{
    PTX_ONLY_90A(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}

#endif
#endif
