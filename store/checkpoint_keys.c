#include "store/checkpoint_keys.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct pair {
    const char *from, *to;
};

/* If *p begins with `with`, step over it. */
static bool take(const char **p, const char *with)
{
    const size_t n = strlen(with);

    if (strncmp(*p, with, n))
        return false;
    *p += n;
    return true;
}

/* A number of at most three digits and a dot. */
static bool take_index(const char **p, int *i)
{
    const char *s = *p;
    int n = 0;

    while (*s >= '0' && *s <= '9' && s - *p < 3)
        n = 10 * n + (*s++ - '0');
    if (s == *p || *s != '.')
        return false;
    *p = s + 1;
    *i = n;
    return true;
}

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), m = strlen(with);

    return n >= m && !strcmp(name + n - m, with);
}

__attribute__((format(printf, 3, 4))) static bool say(char *out, size_t size, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(out, size, fmt, ap);
    va_end(ap);
    return n > 0 && (size_t)n < size;
}

/* "<where><to><what follows from>" for the first of the pairs that `rest` begins with; rest as it is if none fits. */
static bool say_pair(char *out, size_t size, const char *where, const char *rest, const struct pair *pair)
{
    for (; pair->from; pair++)
        if (take(&rest, pair->from))
            return say(out, size, "%s%s%s", where, pair->to, rest);
    return say(out, size, "%s%s", where, rest);
}

/* ---- UNet ---- */

static const char unet_prefix[] = "model.diffusion_model.", control_prefix[] = "control_model.";

static const struct pair unet_ends[] = {
    { "time_embed.0.", "time_embedding.linear_1." },
    { "time_embed.2.", "time_embedding.linear_2." },
    { "input_blocks.0.0.", "conv_in." },
    { "middle_block.1.", "mid_block.attentions.0." },
    { "out.0.", "conv_norm_out." },
    { "out.2.", "conv_out." },
    { NULL, NULL },
};

static const struct pair unet_resnet[] = {
    { "in_layers.0.", "norm1." },          { "in_layers.2.", "conv1." },  { "emb_layers.1.", "time_emb_proj." },
    { "out_layers.0.", "norm2." },         { "out_layers.3.", "conv2." }, { "skip_connection.", "conv_shortcut." },
    { NULL, NULL },
};

/* input_blocks.i and output_blocks.i count the layers of all stages in one row. A down block has L of them and what
 * halves its output, an up block L + 1; input_blocks.0 is conv_in. */
static bool unet_block(char *out, size_t size, const char *name, int L)
{
    const char *const all = name;
    const bool down = take(&name, "input_blocks.");
    char where[80];
    int i = 0, b, l;

    if ((!down && !take(&name, "output_blocks.")) || !take_index(&name, &i) || (down && i < 1))
        return say(out, size, "%s", all);
    i -= down;
    b = i / (L + 1);
    l = i % (L + 1);
    if (take(&name, "0.op."))
        return say(out, size, "down_blocks.%d.downsamplers.0.conv.%s", b, name);
    if (take(&name, "1.conv.") || take(&name, "2.conv."))
        return say(out, size, "up_blocks.%d.upsamplers.0.conv.%s", b, name);
    if (take(&name, "0.")) {
        snprintf(where, sizeof where, "%s_blocks.%d.resnets.%d.", down ? "down" : "up", b, l);
        return say_pair(out, size, where, name, unet_resnet);
    }
    if (take(&name, "1."))
        return say(out, size, "%s_blocks.%d.attentions.%d.%s", down ? "down" : "up", b, l, name);
    return say(out, size, "%s", all);
}

/* name without its prefix; L layers a block */
static bool unet_key(char *out, size_t size, const char *name, int L)
{
    if (take(&name, "middle_block.0."))
        return say_pair(out, size, "mid_block.resnets.0.", name, unet_resnet);
    if (take(&name, "middle_block.2."))
        return say_pair(out, size, "mid_block.resnets.1.", name, unet_resnet);
    for (const struct pair *p = unet_ends; p->from; p++)
        if (!strncmp(name, p->from, strlen(p->from)))
            return say_pair(out, size, "", name, unet_ends);
    return unet_block(out, size, name, L);
}

bool checkpoint_unet_key(const char *name, char *out, size_t size, void *layout)
{
    const struct checkpoint_layout *l = layout;

    return take(&name, unet_prefix) && *name && unet_key(out, size, name, l->unet_layers);
}

/* ---- ControlNet: a UNet's way down and what is its own ---- */

/* Entries 0, 2, 4, .. are convolutions with SiLUs between them: conv_in, the blocks and, as `last`, conv_out. */
static bool hint_key(char *out, size_t size, const char *name, int last)
{
    static const char ours[] = "controlnet_cond_embedding.";
    const char *const all = name;
    int i = 0;

    if (!take_index(&name, &i) || i % 2)
        return say(out, size, "input_hint_block.%s", all);
    if (!i || i == last)
        return say(out, size, "%sconv_%s.%s", ours, i ? "out" : "in", name);
    return say(out, size, "%sblocks.%d.%s", ours, i / 2 - 1, name);
}

bool checkpoint_control_key(const char *name, char *out, size_t size, void *layout)
{
    const struct checkpoint_layout *l = layout;
    const char *rest;
    int i = 0;

    if (!take(&name, l->control_prefix) || !*name)
        return false;
    if (take(&name, "input_hint_block."))
        return hint_key(out, size, name, l->hint_last);
    if (take(&name, "middle_block_out.0."))
        return say(out, size, "controlnet_mid_block.%s", name);
    rest = name;
    if (take(&rest, "zero_convs.") && take_index(&rest, &i) && take(&rest, "0."))
        return say(out, size, "controlnet_down_blocks.%d.%s", i, rest);
    return unet_key(out, size, name, l->control_layers);
}

/* ---- VAE ---- */

static const struct pair vae_resnet[] = { { "nin_shortcut.", "conv_shortcut." }, { NULL, NULL } };

static const struct pair vae_attn[] = {
    { "norm.", "group_norm." }, { "q.", "to_q." },      { "k.", "to_k." },           { "v.", "to_v." },
    { "query.", "to_q." },      { "key.", "to_k." },    { "value.", "to_v." },       { "proj_attn.", "to_out.0." },
    { "proj_out.", "to_out.0." }, { NULL, NULL },
};

static bool is_vae(const char *name)
{
    return take(&name, "encoder.") || take(&name, "decoder.") || take(&name, "quant_conv.") ||
           take(&name, "post_quant_conv.");
}

bool diffusers_vae_key(const char *name, char *out, size_t size, void *ctx)
{
    const char *rest = name;
    char where[80];
    int i = 0;

    (void)ctx;
    if (!is_vae(name))
        return false;
    if ((take(&rest, "encoder.") || take(&rest, "decoder.")) && take(&rest, "mid_block.attentions.") &&
        take_index(&rest, &i)) {
        snprintf(where, sizeof where, "%.7s.mid_block.attentions.%d.", name, i);
        return say_pair(out, size, where, rest, vae_attn);
    }
    return say(out, size, "%s", name);
}

/* `half` is "encoder" or "decoder", name what follows it. The decoder's stages are counted from the finest. */
static bool vae_half(char *out, size_t size, const char *half, const char *name, int stages)
{
    const char *const all = name;
    const bool down = take(&name, "down.");
    char where[80];
    int i = 0, j = 0;

    if ((down || take(&name, "up.")) && take_index(&name, &i)) {
        i = down ? i : stages - 1 - i;
        snprintf(where, sizeof where, "%s.%s_blocks.%d.", half, down ? "down" : "up", i);
        if (take(&name, "block.") && take_index(&name, &j)) {
            snprintf(where, sizeof where, "%s.%s_blocks.%d.resnets.%d.", half, down ? "down" : "up", i, j);
            return say_pair(out, size, where, name, vae_resnet);
        }
        if (take(&name, "downsample.conv."))
            return say(out, size, "%sdownsamplers.0.conv.%s", where, name);
        if (take(&name, "upsample.conv."))
            return say(out, size, "%supsamplers.0.conv.%s", where, name);
        return say(out, size, "%s.%s", half, all);
    }
    if (take(&name, "mid.block_1.") || take(&name, "mid.block_2.")) {
        snprintf(where, sizeof where, "%s.mid_block.resnets.%c.", half, name[-2] - 1);
        return say_pair(out, size, where, name, vae_resnet);
    }
    if (take(&name, "mid.attn_1.")) {
        snprintf(where, sizeof where, "%s.mid_block.attentions.0.", half);
        return say_pair(out, size, where, name, vae_attn);
    }
    if (take(&name, "norm_out."))
        return say(out, size, "%s.conv_norm_out.%s", half, name);
    return say(out, size, "%s.%s", half, name);
}

bool checkpoint_vae_key(const char *name, char *out, size_t size, void *layout)
{
    const struct checkpoint_layout *l = layout;

    if (!take(&name, l->vae_prefix) || !is_vae(name))
        return false;
    if (take(&name, "encoder."))
        return vae_half(out, size, "encoder", name, l->vae_stages);
    if (take(&name, "decoder."))
        return vae_half(out, size, "decoder", name, l->vae_stages);
    return say(out, size, "%s", name);
}

/* ---- text encoder ---- */

static const char clip_prefix[] = "cond_stage_model.transformer.", openclip_prefix[] = "cond_stage_model.model.";

static const struct pair openclip_block[] = {
    { "ln_1.", "layer_norm1." },
    { "ln_2.", "layer_norm2." },
    { "mlp.c_fc.", "mlp.fc1." },
    { "mlp.c_proj.", "mlp.fc2." },
    { "attn.out_proj.", "self_attn.out_proj." },
    { "attn.", "self_attn." },
    { NULL, NULL },
};

static const struct pair openclip_ends[] = {
    { "positional_embedding", "text_model.embeddings.position_embedding.weight" },
    { "token_embedding.", "text_model.embeddings.token_embedding." },
    { "ln_final.", "text_model.final_layer_norm." },
    { NULL, NULL },
};

/* Some files, made by older software, lack "text_model." in front. What is no part of CLIPTextModel is left out. */
bool diffusers_text_key(const char *name, char *out, size_t size, void *ctx)
{
    const char *rest = name;

    (void)ctx;
    if (ends(name, ".position_ids"))
        return false;
    if (take(&rest, "text_model.") && *rest)
        return say(out, size, "%s", name);
    if (take(&rest, "embeddings.") || take(&rest, "encoder.") || take(&rest, "final_layer_norm."))
        return say(out, size, "text_model.%s", name);
    return false;
}

static bool openclip_key(char *out, size_t size, const char *name, int blocks)
{
    char where[80];
    int i = 0;

    if (take(&name, "transformer.resblocks.") && take_index(&name, &i)) {
        snprintf(where, sizeof where, "text_model.encoder.layers.%d.", i);
        return i < blocks && say_pair(out, size, where, name, openclip_block);
    }
    for (const struct pair *p = openclip_ends; p->from; p++)
        if (!strncmp(name, p->from, strlen(p->from)))
            return say_pair(out, size, "", name, openclip_ends);
    return false;
}

bool checkpoint_text_key(const char *name, char *out, size_t size, void *layout)
{
    const struct checkpoint_layout *l = layout;

    if (take(&name, openclip_prefix))
        return openclip_key(out, size, name, l->openclip_blocks);
    return take(&name, clip_prefix) && diffusers_text_key(name, out, size, NULL);
}

/* ---- counting ---- */

/* Layers before the first halving. */
struct unet_count {
    int first_op, last;
};

static void count_unet(struct unet_count *c, const char *name, const char *prefix)
{
    int i = 0;

    if (!take(&name, prefix) || !take(&name, "input_blocks.") || !take_index(&name, &i))
        return;
    c->last = i > c->last ? i : c->last;
    if (!strcmp(name, "0.op.weight") && (!c->first_op || i < c->first_op))
        c->first_op = i;
}

static int layers(const struct unet_count *c) { return c->first_op ? c->first_op - 1 : c->last; }

static void count_hint(struct checkpoint_layout *l, const char *name)
{
    int i = 0;

    if (take(&name, l->control_prefix) && take(&name, "input_hint_block.") && take_index(&name, &i)
        && i > l->hint_last)
        l->hint_last = i;
}

static void count_vae(struct checkpoint_layout *l, const char *name)
{
    int i = 0;

    l->vae_prefix = take(&name, "first_stage_model.") ? "first_stage_model." : l->vae_prefix;
    if (take(&name, "encoder.down.") && take_index(&name, &i) && i >= l->vae_stages)
        l->vae_stages = i + 1;
}

void checkpoint_layout(struct checkpoint_layout *out, const struct weights *file)
{
    struct unet_count unet = { 0 }, control = { 0 };
    int blocks = 0, i = 0;
    bool whole = false;

    *out = (struct checkpoint_layout){ .vae_prefix = "", .control_prefix = "" };
    for (int k = 0; k < file->n; k++)
        if (!strncmp(file->entry[k].name, control_prefix, strlen(control_prefix)))
            out->control_prefix = control_prefix;
    for (int k = 0; k < file->n; k++) {
        const char *name = file->entry[k].name;

        count_unet(&unet, name, unet_prefix);
        count_unet(&control, name, out->control_prefix);
        count_hint(out, name);
        count_vae(out, name);
        if (!take(&name, openclip_prefix))
            continue;
        whole |= !strcmp(name, "text_projection");
        if (take(&name, "transformer.resblocks.") && take_index(&name, &i) && i >= blocks)
            blocks = i + 1;
    }
    out->unet_layers = layers(&unet);
    out->control_layers = layers(&control);
    /* OpenCLIP's own checkpoints have the last block and the projection after it, which SD2.x does not use; files that
     * were made from a diffusers directory have neither. ViT-H has 24 blocks. */
    out->openclip_blocks = blocks && (whole || blocks == 24) ? blocks - 1 : blocks;
}

/* ---- values ---- */

/* Rows [part * D, part * D + D) of the stacked entry `in`, D = rows / 3. */
static bool view(struct weights_entry *out, const struct weights_entry *in, int part, struct arena *meta,
                 struct err *e)
{
    static const char qkv[] = "qkv";
    const char *dot = strrchr(in->name, '.'), *kind = dot + strlen(".in_proj_");
    const size_t size = strlen(in->name) + 2;
    const int64_t D = in->dim[0] / 3;
    char *name = arena_push(meta, size, e);

    if (!name)
        return false;
    snprintf(name, size, "%.*s.%c_proj.%s", (int)(dot - in->name), in->name, qkv[part], kind);
    *out = *in;
    out->name = name;
    out->dim[0] = D;
    out->data = (const char *)in->data + (ptrdiff_t)(part * D * in->stride[0]) * (ptrdiff_t)stored_bytes(in->type);
    return true;
}

static bool stacked(const struct weights_entry *w)
{
    return ends(w->name, ".self_attn.in_proj_weight") || ends(w->name, ".self_attn.in_proj_bias");
}

int checkpoint_split_qkv(struct weights *w, struct arena *meta, struct err *e)
{
    struct weights_entry *entry;
    struct err mine;
    int n = 0;

    e = e ? e : &mine;
    for (int i = 0; i < w->n; i++)
        n += stacked(&w->entry[i]) ? 3 : 1;
    if (n == w->n)
        return OK;
    entry = arena_push(meta, sizeof *entry * (size_t)n, e);
    if (!entry)
        return e->code;
    n = 0;
    for (int i = 0; i < w->n; i++) {
        const struct weights_entry *in = &w->entry[i];

        if (!stacked(in)) {
            entry[n++] = *in;
            continue;
        }
        if (in->n_dim < 1 || in->dim[0] % 3)
            return err_set(e, E_FORMAT, "tensor '%s' is no stack of q, k and v", in->name);
        for (int part = 0; part < 3; part++)
            if (!view(&entry[n++], in, part, meta, e))
                return e->code;
    }
    w->entry = entry;
    w->n = n;
    return weights_sort(w, e);
}

void checkpoint_squeeze_vae(struct weights *w)
{
    for (int i = 0; i < w->n; i++)
        if (strstr(w->entry[i].name, ".attentions.") && ends(w->entry[i].name, ".weight"))
            while (w->entry[i].n_dim > 2 && w->entry[i].dim[w->entry[i].n_dim - 1] == 1)
                w->entry[i].n_dim--;
}
