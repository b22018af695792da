/* tests/bench/bench.h: what the parts of `make bench` share. All rates are per CPU second of the whole process, summed
 * over threads, so that other work on the machine disturbs them little; peaks are measured the same way in the same
 * run. */
#ifndef UNICON_TESTS_BENCH_BENCH_H
#define UNICON_TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include "kernels/kern.h"

/* CPU seconds of this process so far. */
double bench_now(void);

/* Least CPU seconds of one call of f(arg), over at least three calls and a fifth of a second. Negative if f fails. */
double bench_time(int (*f)(void *arg), void *arg);

/* Peaks per CPU second with n threads at once: f32 fused multiply-adds and bf16 dot products in registers (GFLOP/s; 0
 * where the processor has none), copy of two arrays of `bytes` in all (GB/s, read + written). */
double peak_f32(int n_threads);
double peak_bf16(int n_threads);
double peak_copy(int n_threads, size_t bytes);

/* The products of one pass of SD1.5's UNet at 512 x 512, one image, and how often each occurs. */
struct bench_shape {
    const char *layer;
    int side;                           /* output pixels a side; 0: rows below */
    int Ci, Co, KH, stride, up;
    int rows, count;
};
extern const struct bench_shape bench_shapes[];
extern const int bench_n_shapes;
struct kgeom bench_geometry(const struct bench_shape *s);
const char *bench_shape_text(const struct bench_shape *s, char *buf, size_t size);      /* "64x64 320->320, 3x3" */

/* It as a product of B images and the pack of its weights, without the pointers. dx: the gradient of its input; plain:
 * not gated where the layer is. */
struct kconv bench_product(const struct bench_shape *s, enum dtype t, int64_t B, bool dx, bool plain,
                           struct kpack *pack);

struct bench_attention {
    const char *what;
    int Tq, Tk, N, D;
    bool causal;
};
extern const struct bench_attention bench_attentions[];
extern const int bench_n_attentions;

/* Peers, for the same work. Seconds as bench_time; negative when the library is not in this build, or cannot. */
const char *peer_blas_name(void);
double peer_blas(int n_threads, int64_t M, int64_t N, int64_t K);              /* f32 C = A B^T */

const char *peer_dnn_name(void);
/* Weights in the layout that the library chooses, reordered once; activations channels-last. */
double peer_dnn_conv(int n_threads, enum dtype type, int64_t B, const struct kgeom *g, bool dx);
double peer_dnn_matmul(int n_threads, enum dtype type, int64_t M, int64_t N, int64_t K);

/* Each model of the base model at `directory`: time, share of the peaks given, and how far its results are from those
 * of tests/reference/full.py. only: part of a pass's name, or NULL. */
int bench_models(const char *directory, const char *isa, int n_threads, double f32, double bf16, const char *only);

/* Steps of the UNet with joint attention over latents of side x side, beside plain ones. */
int bench_pairs(const char *isa, int n_threads, int64_t side, double f32, double bf16);

/* `bench gpu ..`, see tests/bench/gpu.c. */
int bench_gpu(int argc, char **argv);

#endif
