/* kernels/kern.c: picks a CPU twin by name, or the best that this processor runs. */
#include "kernels/kern.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/isa.h"

#define FILL(file, isa) fill_##file##_##isa(k);

static void fill_portable(struct kern *k) { ISA_FILES(FILL, portable) }
static bool has_portable(void) { return true; }

#if defined(__x86_64__)
static void fill_avx2(struct kern *k) { ISA_FILES(FILL, avx2) }
static void fill_avx512(struct kern *k) { ISA_FILES(FILL, avx512) }
static void fill_avx512bf16(struct kern *k) { ISA_FILES(FILL, avx512bf16) }

/* Not every compiler's __builtin_cpu_supports() knows f16c; avx2 implies that the system saves its registers. */
static bool has_f16c(void)
{
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

static const struct {
    const char *name;
    bool (*has)(void);
    void (*fill)(struct kern *k);
} sets[] = {
    { "portable", has_portable, fill_portable },
#if defined(__x86_64__)
    { "avx2", has_avx2, fill_avx2 },
    { "avx512", has_avx512, fill_avx512 },
    { "avx512bf16", has_avx512bf16, fill_avx512bf16 },
#endif
};

enum { N_SETS = sizeof sets / sizeof *sets };

static struct kern twin[N_SETS];
static const char *names[N_SETS + 1];

/* The tables hold constants only; whoever fills one twice writes the same values again. */
__attribute__((constructor)) static void fill_all(void)
{
    for (int i = 0; i < N_SETS; i++) {
        names[i] = sets[i].name;
        twin[i].name = twin[i].isa = sets[i].name;
        twin[i].computes = true;
        sets[i].fill(&twin[i]);
    }
}

const char *const *kern_cpu_names(void)
{
    return names;
}

const struct kern *kern_cpu(const char *isa)
{
    for (int i = N_SETS - 1; i >= 0; i--)
        if ((!isa || !strcmp(isa, sets[i].name)) && sets[i].has())
            return &twin[i];
    return NULL;
}
