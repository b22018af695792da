/* kernels/pack_cuda.cu: weights (Co,KH,KW,Ci) into packs of the layout in cuda_product.h, once. Raw weights of the host
 * go up through the scratch, some output channels at a time. */
#include "kernels/cuda.cuh"

extern "C" {
#include "kernels/dev.h"
}

static const int64_t up_taps = 4, up_phases = 4;

/* ---- sizes ---- */

static bool in_phases(const struct kpack *p) { return p->kind == K_PACK_UP; }

static bool backward(const struct kpack *p) { return p->kind == K_PACK_DX || p->kind == K_PACK_UP_DX; }

static bool sound(const struct kpack *p)
{
    if (p->kind < 0 || p->kind >= K_N_PACK || p->src < 0 || p->src >= N_DTYPE || p->dst < 0 || p->dst >= N_DTYPE)
        return false;
    if (p->Co < 0 || p->Ci < 0 || p->KH < 1 || p->KW < 1 || p->ci_first < 0 || p->ci_total - p->ci_first < p->Ci)
        return false;
    if ((in_phases(p) || p->kind == K_PACK_UP_DX) && (p->KH != 3 || p->KW != 3))
        return false;
    return !p->glu || (p->kind == K_PACK_FWD && p->Co % 2 == 0);
}

static int64_t padded(const struct kpack *p) { return (p->Ci + 7) / 8 * 8; }

/* Values of one output channel, in one phase. */
static int64_t depth(const struct kpack *p)
{
    return (in_phases(p) ? up_taps : (int64_t)p->KH * p->KW) * padded(p);
}

static size_t pack_bytes(const struct kpack *p)
{
    if (!sound(p) || backward(p))
        return 0;
    return (size_t)((in_phases(p) ? up_phases : 1) * p->Co * depth(p)) * dtype_bytes(p->dst);
}

/* ---- packing ---- */

/* Where output channel co of the raw weights goes. */
static __device__ __forceinline__ int64_t row_of(const struct kpack &p, int64_t co)
{
    const int64_t half = p.Co / 2;

    return !p.glu ? co : co < half ? 2 * co : 2 * (co - half) + 1;
}

/* Output channels [co0, co0 + n) of K_PACK_FWD; w begins with channel co0. */
template <typename S, typename D> static __global__ void pack_kernel(D *out, const S *w, struct kpack p, int64_t co0,
                                                                     int64_t n)
{
    const int64_t Cp = (p.Ci + 7) / 8 * 8, taps = (int64_t)p.KH * p.KW, per_row = taps * Cp;

    CUDA_EACH(i, n * per_row) {
        const int64_t r = i / per_row, tap = i % per_row / Cp, c = i % Cp;
        const float v = c < p.Ci ? load(&w[(r * taps + tap) * p.ci_total + p.ci_first + c]) : 0;

        store(&out[row_of(p, co0 + r) * per_row + i % per_row], v);
    }
}

/* Raw taps along one axis that meet in tap t of a phase, as bits: {w0, w1+w2} of phase 0, {w0+w1, w2} of phase 1. */
static __device__ __forceinline__ unsigned met(int phase, int t)
{
    return phase == 0 ? (t == 0 ? 1u : 6u) : (t == 0 ? 3u : 4u);
}

/* The same for K_PACK_UP: sums in f32, in the order of the raw taps. */
template <typename S, typename D> static __global__ void pack_up_kernel(D *out, const S *w, struct kpack p, int64_t co0,
                                                                        int64_t n)
{
    const int64_t Cp = (p.Ci + 7) / 8 * 8, per_row = up_taps * Cp;

    CUDA_EACH(i, up_phases * n * per_row) {
        const int64_t r = i / per_row % n, c = i % Cp;
        const int phase = (int)(i / per_row / n), tap = (int)(i % per_row / Cp);
        const unsigned rows = met(phase / 2, tap / 2), columns = met(phase % 2, tap % 2);
        float v = 0;

        for (int a = 0; a < 3 && c < p.Ci; a++)
            for (int b = 0; b < 3; b++)
                if ((rows >> a & 1) && (columns >> b & 1))
                    v += load(&w[(r * 9 + a * 3 + b) * p.ci_total + p.ci_first + c]);
        store(&out[(phase * p.Co + co0 + r) * per_row + i % per_row], v);
    }
}

template <typename S, typename D> static void convert(struct kctx *k, void *dst, const void *w, const struct kpack *p,
                                                      int64_t co0, int64_t n)
{
    if (in_phases(p))
        LAUNCH(k, (pack_up_kernel<S, D>), cuda_blocks(up_phases * n * depth(p), 256), 256, 0, (D *)dst, (const S *)w,
               *p, co0, n);
    else
        LAUNCH(k, (pack_kernel<S, D>), cuda_blocks(n * depth(p), 256), 256, 0, (D *)dst, (const S *)w, *p, co0, n);
}

static int convert_typed(struct kctx *k, void *dst, const void *w, const struct kpack *p, int64_t co0, int64_t n)
{
    CUDA_BY_TYPE(p->src, S, CUDA_BY_TYPE(p->dst, D, (convert<S, D>(k, dst, w, p, co0, n))));
    return cuda_launched(k);
}

/* Through the scratch. The copy of a portion waits, on the queue, for the kernel that reads the one before. */
static int pack_from_host(struct kctx *k, void *dst, const struct kpack *p, const void *w)
{
    const int64_t row_bytes = p->KH * p->KW * p->ci_total * (int64_t)dtype_bytes(p->src);
    const int64_t most = (int64_t)k->scratch_bytes / row_bytes;
    int rc = most > 0 ? K_OK : K_SCRATCH;

    for (int64_t co = 0; co < p->Co && !rc; co += most) {
        const int64_t n = p->Co - co < most ? p->Co - co : most;

        rc = dev_cuda_put(cuda_queue(k), k->scratch, (const char *)w + co * row_bytes, (size_t)(n * row_bytes));
        if (!rc)
            rc = convert_typed(k, dst, k->scratch, p, co, n);
    }
    return rc;
}

/* Raw weights that are a pack already. */
static bool as_they_are(const struct kpack *p)
{
    return p->kind == K_PACK_FWD && !p->glu && p->src == p->dst && p->Ci == p->ci_total && p->Ci == padded(p);
}

static int pack(struct kctx *k, void *dst, const struct kpack *p, const void *w)
{
    struct cudaPointerAttributes where;

    if (!sound(p))
        return K_ARG;
    if (backward(p))
        return K_MISSING;
    if (!pack_bytes(p))
        return K_OK;
    if (!cuda_check_call(cuda_queue(k), cudaPointerGetAttributes(&where, w), "asking where weights are"))
        return cuda_launched(k);
    if (where.type == cudaMemoryTypeDevice || where.type == cudaMemoryTypeManaged)
        return convert_typed(k, dst, w, p, 0, p->Co);
    return as_they_are(p) ? dev_cuda_put(cuda_queue(k), dst, w, pack_bytes(p)) : pack_from_host(k, dst, p, w);
}

void cuda_fill_pack(struct kern *k)
{
    k->pack_bytes = pack_bytes;
    k->pack = pack;
}
