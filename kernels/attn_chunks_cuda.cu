/* kernels/attn_chunks_cuda.cu: attention by products of plain matrices: the scores of as many rows as scratch holds,
 * their softmax, and P V. For what the tensor-core kernel does not take and is large: f32, the autoencoder's one head
 * of 512. Chunks follow from the sizes of one image, and images are done one by one: a result does not depend on the
 * batch.
 *
 * P is of V's type, times 2^14, which keeps all but a row's smallest out of f16's subnormal numbers. */
#include "kernels/cuda.cuh"
#include "kernels/cuda_attn.h"
#include "kernels/cuda_gemm.h"

enum { THREADS = 128, MOST_HEADS = 65535 };

static const float p_scale = 16384;

/* Four neighbours, read and written at once. */
template <typename T> struct alignas(4 * sizeof(T)) four { T x[4]; };

/* One chunk: rows [row, row + rows) of `heads` heads from `head` on. Scores and P are (heads, rows, pitch). */
struct chunk {
    int64_t row, rows, head, heads, s_pitch, p_pitch;
    float *s;
    void *p;                            /* f32: s itself */
};

/* P of the row (x) of a head (y) from its scores. lse: of the chunk's first row and head, or NULL. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) row_softmax_kernel(const struct chunk c, float *lse, int64_t Tq,
                                                                     int64_t Tk, bool causal, float times)
{
    CUDA_SHARED(float, space, 32);
    const int64_t row = blockIdx.y * c.rows + blockIdx.x, seen = causal ? c.row + blockIdx.x + 1 : Tk;
    const float *const s = c.s + row * c.s_pitch;
    T *const p = (T *)c.p + row * c.p_pitch;
    float top = -INFINITY, sum = 0;

    for (int64_t i = 4 * (int64_t)threadIdx.x; i < seen; i += 4 * THREADS) {
        const struct four<float> x = *(const struct four<float> *)(s + i);

        for (int j = 0; j < 4; j++)
            top = i + j < seen ? fmaxf(top, x.x[j]) : top;
    }
    top = block_max(top, space);
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < seen; i += 4 * THREADS) {
        const struct four<float> x = *(const struct four<float> *)(s + i);

        for (int j = 0; j < 4; j++)
            sum += i + j < seen ? expf(x.x[j] - top) : 0;
    }
    sum = block_sum(sum, space);
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < Tk; i += 4 * THREADS) {
        const struct four<float> x = *(const struct four<float> *)(s + i);
        struct four<T> y;

        for (int j = 0; j < 4; j++)
            store(&y.x[j], i + j < seen ? expf(x.x[j] - top) * (times / sum) : 0);
        *(struct four<T> *)(p + i) = y;
    }
    if (lse && threadIdx.x == 0)
        lse[blockIdx.y * Tq + blockIdx.x] = top + logf(sum);
}

static const void *behind(const void *p, enum dtype t, int64_t n)
{
    return (const char *)p + n * (int64_t)dtype_bytes(t);
}

/* A chunk of image b. */
static int attend(struct kctx *k, const struct kattn *a, const struct chunk *c, int64_t b)
{
    const enum dtype t = a->type;
    const int64_t column = c->head * a->D, q_row = b * a->Tq + c->row, k_row = b * a->Tk;
    struct kgemm s = { c->rows, a->Tk, a->D, c->heads, behind(a->q, t, q_row * a->ldq + column),
                       behind(a->k, t, k_row * a->ldk + column), c->s, t, t, F32, a->ldq, a->ldk, c->s_pitch,
                       a->D, a->D, c->rows * c->s_pitch, false, true, a->scale, 0 };
    struct kgemm o = { c->rows, a->D, a->Tk, c->heads, c->p, behind(a->v, t, k_row * a->ldv + column),
                       (char *)a->o + (q_row * a->ldo + column) * (int64_t)dtype_bytes(t), t, t, t, c->p_pitch, a->ldv,
                       a->ldo, c->rows * c->p_pitch, a->D, a->D, false, false, 1 / p_scale, 0 };
    float *const lse = a->lse ? a->lse + (b * a->N + c->head) * a->Tq + c->row : NULL;
    int rc = cuda_gemm(k, &s);

    if (rc)
        return rc;
    CUDA_BY_TYPE(t, T, LAUNCH(k, row_softmax_kernel<T>, dim3((unsigned)c->rows, (unsigned)c->heads), THREADS, 0, *c,
                              lse, a->Tq, a->Tk, a->causal, p_scale));
    rc = cuda_launched(k);
    return rc ? rc : cuda_gemm(k, &o);
}

int attn_chunks(struct kctx *k, const struct kattn *a)
{
    const size_t room = k->scratch_bytes < CUDA_WORKSPACE ? 0 : k->scratch_bytes - CUDA_WORKSPACE;
    const int64_t s_pitch = (a->Tk + 7) / 8 * 8, p_bytes = a->type == F32 ? 0 : (int64_t)dtype_bytes(a->type);
    const int64_t fit = (int64_t)room / (s_pitch * (4 + p_bytes)), pieces = fit ? (a->Tq + fit - 1) / fit : 1;
    const int64_t rows = (a->Tq + pieces - 1) / pieces, heads = min(min(fit / rows, a->N), (int64_t)MOST_HEADS);

    if (!fit)
        return K_SCRATCH;
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t n = 0; n < a->N; n += heads)
            for (int64_t q = 0; q < a->Tq; q += rows) {
                struct chunk c = { q, min(rows, a->Tq - q), n, min(heads, a->N - n), s_pitch, s_pitch,
                                   (float *)k->scratch, k->scratch };

                if (p_bytes)
                    c.p = c.s + heads * rows * s_pitch;
                const int rc = attend(k, a, &c, b);
                if (rc)
                    return rc;
            }
    return K_OK;
}
