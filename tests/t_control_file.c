/* tests/t_control_file.c: ControlNets as files: every layout gives the same names, sizes and bits; the published ones
 * of full size, for SD1.5 and SD2, have the tensors that the network wants, in both layouts; what is none, or is for
 * another base, is refused in a sentence. Files of full size are holes (tests/base_kit.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/checkpoint_keys.h"
#include "store/controlnet_file.h"
#include "tests/base_kit.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

/* ---- tiny ones: bits ---- */

static bool same_table(const struct weights *a, const struct weights *b)
{
    static float x[1 << 17], y[1 << 17];
    struct err e;

    for (int i = 0; i < a->n; i++) {
        const struct weights_entry *v = &a->entry[i], *w = &b->entry[i];

        if (a->n != b->n || strcmp(v->name, w->name) || weights_count(v) != weights_count(w)
            || weights_count(v) > (int64_t)LEN(x) || weights_read(v, x, F32, &e) || weights_read(w, y, F32, &e)
            || memcmp(x, y, sizeof *x * (size_t)weights_count(v)))
            return false;
    }
    return a->n > 100;
}

static bool same_config(const struct controlnet_config *a, const struct controlnet_config *b)
{
    bool same = a->n_hint == b->n_hint && a->unet.n_stage == b->unet.n_stage
        && a->unet.layers_per_block == b->unet.layers_per_block && a->unet.in_channels == b->unet.in_channels
        && a->unet.cross_attention_dim == b->unet.cross_attention_dim
        && a->unet.norm_num_groups == b->unet.norm_num_groups;

    for (int i = 0; i < a->n_hint; i++)
        same &= a->hint[i] == b->hint[i];
    for (int i = 0; i < a->unet.n_stage; i++)
        same &= a->unet.width[i] == b->unet.width[i] && a->unet.heads[i] == b->unet.heads[i]
            && a->unet.down_attends[i] == b->unet.down_attends[i];
    return same;
}

static void test_layouts(void)
{
    const struct unet_config u = tiny_unet_config("sd1");
    const struct controlnet_config c = tiny_control_config();
    struct tiny *m = tiny_open("sd1", "control");
    const char *const path[] = { base_path("c1"), base_path("c1.safetensors"), base_path("c1.pth"),
                                 base_path("whole.ckpt"), base_path("ours.safetensors") };
    bool ok = !tiny_write_control("control", path[0]);

    for (int i = 1; i < 5; i++)
        ok &= !tiny_write_control_single("control", path[i], i < 4, i == 3);
    for (size_t i = 0; i < LEN(path); i++) {
        struct controlnet_file *f = NULL;
        struct err e = { 0 };

        ok &= !controlnet_file_open(&f, path[i], NULL, &u, &e) && same_table(&f->weights, &m->table)
            && same_config(&f->config, &c);
        tap_ok(ok, "%s has the names, sizes and bits of the others %s", strrchr(path[i], '/') + 1, e.text);
        controlnet_file_close(f);
    }
    tiny_close(m);
}

/* ---- published ones: names and sizes ---- */

static struct keys *keys;

enum layout { DIRECTORY, PREFIXED, PLAIN, OURS };

static const char *const config_json[2] = {
    "{\"_class_name\":\"ControlNetModel\",\"attention_head_dim\":8,\"cross_attention_dim\":768}",
    "{\"_class_name\":\"ControlNetModel\",\"attention_head_dim\":[5,10,20,20],\"cross_attention_dim\":1024,"
    "\"use_linear_projection\":true}",
};

/* All tensors but `without`, which stands in the list under its diffusers' name; returns the path to open. */
static const char *write_full(enum layout l, bool two, const char *without)
{
    const char *dir = base_path("full"), *path = l == DIRECTORY ? base_path("full/diffusion_pytorch_model.safetensors")
                                                                : base_path("full.safetensors");
    struct hole h = { NULL, 0, 0, 0 };
    char name[256];

    for (int i = 0; i < keys->n; i++) {
        const struct keys_row *r = &keys->row[i];

        snprintf(name, sizeof name, "%s%s", l == PREFIXED ? "control_model." : "",
                 l == PREFIXED || l == PLAIN ? r->original : r->name);
        if (!without || strcmp(without, r->name))
            hole_add(&h, name, two ? &r->two : &r->one);
    }
    if (l == DIRECTORY) {
        if (access(dir, F_OK))
            base_mkdir(dir);
        base_text(base_path("full/config.json"), config_json[two]);
    }
    hole_write(&h, path);
    return l == DIRECTORY ? dir : path;
}

/* Everything is there, has the right sizes, and nothing is left over: the network says so. */
static int build(const struct controlnet_file *f, struct err *e)
{
    struct model_memory mem;
    struct controlnet *c;
    struct device dev;
    struct layers l;
    int rc = device_open(&dev, "null:portable", 1, e);

    rc = rc ? rc : model_memory_init(&mem, &dev, 0, e);
    if (rc)
        return rc;
    layers_init(&l, &dev, F16, &mem, &f->weights);
    rc = controlnet_new(&c, &f->config, &l, e);
    model_memory_free(&mem);
    device_close(&dev);
    return rc;
}

static void test_full(enum layout l, bool two)
{
    static const char *const name[] = { "a directory", "one file", "one file without control_model.",
                                        "one file with diffusers' names" };
    const struct unet_config u = two ? unet_config_sd2() : unet_config_sd15();
    struct controlnet_config c = controlnet_config_sd15();
    struct controlnet_file *f = NULL;
    struct err e = { 0 };
    int rc = controlnet_file_open(&f, write_full(l, two, NULL), NULL, &u, &e);

    c.unet = u;
    tap_ok(!rc && f->weights.n == keys->n && same_config(&f->config, &c) && !build(f, &e),
           "SD%s, %s: %d tensors, and the network wants no others %s", two ? "2" : "1.5", name[l], keys->n, e.text);
    controlnet_file_close(f);
}

/* ---- what is refused ---- */

static void refused(const char *path, const struct unet_config *u, int code, const char *why)
{
    struct controlnet_file *f = NULL;
    struct err e = { 0 };
    int rc = controlnet_file_open(&f, path, NULL, u, &e);

    if (!rc)
        rc = build(f, &e);
    tap_ok(rc == code && strstr(e.text, why) && !strchr(e.text, '\n'), "refused: %s", e.text);
    controlnet_file_close(f);
}

static void test_refused(void)
{
    static const struct {
        const char *name, *why;
    } file[] = {
        { "lora_controlnet", "a Control-LoRA, which is not supported" },
        { "difference", "only the difference to a base" },
        { "mid.lora_down.weight", "no ControlNet in it; it seems to be a LoRA" },
        { "model.diffusion_model.conv_in.weight", "no ControlNet in it; it seems to be a base model" },
        { "down_blocks.0.resnets.0.conv1.weight", "the UNet of a diffusers directory alone" },
        { "something", "there is no ControlNet in it" },
        { "control_model.", "there is no tensor 'conv_in.weight'" },
        { "control_model.input_hint_block.0.weight", "there is no tensor 'conv_in.weight'" },
        { "control_model.input_blocks.999.0.op.weight", "there is no tensor 'conv_in.weight'" },
        { "controlnet_cond_embedding.conv_in.weight", "there is no tensor 'conv_in.weight'" },
    };
    static const struct {
        const char *json, *why;
    } conf[] = {
        { "{\"_class_name\":\"UNet2DConditionModel\"}", "_class_name" },
        { "{\"controlnet_conditioning_channel_order\":\"bgr\"}", "bgr" },
        { "{\"global_pool_conditions\":true}", "global_pool_conditions" },
        { "{\"conditioning_channels\":4}", "conditioning_channels" },
        { "{\"conditioning_embedding_out_channels\":[1,2,3,4,5,6,7,8,9]}", "conditioning_embedding_out_channels" },
        { "{\"conditioning_embedding_out_channels\":[16,0]}", "conditioning_embedding_out_channels" },
        { "{\"cross_attention_dim\":1024}", "a text width of 1024, the base 768: it is made for another base" },
        { "{\"cross_attention_dim\":768,\"block_out_channels\":[320,640,640,1280]}", "made for another base" },
        { "{\"cross_attention_dim\":768,\"layers_per_block\":1}", "made for another base" },
        { "[]", "object" },
    };
    const struct unet_config u = unet_config_sd15(), two = unet_config_sd2();
    struct hole h = { NULL, 0, 0, 0 };

    for (size_t i = 0; i < LEN(file); i++) {
        const char *path = base_path("other.safetensors");

        hole_add(&h, file[i].name, &(struct sizes){ 1, { 4 } });
        hole_write(&h, path);
        refused(path, &u, E_FORMAT, file[i].why);
    }
    for (size_t i = 0; i < LEN(conf); i++) {
        const char *dir = write_full(DIRECTORY, false, NULL);

        base_text(base_path("full/config.json"), conf[i].json);
        refused(dir, &u, E_FORMAT, conf[i].why);
    }
    refused(write_full(PREFIXED, true, NULL), &u, E_FORMAT, "made for another base");
    refused(write_full(DIRECTORY, false, NULL), &two, E_FORMAT, "made for another base");
    refused(write_full(PREFIXED, false, "controlnet_mid_block.weight"), &u, E_FORMAT, "controlnet_mid_block.weight");
    refused(write_full(OURS, false, "controlnet_down_blocks.11.bias"), &u, E_FORMAT, "controlnet_down_blocks.11.bias");
    refused(write_full(PLAIN, false, "controlnet_cond_embedding.blocks.3.weight"), &u, E_FORMAT,
            "do not fit the ControlNet");
}

static void test_missing(void)
{
    const struct unet_config u = unet_config_sd15();

    refused(base_path("nowhere"), &u, E_IO, "No such file");
    base_mkdir(base_path("bare"));
    refused(base_path("bare"), &u, E_IO, "config.json");
    base_text(base_path("bare/config.json"), config_json[0]);
    refused(base_path("bare"), &u, E_IO, "diffusion_pytorch_model");
    base_text(base_path("bare/model_index.json"), "{}");
    refused(base_path("bare"), &u, E_FORMAT, "a base model, not a ControlNet");
    base_text(base_path("text.pth"), "no weights");
    refused(base_path("text.pth"), &u, E_FORMAT, "text.pth");
}

int main(void)
{
    keys = keys_of_controls();
    base_dir();
    test_layouts();
    for (int two = 0; two < 2; two++)
        for (int l = DIRECTORY; l <= OURS; l++)
            test_full((enum layout)l, two);
    test_refused();
    test_missing();
    keys_close(keys);
    return tap_done();
}
