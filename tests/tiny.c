#include "tests/tiny.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/aside.h"
#include "store/safetensors.h"
#include "store/torch_save.h"
#include "tests/golden.h"

enum { MAX_TENSOR = 1024 };

static void die(const char *what)
{
    printf("Bail out! tests/reference/tiny.txt: %s\n", what);
    exit(1);
}

/* tiny.py, values() */
static void draw(float *v, const struct weights_entry *w, const char *part, const char *full)
{
    const int64_t n = weights_count(w);
    const int quiet = !strcmp(part, "unet") && !strncmp(w->name, "conv_out", 8);
    int64_t fan_in = 1;

    for (int i = 1; i < w->n_dim; i++)
        fan_in *= w->dim[i];
    if (strstr(w->name, "norm") && !strcmp(w->name + strlen(w->name) - 6, "weight")) {
        golden_draw(v, n, full, GOLDEN_SEED, 0.125);
        for (int64_t i = 0; i < n; i++)
            v[i] += 1;
    } else if (w->n_dim == 1)
        golden_draw(v, n, full, GOLDEN_SEED, 0.0625);
    else if (!strcmp(part, "text") && strstr(w->name, "embedding"))
        golden_draw(v, n, full, GOLDEN_SEED, 0.5);
    else
        golden_draw(v, n, full, GOLDEN_SEED, exp2(-rint(log2((double)fan_in) / 2) - quiet));
}

static void add(struct tiny *m, const char *model, const char *part, const char *key, char *sizes)
{
    struct weights_entry *w = &m->table.entry[m->table.n];
    char full[320], *end = sizes;
    int64_t stride = 1;

    if (m->table.n == MAX_TENSOR)
        die("too many tensors");
    w->name = strdup(key);
    while (*end && *end != '\n' && w->n_dim < WEIGHTS_MAX_DIM)
        w->dim[w->n_dim++] = strtoll(end, &end, 10);
    for (int i = w->n_dim - 1; i >= 0; i--) {
        w->stride[i] = stride;
        stride *= w->dim[i];
    }
    w->data = m->values[m->table.n] = malloc(sizeof(float) * (size_t)stride);
    if (!w->name || !w->data)
        die("out of memory");
    snprintf(full, sizeof full, "%s.%s.%s", model, part, key);
    draw(m->values[m->table.n], w, part, full);
    m->table.n++;
}

struct tiny *tiny_open(const char *model, const char *part)
{
    struct tiny *m = calloc(1, sizeof *m);
    FILE *f = fopen("tests/reference/tiny.txt", "r");
    char line[800], a[16], b[16], key[256], original[256];
    int at;

    if (!m || !f || !(m->table.entry = calloc(MAX_TENSOR, sizeof *m->table.entry))
        || !(m->values = calloc(MAX_TENSOR, sizeof *m->values))
        || !(m->original = calloc(MAX_TENSOR, sizeof *m->original)))
        die("cannot be read");
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%15s %15s %255s %255s%n", a, b, key, original, &at) == 4 && !strncmp(a, model, 3)
            && !strncmp(b, part, strlen(b)) && (!part[strlen(b)] || part[strlen(b)] == '2')) {
            m->original[m->table.n] = strdup(original);
            add(m, model, part, key, line + at);
        }
    fclose(f);
    m->table.path = "tiny";
    if (!m->table.n)
        die("nothing of that model");
    m->n = m->table.n;
    m->file_order = malloc(sizeof *m->file_order * (size_t)m->n);
    if (!m->file_order)
        die("out of memory");
    memcpy(m->file_order, m->table.entry, sizeof *m->file_order * (size_t)m->n);
    if (weights_sort(&m->table, NULL))
        die("a name comes twice");
    return m;
}

void tiny_close(struct tiny *m)
{
    for (int i = 0; i < m->table.n; i++) {
        free((void *)(uintptr_t)m->table.entry[i].name);
        free(m->values[i]);
        free(m->original[i]);
    }
    free(m->original);
    free(m->file_order);
    free(m->table.entry);
    free(m->values);
    free(m);
}

struct unet_config tiny_unet_config(const char *model)
{
    const bool sd2 = !strcmp(model, "sd2");
    struct unet_config c = sd2 ? unet_config_sd2() : unet_config_sd15();
    static const int64_t width[] = { 32, 64, 64, 96 }, heads[] = { 2, 4, 4, 6 };

    for (int i = 0; i < 4; i++) {
        c.width[i] = width[i];
        c.heads[i] = sd2 ? heads[i] : 8;
    }
    c.cross_attention_dim = 64;
    c.sample_size = 8;
    return c;
}

struct controlnet_config tiny_control_config(void)
{
    return (struct controlnet_config){ .unet = tiny_unet_config("sd1"), .n_hint = 4, .hint = { 8, 16, 16, 32 } };
}

struct vae_config tiny_vae_config(const char *model)
{
    const bool sd2 = !strcmp(model, "sd2");
    struct vae_config c = vae_config_sd15();
    static const int64_t width[] = { 32, 64, 64, 96 };

    for (int i = 0; i < 4; i++)
        c.width[i] = width[i];
    c.n_stage = sd2 ? 2 : 4;
    c.layers_per_block = sd2 ? 1 : 2;
    c.sample_size = sd2 ? 32 : 64;
    return c;
}

struct clip_text_config tiny_text_config(const char *model)
{
    const bool sd2 = !strcmp(model, "sd2");
    struct clip_text_config c = sd2 ? clip_text_config_sd2() : clip_text_config_sd15();

    c.hidden_size = 64;
    c.intermediate_size = sd2 ? 96 : 112;
    c.num_hidden_layers = sd2 ? 2 : 3;
    c.num_attention_heads = sd2 ? 2 : 1;
    return c;
}

/* ---- on disk ---- */

static int write_text(const char *directory, const char *name, const char *text)
{
    char path[8192];
    struct err e;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    return aside_write(path, text, strlen(text), &e);
}

/* The n tensors of m, named by name[], appended to item[]. */
static int items(struct safetensors_item *item, const struct tiny *m, char *const *name)
{
    for (int i = 0; i < m->n; i++) {
        const struct weights_entry *w = &m->file_order[i];

        item[i] = (struct safetensors_item){ .name = name ? name[i] : w->name, .type = STORED_F32, .n_dim = w->n_dim,
                                             .data = w->data };
        memcpy(item[i].dim, w->dim, sizeof w->dim);
    }
    return m->n;
}

static int write_part(const char *model, const char *part, const char *directory, const char *folder, const char *file,
                      const char *config)
{
    static struct safetensors_item item[MAX_TENSOR];
    struct tiny *m = tiny_open(model, part);
    char path[4096];
    struct err e;
    int rc;

    snprintf(path, sizeof path, "%s/%s", directory, folder);
    rc = mkdir(path, 0777) && errno != EEXIST ? E_IO : write_text(path, "config.json", config);
    snprintf(path, sizeof path, "%s/%s/%s", directory, folder, file);
    rc = rc ? rc : safetensors_write(path, item, items(item, m, NULL), NULL, &e);
    tiny_close(m);
    return rc;
}

static const char *const unet_json =
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":8,\"block_out_channels\":[32,64,64,96],"
    "\"layers_per_block\":2,\"cross_attention_dim\":64,\"attention_head_dim\":%s,\"use_linear_projection\":%s,"
    "\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\","
    "\"CrossAttnUpBlock2D\"]}";
static const char *const vae_json[2] = {
    "{\"_class_name\":\"AutoencoderKL\",\"block_out_channels\":[32,64,64,96],\"layers_per_block\":2,"
    "\"latent_channels\":4,\"sample_size\":64,\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","
    "\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}",
    "{\"_class_name\":\"AutoencoderKL\",\"block_out_channels\":[32,64],\"layers_per_block\":1,"
    "\"latent_channels\":4,\"sample_size\":32,\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],"
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}",
};
static const char *const text_json =
    "{\"architectures\":[\"CLIPTextModel\"],\"vocab_size\":49408,\"hidden_size\":64,\"intermediate_size\":%d,"
    "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"max_position_embeddings\":77,\"hidden_act\":\"%s\","
    "\"layer_norm_eps\":1e-05}";
static const char *const schedule_json =
    "{\"_class_name\":\"PNDMScheduler\",\"beta_start\":0.00085,\"beta_end\":0.012,"
    "\"beta_schedule\":\"scaled_linear\",\"num_train_timesteps\":1000,\"set_alpha_to_one\":false,"
    "\"skip_prk_steps\":true,\"steps_offset\":1,\"clip_sample\":false%s}";
static const char *const index_json =
    "{\"_class_name\":\"StableDiffusionPipeline\",\"scheduler\":[\"diffusers\",\"PNDMScheduler\"],"
    "\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],"
    "\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],\"vae\":[\"diffusers\",\"AutoencoderKL\"]}";

/* CLIP's merges, and what special_tokens_map.json says of the pad token. */
static int write_tokenizer(const char *directory, bool sd2)
{
    char path[4096], *merges;
    FILE *f = fopen("store/builtin/clip_merges.txt", "r");
    size_t n;
    struct err e;
    int rc;

    snprintf(path, sizeof path, "%s/tokenizer", directory);
    if (!f || !(merges = malloc(1 << 20)) || (mkdir(path, 0777) && errno != EEXIST))
        return E_IO;
    n = fread(merges, 1, 1 << 20, f);
    fclose(f);
    rc = write_text(path, "special_tokens_map.json",
                    sd2 ? "{\"pad_token\":\"!\"}" : "{\"pad_token\":\"<|endoftext|>\"}");
    snprintf(path, sizeof path, "%s/tokenizer/merges.txt", directory);
    rc = rc ? rc : aside_write(path, merges, n, &e);
    free(merges);
    return rc;
}

int tiny_write(const char *model, const char *directory)
{
    const bool sd2 = !strcmp(model, "sd2");
    char json[2048], path[4096];
    int rc = mkdir(directory, 0777) && errno != EEXIST ? E_IO : write_text(directory, "model_index.json", index_json);

    snprintf(json, sizeof json, unet_json, sd2 ? "[2,4,4,6]" : "8", sd2 ? "true" : "false");
    rc = rc ? rc : write_part(model, "unet", directory, "unet", "diffusion_pytorch_model.safetensors", json);
    rc = rc ? rc : write_part(model, "vae", directory, "vae", "diffusion_pytorch_model.safetensors", vae_json[sd2]);
    snprintf(json, sizeof json, text_json, sd2 ? 96 : 112, sd2 ? 2 : 3, sd2 ? 2 : 1, sd2 ? "gelu" : "quick_gelu");
    rc = rc ? rc : write_part(model, "text", directory, "text_encoder", "model.safetensors", json);
    snprintf(path, sizeof path, "%s/scheduler", directory);
    snprintf(json, sizeof json, schedule_json, sd2 ? ",\"prediction_type\":\"v_prediction\"" : "");
    if (!rc && mkdir(path, 0777) && errno != EEXIST)
        rc = E_IO;
    rc = rc ? rc : write_text(path, "scheduler_config.json", json);
    return rc ? rc : write_tokenizer(directory, sd2);
}

static const char *const control_json =
    "{\"_class_name\":\"ControlNetModel\",\"block_out_channels\":[32,64,64,96],\"layers_per_block\":2,"
    "\"cross_attention_dim\":64,\"attention_head_dim\":8,\"use_linear_projection\":false,"
    "\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"DownBlock2D\"],\"conditioning_embedding_out_channels\":[8,16,16,32],"
    "\"controlnet_conditioning_channel_order\":\"rgb\"}";

int tiny_write_control(const char *part, const char *directory)
{
    return mkdir(directory, 0777) && errno != EEXIST ? E_IO
        : write_part("sd1", part, directory, ".", "diffusion_pytorch_model.safetensors", control_json);
}

static int save(const char *path, const struct safetensors_item *item, int n)
{
    struct err e;

    if (strlen(path) > 5 && (!strcmp(path + strlen(path) - 5, ".ckpt") || !strcmp(path + strlen(path) - 4, ".pth")))
        return torch_save(path, item, n, &e);
    return safetensors_write(path, item, n, NULL, &e);
}

int tiny_write_control_single(const char *part, const char *path, bool original, bool with_base)
{
    static struct safetensors_item item[2 * MAX_TENSOR];
    struct tiny *m = tiny_open("sd1", part), *base = tiny_open("sd1", "unet");
    int n = items(item, m, original ? m->original : NULL), rc;

    if (with_base)
        n += items(item + n, base, base->original);
    rc = save(path, item, n);
    tiny_close(base);
    tiny_close(m);
    return rc;
}

int tiny_write_single(const char *model, const char *path)
{
    static struct safetensors_item item[3 * MAX_TENSOR];
    static const char *const part[] = { "unet", "vae", "text" };
    struct tiny *m[3];
    int n = 0, rc;

    for (int i = 0; i < 3; i++) {
        m[i] = tiny_open(model, part[i]);
        n += items(item + n, m[i], m[i]->original);
    }
    rc = save(path, item, n);
    for (int i = 0; i < 3; i++)
        tiny_close(m[i]);
    return rc;
}
