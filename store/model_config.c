/* store/model_config.c: the JSON configurations of a diffusers directory, checked. A key that is missing has the value
 * that diffusers gives it; a value that would need code which is not here is refused by its name. Keys that only
 * concern training or another library are passed over. */
#include <inttypes.h>
#include <string.h>

#include "store/base_model.h"
#include "store/controlnet_file.h"
#include "store/json_conf.h"

enum { MAX_WIDTH = 1 << 15, MAX_CHANNELS = 256, MAX_HEADS = 1 << 10, MAX_SIDE = 1 << 16, MAX_GROUPS = 1 << 10 };

struct only {
    const char *key, *value, *also;
};

static void only(struct json_conf *c, const struct only *table, int n)
{
    for (int i = 0; i < n; i++)
        json_conf_only(c, table[i].key, table[i].value, table[i].also);
}

#define ONLY(c, table) only(c, table, (int)(sizeof(table) / sizeof *(table)))

/* A list that has to hold one value n times, or that value alone. */
static int64_t all_same(struct json_conf *c, const char *key, int64_t otherwise, int64_t hi)
{
    int64_t value[16] = { 0 };
    const int n = json_conf_ints(c, key, value, 16, 1, hi);

    for (int i = 1; i < n; i++)
        if (value[i] != value[0])
            json_conf_fail(c, "%s with different values (%" PRId64 ", %" PRId64 ") is not supported", key, value[0],
                           value[i]);
    return n ? value[0] : otherwise;
}

/* sample_size: one side, or two that are the same as far as we care. */
static int64_t side(struct json_conf *c)
{
    int64_t value[2] = { 0 };

    json_conf_ints(c, "sample_size", value, 2, 0, MAX_SIDE);
    return value[0];
}

static int widths(struct json_conf *c, int64_t *width, int max, const int64_t *otherwise, int n_otherwise)
{
    int n;

    for (int i = 0; i < n_otherwise; i++)
        width[i] = otherwise[i];
    n = json_conf_ints(c, "block_out_channels", width, max, 1, MAX_WIDTH);
    return n ? n : n_otherwise;
}

static int64_t groups(struct json_conf *c, const int64_t *width, int n)
{
    const int64_t g = json_conf_int(c, "norm_num_groups", 32, 1, MAX_GROUPS);

    if (json_conf_has(c, "norm_num_groups") && !json_conf_get(c, "norm_num_groups"))
        json_conf_fail(c, "norm_num_groups null is not supported");
    for (int i = 0; i < n; i++)
        if (width[i] % g)
            json_conf_fail(c, "block_out_channels %" PRId64 " cannot be split into norm_num_groups %" PRId64, width[i],
                           g);
    return g;
}

/* One block type per stage: attends[i] says which of the two it is. */
static void block_types(struct json_conf *c, const char *key, const char *plain, const char *attending, bool *attends,
                        int n)
{
    int n_item = 0;
    const char *item = json_conf_item(c, key, 0, &n_item);

    if (c->rc)
        return;
    if (n_item ? n_item != n : n != 4) {        /* diffusers' default has four */
        json_conf_fail(c, "%d %s for %d block_out_channels", n_item ? n_item : 4, key, n);
        return;
    }
    for (int i = 0; i < n_item && !c->rc; i++) {
        item = json_conf_item(c, key, i, &n_item);
        if (!item)
            return;
        attends[i] = attending && !strcmp(item, attending);
        if (!attends[i] && strcmp(item, plain))
            json_conf_fail(c, "%s '%.60s' is not supported", key, item);
    }
}

/* ---- UNet2DConditionModel ---- */

static const struct only unet_only[] = {
    { "_class_name", "\"UNet2DConditionModel\"", NULL },
    { "mid_block_type", "\"UNetMidBlock2DCrossAttn\"", NULL },
    { "center_input_sample", "false", "null" },
    { "flip_sin_to_cos", "true", NULL },
    { "freq_shift", "0", NULL },
    { "only_cross_attention", "false", "null" },
    { "mid_block_only_cross_attention", "null", "false" },
    { "downsample_padding", "1", NULL },
    { "mid_block_scale_factor", "1", NULL },
    { "act_fn", "\"silu\"", "\"swish\"" },
    { "transformer_layers_per_block", "1", NULL },
    { "reverse_transformer_layers_per_block", "null", NULL },
    { "encoder_hid_dim", "null", NULL },
    { "encoder_hid_dim_type", "null", NULL },
    { "dual_cross_attention", "false", "null" },
    { "class_embed_type", "null", NULL },
    { "num_class_embeds", "null", NULL },
    { "addition_embed_type", "null", NULL },
    { "resnet_time_scale_shift", "\"default\"", NULL },
    { "resnet_skip_time_act", "false", "null" },
    { "resnet_out_scale_factor", "1", NULL },
    { "time_embedding_type", "\"positional\"", "null" },
    { "time_embedding_dim", "null", NULL },
    { "time_embedding_act_fn", "null", NULL },
    { "timestep_post_act", "null", NULL },
    { "time_cond_proj_dim", "null", NULL },
    { "conv_in_kernel", "3", NULL },
    { "conv_out_kernel", "3", NULL },
    { "attention_type", "\"default\"", "null" },
    { "class_embeddings_concat", "false", "null" },
    { "cross_attention_norm", "null", NULL },
};

/* attention_head_dim is the number of heads in spite of its name; num_attention_heads, where a file has it, is too. */
static void heads(struct json_conf *c, struct unet_config *u)
{
    const char *key = json_conf_get(c, "num_attention_heads") ? "num_attention_heads" : "attention_head_dim";
    int64_t value[UNET_MAX_STAGE] = { 8 };
    int n = json_conf_ints(c, key, value, UNET_MAX_STAGE, 1, MAX_HEADS);

    if (n > 1 && n != u->n_stage)
        json_conf_fail(c, "%d %s for %d block_out_channels", n, key, u->n_stage);
    for (int i = 0; i < u->n_stage && !c->rc; i++) {
        u->heads[i] = value[n > 1 ? i : 0];
        if (u->width[i] % u->heads[i])
            json_conf_fail(c, "%" PRId64 " heads (%s) do not divide %" PRId64 " channels", u->heads[i], key,
                           u->width[i]);
    }
}

int base_parse_unet(struct unet_config *out, const char *json, size_t n, struct err *e)
{
    static const int64_t width[] = { 320, 640, 1280, 1280 };
    struct unet_config u = { .down_attends = { true, true, true, false }, .up_attends = { false, true, true, true } };
    struct json_conf c;

    if (json_conf_open(&c, "UNet configuration", json, n, e))
        return json_conf_close(&c);
    ONLY(&c, unet_only);
    u.in_channels = json_conf_int(&c, "in_channels", 4, 1, MAX_CHANNELS);
    u.out_channels = json_conf_int(&c, "out_channels", 4, 1, MAX_CHANNELS);
    u.n_stage = widths(&c, u.width, UNET_MAX_STAGE, width, 4);
    block_types(&c, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", u.down_attends, u.n_stage);
    block_types(&c, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", u.up_attends, u.n_stage);
    heads(&c, &u);
    u.layers_per_block = (int)all_same(&c, "layers_per_block", 2, UNET_MAX_LAYERS);
    u.cross_attention_dim = all_same(&c, "cross_attention_dim", 1280, MAX_WIDTH);
    u.use_linear_projection = json_conf_bool(&c, "use_linear_projection", false);
    json_conf_bool(&c, "upcast_attention", false);      /* scores are always f32 */
    u.norm_num_groups = groups(&c, u.width, u.n_stage);
    u.norm_eps = (float)json_conf_number(&c, "norm_eps", 1e-5, 1e-12, 1);
    u.sample_size = side(&c);
    if (!c.rc)
        *out = u;
    return json_conf_close(&c);
}

/* ---- ControlNetModel: the UNet's way down ---- */

static const struct only control_only[] = {
    { "_class_name", "\"ControlNetModel\"", NULL },
    { "conditioning_channels", "3", NULL },
    { "mid_block_type", "\"UNetMidBlock2DCrossAttn\"", NULL },
    { "flip_sin_to_cos", "true", NULL },
    { "freq_shift", "0", NULL },
    { "only_cross_attention", "false", "null" },
    { "downsample_padding", "1", NULL },
    { "mid_block_scale_factor", "1", NULL },
    { "act_fn", "\"silu\"", "\"swish\"" },
    { "transformer_layers_per_block", "1", NULL },
    { "encoder_hid_dim", "null", NULL },
    { "encoder_hid_dim_type", "null", NULL },
    { "class_embed_type", "null", NULL },
    { "num_class_embeds", "null", NULL },
    { "addition_embed_type", "null", NULL },
    { "resnet_time_scale_shift", "\"default\"", NULL },
    { "controlnet_conditioning_channel_order", "\"rgb\"", NULL },
    { "global_pool_conditions", "false", "null" },
};

int controlnet_parse(struct controlnet_config *out, const char *json, size_t n, struct err *e)
{
    static const int64_t width[] = { 320, 640, 1280, 1280 };
    struct controlnet_config m = controlnet_config_sd15();
    struct unet_config u = { .out_channels = 1, .down_attends = { true, true, true, false } };
    struct json_conf c;
    int n_hint;

    if (json_conf_open(&c, "ControlNet configuration", json, n, e))
        return json_conf_close(&c);
    ONLY(&c, control_only);
    u.in_channels = json_conf_int(&c, "in_channels", 4, 1, MAX_CHANNELS);
    u.n_stage = widths(&c, u.width, UNET_MAX_STAGE, width, 4);
    block_types(&c, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", u.down_attends, u.n_stage);
    heads(&c, &u);
    u.layers_per_block = (int)json_conf_int(&c, "layers_per_block", 2, 1, UNET_MAX_LAYERS);
    u.cross_attention_dim = json_conf_int(&c, "cross_attention_dim", 1280, 1, MAX_WIDTH);
    u.use_linear_projection = json_conf_bool(&c, "use_linear_projection", false);
    u.norm_num_groups = groups(&c, u.width, u.n_stage);
    u.norm_eps = (float)json_conf_number(&c, "norm_eps", 1e-5, 1e-12, 1);
    n_hint = json_conf_ints(&c, "conditioning_embedding_out_channels", m.hint, CONTROLNET_MAX_HINT, 1, MAX_WIDTH);
    m.n_hint = n_hint ? n_hint : m.n_hint;
    m.unet = u;
    if (!c.rc)
        *out = m;
    return json_conf_close(&c);
}

/* ---- AutoencoderKL ---- */

static const struct only vae_only[] = {
    { "_class_name", "\"AutoencoderKL\"", NULL },
    { "act_fn", "\"silu\"", "\"swish\"" },
    { "latents_mean", "null", NULL },
    { "latents_std", "null", NULL },
    { "shift_factor", "null", "0" },
    { "use_quant_conv", "true", NULL },
    { "use_post_quant_conv", "true", NULL },
    { "mid_block_add_attention", "true", NULL },
    { "down_block_types", "\"DownEncoderBlock2D\"", NULL },
    { "up_block_types", "\"UpDecoderBlock2D\"", NULL },
};

/* As many block types as widths; diffusers' default has one. */
static void vae_count(struct json_conf *c, const char *key, int n_stage)
{
    int n;

    json_conf_item(c, key, 0, &n);
    n = n ? n : 1;
    if (n != n_stage)
        json_conf_fail(c, "%d %s for %d block_out_channels", n, key, n_stage);
}

int base_parse_vae(struct vae_config *out, const char *json, size_t n, struct err *e)
{
    static const int64_t width[] = { 64 };
    struct vae_config v = { 0 };
    struct json_conf c;

    if (json_conf_open(&c, "VAE configuration", json, n, e))
        return json_conf_close(&c);
    ONLY(&c, vae_only);
    v.in_channels = json_conf_int(&c, "in_channels", 3, 1, MAX_CHANNELS);
    v.out_channels = json_conf_int(&c, "out_channels", 3, 1, MAX_CHANNELS);
    v.latent_channels = json_conf_int(&c, "latent_channels", 4, 1, MAX_CHANNELS);
    v.n_stage = widths(&c, v.width, VAE_MAX_STAGE, width, 1);
    vae_count(&c, "down_block_types", v.n_stage);
    vae_count(&c, "up_block_types", v.n_stage);
    v.layers_per_block = (int)json_conf_int(&c, "layers_per_block", 1, 1, 8);
    v.norm_num_groups = groups(&c, v.width, v.n_stage);
    v.scaling_factor = (float)json_conf_number(&c, "scaling_factor", 0.18215, 1e-6, 1e6);
    v.sample_size = side(&c);
    if (!c.rc)
        *out = v;
    return json_conf_close(&c);
}

/* ---- CLIPTextModel ---- */

static const struct only text_only[] = {
    { "model_type", "\"clip_text_model\"", NULL },
    { "architectures", "\"CLIPTextModel\"", "\"CLIPTextModelWithProjection\"" },
};

int base_parse_text(struct clip_text_config *out, const char *json, size_t n, struct err *e)
{
    static const char *const act[] = { "quick_gelu", "gelu", NULL };
    struct clip_text_config t = { 0 };
    struct json_conf c;

    if (json_conf_open(&c, "text encoder configuration", json, n, e))
        return json_conf_close(&c);
    ONLY(&c, text_only);
    t.vocab_size = json_conf_int(&c, "vocab_size", 49408, 3, 1 << 24);
    t.max_position_embeddings = json_conf_int(&c, "max_position_embeddings", 77, 2, 1 << 16);
    t.hidden_size = json_conf_int(&c, "hidden_size", 512, 1, MAX_WIDTH);
    t.intermediate_size = json_conf_int(&c, "intermediate_size", 2048, 1, 4 * MAX_WIDTH);
    t.num_hidden_layers = (int)json_conf_int(&c, "num_hidden_layers", 12, 1, CLIP_TEXT_MAX_LAYER);
    t.num_attention_heads = json_conf_int(&c, "num_attention_heads", 8, 1, MAX_HEADS);
    t.act = json_conf_choice(&c, "hidden_act", act, 0) ? K_ACT_GELU : K_ACT_QUICK_GELU;
    t.layer_norm_eps = (float)json_conf_number(&c, "layer_norm_eps", 1e-5, 1e-12, 1);
    if (!c.rc && t.hidden_size % t.num_attention_heads)
        json_conf_fail(&c, "%" PRId64 " num_attention_heads do not divide hidden_size %" PRId64,
                       t.num_attention_heads, t.hidden_size);
    if (!c.rc)
        *out = t;
    return json_conf_close(&c);
}

/* ---- scheduler_config.json, of whichever class ---- */

static const struct only schedule_only[] = {
    { "trained_betas", "null", NULL },          { "thresholding", "false", "null" },
    { "use_exponential_sigmas", "false", "null" }, { "use_beta_sigmas", "false", "null" },
    { "sigma_data", "null", NULL },             { "shift", "null", "1" },
};

/* Missing keys have the defaults of DDIMScheduler, as if its from_config had read the file. */
int base_parse_schedule(struct schedule_config *out, const char *json, size_t n, struct err *e)
{
    static const char *const beta[] = { "linear", "scaled_linear", "squaredcos_cap_v2", NULL };
    static const char *const prediction[] = { "epsilon", "v_prediction", "sample", NULL };
    static const char *const spacing[] = { "", "leading", "linspace", "trailing", NULL };
    struct schedule_config s = { 0 };
    struct json_conf c;
    const char *name;

    if (json_conf_open(&c, "scheduler configuration", json, n, e))
        return json_conf_close(&c);
    name = json_conf_text(&c, "_class_name", "");
    if (strstr(name, "FlowMatch") || strstr(name, "EDM"))
        json_conf_fail(&c, "a %.60s is not supported", name);
    ONLY(&c, schedule_only);
    s.n_train = (int)json_conf_int(&c, "num_train_timesteps", 1000, 1, SCHEDULE_MAX_T);
    s.beta = (enum beta_kind)json_conf_choice(&c, "beta_schedule", beta, BETA_LINEAR);
    s.beta_start = json_conf_number(&c, "beta_start", 0.0001, 0, 1);
    s.beta_end = json_conf_number(&c, "beta_end", 0.02, 0, 1);
    s.prediction = (enum prediction)json_conf_choice(&c, "prediction_type", prediction, PREDICT_EPSILON);
    s.spacing = (enum spacing)json_conf_choice(&c, "timestep_spacing", spacing, SPACING_OWN);
    s.steps_offset = (int)json_conf_int(&c, "steps_offset", 0, 0, s.n_train);
    s.set_alpha_to_one = json_conf_bool(&c, "set_alpha_to_one", true);
    s.clip_sample = json_conf_bool(&c, "clip_sample", true);
    s.clip_range = json_conf_number(&c, "clip_sample_range", 1, 1e-6, 1e6);
    s.karras = json_conf_bool(&c, "use_karras_sigmas", false);
    s.zero_terminal_snr = json_conf_bool(&c, "rescale_betas_zero_snr", false);
    if (!c.rc && (s.beta_start <= 0 || s.beta_end >= 1 || s.beta_start > s.beta_end))
        json_conf_fail(&c, "betas from %g to %g make no noise schedule", s.beta_start, s.beta_end);
    if (!c.rc)
        *out = s;
    return json_conf_close(&c);
}
