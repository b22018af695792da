/* kernels/tiles_cuda.cu: products on tensor cores that read pixels where they are (tiles.cuh): with ldmatrix and
 * mma.sync, for capability 8.0 and later. */
#include "kernels/tiles.cuh"

#include <string.h>

enum { TK = 32, STAGES = 4 };

/* ---- the product of two shared tiles ---- */

static __device__ __forceinline__ void mma(const f16 *, float d[4], const uint32_t a[4], const uint32_t b[2])
{
    ptx_mma_k16_f16(d, a, b);
}

static __device__ __forceinline__ void mma(const bf16 *, float d[4], const uint32_t a[4], const uint32_t b[2])
{
    ptx_mma_k16_bf16(d, a, b);
}

/* sum (16 MI, 8 NI) += rows of a x rows of b. a and b are the chunks that this lane reads for ldmatrix in the first 16
 * rows: of row lane%16, chunk lane/16; and of row lane%8 + lane/16*8, chunk lane/8%2. */
template <typename T, int MI, int NI>
static __device__ __forceinline__ void multiply(float sum[MI][NI][4], uint32_t a, uint32_t b,
                                                const unsigned char *stage)
{
    CUDA_UNROLL
    for (int k = 0; k < TK / 16; k++) {
        /* two chunks further through the swizzle: bit 5 of the place */
        const unsigned char *ak = stage + (a ^ k * 32), *bk = stage + (b ^ k * 32);
        uint32_t fa[4], fb[NI + 1][2];

        CUDA_UNROLL
        for (int n = 0; n + 1 < NI; n += 2)
            ptx_ldmatrix_x4(fb[n], bk + n * 8 * TK * 2);
        if (NI % 2)
            ptx_ldmatrix_x2(fb[NI - 1], bk + (NI - 1) * 8 * TK * 2);
        CUDA_UNROLL
        for (int m = 0; m < MI; m++) {
            ptx_ldmatrix_x4(fa, ak + m * 16 * TK * 2);
            CUDA_UNROLL
            for (int n = 0; n < NI; n++)
                mma((const T *)NULL, sum[m][n], fa, fb[n]);
        }
    }
}

/* ---- a tile ---- */

/* Warps are WM x WN; each has MI x NI products of 16x8. Sums leave in two rounds, half of each warp's rows in each. */
template <typename T, int TM, int TN, int WM, int WN, bool WIDE, int BLOCKS>
static __global__ void __launch_bounds__(WM * WN * 32, BLOCKS) tiles_kernel(const __grid_constant__ struct tiles arg)
{
    enum { THREADS = WM * WN * 32, STAGE = (TM + TN) * TK * 2, MI = TM / WM / 16, NI = TN / WN / 8, HALF = MI / 2 };
    enum { STAGED = WM * HALF * 16 * (TN + 8) * 4 };
    CUDA_SHARED_BYTES(shared);
    const struct tiles *t = &arg;
    float *bias = (float *)(shared + STAGES * STAGE);
    struct source *source = (struct source *)(bias + TN);
    const struct task own = task_of(t);
    const int n0 = own.tn * TN, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int wm = warp / WN, wn = warp % WN, ra = lane % 16, rb = lane % 8 + lane / 16 * 8;
    const uint32_t a = (uint32_t)((wm * MI * 16 + ra) * TK * 2 + (lane / 16 ^ swizzle<TK>(ra)) * 16);
    const uint32_t b = (uint32_t)((TM + wn * NI * 8 + rb) * TK * 2 + (lane / 8 % 2 ^ swizzle<TK>(rb)) * 16);
    struct place s = place_of(t, own.from, TK);
    float sum[MI][NI][4];

    static_assert(HALF * 2 == MI && STAGED + TM * sizeof(struct tile_row) <= STAGES * STAGE, "sums leave in halves");
    describe<TM, TN, THREADS>(t, source, bias, (int64_t)own.tm * TM, n0);
    CUDA_UNROLL
    for (int i = 0; i < MI * NI * 4; i++)
        sum[i / 4 / NI][i / 4 % NI][i % 4] = 0;
    CUDA_ROLLED
    for (int k = 1 - STAGES; k < own.n; k++) {
        const int ahead = k + STAGES - 1;

        if (k >= 0) {
            ptx_copy_wait<STAGES - 2>();
            __syncthreads();            /* stage k is there, and stage k - 1 free again */
        }
        if (ahead < own.n) {
            copy_block<TM, TN, TK, THREADS, WIDE>(t, &s, source, shared + ahead % STAGES * STAGE, n0);
            place_next(t, &s, TK);
        }
        ptx_copy_commit();
        if (k >= 0)
            multiply<T, MI, NI>(sum, a, b, shared + k % STAGES * STAGE);
    }
    ptx_copy_wait<0>();
    __syncthreads();
    struct tile_row *row = (struct tile_row *)(shared + STAGED);
    for (int r = (int)threadIdx.x; r < TM; r += THREADS)
        row[r] = tile_row_of(t, (int64_t)own.tm * TM + r);
    CUDA_ROLLED
    for (int round = 0; round < 2; round++) {
        float *staged = (float *)shared;

        stage_sums<TN, HALF, NI>(staged + wm * HALF * 16 * (TN + 8) + wn * NI * 8, sum);
        __syncthreads();
        write_rows<TN, THREADS, WM * HALF * 16, HALF * 16, 2>(t, staged, bias, row, (int64_t)own.tm * TM, n0, own.share,
                                                              round);
        __syncthreads();
        CUDA_UNROLL
        for (int i = 0; i < HALF * NI * 4; i++)
            sum[i / 4 / NI][i / 4 % NI][i % 4] = sum[i / 4 / NI + HALF][i / 4 % NI][i % 4];
    }
}

/* y from partial sums, added in the order of the shares. */
static __global__ void split_kernel(const __grid_constant__ struct tiles arg)
{
    const struct tiles *t = &arg;
    const struct product *p = &t->p;
    const bool glu = p->act == K_ACT_GEGLU;
    const int64_t per = (p->Co + (glu ? 15 : 7)) / (glu ? 16 : 8), Co = p->Co;

    CUDA_EACH(e, t->M * per) {
        const int64_t m = e / per, n = e % per * (glu ? 16 : 8);
        const struct tile_row r = row_of(p, m);
        float sum[16] = { 0 };

        for (int s = 0; s < t->split; s++) {
            const int64_t at = (s * t->M + m) * Co + n;

            add8(sum, t->partial, F32, at, (int)min((int64_t)8, Co - n), Co % 8 == 0);
            if (glu && n + 8 < Co)
                add8(sum + 8, t->partial, F32, at + 8, (int)min((int64_t)8, Co - n - 8), Co % 8 == 0);
        }
        CUDA_UNROLL
        for (int i = 0; i < 16; i++)
            sum[i] = p->alpha * sum[i] + (i < 8 || glu ? bias_of(p, n + i) : 0);
        finish(t, sum, &r, n);
    }
}

/* ---- launching ---- */

static bool aligned16(const void *p, int64_t ld, int64_t size)
{
    return (uintptr_t)p % 16 == 0 && ld * size % 16 == 0;
}

/* True if every part's pixels can be copied 16 bytes at a time. */
static bool wide_parts(const struct product *p)
{
    for (int i = 0; i < p->n_part; i++)
        if (p->part[i].Ci % CHUNK || !aligned16(p->part[i].x, p->part[i].ldx, 2))
            return false;
    return true;
}

static bool part_ok(const struct product_part *q)
{
    return q->H >= 0 && q->W >= 0 && q->Ci >= 0 && q->Cp >= q->Ci && q->Cp % CHUNK == 0 && q->KH > 0 && q->KW > 0
           && q->KH * q->KW <= K_MAX_TAPS && q->stride >= 1 && (uintptr_t)q->w % 16 == 0;
}

static bool product_ok(const struct product *p)
{
    const int64_t most = INT32_MAX;

    if ((p->type != F16 && p->type != BF16) || p->n_part < 1 || p->n_part > 3 || p->B < 0 || p->Ho < 0 || p->Wo < 0
        || p->Co < 0 || p->B > most || p->Ho > most || p->Wo > most || p->Co > most / 2
        || (p->act == K_ACT_GEGLU && p->Co % 2) || p->y_type < F32 || p->y_type >= N_DTYPE)
        return false;
    for (int i = 0; i < p->n_part; i++)
        if (!part_ok(&p->part[i]))
            return false;
    return true;
}

template <typename T, int TM, int TN, int WM, int WN, bool WIDE, int BLOCKS>
static void launch(struct kctx *k, const struct tiles *t)
{
    const size_t bytes = STAGES * (TM + TN) * TK * 2 + TN * sizeof(float)
                         + t->p.n_part * TM * sizeof(struct source);
    const unsigned grid = (unsigned)t->n_m * (unsigned)t->n_n * (unsigned)t->split;

    CUDA_ALLOW_SHARED(k, (tiles_kernel<T, TM, TN, WM, WN, WIDE, BLOCKS>), bytes);
    LAUNCH(k, (tiles_kernel<T, TM, TN, WM, WN, WIDE, BLOCKS>), grid, WM * WN * 32, bytes, *t);
}

template <typename T> static void launch_shape(struct kctx *k, const struct tiles *t, int tile_m, int tile_n, bool wide)
{
    if (!wide)
        launch<T, 128, 64, 4, 2, false, 2>(k, t);
    else if (tile_n == 160)
        launch<T, 128, 160, 2, 4, true, 2>(k, t);
    else if (tile_n == 128)
        launch<T, 128, 128, 2, 4, true, 2>(k, t);
    else if (tile_m == 128)
        launch<T, 128, 64, 4, 2, true, 3>(k, t);
    else
        launch<T, 64, 64, 2, 2, true, 4>(k, t);
}

/* Tiles 64 deep are for wgmma, which is there on one capability if this build has code for it. */
static bool by_wgmma(const struct kctx *k, const struct product_plan *plan)
{
#if defined(HAVE_SM_90A) || !defined(__CUDACC__)
    return plan->tile_k == 64 && cuda_queue(k)->cc == 90;
#else
    (void)k;
    (void)plan;
    return false;
#endif
}

static int64_t blocks_of_k(const struct product *p, int tk)
{
    int64_t n = 0;

    for (int i = 0; i < p->n_part; i++)
        n += p->part[i].KH * p->part[i].KW * ((p->part[i].Ci + tk - 1) / tk);
    return n;
}

/* Sizes that every plan must have. */
static bool plan_ok(const struct product_plan *plan)
{
    const bool m_n = plan->tile_m == 128 ? plan->tile_n == 160 || plan->tile_n == 128 || plan->tile_n == 64
                                         : plan->tile_m == 64 && plan->tile_n == 64;

    return m_n && plan->split >= 1
           && (plan->tile_k == 32 ? plan->stages == 4 : plan->tile_k == 64 && (plan->stages == 3 || plan->stages == 6));
}

int product_tiles(struct kctx *k, const struct product *p, const struct product_plan *plan)
{
    const bool wide = wide_parts(p), glu = p->act == K_ACT_GEGLU, hopper = wide && by_wgmma(k, plan);
    const int tile_m = wide ? plan->tile_m : 128, tile_n = wide ? plan->tile_n : 64;
    const int64_t size = (int64_t)dtype_bytes(p->y_type);
    int64_t n_k, n_m, n_n;
    struct tiles t;

    if (!product_ok(p) || !plan_ok(plan))
        return K_ARG;
    memset(&t, 0, sizeof t);
    t.p = *p;
    t.M = p->B * p->Ho * p->Wo;
    t.split = plan->split;
    t.partial = (float *)k->scratch;
    if (!t.M || p->Co < 1 + glu)
        return K_OK;
    if (plan->split > 1 && (size_t)plan->split * (size_t)(t.M * p->Co) * sizeof(float) > k->scratch_bytes)
        return K_SCRATCH;
    n_k = blocks_of_k(p, hopper ? 64 : TK);
    n_m = (t.M + tile_m - 1) / tile_m;
    n_n = (p->Co + tile_n - 1) / tile_n;
    if (n_k > INT32_MAX || n_n > INT32_MAX / GROUP || n_m > INT32_MAX / (n_n * plan->split))
        return K_ARG;
    t.n_k = (int)n_k;
    t.n_m = (int)n_m;
    t.n_n = (int)n_n;
    t.wide_y = aligned16(p->y, p->ldy, size);
    t.wide_residual = aligned16(p->residual, p->residual_ld, size);
    t.wide_row_add = aligned16(p->row_add, p->row_add_ld, size);
    if (hopper)
        tiles_hopper(k, &t, plan);
    else if (p->type == F16)
        launch_shape<f16>(k, &t, tile_m, tile_n, wide);
    else
        launch_shape<bf16>(k, &t, tile_m, tile_n, wide);
    if (t.split > 1)
        LAUNCH(k, split_kernel, cuda_blocks(t.M * ((p->Co + 7) / 8), 256), 256, 0, t);
    return cuda_launched(k);
}
