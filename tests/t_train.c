/* tests/t_train.c: a whole training step of a small UNet (graph.h): neither checkpointing nor threads nor what ran
 * before change a bit of it, and a dry run knows its memory. */
#include <stdio.h>
#include <string.h>

#include "tests/graph.h"
#include "tests/tap.h"

static struct err e;
static struct graph g;

static bool open_graph(const char *device, int threads, enum dtype type, bool segments)
{
    if (graph_open(&g, device, threads, type, &e)) {
        tap_ok(false, "graph on %s: %s", device, e.text);
        return false;
    }
    g.segments = segments;
    return true;
}

/* *kept: what the forward pass left in step. */
static uint64_t step_digest(const char *device, int threads, enum dtype type, bool segments, size_t *kept)
{
    uint64_t h = 0;

    if (!open_graph(device, threads, type, segments))
        return 0;
    if (graph_step(&g, &e))
        tap_note("step on %s: %s", device, e.text);
    else
        h = graph_digest(&g);
    if (kept)
        *kept = arena_mark(&g.mem.step);
    if (g.mem.grads.used || g.mem.scratch.used)
        tap_ok(false, "%zu bytes of gradients and %zu of scratch were left", g.mem.grads.used, g.mem.scratch.used);
    graph_close(&g);
    return h;
}

static void test_segments(void)
{
    for (enum dtype type = F32; type < N_DTYPE; type++) {
        size_t whole, parts;
        const uint64_t a = step_digest("cpu", 2, type, false, &whole), b = step_digest("cpu", 2, type, true, &parts);

        tap_ok(a && a == b, "%s: nested segments give the same gradients, bit for bit", dtype_name(type));
        tap_ok(parts < whole, "%s: and keep less: %zu bytes of %zu", dtype_name(type), parts, whole);
    }
}

static void test_threads(void)
{
    for (enum dtype type = F32; type < N_DTYPE; type++) {
        const uint64_t one = step_digest("cpu", 1, type, true, NULL);

        tap_ok(one && one == step_digest("cpu", 2, type, true, NULL) && one == step_digest("cpu", 3, type, true, NULL),
               "%s: a training step has the same bits on 1, 2 and 3 threads", dtype_name(type));
    }
}

static void test_repeat(void)
{
    struct tensor *y;
    float *first;
    bool same;
    uint64_t h[2];

    if (!open_graph("cpu", 2, F32, false))
        return;
    same = !graph_infer(&g, &y, &e);
    first = same ? memcpy(arena_push(&g.model, tensor_bytes(y), &e), y->data, tensor_bytes(y)) : NULL;
    for (int i = 0; i < 2; i++)
        h[i] = graph_step(&g, &e) ? (uint64_t)i : graph_digest(&g);
    tap_ok(h[0] == h[1], "two steps have the same bits");
    g.segments = true;
    same = same && !graph_infer(&g, &y, &e) && !memcmp(first, y->data, tensor_bytes(y));
    tap_ok(same, "so have inference before and after, with and without segments");
    g.frozen = true;
    tap_ok(!graph_step(&g, &e), "only the latents watched: %s", e.text);
    h[0] = 0;
    for (int i = 0; i < g.n_param; i++)
        for (size_t j = 0; j < tensor_bytes(g.grad[i]); j++)
            h[0] |= ((unsigned char *)g.grad[i]->data)[j];
    tap_ok(h[0] == 0, "and no gradient reaches a weight");
    graph_close(&g);
}

/* Bytes and work of inference, a training step, and one in segments. */
struct cost {
    size_t peak[3];
    int64_t flops[3];
};

static bool measure(const char *device, struct cost *c)
{
    bool ok = true;

    for (int i = 0; i < 3; i++) {
        struct tensor *y;

        if (!open_graph(device, 2, BF16, i == 2))
            return false;
        memset(&g.dev.count, 0, sizeof g.dev.count);
        if (i ? graph_step(&g, &e) : graph_infer(&g, &y, &e)) {
            tap_note("%s: %s", device, e.text);
            ok = false;
        }
        c->peak[i] = tape_peak_bytes(&g.mem);
        c->flops[i] = g.dev.count.flops;
        graph_close(&g);
    }
    return ok;
}

static void test_dry_run(void)
{
    static const char *const what[] = { "inference", "training", "training in segments" };
    struct cost real, dry;

    if (!tap_ok(measure("cpu", &real) && measure("null", &dry), "everything runs on the null device"))
        return;
    for (int i = 0; i < 3; i++)
        tap_ok(real.peak[i] == dry.peak[i] && real.peak[i] > 0, "%s: a dry run finds the peak, %zu bytes (%zu)",
               what[i], real.peak[i], dry.peak[i]);
    tap_ok(dry.flops[0] > 0 && dry.flops[1] > 2 * dry.flops[0] && dry.flops[2] > dry.flops[1],
           "and the work: %lld, %lld, %lld FLOPs", (long long)dry.flops[0], (long long)dry.flops[1],
           (long long)dry.flops[2]);
}

int main(void)
{
    test_segments();
    test_threads();
    test_repeat();
    test_dry_run();
    return tap_done();
}
