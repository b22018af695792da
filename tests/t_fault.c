/* tests/t_fault.c: every allocation of a training step, and of what it stands on, fails once, in turn. Each failure is
 * an error with a message, and the step after it gives the bits that it always gave. */
#include <string.h>

#include "tests/graph.h"
#include "tests/tap.h"

/* One step that runs out of memory at the n-th push, then one that does not. Returns 0 when n was past the last. */
static bool fail_at(long n, bool segments, uint64_t want, bool *ok)
{
    struct err e = { 0 }, after = { 0 };
    struct graph g;
    bool opened;
    int rc;

    arena_fault_at(n);
    rc = graph_open(&g, "cpu", 1, F32, &e);
    opened = !rc;
    g.segments = segments;
    if (opened)
        rc = graph_step(&g, &e);
    arena_fault_at(0);
    if (rc && (rc != E_NOMEM || e.code != E_NOMEM || !e.text[0])) {
        tap_note("allocation %ld: code %d, '%s'", n, rc, e.text);
        *ok = false;
    }
    if (!opened)
        return true;                                    /* graph_open left nothing behind: ASan says so */
    if (graph_step(&g, &after) || graph_digest(&g) != want) {
        tap_note("allocation %ld (%s), then: %s", n, e.text, after.code ? after.text : "other bits");
        *ok = false;
    }
    if (g.mem.grads.used || g.mem.scratch.used) {
        tap_note("allocation %ld: %zu bytes of gradients, %zu of scratch left", n, g.mem.grads.used,
                 g.mem.scratch.used);
        *ok = false;
    }
    graph_close(&g);
    return rc != OK;
}

static uint64_t reference(bool segments)
{
    struct err e = { 0 };
    struct graph g;
    uint64_t h = 0;

    if (graph_open(&g, "cpu", 1, F32, &e))
        return 0;
    g.segments = segments;
    if (!graph_step(&g, &e))
        h = graph_digest(&g);
    else
        tap_note("%s", e.text);
    graph_close(&g);
    return h;
}

int main(void)
{
    for (int segments = 0; segments < 2; segments++) {
        const uint64_t want = reference(segments);
        bool ok = want != 0;
        long n = 1;

        while (ok && fail_at(n, segments, want, &ok))
            n++;
        tap_ok(ok && n > 100, "%s: %ld allocations failed in turn", segments ? "in segments" : "a step", n - 1);
    }
    return tap_done();
}
