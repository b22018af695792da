#include "store/model_shapes.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A table that is asked by formatted names; the first failure is kept. */
struct shapes {
    const struct weights *w;
    const char *model;
    struct err *e;
    int rc;
};

__attribute__((format(printf, 2, 3))) static bool has(const struct shapes *s, const char *fmt, ...)
{
    char name[160];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return weights_get(s->w, name) != NULL;
}

/* How many of "<front><i><back>", i = 0.., there are without a gap: 1 to max, or it is a failure. */
static int count(struct shapes *s, int max, const char *front, const char *back)
{
    int n = 0;

    while (n <= max && has(s, "%s%d%s", front, n, back))
        n++;
    if (n >= 1 && n <= max)
        return n;
    if (!s->rc)
        s->rc = err_set(s->e, E_FORMAT, "%s: %s %d of '%sN%s', 1 to %d can be", s->model, n ? "at least" : "there are",
                        n, front, back, max);
    return 1;
}

/* Size i of a tensor that has to be there; 1 after a failure. */
__attribute__((format(printf, 3, 4))) static int64_t dim(struct shapes *s, int i, const char *fmt, ...)
{
    const struct weights_entry *w;
    char name[160], shown[100];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    w = weights_get(s->w, name);
    if (w && i < w->n_dim && w->dim[i] > 0 && w->dim[i] <= 1 << 24)
        return w->dim[i];
    if (!s->rc && !w)
        s->rc = err_set(s->e, E_FORMAT, "%s: there is no tensor '%s'", s->model, name);
    else if (!s->rc)
        s->rc = err_set(s->e, E_FORMAT, "%s: tensor '%s' is %s", s->model, name,
                        weights_text(w, shown, sizeof shown));
    return 1;
}

static void divides(struct shapes *s, int64_t n, int64_t width, const char *what)
{
    if (!s->rc && (n < 1 || width % n))
        s->rc = err_set(s->e, E_FORMAT, "%s: a width of %" PRId64 " and %" PRId64 " %s do not fit", s->model, width, n,
                        what);
}

int shapes_unet(struct unet_config *out, const struct weights *w, struct err *e)
{
    static const char to_k[] = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    struct shapes s = { .w = w, .model = "UNet", .e = e };
    struct unet_config u = { .norm_num_groups = 32, .norm_eps = 1e-5f, .sample_size = 64 };
    const struct weights_entry *proj = weights_get(w, "mid_block.attentions.0.proj_in.weight");

    u.in_channels = dim(&s, 1, "conv_in.weight");
    u.out_channels = dim(&s, 0, "conv_out.weight");
    u.n_stage = count(&s, UNET_MAX_STAGE, "down_blocks.", ".resnets.0.conv1.weight");
    u.layers_per_block = count(&s, UNET_MAX_LAYERS, "down_blocks.0.resnets.", ".conv1.weight");
    u.cross_attention_dim = dim(&s, 1, to_k);
    u.use_linear_projection = proj && proj->n_dim == 2;
    for (int i = 0; i < u.n_stage && !s.rc; i++) {
        u.width[i] = dim(&s, 0, "down_blocks.%d.resnets.0.conv1.weight", i);
        u.down_attends[i] = has(&s, "down_blocks.%d.attentions.0.proj_in.weight", i);
        u.up_attends[i] = has(&s, "up_blocks.%d.attentions.0.proj_in.weight", i);
        u.heads[i] = u.use_linear_projection ? u.width[i] / 64 : 8;
        divides(&s, u.norm_num_groups, u.width[i], "groups");
        divides(&s, u.heads[i], u.width[i], "heads");
    }
    if (!s.rc)
        *out = u;
    return s.rc;
}

/* Only the base knows heads, groups and what comes after the middle. */
int shapes_control(struct controlnet_config *out, const struct weights *w, const struct unet_config *base,
                   struct err *e)
{
    static const char to_k[] = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    static const char hint[] = "controlnet_cond_embedding.";
    struct shapes s = { .w = w, .model = "ControlNet", .e = e };
    struct controlnet_config c = { .unet = *base };
    struct unet_config *u = &c.unet;

    u->in_channels = dim(&s, 1, "conv_in.weight");
    u->n_stage = count(&s, UNET_MAX_STAGE, "down_blocks.", ".resnets.0.conv1.weight");
    u->layers_per_block = count(&s, UNET_MAX_LAYERS, "down_blocks.0.resnets.", ".conv1.weight");
    u->cross_attention_dim = dim(&s, 1, to_k);
    for (int i = 0; i < u->n_stage && !s.rc; i++) {
        u->width[i] = dim(&s, 0, "down_blocks.%d.resnets.0.conv1.weight", i);
        u->down_attends[i] = has(&s, "down_blocks.%d.attentions.0.proj_in.weight", i);
        u->heads[i] = i < base->n_stage ? base->heads[i] : 1;
    }
    c.hint[c.n_hint++] = dim(&s, 0, "%sconv_in.weight", hint);
    while (!s.rc && c.n_hint < CONTROLNET_MAX_HINT && has(&s, "%sblocks.%d.weight", hint, 2 * c.n_hint - 1)) {
        c.hint[c.n_hint] = dim(&s, 0, "%sblocks.%d.weight", hint, 2 * c.n_hint - 1);
        c.n_hint++;
    }
    if (!s.rc)
        *out = c;
    return s.rc;
}

int shapes_vae(struct vae_config *out, const struct weights *w, struct err *e)
{
    struct shapes s = { .w = w, .model = "VAE", .e = e };
    struct vae_config v = { .norm_num_groups = 32, .scaling_factor = 0.18215f, .sample_size = 512 };

    v.in_channels = dim(&s, 1, "encoder.conv_in.weight");
    v.out_channels = dim(&s, 0, "decoder.conv_out.weight");
    v.latent_channels = dim(&s, 1, "decoder.conv_in.weight");
    v.n_stage = count(&s, VAE_MAX_STAGE, "encoder.down_blocks.", ".resnets.0.conv1.weight");
    v.layers_per_block = count(&s, 8, "encoder.down_blocks.0.resnets.", ".conv1.weight");
    for (int i = 0; i < v.n_stage && !s.rc; i++) {
        v.width[i] = dim(&s, 0, "encoder.down_blocks.%d.resnets.0.conv1.weight", i);
        divides(&s, v.norm_num_groups, v.width[i], "groups");
    }
    if (!s.rc)
        *out = v;
    return s.rc;
}

int shapes_text(struct clip_text_config *out, const struct weights *w, enum kact act, struct err *e)
{
    struct shapes s = { .w = w, .model = "text encoder", .e = e };
    struct clip_text_config t = { .act = act, .layer_norm_eps = 1e-5f };

    t.vocab_size = dim(&s, 0, "text_model.embeddings.token_embedding.weight");
    t.hidden_size = dim(&s, 1, "text_model.embeddings.token_embedding.weight");
    t.max_position_embeddings = dim(&s, 0, "text_model.embeddings.position_embedding.weight");
    t.num_hidden_layers = count(&s, CLIP_TEXT_MAX_LAYER, "text_model.encoder.layers.", ".layer_norm1.weight");
    t.intermediate_size = dim(&s, 0, "text_model.encoder.layers.0.mlp.fc1.weight");
    t.num_attention_heads = t.hidden_size / 64;
    divides(&s, t.num_attention_heads, t.hidden_size, "heads");
    if (!s.rc)
        *out = t;
    return s.rc;
}

/* ---- files that are something else ---- */

/* In this order: the first mark that some tensor's name contains (or begins with: '^') decides. */
static const struct {
    const char *mark, *kind;
} marks[] = {
    { "lora_down", "a LoRA" },
    { "lora.down", "a LoRA" },
    { "lora_A.", "a LoRA" },
    { "_lora.down", "a LoRA" },
    { "lora_linear_layer", "a LoRA" },
    { ".hada_w1", "a LoHa" },
    { ".lokr_w", "a LoKr" },
    { "^control_model.", "a ControlNet" },
    { "controlnet_cond_embedding.", "a ControlNet" },
    { "^input_hint_block.", "a ControlNet" },
    { "^conditioner.embedders.", "Stable Diffusion XL" },
    { "^model.diffusion_model.joint_blocks.", "Stable Diffusion 3" },
    { "^joint_blocks.", "Stable Diffusion 3" },
    { "double_blocks.", "Flux or another transformer" },
    { "^transformer_blocks.", "a diffusion transformer" },
    { "clip_txt_mapper.", "Stable Cascade" },
    { "^model.diffusion_model.label_emb.", "a model with class or size embeddings (SDXL, unCLIP or an upscaler)" },
    { "^add_embedding.", "the UNet of Stable Diffusion XL" },
    { "^emb_params", "a textual inversion" },
    { "^string_to_param", "a textual inversion" },
    { "motion_modules.", "an AnimateDiff motion module" },
};

static bool marked(const struct weights *w, const char *mark)
{
    const bool front = mark[0] == '^';

    mark += front;
    for (int i = 0; i < w->n; i++)
        if (front ? !strncmp(w->entry[i].name, mark, strlen(mark)) : strstr(w->entry[i].name, mark) != NULL)
            return true;
    return false;
}

const char *model_foreign(const struct weights *file)
{
    static const struct {
        const char *mark, *kind;
    } parts[] = {
        { "^down_blocks.", "the UNet of a diffusers directory alone" },
        { "^input_blocks.", "a UNet alone" },
        { "^encoder.down", "a VAE alone" },
        { "^text_model.encoder.", "a text encoder alone" },
    };

    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (marked(file, marks[i].mark))
            return marks[i].kind;
    if (marked(file, "^model.diffusion_model."))
        return NULL;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (marked(file, parts[i].mark))
            return parts[i].kind;
    return "something else: no tensor's name begins with 'model.diffusion_model.'";
}

const char *model_of_channels(int64_t in_channels)
{
    switch (in_channels) {
    case 5:
        return "a depth-to-image model";
    case 7:
        return "an upscaler";
    case 8:
        return "an InstructPix2Pix model";
    case 9:
        return "an inpainting model";
    default:
        return NULL;
    }
}
