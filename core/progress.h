/* core/progress.h: how long work tells how far it is, and learns that it has to stop. */
#ifndef UNICON_CORE_PROGRESS_H
#define UNICON_CORE_PROGRESS_H

#include <stdint.h>

struct progress {
    /* `done` of `total` of `what` ("loading", "sampling", "decoding"). Nonzero: stop now, with E_CANCEL. */
    int (*tick)(void *ctx, const char *what, int64_t done, int64_t total);
    void *ctx;
};

/* p or p->tick may be NULL. */
static inline int progress_tick(const struct progress *p, const char *what, int64_t done, int64_t total)
{
    return p && p->tick ? p->tick(p->ctx, what, done, total) : 0;
}

#endif
