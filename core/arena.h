/* core/arena.h: memory by lifetime. Bump allocation with marks; a whole lifetime ends in one call.
 *
 *     struct arena a;
 *     if (arena_init(&a, "step", ARENA_HOST, cap_bytes, e)) ...
 *     size_t mark = arena_mark(&a);
 *     float *score = arena_push(&a, bytes, e);            64-byte aligned, not cleared
 *     arena_release(&a, mark);
 *     arena_free(&a);
 *
 * A host arena reserves `cap` bytes of address space once and commits pages as it grows, so addresses never
 * move and running out is a clean E_NOMEM. A null arena hands out addresses that nobody may read and only
 * counts: the same pushes give the same high-water mark as a host arena, exactly. A CUDA arena is memory of the calling
 * thread's device (kernels/dev.h), committed as a host arena is; the host must not touch it. */
#ifndef UNICON_CORE_ARENA_H
#define UNICON_CORE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include "core/err.h"

enum arena_place { ARENA_HOST, ARENA_NULL, ARENA_CUDA };

struct arena {
    const char *name;           /* for messages: "model", "step", "scratch" */
    enum arena_place place;
    char *base;
    size_t cap, committed, used, high;
    size_t sealed_at;           /* arena_seal: no push may pass this; 0 = open */
};

enum { ARENA_ALIGN = 64 };

int arena_init(struct arena *a, const char *name, enum arena_place place, size_t cap_bytes, struct err *e);
void arena_free(struct arena *a);                       /* takes a zeroed or half-made one */

/* `bytes` rounded up to ARENA_ALIGN, or NULL: E_NOMEM past the cap or the system's limit, E_BUG past the
 * seal. A push of 0 bytes gives a valid address. */
void *arena_push(struct arena *a, size_t bytes, struct err *e);
void *arena_push_zero(struct arena *a, size_t bytes, struct err *e);   /* host only: cleared */

size_t arena_mark(const struct arena *a);
void arena_release(struct arena *a, size_t mark);       /* under ASan what lies above is poisoned */
void arena_seal(struct arena *a);                       /* from here on nothing may grow past `high` */

/* The largest `used` since the start, and a restart of that count from where it stands. */
size_t arena_high(const struct arena *a);
void arena_reset_high(struct arena *a);

/* Fault injection for tests: the n-th allocation from now (1 = next) fails with E_NOMEM; 0 disarms. Allocations are the
 * pushes on any arena, the making of one, and what others ask arena_fault_now() for: it counts one and is true if that
 * one has to fail. arena_fault_count() is how many there have been since arming. */
void arena_fault_at(long n);
long arena_fault_count(void);
bool arena_fault_now(void);

#endif
