/* tests/t_pipeline.c: a run from inside: what a dry run says it needs is what it needs, stopping at any tick and
 * failing at any allocation end cleanly. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/diffusion/pipeline.h"
#include "store/base_model.h"
#include "tests/tap.h"
#include "tests/tiny.h"

static char tmp[] = "/tmp/t_pipeline.XXXXXX";

struct sink {
    int n, ticks, stop_at;      /* images, ticks so far, the tick that stops; 0: none */
    double sum;
};

static int take(void *ctx, int64_t index, int input, const float *rgb, const float *latents, struct err *e)
{
    struct sink *s = ctx;

    (void)e, (void)latents, (void)input;
    s->n += index == s->n;
    s->sum += (double)rgb[0];
    return OK;
}

static int tick(void *ctx, const char *what, int64_t done, int64_t total)
{
    struct sink *s = ctx;

    (void)what;
    if (done < 0 || done > total)
        s->n = -100;
    return ++s->ticks == s->stop_at;
}

struct setting {
    struct base_model *base;
    struct pipeline_base pipe;
    struct pipeline_request q;
    int32_t prompt[PIPELINE_TOKENS], negative[PIPELINE_TOKENS];
    float *x, *mask;
};

static int run(struct setting *s, const char *device, enum dtype type, struct sink *k, struct pipeline_cost *cost,
               struct err *e)
{
    const struct pipeline_sink sink = { take, k, { tick, k } };
    struct device dev;
    int rc = device_open(&dev, device, 2, e);

    rc = rc ? rc : pipeline_run(&dev, type, &s->pipe, &s->q, &sink, cost, e);
    device_close(&dev);
    return rc;
}

static void prepare(struct setting *s)
{
    const struct base_options o = { .prediction = -1 };
    struct err e = { 0 };
    int left;

    memset(s, 0, sizeof *s);
    s->x = calloc(48 * 32 * 3, sizeof *s->x);
    s->mask = calloc(6 * 4, sizeof *s->mask);
    if (!s->x || !s->mask || base_model_open(&s->base, tmp, &o, &e)
        || clip_bpe_encode(s->base->bpe, "a fox", s->prompt, PIPELINE_TOKENS, s->base->pad_id, &left, &e)
        || clip_bpe_encode(s->base->bpe, "", s->negative, PIPELINE_TOKENS, s->base->pad_id, &left, &e)) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    s->mask[3] = 1;
    s->pipe = (struct pipeline_base){ &s->base->unet, &s->base->vae, &s->base->text, &s->base->schedule,
                                      &s->base->unet_weights, &s->base->vae_weights, &s->base->text_weights, NULL };
    s->q = (struct pipeline_request){ .n_input = 1, .joint_scale = 1,
                                      .input = { { .prompt = s->prompt, .negative = s->negative } },
                                      .width = 48, .height = 32,
                                      .sampler = SAMPLER_EULER_A, .steps = 3, .cfg = 5, .count = 1, .batch = 1,
                                      .x_noise = 1 };
}

/* Every stage's bytes, and the peak, to the byte; FLOPs are counted on the null device alone. */
static void test_plan(struct setting *s, const char *what, enum dtype type)
{
    struct pipeline_cost said = { 0 }, took = { 0 };
    struct sink none = { 0 }, real = { 0 };
    struct err e = { 0 };
    bool same = !run(s, "null", type, &none, &said, &e) && !run(s, "cpu", type, &real, &took, &e);

    for (int i = 0; i < N_STAGE; i++)
        same &= said.stage[i].used == took.stage[i].used && said.stage[i].bytes == took.stage[i].bytes
            && (!said.stage[i].used || said.stage[i].flops > 0);
    tap_ok(same && said.peak_bytes == took.peak_bytes && said.peak_bytes > 0 && !none.n && real.n == s->q.count,
           "%s, %s: a dry run says %zu bytes, the run takes %zu %s", what, dtype_name(type), said.peak_bytes,
           took.peak_bytes, e.text);
}

/* A dry run of many batches counts them all. */
static void test_flops(struct setting *s)
{
    struct pipeline_cost one = { 0 }, two = { 0 }, five = { 0 };
    struct sink k = { 0 };
    struct err e = { 0 };
    int64_t flops[3];
    bool ok = !run(s, "null", F32, &k, &one, &e);

    s->q.count = 2;
    ok &= !run(s, "null", F32, &k, &two, &e);
    s->q.count = 5;
    s->q.batch = 2;
    ok &= !run(s, "null", F32, &k, &five, &e);
    for (int i = 0; i < 3; i++)
        flops[i] = (i == 0 ? &one : i == 1 ? &two : &five)->stage[STAGE_DENOISE].flops;
    tap_ok(ok && flops[2] == flops[0] + 4 * (flops[1] - flops[0]) && flops[1] > flops[0] && flops[1] < 2 * flops[0]
           && five.stage[STAGE_DECODE].flops == 5 * one.stage[STAGE_DECODE].flops,
           "five pictures in batches of two cost five times one, less what is done once for all %s", e.text);
    s->q.count = s->q.batch = 1;
    for (int i = 0; i < 3; i++) {
        s->q.steps = 3 + 2 * i;
        ok &= !run(s, "null", F32, &k, &one, &e);
        flops[i] = one.stage[STAGE_DENOISE].flops;
    }
    tap_ok(ok && flops[1] > flops[0] && flops[2] - flops[1] == flops[1] - flops[0], "every step costs the same");
    s->q.steps = 3;
}

static void test_stops(struct setting *s)
{
    struct sink all = { 0 };
    struct err e = { 0 };
    int n = 0;
    bool ok = !run(s, "cpu", F32, &all, NULL, &e);

    for (n = 1; n <= all.ticks && ok; n++) {
        struct sink k = { .stop_at = n };
        err_clear(&e);
        ok = run(s, "cpu", F32, &k, NULL, &e) == (n < all.ticks ? E_CANCEL : OK) && k.ticks == n
            && k.n == (n == all.ticks);
    }
    tap_ok(ok && all.ticks >= 8, "stopping at each of %d ticks but the last, when all is done, is E_CANCEL %s",
           all.ticks, e.text);
}

/* Every allocation of a run in turn, or as many as 150 of them. */
static void test_faults(struct setting *s)
{
    struct sink k = { 0 };
    struct err e = { 0 };
    int n_failed = 0;
    long total, step;
    bool ok;

    arena_fault_at(0);
    ok = !run(s, "cpu", F32, &k, NULL, &e);
    total = arena_fault_count();
    step = total / 150 + 1;
    for (long i = 1; i <= total && ok; i += step, n_failed++) {
        err_clear(&e);
        arena_fault_at(i);
        ok = run(s, "cpu", F32, &k, NULL, &e) == E_NOMEM && e.text[0];
        if (!ok)
            tap_note("allocation %ld of %ld: %s", i, total, e.text);
    }
    arena_fault_at(0);
    tap_ok(ok && n_failed > 100, "%d of %ld allocations failed in turn: each is out of memory and nothing else",
           n_failed, total);
}

static void test_refusals(struct setting *s)
{
    struct setting t = *s;
    struct sink k = { 0 };
    struct err e = { 0 };
    bool ok;

    t.q.width = 52;
    ok = run(&t, "cpu", F32, &k, NULL, &e) == E_ARG && strstr(e.text, "multiples of 8");
    t = *s;
    t.q.x_noise = 0.5;
    ok &= run(&t, "cpu", F32, &k, NULL, &e) == E_ARG && strstr(e.text, "needs a picture");
    t = *s;
    t.q.steps = 0;
    ok &= run(&t, "cpu", F32, &k, NULL, &e) == E_ARG;
    t = *s;
    t.q.clip_skip = 3;
    ok &= run(&t, "cpu", F32, &k, NULL, &e) == E_ARG;
    tap_ok(ok && !k.n, "what cannot be is refused before it begins");
}

int main(void)
{
    char command[64];
    struct setting s;

    if (!mkdtemp(tmp) || tiny_write("sd1", tmp)) {
        printf("Bail out! no model can be written to %s\n", tmp);
        return 1;
    }
    prepare(&s);
    test_plan(&s, "text to image", F32);
    test_plan(&s, "text to image", BF16);
    s.q.count = 3;
    s.q.batch = 2;
    test_plan(&s, "batches of two and one", F32);
    s.q.count = s.q.batch = 1;
    test_flops(&s);
    s.q.input[0].picture = s.x;
    s.q.input[0].mask = s.mask;
    s.q.x_noise = 0.7;
    test_plan(&s, "image to image with a mask", F32);
    test_stops(&s);
    test_faults(&s);
    s.q.input[0].picture = NULL;
    s.q.input[0].mask = NULL;
    s.q.x_noise = 1;
    test_refusals(&s);
    base_model_close(s.base);
    free(s.mask);
    free(s.x);
    snprintf(command, sizeof command, "rm -rf '%s'", tmp);
    if (system(command))
        tap_note("%s is left", tmp);
    return tap_done();
}
