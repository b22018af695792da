/* core/pool.h: blocks given back in any order, over one arena. Gradients live here: skip connections keep
 * theirs long after their neighbours' are gone, which a stack cannot do. First fit, neighbours merged; the
 * same calls give the same addresses. The book-keeping is host memory of the pool's own. */
#ifndef UNICON_CORE_POOL_H
#define UNICON_CORE_POOL_H

#include "core/arena.h"

struct pool {
    struct arena *arena;        /* borrowed; only the pool pushes to it */
    struct pool_block *block;   /* sorted by address, neighbours merged when free */
    int n_block, cap_block;
    size_t used, high;          /* bytes in use; most ever */
};

int pool_init(struct pool *p, struct arena *arena, struct err *e);
void pool_free(struct pool *p);
void *pool_take(struct pool *p, size_t bytes, struct err *e);  /* 64-byte aligned, or NULL with E_NOMEM */
void pool_give(struct pool *p, void *block);                   /* NULL is fine */
void pool_reset(struct pool *p);                               /* gives everything back */

#endif
