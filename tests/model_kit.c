#include "tests/model_kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden_tensor.h"
#include "tests/tap.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

const double model_forward_f32 = 2e-5;

static struct golden *golden;

void model_kit_open(void) { golden = golden_open("tests/reference/models.safetensors"); }
void model_kit_close(void) { golden_close(golden); }
const struct golden_tensor *model_golden(const char *name) { return golden_get(golden, name); }

void model_die(const struct err *e)
{
    printf("Bail out! %s\n", e->text);
    exit(1);
}

void model_begin(struct model_run *r, const char *device, enum dtype type, const char *model, const char *part,
                 bool keep)
{
    const struct tape_caps caps = { 1 << 26, (size_t)1 << 33, (size_t)1 << 33, (size_t)1 << 33 };

    memset(r, 0, sizeof *r);
    if (device_open(&r->dev, device, 0, &r->e) || model_memory_init(&r->mem, &r->dev, 0, &r->e)
        || tape_memory_init(&r->tape_mem, &r->dev, &caps, &r->e))
        model_die(&r->e);
    tape_init(&r->t, &r->dev, &r->tape_mem);
    r->tiny = tiny_open(model, part);
    layers_init(&r->l, &r->dev, type, &r->mem, &r->tiny->table);
    r->l.keep_raw = keep;
}

void model_end(struct model_run *r)
{
    tape_memory_free(&r->tape_mem);
    model_memory_free(&r->mem);
    device_close(&r->dev);
    tiny_close(r->tiny);
}

const struct golden_tensor *model_want(const char *model, const char *name)
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

struct tensor *model_input(struct model_run *r, const struct golden_tensor *g, enum dtype type)
{
    return golden_tensor_new(g, 1, type, &r->mem, &r->dev);
}

double model_off(struct model_run *r, const struct tensor *got, const struct golden_tensor *g)
{
    if (!got)
        tap_note("%s", r->e.text);
    return golden_tensor_off(got, g, 1, &r->dev);
}

/* In 16 bits what diffusers' bfloat16 is off by, and half as much again; float16 rounds eight times finer, of which
 * half has to show. */
static double bound(enum dtype type, const char *model, const char *name)
{
    char full[320];

    snprintf(full, sizeof full, "%s.noise", name);
    return type == F32 ? model_forward_f32
                       : model_want(model, full)->f[2] * 0x1p-8 * 1.5 / (type == F16 ? 4 : 1);
}

void model_near(struct model_run *r, const struct tensor *got, const char *model, const char *name, double most)
{
    char full[320];
    double x;

    snprintf(full, sizeof full, "%s.y", name);
    x = model_off(r, got, model_want(model, full));
    tap_ok(x <= most, "%s_%s, %s on %s: %.2e of %.1e", model, name, dtype_name(r->l.type), r->dev.kern->name, x, most);
}

/* ---- UNet ---- */

struct tensor *model_denoise(struct model_run *r, struct unet *u, const char *model, const char *name,
                             struct tensor **x)
{
    char full[320];
    struct unet_text text;
    struct tensor *time, *words;

    snprintf(full, sizeof full, "%s.x", name);
    if (!*x)
        *x = model_input(r, model_want(model, full), r->l.type);
    snprintf(full, sizeof full, "%s.t", name);
    time = model_input(r, model_want(model, full), F32);
    snprintf(full, sizeof full, "%s.text", name);
    words = model_input(r, model_want(model, full), r->l.type);
    return unet_text(&r->t, u, words, NULL, &text, &r->e) ? NULL
        : unet_forward(&r->t, u, *x, time, &text, NULL, &r->e);
}

void model_test_unet(const char *device, enum dtype type, const char *model)
{
    const struct unet_config c = tiny_unet_config(model);
    static const char *const name[] = { "unet", "unet_odd" };
    struct unet *u;
    struct model_run r;

    model_begin(&r, device, type, model, "unet", false);
    if (unet_new(&u, &c, &r.l, &r.e))
        model_die(&r.e);
    for (size_t i = 0; i < LEN(name); i++) {
        struct tensor *x = NULL, *y = model_denoise(&r, u, model, name[i], &x);
        model_near(&r, y, model, name[i], bound(type, model, name[i]));
        tape_reset(&r.t);
    }
    model_end(&r);
}

/* ---- VAE ---- */

void model_test_vae(const char *device, enum dtype type, const char *model)
{
    const struct vae_config c = tiny_vae_config(model);
    struct vae *v;
    struct model_run r;
    struct tensor *y;

    model_begin(&r, device, type, model, "vae", false);
    if (vae_new(&v, &c, VAE_BOTH, &r.l, &r.e))
        model_die(&r.e);
    y = vae_encode(&r.t, v, model_input(&r, model_want(model, "vae_encode.x"), type), &r.e);
    model_near(&r, y, model, "vae_encode", bound(type, model, "vae_encode"));
    y = vae_decode(&r.t, v, model_input(&r, model_want(model, "vae_decode.z"), F32), &r.e);
    model_near(&r, y, model, "vae_decode", bound(type, model, "vae_decode"));
    model_end(&r);
}

/* ---- text ---- */

void model_test_text(const char *device, enum dtype type, const char *model)
{
    const struct clip_text_config c = tiny_text_config(model);
    const int32_t *id = model_want(model, "text.id")->i;
    struct clip_text *m;
    struct model_run r;

    model_begin(&r, device, type, model, "text", false);
    if (clip_text_new(&m, &c, &r.l, &r.e))
        model_die(&r.e);
    model_near(&r, clip_text_forward(&r.t, m, id, 2, 0, &r.e), model, "text",
         bound(type, model, "text"));
    model_near(&r, clip_text_forward(&r.t, m, id, 2, 1, &r.e), model, "text_skip",
         bound(type, model, "text_skip"));
    model_end(&r);
}
