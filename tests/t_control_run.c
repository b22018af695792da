/* tests/t_control_run.c: whole runs of unicon-sample with ControlNets, from its command line, against diffusers'
 * pipelines (tests/reference/controlnet.py), and what has to hold whatever the numbers are; a run from inside. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/diffusion/pipeline.h"
#include "store/base_model.h"
#include "store/controlnet_file.h"
#include "store/image_file.h"
#include "store/unicon_file.h"
#include "tests/adapters.h"
#include "tests/golden.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

enum { W = 48, H = 64 };

/* Under sanitizers one run of each kind. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

/* As in t_sample.c; these are off by up to 1.2e-5. */
static const double walk_off = 5e-5;

static struct golden *golden;
static char tmp[] = "/tmp/t_control_run.XXXXXX", program[4096];

static void die(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

static const char *at(const char *name)
{
    static char path[16][256];
    static int next;

    next = (next + 1) % 16;
    snprintf(path[next], sizeof path[next], "%s/%s", tmp, name);
    return path[next];
}

static void write_files(void)
{
    if (tiny_write("sd1", at("sd1")) || tiny_write_control("control", at("c1"))
        || tiny_write_control("control2", at("c2"))
        || tiny_write_control_single("control", at("c1.safetensors"), true, false)
        || tiny_write_control_single("control", at("c1.pth"), true, false)
        || tiny_write_control_single("control", at("whole.ckpt"), true, true)
        || tiny_write_control_single("control", at("ours.safetensors"), false, false))
        die("the models cannot be written");
}

/* ---- whole runs ---- */

static void make_picture(const char *name, int k, int w, int h)
{
    struct image m = { 0 };
    struct err e = { 0 };

    if (image_new(&m, h, w, 3, PIXEL_U8, &e))
        die(e.text);
    for (int i = 0; i < h * w * 3; i++) {
        const int x = i / 3 % w, y = i / 3 / w, c = i % 3;
        ((unsigned char *)m.px)[i] = (unsigned char)(!k ? x * 7 + y * 3 + c * 50 : k == 1 ? x * 2 + y * 5 + c * 20
                                                                                          : x * y + c * 90);
    }
    if (image_save(at(name), &m, NULL, 0, &e))
        die(e.text);
    image_free(&m);
}

/* Runs it in tmp; what it says is in "out" and "err" there. */
__attribute__((format(printf, 1, 2))) static int sample(const char *fmt, ...)
{
    char command[8192];
    int n = snprintf(command, sizeof command, "cd %s && %s -q --threads 2 ", tmp, program), status;
    va_list ap;

    va_start(ap, fmt);
    n += vsnprintf(command + n, sizeof command - (size_t)n, fmt, ap);
    va_end(ap);
    snprintf(command + n, sizeof command - (size_t)n, " >out 2>err");
    status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static const char *said(const char *file)
{
    static char text[4096];
    FILE *f = fopen(at(file), "r");
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;

    text[n] = '\0';
    if (f)
        fclose(f);
    return text;
}

/* A tensor of a file of latents; 0 numbers if there is none. */
static int64_t latents_of(const char *name, const char *input, float *v, int64_t room)
{
    struct weights_file *f = NULL;
    struct err e = { 0 };
    const struct weights_entry *x;
    int64_t n = 0;

    if (!weights_file_open(&f, at(name), &e) && (x = weights_get(&f->table, input)) && weights_count(x) <= room
        && !weights_read(x, v, F32, &e))
        n = weights_count(x);
    weights_file_close(f);
    return n;
}

static bool same_of(const char *input, const char *a, const char *b)
{
    static float x[4096], y[4096];
    const int64_t n = latents_of(a, input, x, LEN(x)), m = latents_of(b, input, y, LEN(y));

    return n && n == m && !memcmp(x, y, sizeof *x * (size_t)n);
}

static bool same_latents(const char *a, const char *b) { return same_of("x", a, b); }

static bool same_file(const char *a, const char *b)
{
    static char x[1 << 20], y[1 << 20];
    FILE *f = fopen(at(a), "r"), *g = fopen(at(b), "r");
    const size_t n = f ? fread(x, 1, sizeof x, f) : 0, m = g ? fread(y, 1, sizeof y, g) : 0;

    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return n && n == m && !memcmp(x, y, n);
}

static void near_run(const char *name, const char *sampler, const char *options)
{
    const struct golden_tensor *g;
    static float v[4096];
    double d = INFINITY, n = 0;
    char full[64];
    int rc;

    snprintf(full, sizeof full, "%s_%s.y", name, sampler);
    g = golden_get(golden, full);
    if (!g)
        die(full);
    remove(at("z"));
    rc = sample("--base sd1 --prompt 'a red fox in the snow, best quality' --negative 'blurry, low quality' "
                "--dtype f32 --width 48 --height 64 --steps 20 --cfg 7.5 --rng torch-cpu --seed 4321 "
                "--save-latents z -o z.png --sampler %s %s", sampler, options);
    if (!rc && latents_of("z", "x", v, LEN(v)) == g->n) {
        d = 0;
        for (int64_t i = 0; i < g->n; i++) {
            d += (double)(v[i] - g->f[i]) * (double)(v[i] - g->f[i]);
            n += (double)g->f[i] * (double)g->f[i];
        }
        d = sqrt(d / n);
    }
    tap_ok(d <= walk_off, "%s, %s: %.1e of %.0e %s", name, sampler, d, walk_off, said("err"));
}

static void test_runs(void)
{
    static const struct {
        const char *name, *sampler, *options;
    } run[] = {
        { "text", "ddim", "--controlnet c1 --y y.png" },
        { "two", "euler-a", "--controlnet c1:0.7 --controlnet b=c2:0.4 --y b=y2.png --y c1=y.png" },
        { "image", "dpm++2m", "--controlnet c1:0.8 --y y.png --x x.png --x-noise 0.73" },
        { "half", "ddim", "--controlnet c1.pth --y y.png --control-range 0,0.5" },
        { "text", "euler-a", "--controlnet c1.safetensors --y c1=y.png" },
        { "text", "dpm++2m", "--controlnet whole.ckpt:1 --y y.png" },
        { "two", "ddim", "--controlnet a=c1:0.7 --controlnet c2:0.4 --y c2=y2.png --y a=y.png" },
        { "image", "ddim", "--controlnet c1:0.8 --y y.png --x x.png --x-noise 0.73" },
        { "late", "dpm++2m", "--controlnet c1 --y y.png --control-range 0.3,1" },
        { "large", "ddim", "--controlnet ours.safetensors --y large.png" },
    };

    make_picture("x.png", 0, W, H);
    make_picture("y.png", 1, W, H);
    make_picture("y2.png", 2, W, H);
    make_picture("large.png", 1, 72, 96);
    for (size_t i = 0; i < (THOROUGH ? LEN(run) : 4); i++)
        near_run(run[i].name, run[i].sampler, run[i].options);
}

#define SMALL "--base sd1 --prompt fox --width 48 --height 32 --steps 3 --dtype f32 --sampler euler-a"

static void test_same(void)
{
    bool ok = !sample(SMALL " --save-latents n -o n.png")
        && !sample(SMALL " --controlnet c1:0 --y y.png --save-latents a -o a.png");

    tap_ok(ok && same_latents("n", "a"), "of weight 0 it changes nothing %s", said("err"));
    ok = !sample(SMALL " --controlnet c1 --y y.png --control-range 0.1,0.3 --save-latents a -o a.png");
    tap_ok(ok && same_latents("n", "a"), "in a range without a step neither %s", said("err"));
    ok = !sample(SMALL " --controlnet c1 --y y.png --count 3 --save-latents a -o a.png")
        && !sample(SMALL " --controlnet c1 --y y.png --count 3 --batch 2 --threads 1 --save-latents b -o b.png");
    tap_ok(ok && same_latents("a", "b") && !same_latents("n", "a"), "one by one or in batches: same bits %s",
           said("err"));
    ok = !sample("--replay a-1.png -o r.png") && same_file("a-1.png", "r.png");
    tap_ok(ok, "--replay takes ControlNets %s", said("err"));
    ok = !sample(SMALL " --cfg 1 --controlnet c1 --y y.png --save-latents a -o a.png")
        && !sample(SMALL " --cfg 1 --controlnet c1 --y y.png --dtype bf16 -o b.png")
        && !sample(SMALL " --sampler pndm --controlnet c1 --y y.png --x x.png --x-noise 0.5 --x-mask y2.png -o b.png");
    tap_ok(ok, "without guidance, in bf16, with pndm and a mask %s", said("err"));
}

#define ALL SMALL " --unicon depth --y depth=y.png --y-mask depth=y2.png --controlnet c1 --controlnet c2:0.5 " \
    "--y c1=x.png --y c2=y.png --guide y --guide-steps 2 --cond-guidance 1 --cond-guidance depth=0.5:0.5,0 --count 3"

/* Beside a pair: y does not see it but through x, and x alone with it is x in a pair of no weight. */
static void test_pairs(void)
{
    struct adapters *a = adapters_open("depth");
    const struct joint_weights w = { &a->xy, &a->yx, &a->y, &a->post, JOINT_CONV_FUSE, 1 };
    struct err e = { 0 };
    bool ok = !unicon_file_write(at("depth"), &w, "depth", "depth_map, ", true, &e)
        && !sample(SMALL " --unicon depth --pair depth=1,0 --task joint --save-latents a -o a.png")
        && !sample(SMALL " --unicon depth --controlnet c1 --y c1=y.png --pair 1,0 --task joint --save-latents b -o "
                   "b.png");

    tap_ok(ok && same_of("y", "a", "b") && !same_of("x", "a", "b"), "a ControlNet is x's alone %s%s", e.text,
           said("err"));
    ok = !sample(SMALL " --controlnet c1 --y y.png --save-latents a -o a.png")
        && !sample(SMALL " --unicon depth --controlnet c1:1 --y c1=y.png --y depth=y2.png --pair 0,0 --save-latents b "
                   "-o b.png");
    tap_ok(ok && same_latents("a", "b"), "and does there what it does without a pair %s", said("err"));
    ok = !sample(SMALL " --unicon depth --y y=y2.png --controlnet c1 --y c1=y.png --save-latents a -o a.png")
        && !sample(SMALL " --unicon depth --y y=y2.png --controlnet c1 --y c1=y.png --cond-guidance 2:1,1 "
                   "--save-latents b -o b.png");
    tap_ok(ok && same_latents("a", "b"), "condition guidance compares with what has it too %s", said("err"));
    ok = !sample(ALL " --save-latents a -o a.png --sheet a-sheet.png")
        && !sample(ALL " --batch 2 --threads 1 --save-latents b -o b.png") && !sample("--replay a-1.png -o r.png");
    tap_ok(ok && same_latents("a", "b") && same_of("y", "a", "b") && same_file("a-1.png", "r.png")
           && same_file("a-1_y.png", "r_y.png"), "two of them, a pair, a mask, every guidance, in batches, again %s",
           said("err"));
    adapters_close(a);
}

/* ---- from inside ---- */

struct setting {
    struct base_model *base;
    struct controlnet_file *file;
    struct pipeline_request q;
    int32_t prompt[PIPELINE_TOKENS];
    float *picture;
};

static int ignore(void *ctx, int64_t index, int k, const float *rgb, const float *z, struct err *e)
{
    (void)ctx, (void)index, (void)k, (void)rgb, (void)z, (void)e;
    return OK;
}

static int go(struct setting *s, const char *device, struct pipeline_cost *cost, struct err *e)
{
    const struct pipeline_base pipe = { &s->base->unet, &s->base->vae, &s->base->text, &s->base->schedule,
                                        &s->base->unet_weights, &s->base->vae_weights, &s->base->text_weights, NULL };
    const struct pipeline_sink sink = { ignore, NULL, { NULL, NULL } };
    struct device dev;
    int rc = device_open(&dev, device, 2, e);

    rc = rc ? rc : pipeline_run(&dev, F32, &pipe, &s->q, &sink, cost, e);
    device_close(&dev);
    return rc;
}

static void prepare(struct setting *s)
{
    const struct base_options o = { .prediction = -1 };
    struct err e = { 0 };

    memset(s, 0, sizeof *s);
    s->picture = calloc(48 * 32 * 3, sizeof *s->picture);
    if (!s->picture || base_model_open(&s->base, at("sd1"), &o, &e)
        || controlnet_file_open(&s->file, at("c1"), NULL, &s->base->unet, &e)
        || clip_bpe_encode(s->base->bpe, "fox", s->prompt, PIPELINE_TOKENS, s->base->pad_id, NULL, &e))
        die(e.text);
    s->q = (struct pipeline_request){ .n_input = 1, .joint_scale = 1,
                                      .input = { { .prompt = s->prompt, .negative = s->prompt } }, .width = 48,
                                      .height = 32, .sampler = SAMPLER_DDIM, .steps = 6, .cfg = 5, .count = 1,
                                      .batch = 1, .x_noise = 1, .control_to = 1, .n_control = 2 };
    for (int i = 0; i < 2; i++)
        s->q.control[i] = (struct pipeline_control){ &s->file->config, &s->file->weights, s->picture, 0.5f };
}

/* What a dry run says is what a run takes, to the byte; of the work, the steps at which ControlNets act. */
static void test_plan(struct setting *s)
{
    static const double from[] = { 0, 0, 0.1 }, to[] = { 1, 0.5, 0.15 };
    struct pipeline_cost said[3] = { { .peak_bytes = 0 } }, took = { .peak_bytes = 0 };
    struct err e = { 0 };
    int64_t flops[3];

    for (int i = 0; i < 3; i++) {
        s->q.control_from = from[i];
        s->q.control_to = to[i];
        if (go(s, "null", &said[i], &e) || go(s, "cpu", &took, &e))
            break;
        flops[i] = said[i].stage[STAGE_DENOISE].flops;
        tap_ok(said[i].peak_bytes == took.peak_bytes
               && said[i].stage[STAGE_DENOISE].bytes == took.stage[STAGE_DENOISE].bytes,
               "ControlNets from %g to %g: a dry run says %zu bytes, the run takes %zu", from[i], to[i],
               said[i].peak_bytes, took.peak_bytes);
    }
    tap_ok(!e.code && 2 * flops[1] == flops[0] + flops[2] && flops[2] < flops[1], "half the steps are half the work %s",
           e.text);
    s->q.control_from = 0;
    s->q.control_to = 1;
}

/* As many as 100 of a run's allocations in turn. */
static void test_faults(struct setting *s)
{
    struct err e = { 0 };
    long total, step;
    int n = 0;
    bool ok;

    s->q.steps = 2;
    arena_fault_at(0);
    ok = !go(s, "cpu", NULL, &e);
    total = arena_fault_count();
    step = total / 100 + 1;
    for (long i = 1; i <= total && ok; i += step, n++) {
        err_clear(&e);
        arena_fault_at(i);
        ok = go(s, "cpu", NULL, &e) == E_NOMEM && e.text[0];
    }
    arena_fault_at(0);
    tap_ok(ok && n > 50, "%d of %ld allocations failed in turn: each is out of memory and nothing else %s", n, total,
           ok ? "" : e.text);
}

int main(void)
{
    char command[300], here[3000];
    struct setting s;
    const char *bin = getenv("BIN");
    const bool rooted = bin && bin[0] == '/';

    if (!getcwd(here, sizeof here) || !mkdtemp(tmp))
        die("no room");
    snprintf(program, sizeof program, "%s%s%s/unicon-sample", rooted ? "" : here, rooted ? "" : "/", bin ? bin : "bin");
    golden = golden_open("tests/reference/controlnet.safetensors");
    write_files();
    test_runs();
    test_same();
    test_pairs();
    prepare(&s);
    test_plan(&s);
    test_faults(&s);
    controlnet_file_close(s.file);
    base_model_close(s.base);
    free(s.picture);
    golden_close(golden);
    snprintf(command, sizeof command, "rm -rf '%s'", tmp);
    if (system(command))
        tap_note("%s is left", tmp);
    return tap_done();
}
