/* tests/t_config.c: configurations as JSON: those of the published models, defaults, every value that is refused. */
#include <stdio.h>
#include <string.h>

#include "store/base_model.h"
#include "tests/kit.h"
#include "tests/tap.h"

enum which { UNET, VAE, TEXT, SCHEDULE };

static union {
    struct unet_config unet;
    struct vae_config vae;
    struct clip_text_config text;
    struct schedule_config schedule;
} out;

static int parse(enum which which, const char *json, size_t n, struct err *e)
{
    switch (which) {
    case UNET:
        return base_parse_unet(&out.unet, json, n, e);
    case VAE:
        return base_parse_vae(&out.vae, json, n, e);
    case TEXT:
        return base_parse_text(&out.text, json, n, e);
    default:
        return base_parse_schedule(&out.schedule, json, n, e);
    }
}

static bool takes(enum which which, const char *json)
{
    struct err e = { 0 };
    const bool ok = !parse(which, json, strlen(json), &e);

    if (!ok)
        tap_note("%s", e.text);
    return ok;
}

/* ---- what the published models say ---- */

static const char sd15_unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.6.0\",\"act_fn\":\"silu\","
    "\"attention_head_dim\":8,\"block_out_channels\":[320,640,1280,1280],\"center_input_sample\":false,"
    "\"cross_attention_dim\":768,\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"CrossAttnDownBlock2D\",\"DownBlock2D\"],\"downsample_padding\":1,\"flip_sin_to_cos\":true,\"freq_shift\":0,"
    "\"in_channels\":4,\"layers_per_block\":2,\"mid_block_scale_factor\":1,\"norm_eps\":1e-05,\"norm_num_groups\":32,"
    "\"out_channels\":4,\"sample_size\":64,\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\","
    "\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\"]}";

static const char sd21_unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.10.0.dev0\",\"act_fn\":\"silu\","
    "\"attention_head_dim\":[5,10,20,20],\"block_out_channels\":[320,640,1280,1280],\"center_input_sample\":false,"
    "\"cross_attention_dim\":1024,\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"CrossAttnDownBlock2D\",\"DownBlock2D\"],\"downsample_padding\":1,\"dual_cross_attention\":false,"
    "\"flip_sin_to_cos\":true,\"freq_shift\":0,\"in_channels\":4,\"layers_per_block\":2,\"mid_block_scale_factor\":1,"
    "\"norm_eps\":1e-05,\"norm_num_groups\":32,\"num_class_embeds\":null,\"only_cross_attention\":false,"
    "\"out_channels\":4,\"sample_size\":96,\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\","
    "\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\"],\"use_linear_projection\":true,\"upcast_attention\":true}";

static void test_published(void)
{
    static const int64_t heads[] = { 5, 10, 20, 20 };
    const struct unet_config *u = &out.unet;

    tap_ok(takes(UNET, sd15_unet) && u->in_channels == 4 && u->out_channels == 4 && u->n_stage == 4 &&
               u->width[0] == 320 && u->width[3] == 1280 && u->down_attends[2] && !u->down_attends[3] &&
               !u->up_attends[0] && u->up_attends[3] && u->heads[0] == 8 && u->heads[3] == 8 &&
               u->layers_per_block == 2 && u->cross_attention_dim == 768 && !u->use_linear_projection &&
               u->norm_num_groups == 32 && u->norm_eps == 1e-5f && u->sample_size == 64,
           "SD1.5's UNet");
    tap_ok(takes(UNET, sd21_unet) && !memcmp(u->heads, heads, sizeof heads) && u->cross_attention_dim == 1024 &&
               u->use_linear_projection && u->sample_size == 96,
           "SD2.1's UNet");
    tap_ok(takes(VAE, "{\"_class_name\":\"AutoencoderKL\",\"act_fn\":\"silu\",\"block_out_channels\":[128,256,512,512],"
                      "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","
                      "\"DownEncoderBlock2D\"],\"in_channels\":3,\"latent_channels\":4,\"layers_per_block\":2,"
                      "\"norm_num_groups\":32,\"out_channels\":3,\"sample_size\":512,\"up_block_types\":["
                      "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}") &&
               out.vae.n_stage == 4 && out.vae.width[1] == 256 && out.vae.layers_per_block == 2 &&
               out.vae.latent_channels == 4 && out.vae.scaling_factor == 0.18215f && out.vae.sample_size == 512,
           "SD1.5's VAE");
    tap_ok(takes(TEXT, "{\"architectures\":[\"CLIPTextModel\"],\"bos_token_id\":0,\"dropout\":0.0,\"eos_token_id\":2,"
                       "\"hidden_act\":\"gelu\",\"hidden_size\":1024,\"intermediate_size\":4096,"
                       "\"layer_norm_eps\":1e-05,\"max_position_embeddings\":77,\"model_type\":\"clip_text_model\","
                       "\"num_attention_heads\":16,\"num_hidden_layers\":23,\"vocab_size\":49408}") &&
               out.text.act == K_ACT_GELU && out.text.num_hidden_layers == 23 && out.text.hidden_size == 1024 &&
               out.text.intermediate_size == 4096 && out.text.num_attention_heads == 16 &&
               out.text.vocab_size == 49408 && out.text.max_position_embeddings == 77,
           "SD2.1's text encoder");
    tap_ok(takes(SCHEDULE, "{\"_class_name\":\"DDIMScheduler\",\"beta_end\":0.012,\"beta_schedule\":\"scaled_linear\","
                           "\"beta_start\":0.00085,\"clip_sample\":false,\"num_train_timesteps\":1000,"
                           "\"prediction_type\":\"v_prediction\",\"set_alpha_to_one\":false,\"skip_prk_steps\":true,"
                           "\"steps_offset\":1,\"trained_betas\":null}") &&
               out.schedule.n_train == 1000 && out.schedule.beta == BETA_SCALED_LINEAR &&
               out.schedule.beta_start == 0.00085 && out.schedule.beta_end == 0.012 &&
               out.schedule.prediction == PREDICT_V && out.schedule.spacing == SPACING_OWN &&
               out.schedule.steps_offset == 1 && !out.schedule.set_alpha_to_one && !out.schedule.clip_sample &&
               out.schedule.clip_range == 1 && !out.schedule.karras && !out.schedule.zero_terminal_snr,
           "SD2.1's schedule");
}

static void test_others(void)
{
    const struct unet_config *u = &out.unet;

    tap_ok(takes(UNET, "{}") && u->n_stage == 4 && u->width[1] == 640 && u->cross_attention_dim == 1280 &&
               u->heads[1] == 8 && u->down_attends[0] && u->up_attends[1] && u->sample_size == 0,
           "a UNet's defaults");
    tap_ok(takes(UNET, "{\"block_out_channels\":[32,64],"
                       "\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\"],"
                       "\"up_block_types\":[\"CrossAttnUpBlock2D\",\"UpBlock2D\"],\"num_attention_heads\":[2,4],"
                       "\"attention_head_dim\":3,\"layers_per_block\":[1,1],\"cross_attention_dim\":[8,8],"
                       "\"transformer_layers_per_block\":[1,1],\"sample_size\":[16,24],\"norm_num_groups\":16,"
                       "\"act_fn\":\"swish\",\"only_cross_attention\":[false,false],\"mid_block_scale_factor\":1.0,"
                       "\"a key of tomorrow\":1}") &&
               u->n_stage == 2 && !u->down_attends[0] && u->down_attends[1] && u->up_attends[0] && !u->up_attends[1] &&
               u->heads[0] == 2 && u->heads[1] == 4 && u->layers_per_block == 1 && u->cross_attention_dim == 8 &&
               u->sample_size == 16 && u->norm_num_groups == 16,
           "lists where others have one value");
    tap_ok(takes(VAE, "{}") && out.vae.n_stage == 1 && out.vae.width[0] == 64 && out.vae.layers_per_block == 1,
           "a VAE's defaults");
    tap_ok(takes(TEXT, "{}") && out.text.hidden_size == 512 && out.text.num_hidden_layers == 12 &&
               out.text.num_attention_heads == 8 && out.text.act == K_ACT_QUICK_GELU,
           "a text encoder's defaults");
    tap_ok(takes(SCHEDULE, "{}") && out.schedule.beta == BETA_LINEAR && out.schedule.beta_start == 0.0001 &&
               out.schedule.beta_end == 0.02 && out.schedule.set_alpha_to_one && out.schedule.clip_sample &&
               out.schedule.steps_offset == 0 && out.schedule.prediction == PREDICT_EPSILON,
           "a schedule's defaults are DDIM's");
    tap_ok(takes(SCHEDULE, "{\"timestep_spacing\":\"trailing\",\"rescale_betas_zero_snr\":true,"
                           "\"use_karras_sigmas\":true,\"beta_schedule\":\"squaredcos_cap_v2\","
                           "\"prediction_type\":\"sample\",\"clip_sample_range\":2.5,\"num_train_timesteps\":4096}") &&
               out.schedule.spacing == SPACING_TRAILING && out.schedule.zero_terminal_snr && out.schedule.karras &&
               out.schedule.beta == BETA_SQUARED_COSINE && out.schedule.prediction == PREDICT_SAMPLE &&
               out.schedule.clip_range == 2.5 && out.schedule.n_train == 4096,
           "everything that a schedule can say");
    tap_ok(takes(SCHEDULE, "{\"timestep_spacing\":\"leading\"}") && out.schedule.spacing == SPACING_LEADING &&
               takes(SCHEDULE, "{\"timestep_spacing\":\"linspace\"}") && out.schedule.spacing == SPACING_LINSPACE,
           "a spacing where one is named");
}

/* ---- what is refused ---- */

static const struct {
    enum which which;
    const char *json, *why;
} bad[] = {
    { UNET, "", "line 1" },
    { UNET, "[]", "not a JSON object" },
    { UNET, "{\"in_channels\":4,\"in_channels\":4}", "duplicate" },
    { UNET, "{\"_class_name\":\"UNetSpatioTemporalConditionModel\"}", "_class_name" },
    { UNET, "{\"in_channels\":\"4\"}", "'in_channels' is \"4\", not an integer from 1 to 256" },
    { UNET, "{\"in_channels\":4.0}", "'in_channels' is 4.0" },
    { UNET, "{\"in_channels\":0}", "'in_channels' is 0" },
    { UNET, "{\"in_channels\":99999999999999999999}", "integer" },
    { UNET, "{\"block_out_channels\":[]}", "'block_out_channels' has 0 elements" },
    { UNET, "{\"block_out_channels\":[32,32,32,32,32,32,32]}", "has 7 elements, not 1 to 6" },
    { UNET, "{\"block_out_channels\":[32,null,32,32]}", "'block_out_channels' is null" },
    { UNET, "{\"block_out_channels\":[32,32]}", "4 down_block_types for 2 block_out_channels" },
    { UNET, "{\"block_out_channels\":[40,40,40,40]}", "cannot be split into norm_num_groups 32" },
    { UNET, "{\"norm_num_groups\":null}", "norm_num_groups null" },
    { UNET, "{\"down_block_types\":[\"DownBlock2D\"]}", "1 down_block_types for 4" },
    { UNET, "{\"down_block_types\":[\"DownBlock2D\",\"DownBlock2D\",\"DownBlock2D\",1]}", "a list of texts" },
    { UNET, "{\"down_block_types\":\"DownBlock2D\"}", "a list of texts" },
    { UNET, "{\"up_block_types\":[\"UpBlock2D\",\"UpBlock2D\",\"UpBlock2D\",\"AttnUpBlock2D\"]}", "'AttnUpBlock2D'" },
    { UNET, "{\"mid_block_type\":\"UNetMidBlock2DSimpleCrossAttn\"}", "mid_block_type" },
    { UNET, "{\"mid_block_type\":null}", "mid_block_type null is not supported" },
    { UNET, "{\"attention_head_dim\":[5,10]}", "2 attention_head_dim for 4" },
    { UNET, "{\"attention_head_dim\":7}", "7 heads (attention_head_dim) do not divide 320 channels" },
    { UNET, "{\"num_attention_heads\":9}", "9 heads (num_attention_heads)" },
    { UNET, "{\"layers_per_block\":[2,2,3,2]}", "layers_per_block with different values (2, 3)" },
    { UNET, "{\"layers_per_block\":5}", "an integer from 1 to 4" },
    { UNET, "{\"use_linear_projection\":1}", "'use_linear_projection' is 1, not true or false" },
    { UNET, "{\"upcast_attention\":\"yes\"}", "'upcast_attention'" },
    { UNET, "{\"norm_eps\":0}", "'norm_eps' is 0" },
    { UNET, "{\"sample_size\":[1,2,3]}", "'sample_size' has 3 elements" },
    { UNET, "{\"center_input_sample\":true}", "center_input_sample true" },
    { UNET, "{\"flip_sin_to_cos\":false}", "flip_sin_to_cos false" },
    { UNET, "{\"freq_shift\":1}", "freq_shift 1" },
    { UNET, "{\"only_cross_attention\":[true,true,true,false]}", "only_cross_attention [true" },
    { UNET, "{\"only_cross_attention\":[]}", "only_cross_attention" },
    { UNET, "{\"downsample_padding\":0}", "downsample_padding 0" },
    { UNET, "{\"mid_block_scale_factor\":1.5}", "mid_block_scale_factor 1.5" },
    { UNET, "{\"act_fn\":\"gelu\"}", "act_fn \"gelu\" is not supported" },
    { UNET, "{\"transformer_layers_per_block\":[1,2,10]}", "transformer_layers_per_block [1,2,10]" },
    { UNET, "{\"dual_cross_attention\":true}", "dual_cross_attention true" },
    { UNET, "{\"class_embed_type\":\"projection\"}", "class_embed_type \"projection\"" },
    { UNET, "{\"num_class_embeds\":1000}", "num_class_embeds 1000" },
    { UNET, "{\"addition_embed_type\":\"text_time\"}", "addition_embed_type \"text_time\"" },
    { UNET, "{\"resnet_time_scale_shift\":\"scale_shift\"}", "resnet_time_scale_shift" },
    { UNET, "{\"resnet_skip_time_act\":true}", "resnet_skip_time_act" },
    { UNET, "{\"resnet_out_scale_factor\":2}", "resnet_out_scale_factor" },
    { UNET, "{\"time_embedding_type\":\"fourier\"}", "time_embedding_type" },
    { UNET, "{\"time_embedding_dim\":1280}", "time_embedding_dim" },
    { UNET, "{\"time_embedding_act_fn\":\"silu\"}", "time_embedding_act_fn" },
    { UNET, "{\"timestep_post_act\":\"silu\"}", "timestep_post_act" },
    { UNET, "{\"time_cond_proj_dim\":256}", "time_cond_proj_dim 256" },
    { UNET, "{\"conv_in_kernel\":1}", "conv_in_kernel" },
    { UNET, "{\"conv_out_kernel\":1}", "conv_out_kernel" },
    { UNET, "{\"encoder_hid_dim\":8}", "encoder_hid_dim 8" },
    { UNET, "{\"encoder_hid_dim_type\":\"ip_image_proj\"}", "encoder_hid_dim_type" },
    { UNET, "{\"attention_type\":\"gated\"}", "attention_type" },
    { UNET, "{\"cross_attention_norm\":\"layer_norm\"}", "cross_attention_norm" },
    { UNET, "{\"class_embeddings_concat\":true}", "class_embeddings_concat" },
    { UNET, "{\"mid_block_only_cross_attention\":true}", "mid_block_only_cross_attention" },
    { UNET, "{\"reverse_transformer_layers_per_block\":[1]}", "reverse_transformer_layers_per_block" },
    { VAE, "{\"_class_name\":\"VQModel\"}", "_class_name \"VQModel\"" },
    { VAE, "{\"latent_channels\":300}", "latent_channels" },
    { VAE, "{\"block_out_channels\":[64,64]}", "1 down_block_types for 2" },
    { VAE, "{\"down_block_types\":[\"AttnDownEncoderBlock2D\"]}", "AttnDownEncoderBlock2D" },
    { VAE, "{\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}", "2 up_block_types for 1" },
    { VAE, "{\"scaling_factor\":1e300}", "scaling_factor" },
    { VAE, "{\"latents_mean\":[0,0,0,0]}", "latents_mean" },
    { VAE, "{\"shift_factor\":0.1}", "shift_factor 0.1" },
    { VAE, "{\"use_quant_conv\":false}", "use_quant_conv false" },
    { VAE, "{\"mid_block_add_attention\":false}", "mid_block_add_attention" },
    { VAE, "{\"act_fn\":\"relu\"}", "act_fn" },
    { VAE, "{\"norm_num_groups\":48}", "norm_num_groups 48" },
    { TEXT, "{\"model_type\":\"t5\"}", "model_type \"t5\"" },
    { TEXT, "{\"architectures\":[\"BertModel\"]}", "BertModel" },
    { TEXT, "{\"hidden_act\":\"gelu_new\"}", "hidden_act \"gelu_new\" is not supported" },
    { TEXT, "{\"hidden_act\":1}", "'hidden_act' is 1, not a text" },
    { TEXT, "{\"num_attention_heads\":7}", "7 num_attention_heads do not divide hidden_size 512" },
    { TEXT, "{\"num_hidden_layers\":49}", "num_hidden_layers" },
    { TEXT, "{\"vocab_size\":0}", "vocab_size" },
    { TEXT, "{\"layer_norm_eps\":-1}", "layer_norm_eps" },
    { SCHEDULE, "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}", "FlowMatchEulerDiscreteScheduler" },
    { SCHEDULE, "{\"_class_name\":\"EDMEulerScheduler\"}", "EDMEulerScheduler" },
    { SCHEDULE, "{\"num_train_timesteps\":4097}", "num_train_timesteps" },
    { SCHEDULE, "{\"beta_schedule\":\"sigmoid\"}", "beta_schedule \"sigmoid\" is not supported" },
    { SCHEDULE, "{\"prediction_type\":\"flow_prediction\"}", "prediction_type \"flow_prediction\"" },
    { SCHEDULE, "{\"timestep_spacing\":\"\\u0007\"}", "timestep_spacing \"\\u0007\"" },
    { SCHEDULE, "{\"trained_betas\":[0.1]}", "trained_betas [0.1]" },
    { SCHEDULE, "{\"thresholding\":true}", "thresholding" },
    { SCHEDULE, "{\"beta_start\":0.03}", "betas from 0.03 to 0.02" },
    { SCHEDULE, "{\"beta_end\":1}", "make no noise schedule" },
    { SCHEDULE, "{\"beta_start\":0}", "make no noise schedule" },
    { SCHEDULE, "{\"steps_offset\":1001}", "steps_offset" },
    { SCHEDULE, "{\"shift\":3.0}", "shift 3.0" },
    { SCHEDULE, "{\"clip_sample\":0}", "'clip_sample' is 0, not true or false" },
};

static void test_refused(void)
{
    static const unsigned char filler = 0xA5;

    for (size_t i = 0; i < LEN(bad); i++) {
        struct err e = { 0 };
        bool untouched = true;
        int rc, quiet;

        memset(&out, filler, sizeof out);
        rc = parse(bad[i].which, bad[i].json, strlen(bad[i].json), &e);
        quiet = parse(bad[i].which, bad[i].json, strlen(bad[i].json), NULL);
        for (size_t k = 0; k < sizeof out; k++)
            untouched &= ((const unsigned char *)&out)[k] == filler;
        tap_ok(rc == E_FORMAT && quiet == E_FORMAT && e.code == rc && untouched && strstr(e.text, bad[i].why),
               "refused: %s", e.text);
    }
}

/* Cut anywhere, an object is none; a megabyte is too long. */
static void test_cut(void)
{
    static char large[(1 << 20) + 3];
    struct err e = { 0 };
    bool ok = true;

    for (size_t n = 0; n < strlen(sd21_unet); n++)
        ok &= parse(UNET, sd21_unet, n, &e) == E_FORMAT;
    tap_ok(ok, "cut short anywhere");
    memset(large, ' ', sizeof large);
    large[0] = '{';
    large[1] = '}';
    tap_ok(!parse(VAE, large, 1 << 20, &e) && parse(VAE, large, (1 << 20) + 1, &e) == E_FORMAT, "%s", e.text);
}

int main(void)
{
    test_published();
    test_others();
    test_refused();
    test_cut();
    return tap_done();
}
