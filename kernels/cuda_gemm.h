/* kernels/cuda_gemm.h: products of plain matrices on the device, for the other files of the CUDA twin. Private to
 * kernels/.
 *
 * Of kctx.scratch these functions use the last CUDA_WORKSPACE bytes, which are cuBLASLt's workspace; what the caller
 * keeps in front of them stays. Less scratch than that is K_SCRATCH. They queue work, check nothing, and need no more
 * than the alignment of the types: cuBLASLt is told how the matrices lie, and does better where that is 16 bytes. */
#ifndef UNICON_KERNELS_CUDA_GEMM_H
#define UNICON_KERNELS_CUDA_GEMM_H

#include "kernels/kern.h"

enum { CUDA_WORKSPACE = 32 << 20 };

/* C = alpha op(A) op(B) + bias + beta * old, row-major. */
struct cuda_product {
    struct kgemm g;
    const void *old;            /* what beta multiplies: of C's type and stride_c; NULL for C itself */
    int64_t ld_old;
    const float *bias;          /* (N), or NULL; C is f32 then */
};

#ifdef __cplusplus
extern "C" {
#endif

/* A kgemm that is sound already: sizes of 0 and all types are fine. */
int cuda_gemm(struct kctx *k, const struct kgemm *g);
int cuda_multiply(struct kctx *k, const struct cuda_product *p);

/* cuBLASLt's part of it: false, and nothing queued, where it has no way to compute p (lt_cuda.cu). n <= 65535. */
bool lt_multiply(struct kctx *k, const struct cuda_product *p);

#ifdef __cplusplus
}
#endif
#endif
