/* kernels/gemm_cuda.cu: products of plain matrices. cuBLASLt does those whose operands have one type; a plain kernel
 * does the others, which are rare. */
#include "kernels/cuda.cuh"

extern "C" {
#include "kernels/cuda_gemm.h"
}

enum { TILE = 32, ROWS = 8 };

static const int64_t most_batch = 65535;        /* blocks along y and z; products that cuBLASLt takes at a time */

static __device__ __forceinline__ float load_any(const void *p, enum dtype type, int64_t i)
{
    return type == F32 ? load((const float *)p + i) : type == F16 ? load((const f16 *)p + i)
                                                                  : load((const bf16 *)p + i);
}

static __device__ __forceinline__ void store_any(void *p, enum dtype type, int64_t i, float x)
{
    if (type == F32)
        store((float *)p + i, x);
    else if (type == F16)
        store((f16 *)p + i, x);
    else
        store((bf16 *)p + i, x);
}

/* Elements (r0 + 0..31, c0 + 0..31) of a (rows,columns) matrix stored with rows ld apart, zero outside. */
static __device__ __forceinline__ void take_tile(float *tile, const void *p, enum dtype type, int64_t at, int64_t ld,
                                                 int64_t r0, int64_t c0, int64_t rows, int64_t columns)
{
    const int x = (int)threadIdx.x, y = (int)threadIdx.y;

    for (int i = y; i < TILE; i += ROWS)
        tile[i * (TILE + 1) + x] = r0 + i < rows && c0 + x < columns ? load_any(p, type, at + (r0 + i) * ld + c0 + x)
                                                                     : 0;
}

/* Block (32,8): one tile of 32 x 32 of C, four elements each thread. */
static __device__ void multiply_tile(const struct cuda_product *p, float *ta, float *tb, int64_t q, int64_t m0,
                                     int64_t n0)
{
    const struct kgemm *g = &p->g;
    const int x = (int)threadIdx.x, y = (int)threadIdx.y;
    float sum[TILE / ROWS] = { 0 };

    for (int64_t k0 = 0; k0 < g->K; k0 += TILE) {
        if (g->trans_a)
            take_tile(ta, g->a, g->a_type, q * g->stride_a, g->lda, k0, m0, g->K, g->M);
        else
            take_tile(ta, g->a, g->a_type, q * g->stride_a, g->lda, m0, k0, g->M, g->K);
        if (g->trans_b)
            take_tile(tb, g->b, g->b_type, q * g->stride_b, g->ldb, n0, k0, g->N, g->K);
        else
            take_tile(tb, g->b, g->b_type, q * g->stride_b, g->ldb, k0, n0, g->K, g->N);
        __syncthreads();
        for (int k = 0; k < TILE; k++) {
            const float b = g->trans_b ? tb[x * (TILE + 1) + k] : tb[k * (TILE + 1) + x];

            for (int i = 0; i < TILE / ROWS; i++) {
                const int r = y + i * ROWS;
                sum[i] = fmaf(g->trans_a ? ta[k * (TILE + 1) + r] : ta[r * (TILE + 1) + k], b, sum[i]);
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < TILE / ROWS; i++) {
        const int64_t m = m0 + y + i * ROWS, n = n0 + x, at = q * g->stride_c + m * g->ldc + n;
        float v = g->alpha * sum[i];

        if (m >= g->M || n >= g->N)
            continue;
        if (p->bias)
            v += p->bias[n];
        if (g->beta != 0)
            v += g->beta * (p->old ? load_any(p->old, g->c_type, q * g->stride_c + m * p->ld_old + n)
                                   : load_any(g->c, g->c_type, at));
        store_any(g->c, g->c_type, at, v);
    }
}

static __global__ void multiply_kernel(struct cuda_product p)
{
    CUDA_SHARED(float, ta, TILE * (TILE + 1));
    CUDA_SHARED(float, tb, TILE * (TILE + 1));

    for (int64_t q = blockIdx.z; q < p.g.n; q += gridDim.z)
        for (int64_t n0 = (int64_t)blockIdx.y * TILE; n0 < p.g.N; n0 += (int64_t)gridDim.y * TILE)
            for (int64_t m0 = (int64_t)blockIdx.x * TILE; m0 < p.g.M; m0 += (int64_t)gridDim.x * TILE)
                multiply_tile(&p, ta, tb, q, m0, n0);
}

static unsigned at_most(int64_t n, int64_t most)
{
    return (unsigned)(n < most ? n : most);
}

static void multiply_plain(struct kctx *k, const struct cuda_product *p)
{
    const dim3 grid(at_most((p->g.M + TILE - 1) / TILE, 1 << 20), at_most((p->g.N + TILE - 1) / TILE, most_batch),
                    at_most(p->g.n, most_batch));

    LAUNCH(k, multiply_kernel, grid, dim3(TILE, ROWS), 0, *p);
}

/* The n products that begin at the first-th. */
static struct cuda_product slice(const struct cuda_product *p, int64_t first, int64_t n)
{
    struct cuda_product s = *p;
    struct kgemm *g = &s.g;

    g->n = n;
    g->a = (const char *)g->a + first * g->stride_a * (int64_t)dtype_bytes(g->a_type);
    g->b = (const char *)g->b + first * g->stride_b * (int64_t)dtype_bytes(g->b_type);
    g->c = (char *)g->c + first * g->stride_c * (int64_t)dtype_bytes(g->c_type);
    if (s.old)
        s.old = (const char *)s.old + first * g->stride_c * (int64_t)dtype_bytes(g->c_type);
    return s;
}

extern "C" int cuda_multiply(struct kctx *k, const struct cuda_product *p)
{
    if (p->g.M <= 0 || p->g.N <= 0 || p->g.n <= 0)
        return cuda_launched(k);
    if (k->scratch_bytes < CUDA_WORKSPACE)
        return K_SCRATCH;
    for (int64_t i = 0; i < p->g.n; i += most_batch) {
        const struct cuda_product s = slice(p, i, at_most(p->g.n - i, most_batch));

        if (!lt_multiply(k, &s))
            multiply_plain(k, &s);
    }
    return cuda_launched(k);
}

extern "C" int cuda_gemm(struct kctx *k, const struct kgemm *g)
{
    const struct cuda_product p = { *g, NULL, 0, NULL };

    return cuda_multiply(k, &p);
}

static bool type_ok(enum dtype type)
{
    return type == F32 || type == F16 || type == BF16;
}

static int gemm(struct kctx *k, const struct kgemm *g)
{
    const int64_t width_a = g->trans_a ? g->M : g->K, width_b = g->trans_b ? g->K : g->N;

    if (g->M < 0 || g->N < 0 || g->K < 0 || g->n < 0 || g->lda < width_a || g->ldb < width_b || g->ldc < g->N
        || !type_ok(g->a_type) || !type_ok(g->b_type) || !type_ok(g->c_type))
        return K_ARG;
    return cuda_gemm(k, g);
}

void cuda_fill_gemm(struct kern *k)
{
    k->gemm = gemm;
    if (k->scratch_bytes < CUDA_WORKSPACE)
        k->scratch_bytes = CUDA_WORKSPACE;
}
