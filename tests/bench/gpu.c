/* tests/bench/gpu.c: what a device does, in its own time: kernels and models of SD1.5, each beside a peak measured in
 * the same run (a copy, a large product).
 *
 *     bench gpu [-p] [-tiny] [-d DEVICE] [peak|product|attention|memory|models|parity ...]
 *
 * DEVICE is "cuda" if unsaid, sections are all but `parity`. A line for each: name, milliseconds, rate, unit, share of
 * the measured peak, with tabs between; -p: as a table for people. -tiny: sizes for a device that is slow, to see that
 * everything runs. `parity` has, instead of a rate, how far whole models of full size are from f32 on the processor,
 * and as the last column what they may be. What fails is told on standard error; the status is then 1.
 *
 * Times are of the wall: from the first call until the device has done the last. Weights and operands are random. FLOPs
 * and bytes are what the null device counts; operands of small kernels may lie in the device's cache, so that rates
 * beyond that of a copy are possible. */
#include "tests/bench/gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/tensor.h"
#include "kernels/cuda_product.h"
#include "kernels/dev.h"
#include "tests/bench/bench.h"

enum { N_ROUND = 5, MAX_CALLS = 2000 };
static const double round_s = 0.01;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Seconds of n calls and all of their work, or negative. */
static double calls(struct gpu *g, int (*f)(void *arg), void *arg, int n)
{
    const double began = now();

    for (int i = 0; i < n; i++)
        if (f(arg))
            return -1;
    return device_sync(&g->dev, &g->e) ? -1 : now() - began;
}

double gpu_time(struct gpu *g, int (*f)(void *arg), void *arg, double per_round)
{
    const int rounds = g->tiny ? 1 : N_ROUND;
    double once, seconds[N_ROUND];
    int n = 1;

    err_clear(&g->e);
    for (int i = 0; i < 2; i++)         /* what is made at first use is made, and the clocks are up */
        if ((once = calls(g, f, arg, 1)) < 0)
            return -1;
    if (!g->tiny && once < per_round)
        n = per_round / once < MAX_CALLS ? (int)(per_round / once) : MAX_CALLS;
    for (int i = 0; i < rounds; i++)
        if ((seconds[i] = calls(g, f, arg, n)) < 0)
            return -1;
    qsort(seconds, (size_t)rounds, sizeof *seconds, by_size);
    return seconds[rounds / 2] / n;
}

void gpu_row(struct gpu *g, const char *name, double seconds, double amount, bool flops, double peak, const char *why)
{
    const double rate = amount / seconds, scale = flops ? 1e-12 : 1e-9, share = peak > 0 ? rate / peak : 0;
    const char *unit = flops ? "TFLOP/s" : "GB/s";

    if (seconds <= 0) {
        fprintf(stderr, "bench: %s: %s\n", name, why && *why ? why : "failed");
        g->n_failed++;
        return;
    }
    if (g->people)
        printf("  %-46s %10.4f ms %9.2f %-7s %6.1f %%\n", name, 1e3 * seconds, rate * scale, unit, 100 * share);
    else
        printf("%s\t%.4f\t%.2f\t%s\t%.3f\n", name, 1e3 * seconds, rate * scale, unit, share);
    fflush(stdout);
}

int gpu_put_values(struct gpu *g, void *dst, enum dtype type, int64_t n)
{
    const int64_t step = g->n_value;
    int rc = OK;

    for (int64_t at = 0; at < n && !rc; at += step)
        rc = device_put(&g->dev, (char *)dst + (size_t)at * dtype_bytes(type), g->typed[type],
                        (size_t)(n - at < step ? n - at : step) * dtype_bytes(type), &g->e);
    return rc;
}

void *gpu_values(struct gpu *g, enum dtype type, int64_t n)
{
    void *p = arena_push(&g->mem, (size_t)n * dtype_bytes(type), &g->e);

    return p && !gpu_put_values(g, p, type, n) ? p : NULL;
}

/* ---- one kernel ---- */

typedef int kernel_fn(const struct kern *f, struct kctx *k, const void *arg);

struct kernel_case {
    struct gpu *g;
    kernel_fn *f;
    const void *arg;
    int status;
};

static int run_kernel(void *arg)
{
    struct kernel_case *c = arg;

    return c->status = c->f(c->g->dev.kern, &c->g->dev.ctx, c->arg);
}

static const char *why_not(const struct kernel_case *c)
{
    static const char *const text[] = { [-K_ARG] = "K_ARG", [-K_SCRATCH] = "K_SCRATCH", [-K_LAUNCH] = "K_LAUNCH",
                                        [-K_MISSING] = "this twin does not have it" };

    return c->status == K_LAUNCH ? dev_cuda_why() : c->status ? text[-c->status] : c->g->e.text;
}

/* Prints its line and gives its time; peak 0: bytes count, beside the copy. */
static double kernel_row(struct gpu *g, const char *name, kernel_fn *f, const void *arg, double peak)
{
    struct kernel_case c = { g, f, arg, 0 };
    double seconds, amount;

    g->null.count = (struct kcount){ 0, 0, 0 };
    f(g->null.kern, &g->null.ctx, arg);
    amount = (double)(peak > 0 ? g->null.count.flops : g->null.count.bytes);
    seconds = gpu_time(g, run_kernel, &c, round_s);
    gpu_row(g, name, seconds, amount, peak > 0, peak > 0 ? peak : g->copy, why_not(&c));
    return seconds;
}

/* ---- peaks ---- */

static int do_gemm(const struct kern *f, struct kctx *k, const void *arg) { return f->gemm(k, arg); }

struct rows {
    void *y, *x;
    enum dtype type;
    int64_t rows, n;
};

static int do_copy(const struct kern *f, struct kctx *k, const void *arg)
{
    const struct rows *c = arg;

    return f->copy_rows(k, c->y, c->n, c->x, c->n, c->type, c->rows, c->n, false);
}

/* Two blocks of 1 GiB; products of 8192 x 8192 x 8192, f32 of half that. */
static void measure_peaks(struct gpu *g)
{
    const size_t mark = arena_mark(&g->mem);
    struct rows c = { .type = F32, .rows = g->tiny ? 16 : 1 << 16, .n = 4096 };
    const double bytes = 8.0 * (double)(c.rows * c.n);
    struct kernel_case copy = { g, do_copy, &c, 0 };
    double seconds = -1;
    char name[64];

    c.x = gpu_values(g, F32, c.rows * c.n);
    c.y = c.x ? gpu_values(g, F32, c.rows * c.n) : NULL;
    if (c.y)
        seconds = gpu_time(g, run_kernel, &copy, 4 * round_s);
    g->copy = seconds > 0 ? bytes / seconds : 0;
    gpu_row(g, g->tiny ? "peak copy" : "peak copy of 1 GiB", seconds, bytes, false, g->copy, why_not(&copy));
    arena_release(&g->mem, mark);
    for (int t = N_DTYPE - 1; t >= 0; t--) {
        const enum dtype type = (enum dtype)t;
        const int64_t n = g->tiny ? 32 : t == F32 ? 4096 : 8192;
        struct kgemm p = { .M = n, .N = n, .K = n, .n = 1, .a_type = type, .b_type = type, .c_type = type, .lda = n,
                           .ldb = n, .ldc = n, .trans_b = true, .alpha = 1 };
        struct kernel_case gemm = { g, do_gemm, &p, 0 };
        const double flops = 2.0 * (double)n * (double)n * (double)n;

        p.a = gpu_values(g, type, n * n);
        p.b = p.a ? gpu_values(g, type, n * n) : NULL;
        p.c = p.b ? gpu_values(g, type, n * n) : NULL;
        seconds = p.c ? gpu_time(g, run_kernel, &gemm, 4 * round_s) : -1;
        g->peak[t] = seconds > 0 ? flops / seconds : 0;
        snprintf(name, sizeof name, "peak product of %d %s", (int)n, dtype_name(type));
        gpu_row(g, name, seconds, flops, true, g->peak[t], why_not(&gemm));
        arena_release(&g->mem, mark);
    }
}

/* Shares of nothing are 0, but they are still shares of FLOPs. */
static double peak_of(const struct gpu *g, enum dtype t) { return g->peak[t] > 0 ? g->peak[t] : 1e30; }

/* ---- products ---- */

/* Where the planner is not in the build there is one way. */
#pragma weak product_forced

enum { BATCH = 4, AUTO = 0, N_WAY = 4 };
static const char *const way_name[N_WAY] = { "", ", cuBLASLt", ", tiles", ", tiles by mma.sync" };

static int do_conv(const struct kern *f, struct kctx *k, const void *arg) { return f->conv(k, arg); }

/* A layer that is as deep and as wide in proportion, for devices that are slow. */
static struct bench_shape tiny_shape(struct bench_shape s)
{
    s.side = s.side ? s.side / 8 + 1 : 0;
    s.side += s.side * s.stride % s.up;
    s.rows = s.rows / 64;
    s.Ci = s.Ci > 16 ? s.Ci / 16 : s.Ci;
    s.Co = s.Co > 16 ? s.Co / 16 : s.Co;
    return s;
}

/* Times of one layer by each way that is asked for, 0 for others; false if it cannot be made. */
static bool product(struct gpu *g, const struct bench_shape *s, enum dtype t, unsigned ways, double seconds[N_WAY])
{
    struct kpack pack;
    struct kconv c = bench_product(s, t, g->tiny ? 1 : BATCH, false, false, &pack);
    const struct kgeom *geo = &c.part[0].g;
    void *packed = arena_push(&g->mem, g->dev.kern->pack_bytes(&pack), &g->e);
    char name[128], text[64];
    int rc;

    c.part[0].pack = packed;
    c.part[0].x = gpu_values(g, t, c.B * geo->H * geo->W * geo->Ci);
    c.y = gpu_values(g, t, c.B * geo->Ho * geo->Wo * geo->Co);
    c.bias = gpu_values(g, F32, geo->Co);
    if (!packed || !c.part[0].x || !c.y || !c.bias)
        return false;
    rc = g->dev.kern->pack(&g->dev.ctx, packed, &pack, g->typed[F32]);
    if (rc) {
        err_set(&g->e, E_DEVICE, "packing: %s", why_not(&(struct kernel_case){ g, NULL, NULL, rc }));
        return false;
    }
    for (int way = 0; way < N_WAY; way++) {
        seconds[way] = 0;
        if (!(ways >> way & 1) || (way && !&product_forced))
            continue;
        if (&product_forced)
            product_forced = way;       /* 1 + enum product_way, PRODUCT_BY_MMA_SYNC */
        snprintf(name, sizeof name, "%s %s x%d %s%s", s->layer, bench_shape_text(s, text, sizeof text),
                 g->tiny ? 1 : BATCH, dtype_name(t), way_name[way]);
        seconds[way] = kernel_row(g, name, do_conv, &c, peak_of(g, t));
    }
    if (&product_forced)
        product_forced = AUTO;
    return true;
}

/* All ways for bf16, the planner's choice for both types; then all of a pass of the UNet, each layer as often as it
 * occurs: as chosen, and by whichever was best. */
static void products(struct gpu *g, enum dtype t)
{
    const unsigned ways = t == BF16 ? 15 : 1;
    double flops = 0, chosen = 0, best = 0;
    char name[64];

    for (int i = 0; i < bench_n_shapes; i += g->tiny ? 5 : 1) {
        const struct bench_shape s = g->tiny ? tiny_shape(bench_shapes[i]) : bench_shapes[i];
        const size_t mark = arena_mark(&g->mem);
        double seconds[N_WAY] = { -1 }, least;

        if (!product(g, &s, t, ways, seconds))
            gpu_row(g, s.layer, -1, 0, true, 0, g->e.text);
        arena_release(&g->mem, mark);
        least = seconds[AUTO];
        for (int way = 1; way < N_WAY; way++)
            least = seconds[way] > 0 && seconds[way] < least ? seconds[way] : least;
        flops += s.count * (double)g->null.count.flops;
        chosen = seconds[AUTO] < 0 || chosen < 0 ? -1 : chosen + s.count * seconds[AUTO];
        best = least < 0 || best < 0 ? -1 : best + s.count * least;
    }
    if (chosen < 0)
        return;
    snprintf(name, sizeof name, "all products of a pass x%d %s", g->tiny ? 1 : BATCH, dtype_name(t));
    gpu_row(g, name, chosen, flops, true, peak_of(g, t), NULL);
    snprintf(name, sizeof name, "all products of a pass x%d %s, best ways", g->tiny ? 1 : BATCH, dtype_name(t));
    if (ways != 1)
        gpu_row(g, name, best, flops, true, peak_of(g, t), NULL);
}

/* ---- attention ---- */

static int do_attn(const struct kern *f, struct kctx *k, const void *arg) { return f->attn(k, arg); }

static void attention(struct gpu *g, enum dtype t)
{
    for (int i = 0; i < bench_n_attentions; i++) {
        const struct bench_attention *s = &bench_attentions[i];
        const int64_t B = g->tiny ? 1 : BATCH, C = (int64_t)s->N * s->D, cut = g->tiny ? 64 : 1;
        const int64_t Tq = (s->Tq + cut - 1) / cut, Tk = (s->Tk + cut - 1) / cut;
        const size_t mark = arena_mark(&g->mem);
        struct kattn a = { .type = t, .B = B, .N = s->N, .Tq = Tq, .Tk = Tk, .D = s->D, .ldq = C, .ldk = C, .ldv = C,
                           .ldo = C, .scale = 0.15f, .causal = s->causal };
        char name[128];

        a.q = gpu_values(g, t, B * Tq * C);
        a.k = gpu_values(g, t, B * Tk * C);
        a.v = gpu_values(g, t, B * Tk * C);
        a.o = gpu_values(g, t, B * Tq * C);
        snprintf(name, sizeof name, "attention %s, %dx%d, %dx%d x%d %s", s->what, (int)Tq, (int)Tk, s->N, s->D, (int)B,
                 dtype_name(t));
        if (a.q && a.k && a.v && a.o)
            kernel_row(g, name, do_attn, &a, peak_of(g, t));
        else
            gpu_row(g, name, -1, 0, true, 0, g->e.text);
        arena_release(&g->mem, mark);
    }
}

/* ---- what moves bytes ---- */

enum moves { GROUP_NORM, GROUP_NORM_SILU, LAYER_NORM, SILU, GEGLU, ADD, JOIN, TO_NHWC, NEAREST, CAST, SOFTMAX, NORMAL,
             N_MOVES };
static const char *const moves_name[] = { "GroupNorm", "GroupNorm + SiLU", "LayerNorm", "SiLU", "GEGLU", "a x + b z",
                                          "join on C", "NCHW to NHWC", "nearest x2", "cast to f32", "softmax",
                                          "random normals" };

struct move {
    enum moves op;
    enum dtype t;
    int64_t B, side, C;
    void *x, *y, *z;
    float *gamma, *beta, *mean, *rstd;
};

static int do_move(const struct kern *f, struct kctx *k, const void *arg)
{
    const struct move *m = arg;
    const int64_t B = m->B, HW = m->side * m->side, C = m->C, n = B * HW * C;
    const struct krng rng = { { 1, 2 }, { 3, 4, 5 } };
    const struct kview4 view = { { B, m->side, m->side, C }, { C * HW, m->side, 1, HW } };
    const enum dtype t = m->t;

    switch (m->op) {
    case GROUP_NORM:
    case GROUP_NORM_SILU:
        return f->group_norm(k, m->y, C, m->mean, m->rstd, m->x, C, t, m->gamma, m->beta, B, HW, C, C < 32 ? 4 : 32,
                             1e-5f, m->op == GROUP_NORM_SILU);
    case LAYER_NORM: return f->layer_norm(k, m->y, NULL, NULL, m->x, t, m->gamma, m->beta, B * HW, C, 1e-5f);
    case SILU: return f->unary(k, K_SILU, m->y, m->x, t, n);
    case GEGLU: return f->geglu(k, m->y, m->x, t, B * HW, C / 2);
    case ADD: return f->axpby(k, m->y, 0.5f, m->x, 2, m->z, t, n);
    case JOIN: return f->copy_rows(k, m->y, C, m->x, C / 2, t, B * HW, C / 2, false);
    case TO_NHWC: return f->permute(k, m->y, m->x, t, &view);
    case NEAREST: return f->nearest(k, m->y, m->x, t, B, m->side / 2, m->side / 2, C, m->side, m->side);
    case CAST: return f->cast(k, m->z, F32, m->x, t, n);
    case SOFTMAX: return f->softmax(k, m->y, m->x, t, B * HW, C);
    default: return f->random_normal(k, m->y, t, n, &rng, 0);
    }
}

/* Maps of eight pairs with guidance, which no cache holds at the first level, and those of the third. */
static void memory(struct gpu *g, enum dtype t)
{
    static const struct { int64_t side, C; } level[] = { { 64, 320 }, { 16, 1280 } };
    static const struct { int64_t side, C; } tiny_level[] = { { 4, 20 }, { 2, 64 } };

    for (int i = 0; i < 2; i++) {
        const size_t mark = arena_mark(&g->mem);
        struct move m = { .t = t, .B = g->tiny ? 2 : 32, .side = g->tiny ? tiny_level[i].side : level[i].side,
                          .C = g->tiny ? tiny_level[i].C : level[i].C };
        const int64_t n = m.B * m.side * m.side * m.C;
        bool ok;

        m.x = gpu_values(g, t, n);
        m.y = gpu_values(g, t, n);
        m.z = gpu_values(g, F32, n);
        m.gamma = gpu_values(g, F32, m.C);
        m.beta = gpu_values(g, F32, m.C);
        m.mean = gpu_values(g, F32, m.B * 32);
        m.rstd = gpu_values(g, F32, m.B * 32);
        ok = m.x && m.y && m.z && m.gamma && m.beta && m.mean && m.rstd;
        for (int op = 0; op < (i ? LAYER_NORM + 1 : N_MOVES); op++) {
            char name[96];

            m.op = (enum moves)op;
            snprintf(name, sizeof name, "%s %dx%dx%dx%d %s", moves_name[op], (int)m.B, (int)m.side, (int)m.side,
                     (int)m.C, dtype_name(t));
            if (ok)
                kernel_row(g, name, do_move, &m, 0);
            else
                gpu_row(g, name, -1, 0, false, 0, g->e.text);
        }
        arena_release(&g->mem, mark);
    }
}

/* ---- main ---- */

static int open_gpu(struct gpu *g)
{
    const struct krng r = { { 7, 8 }, { 9, 10, 11 } };
    struct kctx k = { .n_threads = 1 };
    int rc = device_open(&g->dev, g->name, 0, &g->e);

    rc = rc ? rc : device_open(&g->null, "null", 0, &g->e);
    rc = rc ? rc : arena_init(&g->mem, "operands", g->dev.place, (size_t)1 << 36, &g->e);
    if (rc)
        return rc;
    g->n_value = g->tiny ? 1 << 20 : 32 << 20;
    for (int t = 0; t < N_DTYPE; t++) {
        g->typed[t] = malloc((size_t)g->n_value * dtype_bytes((enum dtype)t));
        if (!g->typed[t])
            return err_set(&g->e, E_NOMEM, "no memory for random values");
    }
    if (kern_cpu(NULL)->random_normal(&k, g->typed[F32], F32, g->n_value, &r, 0))
        return err_set(&g->e, E_BUG, "random values");
    for (int t = 1; t < N_DTYPE; t++)
        dtype_from_f32(g->typed[t], (enum dtype)t, g->typed[F32], g->n_value);
    return OK;
}

static void close_gpu(struct gpu *g)
{
    arena_free(&g->mem);
    for (int t = 0; t < N_DTYPE; t++)
        free(g->typed[t]);
    device_close(&g->null);
    device_close(&g->dev);
}

enum { PRODUCT, ATTENTION, MEMORY, MODELS, PARITY, PEAK, N_SECTION };

static int usage(void)
{
    fprintf(stderr, "usage: bench gpu [-p] [-tiny] [-d DEVICE] [peak|product|attention|memory|models|parity ..]\n");
    return 2;
}

int bench_gpu(int argc, char **argv)
{
    static const char *const section[] = { "product", "attention", "memory", "models", "parity", "peak" };
    struct gpu g = { .name = "cuda" };
    bool wanted[N_SECTION] = { false }, some = false;

    for (int i = 1; i < argc; i++) {
        int s = 0;

        while (s < N_SECTION && strcmp(argv[i], section[s]))
            s++;
        if (s < N_SECTION)
            some = wanted[s] = true;
        else if (!strcmp(argv[i], "-p"))
            g.people = true;
        else if (!strcmp(argv[i], "-tiny"))
            g.tiny = true;
        else if (!strcmp(argv[i], "-d") && i + 1 < argc)
            g.name = argv[++i];
        else if (strcmp(argv[i], "gpu"))
            return usage();
    }
    for (int s = PRODUCT; s <= MODELS && !some; s++)
        wanted[s] = true;
    if (open_gpu(&g)) {
        fprintf(stderr, "bench: %s\n", g.e.text);
        close_gpu(&g);
        return 1;
    }
    if (wanted[PARITY])
        gpu_parity(&g);
    if (wanted[PEAK] || wanted[PRODUCT] || wanted[ATTENTION] || wanted[MEMORY] || wanted[MODELS])
        measure_peaks(&g);
    for (int t = N_DTYPE - 1; t > 0; t--) {
        if (wanted[PRODUCT])
            products(&g, (enum dtype)t);
        if (wanted[ATTENTION])
            attention(&g, (enum dtype)t);
        if (wanted[MEMORY])
            memory(&g, (enum dtype)t);
    }
    if (wanted[MODELS])
        gpu_models(&g);
    close_gpu(&g);
    return g.n_failed != 0;
}
