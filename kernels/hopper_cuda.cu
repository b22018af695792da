/* kernels/hopper_cuda.cu: the products of tiles.cuh by wgmma, for capability 9.0: each group of four warps has 64
 * pixels and all channels of the tile, and its tensor cores read both operands from shared memory by themselves. Code
 * for other architectures is empty, and the host does not launch it there. */
#include "kernels/tiles.cuh"

enum { TK = 64 };                       /* a row of a tile is 128 bytes, as wide as wgmma's swizzle */

template <int N> static __device__ __forceinline__ void wgmma(const f16 *, float *d, uint64_t a, uint64_t b)
{
    ptx_wgmma_f16<N>(d, a, b);
}

template <int N> static __device__ __forceinline__ void wgmma(const bf16 *, float *d, uint64_t a, uint64_t b)
{
    ptx_wgmma_bf16<N>(d, a, b);
}

/* Queue sum (64,TN) += rows of a x rows of b, all of TK. */
template <typename T, int TN>
static __device__ __forceinline__ void multiply(float *sum, const unsigned char *a, const unsigned char *b)
{
    const uint64_t ta = ptx_wgmma_tile(a), tb = ptx_wgmma_tile(b);

    ptx_wgmma_fence();
    CUDA_UNROLL
    for (int k = 0; k < TK / 16; k++)
        wgmma<TN>((const T *)NULL, sum, ta + 2 * k, tb + 2 * k);
    ptx_wgmma_commit();
}

/* FLYING groups of products, one for each block of K, run on while the next block is waited for: with one block on a
 * multiprocessor that fills the gap; two blocks fill each other's. */
template <typename T, int TM, int TN, int STAGES, int FLYING, int BLOCKS>
static __global__ void __launch_bounds__(TM * 2, BLOCKS) hopper_kernel(const __grid_constant__ struct tiles arg)
{
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    enum { THREADS = TM * 2, STAGE = (TM + TN) * TK * 2, AHEAD = STAGES - 1 - FLYING, NI = TN / 8 };
    enum { STAGED = TM * (TN + 8) * 4 };
    CUDA_SHARED_BYTES(shared);
    const struct tiles *t = &arg;
    float *bias = (float *)(shared + STAGES * STAGE);
    struct source *source = (struct source *)(bias + TN);
    const struct task own = task_of(t);
    const int n0 = own.tn * TN, warp = (int)threadIdx.x / 32;
    struct place s = place_of(t, own.from, TK);
    float sum[1][NI][4];

    static_assert(STAGED + TM * sizeof(struct tile_row) <= STAGES * STAGE, "sums leave at once");
    describe<TM, TN, THREADS>(t, source, bias, (int64_t)own.tm * TM, n0);
    CUDA_UNROLL
    for (int i = 0; i < NI * 4; i++)
        sum[0][i / 4][i % 4] = 0;
    CUDA_ROLLED
    for (int k = -AHEAD; k < own.n; k++) {
        if (k >= 0) {
            unsigned char *stage = shared + k % STAGES * STAGE;

            ptx_copy_wait<AHEAD - 1>();
            ptx_copies_to_wgmma();
            ptx_wgmma_wait<FLYING>();
            __syncthreads();            /* stage k is there, and stage k - 1 - FLYING free again */
            multiply<T, TN>(&sum[0][0][0], stage + warp / 4 * 64 * TK * 2, stage + TM * TK * 2);
        }
        if (k + AHEAD < own.n) {
            copy_block<TM, TN, TK, THREADS, true>(t, &s, source, shared + (k + AHEAD) % STAGES * STAGE, n0);
            place_next(t, &s, TK);
        }
        ptx_copy_commit();
    }
    ptx_copy_wait<0>();
    ptx_wgmma_wait<0>();
    ptx_wgmma_keep<NI * 4>(&sum[0][0][0]);
    __syncthreads();
    struct tile_row *row = (struct tile_row *)(shared + STAGED);
    for (int r = (int)threadIdx.x; r < TM; r += THREADS)
        row[r] = tile_row_of(t, (int64_t)own.tm * TM + r);
    stage_sums<TN, 1, NI>((float *)shared + warp * 16 * (TN + 8), sum);
    __syncthreads();
    write_rows<TN, THREADS, TM, TM, 1>(t, (const float *)shared, bias, row, (int64_t)own.tm * TM, n0, own.share, 0);
#else
    (void)arg;
    __trap();
#endif
}

template <typename T, int TM, int TN, int STAGES, int FLYING, int BLOCKS>
static void launch(struct kctx *k, const struct tiles *t)
{
    const size_t bytes = STAGES * (TM + TN) * TK * 2 + TN * sizeof(float) + t->p.n_part * TM * sizeof(struct source);
    const unsigned grid = (unsigned)t->n_m * (unsigned)t->n_n * (unsigned)t->split;

    CUDA_ALLOW_SHARED(k, (hopper_kernel<T, TM, TN, STAGES, FLYING, BLOCKS>), bytes);
    LAUNCH(k, (hopper_kernel<T, TM, TN, STAGES, FLYING, BLOCKS>), grid, TM * 2, bytes, *t);
}

template <typename T, int STAGES, int FLYING, int BLOCKS>
static void launch_shape(struct kctx *k, const struct tiles *t, int tile_m, int tile_n)
{
    if (tile_n == 160)
        launch<T, 128, 160, STAGES, FLYING, BLOCKS>(k, t);
    else if (tile_n == 128)
        launch<T, 128, 128, STAGES, FLYING, BLOCKS>(k, t);
    else if (tile_m == 128)
        launch<T, 128, 64, STAGES, FLYING, BLOCKS>(k, t);
    else
        launch<T, 64, 64, STAGES, FLYING, BLOCKS>(k, t);
}

void tiles_hopper(struct kctx *k, const struct tiles *t, const struct product_plan *plan)
{
    if (t->p.type == F16 && plan->stages == 3)
        launch_shape<f16, 3, 0, 2>(k, t, plan->tile_m, plan->tile_n);
    else if (t->p.type == F16)
        launch_shape<f16, 6, 1, 1>(k, t, plan->tile_m, plan->tile_n);
    else if (plan->stages == 3)
        launch_shape<bf16, 3, 0, 2>(k, t, plan->tile_m, plan->tile_n);
    else
        launch_shape<bf16, 6, 1, 1>(k, t, plan->tile_m, plan->tile_n);
}
