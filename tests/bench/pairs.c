/* tests/bench/pairs.c: what pairs cost: a step of the UNet of SD1.5 over rows of x and y with joint attention, beside a
 * plain one with as many rows. Weights are random: their values do not change the time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/unet.h"
#include "tests/bench/bench.h"

enum { MAX_TENSOR = 2048, N_VALUE = 30 << 20, RANK = 64, ROWS = 2, LONG = 10 };

struct world {
    struct device dev, null;
    float *value;                       /* what all tensors are made of */
    struct weights base, xy, yx, y, fuse, conv;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct err e;
};

static bool add(struct world *w, struct weights *t, const char *name, int n_dim, const int64_t *dim)
{
    struct weights_entry *x = t->entry ? t->entry : calloc(MAX_TENSOR, sizeof *x);
    int64_t n = 1;

    t->entry = x;
    if (!x || t->n == MAX_TENSOR || !(x[t->n].name = strdup(name)))
        return false;
    x = &t->entry[t->n++];
    x->type = STORED_F32;
    x->n_dim = n_dim;
    x->data = w->value;
    for (int i = n_dim - 1; i >= 0; i--) {
        x->dim[i] = dim[i];
        x->stride[i] = n;
        n *= dim[i];
    }
    return n <= N_VALUE;
}

static bool add2(struct world *w, struct weights *t, const char *block, const char *name, int64_t rows, int64_t columns)
{
    char full[256];

    snprintf(full, sizeof full, "%s.%s.weight", block, name);
    return add(w, t, full, 2, (int64_t[]){ rows, columns });
}

/* The tensors of SD1.5's UNet: "name 320,320,3,3". */
static bool read_base(struct world *w)
{
    FILE *f = fopen("tests/reference/base_keys.txt", "r");
    char line[256], name[200], *at;
    bool ok = f != NULL;

    while (ok && fgets(line, sizeof line, f) && !(w->base.n && line[0] == '[')) {
        int64_t dim[4];
        int n = 0;

        if (line[0] == '[' || line[0] == ' ' || sscanf(line, "%199s", name) != 1)
            continue;
        at = line + strlen(name);
        do
            dim[n++] = strtol(at + 1, &at, 10);
        while (*at == ',' && n < 4);
        ok = add(w, &w->base, name, n, dim);
    }
    if (f)
        fclose(f);
    return ok && !weights_sort(&w->base, &w->e);
}

static bool add_terms(struct world *w, struct weights *t, const char *block, const char *attn, int64_t C, int64_t Ck)
{
    static const char *const projection[] = { "to_q", "to_k", "to_v", "to_out.0" };
    bool ok = true;

    for (int i = 0; i < 4 && ok; i++) {
        char name[64];

        snprintf(name, sizeof name, "%s.%s.down", attn, projection[i]);
        ok = add2(w, t, block, name, RANK, i == 1 || i == 2 ? Ck : C);
        snprintf(name, sizeof name, "%s.%s.up", attn, projection[i]);
        ok = ok && add2(w, t, block, name, C, RANK);
    }
    return ok;
}

static bool make_adapters(struct world *w, const struct joint_place *place, int n)
{
    bool ok = true;

    for (int i = 0; i < n && ok; i++) {
        const int64_t C = place[i].C;
        const char *b = place[i].name;

        ok = add_terms(w, &w->xy, b, "attn1n", C, C) && add_terms(w, &w->yx, b, "attn1n", C, C)
            && add_terms(w, &w->y, b, "attn1", C, C) && add_terms(w, &w->y, b, "attn2", C, 768)
            && add2(w, &w->fuse, b, "conv1n", 2 * C, 2 * C) && add2(w, &w->conv, b, "conv1n", C, C);
    }
    return ok && !weights_sort(&w->xy, &w->e) && !weights_sort(&w->yx, &w->e) && !weights_sort(&w->y, &w->e)
        && !weights_sort(&w->fuse, &w->e) && !weights_sort(&w->conv, &w->e);
}

/* ---- a step ---- */

struct step {
    struct world *w;
    const char *what;
    int n_input, n_pair;
    bool held;                          /* y is given: nobody reads what is said of it */
    enum dtype type;
    struct unet *unet;
    struct unet_text text;
    struct joint_run pairs;
    struct tensor *x, *time;
};

static int step(void *arg)
{
    struct step *s = arg;
    const struct unet_call call = { .pairs = s->n_pair ? &s->pairs : NULL };
    const struct tape_mark m = tape_mark(&s->w->t);
    struct tensor *y = unet_forward(&s->w->t, s->unet, s->x, s->time, &s->text, &call, &s->w->e);

    tape_release(&s->w->t, m);
    return y ? 0 : -1;
}

static struct tensor *random_of(struct world *w, enum dtype type, int n_dim, const int64_t *dim)
{
    struct tensor *x = tape_new(&w->t, type, n_dim, dim, &w->e);

    if (x && w->t.dev->kern->computes)
        dtype_from_f32(x->data, type, w->value, tensor_count(x));
    return x;
}

/* The pair is depth's kind (fused projection, y-LoRA), a second one identity's. */
static int open_step(struct step *s, struct device *d, int64_t side)
{
    const struct tape_caps caps = { (size_t)1 << 28, (size_t)1 << 36, (size_t)1 << 20, (size_t)1 << 36 };
    const struct unet_config c = unet_config_sd15();
    const int64_t B = s->n_input * ROWS;
    struct joint_place place[UNET_MAX_BLOCK];
    struct world *w = s->w;
    struct tensor *words;
    struct layers l;
    int rc = model_memory_init(&w->mem, d, 0, &w->e), n;

    rc = rc ? rc : tape_memory_init(&w->tape_mem, d, &caps, &w->e);
    if (rc)
        return rc;
    tape_init(&w->t, d, &w->tape_mem);
    layers_init(&l, d, s->type, &w->mem, &w->base);
    rc = unet_new(&s->unet, &c, &l, &w->e);
    if (rc)
        return rc;
    n = unet_places(s->unet, place);
    if (!w->xy.n && !make_adapters(w, place, n))
        return err_set(&w->e, E_NOMEM, "no memory for adapters");
    s->pairs = (struct joint_run){ .n_input = s->n_input, .n_pair = s->n_pair, .scale = 1,
                                   .unread = { [1] = s->held } };
    for (int i = 0; i < s->n_pair && !rc; i++) {
        const struct joint_weights jw = { &w->xy, &w->yx, i ? NULL : &w->y, i ? &w->conv : &w->fuse,
                                          i ? JOINT_CONV : JOINT_CONV_FUSE, 1 };

        s->pairs.pair[i] = (struct joint_pair){ 0, 1 + i, 1, 1, NULL };
        rc = joint_new(&s->pairs.pair[i].joint, place, n, c.cross_attention_dim, &jw, &l, &w->e);
    }
    s->x = random_of(w, s->type, 4, (int64_t[]){ B, side, side, 4 });
    s->time = random_of(w, F32, 1, &B);
    words = random_of(w, s->type, 3, (int64_t[]){ B, 77, c.cross_attention_dim });
    if (rc || !s->x || !s->time || !words)
        return w->e.code;
    return unet_text(&w->t, s->unet, words, s->n_pair ? &s->pairs : NULL, &s->text, &w->e);
}

static void close_step(struct world *w)
{
    tape_memory_free(&w->tape_mem);
    model_memory_free(&w->mem);
}

/* CPU seconds of one step, or -1. */
static double measure(struct step *s, int64_t side, double peak, double *flops)
{
    struct world *w = s->w;
    double seconds = -1;

    if (!open_step(s, &w->null, side)) {
        const double before = (double)w->null.count.flops;

        *flops = step(s) ? 0 : (double)w->null.count.flops - before;
    }
    close_step(w);
    if (!w->e.code && !open_step(s, &w->dev, side) && !step(s)) {       /* packs what there is to pack */
        seconds = bench_now();
        seconds = step(s) ? -1 : bench_now() - seconds;
        if (seconds >= 0 && seconds < LONG)
            seconds = bench_time(step, s);
    }
    close_step(w);
    if (seconds > 0)
        printf("  %-26s %-5s %4dx%-3d %9.1f %8.3f %7.1f %6.1f", s->what, dtype_name(s->type), (int)side, (int)side,
               *flops * 1e-9, seconds, *flops / seconds * 1e-9, *flops / seconds * 1e-7 / peak);
    else
        fprintf(stderr, "bench: %s\n", w->e.text);
    return seconds;
}

/* Ratios are to the plain step with four rows, of the last row to a pair. */
static int all_steps(struct world *w, enum dtype type, int64_t side, double peak)
{
    struct step steps[] = { { .what = "plain, 4 rows", .n_input = 2 }, { .what = "pair, (x,y) x 2", .n_input = 2 },
                            { .what = "the same, y given", .n_input = 2, .held = true },
                            { .what = "two checkpoints, 6 rows", .n_input = 3 } };
    static const int n_pair[] = { 0, 1, 1, 2 }, over[] = { 0, 0, 0, 1 };
    double seconds[4], flops[4];

    for (int i = 0; i < 4; i++) {
        steps[i].w = w;
        steps[i].type = type;
        steps[i].n_pair = n_pair[i];
        seconds[i] = measure(&steps[i], side, peak, &flops[i]);
        if (seconds[i] < 0)
            return 1;
        printf(" %7.2f %7.2f\n", seconds[i] / seconds[over[i]], flops[i] / flops[over[i]]);
        fflush(stdout);
    }
    return 0;
}

static void close_table(struct weights *t)
{
    for (int i = 0; i < t->n; i++)
        free((void *)(uintptr_t)t->entry[i].name);
    free(t->entry);
}

int bench_pairs(const char *isa, int n_threads, int64_t side, double f32, double bf16)
{
    struct world w = { .value = malloc(sizeof(float) * N_VALUE) };
    const struct krng r = { { 1, 2 }, { 3, 4, 5 } };
    char name[64];
    int rc;

    if (!w.value)
        return 1;
    snprintf(name, sizeof name, "cpu%s%s", isa ? ":" : "", isa ? isa : "");
    rc = device_open(&w.dev, name, n_threads, &w.e);
    snprintf(name, sizeof name, "null%s%s", isa ? ":" : "", isa ? isa : "");
    rc = rc ? rc : device_open(&w.null, name, n_threads, &w.e);
    if (!rc)
        rc = w.dev.kern->random_normal(&w.dev.ctx, w.value, F32, N_VALUE, &r, 0)
            || w.dev.kern->axpby(&w.dev.ctx, w.value, 0.02f, w.value, 0, NULL, F32, N_VALUE) || !read_base(&w);
    if (rc)
        fprintf(stderr, "bench: pairs: %s\n", w.e.text);
    else
        printf("\npairs in SD1.5's UNet, rank %d; ratios to the plain step, of the last line to the pair\n"
               "  %-40s %9s %8s %7s %6s %7s %7s\n", RANK, "", "GFLOP", "seconds", "GF/s", "% peak", "ratio", "by FLOP");
    for (int t = 0; t < 2 && !rc && !(t && bf16 <= 0); t++)
        rc = all_steps(&w, t ? BF16 : F32, side, t ? bf16 : f32);
    struct weights *const table[] = { &w.base, &w.xy, &w.yx, &w.y, &w.fuse, &w.conv };
    for (int i = 0; i < 6; i++)
        close_table(table[i]);
    free(w.value);
    device_close(&w.null);
    device_close(&w.dev);
    return rc != 0;
}
