/* kernels/attn_flash_cuda.cu: attention of 16-bit types on tensor cores with a running softmax; Dao 2023
 * (FlashAttention-2).
 *
 * A block has some queries of one head, 16 or 32 of them to each of its warps, in registers. Tiles of keys and values
 * come to shared memory by asynchronous copies, the next while one is used. For every STEP keys a warp computes
 *
 *     S = Q K^T    P = 2^(c S - c top)    l += rows of P    O += P V           c = scale * log2(e)
 *
 * in the accumulators' layout, which P, rounded to 16 bits, shares with the left operand of the second product.
 * `top` is any bound of a row's scores that keeps P in range, so it is raised, and O and l are scaled down, only when a
 * row's scores exceed it by more than 2^8: seldom after the first keys, and then for rows of their own. A query's bits
 * depend on its own row, K and V alone.
 *
 * DP is D rounded up to a size that there is a kernel for; what lies between is read as zeros. A row of a tile takes an
 * odd number of 16-byte chunks, so that eight rows lie in different banks. */
#include "kernels/cuda.cuh"
#include "kernels/cuda_attn.h"

enum { WARPS = 4, THREADS = 32 * WARPS, STEP = 32, N8 = STEP / 8 };

struct call {
    const uint16_t *q, *k, *v;
    uint16_t *o;
    int64_t ldq, ldk, ldv, ldo;
    float *lse;
    int N, Tq, Tk, D;
    float c, slack;                     /* slack: 8 / c */
    bool causal;
};

/* ---- one name for both types ---- */

template <typename T> static __device__ __forceinline__ uint32_t pair(float low, float high);
template <> __device__ __forceinline__ uint32_t pair<f16>(float low, float high) { return ptx_pack_f16(low, high); }
template <> __device__ __forceinline__ uint32_t pair<bf16>(float low, float high) { return ptx_pack_bf16(low, high); }

template <typename T> static __device__ __forceinline__ void mma_k16(float *d, const uint32_t *a, const uint32_t *b);
template <> __device__ __forceinline__ void mma_k16<f16>(float *d, const uint32_t *a, const uint32_t *b)
{
    ptx_mma_k16_f16(d, a, b);
}
template <> __device__ __forceinline__ void mma_k16<bf16>(float *d, const uint32_t *a, const uint32_t *b)
{
    ptx_mma_k16_bf16(d, a, b);
}

template <typename T> static __device__ __forceinline__ void mma_k8(float *d, const uint32_t *a, uint32_t b);
template <> __device__ __forceinline__ void mma_k8<f16>(float *d, const uint32_t *a, uint32_t b)
{
    ptx_mma_k8_f16(d, a, b);
}
template <> __device__ __forceinline__ void mma_k8<bf16>(float *d, const uint32_t *a, uint32_t b)
{
    ptx_mma_k8_bf16(d, a, b);
}

/* ---- a warp's registers ---- */

/* MT groups of 16 queries. A lane holds two rows of each, l/4 and l/4 + 8, and of 8 columns 2(l%4) and the next. */
template <int DP, int MT> struct rows {
    uint32_t q[MT][DP / 8][2];          /* by chunk of 8 columns and row: two neighbours are an operand of 16 */
    float o[MT][DP / 8][4];
    float top[MT][2], sum[MT][2];       /* sum: of the lane's own columns */
};

template <int DP> static __host__ __device__ constexpr int pitch(void) { return (DP / 8 | 1) * 16; }

/* The warp's first query. */
template <int MT> static __device__ __forceinline__ int my_first(void)
{
    return ((int)blockIdx.x * WARPS + ptx_again((int)threadIdx.x) / 32) * (MT * 16);
}

/* Queries from `first` on; rows behind the last and columns behind D are zeros. */
template <int DP, int MT>
static __device__ __forceinline__ void read_queries(struct rows<DP, MT> *w, const struct call *a, int first)
{
    const int lane = (int)(threadIdx.x % 32);
    const uint16_t *const q = a->q + (int64_t)blockIdx.z * a->Tq * a->ldq + (int64_t)blockIdx.y * a->D + lane % 4 * 2;

    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int r = 0; r < 2; r++) {
            const int row = first + 16 * m + 8 * r + lane / 4, width = row < a->Tq ? a->D : 0;
            const uint32_t *const from = (const uint32_t *)(q + row * a->ldq);

            CUDA_UNROLL
            for (int c = 0; c < DP / 8; c++)
                w->q[m][c][r] = 8 * c < width ? from[4 * c] : 0;
            w->top[m][r] = -INFINITY;
            w->sum[m][r] = 0;
        }
    CUDA_UNROLL
    for (int i = 0; i < MT * (DP / 8) * 4; i++)
        w->o[i / 4 / (DP / 8)][i / 4 % (DP / 8)][i % 4] = 0;
}

/* KEYS rows of K and of V from `key` on, those before `end`. A thread copies one chunk of every ROWS-th row. */
template <int DP, int KEYS>
static __device__ __forceinline__ void copy_tile(unsigned char *shared, const struct call *a, int key, int end)
{
    enum { CHUNKS = DP / 8, ROWS = THREADS / CHUNKS };
    const int64_t row0 = (int64_t)blockIdx.z * a->Tk, column = (int64_t)blockIdx.y * a->D;
    const char *const k = (const char *)(a->k + row0 * a->ldk + column);
    const char *const v = (const char *)(a->v + row0 * a->ldv + column);
    const unsigned k_row = 2 * (unsigned)a->ldk, v_row = 2 * (unsigned)a->ldv;     /* bytes, as what follows */
    const unsigned thread = (unsigned)ptx_again((int)threadIdx.x), row = thread / CHUNKS, c = thread % CHUNKS;
    const int left = (int)c * 8 < a->D ? end - key - (int)row : 0;
    unsigned k_at = ((unsigned)key + row) * k_row + 16 * c, v_at = ((unsigned)key + row) * v_row + 16 * c;

    if (row < ROWS) {
        unsigned char *to = shared + ((unsigned)key % (2 * KEYS) + row) * pitch<DP>() + 16 * c;

        CUDA_UNROLL
        for (int i = 0; i < KEYS; i += ROWS) {
            if (KEYS - i >= ROWS || (int)row < KEYS - i) {
                ptx_copy16(to, k + k_at, i < left);
                ptx_copy16(to + 2 * KEYS * pitch<DP>(), v + v_at, i < left);
            }
            to += ROWS * pitch<DP>();
            k_at += ROWS * k_row;
            v_at += ROWS * v_row;
        }
    }
    ptx_copy_commit();
}

/* ---- STEP keys ---- */

/* S = Q K^T. k: the step's first row of K. */
template <typename T, int DP, int MT>
static __device__ __forceinline__ void scores(float (*s)[N8][4], const struct rows<DP, MT> *w, const unsigned char *k)
{
    const int lane = (int)(threadIdx.x % 32);
    const unsigned char *const row = k + ptx_again((lane / 16 * 8 + lane % 8) * pitch<DP>() + lane / 8 % 2 * 16);
    uint32_t b[4];

    CUDA_UNROLL
    for (int i = 0; i < MT * N8 * 4; i++)
        s[i / 4 / N8][i / 4 % N8][i % 4] = 0;
    CUDA_UNROLL
    for (int c = 0; c + 1 < DP / 8; c += 2)
        CUDA_UNROLL
        for (int n = 0; n < N8; n += 2) {           /* 16 keys, 16 columns */
            ptx_ldmatrix_x4(b, row + 8 * n * pitch<DP>() + 16 * c);
            CUDA_UNROLL
            for (int m = 0; m < 2 * MT; m++)
                mma_k16<T>(s[m / 2][n + m % 2], w->q[m / 2][c], &b[m % 2 * 2]);
        }
    if (DP / 8 % 2 == 0)
        return;
    ptx_ldmatrix_x4(b, k + lane * pitch<DP>() + DP * 2 - 16);
    CUDA_UNROLL
    for (int m = 0; m < MT * N8; m++)
        mma_k8<T>(s[m / N8][m % N8], w->q[m / N8][DP / 8 - 1], b[m % N8]);
}

/* Hide keys that do not exist, or lie behind the query. key: the step's first. */
template <int MT>
static __device__ __forceinline__ void hide(float (*s)[N8][4], int key, const struct call *a)
{
    const int lane = ptx_again((int)threadIdx.x) & 31, row = my_first<MT>() + lane / 4;

    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int i = 0; i < N8 * 4; i++) {
            const int last = a->causal ? row + 16 * m + i % 4 / 2 * 8 : a->Tk - 1;

            if (key + i / 4 * 8 + lane % 4 * 2 + i % 2 > last)
                s[m][i / 4][i % 4] = -INFINITY;
        }
}

/* Rows whose scores went over `top` by more than the slack get it raised. */
template <int DP, int MT>
static __device__ __forceinline__ void raise_tops(struct rows<DP, MT> *w, const float (*s)[N8][4],
                                                  const struct call *a)
{
    float most[MT][2];
    bool over = false;

    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int r = 0; r < 2; r++) {
            most[m][r] = fmaxf(s[m][0][2 * r], s[m][0][2 * r + 1]);
            CUDA_UNROLL
            for (int n = 1; n < N8; n++)
                most[m][r] = fmaxf(most[m][r], fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            over |= most[m][r] > w->top[m][r] + a->slack;
        }
    if (!__any_sync(0xffffffffu, over))
        return;
    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int r = 0; r < 2; r++) {
            float top = most[m][r], ratio = 1;

            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            if (top > w->top[m][r] + a->slack) {
                ratio = ptx_exp2((w->top[m][r] - top) * a->c);
                w->top[m][r] = top;
            }
            w->sum[m][r] *= ratio;
            CUDA_UNROLL
            for (int i = 0; i < DP / 8 * 2; i++)
                w->o[m][i / 2][2 * r + i % 2] *= ratio;
        }
}

/* P, as operands of 16 keys, and its sums. */
template <typename T, int DP, int MT>
static __device__ __forceinline__ void exponentials(uint32_t (*p)[N8 / 2][4], struct rows<DP, MT> *w,
                                                    const float (*s)[N8][4], float c)
{
    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int r = 0; r < 2; r++) {
            const float ct = c * w->top[m][r];

            CUDA_UNROLL
            for (int n = 0; n < N8; n++) {
                const float low = ptx_exp2(fmaf(s[m][n][2 * r], c, -ct));
                const float high = ptx_exp2(fmaf(s[m][n][2 * r + 1], c, -ct));

                w->sum[m][r] += low + high;
                p[m][n / 2][n % 2 * 2 + r] = pair<T>(low, high);
            }
        }
}

/* O += P V. v: the step's first row of V. */
template <typename T, int DP, int MT>
static __device__ __forceinline__ void add_values(struct rows<DP, MT> *w, const uint32_t (*p)[N8 / 2][4],
                                                  const unsigned char *v)
{
    const unsigned char *const row = v + (int)(threadIdx.x % 32) * pitch<DP>();

    CUDA_UNROLL
    for (int c = 0; c < DP / 8; c++) {
        uint32_t b[4];

        ptx_ldmatrix_x4_trans(b, row + 16 * c);
        CUDA_UNROLL
        for (int j = 0; j < N8 / 2; j++)
            CUDA_UNROLL
            for (int m = 0; m < MT; m++)
                mma_k16<T>(w->o[m][c], p[m][j], &b[2 * j]);
    }
}

/* ---- the end ---- */

/* O / l, and lse = log(sum exp(scale q k)). */
template <typename T, int DP, int MT>
static __device__ __forceinline__ void write_rows(struct rows<DP, MT> *w, const struct call *a, int first)
{
    uint16_t *const o = a->o + (int64_t)blockIdx.z * a->Tq * a->ldo + (int64_t)blockIdx.y * a->D;
    const int lane = ptx_again((int)threadIdx.x) & 31;

    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int r = 0; r < 2; r++) {
            w->sum[m][r] += __shfl_xor_sync(0xffffffffu, w->sum[m][r], 1);
            w->sum[m][r] += __shfl_xor_sync(0xffffffffu, w->sum[m][r], 2);
        }
    CUDA_UNROLL
    for (int m = 0; m < MT; m++)
        CUDA_UNROLL
        for (int r = 0; r < 2; r++) {
            const int row = first + 16 * m + 8 * r + lane / 4, width = row < a->Tq ? a->D : 0;
            uint32_t *const to = (uint32_t *)(o + row * a->ldo + lane % 4 * 2);
            const float once = 1 / w->sum[m][r];

            CUDA_UNROLL
            for (int i = 0; i < DP / 8; i++)
                if (8 * i < width)
                    to[4 * i] = pair<T>(w->o[m][i][2 * r] * once, w->o[m][i][2 * r + 1] * once);
            if (a->lse && lane % 4 == 0 && row < a->Tq)
                a->lse[((int64_t)blockIdx.z * a->N + blockIdx.y) * a->Tq + row]
                    = (a->c * w->top[m][r] + log2f(w->sum[m][r])) * 0.6931471805599453f;
        }
}

/* A block for WARPS * MT * 16 queries (x) of a head (y) of an image (z); BLOCKS of them on a multiprocessor. */
template <typename T, int DP, int MT, int KEYS, int BLOCKS>
static __global__ void __launch_bounds__(THREADS, BLOCKS) flash_kernel(const struct call a)
{
    CUDA_SHARED_BYTES(memory);
    unsigned char *const shared = ptx_again(memory);    /* keys of even tiles, of odd ones, values of both */
    const int q0 = (int)blockIdx.x * (WARPS * MT * 16), end = a.causal ? min(a.Tk, q0 + WARPS * MT * 16) : a.Tk;
    struct rows<DP, MT> w;

    copy_tile<DP, KEYS>(shared, &a, 0, end);
    read_queries<DP, MT>(&w, &a, my_first<MT>());
    const int first = my_first<MT>(), my_end = first >= a.Tq ? 0 : a.causal ? min(end, first + MT * 16) : end;
    CUDA_ROLLED
    for (int key = 0; key < end; key += STEP) {
        const unsigned char *const k = shared + key % (2 * KEYS) * pitch<DP>();

        if (key % KEYS == 0) {
            ptx_copy_wait<0>();
            __syncthreads();            /* this tile is there for all, and nobody reads the other one any more */
            if (key + KEYS < end)
                copy_tile<DP, KEYS>(shared, &a, key + KEYS, end);
        }
        if (key < my_end) {
            float s[MT][N8][4];
            uint32_t p[MT][N8 / 2][4];

            scores<T, DP, MT>(s, &w, k);
            if (key + STEP > (a.causal ? my_first<MT>() + 1 : end))
                hide<MT>(s, key, &a);
            raise_tops<DP, MT>(&w, s, &a);
            exponentials<T, DP, MT>(p, &w, s, a.c);
            add_values<T, DP, MT>(&w, p, k + 2 * KEYS * pitch<DP>());
        }
    }
    if (my_first<MT>() < a.Tq)
        write_rows<T, DP, MT>(&w, &a, my_first<MT>());
}

/* ---- on the host ---- */

static struct call call_of(const struct kattn *a)
{
    struct call c = { (const uint16_t *)a->q, (const uint16_t *)a->k, (const uint16_t *)a->v, (uint16_t *)a->o,
                      a->ldq, a->ldk, a->ldv, a->ldo, a->lse, (int)a->N, (int)a->Tq, (int)a->Tk, (int)a->D,
                      a->scale * 1.4426950408889634f, 0, a->causal };

    c.slack = fminf(8 / c.c, 1e30f);
    return c;
}

template <typename T, int DP, int MT, int KEYS, int BLOCKS> static int flash(struct kctx *k, const struct kattn *a)
{
    const unsigned n_block = (unsigned)((a->Tq + WARPS * MT * 16 - 1) / (WARPS * MT * 16));
    const int64_t most = 65535;         /* of a grid's y and z */

    for (int64_t b = 0; b < a->B; b += most)
        for (int64_t n = 0; n < a->N; n += most) {
            const dim3 grid(n_block, (unsigned)min(a->N - n, most), (unsigned)min(a->B - b, most));
            struct call c = call_of(a);

            c.q += b * a->Tq * a->ldq + n * a->D;
            c.k += b * a->Tk * a->ldk + n * a->D;
            c.v += b * a->Tk * a->ldv + n * a->D;
            c.o += b * a->Tq * a->ldo + n * a->D;
            if (a->lse)
                c.lse += (b * a->N + n) * a->Tq;
            LAUNCH(k, (flash_kernel<T, DP, MT, KEYS, BLOCKS>), grid, THREADS, 4 * KEYS * pitch<DP>(), c);
        }
    return cuda_launched(k);
}

/* Queries per warp, keys per tile and blocks per multiprocessor as registers and 48 KiB of shared memory allow. */
template <typename T> static int flash_by_size(struct kctx *k, const struct kattn *a)
{
    return a->D <= 32 ? flash<T, 32, 2, 64, 3>(k, a) : a->D <= 40 ? flash<T, 40, 2, 64, 4>(k, a)
        : a->D <= 64 ? flash<T, 64, 2, 64, 2>(k, a) : a->D <= 80 ? flash<T, 80, 2, 64, 2>(k, a)
        : a->D <= 96 ? flash<T, 96, 1, 32, 3>(k, a) : a->D <= 128 ? flash<T, 128, 1, 32, 2>(k, a)
        : flash<T, 160, 1, 32, 2>(k, a);
}

static bool rows_aligned(const void *p, int64_t ld)
{
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0 && ld < 1 << 24;
}

/* An image's keys and values, and a tile more, lie within 2^32 bytes: a place among them is 32 bits. */
bool attn_flash_fits(const struct kattn *a)
{
    return a->type != F32 && a->D % 8 == 0 && a->D <= 160 && a->scale > 0 && a->scale < INFINITY
        && a->N <= 1 << 30 && a->Tq <= 1 << 30 && a->Tk <= 1 << 30 && (a->Tk + 64) * a->ldk < (int64_t)1 << 31
        && (a->Tk + 64) * a->ldv < (int64_t)1 << 31 && rows_aligned(a->q, a->ldq) && rows_aligned(a->k, a->ldk)
        && rows_aligned(a->v, a->ldv) && rows_aligned(a->o, a->ldo);
}

int attn_flash(struct kctx *k, const struct kattn *a)
{
    return a->type == F16 ? flash_by_size<f16>(k, a) : flash_by_size<bf16>(k, a);
}
