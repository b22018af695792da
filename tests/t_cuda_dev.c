/* tests/t_cuda_dev.c: the device behind kernels/dev.h and core/device.h: which is refused and with what words, memory
 * that grows in place, copies, work as graphs, how far the host runs ahead. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/device.h"
#include "tests/cuda_kit.h"

static const size_t MiB = (size_t)1 << 20;

static bool says(const struct err *e, int code, const char *text) { return e->code == code && strstr(e->text, text); }

/* ---- opening ---- */

static void test_refused(void)
{
    static const struct {
        const char *name;
        int code;
        const char *text;
    } bad[] = {
        { "cuda:4000", E_DEVICE, "there" }, { "cuda:-1", E_ARG, "cuda:N" }, { "cuda:1x", E_ARG, "cuda:N" },
        { "cuda:", E_ARG, "unknown device" }, { "cudax", E_ARG, "unknown device" }, { "cuda:99999", E_ARG, "cuda:N" },
    };
    struct device d;
    struct err e = { 0 };

    for (size_t i = 0; i < LEN(bad); i++)
        tap_ok(device_open(&d, bad[i].name, 0, &e) == bad[i].code && says(&e, bad[i].code, bad[i].text) && !d.queue,
               "%s: %s", bad[i].name, e.text);
}

/* What a device may be that cannot be used; only the emulated one can be made so. */
static void test_unusable(void)
{
    struct device d;
    struct err e = { 0 };

    if (!cuda_kit_emulated()) {
        tap_skip("devices that are too old or too small", "the device is what it is");
        return;
    }
    setenv("UNICON_EMU_CC", "75", 1);
    tap_ok(device_open(&d, "cuda", 0, &e) == E_DEVICE && says(&e, E_DEVICE, "too old") && strstr(e.text, "use cpu"),
           "%s", e.text);
    unsetenv("UNICON_EMU_CC");
    setenv("UNICON_EMU_DEVICES", "0", 1);
    tap_ok(device_open(&d, "cuda", 0, &e) == E_DEVICE && says(&e, E_DEVICE, "no CUDA-capable device"), "%s", e.text);
    setenv("UNICON_EMU_DEVICES", "2", 1);
    tap_ok(device_open(&d, "cuda:1", 0, &e) == OK && d.queue, "the second of two");
    device_close(&d);
    tap_ok(device_open(&d, "cuda:2", 0, &e) == E_DEVICE && says(&e, E_DEVICE, "2 devices"), "%s", e.text);
    unsetenv("UNICON_EMU_DEVICES");
    dev_cuda_close(NULL);
}

/* Sizes and plans need no device. */
static void test_null(void)
{
    struct device d;
    struct err e = { 0 };
    bool ok = device_open(&d, "null:cuda", 4, &e) == OK && d.apart && !d.queue && d.ctx.n_threads == 1;

    ok = ok && d.ctx.scratch_bytes >= kern_cuda()->scratch_bytes && device_arena_bytes(&d, 1) == dev_cuda_step();
    tap_ok(ok && device_free_bytes(&d) == INT64_MAX, "null:cuda stands for it %s", e.text);
    device_close(&d);
}

/* ---- memory ---- */

static void fill_pattern(unsigned char *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (unsigned char)((i * 2654435761u + seed) >> 13);
}

static bool same_there(struct device *d, const void *dev, const unsigned char *want, unsigned char *space, size_t n)
{
    struct err e = { 0 };

    memset(space, 0, n);
    return !device_get(d, space, dev, n, &e) && !memcmp(space, want, n);
}

/* An arena grows while what lies in it stays, also under work that is not done yet. */
static void test_arena(struct device *d)
{
    const size_t big = 3 * dev_cuda_step() + 12345;
    unsigned char *small_host = malloc(1000), *big_host = malloc(big), *space = malloc(big);
    struct err e = { 0 };
    struct arena a;
    char *p, *q, *r;
    bool ok = !arena_init(&a, "growing", ARENA_CUDA, (size_t)1 << 36, &e) && arena_mark(&a) == 0;

    if (!small_host || !big_host || !space)
        exit(1);
    fill_pattern(small_host, 1000, 1);
    fill_pattern(big_host, big, 2);
    p = arena_push(&a, 1000, &e);
    ok = ok && p && (uintptr_t)p % ARENA_ALIGN == 0 && !device_put(d, p, small_host, 1000, &e);
    q = arena_push(&a, big, &e);
    ok = ok && q && !device_put(d, q, big_host, big, &e);
    ok = ok && same_there(d, p, small_host, space, 1000) && same_there(d, q, big_host, space, big);
    arena_release(&a, 0);
    r = arena_push(&a, 64, &e);
    tap_ok(ok && r == p && a.committed % dev_cuda_step() == 0 && arena_high(&a) >= big, "memory grows in place %s",
           e.text);
    tap_ok(!arena_push_zero(&a, 1, &e) && says(&e, E_BUG, "not on the host"), "%s", e.text);
    arena_free(&a);
    err_clear(&e);
    if (cuda_kit_emulated()) {
        char text[32];

        snprintf(text, sizeof text, "%zu", (size_t)2048 * MiB);
        setenv("UNICON_EMU_MEMORY", text, 1);
    }
    ok = !arena_init(&a, "vast", ARENA_CUDA, (size_t)1 << 42, &e);
    p = ok ? arena_push(&a, (size_t)1 << 41, &e) : NULL;
    tap_ok(!p && says(&e, E_NOMEM, "'vast'"), "more than there is: %s", e.text);
    if (cuda_kit_emulated()) {
        err_clear(&e);
        p = arena_push(&a, 3072 * MiB, &e);
        ok = !p && says(&e, E_NOMEM, "MiB free of") && a.committed == 0 && arena_push(&a, 64 * MiB, &e);
        tap_ok(ok, "more than is free leaves what was: %s", e.text);
    }
    arena_free(&a);
    unsetenv("UNICON_EMU_MEMORY");
    free(small_host);
    free(big_host);
    free(space);
}

/* What is put may change at once, though the copy runs later. */
static void test_copies(struct device *d)
{
    const size_t n = 37 * MiB + 11;
    unsigned char *host = malloc(n), *want = malloc(n), *space = malloc(n);
    struct err e = { 0 };
    struct arena a;
    char *p;
    bool ok;

    if (!host || !want || !space)
        exit(1);
    fill_pattern(want, n, 3);
    memcpy(host, want, n);
    ok = !arena_init(&a, "copies", ARENA_CUDA, (size_t)1 << 30, &e) && (p = arena_push(&a, n, &e))
        && !device_put(d, p, host, n, &e);
    memset(host, 0, n);
    ok = ok && same_there(d, p, want, space, n) && !device_put(d, p, host, 0, &e) && !device_sync(d, &e);
    for (int i = 0; i < 20 && ok; i++) {                    /* many small ones take turns in pinned memory */
        fill_pattern(host, 100, (unsigned)i);
        ok = !device_put(d, p + 100 * i, host, 100, &e);
    }
    for (int i = 0; i < 20 && ok; i++) {
        fill_pattern(host, 100, (unsigned)i);
        ok = same_there(d, p + 100 * i, host, space, 100);
    }
    tap_ok(ok, "what is put may change, what is got is what was put %s", e.text);
    arena_free(&a);
    free(host);
    free(want);
    free(space);
}

/* ---- work as graphs ---- */

enum { N = 1000 };

/* y = value, then y = 2 y + y */
static int work(struct device *d, float *y, float value)
{
    int rc = d->kern->fill(&d->ctx, y, F32, N, value);

    return rc ? rc : d->kern->axpby(&d->ctx, y, 2, y, 1, y, F32, N);
}

static bool all_are(struct device *d, const float *y, float want)
{
    float host[N];
    struct err e = { 0 };

    if (device_get(d, host, y, sizeof host, &e))
        return false;
    for (int i = 0; i < N; i++)
        if (host[i] != want)
            return false;
    return true;
}

static struct dev_cuda_counts counts(const struct device *d)
{
    struct dev_cuda_counts c;

    dev_cuda_counts(d->queue, &c);
    return c;
}

/* The first time by itself, then as a graph that takes other arguments and other addresses. */
static void test_graphs(struct device *d)
{
    struct err e = { 0 };
    struct arena a;
    float *y[2], host = 5;
    bool ok = !arena_init(&a, "graphs", ARENA_CUDA, (size_t)1 << 30, &e);
    struct dev_cuda_counts c;

    y[0] = ok ? arena_push(&a, N * sizeof(float), &e) : NULL;
    y[1] = ok ? arena_push(&a, N * sizeof(float), &e) : NULL;
    ok = y[0] && y[1];
    for (int i = 0; i < 5 && ok; i++) {
        ok = !device_step_begin(d, 17, &e) && !work(d, y[i % 2], (float)i) && !device_step_end(d, &e);
        c = counts(d);
        ok = ok && c.graph_launches == i && c.graphs_made == (i > 0) && all_are(d, y[i % 2], 3 * (float)i);
    }
    tap_ok(ok, "the same work with other arguments is the same graph %s", e.text);
    ok = !device_step_begin(d, 17, &e) && !d->kern->fill(&d->ctx, y[0], F32, N, 7) && !device_step_end(d, &e);
    c = counts(d);
    tap_ok(ok && all_are(d, y[0], 7) && c.graph_launches == 5 && c.graphs_made == 2,
           "work of another shape under the same key makes a graph anew %s", e.text);
    ok = !device_step_begin(d, 17, &e) && !device_step_end(d, &e);
    tap_ok(ok && counts(d).graph_launches == 5, "nothing is no graph %s", e.text);
    ok = !device_step_begin(d, 17, &e) && !d->kern->fill(&d->ctx, y[0], F32, N, 8)
        && !device_put(d, y[0], &host, sizeof host, &e) && !d->kern->axpby(&d->ctx, y[0], 2, y[0], 0, NULL, F32, N)
        && !device_step_end(d, &e);
    if (ok) {
        float got[2];

        ok = !device_get(d, got, y[0], sizeof got, &e) && got[0] == 10 && got[1] == 16;
    }
    tap_ok(ok, "a copy from the host ends a graph, and all is done in its order %s", e.text);
    for (int key = 100; key < 120 && ok; key++)
        for (int i = 0; i < 2 && ok; i++)
            ok = !device_step_begin(d, (uint64_t)key, &e) && !work(d, y[0], (float)key) && !device_step_end(d, &e)
                && all_are(d, y[0], 3 * (float)key);
    tap_ok(ok && counts(d).graphs_made == 2 + 20, "more keys than are kept: %d graphs %s", (int)counts(d).graphs_made,
           e.text);
    arena_free(&a);
}

static void test_failure(struct device *d)
{
    struct err e = { 0 };

    tap_ok(d->kern->unary_back(&d->ctx, K_SILU, NULL, NULL, NULL, F32, 5) == K_MISSING, "no backward kernels yet");
    tap_ok(!device_sync(d, &e), "nothing failed %s", e.text);
}

int main(void)
{
    struct device d;
    struct err e = { 0 };

    if (!cuda_kit_begin())
        return 0;
    test_refused();
    test_unusable();
    test_null();
    if (device_open(&d, "cuda", 0, &e)) {
        printf("Bail out! %s\n", e.text);
        return 1;
    }
    test_arena(&d);
    test_copies(&d);
    test_graphs(&d);
    test_failure(&d);
    device_close(&d);
    return cuda_kit_end();
}
