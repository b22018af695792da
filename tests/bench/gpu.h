/* tests/bench/gpu.h: between the files of `bench gpu`. */
#ifndef UNICON_TESTS_BENCH_GPU_H
#define UNICON_TESTS_BENCH_GPU_H

#include "core/device.h"

struct gpu {
    const char *name;                   /* of the device */
    struct device dev, null;            /* null counts what dev does */
    struct arena mem, pretend;          /* for operands, on each */
    void *typed[N_DTYPE];               /* n_value normals of each type, on the host */
    int64_t n_value;
    double peak[N_DTYPE];               /* FLOP/s of the largest product of each type, measured */
    double copy;                        /* bytes/s, read + written */
    bool tiny, people;
    int n_failed;
    struct err e;
};

/* Seconds of one f(arg), which queues work and returns 0: the median of several rounds of as many calls as take
 * round_s, from the first call to the end of the last one's work. Negative if something fails. */
double gpu_time(struct gpu *g, int (*f)(void *arg), void *arg, double round_s);

/* One line: name, milliseconds, amount (FLOPs, or bytes) per second, its unit, its share of peak. Seconds < 0: it
 * failed, and `why` is told. */
void gpu_row(struct gpu *g, const char *name, double seconds, double amount, bool flops, double peak, const char *why);

/* n random values of a type on the device; NULL with g->e set. */
void *gpu_values(struct gpu *g, enum dtype type, int64_t n);
int gpu_put_values(struct gpu *g, void *dst, enum dtype type, int64_t n);

/* Whole models: their time, or how far they are from the processor's. */
void gpu_models(struct gpu *g);
void gpu_parity(struct gpu *g);

#endif
