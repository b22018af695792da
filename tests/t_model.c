/* tests/t_model.c: the three models, on tiny weights, against what diffusers and transformers compute in float64
 * (tests/reference/models.py), on the processor; gradients too. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "tests/model_kit.h"
#include "tests/tap.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

static const double gradient_f32 = 1e-4;

/* Under sanitizers the best instruction set alone, and no large maps. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

/* The golden of a parameter's gradient; dots are underscores there. */
static const struct golden_tensor *gradient_of(const char *model, const char *key)
{
    char name[256];

    snprintf(name, sizeof name, "%s_unet.d%s", model, key);
    for (char *p = strchr(name, '.') + 1; *p; p++)
        if (*p == '.')
            *p = '_';
    return model_golden(name);
}

/* Gradients of latents and of the attention projections that the golden has; the same pass as recorded. */
static void test_gradients(const char *model)
{
    const struct unet_config c = tiny_unet_config(model);
    struct unet *u;
    struct model_run r;
    struct tensor *x = NULL, *y, *dy, *param[64];
    const struct golden_tensor *of[64];
    double worst = 0;
    int n = 0;

    model_begin(&r, "cpu", F32, model, "unet", true);
    if (unet_new(&u, &c, &r.l, &r.e))
        model_die(&r.e);
    x = model_input(&r, model_want(model, "unet.x"), F32);
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
    y = model_denoise(&r, u, model, "unet", &x);
    dy = model_input(&r, model_want(model, "unet.dy"), F32);
    tap_ok(y && !tape_backward(&r.t, y, dy, &r.e), "%s: a recorded pass and its way back %s", model, r.e.text);
    model_near(&r, y, model, "unet", model_forward_f32);
    worst = model_off(&r, x->grad, model_want(model, "unet.dx"));
    tap_ok(worst <= gradient_f32, "%s: gradient of the latents: %.2e of %.1e", model, worst, gradient_f32);
    worst = 0;
    for (int i = 0; i < n; i++)
        worst = fmax(worst, model_off(&r, param[i]->grad, of[i]));
    tap_ok(n >= 4 && worst <= gradient_f32, "%s: gradients of %d attention projections: %.2e of %.1e", model, n, worst,
           gradient_f32);
    model_end(&r);
}

/* Maps so large that they are worked on in bands get the bits of a pass that takes them whole. */
static void test_bands(void)
{
    const struct vae_config c = tiny_vae_config("sd1");
    const int64_t image[] = { 1, 520, 512, 3 }, latents[] = { 1, 65, 64, 4 };
    const struct krng r = rng_stream(3, RNG_TEST, 0, 0);
    struct vae *v;
    struct model_run run;

    model_begin(&run, "cpu", F32, "sd1", "vae", false);
    if (vae_new(&v, &c, VAE_BOTH, &run.l, &run.e))
        model_die(&run.e);
    for (int i = 0; i < 2; i++) {
        struct tensor *x = tensor_new(&run.mem.meta, &run.mem.model, F32, 4, i ? image : latents, &run.e), *y[2];

        if (!x || run.dev.kern->random_normal(&run.dev.ctx, x->data, F32, tensor_count(x), &r, 0))
            model_die(&run.e);
        for (int whole = 0; whole < 2; whole++) {
            run.t.recording = whole;
            y[whole] = i ? vae_encode(&run.t, v, x, &run.e) : vae_decode(&run.t, v, x, &run.e);
        }
        tap_ok(y[0] && y[1] && !memcmp(y[0]->data, y[1]->data, tensor_bytes(y[0])), "VAE: %s in bands has the bits of"
               " the whole %s", i ? "encoding" : "decoding", run.e.text);
        run.t.recording = false;
        tape_reset(&run.t);
    }
    model_end(&run);
}

int main(void)
{
    static const char *const device[] = { "cpu", "cpu:portable" }, *const model[] = { "sd1", "sd2" };

    model_kit_open();
    for (size_t m = 0; m < LEN(model); m++) {
        for (size_t d = 0; d < (THOROUGH ? LEN(device) : 1); d++)
            for (int t = 0; t < 2; t++) {
                model_test_unet(device[d], t ? BF16 : F32, model[m]);
                model_test_vae(device[d], t ? BF16 : F32, model[m]);
                model_test_text(device[d], t ? BF16 : F32, model[m]);
            }
        test_gradients(model[m]);
    }
    if (THOROUGH)
        test_bands();
    model_kit_close();
    return tap_done();
}
