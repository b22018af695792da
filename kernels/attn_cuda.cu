/* kernels/attn_cuda.cu: attention on the device: which way, and the plain way for what tensor cores cannot do and is
 * small.
 *
 * The plain way is f32 in shared memory and registers for any strides and alignment: a warp has QUERIES queries, meets
 * KEYS keys at a time (a lane has one of them, then the products with V have lanes over D), with a running softmax. */
#include "kernels/cuda.cuh"
#include "kernels/cuda_attn.h"

enum { WARPS = 4, QUERIES = 4, KEYS = 32, PART = 64, MOST_D = 512 };       /* PART: of a key's columns at a time */
enum { MANY = 1 << 21 };                /* products of a head, worth more than one kernel */

/* ---- the plain way ---- */

/* s[i] = q[i] . k[lane] */
template <typename T>
static __device__ __forceinline__ void plain_scores(float *s, const float *q, float *part, const T *k, int64_t ldk,
                                                    int keys, int D)
{
    const int lane = (int)(threadIdx.x % 32);

    for (int i = 0; i < QUERIES; i++)
        s[i] = 0;
    for (int d0 = 0; d0 < D; d0 += PART) {
        const int n = min(D - d0, (int)PART);

        __syncthreads();
        for (int i = (int)threadIdx.x; i < KEYS * PART; i += WARPS * 32)
            part[i / PART * (PART + 1) + i % PART]
                = i / PART < keys && i % PART < n ? load(&k[i / PART * ldk + d0 + i % PART]) : 0;
        __syncthreads();
        for (int d = 0; d < n; d++)
            CUDA_UNROLL
            for (int i = 0; i < QUERIES; i++)
                s[i] = fmaf(q[i * D + d0 + d], part[lane * (PART + 1) + d], s[i]);
    }
}

/* o[i] = ratio[i] o[i] + p[i] V, lanes over columns. p_of: the warp's place for p, by key. */
template <typename T, int ND>
static __device__ __forceinline__ void plain_values(float (*o)[ND], const float *p, const float *ratio, float4 *p_of,
                                                    const T *v, int64_t ldv, int keys, int D)
{
    const int lane = (int)(threadIdx.x % 32);

    p_of[lane] = make_float4(p[0], p[1], p[2], p[3]);
    __syncwarp();
    CUDA_UNROLL
    for (int i = 0; i < QUERIES * ND; i++)
        o[i / ND][i % ND] *= ratio[i / ND];
    for (int key = 0; key < keys; key++) {
        const float4 all = p_of[key];
        const float share[QUERIES] = { all.x, all.y, all.z, all.w };

        CUDA_UNROLL
        for (int j = 0; j < ND; j++) {
            const float x = lane + 32 * j < D ? load(&v[key * ldv + lane + 32 * j]) : 0;

            CUDA_UNROLL
            for (int i = 0; i < QUERIES; i++)
                o[i][j] = fmaf(share[i], x, o[i][j]);
        }
    }
    __syncwarp();
}

/* A block for WARPS * QUERIES queries (x) of a head (y) of an image (z); ND * 32 >= D. */
template <typename T, int ND> static __global__ void __launch_bounds__(WARPS * 32) plain_kernel(const struct kattn a)
{
    CUDA_SHARED_BYTES(bytes);
    CUDA_SHARED(float, part, KEYS * (PART + 1));
    CUDA_SHARED(float4, p, WARPS * KEYS);       /* of a key for a warp's queries */
    const int lane = (int)(threadIdx.x % 32), D = (int)a.D;
    const int64_t b = blockIdx.z, n = blockIdx.y, q0 = (int64_t)blockIdx.x * (WARPS * QUERIES);
    const int64_t first = q0 + threadIdx.x / 32 * QUERIES;
    const int64_t end = a.causal && q0 + WARPS * QUERIES < a.Tk ? q0 + WARPS * QUERIES : a.Tk;
    float *const q = (float *)bytes + threadIdx.x / 32 * QUERIES * D;
    float o[QUERIES][ND], top[QUERIES], sum[QUERIES], s[QUERIES], ratio[QUERIES];

    CUDA_UNROLL
    for (int i = 0; i < QUERIES; i++) {
        top[i] = -INFINITY;
        sum[i] = 0;
        CUDA_UNROLL
        for (int j = 0; j < ND; j++)
            o[i][j] = 0;
        for (int d = lane; d < D; d += 32)
            q[i * D + d] = first + i < a.Tq ? load((const T *)a.q + (b * a.Tq + first + i) * a.ldq + n * D + d) : 0;
    }
    for (int64_t k0 = 0; k0 < end; k0 += KEYS) {
        const int keys = (int)min(end - k0, (int64_t)KEYS);
        const int64_t row = b * a.Tk + k0;

        plain_scores(s, q, part, (const T *)a.k + row * a.ldk + n * D, a.ldk, keys, D);
        CUDA_UNROLL
        for (int i = 0; i < QUERIES; i++) {
            const bool sees = lane < keys && (!a.causal || k0 + lane <= first + i);
            const float was = top[i];

            s[i] *= a.scale;
            top[i] = fmaxf(was, warp_max(sees ? s[i] : -INFINITY));
            ratio[i] = expf(was - top[i]);
            s[i] = sees ? expf(s[i] - top[i]) : 0;
            sum[i] = sum[i] * ratio[i] + warp_sum(s[i]);
        }
        plain_values<T, ND>(o, s, ratio, p + threadIdx.x / 32 * KEYS, (const T *)a.v + row * a.ldv + n * D,
                            a.ldv, keys, D);
    }
    CUDA_UNROLL
    for (int i = 0; i < QUERIES; i++) {
        if (first + i >= a.Tq)
            continue;
        CUDA_UNROLL
        for (int j = 0; j < ND; j++)
            if (lane + 32 * j < D)
                store((T *)a.o + (b * a.Tq + first + i) * a.ldo + n * D + lane + 32 * j, o[i][j] / sum[i]);
        if (a.lse && lane == 0)
            a.lse[(b * a.N + n) * a.Tq + first + i] = top[i] + logf(sum[i]);
    }
}

template <typename T> static int plain(struct kctx *k, const struct kattn *a)
{
    const int64_t n_block = (a->Tq + WARPS * QUERIES - 1) / (WARPS * QUERIES);
    const int64_t most = 65535;         /* of a grid's y and z */
    const size_t shared = sizeof(float) * WARPS * QUERIES * (size_t)a->D;

    for (int64_t b = 0; b < a->B; b += most)
        for (int64_t n = 0; n < a->N; n += most) {
            const dim3 grid((unsigned)n_block, (unsigned)min(a->N - n, most), (unsigned)min(a->B - b, most));
            struct kattn c = *a;

            c.q = (const T *)a->q + b * a->Tq * a->ldq + n * a->D;
            c.k = (const T *)a->k + b * a->Tk * a->ldk + n * a->D;
            c.v = (const T *)a->v + b * a->Tk * a->ldv + n * a->D;
            c.o = (T *)a->o + b * a->Tq * a->ldo + n * a->D;
            if (a->lse)
                c.lse = a->lse + (b * a->N + n) * a->Tq;
            if (a->D <= 64)
                LAUNCH(k, (plain_kernel<T, 2>), grid, WARPS * 32, shared, c);
            else
                LAUNCH(k, (plain_kernel<T, 16>), grid, WARPS * 32, shared, c);
        }
    return cuda_launched(k);
}

/* ---- which way ---- */

static bool attn_ok(const struct kattn *a)
{
    const int64_t row = a->N * a->D;

    return (unsigned)a->type < N_DTYPE && a->B >= 0 && a->N >= 0 && a->Tq >= 0 && a->Tk >= 0 && a->D >= 0
        && a->ldq >= row && a->ldk >= row && a->ldv >= row && a->ldo >= row && (!a->causal || a->Tq == a->Tk);
}

static int attn(struct kctx *k, const struct kattn *a)
{
    if (!attn_ok(a))
        return K_ARG;
    if (!a->B || !a->N || !a->Tq || !a->Tk || !a->D)
        return K_OK;
    if (attn_flash_fits(a))
        return attn_flash(k, a);
    if (a->D > MOST_D || a->Tq * a->Tk * a->D >= MANY)
        return attn_chunks(k, a);
    CUDA_BY_TYPE(a->type, T, return plain<T>(k, a));
    return K_ARG;
}

void cuda_fill_attn(struct kern *k)
{
    const size_t scratch = (size_t)64 << 20;

    if (k->scratch_bytes < scratch)
        k->scratch_bytes = scratch;
    k->attn = attn;
}
