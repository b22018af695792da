/* kernels/resample_cuda.cu: nearest and bilinear resampling of channels-last maps, forward.
 *
 * Source positions are exact fractions in whole numbers, as on the CPU, and the sums of bilinear round in the same
 * places. A block has a row of the output, or some. */
#include "kernels/cuda_rows.cuh"

enum mode { NEAREST, CENTRES, CORNERS };

/* Where output i of n reads an input of m: at (first + i*step)/den. */
struct walk {
    int64_t first, step, den, m;
};

struct resample {
    void *y;
    const void *x;
    int64_t B, H, W, C, Ho, Wo; /* C: in units of what a thread moves */
    struct walk rows, cols;
};

static struct walk walk_new(enum mode mode, int64_t m, int64_t n)
{
    const struct walk nearest = { 0, m, n, m };                         /* i m/n */
    const struct walk centres = { m - n, 2 * m, 2 * n, m };             /* (i + 1/2) m/n - 1/2 */
    const struct walk corners = { 0, n > 1 ? m - 1 : 0, n > 1 ? n - 1 : 1, m };      /* i (m-1)/(n-1); 0 where n = 1 */

    return mode == NEAREST ? nearest : mode == CENTRES ? centres : corners;
}

/* The two pixels that bilinear reads and the share of the second; positions outside stay on the edge. */
struct tap {
    int64_t a, b;
    float share;
};

static __device__ __forceinline__ struct tap walk_tap(const struct walk *w, int64_t i)
{
    const int64_t at = w->first + i * w->step, q = at / w->den;         /* at < 0: the first pixel alone */
    struct tap t;

    t.a = min(q, w->m - 1);
    t.b = at < 0 ? 0 : min(q + 1, w->m - 1);
    t.share = at < 0 ? 0 : (float)((double)(at - q * w->den) / (double)w->den);
    if (at < 0)
        t.a = 0;
    return t;
}

template <typename T> static __global__ void nearest_kernel(struct resample p)
{
    for (int64_t r = blockIdx.x; r < p.B * p.Ho; r += gridDim.x) {
        const int64_t b = r / p.Ho, h = (r - b * p.Ho) * p.H / p.Ho;
        const T *x = (const T *)p.x + (b * p.H + h) * p.W * p.C;
        T *y = (T *)p.y + r * p.Wo * p.C;

        for (int64_t i = threadIdx.x; i < p.Wo * p.C; i += blockDim.x) {
            const int64_t j = i / p.C;

            y[i] = x[j * p.W / p.Wo * p.C + i - j * p.C];
        }
    }
}

/* V elements of T at a time, 1 or 16 bytes full */
template <bool ALIGNED, typename T> static __global__ void bilinear_kernel(struct resample p)
{
    const int V = ALIGNED ? cuda_vec<T> : 1;

    for (int64_t r = blockIdx.x; r < p.B * p.Ho; r += gridDim.x) {
        const int64_t b = r / p.Ho;
        const struct tap t = walk_tap(&p.rows, r - b * p.Ho);
        const T *top = (const T *)p.x + (b * p.H + t.a) * p.W * p.C * V;
        const T *low = (const T *)p.x + (b * p.H + t.b) * p.W * p.C * V;
        T *y = (T *)p.y + r * p.Wo * p.C * V;

        for (int64_t i = threadIdx.x; i < p.Wo * p.C; i += blockDim.x) {
            const int64_t j = i / p.C, c = i - j * p.C;
            const struct tap u = walk_tap(&p.cols, j);
            const int64_t left = (u.a * p.C + c) * V, right = (u.b * p.C + c) * V;
            float v[4][cuda_vec<T>];

            load_some<ALIGNED>(v[0], top + left, 1);
            load_some<ALIGNED>(v[1], top + right, 1);
            load_some<ALIGNED>(v[2], low + left, 1);
            load_some<ALIGNED>(v[3], low + right, 1);
            for (int e = 0; e < V; e++) {
                const float above = fmaf(u.share, v[1][e], __fmul_rn(1 - u.share, v[0][e]));
                const float below = fmaf(u.share, v[3][e], __fmul_rn(1 - u.share, v[2][e]));

                v[0][e] = fmaf(t.share, below, __fmul_rn(1 - t.share, above));
            }
            store_some<ALIGNED>(y + i * V, v[0], 1);
        }
    }
}

/* 0, 1: a size is 0; or K_ARG */
static int empty(const struct resample *p, enum dtype type)
{
    if ((unsigned)type >= N_DTYPE || p->B < 0 || p->H < 0 || p->W < 0 || p->C < 0 || p->Ho < 0 || p->Wo < 0)
        return K_ARG;
    return !p->B || !p->H || !p->W || !p->C || !p->Ho || !p->Wo;
}

/* Blocks and threads for rows of Wo * C units */
static unsigned row_blocks(const struct resample *p)
{
    return (unsigned)(p->B * p->Ho < 1 << 20 ? p->B * p->Ho : 1 << 20);
}

static unsigned row_threads(const struct resample *p)
{
    const int64_t n = (p->Wo * p->C + 31) / 32 * 32;

    return (unsigned)(n < 256 ? n : 256);
}

static bool vectors(const struct resample *p, int V)
{
    return cuda_aligned(p->x) && cuda_aligned(p->y) && p->C % V == 0;
}

static int nearest(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W, int64_t C,
                   int64_t Ho, int64_t Wo)
{
    struct resample p = { y, x, B, H, W, C, Ho, Wo, walk_new(NEAREST, H, Ho), walk_new(NEAREST, W, Wo) };
    const int rc = empty(&p, type);

    if (rc)
        return rc < 0 ? rc : cuda_launched(k);
    if (vectors(&p, 16 / (int)dtype_bytes(type))) {
        p.C /= 16 / (int)dtype_bytes(type);
        LAUNCH(k, nearest_kernel<uint4>, row_blocks(&p), row_threads(&p), 0, p);
    } else
        CUDA_BY_TYPE(type, T, LAUNCH(k, nearest_kernel<T>, row_blocks(&p), row_threads(&p), 0, p));
    return cuda_launched(k);
}

static int bilinear(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W, int64_t C,
                    int64_t Ho, int64_t Wo, bool align_corners)
{
    const enum mode mode = align_corners ? CORNERS : CENTRES;
    struct resample p = { y, x, B, H, W, C, Ho, Wo, walk_new(mode, H, Ho), walk_new(mode, W, Wo) };
    const int rc = empty(&p, type), V = 16 / (rc < 0 ? 4 : (int)dtype_bytes(type));
    const bool aligned = rc == 0 && vectors(&p, V);

    if (rc)
        return rc < 0 ? rc : cuda_launched(k);
    if (aligned)
        p.C /= V;
    CUDA_BY_TYPE(type, T, CUDA_BY_ALIGNMENT(aligned, A,
                 LAUNCH(k, (bilinear_kernel<A, T>), row_blocks(&p), row_threads(&p), 0, p)));
    return cuda_launched(k);
}

void cuda_fill_resample(struct kern *k)
{
    k->nearest = nearest;
    k->bilinear = bilinear;
}
