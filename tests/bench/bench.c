/* tests/bench/bench.c: every kernel class at the shapes of Stable Diffusion 1.5, 512 x 512, one image, with its rate
 * and its share of the machine's peak measured in the same run.
 *
 *     bench [-t THREADS] [-i ISA] [-p] [product|attention|memory ...]       -p: beside OpenBLAS and oneDNN
 *     bench gpu ..                                                          see tests/bench/gpu.c
 *
 * Products and attention are set against the peak of their arithmetic (f32 fused multiply-add, bf16 dot product), the
 * rest against a plain copy of as many bytes. Counts are how often the shape occurs in one pass of the UNet; the last
 * line of a block is weighted by FLOPs times that count. */
#include "tests/bench/bench.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct machine {
    const struct kern *kern;
    struct kctx k;
    double f32, bf16;
    bool peers;
};

static double peak_of(const struct machine *m, enum dtype t)
{
    return t == BF16 && m->bf16 > 0 && !strcmp(m->kern->name, "avx512bf16") ? m->bf16 : m->f32;
}

/* Uniform values in [-1,1), each call others, rounded down to the type. */
static void *values(int64_t n, enum dtype t)
{
    const size_t bytes = ((size_t)n * dtype_bytes(t) + 8191) / 4096 * 4096;
    char *p = aligned_alloc(4096, bytes);
    static uint32_t s = 1;

    if (!p) {
        fprintf(stderr, "bench: out of memory for %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, bytes);
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        const float x = (float)(int32_t)s * 0x1p-31f;
        uint32_t u;
        memcpy(&u, &x, 4);
        if (t == F32) {
            memcpy(p + 4 * i, &x, 4);
        } else {
            const uint16_t h = (uint16_t)(t == BF16 ? u >> 16 : (u >> 16 & 0x8000) | 0x3800 | (u & 0x3ff));
            memcpy(p + 2 * i, &h, 2);
        }
    }
    return p;
}

/* ---- products ---- */

enum direction { FORWARD, BACK_INPUT, BACK_WEIGHT, N_DIRECTION };
static const char *const direction_name[] = { "forward", "d-input", "d-weight" };

struct product_case {
    struct machine *m;
    struct kconv c;
    enum direction dir;
    void *x, *dy;
    float *dw;
};

static int product_run(void *arg)
{
    struct product_case *p = arg;
    const struct kgeom *g = &p->c.part[0].g;

    if (p->dir != BACK_WEIGHT)
        return p->m->kern->conv(&p->m->k, &p->c);
    return p->m->kern->conv_dw(&p->m->k, p->dw, 0, g, 1, p->x, p->c.y_type, g->Ci, p->dy, p->c.y_type, g->Co);
}

/* Multiply-adds that have to be done: doubling layers as four 2x2 phases, their weight gradient at full size. */
static double product_flops(const struct kgeom *g, enum direction d)
{
    const double all = 2.0 * (double)(g->Ho * g->Wo * g->Co * g->Ci) * g->KH * g->KW;

    return g->up == 2 && d != BACK_WEIGHT ? all * 4 / 9 : all;
}

/* Seconds for one shape, or negative. */
static double product_time(struct machine *m, const struct bench_shape *s, enum dtype t, enum direction d)
{
    struct kpack pack;
    struct product_case p = { .m = m, .dir = d, .c = bench_product(s, t, 1, d == BACK_INPUT, d != FORWARD, &pack) };
    const struct kgeom g = p.c.part[0].g;
    const size_t bytes = (m->kern->pack_bytes(&pack) + 4095) / 4096 * 4096;
    float *w = values(g.Co * g.Ci * g.KH * g.KW, F32);
    void *packed = aligned_alloc(4096, bytes);
    double seconds = -1;

    p.x = values(g.H * g.W * g.Ci, t);
    p.dy = values(g.Ho * g.Wo * g.Co, t);
    p.dw = values(g.Co * g.Ci * g.KH * g.KW, F32);
    p.c.y = d == BACK_INPUT ? p.x : p.dy;
    p.c.part[0].x = d == BACK_INPUT ? p.dy : p.x;
    p.c.part[0].pack = packed;
    if (packed && !m->kern->pack(&m->k, packed, &pack, w))
        seconds = bench_time(product_run, &p);
    free(p.x);
    free(p.dy);
    free(p.dw);
    free(w);
    free(packed);
    return seconds;
}

static double peer_blas_time(const struct machine *m, const struct bench_shape *s, enum direction d)
{
    const struct kgeom g = bench_geometry(s);
    const int64_t M = g.Ho * g.Wo, K = g.Ci * g.KH * g.KW;

    return d == FORWARD ? peer_blas(m->k.n_threads, M, g.Co, K)
         : d == BACK_INPUT ? peer_blas(m->k.n_threads, M, K, g.Co) : peer_blas(m->k.n_threads, g.Co, K, M);
}

static double peer_dnn_time(const struct machine *m, const struct bench_shape *s, enum dtype t, enum direction d)
{
    struct kgeom g = bench_geometry(s);

    if (d == BACK_WEIGHT)
        return -1;
    if (!s->side)
        return peer_dnn_matmul(m->k.n_threads, t, s->rows, d == FORWARD ? s->Co : s->Ci, d == FORWARD ? s->Ci : s->Co);
    if (g.up == 2) {                    /* it would double first: the full-size convolution */
        g.up = 1;
        g.H = g.Ho;
        g.W = g.Wo;
    }
    return peer_dnn_conv(m->k.n_threads, t, 1, &g, d == BACK_INPUT);
}

static void print_peer(double seconds, double ours)
{
    if (seconds > 0)
        printf(" %8.2f", seconds / ours);
    else
        printf(" %8s", "-");
}

static void bench_products(struct machine *m, enum dtype t, enum direction d)
{
    const double peak = peak_of(m, t);
    double flops = 0, seconds = 0, worst = 1e30, blas_sum = 0, dnn_sum = 0;
    const char *worst_layer = "";

    printf("\nproducts, %s, %s\n", t == F32 ? "f32" : "bf16", direction_name[d]);
    printf("  %-18s %-26s %5s %9s %7s%s\n", "layer", "shape", "count", "GFLOP/s", "% peak",
           m->peers ? "  BLAS/us  oneDNN/us (times ours)" : "");
    for (int i = 0; i < bench_n_shapes; i++) {
        const struct bench_shape *s = &bench_shapes[i];
        const struct kgeom g = bench_geometry(s);
        const double f = product_flops(&g, d), time = product_time(m, s, t, d);
        char text[40];

        printf("  %-18s %-26s %5d %9.1f %7.1f", s->layer, bench_shape_text(s, text, sizeof text), s->count,
               f / time * 1e-9, f / time * 1e-7 / peak);
        if (m->peers) {
            const double blas = t == F32 ? peer_blas_time(m, s, d) : -1, dnn = peer_dnn_time(m, s, t, d);

            print_peer(blas, time);
            print_peer(dnn, time);
            blas_sum = blas < 0 || blas_sum < 0 ? -1 : blas_sum + s->count * blas;     /* all or nothing */
            dnn_sum = dnn < 0 || dnn_sum < 0 ? -1 : dnn_sum + s->count * dnn;
        }
        printf("\n");
        fflush(stdout);
        flops += s->count * f;
        seconds += s->count * time;
        if (f / time < worst) {
            worst = f / time;
            worst_layer = s->layer;
        }
    }
    printf("  weighted by FLOPs: %.1f GFLOP in %.2f s, %.1f GFLOP/s, %.1f %% of peak; least %.1f %% (%s)", flops * 1e-9,
           seconds, flops / seconds * 1e-9, flops / seconds * 1e-7 / peak, worst * 1e-7 / peak, worst_layer);
    if (m->peers && t == F32 && blas_sum > 0)
        printf("; BLAS x%.2f", blas_sum / seconds);
    if (m->peers && d != BACK_WEIGHT && dnn_sum > 0)
        printf("; oneDNN x%.2f", dnn_sum / seconds);
    printf("\n");
}

/* ---- attention ---- */

struct attention_case {
    struct machine *m;
    struct kattn_back b;
    bool back;
};

static int attention_run(void *arg)
{
    struct attention_case *a = arg;

    return a->back ? a->m->kern->attn_back(&a->m->k, &a->b) : a->m->kern->attn(&a->m->k, &a->b.f);
}

static void bench_attention(struct machine *m, enum dtype t)
{
    const double peak = peak_of(m, t);

    printf("\nattention, %s\n  %-18s %-26s %9s %7s %9s %7s\n", t == F32 ? "f32" : "bf16", "where", "shape", "forward",
           "% peak", "backward", "% peak");
    for (int i = 0; i < bench_n_attentions; i++) {
        const struct bench_attention *s = &bench_attentions[i];
        const int64_t Tq = s->Tq, Tk = s->Tk, N = s->N, D = s->D;
        const double products = (double)(N * D) * (double)(s->causal ? Tq * (Tq + 1) / 2 : Tq * Tk) * 2;
        struct attention_case a = { .m = m };
        double fwd, back;
        char text[40];

        a.b.f = (struct kattn){ .type = t, .B = 1, .N = N, .Tq = Tq, .Tk = Tk, .D = D, .ldq = N * D, .ldk = N * D,
                                .ldv = N * D, .ldo = N * D, .scale = 0.15f, .causal = s->causal };
        a.b.f.q = values(Tq * N * D, t);
        a.b.f.k = values(Tk * N * D, t);
        a.b.f.v = values(Tk * N * D, t);
        a.b.f.o = values(Tq * N * D, t);
        a.b.f.lse = values(Tq * N, F32);
        a.b.d_o = values(Tq * N * D, t);
        a.b.dq = values(Tq * N * D, t);
        a.b.dk = values(Tk * N * D, t);
        a.b.dv = values(Tk * N * D, t);
        a.b.ldd_o = a.b.lddq = a.b.lddk = a.b.lddv = N * D;
        a.b.work = values((int64_t)(m->kern->attn_back_bytes(&a.b.f, m->k.n_threads) / 4), F32);
        fwd = bench_time(attention_run, &a);
        a.back = true;
        back = bench_time(attention_run, &a);
        snprintf(text, sizeof text, "%dx%d, %dx%d%s", (int)Tq, (int)Tk, (int)N, (int)D,
                 s->causal ? ", causal" : "");
        printf("  %-18s %-26s %9.1f %7.1f %9.1f %7.1f\n", s->what, text, 2 * products / fwd * 1e-9,
               2 * products / fwd * 1e-7 / peak, 5 * products / back * 1e-9, 5 * products / back * 1e-7 / peak);
        fflush(stdout);
        void *const own[] = { (void *)a.b.f.q, (void *)a.b.f.k, (void *)a.b.f.v, a.b.f.o, a.b.f.lse, (void *)a.b.d_o,
                              a.b.dq, a.b.dk, a.b.dv, a.b.work };
        for (size_t j = 0; j < sizeof own / sizeof *own; j++)
            free(own[j]);
    }
    printf("  (backward counts five products)\n");
}

/* ---- everything that moves more than it computes ---- */

enum memory_op {
    GROUP_NORM, GROUP_NORM_SILU, GROUP_NORM_BACK, LAYER_NORM, LAYER_NORM_BACK, SILU, SILU_BACK, GELU, QUICK_GELU, GEGLU,
    GEGLU_BACK, SOFTMAX, SOFTMAX_BACK, ADD, CAST, COPY_ROWS, TO_NHWC, NEAREST, NEAREST_BACK, BILINEAR, SUM, COL_SUM,
    MSE, ADAMW, NORMAL, N_MEMORY
};

/* Bytes moved per element of x: reads + writes in units of x's type, then of f32; `twice` of the former go over memory
 * that was counted before, and do not make the footprint larger. */
static const struct { const char *name; double units, f32_units, twice; } memory_ops[N_MEMORY] = {
    [GROUP_NORM] = { "GroupNorm", 3, 0, 1 },            /* x twice (statistics, then values), y */
    [GROUP_NORM_SILU] = { "GroupNorm + SiLU", 3, 0, 1 },
    [GROUP_NORM_BACK] = { "  backward (SiLU)", 5, 0, 2 },       /* x and dy twice, dx */
    [LAYER_NORM] = { "LayerNorm", 2, 0, 0 },
    [LAYER_NORM_BACK] = { "  backward", 3, 0, 0 },
    [SILU] = { "SiLU", 2, 0, 0 },
    [SILU_BACK] = { "  backward", 3, 0, 0 },
    [GELU] = { "GELU", 2, 0, 0 },
    [QUICK_GELU] = { "quick-GELU", 2, 0, 0 },
    [GEGLU] = { "GEGLU", 1.5, 0, 0 },
    [GEGLU_BACK] = { "  backward", 2.5, 0, 0 },
    [SOFTMAX] = { "softmax", 2, 0, 0 },
    [SOFTMAX_BACK] = { "  backward", 3, 0, 0 },
    [ADD] = { "a x + b z", 3, 0, 0 },
    [CAST] = { "cast to f32", 1, 1, 0 },
    [COPY_ROWS] = { "join on C", 2, 0, 0 },
    [TO_NHWC] = { "NCHW to NHWC", 2, 0, 0 },
    [NEAREST] = { "nearest x2", 1.25, 0, 0 },              /* elements are those of the output */
    [NEAREST_BACK] = { "  backward", 1.25, 0, 0 },
    [BILINEAR] = { "bilinear x2", 1.25, 0, 0 },
    [SUM] = { "sum", 1, 0, 0 },
    [COL_SUM] = { "bias gradient", 1, 0, 0 },
    [MSE] = { "mean squared error", 2, 0, 0 },
    [ADAMW] = { "AdamW", 0, 7, 3 },                     /* p, m, v read and written, g read */
    [NORMAL] = { "random normals", 1, 0, 0 },
};

enum { PIXELS = 8192, CHANNELS = 320, GROUPS = 32, IMAGES = 2 };        /* two images of the first level */

struct memory_case {
    struct machine *m;
    enum memory_op op;
    enum dtype t;
    void *x, *y, *z, *work;
    float *p, *g, *s, *r;
};

static int memory_run(void *arg)
{
    const struct memory_case *c = arg;
    const struct kern *f = c->m->kern;
    struct kctx *k = &c->m->k;
    const int64_t n = (int64_t)PIXELS * CHANNELS, HW = PIXELS / IMAGES;
    const struct krng rng = { { 1, 2 }, { 3, 4, 5 } };
    const struct kadamw adamw = { 1e-4, 0.9, 0.999, 1e-8, 0.01, 0.1, 0.001, 1 };
    const struct kview4 view = { { IMAGES, 64, 64, CHANNELS }, { CHANNELS * HW, 64, 1, HW } };
    const enum dtype t = c->t;

    switch (c->op) {
    case GROUP_NORM:
    case GROUP_NORM_SILU:
        return f->group_norm(k, c->y, CHANNELS, c->s, c->r, c->x, CHANNELS, t, c->p, c->g, IMAGES, HW, CHANNELS, GROUPS,
                             1e-5f, c->op == GROUP_NORM_SILU);
    case GROUP_NORM_BACK:
        return f->group_norm_back(k, c->y, NULL, NULL, c->z, CHANNELS, c->x, CHANNELS, c->s, c->r, t, c->p, c->g,
                                  IMAGES, HW, CHANNELS, GROUPS, true, c->work);
    case LAYER_NORM: return f->layer_norm(k, c->y, c->s, c->r, c->x, t, c->p, c->g, PIXELS, CHANNELS, 1e-5f);
    case LAYER_NORM_BACK:
        return f->layer_norm_back(k, c->y, NULL, NULL, c->z, c->x, c->s, c->r, t, c->p, PIXELS, CHANNELS, c->work);
    case SILU: return f->unary(k, K_SILU, c->y, c->x, t, n);
    case SILU_BACK: return f->unary_back(k, K_SILU, c->y, c->z, c->x, t, n);
    case GELU: return f->unary(k, K_GELU, c->y, c->x, t, n);
    case QUICK_GELU: return f->unary(k, K_QUICK_GELU, c->y, c->x, t, n);
    case GEGLU: return f->geglu(k, c->y, c->x, t, PIXELS, CHANNELS / 2);
    case GEGLU_BACK: return f->geglu_back(k, c->y, c->z, c->x, t, PIXELS, CHANNELS / 2);
    case SOFTMAX: return f->softmax(k, c->y, c->x, t, PIXELS, CHANNELS);
    case SOFTMAX_BACK: return f->softmax_back(k, c->y, c->z, c->x, t, PIXELS, CHANNELS);
    case ADD: return f->axpby(k, c->y, 0.5f, c->x, 2, c->z, t, n);
    case CAST: return f->cast(k, c->work, F32, c->x, t, n);
    case COPY_ROWS: return f->copy_rows(k, c->y, CHANNELS, c->x, CHANNELS, t, PIXELS, CHANNELS, false);
    case TO_NHWC: return f->permute(k, c->y, c->x, t, &view);
    case NEAREST: return f->nearest(k, c->y, c->x, t, IMAGES, 32, 32, CHANNELS, 64, 64);
    case NEAREST_BACK: return f->nearest_back(k, c->y, c->x, t, IMAGES, 32, 32, CHANNELS, 64, 64);
    case BILINEAR: return f->bilinear(k, c->y, c->x, t, IMAGES, 32, 32, CHANNELS, 64, 64, false);
    case SUM: return f->sum(k, c->s, c->x, t, n);
    case COL_SUM: return f->col_sum(k, c->s, false, c->x, CHANNELS, t, PIXELS, CHANNELS, c->work);
    case MSE: return f->mse(k, c->s, c->x, c->z, t, c->p, NULL, IMAGES, HW, CHANNELS);
    case ADAMW: return f->adamw(k, c->x, c->z, c->work, c->y, t == F32 ? n : n / 2, &adamw, NULL, F32);
    case NORMAL: return f->random_normal(k, c->y, t, n, &rng, 0);
    default: return -1;
    }
}

static void bench_memory(struct machine *m, enum dtype t)
{
    const int64_t n = (int64_t)PIXELS * CHANNELS;
    struct memory_case c = { .m = m, .t = t };
    size_t work = 8 * (size_t)n;

    if (m->kern->layer_norm_back_bytes(PIXELS, CHANNELS) > work)
        work = m->kern->layer_norm_back_bytes(PIXELS, CHANNELS);
    c.x = values(n, t);
    c.y = values(n, t);
    c.z = values(n, t);
    c.work = values((int64_t)(work / 4), F32);
    c.p = values(CHANNELS, F32);
    c.g = values(CHANNELS, F32);
    c.s = values(PIXELS, F32);
    c.r = values(PIXELS, F32);
    printf("\nmemory, %s, %d x %d elements\n  %-20s %8s %7s\n", t == F32 ? "f32" : "bf16", PIXELS, CHANNELS, "kernel",
           "GB/s", "% copy");
    for (int op = 0; op < N_MEMORY; op++) {
        const double bytes = (double)n * (memory_ops[op].units * (double)dtype_bytes(t)
                                          + memory_ops[op].f32_units * (op == ADAMW && t != F32 ? 2 : 4));
        const double again = memory_ops[op].twice / (memory_ops[op].units + memory_ops[op].f32_units);
        double seconds;

        c.op = (enum memory_op)op;
        seconds = bench_time(memory_run, &c);
        if (seconds > 0)
            printf("  %-20s %8.1f %7.1f\n", memory_ops[op].name, bytes / seconds * 1e-9,
                   bytes / seconds * 1e-7 / peak_copy(m->k.n_threads, (size_t)(bytes * (1 - again))));
        else
            printf("  %-20s %8s\n", memory_ops[op].name, "failed");
        fflush(stdout);
    }
    void *const own[] = { c.x, c.y, c.z, c.work, c.p, c.g, c.s, c.r };
    for (size_t j = 0; j < sizeof own / sizeof *own; j++)
        free(own[j]);
}

/* ---- main ---- */

static bool wanted(char **names, int n, const char *what)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], what))
            return true;
    return n == 0;
}

int main(int argc, char **argv)
{
    struct machine m = { .k.n_threads = omp_get_max_threads() };
    const char *isa = NULL, *models = NULL;
    long side = 64;
    int opt;

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "gpu"))
            return bench_gpu(argc, argv);
    if (!getenv("OMP_WAIT_POLICY")) {   /* waiting threads must not count as CPU time; read once, at start */
        setenv("OMP_WAIT_POLICY", "passive", 1);
        execv("/proc/self/exe", argv);
    }
    while ((opt = getopt(argc, argv, "t:i:m:s:p")) != -1)
        switch (opt) {
        case 't': m.k.n_threads = (int)strtol(optarg, NULL, 10); break;
        case 'i': isa = optarg; break;
        case 's': side = strtol(optarg, NULL, 10); break;
        case 'm': models = optarg; break;
        case 'p': m.peers = true; break;
        default: return 2;
        }
    m.kern = kern_cpu(isa);
    if (!m.kern || side < 1 || m.k.n_threads < 1 || m.k.n_threads > 1024) {
        fprintf(stderr, "bench: this processor cannot run '%s' with %d threads\n", isa ? isa : "any", m.k.n_threads);
        return 2;
    }
    m.k.scratch_bytes = m.kern->scratch_bytes;
    m.k.scratch = aligned_alloc(4096, (size_t)m.k.n_threads * m.kern->scratch_bytes);
    if (!m.k.scratch)
        return 1;
    m.f32 = peak_f32(m.k.n_threads);
    m.bf16 = peak_bf16(m.k.n_threads);
    printf("instruction set %s, %d threads; all rates per CPU second\n", m.kern->name, m.k.n_threads);
    printf("peak f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, copy of 64 MiB %.1f GB/s, of 512 KiB %.1f GB/s\n", m.f32, m.bf16,
           peak_copy(m.k.n_threads, (size_t)64 << 20), peak_copy(m.k.n_threads, (size_t)512 << 10));
    if (models)
        return bench_models(models, isa, m.k.n_threads, m.f32, m.bf16, argv[optind]);
    if (m.peers)
        printf("peers: %s; %s\n", peer_blas_name() ? peer_blas_name() : "no OpenBLAS (libopenblas-dev)",
               peer_dnn_name() ? peer_dnn_name() : "no oneDNN (libdnnl-dev)");
    for (int t = 0; t < 2; t++)
        for (int d = 0; d < N_DIRECTION && wanted(argv + optind, argc - optind, "product"); d++)
            bench_products(&m, t ? BF16 : F32, (enum direction)d);
    for (int t = 0; t < 2 && wanted(argv + optind, argc - optind, "attention"); t++)
        bench_attention(&m, t ? BF16 : F32);
    for (int t = 0; t < 2 && wanted(argv + optind, argc - optind, "memory"); t++)
        bench_memory(&m, t ? BF16 : F32);
    free(m.k.scratch);
    return wanted(argv + optind, argc - optind, "pairs") ? bench_pairs(isa, m.k.n_threads, side, m.f32, m.bf16) : 0;
}
