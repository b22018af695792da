/* tests/t_joint.c: joint attention of a pair in the UNet, on tiny weights, against what the published code computes
 * (tests/reference/unicon.py): forward in float32 and bfloat16, gradients of the latents, one checkpoint and two;
 * the same gradients where layers are done again on the way back. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/adapters.h"
#include "tests/golden_tensor.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

static const double forward_f32 = 2e-5, gradient_f32 = 1e-4, ways_f32 = 1e-5;
static struct golden *golden;

static void die(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

/* ---- a run ---- */

struct bench {
    struct device dev;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct tiny *tiny;
    struct unet *unet;
    struct layers l;
    struct adapters *depth, *id;
    struct err e;
};

static void begin(struct bench *b, enum dtype type)
{
    const struct tape_caps caps = { 1 << 26, (size_t)1 << 33, (size_t)1 << 33, (size_t)1 << 33 };
    const struct unet_config c = tiny_unet_config("sd1");

    memset(b, 0, sizeof *b);
    b->tiny = tiny_open("sd1", "unet");
    b->depth = adapters_open("depth");
    b->id = adapters_open("id");
    if (device_open(&b->dev, "cpu", 0, &b->e) || model_memory_init(&b->mem, &b->dev, 0, &b->e)
        || tape_memory_init(&b->tape_mem, &b->dev, &caps, &b->e))
        die(b->e.text);
    tape_init(&b->t, &b->dev, &b->tape_mem);
    layers_init(&b->l, &b->dev, type, &b->mem, &b->tiny->table);
    if (unet_new(&b->unet, &c, &b->l, &b->e))
        die(b->e.text);
}

static void end(struct bench *b)
{
    tape_memory_free(&b->tape_mem);
    model_memory_free(&b->mem);
    device_close(&b->dev);
    tiny_close(b->tiny);
    adapters_close(b->depth);
    adapters_close(b->id);
}

static struct joint *joint(struct bench *b, struct adapters *a, enum joint_post kind, bool with_y)
{
    const struct joint_weights w = { &a->xy, &a->yx, with_y ? &a->y : NULL, &a->post, kind, 1 };
    struct joint_place place[UNET_MAX_BLOCK];
    const int n = unet_places(b->unet, place);
    struct joint *j;

    if (joint_new(&j, place, n, 64, &w, &b->l, &b->e))
        die(b->e.text);
    return j;
}

static const struct golden_tensor *want(const char *name, const char *of)
{
    char full[160];
    const struct golden_tensor *g;

    snprintf(full, sizeof full, "%s.%s", name, of);
    g = golden_get(golden, full);
    if (!g)
        die(full);
    return g;
}

static struct tensor *input(struct bench *b, const struct golden_tensor *g, int n_input, enum dtype type)
{
    return golden_tensor_new(g, n_input, type, &b->mem, &b->dev);
}

static double off(const struct bench *b, const struct tensor *got, const struct golden_tensor *g, int n_input)
{
    if (!got)
        tap_note("%s", b->e.text);
    return golden_tensor_off(got, g, n_input, NULL);
}

/* What it is asked for lies on the stack, as callers have it: nothing may point there when gradients are found. */
static struct tensor *denoise(struct bench *b, const char *given, const struct joint_run *r, struct tensor *x,
                              bool segments)
{
    const struct unet_call call = { .pairs = r, .segments = segments };
    struct unet_text text;
    struct tensor *time = input(b, want(given, "t"), r->n_input, F32);
    struct tensor *words = input(b, want(given, "text"), r->n_input, b->l.type);

    return unet_text(&b->t, b->unet, words, r, &text, &b->e) ? NULL
        : unet_forward(&b->t, b->unet, x, time, &text, &call, &b->e);
}

static const struct { const char *ending; float wx, wy; } variant[] = {
    { "", 1, 1 }, { "_off", 0, 0 }, { "_uneven", 0.5f, 2 },
};

/* dx of variant `full`, from what the forward pass left, *kept bytes. */
static double gradient(struct bench *b, const char *name, const char *full, const struct joint_run *r, struct tensor *x,
                       bool segments, float *dx, size_t *kept)
{
    double error = INFINITY;
    struct tensor *y, *dy;

    tape_watch(x, NULL);
    b->t.recording = true;
    y = denoise(b, name, r, x, segments);
    *kept = arena_mark(&b->tape_mem.step);
    dy = input(b, want(full, "dy"), r->n_input, F32);
    if (y && !tape_backward(&b->t, y, dy, &b->e)) {
        error = off(b, x->grad, want(full, "dx"), r->n_input);
        memcpy(dx, x->grad->data, tensor_bytes(x));
    }
    b->t.recording = false;
    tape_reset(&b->t);
    return error;
}

/* Of the latents, by either way, in segments and without. */
static void check_gradients(struct bench *b, const char *name, const char *full, struct joint_run r, bool apart)
{
    struct tensor *x = input(b, want(name, "x"), r.n_input, F32);
    const size_t bytes = tensor_bytes(x);
    float *dx[2] = { malloc(bytes), malloc(bytes) };
    size_t kept[2];
    double error;

    if (!dx[0] || !dx[1])
        die("out of memory");
    for (int p = 0; p < r.n_pair; p++)
        r.pair[p].joint->apart = apart;
    error = gradient(b, name, full, &r, x, false, dx[0], &kept[0]);
    tap_ok(error <= gradient_f32, "%s: gradient of the latents%s: %.1e of %.0e %s", full,
           apart ? ", product by product" : "", error, gradient_f32, b->e.text);
    error = gradient(b, name, full, &r, x, true, dx[1], &kept[1]);
    tap_ok(error <= gradient_f32 && !memcmp(dx[0], dx[1], bytes) && 2 * kept[1] < kept[0],
           "%s: in segments the same, bit for bit, and %zu bytes are kept of %zu", full, kept[1], kept[0]);
    for (int p = 0; p < r.n_pair; p++)
        r.pair[p].joint->apart = false;
    free(dx[0]);
    free(dx[1]);
}

static void check(struct bench *b, const char *name, struct joint_run r, const float *weights, bool gradients)
{
    for (size_t i = 0; i < LEN(variant); i++) {
        struct tensor *x = input(b, want(name, "x"), r.n_input, b->l.type), *y;
        const bool f32 = b->l.type == F32;
        char full[64];
        double error, most;

        snprintf(full, sizeof full, "%s%s", name, variant[i].ending);
        for (int p = 0; p < r.n_pair; p++) {
            r.pair[p].wx = i || !weights ? variant[i].wx : weights[2 * p];
            r.pair[p].wy = i || !weights ? variant[i].wy : weights[2 * p + 1];
        }
        y = denoise(b, name, &r, x, false);
        error = off(b, y, want(full, "y"), r.n_input);
        most = f32 ? forward_f32 : want(full, "noise")->f[2] * 0x1p-8 * 1.5;    /* their bfloat16, and half as much */
        tap_ok(error <= most, "%s, %s: %.1e of %.0e", full, dtype_name(b->l.type), error, most);
        tape_reset(&b->t);
        if (!gradients || !f32)
            continue;
        for (int apart = 0; apart < 2; apart++)
            check_gradients(b, name, full, r, apart);
    }
}

static float *copy_of(const struct tensor *y)
{
    const int64_t n = y ? tensor_count(y) : 0;
    float *v = malloc(sizeof *v * (size_t)(n + 1));

    if (!v)
        die("out of memory");
    if (y)
        dtype_to_f32(v, y->data, y->type, n);
    return v;
}

static double apart_by(const float *a, const float *b, int64_t n)
{
    double d = 0, s = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return sqrt(d / s);
}

/* Shared products and a folded way out give what every product by itself gives; rows that nobody reads change nothing
 * in those that are read. */
static void check_ways(struct bench *b, const char *name, struct joint_run r, const float *weights)
{
    struct tensor *x = input(b, want(name, "x"), r.n_input, F32), *y;
    const int64_t each = tensor_count(x) / r.n_input;
    float *shared, *one_by_one, *read;
    char none[64];
    double error;
    bool same;

    for (int p = 0; weights && p < r.n_pair; p++) {
        r.pair[p].wx = weights[2 * p];
        r.pair[p].wy = weights[2 * p + 1];
    }
    shared = copy_of(denoise(b, name, &r, x, false));
    tape_reset(&b->t);
    for (int p = 0; p < r.n_pair; p++)
        r.pair[p].joint->apart = true;
    y = denoise(b, name, &r, x, false);
    error = off(b, y, want(name, "y"), r.n_input);
    one_by_one = copy_of(y);
    tape_reset(&b->t);
    tap_ok(error <= forward_f32 && apart_by(one_by_one, shared, each * r.n_input) <= ways_f32,
           "%s, product by product: %.1e; from the other way %.1e of %.0e", name, error,
           apart_by(one_by_one, shared, each * r.n_input), ways_f32);
    r.scale = 0;
    snprintf(none, sizeof none, "%s_off", name);
    error = off(b, denoise(b, name, &r, x, false), want(none, "y"), r.n_input);
    tape_reset(&b->t);
    tap_ok(error <= forward_f32, "%s, product by product with joint scale 0: %.1e", name, error);
    r.scale = 1;
    for (int p = 0; p < r.n_pair; p++)
        r.pair[p].joint->apart = false;
    same = true;
    for (int k = 0; k < r.n_input; k++) {
        memset(r.unread, 0, sizeof r.unread);
        r.unread[k] = true;
        read = copy_of(denoise(b, name, &r, x, false));
        tape_reset(&b->t);
        for (int i = 0; i < r.n_input; i++)
            same &= i == k || !memcmp(read + i * each, shared + i * each, (size_t)each * sizeof *read);
        free(read);
    }
    tap_ok(same && !b->e.code, "%s: the same bits where one of the inputs is not read %s", name, b->e.text);
    free(shared);
    free(one_by_one);
}

static struct joint_run one_pair(struct joint *j)
{
    return (struct joint_run){ .n_input = 2, .n_pair = 1, .pair = { { 0, 1, 1, 1, j } }, .scale = 1 };
}

static void test_type(enum dtype type)
{
    static const float two[] = { 1, 1, 0.5f, 0.75f };
    struct bench b;
    struct joint *depth, *depth_y, *id, *id_y;
    struct joint_run both;

    begin(&b, type);
    depth = joint(&b, b.depth, JOINT_CONV_FUSE, false);
    depth_y = joint(&b, b.depth, JOINT_CONV_FUSE, true);
    id = joint(&b, b.id, JOINT_CONV, false);
    id_y = joint(&b, b.id, JOINT_CONV, true);
    both = (struct joint_run){ .n_input = 3, .n_pair = 2, .scale = 1,
                               .pair = { { 0, 1, 1, 1, depth_y }, { 0, 2, 0.5f, 0.75f, id } } };
    check(&b, "unet_depth", one_pair(depth), NULL, true);
    check(&b, "unet_depth_y", one_pair(depth_y), NULL, true);
    check(&b, "unet_id", one_pair(id), NULL, true);
    check(&b, "unet_id_y", one_pair(id_y), NULL, true);
    check(&b, "unet_two", both, two, false);
    if (type == F32) {
        check_ways(&b, "unet_depth", one_pair(depth), NULL);
        check_ways(&b, "unet_depth_y", one_pair(depth_y), NULL);
        check_ways(&b, "unet_id_y", one_pair(id_y), NULL);
        check_ways(&b, "unet_two", both, two);
    }
    end(&b);
}

/* What nobody reads may be left undone; what is read keeps its bits. */
static void test_unread(enum dtype type)
{
    struct bench b;
    struct joint *depth, *id;

    begin(&b, type);
    depth = joint(&b, b.depth, JOINT_CONV_FUSE, true);
    id = joint(&b, b.id, JOINT_CONV, false);
    for (int read = 0; read < 3; read++) {
        struct joint_run r = { .n_input = 3, .n_pair = 2, .scale = 1,
                               .pair = { { 0, 1, 1, 1, depth }, { 0, 2, 0.5f, 0.75f, id } } };
        struct tensor *x = input(&b, want("unet_two", "x"), 3, type), *some;
        struct tensor *all = denoise(&b, "unet_two", &r, x, false);
        bool ok;

        for (int k = 0; k < 3; k++)
            r.unread[k] = k != read;
        some = all ? denoise(&b, "unet_two", &r, x, false) : NULL;
        ok = some && !memcmp((char *)all->data + (size_t)read * tensor_bytes(all) / 3,
                             (char *)some->data + (size_t)read * tensor_bytes(all) / 3, tensor_bytes(all) / 3);
        tap_ok(ok, "input %d of three is all that is read, %s: the same bits %s", read, dtype_name(type), b.e.text);
        tape_reset(&b.t);
    }
    end(&b);
}

/* A checkpoint for another UNet, and one with a tensor too few. */
static void test_refusals(void)
{
    struct bench b;
    struct joint_weights w;
    struct joint_place place[UNET_MAX_BLOCK];
    struct joint *j;
    int n;
    bool ok;

    begin(&b, F32);
    n = unet_places(b.unet, place);
    w = (struct joint_weights){ &b.depth->xy, &b.depth->yx, &b.depth->y, &b.depth->post, JOINT_CONV, 1 };
    ok = joint_new(&j, place, n, 64, &w, &b.l, &b.e) == E_FORMAT && strstr(b.e.text, "conv1n");
    w.kind = JOINT_CONV_FUSE;
    ok &= joint_new(&j, place, n, 48, &w, &b.l, &b.e) == E_FORMAT && strstr(b.e.text, "y_lora");
    b.depth->xy.n--;
    ok &= joint_new(&j, place, n, 64, &w, &b.l, &b.e) == E_FORMAT && strstr(b.e.text, "lacks 1 tensor");
    b.depth->xy.n++;
    ok &= joint_new(&j, place, n - 1, 64, &w, &b.l, &b.e) == E_FORMAT && strstr(b.e.text, "does not know");
    tap_ok(ok, "checkpoints that do not fit are told apart: %s", b.e.text);
    end(&b);
}

/* ---- SD1.5 at 512 x 512 on the null device ---- */

struct size {
    size_t kept, step, grads, model;
};

/* Four rows, x and y with both prompts: what the forward pass keeps and what the whole takes. */
static int full_size(struct size *out, bool segments, struct err *e)
{
    const struct tape_caps caps = { (size_t)1 << 28, (size_t)1 << 38, (size_t)1 << 38, (size_t)1 << 38 };
    const struct joint_weights w = { .kind = JOINT_CONV_FUSE, .scale = 1 };
    const struct unet_config c = unet_config_sd15();
    struct joint_run pairs = { .n_input = 2, .n_pair = 1, .pair = { { 0, 1, 1, 1, NULL } }, .scale = 1 };
    const struct unet_call call = { .pairs = &pairs, .segments = segments };
    struct joint_place place[UNET_MAX_BLOCK];
    struct tape_memory tape = { 0 };
    struct model_memory mem = { 0 };
    struct unet_text text = { 0 };
    struct tensor *x = NULL, *y = NULL, *t4, *words;
    struct device dev;
    struct layers l;
    struct unet *u;
    struct tape t;
    int rc = device_open(&dev, "null", 1, e);

    rc = rc ? rc : model_memory_init(&mem, &dev, 0, e);
    rc = rc ? rc : tape_memory_init(&tape, &dev, &caps, e);
    tape_init(&t, &dev, &tape);
    layers_init(&l, &dev, BF16, &mem, NULL);
    rc = rc ? rc : unet_new(&u, &c, &l, e);
    rc = rc ? rc : joint_new(&pairs.pair[0].joint, place, unet_places(u, place), c.cross_attention_dim, &w, &l, e);
    if (!rc && (x = tape_new(&t, BF16, 4, (int64_t[]){ 4, 64, 64, 4 }, e))
        && (t4 = tape_new(&t, F32, 1, (int64_t[]){ 4 }, e))
        && (words = tape_new(&t, BF16, 3, (int64_t[]){ 4, 77, c.cross_attention_dim }, e))
        && !unet_text(&t, u, words, &pairs, &text, e)) {
        tape_watch(x, NULL);
        t.recording = true;
        y = unet_forward(&t, u, x, t4, &text, &call, e);
        out->kept = arena_mark(&tape.step);
        rc = y ? tape_backward(&t, y, NULL, e) : e->code;
    }
    *out = (struct size){ out->kept, arena_high(&tape.step), arena_high(&tape.grad_arena), arena_high(&mem.model) };
    tape_memory_free(&tape);
    model_memory_free(&mem);
    device_close(&dev);
    return rc;
}

static void test_full_size(void)
{
    struct size whole = { 0 }, parts = { 0 };
    struct err e = { 0 };
    const bool ok = !full_size(&whole, false, &e) && !full_size(&parts, true, &e);

    tap_ok(ok && 5 * parts.step < whole.step && parts.model == whole.model,
           "SD1.5, a pair at 512 x 512 in bf16: layers keep %zu MiB of %zu and take %zu of %zu, gradients %zu, packed "
           "weights %zu %s", parts.kept >> 20, whole.kept >> 20, parts.step >> 20, whole.step >> 20, parts.grads >> 20,
           parts.model >> 20, e.text);
}

int main(void)
{
    golden = golden_open("tests/reference/unicon.safetensors");
    test_type(F32);
    test_type(BF16);
    test_unread(F32);
    test_unread(BF16);
    test_refusals();
    test_full_size();
    golden_close(golden);
    return tap_done();
}
