/* tests/t_model.c: the three models, on tiny weights, against what diffusers and transformers compute in float64
 * (tests/reference/models.py). Relative errors are ||got - want|| / ||want||. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "tests/golden_tensor.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

/* Of f32: 2e-5 is what parity is taken to mean, a few times what diffusers' own float32 is off by here (1e-6 to 4e-6).
 * Of bf16: that rounds every activation to 8 bits, as diffusers' does; see bf16_bound. */
static const double forward_f32 = 2e-5, gradient_f32 = 1e-4;

/* Under sanitizers the best instruction set alone, and no large maps. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

static struct golden *golden;

struct run {
    struct device dev;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct tiny *tiny;
    struct layers l;
    struct err e;
};

static void die(const struct err *e)
{
    printf("Bail out! %s\n", e->text);
    exit(1);
}

static void begin(struct run *r, const char *device, enum dtype type, const char *model, const char *part, bool keep)
{
    const struct tape_caps caps = { 1 << 26, (size_t)1 << 33, (size_t)1 << 33, (size_t)1 << 33 };

    memset(r, 0, sizeof *r);
    if (device_open(&r->dev, device, 0, &r->e) || model_memory_init(&r->mem, &r->dev, 0, &r->e)
        || tape_memory_init(&r->tape_mem, &r->dev, &caps, &r->e))
        die(&r->e);
    tape_init(&r->t, &r->dev, &r->tape_mem);
    r->tiny = tiny_open(model, part);
    layers_init(&r->l, &r->dev, type, &r->mem, &r->tiny->table);
    r->l.keep_raw = keep;
}

static void end(struct run *r)
{
    tape_memory_free(&r->tape_mem);
    model_memory_free(&r->mem);
    device_close(&r->dev);
    tiny_close(r->tiny);
}

static const struct golden_tensor *want(const char *model, const char *name)
{
    char full[400];
    const struct golden_tensor *g;

    snprintf(full, sizeof full, "%s_%s", model, name);
    g = golden_get(golden, full);
    if (!g) {
        printf("Bail out! no golden '%s'\n", full);
        exit(1);
    }
    return g;
}

static struct tensor *input(struct run *r, const struct golden_tensor *g, enum dtype type)
{
    return golden_tensor_new(g, 1, type, &r->mem);
}

static double off(const struct run *r, const struct tensor *got, const struct golden_tensor *g)
{
    if (!got)
        tap_note("%s", r->e.text);
    return golden_tensor_off(got, g, 1);
}

/* What diffusers' bfloat16 is off by, and half as much again. */
static double bf16_bound(const char *model, const char *name)
{
    char full[320];

    snprintf(full, sizeof full, "%s.noise", name);
    return want(model, full)->f[2] * 0x1p-8 * 1.5;
}

static void near(struct run *r, const struct tensor *got, const char *model, const char *name, double most)
{
    char full[320];
    double x;

    snprintf(full, sizeof full, "%s.y", name);
    x = off(r, got, want(model, full));
    tap_ok(x <= most, "%s_%s, %s on %s: %.2e of %.1e", model, name, dtype_name(r->l.type), r->dev.kern->name, x, most);
}

/* ---- UNet ---- */

static struct tensor *denoise(struct run *r, struct unet *u, const char *model, const char *name, struct tensor **x)
{
    char full[320];
    struct unet_text text;
    struct tensor *time, *words;

    snprintf(full, sizeof full, "%s.x", name);
    if (!*x)
        *x = input(r, want(model, full), r->l.type);
    snprintf(full, sizeof full, "%s.t", name);
    time = input(r, want(model, full), F32);
    snprintf(full, sizeof full, "%s.text", name);
    words = input(r, want(model, full), r->l.type);
    return unet_text(&r->t, u, words, NULL, &text, &r->e) ? NULL
        : unet_forward(&r->t, u, *x, time, &text, NULL, &r->e);
}

static void test_unet(const char *device, enum dtype type, const char *model)
{
    const struct unet_config c = tiny_unet_config(model);
    static const char *const name[] = { "unet", "unet_odd" };
    struct unet *u;
    struct run r;

    begin(&r, device, type, model, "unet", false);
    if (unet_new(&u, &c, &r.l, &r.e))
        die(&r.e);
    for (size_t i = 0; i < LEN(name); i++) {
        struct tensor *x = NULL, *y = denoise(&r, u, model, name[i], &x);
        near(&r, y, model, name[i], type == F32 ? forward_f32 : bf16_bound(model, name[i]));
        tape_reset(&r.t);
    }
    end(&r);
}

/* The golden of a parameter's gradient; dots are underscores there. */
static const struct golden_tensor *gradient_of(const char *model, const char *key)
{
    char name[256];

    snprintf(name, sizeof name, "%s_unet.d%s", model, key);
    for (char *p = strchr(name, '.') + 1; *p; p++)
        if (*p == '.')
            *p = '_';
    return golden_get(golden, name);
}

/* Gradients of latents and of the attention projections that the golden has; the same pass as recorded. */
static void test_gradients(const char *model)
{
    const struct unet_config c = tiny_unet_config(model);
    struct unet *u;
    struct run r;
    struct tensor *x = NULL, *y, *dy, *param[64];
    const struct golden_tensor *of[64];
    double worst = 0;
    int n = 0;

    begin(&r, "cpu", F32, model, "unet", true);
    if (unet_new(&u, &c, &r.l, &r.e))
        die(&r.e);
    x = input(&r, want(model, "unet.x"), F32);
    tape_watch(x, NULL);
    for (int i = 0; i < r.tiny->table.n && n < (int)LEN(param); i++) {
        const struct golden_tensor *g = gradient_of(model, r.tiny->table.entry[i].name);
        struct weight *w = g ? unet_attention_weight(u, r.tiny->table.entry[i].name) : NULL;

        if (w) {
            tape_watch(w->raw, NULL);
            param[n] = w->raw;
            of[n++] = g;
        }
    }
    r.t.recording = true;
    y = denoise(&r, u, model, "unet", &x);
    dy = input(&r, want(model, "unet.dy"), F32);
    tap_ok(y && !tape_backward(&r.t, y, dy, &r.e), "%s: a recorded pass and its way back %s", model, r.e.text);
    near(&r, y, model, "unet", forward_f32);
    worst = off(&r, x->grad, want(model, "unet.dx"));
    tap_ok(worst <= gradient_f32, "%s: gradient of the latents: %.2e of %.1e", model, worst, gradient_f32);
    worst = 0;
    for (int i = 0; i < n; i++)
        worst = fmax(worst, off(&r, param[i]->grad, of[i]));
    tap_ok(n >= 4 && worst <= gradient_f32, "%s: gradients of %d attention projections: %.2e of %.1e", model, n, worst,
           gradient_f32);
    end(&r);
}

/* ---- VAE ---- */

static void test_vae(const char *device, enum dtype type, const char *model)
{
    const struct vae_config c = tiny_vae_config(model);
    struct vae *v;
    struct run r;
    struct tensor *y;

    begin(&r, device, type, model, "vae", false);
    if (vae_new(&v, &c, VAE_BOTH, &r.l, &r.e))
        die(&r.e);
    y = vae_encode(&r.t, v, input(&r, want(model, "vae_encode.x"), type), &r.e);
    near(&r, y, model, "vae_encode", type == F32 ? forward_f32 : bf16_bound(model, "vae_encode"));
    y = vae_decode(&r.t, v, input(&r, want(model, "vae_decode.z"), F32), &r.e);
    near(&r, y, model, "vae_decode", type == F32 ? forward_f32 : bf16_bound(model, "vae_decode"));
    end(&r);
}

/* Maps so large that they are worked on in bands get the bits of a pass that takes them whole. */
static void test_bands(void)
{
    const struct vae_config c = tiny_vae_config("sd1");
    const int64_t image[] = { 1, 520, 512, 3 }, latents[] = { 1, 65, 64, 4 };
    const struct krng r = rng_stream(3, RNG_TEST, 0, 0);
    struct vae *v;
    struct run run;

    begin(&run, "cpu", F32, "sd1", "vae", false);
    if (vae_new(&v, &c, VAE_BOTH, &run.l, &run.e))
        die(&run.e);
    for (int i = 0; i < 2; i++) {
        struct tensor *x = tensor_new(&run.mem.meta, &run.mem.model, F32, 4, i ? image : latents, &run.e), *y[2];

        if (!x || run.dev.kern->random_normal(&run.dev.ctx, x->data, F32, tensor_count(x), &r, 0))
            die(&run.e);
        for (int whole = 0; whole < 2; whole++) {
            run.t.recording = whole;
            y[whole] = i ? vae_encode(&run.t, v, x, &run.e) : vae_decode(&run.t, v, x, &run.e);
        }
        tap_ok(y[0] && y[1] && !memcmp(y[0]->data, y[1]->data, tensor_bytes(y[0])), "VAE: %s in bands has the bits of"
               " the whole %s", i ? "encoding" : "decoding", run.e.text);
        run.t.recording = false;
        tape_reset(&run.t);
    }
    end(&run);
}

/* ---- text ---- */

static void test_text(const char *device, enum dtype type, const char *model)
{
    const struct clip_text_config c = tiny_text_config(model);
    const int32_t *id = want(model, "text.id")->i;
    struct clip_text *m;
    struct run r;

    begin(&r, device, type, model, "text", false);
    if (clip_text_new(&m, &c, &r.l, &r.e))
        die(&r.e);
    near(&r, clip_text_forward(&r.t, m, id, 2, 0, &r.e), model, "text",
         type == F32 ? forward_f32 : bf16_bound(model, "text"));
    near(&r, clip_text_forward(&r.t, m, id, 2, 1, &r.e), model, "text_skip",
         type == F32 ? forward_f32 : bf16_bound(model, "text_skip"));
    end(&r);
}

int main(void)
{
    static const char *const device[] = { "cpu", "cpu:portable" }, *const model[] = { "sd1", "sd2" };

    golden = golden_open("tests/reference/models.safetensors");
    for (size_t m = 0; m < LEN(model); m++) {
        for (size_t d = 0; d < (THOROUGH ? LEN(device) : 1); d++)
            for (int t = 0; t < 2; t++) {
                test_unet(device[d], t ? BF16 : F32, model[m]);
                test_vae(device[d], t ? BF16 : F32, model[m]);
                test_text(device[d], t ? BF16 : F32, model[m]);
            }
        test_gradients(model[m]);
    }
    if (THOROUGH)
        test_bands();
    golden_close(golden);
    return tap_done();
}
