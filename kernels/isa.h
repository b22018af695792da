/* kernels/isa.h: what each *_cpu.c contributes to the CPU twin, once per instruction set.
 * kern.c calls them in turn; a file fills the members that it owns. */
#ifndef UNICON_KERNELS_ISA_H
#define UNICON_KERNELS_ISA_H

#include "kernels/kern.h"

#define ISA_FILLS(isa)                       \
    void fill_pack_##isa(struct kern *k) __attribute__((weak));    \
    void fill_conv_##isa(struct kern *k) __attribute__((weak));    \
    void fill_gemm_##isa(struct kern *k) __attribute__((weak));    \
    void fill_attn_##isa(struct kern *k) __attribute__((weak));    \
    void fill_attn_back_##isa(struct kern *k) __attribute__((weak)); \
    void fill_norm_##isa(struct kern *k) __attribute__((weak));    \
    void fill_act_##isa(struct kern *k) __attribute__((weak));     \
    void fill_elem_##isa(struct kern *k) __attribute__((weak));    \
    void fill_resample_##isa(struct kern *k) __attribute__((weak));\
    void fill_reduce_##isa(struct kern *k) __attribute__((weak));  \
    void fill_adamw_##isa(struct kern *k) __attribute__((weak));   \
    void fill_rand_##isa(struct kern *k) __attribute__((weak));

ISA_FILLS(portable)
ISA_FILLS(avx2)
ISA_FILLS(avx512)
ISA_FILLS(avx512bf16)

#endif
