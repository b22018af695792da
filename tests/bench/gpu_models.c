/* tests/bench/gpu_models.c: whole models on a device: what a step of the UNet takes, plain and with a pair, a picture
 * of the VAE and a prompt of the text encoder; and how far they are from f32 on the processor. */
#include "tests/bench/gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/clip_text.h"
#include "core/model/unet.h"
#include "core/model/vae.h"
#include "tests/adapters.h"
#include "tests/bench/random_base.h"
#include "tests/tiny.h"

static const double round_s = 0.2;

/* What the models are made of: SD1.5's sizes with random weights, or the tests' tiny model. */
struct material {
    struct random_base base;
    struct tiny *tiny[3];
    struct adapters *adapters;
    const struct weights *unet, *vae, *text;
    struct joint_weights pair;
    struct unet_config unet_config;
    struct vae_config vae_config;
    struct clip_text_config text_config;
    int64_t latent, picture;            /* sides */
};

static int open_material(struct material *m, bool tiny, struct err *e)
{
    *m = (struct material){ .unet_config = unet_config_sd15(), .vae_config = vae_config_sd15(),
                            .text_config = clip_text_config_sd15(), .latent = 64, .picture = 512 };
    if (!tiny) {
        if (random_base_open(&m->base))
            return err_set(e, m->base.e.code, "%s", m->base.e.text);
        m->unet = &m->base.unet;
        m->vae = &m->base.vae;
        m->text = &m->base.text;
        m->pair = (struct joint_weights){ &m->base.xy, &m->base.yx, &m->base.y, &m->base.fuse, JOINT_CONV_FUSE, 1 };
        return OK;
    }
    m->tiny[0] = tiny_open("sd1", "unet");
    m->tiny[1] = tiny_open("sd1", "vae");
    m->tiny[2] = tiny_open("sd1", "text");
    m->adapters = adapters_open("depth");
    m->unet = &m->tiny[0]->table;
    m->vae = &m->tiny[1]->table;
    m->text = &m->tiny[2]->table;
    m->pair = (struct joint_weights){ &m->adapters->xy, &m->adapters->yx, &m->adapters->y, &m->adapters->post,
                                      JOINT_CONV_FUSE, 1 };
    m->unet_config = tiny_unet_config("sd1");
    m->vae_config = tiny_vae_config("sd1");
    m->text_config = tiny_text_config("sd1");
    m->latent = 4;
    m->picture = 2 * vae_factor(&m->vae_config);
    return OK;
}

static void close_material(struct material *m, bool tiny)
{
    if (!tiny) {
        random_base_close(&m->base);
        return;
    }
    for (int i = 0; i < 3; i++)
        tiny_close(m->tiny[i]);
    adapters_close(m->adapters);
}

/* ---- models on one device ---- */

struct models {
    struct gpu *g;
    struct device *dev;
    enum dtype type;
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct unet *unet;
    struct joint *joint;
    struct vae *vae;
    struct clip_text *text;
    struct err e;
};

static void close_models(struct models *m)
{
    tape_memory_free(&m->tape_mem);
    model_memory_free(&m->mem);
}

static int make_models(struct models *m, struct material *of)
{
    struct joint_place place[UNET_MAX_BLOCK];
    struct layers l;
    int rc, n;

    layers_init(&l, m->dev, m->type, &m->mem, of->unet);
    rc = unet_new(&m->unet, &of->unet_config, &l, &m->e);
    if (rc)
        return rc;
    n = unet_places(m->unet, place);
    if (!of->adapters && random_base_adapters(&of->base, place, n))
        return err_set(&m->e, of->base.e.code, "%s", of->base.e.text);
    rc = joint_new(&m->joint, place, n, of->unet_config.cross_attention_dim, &of->pair, &l, &m->e);
    layers_init(&l, m->dev, m->type, &m->mem, of->vae);
    rc = rc ? rc : vae_new(&m->vae, &of->vae_config, VAE_BOTH, &l, &m->e);
    layers_init(&l, m->dev, m->type, &m->mem, of->text);
    return rc ? rc : clip_text_new(&m->text, &of->text_config, &l, &m->e);
}

static int open_models(struct models *m, struct gpu *g, struct device *dev, enum dtype type, struct material *of)
{
    const struct tape_caps caps = { (size_t)1 << 28, (size_t)1 << 36, (size_t)1 << 20, (size_t)1 << 36 };
    int rc;

    *m = (struct models){ .g = g, .dev = dev, .type = type };
    rc = model_memory_init(&m->mem, dev, 0, &m->e);
    rc = rc ? rc : tape_memory_init(&m->tape_mem, dev, &caps, &m->e);
    if (!rc)
        tape_init(&m->t, dev, &m->tape_mem);
    return rc ? rc : make_models(m, of);
}

/* ---- passes ---- */

enum pass_kind { UNET, PAIR, DECODE, ENCODE, TEXT };
struct pass {
    const char *name;
    enum pass_kind kind;
    int64_t rows;
    bool whole;                         /* handed to the device as one piece, as sampling does it */
};

struct run {
    struct models *m;
    const struct pass *pass;
    struct unet_text text;
    struct joint_run pairs;
    struct tensor *x, *time, *y;
    struct tape_mark mark;
    int32_t id[16 * 77];
};

/* About normal, the same on every device but for rounding. */
static struct tensor *random_tensor(struct models *m, enum dtype type, int n_dim, const int64_t *dim)
{
    struct tensor *x = tape_new(&m->t, type, n_dim, dim, &m->e);
    const int64_t step = m->g->n_value, n = x ? tensor_count(x) : 0;

    for (int64_t at = 0; at < n; at += step)
        if (device_put(m->dev, (char *)x->data + (size_t)at * dtype_bytes(type), m->g->typed[type],
                       (size_t)(n - at < step ? n - at : step) * dtype_bytes(type), &m->e))
            return NULL;
    return x;
}

static struct tensor *times(struct models *m, int64_t n)
{
    struct tensor *t = tape_new(&m->t, F32, 1, &n, &m->e);
    float value[64];

    for (int i = 0; i < 64; i++)
        value[i] = 261;
    return t && !device_put(m->dev, t->data, value, (size_t)n * sizeof *value, &m->e) ? t : NULL;
}

static int prepare(struct run *r, struct models *m, const struct material *of, const struct pass *p)
{
    const int64_t B = p->rows, side = of->latent, px = of->picture, f = vae_factor(&of->vae_config);
    const bool unet = p->kind == UNET || p->kind == PAIR;
    struct tensor *words;

    *r = (struct run){ .m = m, .pass = p };
    tape_reset(&m->t);
    if (p->kind == TEXT)
        for (int i = 0; i < B * 77; i++)
            r->id[i] = (int32_t)((i * 7919 + 1) % of->text_config.vocab_size);
    else
        r->x = p->kind == ENCODE ? random_tensor(m, m->type, 4, (int64_t[]){ B, px, px, 3 })
             : random_tensor(m, unet ? m->type : F32, 4,
                             (int64_t[]){ B, unet ? side : px / f, unet ? side : px / f, 4 });
    if (unet) {
        r->time = times(m, B);
        words = random_tensor(m, m->type, 3, (int64_t[]){ B, 77, of->unet_config.cross_attention_dim });
        r->pairs = (struct joint_run){ .n_input = 2, .n_pair = 1, .scale = 1, .pair = { { 0, 1, 1, 1, m->joint } } };
        if (!r->x || !r->time || !words
            || unet_text(&m->t, m->unet, words, p->kind == PAIR ? &r->pairs : NULL, &r->text, &m->e))
            return m->e.code;
    }
    r->mark = tape_mark(&m->t);
    return p->kind == TEXT || r->x ? OK : m->e.code;
}

static int run_pass(void *arg)
{
    struct run *r = arg;
    struct models *m = r->m;
    const struct unet_call call = { .pairs = r->pass->kind == PAIR ? &r->pairs : NULL };
    int rc = OK;

    tape_release(&m->t, r->mark);
    if (r->pass->whole)
        rc = device_step_begin(m->dev, 1 + (uint64_t)r->pass->kind + 8 * (uint64_t)r->pass->rows, &m->e);
    switch (r->pass->kind) {
    case DECODE: r->y = vae_decode(&m->t, m->vae, r->x, &m->e); break;
    case ENCODE: r->y = vae_encode(&m->t, m->vae, r->x, &m->e); break;
    case TEXT: r->y = clip_text_forward(&m->t, m->text, r->id, r->pass->rows, 0, &m->e); break;
    default: r->y = unet_forward(&m->t, m->unet, r->x, r->time, &r->text, &call, &m->e); break;
    }
    if (r->pass->whole && !rc)
        rc = device_step_end(m->dev, &m->e);
    return r->y ? rc : -1;
}

/* The result on the host in f32, malloc'ed; NULL if it cannot be got. */
static float *result(struct run *r, int64_t *n)
{
    const size_t bytes = r->y ? tensor_bytes(r->y) : 0;
    void *typed = malloc(bytes ? bytes : 1);
    float *v;

    *n = r->y ? tensor_count(r->y) : 0;
    v = malloc(sizeof *v * (size_t)(*n + 1));
    if (!v || !typed || !*n || device_get(r->m->dev, typed, r->y->data, bytes, &r->m->e)) {
        free(v);
        v = NULL;
    } else
        dtype_to_f32(v, typed, r->y->type, *n);
    free(typed);
    return v;
}

/* ---- how long ---- */

static bool all_finite(struct run *r)
{
    int64_t n, bad = 0;
    float *v = result(r, &n);

    for (int64_t i = 0; v && i < n; i++)
        bad += !isfinite(v[i]);
    if (v && bad)
        err_set(&r->m->e, E_BUG, "%lld of %lld results are not finite", (long long)bad, (long long)n);
    free(v);
    return v && !bad;
}

static void time_pass(struct models *m, struct models *null, const struct material *of, const struct pass *p)
{
    struct gpu *g = m->g;
    struct run r;
    double seconds = -1, flops;
    char name[96];

    snprintf(name, sizeof name, "%s %s", p->name, dtype_name(m->type));
    if (prepare(&r, null, of, p))
        m->e = null->e;
    g->null.count.flops = 0;
    if (!m->e.code && run_pass(&r))
        m->e = null->e;
    flops = (double)g->null.count.flops;
    if (!m->e.code && !prepare(&r, m, of, p))
        seconds = gpu_time(g, run_pass, &r, round_s);
    if (seconds > 0 && !all_finite(&r))
        seconds = -1;
    gpu_row(g, name, seconds, flops, true, g->peak[m->type], m->e.text[0] ? m->e.text : g->e.text);
    err_clear(&m->e);
    err_clear(&null->e);
}

static const struct pass timed[] = {
    { "UNet step 1x2", UNET, 2, false },    { "UNet step 1x2, whole", UNET, 2, true },
    { "UNet step 8x2", UNET, 16, false },   { "UNet step 8x2, whole", UNET, 16, true },
    { "pair step 1x2", PAIR, 4, false },    { "pair step 1x2, whole", PAIR, 4, true },
    { "pair step 8x2", PAIR, 32, false },   { "pair step 8x2, whole", PAIR, 32, true },
    { "VAE decode 1", DECODE, 1, false },   { "VAE decode 4", DECODE, 4, false },
    { "VAE encode 1", ENCODE, 1, false },   { "VAE encode 4", ENCODE, 4, false },
    { "text encoder 2", TEXT, 2, false },
};

static const struct pass tiny_timed[] = {
    { "UNet step 1x2, whole", UNET, 2, true }, { "pair step 1x2", PAIR, 4, false },
    { "VAE decode 1", DECODE, 1, false },      { "VAE encode 1", ENCODE, 1, false },
    { "text encoder 2", TEXT, 2, false },
};

void gpu_models(struct gpu *g)
{
    const struct pass *p = g->tiny ? tiny_timed : timed;
    const int n = g->tiny ? (int)(sizeof tiny_timed / sizeof *tiny_timed) : (int)(sizeof timed / sizeof *timed);
    struct material of;

    if (open_material(&of, g->tiny, &g->e)) {
        gpu_row(g, "models", -1, 0, true, 0, g->e.text);
        return;
    }
    for (int t = N_DTYPE - 1; t > 0; t--) {
        struct models m = { .g = NULL }, null = { .g = NULL };

        if (open_models(&null, g, &g->null, (enum dtype)t, &of) || open_models(&m, g, &g->dev, (enum dtype)t, &of))
            gpu_row(g, "models", -1, 0, true, 0, null.e.text[0] ? null.e.text : m.e.text);
        else
            for (int i = 0; i < n; i++)
                time_pass(&m, &null, &of, &p[i]);
        close_models(&m);
        close_models(&null);
    }
    close_material(&of, g->tiny);
}

/* ---- how far from the processor ---- */

static const struct pass compared[] = {
    { "UNet", UNET, 1, true }, { "pair", PAIR, 2, true }, { "VAE decode", DECODE, 1, false },
    { "VAE encode", ENCODE, 1, false }, { "text encoder", TEXT, 1, false },
};
enum { N_COMPARED = sizeof compared / sizeof *compared };

/* At full size the processor itself is off by 2.3e-3 in f16 and 1.9e-2 in bf16; in the tiny models, whose channels
 * average less, by up to six times that. */
static const double may_be[N_DTYPE] = { 1e-4, 1e-2, 6e-2 };

/* off < 0: it failed, and `why` is told. */
static void parity_row(struct gpu *g, const char *name, double off, double most, const char *why)
{
    const bool ok = off >= 0 && off <= most;

    g->n_failed += !ok;
    if (off < 0 || isnan(off))
        fprintf(stderr, "bench: %s: %s\n", name, isnan(off) ? "not a number" : why);
    else if (!ok)
        fprintf(stderr, "bench: %s: off by %.2e, more than %.0e\n", name, off, most);
    else if (g->people)
        printf("  %-46s off by %.1e of at most %.0e\n", name, off, most);
    else
        printf("%s\t-\t%.2e\trelative\t%.0e\n", name, off, most);
    fflush(stdout);
}

static double distance(const float *got, const float *want, int64_t n)
{
    double d = 0, s = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        s += (double)want[i] * (double)want[i];
    }
    return sqrt(d / s);
}

static void compare(struct models *m, const struct material *of, float *const *want, const int64_t *n_want)
{
    for (int i = 0; i < N_COMPARED; i++) {
        double off = -1;
        int64_t n = 0;
        char name[96];
        struct run r;

        snprintf(name, sizeof name, "%s %s beside f32 on the processor", compared[i].name, dtype_name(m->type));
        if (want[i] && !prepare(&r, m, of, &compared[i]) && !run_pass(&r)) {
            float *v = result(&r, &n);

            off = v && n == n_want[i] ? distance(v, want[i], n) : -1;
            free(v);
        }
        parity_row(m->g, name, off, may_be[m->type] * (m->g->tiny ? 3 : 1), m->e.text);
        err_clear(&m->e);
    }
}

void gpu_parity(struct gpu *g)
{
    float *want[N_COMPARED] = { NULL };
    int64_t n[N_COMPARED] = { 0 };
    struct material of = { .latent = 0 };
    struct models m = { .g = NULL };
    struct device cpu = { .kern = NULL };
    int rc = open_material(&of, g->tiny, &g->e);

    rc = rc ? rc : device_open(&cpu, "cpu", 0, &g->e);
    if (!rc && (rc = open_models(&m, g, &cpu, F32, &of)))
        g->e = m.e;
    for (int i = 0; i < N_COMPARED && !rc; i++) {
        struct run r;

        if (prepare(&r, &m, &of, &compared[i]) || run_pass(&r) || !(want[i] = result(&r, &n[i])))
            fprintf(stderr, "bench: %s on the processor: %s\n", compared[i].name, m.e.text);
    }
    close_models(&m);
    device_close(&cpu);
    if (rc)
        parity_row(g, "parity", -1, 0, g->e.text);
    for (int t = 0; t < N_DTYPE && !rc; t++) {
        if (open_models(&m, g, &g->dev, (enum dtype)t, &of))
            parity_row(g, dtype_name((enum dtype)t), -1, 0, m.e.text);
        else
            compare(&m, &of, want, n);
        close_models(&m);
    }
    for (int i = 0; i < N_COMPARED; i++)
        free(want[i]);
    close_material(&of, g->tiny);
}
