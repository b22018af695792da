#include "tests/pair_kit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/tiny.h"

static const char *const input_name[] = { "x", "y", "y2" };

static void die(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

static void make_pictures(struct pair_kit *k)
{
    k->mask = malloc(sizeof *k->mask * (PAIR_H / 8) * (PAIR_W / 8));
    for (int p = 0; p < PAIR_INPUTS; p++) {
        k->picture[p] = malloc(sizeof *k->picture[p] * PAIR_H * PAIR_W * 3);
        if (!k->picture[p] || !k->mask)
            die("out of memory");
        for (int i = 0; i < PAIR_H * PAIR_W * 3; i++) {
            const int x = i / 3 % PAIR_W, y = i / 3 / PAIR_W, c = i % 3;
            const int v = p == 0 ? x * 7 + y * 3 + c * 50 : p == 1 ? x * 2 + y * 5 + c * 20 : x * y + c * 90;

            k->picture[p][i] = (float)(v % 256) / 255 * 2 - 1;
        }
    }
    for (int i = 0; i < PAIR_H / 8 * (PAIR_W / 8); i++)
        k->mask[i] = i % (PAIR_W / 8) * 8 >= 16 && i / (PAIR_W / 8) * 8 < 40;
}

struct pair_kit *pair_kit_open(const char *base)
{
    static const char *const name[] = { "depth", "id" };
    const struct base_options o = { .prediction = -1 };
    struct pair_kit *k = calloc(1, sizeof *k);
    struct err e = { .text = "nothing can be written to /tmp" };

    if (!k)
        die("out of memory");
    snprintf(k->path, sizeof k->path, "/tmp/pair_kit.XXXXXX");
    if (!mkdtemp(k->path) || tiny_write(base, k->path) || base_model_open(&k->base, k->path, &o, &e))
        die(e.text);
    for (int i = 0; i < PAIR_CHECKPOINTS; i++) {
        struct adapters *a = k->adapters[i] = adapters_open(name[i]);

        k->checkpoint[i] = (struct joint_weights){ &a->xy, &a->yx, i == PAIR_DEPTH ? &a->y : NULL, &a->post,
                                                   i == PAIR_DEPTH ? JOINT_CONV_FUSE : JOINT_CONV, 1 };
    }
    make_pictures(k);
    return k;
}

void pair_kit_close(struct pair_kit *k)
{
    char command[100];

    for (int i = 0; i < PAIR_INPUTS; i++)
        free(k->picture[i]);
    free(k->mask);
    for (int i = 0; i < PAIR_CHECKPOINTS; i++)
        adapters_close(k->adapters[i]);
    base_model_close(k->base);
    snprintf(command, sizeof command, "rm -rf '%s'", k->path);
    if (system(command))
        printf("# %s is left\n", k->path);
    free(k);
}

static int take(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e)
{
    struct pair_latents *r = ctx;

    (void)e, (void)rgb, (void)index;
    for (int i = 0; i < PAIR_LATENTS; i++)
        r->z[k][i % 4 * (PAIR_LATENTS / 4) + i / 4] = latents[i];
    r->n++;
    return OK;
}

static void tokens(const struct pair_kit *k, int32_t *out, const char *text)
{
    struct err e = { 0 };

    if (clip_bpe_encode(k->base->bpe, text, out, PIPELINE_TOKENS, k->base->pad_id, NULL, &e))
        die(e.text);
}

static void set_inputs(const struct pair_kit *k, const struct pair_run *r, struct pipeline_request *q)
{
    static int32_t x[PIPELINE_TOKENS], depth[PIPELINE_TOKENS], no[PIPELINE_TOKENS];

    tokens(k, x, "a red fox in the snow, best quality");
    tokens(k, depth, "depth_map, a red fox in the snow, best quality");
    tokens(k, no, "blurry, low quality");
    for (int i = 0; i < r->n_input; i++) {
        bool of_depth = false;

        for (int p = 0; p < r->n_pair; p++)
            of_depth |= r->pair[p].y == i && r->pair[p].checkpoint->y;
        q->input[i] = (struct pipeline_input){ .prompt = of_depth ? depth : x, .negative = no,
                                               .picture = k->picture[i], .mask = r->masked[i] ? k->mask : NULL };
    }
    memcpy(q->pair, r->pair, sizeof r->pair);
    memcpy(q->contrast, r->contrast, sizeof r->contrast);
}

struct pipeline_base pair_kit_base(const struct pair_kit *k, const struct lora_set *lora)
{
    const struct base_model *b = k->base;

    return (struct pipeline_base){ &b->unet, &b->vae, &b->text, &b->schedule, &b->unet_weights, &b->vae_weights,
                                   &b->text_weights, lora };
}

int pair_kit_cost(const struct pair_kit *k, const struct pair_run *r, struct pair_latents *out,
                  struct pipeline_cost *cost, struct err *e)
{
    const struct pipeline_base pipe = pair_kit_base(k, r->lora);
    const struct pipeline_sink sink = { take, out, { NULL, NULL } };
    struct pair_plan plan = { 0 };
    struct pipeline_request q = { .n_input = r->n_input, .n_pair = r->n_pair, .n_contrast = r->n_contrast,
                                  .width = PAIR_W, .height = PAIR_H, .steps = 10, .cfg = r->cfg, .seed = 4321,
                                  .eta = strcmp(r->sampler, "ddim") ? 0 : 1, .rng = NOISE_TORCH_CPU, .count = 1,
                                  .batch = 1, .joint_scale = 1, .official = r->official, .plan = &plan,
                                  .same_pictures = r->same_pictures,
                                  .sampler = (enum sampler_kind)sampler_kind_of(r->sampler) };
    struct device dev;
    int rc;

    out->n = 0;
    set_inputs(k, r, &q);
    rc = pair_parse(&plan, r->schedule, input_name, q.n_input, q.steps, r->official ? PAIR_OFFICIAL : 0, e);
    if (!rc && r->through)
        rc = pipeline_next(r->through, &q, r->more, &sink, cost, e);
    else if (!rc && !(rc = device_open(&dev, r->device ? r->device : "cpu", 2, e))) {
        rc = pipeline_run(&dev, r->bf16 ? BF16 : F32, &pipe, &q, &sink, cost, e);
        device_close(&dev);
    }
    pair_free(&plan);
    return rc;
}

int pair_kit_run(const struct pair_kit *k, const struct pair_run *r, struct pair_latents *out, struct err *e)
{
    return pair_kit_cost(k, r, out, NULL, e);
}

double pair_kit_distance(const float *got, const float *want)
{
    double d = 0, s = 0;

    for (int i = 0; i < PAIR_LATENTS; i++) {
        d += (double)(got[i] - want[i]) * (double)(got[i] - want[i]);
        s += (double)want[i] * (double)want[i];
    }
    return sqrt(d / s);
}

double pair_kit_off(const struct pair_latents *got, const struct golden *g, const char *name, int n_input)
{
    double worst = got->n == n_input ? 0 : INFINITY;

    for (int i = 0; i < n_input && worst < 1; i++) {
        const struct golden_tensor *want;
        char full[64];

        snprintf(full, sizeof full, "%s.%s", name, input_name[i]);
        want = golden_get(g, full);
        worst = fmax(worst, want && want->n == PAIR_LATENTS ? pair_kit_distance(got->z[i], want->f) : INFINITY);
    }
    return worst;
}
