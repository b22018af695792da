/* kernels/isa.h: what each *_cpu.c contributes to the CPU twin, once per instruction set.
 * kern.c calls them in turn; a file fills the members that it owns. */
#ifndef UNICON_KERNELS_ISA_H
#define UNICON_KERNELS_ISA_H

#include "kernels/kern.h"

/* DO(file, isa) for every file that fills members. */
#define ISA_FILES(DO, isa)                                                                       \
    DO(pack, isa) DO(conv, isa) DO(gemm, isa) DO(attn, isa) DO(attn_back, isa) DO(norm, isa)     \
    DO(act, isa) DO(elem, isa) DO(resample, isa) DO(reduce, isa) DO(adamw, isa) DO(random, isa)

#define ISA_DECLARE(file, isa) void fill_##file##_##isa(struct kern *k);

ISA_FILES(ISA_DECLARE, portable)
ISA_FILES(ISA_DECLARE, avx2)
ISA_FILES(ISA_DECLARE, avx512)
ISA_FILES(ISA_DECLARE, avx512bf16)

#endif
