/* kernels/kern_cuda.cu: the CUDA twin as a table. What is not written yet says so when it is called. */
#include "kernels/cuda.cuh"

#include <string.h>

/* A function that takes anything and has nothing: one for each signature. */
template <typename F> struct missing;
template <typename... A> struct missing<int (*)(A...)> {
    static int call(A...) { return K_MISSING; }
};
template <typename... A> struct missing<size_t (*)(A...)> {
    static size_t call(A...) { return 0; }
};

template <typename F> static void fill_missing(F *member)
{
    if (!*member)
        *member = missing<F>::call;
}

static struct kern filled(void)
{
    struct kern k;

    memset(&k, 0, sizeof k);
    k.name = k.isa = "cuda";
    k.computes = true;
    cuda_fill_elem(&k);
    cuda_fill_act(&k);
    cuda_fill_norm(&k);
    cuda_fill_resample(&k);
    cuda_fill_reduce(&k);
    cuda_fill_random(&k);
    cuda_fill_attn(&k);
    cuda_fill_pack(&k);
    cuda_fill_conv(&k);
    cuda_fill_gemm(&k);
    fill_missing(&k.pack_bytes);
    fill_missing(&k.pack);
    fill_missing(&k.conv);
    fill_missing(&k.conv_dw);
    fill_missing(&k.gemm);
    fill_missing(&k.attn);
    fill_missing(&k.attn_back_bytes);
    fill_missing(&k.attn_back);
    fill_missing(&k.group_norm_back_bytes);
    fill_missing(&k.group_norm_back);
    fill_missing(&k.layer_norm_back_bytes);
    fill_missing(&k.layer_norm_back);
    fill_missing(&k.unary_back);
    fill_missing(&k.geglu_back);
    fill_missing(&k.softmax_back);
    fill_missing(&k.gather_back);
    fill_missing(&k.nearest_back);
    fill_missing(&k.bilinear_back);
    fill_missing(&k.mse_back);
    fill_missing(&k.adamw);
    return k;
}

extern "C" const struct kern *kern_cuda(void)
{
    static const struct kern k = filled();

    return &k;
}
