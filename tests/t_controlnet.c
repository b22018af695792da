/* tests/t_controlnet.c: tiny ControlNets against diffusers' in float64 (tests/reference/controlnet.py): what they say,
 * what the UNet makes of it, gradients through both. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/controlnet.h"
#include "tests/golden_tensor.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

enum { N_RESIDUAL = 13 };

/* As in t_model.c, of which this is more of the same. */
static const double forward_f32 = 2e-5, gradient_f32 = 1e-4;

static struct golden *golden;

static void die(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

/* ---- one pass ---- */

struct run {
    struct device dev;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct layers l[3];                     /* the UNet's, those of "control" and "control2" */
    struct tiny *tiny[3];
    struct unet *unet;
    struct controlnet *net[2];
    struct err e;
};

static void begin(struct run *r, enum dtype type)
{
    static const char *const part[] = { "unet", "control", "control2" };
    const struct tape_caps caps = { 1 << 26, (size_t)1 << 33, (size_t)1 << 33, (size_t)1 << 33 };
    const struct unet_config u = tiny_unet_config("sd1");
    const struct controlnet_config c = tiny_control_config();

    memset(r, 0, sizeof *r);
    if (device_open(&r->dev, "cpu", 2, &r->e) || model_memory_init(&r->mem, &r->dev, 0, &r->e)
        || tape_memory_init(&r->tape_mem, &r->dev, &caps, &r->e))
        die(r->e.text);
    tape_init(&r->t, &r->dev, &r->tape_mem);
    for (int i = 0; i < 3; i++) {
        r->tiny[i] = tiny_open("sd1", part[i]);
        layers_init(&r->l[i], &r->dev, type, &r->mem, &r->tiny[i]->table);
        r->l[i].keep_raw = true;
    }
    if (unet_new(&r->unet, &u, &r->l[0], &r->e) || controlnet_new(&r->net[0], &c, &r->l[1], &r->e)
        || controlnet_new(&r->net[1], &c, &r->l[2], &r->e))
        die(r->e.text);
}

static void end(struct run *r)
{
    tape_memory_free(&r->tape_mem);
    model_memory_free(&r->mem);
    device_close(&r->dev);
    for (int i = 0; i < 3; i++)
        tiny_close(r->tiny[i]);
}

__attribute__((format(printf, 1, 2))) static const struct golden_tensor *want(const char *fmt, ...)
{
    const struct golden_tensor *g;
    char name[100];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    g = golden_get(golden, name);
    if (!g)
        die(name);
    return g;
}

static struct tensor *input(struct run *r, const struct golden_tensor *g, enum dtype type)
{
    return golden_tensor_new(g, 1, type, &r->mem, &r->dev);
}

static double off(const struct tensor *got, const struct golden_tensor *g)
{
    return golden_tensor_off(got, g, 1, NULL);
}

struct pass {
    struct tensor *x, *time, *hint, *y;
    struct unet_text text, own[2];
    struct unet_added added;
};

/* Network 0 with weight 0.7 and, of two, network 1 with `second`. */
static int walk(struct run *r, struct pass *p, const char *name, int n, float second)
{
    const struct unet_call call = { .added = &p->added };
    struct tensor *words = input(r, want("%s.text", name), r->l[0].type), *hint[2];
    bool recording = r->t.recording;
    int rc = OK;

    p->time = input(r, want("%s.t", name), F32);
    r->t.recording = false;
    rc = unet_text(&r->t, r->unet, words, NULL, &p->text, &r->e);
    for (int i = 0; i < n && !rc; i++) {
        rc = controlnet_text(&r->t, r->net[i], words, &p->own[i], &r->e);
        hint[i] = controlnet_hint(&r->t, r->net[i], input(r, want("%s.picture", name), r->l[0].type), &r->e);
        rc = rc ? rc : hint[i] ? OK : r->e.code;
    }
    r->t.recording = recording;
    p->added = (struct unet_added){ .n = 0 };
    for (int i = 0; i < n && !rc; i++)
        rc = controlnet_forward(&r->t, r->net[i], p->x, p->time, &p->own[i], hint[i], i ? second : 0.7f, &p->added,
                                &r->e);
    p->y = rc ? NULL : unet_forward(&r->t, r->unet, p->x, p->time, &p->text, &call, &r->e);
    return p->y ? OK : r->e.code;
}

/* What diffusers' bfloat16 is off by, and half as much again. */
static double most(const char *name, enum dtype type)
{
    return type == F32 ? forward_f32 : want("%s.noise", name)->f[2] * 0x1p-8 * 1.5;
}

static void test_pass(enum dtype type)
{
    static const char *const name[] = { "pass", "odd" };
    struct run r;

    begin(&r, type);
    for (size_t i = 0; i < LEN(name); i++) {
        struct pass p = { .x = input(&r, want("%s.x", name[i]), type) };
        double worst = 0, y = INFINITY;

        if (!walk(&r, &p, name[i], 1, 0)) {
            for (int k = 0; k < N_RESIDUAL; k++)
                worst = fmax(worst, off(k < p.added.n ? p.added.skip[k] : p.added.mid, want("%s.r%d", name[i], k)));
            y = off(p.y, want("%s.y", name[i]));
        }
        tap_ok(p.added.n == N_RESIDUAL - 1 && worst <= most(name[i], type) && y <= most(name[i], type),
               "%s, %s: residuals %.1e, the UNet's answer %.1e of %.1e %s", name[i], dtype_name(type), worst, y,
               most(name[i], type), r.e.text);
        tape_reset(&r.t);
    }
    end(&r);
}

/* The same recorded, with its gradient to the latents; two networks, of which one has no weight, are one; recorded or
 * not two give the same. */
static void test_gradient(void)
{
    struct run r;
    struct pass p = { .x = NULL }, two = { .x = NULL }, noted;
    double y = INFINITY, dx = INFINITY;

    begin(&r, F32);
    p.x = two.x = input(&r, want("pass.x"), F32);
    tap_ok(!walk(&r, &two, "pass", 2, 0) && off(two.y, want("pass.y")) <= forward_f32,
           "a second network of weight 0 adds nothing %s", r.e.text);
    tap_ok(!walk(&r, &two, "pass", 2, 0.4f) && off(two.y, want("pass.y")) > 0.01,
           "one of weight 0.4 does %s", r.e.text);
    r.t.recording = true;
    tape_watch(p.x, NULL);
    if (!walk(&r, &p, "pass", 1, 0) && !tape_backward(&r.t, p.y, input(&r, want("pass.dy"), F32), &r.e)) {
        y = off(p.y, want("pass.y"));
        dx = off(p.x->grad, want("pass.dx"));
    }
    tap_ok(y <= forward_f32 && dx <= gradient_f32, "recorded: %.1e, gradient of the latents %.1e of %.0e %s", y, dx,
           gradient_f32, r.e.text);
    noted = (struct pass){ .x = input(&r, want("pass.x"), F32) };
    tape_watch(noted.x, NULL);
    tap_ok(!walk(&r, &noted, "pass", 2, 0.4f) && !memcmp(noted.y->data, two.y->data, tensor_bytes(two.y)),
           "two networks recorded have the bits of two that are not %s", r.e.text);
    end(&r);
}

static void test_misuse(void)
{
    struct run r;
    struct unet_text text = { 0 };
    struct unet_added added = { .n = 3 };
    struct tensor *x;
    bool ok;

    begin(&r, F32);
    x = input(&r, want("pass.x"), F32);
    ok = !controlnet_hint(&r.t, r.net[0], x, &r.e) && r.e.code == E_ARG;
    ok &= controlnet_text(&r.t, r.net[0], x, &text, &r.e) == E_ARG;
    ok &= controlnet_forward(&r.t, r.net[0], x, x, &text, x, 1, &added, &r.e) == E_ARG;
    added.n = 0;
    ok &= controlnet_forward(&r.t, r.net[0], x, x, &text, x, 1, &added, &r.e) == E_ARG;
    tap_ok(ok, "what does not fit is E_ARG: %s", r.e.text);
    end(&r);
}

int main(void)
{
    golden = golden_open("tests/reference/controlnet.safetensors");
    test_pass(F32);
    test_pass(BF16);
    test_gradient();
    test_misuse();
    golden_close(golden);
    return tap_done();
}
