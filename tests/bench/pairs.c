/* tests/bench/pairs.c: what pairs cost: a step of the UNet of SD1.5 over rows of x and y with joint attention, beside a
 * plain one with as many rows. Weights are random: their values do not change the time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/unet.h"
#include "tests/bench/bench.h"
#include "tests/bench/random_base.h"

enum { ROWS = 2, LONG = 10 };

struct world {
    struct device dev, null;
    struct random_base base;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct err e;
};

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
        dtype_from_f32(x->data, type, w->base.value, tensor_count(x));
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
    layers_init(&l, d, s->type, &w->mem, &w->base.unet);
    rc = unet_new(&s->unet, &c, &l, &w->e);
    if (rc)
        return rc;
    n = unet_places(s->unet, place);
    if (random_base_adapters(&w->base, place, n))
        return err_set(&w->e, w->base.e.code, "%s", w->base.e.text);
    s->pairs = (struct joint_run){ .n_input = s->n_input, .n_pair = s->n_pair, .scale = 1,
                                   .unread = { [1] = s->held } };
    for (int i = 0; i < s->n_pair && !rc; i++) {
        const struct random_base *b = &w->base;
        const struct joint_weights jw = { &b->xy, &b->yx, i ? NULL : &b->y, i ? &b->conv : &b->fuse,
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

int bench_pairs(const char *isa, int n_threads, int64_t side, double f32, double bf16)
{
    struct world w = { .e = { 0 } };
    char name[64];
    int rc = random_base_open(&w.base);

    if (rc)
        err_set(&w.e, rc, "%s", w.base.e.text);
    snprintf(name, sizeof name, "cpu%s%s", isa ? ":" : "", isa ? isa : "");
    rc = rc ? rc : device_open(&w.dev, name, n_threads, &w.e);
    snprintf(name, sizeof name, "null%s%s", isa ? ":" : "", isa ? isa : "");
    rc = rc ? rc : device_open(&w.null, name, n_threads, &w.e);
    if (rc)
        fprintf(stderr, "bench: pairs: %s\n", w.e.text);
    else
        printf("\npairs in SD1.5's UNet, rank %d; ratios to the plain step, of the last line to the pair\n"
               "  %-40s %9s %8s %7s %6s %7s %7s\n", RANDOM_BASE_RANK, "", "GFLOP", "seconds", "GF/s", "% peak", "ratio",
               "by FLOP");
    for (int t = 0; t < 2 && !rc && !(t && bf16 <= 0); t++)
        rc = all_steps(&w, t ? BF16 : F32, side, t ? bf16 : f32);
    random_base_close(&w.base);
    device_close(&w.null);
    device_close(&w.dev);
    return rc != 0;
}
