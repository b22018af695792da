/* tests/bench/models.c: whole models of a base on disk, and their results beside those that tests/reference/full.py
 * left there. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/base_model.h"
#include "store/weights_file.h"
#include "tests/bench/bench.h"

struct bench {
    struct device dev, null;
    enum dtype type;
    double peak;                        /* GFLOP/s of the arithmetic */
    struct base_model *base;
    struct weights_file *full;          /* NULL: nothing to compare with */
    struct model_memory mem;
    struct tape_memory tape_mem;
    struct tape t;
    struct err e;
};

static int failed(struct bench *b)
{
    fprintf(stderr, "bench: %s\n", b->e.text);
    return 1;
}

static int open_on(struct bench *b, struct device *d, struct layers *l, enum dtype type, const struct weights *w)
{
    const struct tape_caps caps = { (size_t)1 << 28, (size_t)1 << 36, (size_t)1 << 20, (size_t)1 << 36 };
    int rc = model_memory_init(&b->mem, d, 0, &b->e);

    rc = rc ? rc : tape_memory_init(&b->tape_mem, d, &caps, &b->e);
    if (rc)
        return rc;
    tape_init(&b->t, d, &b->tape_mem);
    layers_init(l, d, type, &b->mem, w);
    return OK;
}

static void close_on(struct bench *b)
{
    tape_memory_free(&b->tape_mem);
    model_memory_free(&b->mem);
}

/* A stored tensor, rows [0,n) of it, in `type`; zeros where there is none. */
static struct tensor *stored(struct bench *b, const char *name, enum dtype type, int n_dim, const int64_t *dim)
{
    struct tensor *x = tensor_new(&b->mem.meta, &b->mem.model, type, n_dim, dim, &b->e);
    struct weights_entry *w = b->full ? weights_get(&b->full->table, name) : NULL;

    if (!x || !b->t.dev->kern->computes)
        return x;
    memset(x->data, 0, tensor_bytes(x));
    if (w && w->n_dim == n_dim && (n_dim < 2 || w->dim[1] == dim[1]) && w->dim[0] >= dim[0]
        && weights_read_rows(w, 0, dim[0], x->data, type, &b->e))
        return NULL;
    return x;
}

/* ||got - want|| / ||want|| over the rows that got has; negative where nothing is stored */
static double off(struct bench *b, const struct tensor *got, const char *name)
{
    struct weights_entry *w = b->full ? weights_get(&b->full->table, name) : NULL;
    const int64_t n = tensor_count(got);
    float *v = malloc(sizeof *v * (size_t)n), *x = malloc(sizeof *x * (size_t)n);
    double d = 0, s = 0;

    if (!v || !x || !w || weights_count(w) / w->dim[0] != n / got->dim[0]
        || weights_read_rows(w, 0, got->dim[0], x, F32, &b->e)) {
        free(v);
        free(x);
        return -1;
    }
    dtype_to_f32(v, got->data, got->type, n);
    for (int64_t i = 0; i < n; i++) {
        d += (double)(v[i] - x[i]) * (double)(v[i] - x[i]);
        s += (double)x[i] * (double)x[i];
    }
    free(v);
    free(x);
    return sqrt(d / s);
}

/* ---- one pass of each ---- */

enum pass { UNET_64, UNET_32, UNET_64_PAIR, DECODE, ENCODE, TEXT, N_PASS };
static const char *const pass_name[] = { "UNet 64x64", "UNet 32x32", "UNet 64x64, two rows", "VAE decode 512",
                                         "VAE encode 512", "text, one prompt" };
static const char *const golden_name[] = { "unet.y", NULL, "unet.y", "vae.decoded", "vae.moments", "text.y" };

struct job {
    struct bench *b;
    enum pass pass;
    struct unet *unet;
    struct vae *vae;
    struct clip_text *text;
    struct tensor *x, *time, *words, *y;
    struct unet_text kv;
    int32_t id[77];
};

static int run_pass(void *arg)
{
    struct job *j = arg;
    struct bench *b = j->b;

    tape_reset(&b->t);
    if (j->pass <= UNET_64_PAIR) {
        if (unet_text(&b->t, j->unet, j->words, NULL, &j->kv, &b->e))
            return -1;
        j->y = unet_forward(&b->t, j->unet, j->x, j->time, &j->kv, NULL, &b->e);
    } else if (j->pass == DECODE)
        j->y = vae_decode(&b->t, j->vae, j->x, &b->e);
    else if (j->pass == ENCODE)
        j->y = vae_encode(&b->t, j->vae, j->x, &b->e);
    else
        j->y = clip_text_forward(&b->t, j->text, j->id, 1, 0, &b->e);
    return j->y ? 0 : -1;
}

static int make_inputs(struct job *j, enum dtype type)
{
    struct bench *b = j->b;
    const struct base_model *m = b->base;
    const int64_t B = j->pass == UNET_64_PAIR ? 2 : 1, side = j->pass == UNET_32 ? 32 : 64;
    const int64_t latents[] = { B, side, side, 4 }, image[] = { 1, 512, 512, 3 };
    const int64_t words[] = { B, 77, m->unet.cross_attention_dim };

    if (j->pass <= UNET_64_PAIR) {
        j->x = stored(b, "unet.x", type, 4, latents);
        j->time = j->x ? stored(b, "unet.t", F32, 1, &B) : NULL;
        j->words = j->time ? stored(b, "unet.text", type, 3, words) : NULL;
        return j->words ? OK : b->e.code;
    }
    if (j->pass == TEXT) {
        struct weights_entry *w = b->full ? weights_get(&b->full->table, "text.id") : NULL;
        float id[77] = { 0 };

        if (w && weights_read_rows(w, 0, 1, id, F32, &b->e))
            return b->e.code;
        for (int i = 0; i < 77; i++)
            j->id[i] = (int32_t)id[i];
        return OK;
    }
    j->x = j->pass == DECODE ? stored(b, "vae.z", F32, 4, latents) : stored(b, "vae.image", type, 4, image);
    return j->x ? OK : b->e.code;
}

static int bind(struct job *j, struct device *d, enum dtype type)
{
    struct bench *b = j->b;
    const struct base_model *m = b->base;
    const struct weights *w = j->pass <= UNET_64_PAIR ? &m->unet_weights : j->pass == TEXT ? &m->text_weights
                                                                                           : &m->vae_weights;
    struct layers l;
    int rc = open_on(b, d, &l, type, w);

    if (rc)
        return rc;
    if (j->pass <= UNET_64_PAIR)
        rc = unet_new(&j->unet, &m->unet, &l, &b->e);
    else if (j->pass == TEXT)
        rc = clip_text_new(&j->text, &m->text, &l, &b->e);
    else
        rc = vae_new(&j->vae, &m->vae, j->pass == DECODE ? VAE_DECODER : VAE_ENCODER, &l, &b->e);
    return rc ? rc : make_inputs(j, type);
}

static int measure(struct bench *b, enum pass pass, enum dtype type)
{
    struct job j = { .b = b, .pass = pass };
    double flops, first, seconds, error;
    int rc;

    b->null.count.flops = 0;
    rc = bind(&j, &b->null, type);
    rc = rc ? rc : run_pass(&j);
    flops = (double)b->null.count.flops;
    close_on(b);
    rc = rc ? rc : bind(&j, &b->dev, type);
    first = bench_now();
    rc = rc ? rc : run_pass(&j);
    first = bench_now() - first;
    seconds = rc ? -1 : bench_time(run_pass, &j);
    if (rc || seconds < 0) {
        close_on(b);
        return failed(b);
    }
    error = golden_name[pass] ? off(b, j.y, golden_name[pass]) : -1;
    printf("  %-22s %-5s %8.1f %8.3f %8.3f %7.1f %6.1f", pass_name[pass], dtype_name(type), flops * 1e-9, first,
           seconds, flops / seconds * 1e-9, flops / seconds * 1e-7 / b->peak);
    printf(error < 0 ? "\n" : " %9.1e\n", error);
    fflush(stdout);
    close_on(b);
    return 0;
}

int bench_models(const char *directory, const char *isa, int n_threads, double f32, double bf16, const char *only)
{
    struct bench b = { .full = NULL };
    char name[64], path[4096];
    int rc;

    snprintf(name, sizeof name, "cpu%s%s", isa ? ":" : "", isa ? isa : "");
    rc = device_open(&b.dev, name, n_threads, &b.e);
    snprintf(name, sizeof name, "null%s%s", isa ? ":" : "", isa ? isa : "");
    rc = rc ? rc : device_open(&b.null, name, n_threads, &b.e);
    rc = rc ? rc : base_model_open(&b.base, directory, &(struct base_options){ .prediction = -1 }, &b.e);
    if (rc)
        return failed(&b);
    snprintf(path, sizeof path, "%s/full.safetensors", directory);
    if (weights_file_open(&b.full, path, &b.e))
        printf("nothing to compare with: %s\n", b.e.text);
    printf("\nmodels of %s; CPU seconds: the first pass packs the weights\n  %-28s %8s %8s %8s %7s %6s %9s\n",
           directory, "", "GFLOP", "first", "seconds", "GF/s", "% peak", "off by");
    for (int t = 0; t < 2 && !rc; t++) {
        b.peak = t ? bf16 : f32;
        for (int p = 0; p < N_PASS && !rc && !(t && bf16 <= 0); p++)
            if (!only || strstr(pass_name[p], only))
                rc = measure(&b, (enum pass)p, t && p != TEXT ? BF16 : F32);
    }
    weights_file_close(b.full);
    base_model_close(b.base);
    device_close(&b.null);
    device_close(&b.dev);
    return rc != 0;
}
