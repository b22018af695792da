/* core/arena.c: bump allocation over reserved address space.
 *
 *   base            used        high      committed                 reserved (cap rounded up)
 *    |---------------|-----------|------------|-------------------------|
 *     readable        released    never used   no access
 *
 * A host arena is one mapping without access, opened from the front in steps; it never moves and never shrinks before
 * arena_free. A null arena is the same arithmetic over addresses that no process can map. */
#include "core/arena.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "core/poison.h"
#include "kernels/dev.h"

static const size_t step_bytes = (size_t)2 << 20;       /* of commits: a huge page */
static const size_t max_cap = SIZE_MAX >> 4;            /* far beyond any machine; sums of two fit */

/* Addresses for null arenas, each arena its own: no user mapping lies there on 64-bit machines. */
static const uintptr_t null_first = (uintptr_t)1 << (sizeof(uintptr_t) * 8 - 10);
static atomic_uintptr_t null_next;

static atomic_long fault_in, n_push;

/* n up to max_cap */
static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* How memory comes: a huge page at a time, on a device what it maps at once. */
static size_t step_of(const struct arena *a) { return a->place == ARENA_CUDA ? dev_cuda_step() : step_bytes; }

static size_t reserved(const struct arena *a) { return round_up(a->cap ? a->cap : 1, step_of(a)); }

/* A range on a boundary of huge pages, which are asked for: activations are read from end to end. */
static char *map_range(size_t bytes)
{
    char *p = mmap(NULL, bytes + step_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t front;

    if (p == MAP_FAILED)
        return NULL;
    front = round_up((uintptr_t)p % step_bytes, step_bytes) - (uintptr_t)p % step_bytes;
    if (front)
        munmap(p, front);
    if (front < step_bytes)
        munmap(p + front + bytes, step_bytes - front);
    madvise(p + front, bytes, MADV_HUGEPAGE);           /* a wish; without it small pages serve */
    return p + front;
}

static const char *why_not(const struct arena *a)
{
    return a->place == ARENA_CUDA ? dev_cuda_why() : strerror(errno);
}

int arena_init(struct arena *a, const char *name, enum arena_place place, size_t cap_bytes, struct err *e)
{
    memset(a, 0, sizeof *a);
    a->name = name;
    a->place = place;
    if (cap_bytes > max_cap)
        return err_set(e, E_NOMEM, "arena '%s': nobody has %zu bytes", name, cap_bytes);
    a->cap = cap_bytes;
    if (place == ARENA_CUDA && dev_cuda_most() && cap_bytes > dev_cuda_most())
        a->cap = dev_cuda_most();       /* addresses beyond it would be of no use */
    if (arena_fault_now()) {
        a->cap = 0;
        return err_set(e, E_NOMEM, "arena '%s': out of memory, as the test wants it", name);
    }
    if (place == ARENA_NULL)
        a->base = (char *)(null_first + (atomic_fetch_add(&null_next, reserved(a)) & (SIZE_MAX >> 2)));
    else
        a->base = place == ARENA_CUDA ? dev_cuda_reserve(reserved(a)) : map_range(reserved(a));
    if (!a->base) {
        a->cap = 0;
        return err_set(e, place == ARENA_CUDA ? E_DEVICE : E_NOMEM,
                       "arena '%s': the system does not give %zu bytes of address space: %s", name, cap_bytes,
                       why_not(a));
    }
    return OK;
}

void arena_free(struct arena *a)
{
    if (a->base && a->place == ARENA_HOST) {
        UNPOISON(a->base, a->committed);
        munmap(a->base, reserved(a));
    } else if (a->base && a->place == ARENA_CUDA)
        dev_cuda_unreserve(a->base, a->committed, reserved(a));
    memset(a, 0, sizeof *a);
}

/* Open memory up to `need`, and an eighth more so that a growing arena asks seldom. */
static bool commit(struct arena *a, size_t need)
{
    const size_t limit = reserved(a), least = round_up(need, step_bytes);
    size_t to = round_up(need + a->committed / 8, step_bytes);

    if (a->place == ARENA_NULL || need <= a->committed)
        return true;
    if (a->place == ARENA_CUDA) {
        to = round_up(need, step_of(a));
        if (dev_cuda_commit(a->base, a->committed, to))
            return false;
        a->committed = to;
        return true;
    }
    if (to > limit)
        to = limit;
    if (mprotect(a->base + a->committed, to - a->committed, PROT_READ | PROT_WRITE)) {
        to = least;
        if (mprotect(a->base + a->committed, to - a->committed, PROT_READ | PROT_WRITE))
            return false;
    }
    POISON(a->base + a->committed, to - a->committed);
    a->committed = to;
    return true;
}

void *arena_push(struct arena *a, size_t bytes, struct err *e)
{
    const size_t need = bytes < max_cap ? round_up(bytes, ARENA_ALIGN) : SIZE_MAX;
    char *p;

    if (arena_fault_now()) {
        err_set(e, E_NOMEM, "arena '%s': out of memory, as the test wants it", a->name);
        return NULL;
    }
    if (!a->base) {
        err_set(e, E_BUG, "arena '%s' is used before it is made", a->name ? a->name : "?");
        return NULL;
    }
    if (a->sealed_at && need > a->sealed_at - a->used) {
        err_set(e, E_BUG, "arena '%s' is sealed at %zu bytes: %zu in use, %zu more asked for", a->name, a->high,
                a->used, bytes);
        return NULL;
    }
    if (need > a->cap - a->used) {
        err_set(e, E_NOMEM, "arena '%s' is full: %zu of %zu bytes in use, %zu more asked for", a->name, a->used, a->cap,
                bytes);
        return NULL;
    }
    if (!commit(a, a->used + need)) {
        err_set(e, E_NOMEM, "arena '%s': the %s does not give %zu bytes beyond %zu: %s", a->name,
                a->place == ARENA_CUDA ? "device" : "system", bytes, a->used, why_not(a));
        return NULL;
    }
    p = a->base + a->used;
    a->used += need;
    if (a->used > a->high)
        a->high = a->used;
    if (a->place == ARENA_HOST)
        UNPOISON(p, bytes);
    return p;
}

void *arena_push_zero(struct arena *a, size_t bytes, struct err *e)
{
    void *p;

    if (a->place != ARENA_HOST) {
        err_set(e, E_BUG, "arena '%s' is not on the host: it cannot be cleared", a->name);
        return NULL;
    }
    p = arena_push(a, bytes, e);
    return p ? memset(p, 0, bytes) : NULL;
}

size_t arena_mark(const struct arena *a)
{
    return a->used;
}

/* A mark above what is in use was released before: nothing to do. */
void arena_release(struct arena *a, size_t mark)
{
    if (mark >= a->used)
        return;
    if (a->place == ARENA_HOST)
        POISON(a->base + mark, a->used - mark);
    a->used = mark;
}

/* An arena that was never used is sealed too: pushes are multiples of ARENA_ALIGN, so none fits under 1. */
void arena_seal(struct arena *a)
{
    a->sealed_at = a->high ? a->high : 1;
}

size_t arena_high(const struct arena *a)
{
    return a->high;
}

void arena_reset_high(struct arena *a)
{
    a->high = a->used;
}

void arena_fault_at(long n)
{
    atomic_store(&n_push, 0);
    atomic_store(&fault_in, n > 0 ? n : 0);
}

bool arena_fault_now(void)
{
    atomic_fetch_add(&n_push, 1);
    return atomic_load(&fault_in) > 0 && atomic_fetch_sub(&fault_in, 1) == 1;
}

long arena_fault_count(void)
{
    return atomic_load(&n_push);
}
