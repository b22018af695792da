/* kernels/tiles.cuh: what the tensor-core products of tiles_cuda.cu and hopper_cuda.cu share: how blocks of K are
 * gathered into shared memory, and the way of sums from accumulators through the epilogue to y.
 *
 *     for each tile of TM output pixels x TN channels, each share of K                   <- one block
 *         for each part, each TK channels, each tap                                      <- always in this order
 *             copy (TM,TK) pixels and (TN,TK) weights to shared memory, stages ahead     <- cp.async
 *             accumulators (TM,TN) += pixels x weights                                   <- tensor cores
 *         accumulators to shared memory, from there row by row through the epilogue to y,
 *         or to scratch as partial sums; split_kernel then adds those in order
 *
 * The matrix of patches is never stored: implicit GEMM. Taps are inside channels so that blocks on neighbouring
 * pixels, and the next taps, find their lines in L2. Every sum is one chain over k in the order of the tensor core's
 * instructions: it depends on K, TK and the split alone, not on what other pixels there are.
 *
 * Shared tiles have rows of TK values in 16-byte chunks; chunk c of row r lies at place c ^ swizzle(r), so that neither
 * the copies (whole rows) nor ldmatrix (a chunk of eight rows) meet twice in a bank. */
#ifndef UNICON_KERNELS_TILES_CUH
#define UNICON_KERNELS_TILES_CUH

#include "kernels/cuda.cuh"

#include "kernels/cuda_act.cuh"
#include "kernels/cuda_product.h"

enum {
    CHUNK = 8,                          /* 16-bit values in 16 bytes: what one copy brings */
    GROUP = 8                           /* tiles of pixels whose blocks run side by side, over all channels */
};

/* What a launch needs to know. */
struct tiles {
    struct product p;
    int64_t M;                          /* pixels of y that are written */
    int n_m, n_n, n_k, split;           /* tiles, blocks of K, shares of K */
    float *partial;                     /* (split,M,Co) if split > 1 */
    bool wide_y, wide_residual, wide_row_add;   /* chunks of these may be read and written at once */
};

/* A pixel of the tile; image < 0 behind the last. */
struct tile_row {
    int image, i, j, none;
};

/* ---- where copies come from ---- */

/* The block of K that is copied next. */
struct place {
    int part, tap, a, b;
    int c;                              /* its first channel */
};

/* Where a row of the tile begins in a part: the element that tap (0,0) reads, and which taps are inside the image. */
struct source {
    int64_t at_odd;                     /* 4 * element + bits: row, column of tap (0,0) in a doubled image are odd */
    uint64_t taps;
};

static __device__ __forceinline__ struct place place_of(const struct tiles *t, int block, int tk)
{
    struct place s = { 0, 0, 0, 0, 0 };

    for (; s.part < t->p.n_part - 1; s.part++) {
        const struct product_part *q = &t->p.part[s.part];
        const int n = q->KH * q->KW * (int)((q->Ci + tk - 1) / tk);

        if (block < n)
            break;
        block -= n;
    }
    const int KW = t->p.part[s.part].KW, n_tap = t->p.part[s.part].KH * KW;
    s.c = block / n_tap * tk;
    s.tap = block % n_tap;
    s.a = s.tap / KW;
    s.b = s.tap % KW;
    return s;
}

static __device__ __forceinline__ void place_next(const struct tiles *t, struct place *s, int tk)
{
    const struct product_part *q = &t->p.part[s->part];

    s->tap++;
    if (++s->b < q->KW)
        return;
    s->b = 0;
    if (++s->a < q->KH)
        return;
    s->a = s->tap = 0;
    s->c += tk;
    if (s->c < (int)q->Ci)
        return;
    s->c = 0;
    s->part++;
}

/* Bit b: coordinate first + b lies in [0, n). */
static __device__ __forceinline__ uint64_t inside(int64_t first, int taps, int64_t n)
{
    uint64_t bits = 0;

    for (int b = 0; b < taps; b++)
        bits |= (uint64_t)(first + b >= 0 && first + b < n) << b;
    return bits;
}

static __device__ __forceinline__ struct source source_of(const struct product *p, const struct product_part *q,
                                                          const struct tile_row *m)
{
    const int up = q->up == 2;
    const int64_t Hb = up ? min(2 * q->H, p->Ho) : q->H, Wb = up ? min(2 * q->W, p->Wo) : q->W;
    const int64_t y = (int64_t)m->i * q->stride - q->pad_t, x = (int64_t)m->j * q->stride - q->pad_l;
    const uint64_t columns = m->image < 0 ? 0 : inside(x, q->KW, Wb), rows = inside(y, q->KH, Hb);
    struct source s = { ((m->image * q->H + (y >> up)) * q->W + (x >> up)) * q->ldx * 4, 0 };

    for (int a = 0; a < q->KH; a++)
        s.taps |= rows >> a & 1 ? columns << (a * q->KW) : 0;
    if (up)
        s.at_odd += (y & 1) * 2 + (x & 1);
    return s;
}

/* The element of x that a row reads for the tap at s, without the channel. */
static __device__ __forceinline__ int64_t source_at(const struct source *from, const struct product_part *q,
                                                    const struct place *s)
{
    int a = s->a, b = s->b;

    if (q->up == 2) {
        a = (a + (int)(from->at_odd >> 1 & 1)) >> 1;
        b = (b + (int)(from->at_odd & 1)) >> 1;
    }
    return (from->at_odd >> 2) + (a * q->W + b) * q->ldx;
}

/* Chunk [c, c+8) of a row by itself, where 16 bytes at once cannot be had. */
static __device__ __forceinline__ void copy_singly(unsigned char *to, const uint16_t *from, int c, int Ci, bool there)
{
    uint32_t v[4] = { 0, 0, 0, 0 };

    CUDA_UNROLL
    for (int i = 0; i < CHUNK; i++)
        if (there && c + i < Ci)
            v[i / 2] |= (uint32_t)from[i] << (i % 2 * 16);
    *(uint4 *)to = make_uint4(v[0], v[1], v[2], v[3]);
}

template <int K> static __device__ __forceinline__ int swizzle(int row)
{
    return K == 64 ? row & 7 : row >> 1 & 3;
}

/* Copy the block of K at s to a stage: the pixels to `stage`, the weights behind them. from: (part,TM). */
template <int TM, int TN, int K, int THREADS, bool WIDE>
static __device__ __forceinline__ void copy_block(const struct tiles *t, const struct place *s,
                                                  const struct source *from, unsigned char *stage, int n0)
{
    const struct product_part *q = &t->p.part[s->part];
    const int chunk = (int)threadIdx.x % (K / CHUNK), first = (int)threadIdx.x / (K / CHUNK);
    const int step = THREADS / (K / CHUNK), c = s->c + chunk * CHUNK, depth = q->KH * q->KW * (int)q->Cp;
    const uint16_t *x = (const uint16_t *)q->x, *w = (const uint16_t *)q->w;
    unsigned char *to = stage + first * K * 2 + (chunk ^ swizzle<K>(first)) * 16;

    from += s->part * TM + first;
    CUDA_UNROLL
    for (int r = 0; r < TM / step; r++) {
        const struct source row = from[r * step];
        const bool there = (row.taps >> s->tap & 1) && c < (int)q->Ci;
        const uint16_t *pixel = there ? x + source_at(&row, q, s) + c : x;

        if (WIDE)
            ptx_copy16(to + r * step * K * 2, pixel, there);
        else
            copy_singly(to + r * step * K * 2, pixel, c, (int)q->Ci, there);
    }
    to += TM * K * 2;
    CUDA_UNROLL
    for (int r = 0; r < (TN + step - 1) / step; r++)
        if ((r + 1) * step <= TN || first + r * step < TN) {
            const int n = n0 + first + r * step;
            const bool there = n < (int)t->p.Co && c < (int)q->Cp;

            ptx_copy16(to + r * step * K * 2, there ? w + (int64_t)n * depth + (s->tap * (int)q->Cp + c) : w, there);
        }
}

/* ---- the way out ---- */

/* v[0..have) += p[at..) */
static __device__ __forceinline__ void add8(float v[8], const void *p, enum dtype type, int64_t at, int have, bool wide)
{
    if (type == F32) {
        const float *f = (const float *)p + at;

        CUDA_UNROLL
        for (int h = 0; h < 2; h++)
            if (wide) {
                const float4 u = ((const float4 *)f)[h];

                v[4 * h] += u.x;
                v[4 * h + 1] += u.y;
                v[4 * h + 2] += u.z;
                v[4 * h + 3] += u.w;
            } else {
                CUDA_UNROLL
                for (int i = 4 * h; i < 4 * h + 4; i++)
                    v[i] += i < have ? f[i] : 0;
            }
        return;
    }
    const uint16_t *f = (const uint16_t *)p + at;
    uint32_t u[4] = { 0, 0, 0, 0 };

    if (wide) {
        const uint4 all = *(const uint4 *)f;

        u[0] = all.x;
        u[1] = all.y;
        u[2] = all.z;
        u[3] = all.w;
    } else {
        CUDA_UNROLL
        for (int i = 0; i < 8; i++)
            if (i < have)
                u[i / 2] |= (uint32_t)f[i] << (i % 2 * 16);
    }
    CUDA_UNROLL
    for (int i = 0; i < 8; i++) {
        const uint32_t bits = u[i / 2] >> (i % 2 * 16) & 0xffff;

        v[i] += type == F16 ? ptx_f16_to_f32(bits) : __uint_as_float(bits << 16);
    }
}

/* p[at..) = v[0..have) */
static __device__ __forceinline__ void put8(void *p, enum dtype type, int64_t at, const float v[8], int have, bool wide)
{
    if (type == F32) {
        float *f = (float *)p + at;

        if (wide) {
            ((float4 *)f)[0] = make_float4(v[0], v[1], v[2], v[3]);
            ((float4 *)f)[1] = make_float4(v[4], v[5], v[6], v[7]);
        } else {
            CUDA_UNROLL
            for (int i = 0; i < 8; i++)
                if (i < have)
                    f[i] = v[i];
        }
        return;
    }
    uint16_t *f = (uint16_t *)p + at;
    uint32_t u[4];

    CUDA_UNROLL
    for (int i = 0; i < 4; i++)
        u[i] = type == F16 ? ptx_f32_to_f16(v[2 * i]) | ptx_f32_to_f16(v[2 * i + 1]) << 16
                           : bf16_bits(v[2 * i]) | bf16_bits(v[2 * i + 1]) << 16;
    if (wide) {
        *(uint4 *)f = make_uint4(u[0], u[1], u[2], u[3]);
    } else {
        CUDA_UNROLL
        for (int i = 0; i < 8; i++)
            if (i < have)
                f[i] = (uint16_t)(u[i / 2] >> (i % 2 * 16));
    }
}

static __device__ __forceinline__ void activate(float v[8], const float gate[8], enum kact act)
{
    CUDA_UNROLL
    for (int i = 0; i < 8; i++)
        switch (act) {
        case K_ACT_SILU: v[i] = act_silu(v[i]); break;
        case K_ACT_GELU: v[i] = act_gelu(v[i]); break;
        case K_ACT_QUICK_GELU: v[i] = act_quick_gelu(v[i]); break;
        case K_ACT_RELU: v[i] = act_relu(v[i]); break;
        case K_ACT_GEGLU: v[i] *= act_gelu(gate[i]); break;
        default: break;
        }
}

/* Channels of y at a pixel from 8 columns, or from 16 where value and gate of a channel are neighbours. n: the first
 * column. The sums have alpha and bias. */
static __device__ __forceinline__ void finish(const struct tiles *t, const float sum[16], const struct tile_row *r,
                                              int64_t n)
{
    const struct product *p = &t->p;
    const bool glu = p->act == K_ACT_GEGLU;
    const int64_t C = glu ? p->Co / 2 : p->Co, c = glu ? n / 2 : n;
    const int64_t pixel = (r->image * p->Hy + (int64_t)r->i * p->y_step + p->y_i) * p->Wy
                          + (int64_t)r->j * p->y_step + p->y_j;
    const int have = (int)min((int64_t)8, C - c);
    float v[8], gate[8];

    CUDA_UNROLL
    for (int i = 0; i < 8; i++) {
        v[i] = glu ? sum[2 * i] : sum[i];
        gate[i] = sum[2 * i + 1];
    }
    if (p->row_add) {
        const int64_t at = r->image * p->row_add_ld + c;

        add8(v, p->row_add, p->y_type, at, have, t->wide_row_add && have == 8);
        if (glu)
            add8(gate, p->row_add, p->y_type, at + C, have, false);
    }
    activate(v, gate, p->act);
    if (p->residual)
        add8(v, p->residual, p->y_type, pixel * p->residual_ld + c, have, t->wide_residual && have == 8);
    put8(p->y, p->y_type, pixel * p->ldy + c, v, have, t->wide_y && have == 8);
}

/* v = alpha * sum + bias for 8 columns side by side in shared memory. The halves are read in an order that depends on
 * the chunk: lanes of a quarter warp are on neighbouring chunks, and would otherwise share their banks in pairs. */
static __device__ __forceinline__ void scaled8(float v[8], const float *sum, const float *bias, float alpha)
{
    const int late = (int)((uintptr_t)sum >> 7 & 1);
    const float4 s0 = ((const float4 *)sum)[late], s1 = ((const float4 *)sum)[1 - late];
    const float4 b0 = ((const float4 *)bias)[0], b1 = ((const float4 *)bias)[1];
    const float4 low = late ? s1 : s0, high = late ? s0 : s1;

    v[0] = alpha * low.x + b0.x;
    v[1] = alpha * low.y + b0.y;
    v[2] = alpha * low.z + b0.z;
    v[3] = alpha * low.w + b0.w;
    v[4] = alpha * high.x + b1.x;
    v[5] = alpha * high.y + b1.y;
    v[6] = alpha * high.z + b1.z;
    v[7] = alpha * high.w + b1.w;
}

/* Sums of `rows` staged rows to y or, as they are, to scratch. Staged row s is row tile_row(s) of the tile. */
template <int TN, int THREADS, int ROWS, int PIECE, int ROUNDS>
static __device__ __forceinline__ void write_rows(const struct tiles *t, const float *staged, const float *bias,
                                                  const struct tile_row *row, int64_t m0, int n0, int share, int round)
{
    const bool glu = t->p.act == K_ACT_GEGLU && t->split == 1;
    const int64_t Co = t->p.Co;

    CUDA_ROLLED
    for (int e = (int)threadIdx.x; e < ROWS * (glu ? TN / 16 : TN / 8); e += THREADS) {
        const int s = glu ? e / (TN / 16) : e / (TN / 8), n = glu ? e % (TN / 16) * 16 : e % (TN / 8) * 8;
        const int in_tile = s / PIECE * (PIECE * ROUNDS) + round * PIECE + s % PIECE;
        const struct tile_row r = row[in_tile];
        const float *from = staged + s * (TN + 8) + n;
        float v[16] = { 0 };

        if (r.image < 0 || n0 + n >= Co)
            continue;
        scaled8(v, from, bias + n, t->split > 1 ? 1 : t->p.alpha);
        if (t->split > 1) {
            const int64_t at = ((int64_t)share * t->M + m0 + in_tile) * Co + n0 + n;

            put8(t->partial, F32, at, v, (int)min((int64_t)8, Co - n0 - n), Co % 8 == 0);
            continue;
        }
        if (glu)
            scaled8(v + 8, from + 8, bias + n + 8, t->p.alpha);
        finish(t, v, &r, n0 + n);
    }
}

static __device__ __forceinline__ struct tile_row row_of(const struct product *p, int64_t m)
{
    const int64_t line = m / p->Wo;

    return { (int)(line / p->Ho), (int)(line % p->Ho), (int)(m - line * p->Wo), 0 };
}

/* Bias as the columns of a pack are ordered. */
static __device__ __forceinline__ float bias_of(const struct product *p, int64_t n)
{
    if (!p->bias || n >= p->Co)
        return 0;
    return p->bias[p->act == K_ACT_GEGLU ? n / 2 + (n % 2 ? p->Co / 2 : 0) : n];
}

/* ---- a tile ---- */

/* Which tile and share of K a block has: blocks that run together are a patch of GROUP tiles of pixels. */
struct task {
    int tm, tn, share;
    int from, n;                        /* the share's blocks of K */
};

static __device__ __forceinline__ struct task task_of(const struct tiles *t)
{
    const unsigned per = (unsigned)t->n_m * (unsigned)t->n_n, id = blockIdx.x % per, patch = GROUP * (unsigned)t->n_n;
    const unsigned first = id / patch * GROUP, rows = (unsigned)min(GROUP, t->n_m - (int)first);
    const int share = (int)(blockIdx.x / per), from = (int)((int64_t)t->n_k * share / t->split);

    return { (int)(first + id % patch % rows), (int)(id % patch / rows), share, from,
             (int)((int64_t)t->n_k * (share + 1) / t->split) - from };
}

static __device__ __forceinline__ struct tile_row tile_row_of(const struct tiles *t, int64_t m)
{
    const struct tile_row none = { -1, 0, 0, 0 };

    return m < t->M ? row_of(&t->p, m) : none;
}

/* Sources and biases of the tile, with a barrier at the end. With partial sums bias is added later. */
template <int TM, int TN, int THREADS>
static __device__ __forceinline__ void describe(const struct tiles *t, struct source *from, float *bias, int64_t m0,
                                                int n0)
{
    for (int r = (int)threadIdx.x; r < TM; r += THREADS) {
        const struct tile_row row = tile_row_of(t, m0 + r);

        for (int i = 0; i < t->p.n_part; i++)
            from[i * TM + r] = source_of(&t->p, &t->p.part[i], &row);
    }
    for (int n = (int)threadIdx.x; n < TN; n += THREADS)
        bias[n] = t->split > 1 ? 0 : bias_of(&t->p, n0 + n);
    __syncthreads();
}

/* sum[..] of the warp at staged + .., rows TN + 8 floats apart: then no two lanes of a half warp meet in a bank. */
template <int TN, int MI, int NI>
static __device__ __forceinline__ void stage_sums(float *staged, const float (*sum)[NI][4])
{
    const int lane = (int)threadIdx.x % 32;

    CUDA_UNROLL
    for (int m = 0; m < MI; m++)
        CUDA_UNROLL
        for (int n = 0; n < NI; n++)
            CUDA_UNROLL
            for (int h = 0; h < 2; h++)
                *(float2 *)(staged + (m * 16 + h * 8 + lane / 4) * (TN + 8) + n * 8 + lane % 4 * 2) =
                    make_float2(sum[m][n][2 * h], sum[m][n][2 * h + 1]);
}

/* hopper_cuda.cu: the same by wgmma, 3 stages for two blocks on a multiprocessor or 6 for one. Capability 9.0 only. */
void tiles_hopper(struct kctx *k, const struct tiles *t, const struct product_plan *plan);

#endif
