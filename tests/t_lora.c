/* tests/t_lora.c: LoRA files: one LoRA as diffusers, older diffusers, peft and kohya write it adds what diffusers adds;
 * every layer of SD1.5 is known by all its names; what is something else, or half of it, is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/lora_file.h"
#include "store/lora_keys.h"
#include "store/safetensors.h"
#include "tests/base_kit.h"
#include "tests/golden.h"
#include "tests/kit.h"
#include "tests/tap.h"

/* The UNet of tests/reference/base_fixtures.py. */
static const struct unet_config small = {
    .in_channels = 4, .out_channels = 4, .n_stage = 2, .width = { 16, 32 }, .down_attends = { true, false },
    .up_attends = { false, true }, .heads = { 2, 2 }, .layers_per_block = 1, .cross_attention_dim = 24,
    .norm_num_groups = 8, .norm_eps = 1e-5f,
};

static struct arena work;

/* ---- against diffusers ---- */

/* Weights that are 3 before: how far they are from 3 + weight * delta, as a share of the largest delta. */
static double distance(const struct lora_set *set, const struct golden_tensor *g, double weight, bool *changed)
{
    const enum lora_part part = g->name[0] == 'u' ? LORA_UNET : LORA_TEXT;
    float *w = malloc((size_t)g->n * sizeof *w);
    struct err e = { 0 };
    double worst = 0, most = 0;

    if (!w)
        exit(1);
    for (int64_t i = 0; i < g->n; i++)
        w[i] = 3;
    *changed = lora_changes(set, part, g->name + 5);
    if (lora_add(set, part, g->name + 5, w, g->dim[0], g->n / g->dim[0], &work, &e)) {
        tap_note("%s", e.text);
        worst = 1e9;
    }
    for (int64_t i = 0; i < g->n; i++) {
        const double add = *changed ? weight * (double)g->f[i] : 0;
        worst = fmax(worst, fabs((double)w[i] - 3 - add));
        most = fmax(most, fabs(add));
    }
    free(w);
    return *changed ? worst / most : worst;
}

static struct lora_file *open_file(const char *path)
{
    struct lora_file *f = NULL;
    struct err e = { 0 };

    if (lora_file_open(&f, path, &small, &e))
        tap_note("%s", e.text);
    return f;
}

/* 3 has an ulp of 2.4e-7, deltas are about 0.1. */
static const double tolerance = 2e-5;

static void test_layouts(const struct golden *g)
{
    static const struct {
        const char *name;
        int n;
        double scale;
    } file[] = {
        { "diffusers", 13, 1 }, { "old", 4, 1 }, { "peft", 12, 1 }, { "kohya", 18, 0.5 }, { "original", 12, 0.5 },
    };

    for (size_t i = 0; i < LEN(file); i++) {
        char path[100];
        struct lora_file *f;
        struct lora_set set = { .n = 1 };
        double worst = 0;
        int n = 0, used = 0;
        bool changed;

        snprintf(path, sizeof path, "tests/reference/lora/%s.safetensors", file[i].name);
        f = open_file(path);
        if (!tap_ok(f && f->lora.n == file[i].n && f->n_other == 0, "%s: %d layers", file[i].name, f ? f->lora.n : 0))
            continue;
        set.use[0] = (struct lora_use){ &f->lora, 0.75 };
        for (int k = 0; k < g->n_tensor; k++) {
            worst = fmax(worst, distance(&set, &g->tensor[k], 0.75 * file[i].scale, &changed));
            n += changed;
        }
        for (int k = 0; k < f->lora.n; k++)
            used += f->lora.delta[k].used;
        tap_ok(worst < tolerance && n == file[i].n && used == n, "%s: what diffusers adds, to %.1e; %d layers",
               file[i].name, worst, n);
        lora_file_close(f);
    }
}

static void test_sum(const struct golden *g)
{
    struct lora_file *a = open_file("tests/reference/lora/kohya.safetensors");
    struct lora_file *b = open_file("tests/reference/lora/diffusers.safetensors");
    struct lora_set set = { .n = 2 };
    const struct golden_tensor *both, *one;
    struct err e = { 0 };
    float w[4] = { 0 };
    bool changed;

    both = golden_get(g, "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight");
    one = golden_get(g, "unet.mid_block.resnets.1.time_emb_proj.weight");
    if (!tap_ok(a && b && both && one, "two files"))
        return;
    set.use[0] = (struct lora_use){ &a->lora, 0.5 };
    set.use[1] = (struct lora_use){ &b->lora, -1.25 };
    tap_ok(distance(&set, both, 0.25 - 1.25, &changed) < tolerance && changed, "both add");
    tap_ok(distance(&set, one, 0.25, &changed) < tolerance && changed, "one of them adds");
    tap_ok(!lora_changes(&set, LORA_TEXT, both->name + 5) && !lora_changes(&set, LORA_UNET, "conv_in.weight"),
           "a target belongs to its part");
    tap_ok(!lora_add(&set, LORA_UNET, "conv_in.weight", w, 2, 2, &work, &e) && !w[0] && !w[3],
           "a layer that no file changes stays");
    tap_ok(lora_add(&set, LORA_UNET, one->name + 5, w, 2, 2, &work, &e) == E_FORMAT &&
               strstr(e.text, "another base model") && !w[0] && arena_mark(&work) == 0,
           "refused: %s", e.text);
    lora_file_close(a);
    lora_file_close(b);
}

/* One name in both parts is two targets. */
static void test_parts(void)
{
    struct lora_delta delta[] = { { .part = LORA_UNET, .target = "a" }, { .part = LORA_TEXT, .target = "b" } };
    struct lora l = { .delta = delta, .n = 2 };
    const struct lora_set set = { .use = { { &l, 1 } }, .n = 1 };

    tap_ok(lora_changes(&set, LORA_UNET, "a") && lora_changes(&set, LORA_TEXT, "b") &&
               !lora_changes(&set, LORA_TEXT, "a") && !lora_changes(&set, LORA_UNET, "b") &&
               !lora_changes(&set, LORA_TEXT, "c"),
           "one name in both parts");
}

/* The same sums without numbers: what they need is the same. */
static void test_null_arena(void)
{
    struct lora_file *f = open_file("tests/reference/lora/kohya.safetensors");
    struct lora_set set = { .n = 1 };
    struct arena none = { 0 };
    struct err e = { 0 };
    float w[32 * 64] = { 0 };
    const char *target = "mid_block.resnets.1.time_emb_proj.weight";
    bool ok;

    if (!f || arena_init(&none, "none", ARENA_NULL, 1 << 26, &e))
        exit(1);
    set.use[0] = (struct lora_use){ &f->lora, 1 };
    arena_reset_high(&work);
    ok = !lora_add(&set, LORA_UNET, target, w, 32, 64, &work, &e) && w[0] != 0;
    w[0] = 0;
    ok = ok && !lora_add(&set, LORA_UNET, target, w, 32, 64, &none, &e) && w[0] == 0;
    tap_ok(ok && arena_high(&none) == arena_high(&work) && arena_high(&work) > 0,
           "a null arena counts the same %zu bytes", arena_high(&work));
    arena_free(&none);
    lora_file_close(f);
}

/* ---- names ---- */

static bool parses(const struct lora_names *n, const char *name, enum lora_key_role role, const char *target)
{
    struct lora_key key;

    lora_key_parse(&key, n, name);
    if (key.role == role && (!target || !strcmp(key.target, target)))
        return true;
    tap_note("'%s' is role %d, '%s'", name, (int)key.role, key.target);
    return false;
}

static const char *flat(const char *name, int size)
{
    static char out[2][256];
    static int next;
    char *p = out[next ^= 1];

    snprintf(p, sizeof out[0], "%.*s", size, name);
    for (char *c = p; *c; c++)
        *c = *c == '.' ? '_' : *c;
    return p;
}

/* Every weight of SD1.5 with two sizes or more can have a LoRA, under all names; norms cannot. */
static void test_names(void)
{
    const struct unet_config sd15 = unet_config_sd15();
    struct keys *k = keys_open();
    struct lora_names *n = NULL;
    struct err e = { 0 };
    int layers = 0, text = 0;
    bool ok = !lora_names_new(&n, &sd15, &e);

    for (int i = 0; i < k->n && ok; i++) {
        const struct keys_row *r = &k->row[i];
        const int size = (int)(strrchr(r->name, '.') - r->name), o = (int)(strrchr(r->original, '.') - r->original);
        const bool unet = !strcmp(r->section, "unet"), layer = r->one.n_dim > 1 && strstr(r->name, ".weight");
        const enum lora_key_role down = layer ? LORA_KEY_DOWN : LORA_KEY_FOREIGN;
        const char *target = layer ? r->name : "";
        char name[300];

        if (strstr(r->name, "bias") || (!unet && (strcmp(r->section, "text2") || strstr(r->name, "embedding"))))
            continue;
#define TRY(...) snprintf(name, sizeof name, __VA_ARGS__), ok &= parses(n, name, down, target)
        if (unet) {
            TRY("lora_unet_%s.lora_down.weight", flat(r->name, size));
            TRY("lora_unet_%s.lora_down.weight", flat(r->original, o));
            TRY("unet.%.*s.lora.down.weight", size, r->name);
            TRY("unet.%.*s.lora_A.weight", size, r->name);
            TRY("%.*s.lora_A.default_0.weight", size, r->name);
            layers += layer;
        } else {
            TRY("lora_te_%s.lora_down.weight", flat(r->name, size));
            TRY("lora_te1_%s.lora_down.weight", flat(r->name, size));
            TRY("text_encoder.%.*s.lora_linear_layer.down.weight", size, r->name);
            TRY("text_encoder.%.*s.lora_A.weight", size, r->name);
            text += layer;
        }
#undef TRY
    }
    tap_ok(ok && layers == 282 && text == 23 * 6, "%d layers of a UNet, %d of a text encoder", layers, text);
    lora_names_free(n);
    keys_close(k);
}

static void test_odd_names(void)
{
    static const struct {
        const char *name;
        enum lora_key_role role;
        const char *target;
    } key[] = {
        { "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight", LORA_KEY_UP,
          "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight" },
        { "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", LORA_KEY_DOWN,
          "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" },
        { "text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.down.weight", LORA_KEY_DOWN,
          "text_model.encoder.layers.3.self_attn.out_proj.weight" },
        { "base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_B.weight", LORA_KEY_UP,
          "text_model.encoder.layers.3.self_attn.q_proj.weight" },
        { "base_model.model.conv_in.lora_B.weight", LORA_KEY_UP, "conv_in.weight" },
        { "unet.conv_in.alpha", LORA_KEY_ALPHA, "conv_in.weight" },
        { "lora_te_text_model_encoder_layers_11_mlp_fc2.alpha", LORA_KEY_ALPHA,
          "text_model.encoder.layers.11.mlp.fc2.weight" },
        { "lora_unet_time_embed_2.lora_up.weight", LORA_KEY_UP, "time_embedding.linear_2.weight" },
        { "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", LORA_KEY_FOREIGN, NULL },
        { "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", LORA_KEY_FOREIGN, NULL },
        { "transformer.conv_in.lora_A.weight", LORA_KEY_FOREIGN, NULL },
        { "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", LORA_KEY_FOREIGN, NULL },
        { "lora_unet_.lora_down.weight", LORA_KEY_FOREIGN, NULL },
        { "lora_te_text_model_encoder_layers_1000_mlp_fc1.alpha", LORA_KEY_FOREIGN, NULL },
        { "lora_unet_conv_in.hada_w1_a", LORA_KEY_REFUSED, NULL },
        { "lora_unet_conv_in.surprise", LORA_KEY_REFUSED, NULL },
        { "lora_unet_conv_in", LORA_KEY_REFUSED, NULL },
        { "unet.conv_in.lora_magnitude_vector", LORA_KEY_REFUSED, NULL },
        { "unet.conv_in.lora_A", LORA_KEY_REFUSED, NULL },
        { "unet.conv_in.lora_A.a.b.weight", LORA_KEY_REFUSED, NULL },
        { "model.diffusion_model.out.0.weight", LORA_KEY_OTHER, NULL },
        { "conv_in.weight", LORA_KEY_OTHER, NULL },
        { "some.alpha", LORA_KEY_OTHER, NULL },
        { "", LORA_KEY_OTHER, NULL },
    };
    static const char *const kind[][2] = {
        { "lora_unet_conv_in.hada_w1_a", "LoHa" },
        { "lora_unet_conv_in.lokr_w1", "LoKr" },
        { "lora_unet_conv_in.dora_scale", "DoRA" },
        { "base_model.model.conv_in.lora_magnitude_vector.default", "DoRA" },
        { "lora_unet_conv_in.lora_mid.weight", "Tucker" },
        { "lora_unet_conv_in.diff", "full differences" },
        { "lora_unet_conv_in.oft_blocks", "OFT" },
        { "unet.mid_block.attentions.0.transformer_blocks.0.attn1n.to_q.lora.down.weight", "UniCon" },
    };
    struct lora_names *n = NULL;
    struct err e = { 0 };
    bool ok = !lora_names_new(&n, &small, &e);

    for (size_t i = 0; i < LEN(key) && n; i++)
        ok &= parses(n, key[i].name, key[i].role, key[i].target);
    tap_ok(ok, "odd names");
    for (size_t i = 0; i < LEN(kind) && n; i++) {
        struct lora_key k;
        lora_key_parse(&k, n, kind[i][0]);
        ok &= k.role == LORA_KEY_REFUSED && k.kind && strstr(k.kind, kind[i][1]);
    }
    tap_ok(ok, "other adapters by their names");
    lora_names_free(n);
    n = NULL;
    tap_ok(lora_names_new(&n, &(struct unet_config){ .n_stage = 7, .layers_per_block = 2 }, &e) == E_ARG && !n,
           "refused: %s", e.text);
}

/* ---- files that say it in other ways ---- */

static const float two_by_two[] = { 1, 2, 3, 4 };

static struct safetensors_item item(const char *name, int n_dim, int64_t a, int64_t b)
{
    return (struct safetensors_item){ name, STORED_F32, n_dim, { a, b, 1, 1 }, two_by_two };
}

#define TARGET "mid_block.attentions.0.proj_in"

/* The scale of the only pair in a file, or -1. */
static double scale_of(const char *path)
{
    struct lora_file *f = open_file(path);
    const double scale = f && f->lora.n == 1 ? f->lora.delta[0].scale : -1;

    lora_file_close(f);
    return scale;
}

static void test_scales(void)
{
    const struct safetensors_item peft[] = { item("base_model.model." TARGET ".lora_A.weight", 2, 2, 2),
                                             item("base_model.model." TARGET ".lora_B.weight", 2, 2, 2) };
    const struct safetensors_item plain[] = { item("unet." TARGET ".lora_A.weight", 2, 2, 2),
                                              item("unet." TARGET ".lora_B.weight", 2, 2, 2),
                                              item("unet." TARGET ".alpha", 0, 1, 1) };
    const char *path = base_path("scale.safetensors"), *beside = base_path("adapter_config.json");
    const char *meta[] = { "lora_adapter_metadata", NULL, NULL };
    struct lora_file *f = NULL;
    struct err e = { 0 };
    bool ok = !safetensors_write(path, peft, 2, NULL, &e);

    ok &= lora_file_open(&f, path, &small, &e) == E_IO && strstr(e.text, "adapter_config.json");
    base_text(beside, "{\"lora_alpha\":6,\"r\":2,\"use_dora\":false,\"alpha_pattern\":{}}");
    ok &= fabs(scale_of(path) - 3) < 1e-12;
    base_text(beside, "{\"lora_alpha\":6,\"use_rslora\":true}");
    ok &= fabs(scale_of(path) - 6 / sqrt(2)) < 1e-12;
    base_text(beside, "{\"r\":2}");
    ok &= fabs(scale_of(path) - 1) < 1e-12;
    base_text(beside, "{\"use_dora\":true}");
    ok &= lora_file_open(&f, path, &small, &e) == E_FORMAT && strstr(e.text, "use_dora true");
    base_text(beside, "{\"alpha_pattern\":{\"proj_in\":4}}");
    ok &= lora_file_open(&f, path, &small, &e) == E_FORMAT && strstr(e.text, "alpha_pattern");
    tap_ok(ok && !f, "peft: the scale is beside the file; %s", e.text);

    meta[1] = "{\"unet.lora_alpha\":5,\"unet.use_rslora\":false,\"text_encoder.lora_alpha\":9}";
    ok = !safetensors_write(path, plain, 2, meta, &e) && fabs(scale_of(path) - 2.5) < 1e-12;
    meta[1] = "{\"text_encoder.lora_alpha\":9}";
    ok &= !safetensors_write(path, plain, 2, meta, &e) && fabs(scale_of(path) - 1) < 1e-12;
    ok &= !safetensors_write(path, plain, 3, meta, &e) && fabs(scale_of(path) - 0.5) < 1e-12;
    meta[1] = "{\"unet.use_dora\":true}";
    ok &= !safetensors_write(path, plain, 2, meta, &e);
    ok &= lora_file_open(&f, path, &small, &e) == E_FORMAT && strstr(e.text, "use_dora");
    tap_ok(ok && !f, "diffusers: the scale is in the metadata, or a tensor");
}

static void test_two_adapters(void)
{
    const struct safetensors_item two[] = {
        item("unet." TARGET ".lora_A.a.weight", 2, 2, 2), item("unet." TARGET ".lora_B.a.weight", 2, 2, 2),
        item("unet." TARGET ".lora_A.b.weight", 2, 1, 2), item("unet." TARGET ".lora_B.b.weight", 2, 2, 1),
        item("something.else", 1, 4, 1),
    };
    static const float want[] = { 7 + 1, 10 + 2, 15 + 2, 22 + 4 };
    const char *path = base_path("two.safetensors");
    struct lora_set set = { .n = 1 };
    struct lora_file *f = NULL;
    struct err e = { 0 };
    float w[4] = { 0 };
    bool ok = !safetensors_write(path, two, 5, NULL, &e) && !lora_file_open(&f, path, &small, &e);

    if (tap_ok(ok && f->lora.n == 2 && f->n_other == 1, "two adapters for one layer, and something else %s", e.text)) {
        set.use[0] = (struct lora_use){ &f->lora, 1 };
        tap_ok(!lora_add(&set, LORA_UNET, TARGET ".weight", w, 2, 2, &work, &e) && !memcmp(w, want, sizeof w),
               "both are added");
    }
    lora_file_close(f);
}

static void test_refused(void)
{
    static const float wrong = INFINITY;
    const struct {
        struct safetensors_item item[3];
        const char *why;
    } bad[] = {
        { { item("conv_in.weight", 2, 2, 2) }, "nothing in the file is a LoRA" },
        { { item(TARGET ".lora_A.weight", 2, 2, 2) }, "has no up beside it" },
        { { item(TARGET ".lora_B.weight", 2, 2, 2) }, "has no down beside it" },
        { { item(TARGET ".alpha", 0, 1, 1) }, "has no down beside it" },
        { { item(TARGET ".lora_A.weight", 2, 2, 2), item(TARGET ".lora_B.weight", 2, 4, 1) }, "no common rank" },
        { { item(TARGET ".lora_A.weight", 2, 0, 2), item(TARGET ".lora_B.weight", 2, 2, 0) }, "no common rank" },
        { { item(TARGET ".lora_A.weight", 1, 4, 1), item(TARGET ".lora_B.weight", 2, 2, 2) }, "no common rank" },
        { { item(TARGET ".lora_A.weight", 3, 2, 2), item(TARGET ".lora_B.weight", 2, 2, 2) }, "no common rank" },
        { { item(TARGET ".lora_A.weight", 2, 2, 2), item(TARGET ".lora_B.weight", 2, 2, 2),
            item(TARGET ".lora.down.weight", 2, 2, 2) }, "say the same" },
        { { item(TARGET ".lora_A.weight", 2, 2, 2), item(TARGET ".lora_B.weight", 2, 2, 2),
            item(TARGET ".alpha", 1, 2, 1) }, "no single number" },
        { { item(TARGET ".lora_A.weight", 2, 2, 2), item(TARGET ".lora_B.weight", 2, 2, 2),
            { TARGET ".alpha", STORED_F32, 0, { 0 }, &wrong } }, "not finite" },
        { { item("unet.down_blocks.7.resnets.0.conv1.lora_A.weight", 2, 2, 2) }, "for another base model" },
        { { item("lora_unet_conv_in.lokr_w1", 2, 2, 2) }, "of a LoKr, which is not supported" },
    };
    const char *path = base_path("refused.safetensors");

    for (size_t i = 0; i < LEN(bad); i++) {
        struct lora_file *f = NULL;
        struct err e = { 0 };
        int n = 0, rc;

        while (n < 3 && bad[i].item[n].name)
            n++;
        if (safetensors_write(path, bad[i].item, n, NULL, &e))
            tap_note("%s", e.text);
        rc = lora_file_open(&f, path, &small, &e);
        tap_ok(rc == E_FORMAT && !f && strstr(e.text, bad[i].why) && lora_file_open(&f, path, &small, NULL) == rc,
               "refused: %s", e.text);
        lora_file_close(f);
    }
}

static void test_no_memory(void)
{
    long n = 0, failed = 0;
    bool ok = true;

    for (long at = 1; n == 0; at++) {
        struct lora_file *f = NULL;
        struct err e = { 0 };
        int rc;

        arena_fault_at(at);
        rc = lora_file_open(&f, "tests/reference/lora/kohya.safetensors", &small, &e);
        n = arena_fault_count() < at ? at : 0;
        arena_fault_at(0);
        ok &= rc == OK ? f != NULL : rc == E_NOMEM && !f && e.code == E_NOMEM;
        failed += rc != OK;
        lora_file_close(f);
    }
    tap_ok(ok && failed > 100, "out of memory, %ld times", failed);
}

int main(void)
{
    struct golden *g = golden_open("tests/reference/lora/delta.safetensors");
    struct err e = { 0 };

    if (arena_init(&work, "work", ARENA_HOST, (size_t)1 << 30, &e))
        exit(1);
    test_layouts(g);
    test_sum(g);
    test_parts();
    test_null_arena();
    test_names();
    test_odd_names();
    test_scales();
    test_two_adapters();
    test_refused();
    test_no_memory();
    arena_free(&work);
    golden_close(g);
    return tap_done();
}
