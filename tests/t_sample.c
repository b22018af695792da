/* tests/t_sample.c: unicon-sample from its command line, on tiny models on disk: latents against those of diffusers'
 * pipelines (tests/reference/pipelines.py), and what has to hold whatever the numbers are. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/image_file.h"
#include "store/unicon_file.h"
#include "store/weights_file.h"
#include "tests/adapters.h"
#include "tests/golden.h"
#include "tests/tap.h"
#include "tests/tiny.h"

enum { MAX_ARG = 64, W = 48, H = 64 };

/* Sanitizers take memory of their own and make everything ten times slower: there each sampler walks once, half of them
 * on each model. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

/* Whole runs with guidance, in f32 on both sides: ours are off by up to 5e-5, and instruction sets from each other. */
static const double walk_off = 2e-4;

static struct golden *golden, *unicon_golden, *more_golden;
static char tmp[] = "/tmp/t_sample.XXXXXX";
static const char *program;

static const char *at(const char *name)                 /* a path in tmp; sixteen at a time */
{
    static char path[16][256];
    static int next;

    next = (next + 1) % 16;
    snprintf(path[next], sizeof path[next], "%s/%s", tmp, name);
    return path[next];
}

/* ---- running it ---- */

struct result {
    int status;                 /* exit status, or -signal */
    char out[8192], err[8192];
    int64_t peak_kib;
};

static void slurp(const char *path, char *buf, size_t size)
{
    FILE *f = fopen(path, "r");
    const size_t n = f ? fread(buf, 1, size - 1, f) : 0;

    buf[n] = '\0';
    if (f)
        fclose(f);
}

static pid_t start(char *const *argv)
{
    const pid_t child = fork();

    if (child)
        return child;
    if (!freopen(at("out"), "w", stdout) || !freopen(at("err"), "w", stderr) || !freopen("/dev/null", "r", stdin))
        _exit(126);
    execv(program, argv);
    _exit(127);
}

static struct result finish(pid_t child)
{
    struct result r = { .status = -1 };
    struct rusage u = { .ru_maxrss = 0 };
    int status;

    if (wait4(child, &status, 0, &u) == child)
        r.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    r.peak_kib = u.ru_maxrss;
    slurp(at("out"), r.out, sizeof r.out);
    slurp(at("err"), r.err, sizeof r.err);
    return r;
}

/* Options after those that every run has; NULL at the end. */
static struct result sample(const char *base, const char *const *more)
{
    const char *argv[MAX_ARG] = { "unicon-sample", "--base", base, "--prompt", "a red fox in the snow, best quality",
                                  "--negative", "blurry, low quality", "-q", "--threads", "2" };
    int n = 0;

    while (argv[n])
        n++;
    for (; *more && n < MAX_ARG - 1; more++)
        argv[n++] = *more;
    return finish(start((char *const *)(uintptr_t)argv));
}

#define SAMPLE(base, ...) sample(base, (const char *const[]){ __VA_ARGS__, NULL })

/* ---- comparing ---- */

/* Tensor x of a file of latents, malloc'ed. */
static float *latents(const char *path, int64_t *n)
{
    struct weights_file *f = NULL;
    struct err e = { 0 };
    struct weights_entry *x;
    float *v = NULL;

    if (!weights_file_open(&f, path, &e) && (x = weights_get(&f->table, "x")) && x->type == STORED_F32) {
        *n = weights_count(x);
        v = malloc(sizeof *v * (size_t)*n);
        if (v && weights_read(x, v, F32, &e)) {
            free(v);
            v = NULL;
        }
    }
    weights_file_close(f);
    return v;
}

static double distance(const float *got, const float *want, int64_t n)
{
    double d = 0, s = 0;

    for (int64_t i = 0; i < n; i++) {
        d += (double)(got[i] - want[i]) * (double)(got[i] - want[i]);
        s += (double)want[i] * (double)want[i];
    }
    return sqrt(d / s);
}

static void near(const struct result *r, const char *path, const char *name)
{
    const struct golden_tensor *g = golden_get(golden, name);
    int64_t n = 0;
    float *z = latents(path, &n);
    const double off = z && g && n == g->n ? distance(z, g->f, n) : INFINITY;

    tap_ok(!r->status && off <= walk_off, "%s: %.1e of %.0e", name, off, walk_off);
    if (r->status)
        tap_note("%s", r->err);
    free(z);
}

static bool same_file(const char *a, const char *b)
{
    static char x[1 << 20], y[1 << 20];
    FILE *f = fopen(a, "r"), *g = fopen(b, "r");
    const size_t n = f ? fread(x, 1, sizeof x, f) : 0, m = g ? fread(y, 1, sizeof y, g) : 0;

    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return n && n == m && !memcmp(x, y, n);
}

static bool same_latents(const char *a, const char *b)
{
    int64_t n = 0, m = 0;
    float *x = latents(a, &n), *y = latents(b, &m);
    const bool same = x && y && n == m && !memcmp(x, y, sizeof *x * (size_t)n);

    free(x);
    free(y);
    return same;
}

static bool exists(const char *path) { return !access(path, F_OK); }

/* ---- against diffusers ---- */

/* The pictures of pipelines.py. */
static void make_pictures(void)
{
    struct image m = { 0 };
    struct err e = { 0 };

    if (image_new(&m, H, W, 3, PIXEL_U8, &e))
        return;
    for (int i = 0; i < H * W * 3; i++)
        ((unsigned char *)m.px)[i] = (unsigned char)(i / 3 % W * 7 + i / 3 / W * 3 + i % 3 * 50);
    image_save(at("x.png"), &m, NULL, 0, &e);
    image_free(&m);
    if (image_new(&m, H, W, 1, PIXEL_U8, &e))
        return;
    for (int i = 0; i < H * W; i++)
        ((unsigned char *)m.px)[i] = i % W >= 16 && i / W < 40 ? 255 : 0;
    image_save(at("mask.png"), &m, NULL, 0, &e);
    image_free(&m);
}

#define COMMON "--dtype", "f32", "--width", "48", "--height", "64", "--steps", "20", "--cfg", "7.5", "--rng", \
    "torch-cpu", "--seed", "4321", "--save-latents", at("z.safetensors"), "-o", at("z.png")

static void test_diffusers(const char *model)
{
    static const char *const sampler[] = { "ddim", "ddpm", "euler", "euler-a", "dpm++2m", "pndm" };
    char base[256], name[64];

    snprintf(base, sizeof base, "%s", at(model));
    for (size_t i = 0; i < 7; i++) {
        const bool eta = i == 6;
        const char *s = sampler[eta ? 0 : i], *e = eta ? "1" : "0";
        struct result r;

        if (!THOROUGH && (i % 2 == 0) != !strcmp(model, "sd1"))
            continue;
        remove(at("z.safetensors"));
        r = SAMPLE(base, COMMON, "--sampler", s, eta ? "--eta" : "-q", eta ? e : "-q");
        snprintf(name, sizeof name, "%s_%s%s_text.y", model, s, eta ? "_eta" : "");
        near(&r, at("z.safetensors"), name);
        if (!THOROUGH && i % 3)
            continue;
        remove(at("z.safetensors"));
        r = SAMPLE(base, COMMON, "--sampler", s, "--x", at("x.png"), "--x-noise", "0.73", eta ? "--eta" : "-q",
                   eta ? e : "-q");
        snprintf(name, sizeof name, "%s_%s%s_image.y", model, s, eta ? "_eta" : "");
        near(&r, at("z.safetensors"), name);
    }
}

static void test_inpainting(void)
{
    static const char *const sampler[] = { "ddim", "euler-a" }, *const noise[] = { "1", "0.73" },
        *const of[] = { "100", "75" };
    char base[256], name[64];

    snprintf(base, sizeof base, "%s", at("sd1"));
    for (int i = 0; i < 4; i += THOROUGH ? 1 : 3) {
        struct result r;

        remove(at("z.safetensors"));
        r = SAMPLE(base, COMMON, "--sampler", sampler[i / 2], "--x", at("x.png"), "--x-mask", at("mask.png"),
                   "--x-noise", noise[i % 2]);
        snprintf(name, sizeof name, "sd1_%s_mask%s.y", sampler[i / 2], of[i % 2]);
        near(&r, at("z.safetensors"), name);
    }
}

/* The pixels of diffusers' image: at most one step of 255 beside ours. */
static void test_pixels(void)
{
    const struct golden_tensor *g = golden_get(golden, "sd1_ddim_text.image");
    struct result r = SAMPLE(at("sd1"), COMMON, "--sampler", "ddim");
    struct image m = { 0 };
    struct err e = { 0 };
    int worst = 256;

    if (g && !r.status && !image_load(&m, at("z.png"), true, &e) && m.H == H && m.W == W && m.C == 3) {
        worst = 0;
        for (int i = 0; i < H * W * 3; i++) {
            const int want = (int)rint(255 * (double)g->f[i % 3 * H * W + i / 3]);
            const int off = abs(((unsigned char *)m.px)[i] - want);
            worst = off > worst ? off : worst;
        }
    }
    tap_ok(worst <= 1, "the picture is diffusers' within one step of 255 (%d)", worst);
    image_free(&m);
}

/* ---- pairs: the published code's runs, from the command line ---- */

static void make_pair_files(void)
{
    struct adapters *depth = adapters_open("depth"), *id = adapters_open("id");
    const struct joint_weights d = { &depth->xy, &depth->yx, &depth->y, &depth->post, JOINT_CONV_FUSE, 1 };
    const struct joint_weights i = { &id->xy, &id->yx, NULL, &id->post, JOINT_CONV, 1 };
    struct err e = { 0 };

    if (unicon_file_write(at("depth"), &d, "depth", "depth_map, ", true, &e)
        || unicon_file_write(at("id"), &i, "id", "", false, &e)) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    for (int k = 1; k < 3; k++) {
        struct image m = { 0 };

        if (image_new(&m, H, W, 3, PIXEL_U8, &e))
            continue;
        for (int j = 0; j < H * W * 3; j++) {
            const int x = j / 3 % W, y = j / 3 / W, c = j % 3;
            ((unsigned char *)m.px)[j] = (unsigned char)(k == 1 ? x * 2 + y * 5 + c * 20 : x * y + c * 90);
        }
        image_save(at(k == 1 ? "y.png" : "y2.png"), &m, NULL, 0, &e);
        image_free(&m);
    }
    adapters_close(depth);
    adapters_close(id);
}

/* Tensors x, y, .. of the file that a run left, against the goldens NAME.x, NAME.y, .. */
static void near_pair(const struct result *r, const char *name, int n)
{
    static const char *const of[] = { "x", "y", "y2" };
    struct weights_file *f = NULL;
    struct err e = { 0 };
    double worst = r->status || weights_file_open(&f, at("z.safetensors"), &e) ? INFINITY : 0;

    for (int k = 0; k < n && worst < 1; k++) {
        char full[64];
        const struct golden_tensor *g;
        const struct weights_entry *w = weights_get(&f->table, of[k]);
        float v[4 * 8 * 6];

        snprintf(full, sizeof full, "%s.%s", name, of[k]);
        g = golden_get(unicon_golden, full);
        g = g ? g : golden_get(more_golden, full);
        if (!g || !w || weights_count(w) != g->n || g->n != 4 * 8 * 6 || weights_read(w, v, F32, &e))
            worst = INFINITY;
        else
            worst = fmax(worst, distance(v, g->f, g->n));
    }
    tap_ok(worst <= walk_off, "%s: %.1e of %.0e %s", name, worst, walk_off, r->err);
    weights_file_close(f);
    remove(at("z.safetensors"));
}

#define PAIR "--dtype", "f32", "--width", "48", "--height", "64", "--steps", "10", "--cfg", "3", "--rng", "torch-cpu", \
    "--seed", "4321", "--compat", "official", "--save-latents", at("z.safetensors"), "-o", at("p.png")

static void test_pairs(void)
{
    char base[256], depth[256], id[256], y[300], y2[300];
    struct result r;

    make_pair_files();
    snprintf(base, sizeof base, "%s", at("sd1"));
    snprintf(depth, sizeof depth, "%s", at("depth"));
    snprintf(id, sizeof id, "%s", at("id"));
    remove(at("z.safetensors"));
    r = SAMPLE(base, PAIR, "--unicon", depth, "--y", at("y.png"), "--sampler", "euler-a");
    near_pair(&r, "to_x_euler-a", 2);
    tap_ok(exists(at("p.png")) && exists(at("p_y.png")), "both branches are written");
    r = SAMPLE(base, PAIR, "--unicon", depth, "--x", at("x.png"), "--task", "x2y", "--eta", "1");
    near_pair(&r, "to_y_ddim", 2);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--sampler", "euler-a", "--schedule", "x=1:0 y=1:0");
    near_pair(&r, "joint_euler-a", 2);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--y", at("y.png"), "--y-noise", "0.7", "--eta", "1");
    near_pair(&r, "coarse_ddim", 2);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--x", at("x.png"), "--y", at("y.png"), "--x-mask", at("mask.png"),
               "--eta", "1");
    near_pair(&r, "mask_x_ddim", 2);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--y", at("y.png"), "--y-mask", at("mask.png"), "--sampler", "euler-a");
    near_pair(&r, "mask_y_euler-a", 2);
    r = SAMPLE(base, PAIR, "--unicon", id, "--y", at("y.png"), "--pair", "0.6,0.6", "--cond-guidance", "1", "--eta",
               "1");
    near_pair(&r, "guided_ddim", 2);
    snprintf(y, sizeof y, "depth=%s", at("y.png"));
    snprintf(y2, sizeof y2, "id=%s", at("y2.png"));
    r = SAMPLE(base, PAIR, "--unicon", depth, "--unicon", id, "--y", y2, "--y", y, "--pair", "id=0.5,0.75", "--sampler",
               "euler-a");
    near_pair(&r, "two_euler-a", 3);
    r = SAMPLE(base, "--width", "48", "--height", "64", "--unicon", depth, "--y", at("y.png"), "--steps", "3", "-o",
               at("held.png"));
    tap_ok(!r.status && exists(at("held.png")) && !exists(at("held_y.png")), "what is held is not written again %s",
           r.err);
    r = SAMPLE(base, "--unicon", depth, "--schedule", "x=1:0 y=1:0", "--steps", "4", "--show-schedule");
    tap_ok(!r.status && strstr(r.out, "walks") && !r.err[0], "--show-schedule: %.60s", r.out);
}

/* Condition guidance: of all signals, of one, of two; and a LoRA in the base of a pair. */
static void test_pair_options(void)
{
    char base[256], depth[256], id[256], y[300], y2[300];
    struct result r;

    snprintf(base, sizeof base, "%s", at("sd1"));
    snprintf(depth, sizeof depth, "%s", at("depth"));
    snprintf(id, sizeof id, "%s", at("id"));
    snprintf(y, sizeof y, "y=%s", at("y.png"));
    snprintf(y2, sizeof y2, "y2=%s", at("y2.png"));
    r = SAMPLE(base, PAIR, "--unicon", depth, "--task", "joint", "--sampler", "euler-a", "--cond-guidance",
               "1.5:0.25,0.5");
    near_pair(&r, "against_euler-a", 2);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--task", "joint", "--eta", "1", "--cond-guidance", "depth=1.5:0,0",
               "--cfg", "1");
    near_pair(&r, "plain_ddim", 2);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--unicon", id, "--y", y, "--y", y2, "--pair", "id=0.5,0.75", "--eta",
               "1", "--cond-guidance", "1");
    near_pair(&r, "two_all_ddim", 3);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--unicon", id, "--y", y, "--y", y2, "--pair", "id=0.5,0.75", "--sampler",
               "euler-a", "--cond-guidance", "id=2", "--cond-guidance", "y=1:0.25,0.5");
    near_pair(&r, "two_sum_euler-a", 3);
    r = SAMPLE(base, PAIR, "--unicon", depth, "--y", at("y.png"), "--eta", "1", "--lora",
               "tests/reference/lora/base_kohya.safetensors:0.8");
    near_pair(&r, "lora_to_x_ddim", 2);
}

/* Checkpoints the other way round: y and y2 change names, x stays what it is but for rounding. */
static void test_pair_order(void)
{
    char base[256], model[2][256], picture[2][300];
    float *x[2] = { NULL, NULL };
    int64_t n[2] = { 0, 0 };
    double off = INFINITY;

    snprintf(base, sizeof base, "%s", at("sd1"));
    for (int k = 0; k < 2; k++) {
        snprintf(model[k], sizeof model[k], "%s", at(k ? "id" : "depth"));
        snprintf(picture[k], sizeof picture[k], "%s=%s", k ? "id" : "depth", at(k ? "y2.png" : "y.png"));
    }
    for (int k = 0; k < 2; k++) {
        const struct result r = SAMPLE(base, "--dtype", "f32", "--width", "48", "--height", "64", "--steps", "5",
                                       "--unicon", model[k], "--unicon", model[!k], "--y", picture[0], "--y",
                                       picture[1], "--pair", "id=0.5,0.75", "--x-sample", "mode", "--save-latents",
                                       at("z.safetensors"), "-o", at("p.png"));

        x[k] = r.status ? NULL : latents(at("z.safetensors"), &n[k]);
        remove(at("z.safetensors"));
    }
    if (x[0] && x[1] && n[0] == n[1])
        off = distance(x[0], x[1], n[0]);
    tap_ok(off <= 5e-5, "two checkpoints the other way round: %.1e", off);
    free(x[0]);
    free(x[1]);
}

/* ---- the same bits ---- */

#define SMALL "--width", "48", "--height", "32", "--steps", "3", "--dtype", "f32"

static void test_same(void)
{
    char base[256];
    struct result a, b;

    snprintf(base, sizeof base, "%s", at("sd1"));
    a = SAMPLE(base, SMALL, "--count", "3", "--seed", "5", "--sampler", "euler-a", "--save-latents", at("a"), "-o",
               at("a.png"));
    b = SAMPLE(base, SMALL, "--count", "3", "--seed", "5", "--sampler", "euler-a", "--save-latents", at("b"), "-o",
               at("b.png"), "--batch", "2", "--threads", "1");
    tap_ok(!a.status && !b.status && same_latents(at("a"), at("b")), "one by one or in batches, one thread or two: same"
           " bits %s%s", a.err, b.err);
    tap_ok(exists(at("a-0.png")) && exists(at("a-1.png")) && exists(at("a-2.png")) && strstr(a.out, "a-2.png\n"),
           "three pictures are numbered and told");
    b = SAMPLE(base, SMALL, "--seed", "7", "--sampler", "euler-a", "-o", at("c.png"));
    tap_ok(!b.status && same_file(at("a-2.png"), at("c.png")), "picture i is that of seed + i");
    b = finish(start((char *const[]){ "unicon-sample", "-q", "--replay", (char *)(uintptr_t)at("a-1.png"), "-o",
                                      (char *)(uintptr_t)at("d.png"), NULL }));
    tap_ok(!b.status && same_file(at("a-1.png"), at("d.png")), "--replay makes the same file again %s", b.err);
    b = SAMPLE(at("sd1.safetensors"), SMALL, "--count", "3", "--seed", "5", "--sampler", "euler-a", "--save-latents",
               at("b"), "-o", at("b.png"));
    tap_ok(!b.status && same_latents(at("a"), at("b")), "a single-file checkpoint gives the bits of the directory %s",
           b.err);
    b = SAMPLE(at("sd1.ckpt"), SMALL, "--count", "3", "--seed", "5", "--sampler", "euler-a", "--save-latents", at("b"),
               "-o", at("b.png"));
    tap_ok(!b.status && same_latents(at("a"), at("b")), "and so does a pickle of it %s", b.err);
}

static void test_noise_file(void)
{
    struct result a, b;

    a = SAMPLE(at("sd1"), SMALL, "--count", "2", "--sampler", "ddim", "--steps", "2", "--save-latents", at("n"), "-o",
               at("a.png"));
    b = SAMPLE(at("sd1"), SMALL, "--count", "2", "--sampler", "ddim", "--noise", at("n"), "--seed", "1",
               "--save-latents", at("p"), "-o", at("b.png"));
    a = SAMPLE(at("sd1"), SMALL, "--count", "2", "--sampler", "ddim", "--noise", at("n"), "--seed", "99",
               "--save-latents", at("q"), "-o", at("b.png"));
    tap_ok(!a.status && !b.status && same_latents(at("p"), at("q")) && !same_latents(at("n"), at("p")),
           "noise from a file: the seed does not matter %s%s", a.err, b.err);
    b = finish(start((char *const[]){ "unicon-sample", "-q", "--replay", (char *)(uintptr_t)at("b-1.png"), "-o",
                                      (char *)(uintptr_t)at("r.png"), NULL }));
    tap_ok(!b.status && same_file(at("b-1.png"), at("r.png")), "--replay finds the row it was drawn from %s", b.err);
    b = finish(start((char *const[]){ "unicon-sample", "-q", "--replay", (char *)(uintptr_t)at("b-0.png"), "-o",
                                      (char *)(uintptr_t)at("r.png"), NULL }));
    tap_ok(!b.status && same_file(at("b-0.png"), at("r.png")), "the first one too %s", b.err);
}

/* x as it is: its latents are held, so the picture is the autoencoder's own. */
static void test_held(void)
{
    struct result a = SAMPLE(at("sd1"), SMALL, "--x", at("x.png"), "--x-noise", "0", "--x-sample", "mode", "-o",
                             at("a.png"), "--save-latents", at("a"));
    struct result b = SAMPLE(at("sd1"), SMALL, "--x", at("x.png"), "--x-noise", "0", "--x-sample", "mode", "--seed",
                             "9", "--steps", "7", "-o", at("b.png"), "--save-latents", at("b"));

    tap_ok(!a.status && !b.status && same_latents(at("a"), at("b")), "x without noise is held, whatever seed and steps"
           " %s%s", a.err, b.err);
}

/* Latents of 52 x 79: both sides are odd at some level of the UNet. */
static void test_odd(void)
{
    struct image m = { 0 };
    struct err e = { 0 };
    struct result r = SAMPLE(at("sd1"), "--width", "416", "--height", "632", "--steps", "1", "--cfg", "1", "-o",
                             at("odd.tif"));
    const bool ok = !r.status && !image_load(&m, at("odd.tif"), true, &e) && m.W == 416 && m.H == 632;

    tap_ok(ok, "416 x 632 pixels %s%s", r.err, e.text);
    image_free(&m);
}

/* ---- plan, stop ---- */

static void test_plan(void)
{
    struct result r = SAMPLE(at("sd1"), "--width", "512", "--height", "384", "--steps", "1", "--plan", "--json");
    const char *p = strstr(r.out, "\"peak_bytes\":");
    const double said = p ? strtod(p + 13, NULL) : 0;
    double took;

    r = SAMPLE(at("sd1"), "--width", "512", "--height", "384", "--steps", "1", "-o", at("a.png"));
    took = (double)r.peak_kib * 1024;
    tap_ok(!r.status && said > 0 && (!THOROUGH || fabs(took - said) <= 0.05 * said + 64 * 1048576.0),
           "--plan said %.0f MiB, the run took %.0f", said / 1048576, took / 1048576);
    r = SAMPLE(at("sd1"), SMALL, "--dry-run", "-o", at("never.png"));
    tap_ok(!r.status && !exists(at("never.png")), "--dry-run makes nothing %s", r.err);
    r = SAMPLE(at("sd1"), "--memory", "1M", "-o", at("never.png"));
    tap_ok(r.status == 1 && strstr(r.err, "memory") && !exists(at("never.png")), "too little memory is told before: %s",
           r.err);
    r = SAMPLE(at("sd1"), SMALL, "--count", "5", "--batch", "0", "-o", at("e.png"), "--save-latents", at("e"));
    tap_ok(!r.status && exists(at("e-4.png")), "--batch 0 takes what fits %s", r.err);
}

/* Stopped in the middle: the pictures that are there are whole, nothing else is left. */
static void test_stop(void)
{
    char command[512];
    struct image m = { 0 };
    struct err e = { 0 };
    struct result r;
    pid_t child;
    int n = 0, bad = 0;

    mkdir(at("stop"), 0777);
    child = start((char *const[]){ "unicon-sample", "-q", "--base", (char *)(uintptr_t)at("sd1"), "--count", "10000",
                                   "--steps", "1", "--width", "48", "--height", "32", "-o",
                                   (char *)(uintptr_t)at("stop/a.png"), NULL });
    for (int i = 0; i < 600 && !exists(at("stop/a-0003.png")); i++)
        usleep(20000);
    kill(child, SIGINT);
    r = finish(child);
    for (; n < 10000; n++) {
        char name[64];

        snprintf(name, sizeof name, "stop/a-%04d.png", n);
        if (!exists(at(name)))
            break;
        bad += image_load(&m, at(name), true, &e) != OK;
        image_free(&m);
    }
    snprintf(command, sizeof command, "test $(ls -A %s | wc -l) = %d", at("stop"), n);
    tap_ok(r.status == 130 && n >= 4 && !bad && !system(command),
           "SIGINT: exit %d, %d whole pictures and nothing else %s", r.status, n, r.err);
}

int main(void)
{
    char command[300];
    const char *bin = getenv("BIN");
    static char path[4096];

    snprintf(path, sizeof path, "%s/unicon-sample", bin ? bin : "bin");
    program = path;
    golden = golden_open("tests/reference/pipelines.safetensors");
    unicon_golden = golden_open("tests/reference/unicon.safetensors");
    more_golden = golden_open("tests/reference/unicon_more.safetensors");
    if (access(program, X_OK) || !mkdtemp(tmp) || tiny_write("sd1", at("sd1")) || tiny_write("sd2", at("sd2"))
        || tiny_write_single("sd1", at("sd1.safetensors")) || tiny_write_single("sd1", at("sd1.ckpt"))) {
        printf("Bail out! no %s, or no model can be written to %s\n", program, tmp);
        return 1;
    }
    make_pictures();
    test_diffusers("sd1");
    test_diffusers("sd2");
    test_inpainting();
    test_pixels();
    test_pairs();
    test_pair_options();
    test_pair_order();
    test_same();
    test_noise_file();
    test_held();
    test_odd();
    test_plan();
    test_stop();
    golden_close(more_golden);
    golden_close(unicon_golden);
    golden_close(golden);
    snprintf(command, sizeof command, "rm -rf '%s'", tmp);
    if (system(command))
        tap_note("%s is left", tmp);
    return tap_done();
}
