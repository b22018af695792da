/* kernels/cuda_attn.h: the ways to compute attention on the device. Private to kernels/. */
#ifndef UNICON_KERNELS_CUDA_ATTN_H
#define UNICON_KERNELS_CUDA_ATTN_H

#include "kernels/kern.h"

/* Tensor cores, nothing in memory between the products (attn_flash_cuda.cu): 16-bit types, D a multiple of 8 up to 160,
 * rows at addresses that are multiples of 16 bytes, scale > 0. */
bool attn_flash_fits(const struct kattn *a);
int attn_flash(struct kctx *k, const struct kattn *a);

/* Products through cuda_gemm() and a softmax between them, as many rows as scratch holds (attn_chunks_cuda.cu).
 * K_SCRATCH where that is none. */
int attn_chunks(struct kctx *k, const struct kattn *a);

#endif
