/* tests/kit.h: what kernel tests share: guarded and poisoned buffers, seeded values rounded to a storage type,
 * twins to run on, comparison with doubles.
 *
 *     for (int i = 0; (kern = kit_twin(i)); i++)
 *         for (int t = 0; t < N_DTYPE; t++) {
 *             struct kctx *k = kit_ctx(kern, 2);
 *             struct buf x = buf_random(t, n, 1, 1.0), y = buf_new(t, n);
 *             ok &= kern->unary(k, K_SILU, y.p, x.p, t, n) == K_OK;
 *             ok &= buf_near(&y, want, kit_rel[t], 1e-6, "silu") && buf_intact(&y);
 *             buf_free(&x); buf_free(&y);
 *         }                                                                                                  */
#ifndef UNICON_TESTS_KIT_H
#define UNICON_TESTS_KIT_H

#include <stdbool.h>
#include "kernels/kern.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

/* i-th twin that this machine runs (CPU instruction sets, then CUDA), or NULL after the last. UNICON_TEST_ISA limits
 * the choice to one. */
const struct kern *kit_twin(int i);

/* A context with n threads and scratch; static, valid until the next call with the same n (1..8). Scratch is
 * poisoned anew by every call. */
struct kctx *kit_ctx(const struct kern *kern, int n_threads);

/* n elements of a type between guard bytes, at an odd offset from the last 64-byte boundary (aligned to its type
 * only). v holds the same values as doubles, exactly. */
struct buf {
    void *p;
    double *v;
    enum dtype type;
    int64_t n;
    unsigned char *mem;
    size_t mem_bytes;
};

struct buf buf_new(enum dtype type, int64_t n);                 /* poisoned with NaN; v NaN too */
struct buf buf_random(enum dtype type, int64_t n, uint64_t seed, double scale); /* about normal, rounded to type */
struct buf buf_raw(size_t bytes);                               /* 64-byte aligned, poisoned: packs, workspaces */
struct buf buf_copy(const struct buf *b);
void buf_free(struct buf *b);
void buf_poison(struct buf *b);
void buf_set(struct buf *b, int64_t i, double x);               /* one element, rounded to the type; also +-Inf */
bool buf_intact(const struct buf *b);                           /* guards untouched; notes what was hit */
void buf_read(struct buf *b);                                   /* v := p */

/* Unit roundoff of a type: what one rounding on the way out may cost, relative. */
extern const double kit_rel[N_DTYPE];                           /* 2^-23, 2^-11, 2^-8 */

/* Every |got - want| <= abs + rel * |want|; NaN never passes. On failure a note with the worst index. */
bool buf_near(struct buf *got, const double *want, double rel, double abs, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* ||got - want|| / ||want|| <= rel. NaN never passes. */
bool buf_near_norm(struct buf *got, const double *want, double rel, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Same bits in both; for thread counts and batch independence. */
bool buf_same(const struct buf *a, const struct buf *b, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

double kit_round(enum dtype type, double x);                    /* x rounded to the type, to nearest even */
double kit_normal(uint64_t *state);                             /* splitmix64, Box-Muller in doubles */

#endif
