/* tests/cuda_kit.h: parity of the CUDA twin with the CPU's, on whichever device there is: a real one, or the emulated
 * one that tests/emu stands in with. The CPU computes in f32 on the values that the device has in its own type.
 *
 *     if (!cuda_kit_begin())                              no device: says so, all tests are skipped
 *         return 0;
 *     for (int t = 0; t < N_DTYPE; t++) {
 *         struct mirror x = mirror_random(t, n, 1, 1.0), y = mirror_new(t, n);
 *         bool ok = kit_cpu->unary(kit_cpu_ctx(), K_SILU, y.f, x.f, F32, n) == K_OK;
 *         CUDA_TWICE(&y, ok &= kit_cuda->unary(kit_cuda_ctx(), K_SILU, y.dev, x.dev, t, n) == K_OK);
 *         tap_ok(mirror_near(&y, kit_near[t], "silu %s", dtype) && ok, ...);
 *         cuda_kit_release();                             all mirrors are gone
 *     }
 *     return cuda_kit_end();                                                                                      */
#ifndef UNICON_TESTS_CUDA_KIT_H
#define UNICON_TESTS_CUDA_KIT_H

#include <stdbool.h>

#include "kernels/dev.h"
#include "tests/kit.h"
#include "tests/tap.h"

extern const struct kern *kit_cpu, *kit_cuda;
extern const double kit_near[N_DTYPE];          /* relative l2 that a result may be off: 1e-5, 2e-3, 1e-2 */
extern bool cuda_kit_odd;                       /* mirrors to come begin 1 to 7 elements behind an aligned address */
extern struct dev_queue *kit_queue;

/* One of: the emulated device where it is linked, otherwise the first. False where there is none; one that is there and
 * does not open is a failure. UNICON_TEST_DEVICE=N
 * chooses another. */
bool cuda_kit_begin(void);
int cuda_kit_end(void);                         /* frees, ends the TAP output, gives main's result */
struct kctx *kit_cpu_ctx(void);
struct kctx *kit_cuda_ctx(void);                /* scratch poisoned anew */

/* n elements: `f` on the host in f32 (exactly what the device has, rounded to type), `dev` on the device in `type`,
 * between guards. */
struct mirror {
    float *f;
    void *dev;
    enum dtype type;
    int64_t n;
    unsigned char *first;                       /* bits of a run before, see CUDA_TWICE */
};

struct mirror mirror_new(enum dtype type, int64_t n);           /* NaN on both sides */
struct mirror mirror_random(enum dtype type, int64_t n, uint64_t seed, double scale);
struct mirror mirror_of(enum dtype type, int64_t n, const float *values);
void *mirror_bytes(const void *host, size_t bytes);             /* on the device only: ids, packs */
void *mirror_space(size_t bytes);                               /* on the device only, poisoned, 256-byte aligned */
void cuda_kit_release(void);                                    /* all of the above */

void mirror_poison(struct mirror *m);                           /* NaN on the device */
void mirror_read(const struct mirror *m, float *out);           /* the device's values */

/* ||device - f|| / ||f|| <= rel and guards intact; NaN never passes, infinities must be the same. Says what differs. */
bool mirror_near(struct mirror *m, double rel, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Run STATEMENT twice with the output poisoned before each; on the emulated device with threads in another order. Then
 * mirror_near() also fails if the bits were not the same. */
#define CUDA_TWICE(m, STATEMENT)                                                                                    \
    do {                                                                                                            \
        mirror_poison(m);                                                                                           \
        STATEMENT;                                                                                                  \
        mirror_keep(m);                                                                                             \
        mirror_poison(m);                                                                                           \
        STATEMENT;                                                                                                  \
        cuda_kit_order(0);                                                                                          \
    } while (0)
void mirror_keep(struct mirror *m);
void cuda_kit_order(int order);

bool cuda_kit_emulated(void);
/* Sizes should be small: the device is the emulated one, or UNICON_TEST_SMALL is set, as where every access of a real
 * one is checked. */
bool cuda_kit_small(void);

#endif
