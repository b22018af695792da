/* tests/t_base.c: base models as files and as directories: every tensor of SD1.5 and SD2 in both layouts gets the name
 * and the sizes that it should have, configurations come from JSON or from sizes, and what is no such model is refused
 * in a sentence. Weight files are holes (tests/base_kit.h): full size, no bytes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/base_model.h"
#include "store/checkpoint_keys.h"
#include "store/vocab.h"
#include "tests/base_kit.h"
#include "tests/kit.h"
#include "tests/tap.h"

static struct keys *keys;

/* Which of the models, and whether at full size. */
struct model {
    bool two, tiny;
};

static const struct model tiny = { false, true };

static bool in_section(const struct keys_row *r, const char *section) { return !strcmp(r->section, section); }

/* A size of the tiny model: SD1's widths 32, 64, 128, 128, SD2's 64 and so on, text 64 wide, words as many as ever. */
static int64_t shrink(const char *section, int64_t d, struct model m)
{
    if (!m.tiny || d < 10 || d == 49408 || d == 77)
        return d;
    if (!strcmp(section, "unet"))
        return d == 768 || d == 1024 ? 64 : d / (m.two ? 5 : 10);
    return d / (!strcmp(section, "vae") ? 4 : m.two ? 16 : 12);
}

static struct sizes sized(const struct keys_row *r, const struct sizes *s, struct model m)
{
    struct sizes out = *s;

    for (int i = 0; i < out.n_dim; i++)
        out.dim[i] = shrink(r->section, out.dim[i], m);
    return out;
}

/* ---- files ---- */

static void add_extras(struct hole *h, struct model m)
{
    static const char *const extra[] = {
        "model_ema.decay", "model_ema.diffusion_modelinput_blocks00weight", "betas", "alphas_cumprod",
        "first_stage_model.loss.logvar", "model_ema.num_updates", "global_step",
    };
    static const char *const extra_two[] = {
        "cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale",
        "cond_stage_model.model.attn_mask", "cond_stage_model.model.transformer.resblocks.23.ln_1.weight",
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
    };
    const struct sizes s = { 1, { 3 } };

    for (size_t i = 0; i < LEN(extra); i++)
        hole_add(h, extra[i], &s);
    for (size_t i = 0; i < LEN(extra_two) && m.two; i++)
        hole_add(h, extra_two[i], &s);
    if (!m.two)
        hole_add_type(h, "cond_stage_model.transformer.text_model.embeddings.position_ids", "I64", 8, &s, NULL);
}

/* One checkpoint of the original layout. Returns where its numbers begin; *stacked: where among them layer 0's q, k and
 * v do. */
static int64_t write_single(const char *path, struct model m, bool vae, int64_t *stacked)
{
    struct hole h = { NULL, 0, 0, 0 };
    char name[256];

    for (int i = 0; i < keys->n; i++) {
        const struct keys_row *r = &keys->row[i];
        const bool text = in_section(r, "text1") || in_section(r, "text2");
        const char *prefix = in_section(r, "unet")    ? "model.diffusion_model."
                             : in_section(r, "vae")   ? "first_stage_model."
                             : in_section(r, "text1") ? "cond_stage_model.transformer."
                                                      : "cond_stage_model.model.";
        const struct sizes s = sized(r, r->stored.n_dim ? &r->stored : m.two ? &r->two : &r->one, m);

        if (in_section(r, "none"))
            continue;
        if ((text && in_section(r, "text2") != m.two) || (!vae && in_section(r, "vae")))
            continue;
        if (in_section(r, "text2") && (strstr(r->name, ".k_proj.") || strstr(r->name, ".v_proj.")))
            continue;
        snprintf(name, sizeof name, "%s%s", prefix, r->original);
        hole_add_type(&h, name, "F16", 2, &s, strstr(name, "resblocks.0.attn.in_proj_weight") ? stacked : NULL);
    }
    add_extras(&h, m);
    return hole_write(&h, path);
}

/* A part in diffusers' layout. old: the VAE's attention with its former names, as 1x1 convolutions. */
static void write_part(const char *path, const char *section, struct model m, bool old)
{
    static const char *const was[][2] = {
        { ".to_q.", ".query." }, { ".to_k.", ".key." }, { ".to_v.", ".value." }, { ".to_out.0.", ".proj_attn." },
    };
    struct hole h = { NULL, 0, 0, 0 };
    char name[256];

    for (int i = 0; i < keys->n; i++) {
        const struct keys_row *r = &keys->row[i];
        struct sizes s = sized(r, m.two ? &r->two : &r->one, m);

        if (!in_section(r, section))
            continue;
        snprintf(name, sizeof name, "%s", r->name);
        for (size_t k = 0; old && k < LEN(was); k++) {
            const char *at = strstr(r->name, was[k][0]);
            if (at) {
                snprintf(name, sizeof name, "%.*s%s%s", (int)(at - r->name), r->name, was[k][1],
                         at + strlen(was[k][0]));
                s = s.n_dim == 2 ? (struct sizes){ 4, { s.dim[0], s.dim[1], 1, 1 } } : s;
            }
        }
        hole_add(&h, name, &s);
    }
    if (section[0] == 't')
        hole_add_type(&h, "text_model.embeddings.position_ids", "I64", 8, &(struct sizes){ 2, { 1, 77 } }, NULL);
    hole_write(&h, path);
}

/* ---- names ---- */

static void test_names(void)
{
    struct checkpoint_layout l = { .unet_layers = 2, .vae_stages = 4, .vae_prefix = "first_stage_model.",
                                   .openclip_blocks = 23 };
    int n[4] = { 0 }, bad[4] = { 0 };
    char from[256], to[256];

    for (int i = 0; i < keys->n; i++) {
        const struct keys_row *r = &keys->row[i];
        const int s = in_section(r, "unet") ? 0 : in_section(r, "vae") ? 1 : in_section(r, "text1") ? 2 : 3;
        static const char *const prefix[] = { "model.diffusion_model.", "first_stage_model.",
                                              "cond_stage_model.transformer.", "cond_stage_model.model." };
        bool (*const key[])(const char *, char *, size_t, void *) = { checkpoint_unet_key, checkpoint_vae_key,
                                                                      checkpoint_text_key, checkpoint_text_key };
        const char *want = r->name;

        snprintf(from, sizeof from, "%s%s", prefix[s], r->original);
        if (strstr(r->original, "in_proj_"))    /* q, k, v: split later */
            want = base_path("%.*sin_proj_%s", (int)(strstr(r->name, "self_attn.") + 10 - r->name), r->name,
                             strrchr(r->name, '.') + 1) + strlen(base_dir()) + 1;
        n[s]++;
        if (!key[s](from, to, sizeof to, &l) || strcmp(to, want)) {
            tap_note("'%s' became '%s', not '%s'", from, to, want);
            bad[s]++;
        }
        for (int other = 0; other < 3; other++)
            bad[s] += other != (s == 3 ? 2 : s) && key[other](from, to, sizeof to, &l);
        bad[s] += key[s](from, to, strlen(want), &l);               /* no room for the final zero */
    }
    tap_ok(n[0] == 686 && !bad[0], "686 names of the UNet");
    tap_ok(n[1] == 248 && !bad[1], "248 names of the VAE");
    tap_ok(n[2] == 196 && !bad[2], "196 names of SD1's text encoder");
    tap_ok(n[3] == 372 && !bad[3], "372 names of SD2's");
}

static void test_odd_names(void)
{
    static const struct {
        const char *from, *to;
    } text[] = {
        { "cond_stage_model.transformer.embeddings.token_embedding.weight",
          "text_model.embeddings.token_embedding.weight" },
        { "cond_stage_model.transformer.text_model.embeddings.position_ids", NULL },
        { "cond_stage_model.model.transformer.resblocks.23.ln_1.weight", NULL },
        { "cond_stage_model.model.transformer.resblocks.22.ln_1.weight",
          "text_model.encoder.layers.22.layer_norm1.weight" },
        { "cond_stage_model.model.attn_mask", NULL },
        { "cond_stage_model.model.text_projection", NULL },
        { "model.diffusion_model.out.0.weight", NULL },
    }, unet[] = {
        { "model.diffusion_model.label_emb.0.0.weight", "label_emb.0.0.weight" },
        { "model.diffusion_model.input_blocks.0.1.weight", "input_blocks.0.1.weight" },
        { "model.diffusion_model.input_blocks.1000.0.weight", "input_blocks.1000.0.weight" },
        { "model.diffusion_model.output_blocks.2.1.conv.bias", "up_blocks.0.upsamplers.0.conv.bias" },
        { "model.diffusion_model.", NULL },
        { "model_ema.diffusion_modelout0weight", NULL },
    }, vae[] = {
        { "first_stage_model.loss.logvar", NULL },
        { "first_stage_model.encoder.mid.attn_1.k.bias", "encoder.mid_block.attentions.0.to_k.bias" },
        { "first_stage_model.decoder.up.3.block.0.norm1.bias", "decoder.up_blocks.0.resnets.0.norm1.bias" },
    }, old[] = {
        { "encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight" },
        { "decoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.to_out.0.bias" },
        { "decoder.mid_block.attentions.0.to_v.bias", "decoder.mid_block.attentions.0.to_v.bias" },
        { "decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid_block.attentions.0.group_norm.bias" },
        { "loss.discriminator.weight", NULL },
    };
    struct checkpoint_layout l = { .unet_layers = 2, .vae_stages = 4, .vae_prefix = "first_stage_model.",
                                   .openclip_blocks = 23 };
    char to[256];
    bool ok = true;

#define TRY(table, key)                                                                                    \
    for (size_t i = 0; i < LEN(table); i++)                                                                \
        ok &= key(table[i].from, to, sizeof to, &l) ? table[i].to && !strcmp(to, table[i].to) : !table[i].to
    TRY(text, checkpoint_text_key);
    TRY(unet, checkpoint_unet_key);
    TRY(vae, checkpoint_vae_key);
    TRY(old, diffusers_vae_key);
#undef TRY
    tap_ok(ok, "names that are left out, older names, names that nobody knows");
}

/* ---- whole checkpoints ---- */

static bool same_unet(const struct unet_config *a, const struct unet_config *b)
{
    bool ok = a->in_channels == b->in_channels && a->out_channels == b->out_channels && a->n_stage == b->n_stage &&
              a->layers_per_block == b->layers_per_block && a->cross_attention_dim == b->cross_attention_dim &&
              a->use_linear_projection == b->use_linear_projection && a->norm_num_groups == b->norm_num_groups &&
              a->norm_eps == b->norm_eps;

    for (int i = 0; ok && i < a->n_stage; i++)
        ok = a->width[i] == b->width[i] && a->down_attends[i] == b->down_attends[i] &&
             a->up_attends[i] == b->up_attends[i] && a->heads[i] == b->heads[i];
    return ok;
}

static bool same_vae(const struct vae_config *a, const struct vae_config *b)
{
    return a->in_channels == b->in_channels && a->out_channels == b->out_channels &&
           a->latent_channels == b->latent_channels && a->n_stage == b->n_stage &&
           !memcmp(a->width, b->width, (size_t)a->n_stage * sizeof *a->width) &&
           a->layers_per_block == b->layers_per_block && a->norm_num_groups == b->norm_num_groups &&
           a->scaling_factor == b->scaling_factor;
}

static bool same_text(const struct clip_text_config *a, const struct clip_text_config *b)
{
    return a->vocab_size == b->vocab_size && a->max_position_embeddings == b->max_position_embeddings &&
           a->hidden_size == b->hidden_size && a->intermediate_size == b->intermediate_size &&
           a->num_hidden_layers == b->num_hidden_layers && a->num_attention_heads == b->num_attention_heads &&
           a->act == b->act && a->layer_norm_eps == b->layer_norm_eps;
}

/* Every row of the section is in the table, with its sizes, and nothing else is. */
static bool has_all(const struct weights *w, const char *section, struct model m)
{
    int n = 0;

    for (int i = 0; i < keys->n; i++) {
        const struct keys_row *r = &keys->row[i];
        const struct sizes s = sized(r, m.two ? &r->two : &r->one, m);
        const struct weights_entry *x = in_section(r, section) ? weights_get(w, r->name) : NULL;

        if (!in_section(r, section))
            continue;
        n++;
        if (!x || x->n_dim != s.n_dim || memcmp(x->dim, s.dim, (size_t)s.n_dim * sizeof *s.dim)) {
            tap_note("'%s' is %s", r->name, x ? "of other sizes" : "missing");
            return false;
        }
    }
    if (n != w->n)
        tap_note("%s: %d tensors, not %d", section, w->n, n);
    return n == w->n;
}

static bool has_parts(const struct base_model *b, struct model m)
{
    return has_all(&b->unet_weights, "unet", m) && has_all(&b->vae_weights, "vae", m) &&
           has_all(&b->text_weights, m.two ? "text2" : "text1", m);
}

/* The models themselves take every tensor, on the device that computes nothing. */
static bool takes_all(struct base_model *b)
{
    struct device d = { 0 };
    struct model_memory mem = { 0 };
    struct layers l;
    struct unet *u;
    struct vae *v;
    struct clip_text *t;
    struct err e = { 0 };
    int rc = device_open(&d, "null", 1, &e);

    rc = rc ? rc : model_memory_init(&mem, &d, 0, &e);
    if (!rc) {
        layers_init(&l, &d, F16, &mem, &b->unet_weights);
        rc = unet_new(&u, &b->unet, &l, &e);
    }
    if (!rc) {
        layers_init(&l, &d, F16, &mem, &b->vae_weights);
        rc = vae_new(&v, &b->vae, VAE_BOTH, &l, &e);
    }
    if (!rc) {
        layers_init(&l, &d, F16, &mem, &b->text_weights);
        rc = clip_text_new(&t, &b->text, &l, &e);
    }
    if (rc)
        tap_note("%s", e.text);
    model_memory_free(&mem);
    device_close(&d);
    return !rc;
}

static void test_full(bool two)
{
    const struct unet_config unet = two ? unet_config_sd2() : unet_config_sd15();
    const struct clip_text_config text = two ? clip_text_config_sd2() : clip_text_config_sd15();
    const struct vae_config vae = vae_config_sd15();
    const struct model m = { two, false };
    const char *path = base_path("full%d.safetensors", two), *name = two ? "SD2" : "SD1.5";
    struct base_model *b = NULL;
    struct err e = { 0 };
    int64_t at;

    write_single(path, m, true, &at);
    if (!tap_ok(!base_model_open(&b, path, NULL, &e), "%s as one file %s", name, e.text))
        return;
    tap_ok(has_parts(b, m), "%s: every tensor once, with diffusers' name and sizes", name);
    tap_ok(same_unet(&b->unet, &unet) && same_vae(&b->vae, &vae) && same_text(&b->text, &text),
           "%s: configurations from sizes", name);
    tap_ok(b->single_file && b->schedule.prediction == (two ? PREDICT_V : PREDICT_EPSILON) &&
               b->schedule.beta == BETA_SCALED_LINEAR && b->schedule.spacing == SPACING_OWN &&
               b->unet.sample_size == (two ? 96 : 64),
           "%s: schedule", name);
    tap_ok(b->bpe && b->pad_id == (two ? 0 : 49407), "%s: prompts are filled with %d", name, (int)b->pad_id);
    tap_ok(takes_all(b), "%s: the models take all tensors", name);
    base_model_close(b);
    remove(path);
}

/* ---- small ones ---- */

static void test_stacked(void)
{
    const struct model m = { true, true };
    const struct base_options o = { .prediction = PREDICT_EPSILON };
    const char *path = base_path("stacked.safetensors");
    static const char *const part[] = { "q", "k", "v" };
    uint16_t row[64];
    struct base_model *b = NULL;
    struct err e = { 0 };
    int64_t at = 0, first = write_single(path, m, true, &at);
    bool ok = true;
    float got[64 * 64];

    /* The first element of each of the 3 * 64 rows: 1 + row / 256, exact in f16. */
    for (int i = 0; i < 192; i++) {
        row[0] = (uint16_t)(0x3C00 + 4 * i);
        base_poke(path, first + at + (int64_t)i * 128, row, 2);
    }
    ok &= !base_model_open(&b, path, &o, &e);
    for (int p = 0; p < 3 && ok; p++) {
        struct weights_entry *w = weights_get(&b->text_weights, base_path("text_model.encoder.layers.0.self_attn."
                                              "%s_proj.weight", part[p]) + strlen(base_dir()) + 1);
        ok &= w && w->dim[0] == 64 && !weights_read(w, got, F32, &e);
        for (int i = 0; i < 64 && ok; i++)
            ok &= got[i * 64] == 1 + (float)(p * 64 + i) / 256 && got[i * 64 + 1] == 0;
    }
    tap_ok(ok, "q, k and v are rows of what OpenCLIP stacks %s", e.text);
    ok = ok && b->schedule.prediction == PREDICT_EPSILON && b->unet.sample_size == 64 && b->text.act == K_ACT_GELU &&
         b->text.num_hidden_layers == 23 && b->unet.heads[0] == 1 && b->unet.heads[3] == 4;
    tap_ok(ok && takes_all(b), "a small SD2 for epsilon");
    base_model_close(b);
}

/* Fewer stages and layers than any published model has. */
static void test_other_sizes(void)
{
    struct weights w = { 0 };
    struct checkpoint_layout l;
    struct weights_entry entry[4] = {
        { .name = "model.diffusion_model.input_blocks.0.0.weight" },
        { .name = "model.diffusion_model.input_blocks.2.0.op.weight" },
        { .name = "model.diffusion_model.input_blocks.4.0.op.weight" },
        { .name = "first_stage_model.encoder.down.2.block.0.conv1.weight" },
    };

    w.entry = entry;
    w.n = 4;
    checkpoint_layout(&l, &w);
    tap_ok(l.unet_layers == 1 && l.vae_stages == 3 && l.openclip_blocks == 0, "one layer per block, three stages");
    entry[0].name = "model.diffusion_model.input_blocks.3.0.in_layers.0.weight";
    entry[1].name = "cond_stage_model.model.transformer.resblocks.22.ln_1.weight";
    entry[2].name = "cond_stage_model.model.ln_final.weight";
    checkpoint_layout(&l, &w);
    tap_ok(l.unet_layers == 3 && l.openclip_blocks == 23, "one stage; all of 23 blocks without a projection");
    entry[2].name = "cond_stage_model.model.text_projection";
    checkpoint_layout(&l, &w);
    tap_ok(l.openclip_blocks == 22, "with a projection the last block goes");
    entry[1].name = "cond_stage_model.model.transformer.resblocks.23.ln_1.weight";
    entry[2].name = "cond_stage_model.model.ln_final.weight";
    checkpoint_layout(&l, &w);
    tap_ok(l.openclip_blocks == 23, "of ViT-H's 24 too");
}

/* ---- what is refused ---- */

static bool refused(const char *path, const struct base_options *o, int code, const char *why)
{
    struct base_model *b = (struct base_model *)keys;
    struct err e = { 0 };
    const int rc = base_model_open(&b, path, o, &e);
    const bool ok = rc == code && e.code == code && strstr(e.text, why) && b == (struct base_model *)keys &&
                    !strchr(e.text, '\n');

    if (rc == OK)
        base_model_close(b);
    return tap_ok(ok, "refused (%d): %s", rc, e.text);
}

static void test_foreign(void)
{
    static const struct {
        const char *name, *why;
    } file[] = {
        { "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "Stable Diffusion XL" },
        { "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3" },
        { "model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux" },
        { "double_blocks.0.img_attn.qkv.weight", "Flux" },
        { "control_model.input_blocks.0.0.weight", "a ControlNet" },
        { "controlnet_cond_embedding.conv_in.weight", "a ControlNet" },
        { "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA" },
        { "unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA" },
        { "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa" },
        { "down_blocks.0.resnets.0.conv1.weight", "UNet of a diffusers directory" },
        { "encoder.down.0.block.0.conv1.weight", "a VAE alone" },
        { "text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder alone" },
        { "something.weight", "something else" },
        { "model.diffusion_model.out.0.weight", "there is no tensor 'conv_in.weight'" },
    };
    struct hole h = { NULL, 0, 0, 0 };

    for (size_t i = 0; i < LEN(file); i++) {
        const char *path = base_path("foreign.safetensors");
        hole_add(&h, file[i].name, &(struct sizes){ 1, { 4 } });
        hole_write(&h, path);
        refused(path, NULL, E_FORMAT, file[i].why);
    }
    hole_write(&h, base_path("foreign.safetensors"));
    refused(base_path("foreign.safetensors"), NULL, E_FORMAT, "something else");
    refused(base_path("nowhere"), NULL, E_IO, "No such file");
    base_text(base_path("text.ckpt"), "no weights");
    refused(base_path("text.ckpt"), NULL, E_FORMAT, "text.ckpt");
    refused(base_path("text.ckpt"), &(struct base_options){ .prediction = 7 }, E_ARG, "prediction 7");
}

/* A tiny SD1 with one tensor of other sizes, or without one. */
static void test_broken(void)
{
    static const struct {
        const char *name, *why;
        struct sizes s;
    } change[] = {
        { "conv_in.weight", "it seems to be an inpainting model", { 4, { 32, 9, 3, 3 } } },
        { "conv_in.weight", "it seems to be an InstructPix2Pix model", { 4, { 32, 8, 3, 3 } } },
        { "conv_in.weight", "a UNet from 3 to 4 channels and a VAE of 4", { 4, { 32, 3, 3, 3 } } },
        { "conv_in.weight", "there is no tensor 'conv_in.weight'", { 0, { 0 } } },
        { "conv_in.weight", "tensor 'conv_in.weight' is F16 (32)", { 1, { 32 } } },
        { "down_blocks.1.resnets.0.conv1.weight", "65 and 32 groups do not fit", { 4, { 65, 32, 3, 3 } } },
        { "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "gives 64 channels, the UNet takes 96",
          { 2, { 128, 96 } } },
        { "encoder.conv_in.weight", "VAE: there is no tensor", { 0, { 0 } } },
        { "text_model.embeddings.position_embedding.weight", "76 positions, not 77", { 2, { 76, 64 } } },
        { "text_model.embeddings.token_embedding.weight", "49408 words", { 2, { 49407, 64 } } },
        { "text_model.encoder.layers.0.mlp.fc1.weight", "there is no tensor", { 0, { 0 } } },
    };
    const char *path = base_path("broken.safetensors");

    for (size_t i = 0; i < LEN(change); i++) {
        int64_t at;

        /* The list itself becomes a tiny model's, but for one row. */
        for (int k = 0; k < keys->n; k++) {
            struct keys_row *r = &keys->row[k];
            r->one = sized(r, &r->one, tiny);
            r->stored = sized(r, &r->stored, tiny);
            if (strcmp(r->name, change[i].name))
                continue;
            r->one = change[i].s;
            if (!r->one.n_dim)
                memcpy(r->section, "none", sizeof "none");
        }
        write_single(path, (struct model){ false, false }, true, &at);
        keys_close(keys);
        keys = keys_open();
        refused(path, NULL, E_FORMAT, change[i].why);
    }
}

/* ---- directories ---- */

static const char index_json[] =
    "{\"_class_name\":\"StableDiffusionPipeline\",\"_diffusers_version\":\"0.6.0\","
    "\"feature_extractor\":[null,null],\"safety_checker\":[null,null],"
    "\"scheduler\":[\"diffusers\",\"PNDMScheduler\"],\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],"
    "\"tokenizer\":[null,null],\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],"
    "\"vae\":[\"diffusers\",\"AutoencoderKL\"],\"requires_safety_checker\":false}";
static const char tiny_unet[] = "{\"block_out_channels\":[32,64,128,128],\"cross_attention_dim\":64,"
                                "\"sample_size\":32}";
static const char tiny_vae[] =
    "{\"block_out_channels\":[32,64,128,128],\"layers_per_block\":2,\"down_block_types\":[\"DownEncoderBlock2D\","
    "\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],\"up_block_types\":[\"UpDecoderBlock2D\","
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"],\"scaling_factor\":0.25}";
static const char tiny_text[] = "{\"hidden_size\":64,\"intermediate_size\":256,\"num_attention_heads\":1}";
static const char tiny_schedule[] = "{\"_class_name\":\"PNDMScheduler\",\"beta_schedule\":\"scaled_linear\","
                                    "\"beta_start\":0.00085,\"beta_end\":0.012,\"steps_offset\":0,"
                                    "\"set_alpha_to_one\":false,\"prediction_type\":\"v_prediction\"}";

static void make_directory(const char *name)
{
    base_mkdir(base_path("%s", name));
    base_text(base_path("%s/model_index.json", name), index_json);
    base_mkdir(base_path("%s/unet", name));
    base_text(base_path("%s/unet/config.json", name), tiny_unet);
    write_part(base_path("%s/unet/diffusion_pytorch_model.safetensors", name), "unet", tiny, false);
    base_mkdir(base_path("%s/vae", name));
    base_text(base_path("%s/vae/config.json", name), tiny_vae);
    write_part(base_path("%s/vae/diffusion_pytorch_model.safetensors", name), "vae", tiny, true);
    base_mkdir(base_path("%s/text_encoder", name));
    base_text(base_path("%s/text_encoder/config.json", name), tiny_text);
    write_part(base_path("%s/text_encoder/model.safetensors", name), "text1", tiny, false);
    base_mkdir(base_path("%s/scheduler", name));
    base_text(base_path("%s/scheduler/scheduler_config.json", name), tiny_schedule);
}

static void test_directory(void)
{
    struct base_model *b = NULL;
    struct err e = { 0 };

    make_directory("dir");
    if (!tap_ok(!base_model_open(&b, base_path("dir"), NULL, &e), "a directory %s", e.text))
        return;
    tap_ok(has_parts(b, tiny), "every tensor once; the VAE's attention under its new names");
    tap_ok(takes_all(b), "the models take all tensors");
    tap_ok(!b->single_file && b->unet.sample_size == 32 && b->unet.heads[2] == 8 && b->vae.scaling_factor == 0.25f &&
               b->text.num_attention_heads == 1 && b->text.act == K_ACT_QUICK_GELU && b->pad_id == 49407,
           "configurations from JSON");
    tap_ok(b->schedule.prediction == PREDICT_V && b->schedule.beta == BETA_SCALED_LINEAR &&
               b->schedule.steps_offset == 1 && !b->schedule.clip_sample && !b->schedule.set_alpha_to_one,
           "the schedule as StableDiffusionPipeline corrects it");
    base_model_close(b);
}

static bool opens(const char *path, const struct base_options *o, const char *file)
{
    struct base_model *b = NULL;
    struct err e = { 0 };
    const int rc = base_model_open(&b, path, o, &e);
    const bool ok = !rc && strstr(b->file[0]->path, file) && b->unet_weights.n == 686;

    if (rc || !ok)
        tap_note("%s", rc ? e.text : b->file[0]->path);
    if (!rc)
        base_model_close(b);
    return ok;
}

/* In the order in which they are preferred; each is removed in turn. */
static void test_choice(void)
{
    static const char *const file[] = {
        "diffusion_pytorch_model.safetensors",      "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.bf16.json",
        "diffusion_pytorch_model.bin",              "diffusion_pytorch_model.fp16.bin",
    };
    const struct base_options fp16 = { .variant = "fp16", .prediction = -1 };
    bool ok = true;

    for (size_t i = 1; i < LEN(file); i++)
        if (strstr(file[i], ".json")) {
            base_text(base_path("dir/unet/%s", file[i]), "{\"weight_map\":{\"conv_in.weight\":\"a.safetensors\"}}");
        } else {
            write_part(base_path("dir/unet/%s", file[i]), "unet", tiny, false);
        }
    write_part(base_path("dir/unet/a.safetensors"), "unet", tiny, false);
    ok &= opens(base_path("dir"), &fp16, file[2]);
    for (size_t i = 0; i < LEN(file); i++) {
        ok &= opens(base_path("dir"), NULL, file[i]);
        remove(base_path("dir/unet/%s", file[i]));
    }
    tap_ok(ok, "the choice among weight files");
    refused(base_path("dir"), &fp16, E_IO, "there is neither diffusion_pytorch_model.safetensors nor");
}

/* One file of the directory replaced; the model as it was before and after. */
static void test_bad_directory(void)
{
    static const struct {
        const char *file, *text, *why;
        int code;
    } bad[] = {
        { "model_index.json", NULL, "No such file", E_IO },
        { "model_index.json", "", "line", E_FORMAT },
        { "model_index.json", "[]", "not a JSON object", E_FORMAT },
        { "model_index.json", "{\"unet\":[null,null]}", "it has no 'unet'", E_FORMAT },
        { "model_index.json", "{\"unet\":1}", "no pair", E_FORMAT },
        { "model_index.json", "{\"unet\":[\"diffusers\",\"UNet2DModel\"]}", "unet is a UNet2DModel", E_FORMAT },
        { "model_index.json", "{\"_class_name\":\"StableDiffusionXLPipeline\",\"text_encoder_2\":[\"a\",\"b\"]}",
          "a StableDiffusionXLPipeline has a component 'text_encoder_2'", E_FORMAT },
        { "model_index.json", "{\"unet\":[\"diffusers\",\"UNet2DConditionModel\"]}", "no text encoder", E_FORMAT },
        { "unet/config.json", NULL, "unet/config.json", E_IO },
        { "unet/config.json", "{\"in_channels\":9,\"block_out_channels\":[32,64,128,128],\"cross_attention_dim\":64}",
          "an inpainting model", E_FORMAT },
        { "text_encoder/config.json", "{\"model_type\":\"t5\"}", "model_type \"t5\" is not supported", E_FORMAT },
        { "text_encoder/model.safetensors", NULL, "neither model.safetensors nor pytorch_model.bin", E_IO },
        { "text_encoder/model.safetensors", "{", "text_encoder/model.safetensors", E_FORMAT },
        { "vae/config.json", "{\"scaling_factor\":\"a\"}", "'scaling_factor' is \"a\", not a number", E_FORMAT },
        { "scheduler/scheduler_config.json", "{\"beta_start\":0.5,\"beta_end\":0.1}", "no noise schedule", E_FORMAT },
    };

    make_directory("bad");
    for (size_t i = 0; i < LEN(bad); i++) {
        const char *path = base_path("bad/%s", bad[i].file), *aside = base_path("aside");
        rename(path, aside);
        if (bad[i].text)
            base_text(path, bad[i].text);
        refused(base_path("bad"), NULL, bad[i].code, bad[i].why);
        rename(aside, path);
    }
    tap_ok(opens(base_path("bad"), NULL, "bad/unet"), "whole again, it opens");
}

static bool vae_from(const char *path, const char *vae, float scaling)
{
    const struct base_options o = { .vae = vae, .prediction = -1 };
    struct base_model *b = NULL;
    struct err e = { 0 };
    bool ok = !base_model_open(&b, path, &o, &e);

    if (!ok)
        tap_note("%s", e.text);
    ok = ok && has_all(&b->vae_weights, "vae", tiny) && b->vae.scaling_factor == scaling;
    base_model_close(b);
    return ok;
}

static void test_other_vae(void)
{
    const char *single = base_path("tiny.safetensors"), *bare = base_path("no_vae.safetensors");
    const struct base_options o = { .vae = base_path("no_vae.safetensors"), .prediction = -1 };
    int64_t at;

    write_single(single, tiny, true, &at);
    write_single(bare, tiny, false, &at);
    tap_ok(vae_from(bare, base_path("bad"), 0.25f), "another VAE: of a model's directory");
    tap_ok(vae_from(bare, base_path("bad/vae"), 0.25f), "its folder");
    tap_ok(vae_from(bare, base_path("bad/vae/diffusion_pytorch_model.safetensors"), 0.18215f), "its file");
    tap_ok(vae_from(base_path("bad"), single, 0.18215f), "a part of a checkpoint");
    refused(bare, NULL, E_FORMAT, "there is no VAE in");
    refused(single, &o, E_FORMAT, "there is no VAE in");
    refused(single, &(struct base_options){ .vae = "nowhere", .prediction = -1 }, E_IO, "VAE 'nowhere'");
    refused(single, &(struct base_options){ .tokenizer = base_path("bad"), .prediction = -1 }, E_IO, "merges.txt");
}

/* Every allocation fails once. */
static void test_no_memory(void)
{
    const char *path = base_path("bad");
    long n = 0, failed = 0;
    bool ok = true;

    for (long at = 1; n == 0; at += at < 40 ? 1 : 211) {
        struct base_model *b = NULL;
        struct err e = { 0 };
        int rc;

        arena_fault_at(at);
        rc = base_model_open(&b, path, NULL, &e);
        n = arena_fault_count() < at ? at : 0;
        arena_fault_at(0);
        ok &= rc == OK ? b != NULL : rc == E_NOMEM && !b && e.code == E_NOMEM;
        failed += rc != OK;
        base_model_close(b);
    }
    tap_ok(ok && failed > 30, "out of memory, %ld times", failed);
}

int main(void)
{
    keys = keys_open();
    test_names();
    test_odd_names();
    test_full(false);
    test_full(true);
    test_stacked();
    test_other_sizes();
    test_foreign();
    test_broken();
    test_directory();
    test_choice();
    test_bad_directory();
    test_other_vae();
    test_no_memory();
    keys_close(keys);
    return tap_done();
}
