/* tests/t_guide.c: gradient guidance against torch's autograd and optimizers (tests/reference/guide.py): whole runs;
 * dry runs, stops, faults, wrong requests. Whether it reaches a known signal is asked in t_guide_fit.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/diffusion/pipeline.h"
#include "store/base_model.h"
#include "tests/adapters.h"
#include "tests/golden.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

enum { W = 48, H = 64, h = 8, w = 6, LATENTS = 4 * h * w, MAX_IN = 2 };

/* Sanitizers make everything ten times slower. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

/* torch's own float32 is off by up to 3.4e-5 after a run, ours by 2.8e-5; the difference of two such runs, relative to
 * how much guidance changed, by 9.0e-5. Instruction sets vary. adamw's first step is lr times the sign of the gradient,
 * which near 0 may fall either way: an element that did would show as 1e-3 of the change. None does. */
static const double run_off = 1e-4, change_off = 3e-4;

static char tmp[] = "/tmp/t_guide.XXXXXX";
static struct golden *golden;
static struct base_model *base[2];                              /* sd1, sd2 */
static struct adapters *depth, *id;
static struct joint_weights checkpoint[2];                      /* depth with its y-LoRA; id without */

static void die(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

static void tokens(int32_t *out, const struct base_model *b, const char *text)
{
    struct err e = { 0 };

    if (clip_bpe_encode(b->bpe, text, out, PIPELINE_TOKENS, b->pad_id, NULL, &e))
        die(e.text);
}

static double norm(const float *a, int n)
{
    double s = 0;

    for (int i = 0; i < n; i++)
        s += (double)a[i] * (double)a[i];
    return sqrt(s);
}

static double distance(const float *a, const float *b, int n)
{
    double s = 0;

    for (int i = 0; i < n; i++)
        s += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sqrt(s);
}

/* ---- whole runs against torch ---- */

struct result {
    float z[MAX_IN][LATENTS];                                   /* (C,h,w) */
    int n;
};

static int take(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e)
{
    struct result *r = ctx;

    (void)e, (void)rgb, (void)index;
    for (int i = 0; i < LATENTS; i++)
        r->z[k][i % 4 * (LATENTS / 4) + i / 4] = latents[i];
    r->n++;
    return OK;
}

struct run {
    const char *name, *model, *schedule;                        /* schedule NULL: x alone */
    enum sampler_kind sampler;
    enum guide_opt opt;
    double lr, decay, to, cfg;
    int steps;
    bool on[MAX_IN], masked[MAX_IN], soft;
    float contrast;
};

#define JOINT "x=1:0 y=1:0"

#define X { true, false }
#define Y { false, true }
#define XY { true, true }

static const struct run runs[] = {
    { "alone", "sd1", NULL, SAMPLER_DDIM, GUIDE_ADAMW, 0.02, 0, 1, 3, 1, X, X, false, 0 },
    { "alone_v", "sd2", NULL, SAMPLER_DDIM, GUIDE_SGD, 0.02, 0, 1, 3, 2, X, X, false, 0 },
    { "joint", "depth", JOINT, SAMPLER_DDIM, GUIDE_ADAMW, 0.02, 0, 1, 3, 1, Y, Y, false, 0 },
    { "euler", "depth", JOINT, SAMPLER_EULER_A, GUIDE_ADAMW, 0.05, 0, 1, 1, 2, Y, Y, false, 0 },
    { "both", "depth", JOINT, SAMPLER_DDIM, GUIDE_ADAMW, 0.02, 0.1, 0.5, 3, 2, XY, XY, false, 0 },
    { "fixed", "depth", JOINT, SAMPLER_EULER_A, GUIDE_FIXED, 5e-5, 0, 1, 3, 1, Y, Y, false, 0 },
    { "held", "depth", "x=1:0 y=0", SAMPLER_DDIM, GUIDE_SGD, 5e-4, 0, 1, 3, 2, X, X, false, 0 },
    { "soft", "depth", JOINT, SAMPLER_DDIM, GUIDE_FIXED, 0.005, 0, 1, 1, 2, Y, Y, true, 0 },
    { "contrast", "id", JOINT, SAMPLER_DDIM, GUIDE_ADAMW, 0.02, 0, 1, 3, 1, Y, Y, false, 1 },
};

#undef X
#undef Y
#undef XY

/* The upper left of guide.py's pictures, and its masks. */
static void make_picture(float *to, int k, int height, int width)
{
    for (int i = 0; i < height * width * 3; i++) {
        const int x = i / 3 % width, y = i / 3 / width, c = i % 3;
        const int v = k ? x * 2 + y * 5 + c * 20 : x * 7 + y * 3 + c * 50;

        to[i] = (float)((double)(v % 256) / 255 * 2 - 1);
    }
}

static void make_mask(float *to, bool soft)
{
    for (int i = 0; i < h * w; i++)
        to[i] = soft ? (float)(i % w % 5) / 4 : i % w >= 2 && i / w < 5;
}

/* What guide.py does: the pictures' mean, its noise, torch's numbers. */
static void fill(struct pipeline_request *q, const struct run *r, const struct base_model *b)
{
    static float picture[MAX_IN][H * W * 3], mask[h * w], noise[MAX_IN][LATENTS];
    static int32_t x_ids[PIPELINE_TOKENS], y_ids[PIPELINE_TOKENS], no_ids[PIPELINE_TOKENS];
    const int f = (int)vae_factor(&b->vae);
    char name[32];

    *q = (struct pipeline_request){ .n_input = r->schedule ? 2 : 1, .width = w * f, .height = h * f, .steps = 4,
                                    .cfg = r->cfg, .seed = 4321, .rng = NOISE_TORCH_CPU, .count = 1, .batch = 1,
                                    .x_noise = 1, .joint_scale = 1, .sampler = r->sampler,
                                    .n_contrast = r->contrast > 0, .contrast = { { .scale = r->contrast } } };
    q->guidance = (struct pipeline_guidance){ { r->on[0], r->on[1] }, r->opt, r->lr, r->decay, r->steps, 0, r->to };
    tokens(x_ids, b, "a red fox in the snow, best quality");
    tokens(y_ids, b, strcmp(r->model, "depth") ? "a red fox in the snow, best quality"
                                               : "depth_map, a red fox in the snow, best quality");
    tokens(no_ids, b, "blurry, low quality");
    make_mask(mask, r->soft);
    for (int k = 0; k < q->n_input; k++) {
        snprintf(name, sizeof name, "guide.noise%d", k);
        golden_draw(noise[k], LATENTS, name, GOLDEN_SEED, 1);
        make_picture(picture[k], k, h * f, w * f);
        q->input[k] = (struct pipeline_input){ .prompt = k ? y_ids : x_ids, .negative = no_ids, .picture = picture[k],
                                               .mask = r->masked[k] ? mask : NULL, .mode = true, .noise = noise[k],
                                               .noise_rows = 1 };
    }
    if (r->schedule) {
        const bool is_id = !strcmp(r->model, "id");

        q->pair[q->n_pair++] = (struct pipeline_pair){ 0, 1, is_id ? 0.6f : 1, is_id ? 0.6f : 1, &checkpoint[is_id] };
    }
}

/* change: what the caller does with the request; NULL: nothing. */
static int go(const struct run *r, const char *device, enum dtype type, void (*change)(struct pipeline_request *),
              const struct progress *progress, struct result *out, struct pipeline_cost *cost, struct err *e)
{
    static const char *const names[] = { "x", "y" };
    const struct base_model *b = base[!strcmp(r->model, "sd2")];
    const struct pipeline_base pipe = { &b->unet, &b->vae, &b->text, &b->schedule, &b->unet_weights, &b->vae_weights,
                                        &b->text_weights, NULL };
    const struct pipeline_sink sink = { take, out, progress ? *progress : (struct progress){ NULL, NULL } };
    struct pair_plan plan = { 0 };
    struct pipeline_request q;
    struct device dev;
    int rc = OK;

    fill(&q, r, b);
    if (r->schedule) {
        rc = pair_parse(&plan, r->schedule, names, 2, q.steps, 0, e);
        q.plan = &plan;
    }
    if (change)
        change(&q);
    rc = rc ? rc : device_open(&dev, device, 2, e);
    if (!rc) {
        out->n = 0;
        rc = pipeline_run(&dev, type, &pipe, &q, &sink, cost, e);
        device_close(&dev);
    }
    pair_free(&plan);
    return rc;
}

static void unguided(struct pipeline_request *q) { q->guidance = (struct pipeline_guidance){ 0 }; }

/* Latents, and what guidance alone has changed: runs differ by little, so this asks more. */
static void test_runs(void)
{
    for (size_t i = 0; i < LEN(runs); i++) {
        const struct run *r = &runs[i];
        static struct result got, plain;
        struct err e = { 0 };
        double far = 0, far_change = 0;
        bool ok = !go(r, "cpu", F32, NULL, NULL, &got, NULL, &e);

        ok = ok && (!THOROUGH || !go(r, "cpu", F32, unguided, NULL, &plain, NULL, &e));
        for (int k = 0; k < (r->schedule ? 2 : 1) && ok; k++) {
            const struct golden_tensor *want, *without;
            float change[LATENTS], want_change[LATENTS];
            char name[64];

            snprintf(name, sizeof name, "%s.%s", r->name, k ? "y" : "x");
            want = golden_get(golden, name);
            snprintf(name, sizeof name, "%s.plain%s", r->name, k ? "y" : "x");
            without = golden_get(golden, name);
            if (!want || !without)
                die("guide.safetensors lacks a case");
            far = fmax(far, distance(got.z[k], want->f, LATENTS) / norm(want->f, LATENTS));
            for (int j = 0; j < LATENTS; j++) {
                change[j] = got.z[k][j] - plain.z[k][j];
                want_change[j] = want->f[j] - without->f[j];
            }
            if (THOROUGH && norm(want_change, LATENTS) > 0)
                far_change = fmax(far_change, distance(change, want_change, LATENTS) / norm(want_change, LATENTS));
        }
        tap_ok(ok && far <= run_off && far_change <= change_off, "%s: off by %.1e, what guidance changed %s %.1e %s",
               r->name, far, THOROUGH ? "by" : "is not asked,", far_change, e.text);
    }
}

/* ---- what has to hold of any ---- */

static void three_of_two(struct pipeline_request *q)
{
    q->count = 3;
    q->batch = 2;
    q->steps = 4;
    q->rng = NOISE_PHILOX;
}

static void half_of_rows(struct pipeline_request *q) { q->guidance.from = 0.5; }

/* Dry runs: first, later and guided rows, and a batch that is not full. */
static void test_dry(void)
{
    static void (*const change[])(struct pipeline_request *) = { NULL, half_of_rows, three_of_two };
    static const char *const what[] = { "each row", "half of the rows", "three images, two at a time" };

    for (size_t i = 0; i < LEN(change); i++) {
        struct pipeline_cost said = { 0 }, took = { 0 };
        static struct result r;
        struct err e = { 0 };
        const bool ok = !go(&runs[2], "null", F32, change[i], NULL, &r, &said, &e)
            && !go(&runs[2], "cpu", F32, change[i], NULL, &r, &took, &e);

        tap_ok(ok && said.peak_bytes == took.peak_bytes, "%s: a dry run says %zu bytes, the run takes %zu %s", what[i],
               said.peak_bytes, took.peak_bytes, e.text);
    }
}

/* What rows that are told apart cost adds up: guided rows are dearer. */
static void test_cost(void)
{
    struct pipeline_cost all = { 0 }, half = { 0 }, none = { 0 };
    static struct result r;
    struct err e = { 0 };
    bool ok = !go(&runs[2], "null", F32, NULL, NULL, &r, &all, &e)
        && !go(&runs[2], "null", F32, half_of_rows, NULL, &r, &half, &e)
        && !go(&runs[2], "null", F32, unguided, NULL, &r, &none, &e);
    const int64_t a = all.stage[STAGE_DENOISE].flops, b = half.stage[STAGE_DENOISE].flops,
                  c = none.stage[STAGE_DENOISE].flops;

    tap_ok(ok && a - b == b - c && a > 3 * c, "guidance of each row takes %.2f times the work, of half of them %.2f %s",
           (double)a / (double)c, (double)b / (double)c, e.text);
}

struct stopper {
    int at, n;
};

static int tick(void *ctx, const char *what, int64_t done, int64_t total)
{
    struct stopper *s = ctx;

    (void)what, (void)done, (void)total;
    return ++s->n == s->at;
}

static void test_stop(void)
{
    struct stopper all = { 0, 0 };
    const struct progress count = { tick, &all };
    static struct result r;
    struct err e = { 0 };
    bool ok = !go(&runs[3], "cpu", F32, NULL, &count, &r, NULL, &e);

    for (int i = 4; i < all.n && ok; i += THOROUGH ? 1 : 5) {
        struct stopper s = { i, 0 };
        const struct progress stop = { tick, &s };

        ok = go(&runs[3], "cpu", F32, NULL, &stop, &r, NULL, &e) == E_CANCEL && s.n == i;
    }
    tap_ok(ok && all.n >= 4 * 3, "guidance asks whether to stop, %d times in all", all.n);
}

static float alone[3][MAX_IN][LATENTS];
static int n_taken;

static int take_each(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e)
{
    (void)ctx, (void)rgb, (void)e;
    memcpy(alone[index][k], latents, sizeof alone[index][k]);
    n_taken++;
    return OK;
}

/* An image does not depend on those it is made with. */
static void test_batch(void)
{
    static const char *const names[] = { "x", "y" };
    static float first[3][MAX_IN][LATENTS];
    const struct base_model *b = base[0];
    const struct pipeline_base pipe = { &b->unet, &b->vae, &b->text, &b->schedule, &b->unet_weights, &b->vae_weights,
                                        &b->text_weights, NULL };
    const struct pipeline_sink sink = { take_each, NULL, { NULL, NULL } };
    struct pipeline_request q;
    struct pair_plan plan = { 0 };
    struct device dev;
    struct err e = { 0 };
    bool ok;

    fill(&q, &runs[2], b);
    ok = !pair_parse(&plan, JOINT, names, 2, q.steps, 0, &e) && !device_open(&dev, "cpu", 2, &e);
    three_of_two(&q);
    q.plan = &plan;
    q.input[0].noise = q.input[1].noise = NULL;
    ok = ok && !pipeline_run(&dev, F32, &pipe, &q, &sink, NULL, &e) && n_taken == 6;
    memcpy(first, alone, sizeof first);
    q.batch = 1;
    ok = ok && !pipeline_run(&dev, F32, &pipe, &q, &sink, NULL, &e) && n_taken == 12;
    tap_ok(ok && !memcmp(first, alone, sizeof first) && memcmp(alone[0], alone[1], sizeof alone[0]),
           "guided images come out the same in batches of two and alone %s", e.text);
    device_close(&dev);
    pair_free(&plan);
}

/* As many as 100 allocations of a run in turn; guidance and its second tape are most of them. */
static void test_faults(void)
{
    static struct result r;
    struct err e = { 0 };
    long total, n = 0;
    bool ok;

    arena_fault_at(0);
    ok = !go(&runs[3], "null", F32, NULL, NULL, &r, NULL, &e);
    total = arena_fault_count();
    for (long i = total / 4; i <= total && ok && n < (THOROUGH ? 100 : 10); i += total / (THOROUGH ? 130 : 13), n++) {
        err_clear(&e);
        arena_fault_at(i);
        ok = go(&runs[3], "null", F32, NULL, NULL, &r, NULL, &e) == E_NOMEM;
    }
    arena_fault_at(0);
    tap_ok(ok, "%ld of %ld allocations failed in turn: %s", n, total, e.text);
}

static void no_picture(struct pipeline_request *q)
{
    q->input[1].picture = NULL;
    q->input[1].mask = NULL;
}

static void nowhere(struct pipeline_request *q)
{
    q->guidance.from = 0.3;
    q->guidance.to = 0.4;
}

static void nobody(struct pipeline_request *q) { q->guidance.on[5] = true; }
static void no_steps(struct pipeline_request *q) { q->guidance.steps = 0; }
static void on_held(struct pipeline_request *q) { q->guidance.on[1] = true; }

static void test_refusals(void)
{
    static const struct { int run; void (*change)(struct pipeline_request *); const char *says; } wrong[] = {
        { 2, no_picture, "no picture" }, { 2, nowhere, "4 rows" }, { 2, nobody, "not there" },
        { 2, no_steps, "0 steps" }, { 6, on_held, "held" },
    };
    static struct result r;

    for (size_t i = 0; i < LEN(wrong); i++) {
        struct err e = { 0 };
        const int rc = go(&runs[wrong[i].run], "null", F32, wrong[i].change, NULL, &r, NULL, &e);

        tap_ok(rc == E_ARG && strstr(e.text, wrong[i].says), "refused: %s", e.text);
    }
}

/* Gradients in bfloat16 point the same way: what guidance changes has a positive part along what it changes in f32. */
static void test_bf16(void)
{
    static struct result f32[2], bf16[2];
    struct err e = { 0 };
    double dot = 0, a = 0, b = 0;
    bool ok = true;

    for (int i = 0; i < 2 && ok; i++)
        ok = !go(&runs[5], "cpu", F32, i ? NULL : unguided, NULL, &f32[i], NULL, &e)
            && !go(&runs[5], "cpu", BF16, i ? NULL : unguided, NULL, &bf16[i], NULL, &e);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < LATENTS; i++) {
            const double u = (double)f32[1].z[k][i] - (double)f32[0].z[k][i];
            const double v = (double)bf16[1].z[k][i] - (double)bf16[0].z[k][i];

            dot += u * v;
            a += u * u;
            b += v * v;
        }
    tap_ok(ok && dot > 0.8 * sqrt(a * b), "in bfloat16 guidance goes the same way, cosine %.3f %s", dot / sqrt(a * b),
           e.text);
}

int main(void)
{
    static const char *const model[] = { "sd1", "sd2" };
    const struct base_options o = { .prediction = -1 };
    struct err e = { 0 };
    char path[64];

    if (!mkdtemp(tmp))
        die("no directory");
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", tmp, model[i]);
        if (tiny_write(model[i], path) || base_model_open(&base[i], path, &o, &e))
            die(e.text);
    }
    golden = golden_open("tests/reference/guide.safetensors");
    depth = adapters_open("depth");
    id = adapters_open("id");
    checkpoint[0] = (struct joint_weights){ &depth->xy, &depth->yx, &depth->y, &depth->post, JOINT_CONV_FUSE, 1 };
    checkpoint[1] = (struct joint_weights){ &id->xy, &id->yx, NULL, &id->post, JOINT_CONV, 1 };
    test_runs();
    test_dry();
    test_cost();
    test_stop();
    test_batch();
    test_faults();
    test_refusals();
    test_bf16();
    adapters_close(depth);
    adapters_close(id);
    golden_close(golden);
    base_model_close(base[0]);
    base_model_close(base[1]);
    snprintf(path, sizeof path, "rm -rf '%s'", tmp);
    if (system(path))
        tap_note("%s is left", tmp);
    return tap_done();
}
