/* core/model/unet.c: the denoiser of latent diffusion. Sizes of SD 1.5 at 512 px, (H,W,C):
 *
 *   conv_in  (64,64,   4) -> (64,64, 320)     time: 320 sinusoids -> 1280 -> SiLU -> 1280 -> SiLU
 *   down 0   (64,64, 320) -> (32,32, 320)     2 x (resnet, transformer), halve
 *   down 1   (32,32, 320) -> (16,16, 640)     2 x (resnet, transformer), halve
 *   down 2   (16,16, 640) -> ( 8, 8,1280)     2 x (resnet, transformer), halve
 *   down 3   ( 8, 8,1280) -> ( 8, 8,1280)     2 x resnet
 *   mid      ( 8, 8,1280) -> ( 8, 8,1280)     resnet, transformer, resnet
 *   up 0..3  the mirror: 3 x (resnet over the hidden map joined with a skip, transformer), double
 *   out      (64,64, 320) -> (64,64,   4)     norm, SiLU, conv
 *
 * Skips are the result of conv_in, of each layer on the way down and of each halving; the way up takes them back last
 * first. Names are those of the checkpoint. */
#include "core/model/unet.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/model/transformer.h"

enum { MAX_SKIP = 1 + UNET_MAX_STAGE * (UNET_MAX_LAYERS + 1) };

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, halve = { 2, 1, 1, 1, 1 };

struct resnet {                                     /* R(i,o) */
    struct norm norm1, norm2;
    struct weight conv1, time_emb_proj, conv2, conv_shortcut;
    bool has_shortcut;                              /* i != o */
};

struct stage {
    struct resnet resnet[UNET_MAX_LAYERS + 1];
    struct transformer attention[UNET_MAX_LAYERS + 1];
    struct weight sampler;                          /* halves or doubles; not in the last stage */
    bool attends, has_sampler;
};

struct unet {
    struct unet_config config;
    struct weight conv_in, conv_out, time1, time2;
    struct norm conv_norm_out;
    struct stage down[UNET_MAX_STAGE], up[UNET_MAX_STAGE];
    struct resnet mid[2];
    struct transformer mid_attention;
    struct transformer *text[UNET_MAX_BLOCK];       /* in the order of the forward pass */
    const char *block_name[UNET_MAX_BLOCK];
    int n_text;
};

/* ---- configurations ---- */

struct unet_config unet_config_sd15(void)
{
    return (struct unet_config){
        .in_channels = 4, .out_channels = 4, .n_stage = 4, .width = { 320, 640, 1280, 1280 },
        .down_attends = { true, true, true, false }, .up_attends = { false, true, true, true },
        .heads = { 8, 8, 8, 8 }, .layers_per_block = 2, .cross_attention_dim = 768, .norm_num_groups = 32,
        .norm_eps = 1e-5f, .sample_size = 64,
    };
}

struct unet_config unet_config_sd2(void)
{
    struct unet_config c = unet_config_sd15();

    for (int i = 0; i < c.n_stage; i++)
        c.heads[i] = c.width[i] / 64;
    c.cross_attention_dim = 1024;
    c.use_linear_projection = true;
    c.sample_size = 96;
    return c;
}

static int check_config(const struct unet_config *c, struct err *e)
{
    if (c->n_stage < 1 || c->n_stage > UNET_MAX_STAGE || c->layers_per_block < 1
        || c->layers_per_block > UNET_MAX_LAYERS || c->in_channels < 1 || c->out_channels < 1
        || c->cross_attention_dim < 1 || c->norm_num_groups < 1)
        return err_set(e, E_FORMAT, "the UNet's configuration has %d stages of %d layers, %" PRId64 " channels in and %"
                       PRId64 " out: that cannot be built", c->n_stage, c->layers_per_block, c->in_channels,
                       c->out_channels);
    for (int i = 0; i < c->n_stage; i++)
        if (c->width[i] < 2 || c->width[i] % 2 || c->width[i] > 1 << 16 || c->width[i] % c->norm_num_groups
            || c->heads[i] < 1 || c->width[i] % c->heads[i])
            return err_set(e, E_FORMAT, "stage %d of the UNet has %" PRId64 " channels, which %" PRId64 " groups and %"
                           PRId64 " heads do not divide", i, c->width[i], c->norm_num_groups, c->heads[i]);
    return OK;
}

/* ---- weights by name ---- */

static void bind_resnet(struct layers *l, struct resnet *r, const struct unet_config *c, int64_t Ci, int64_t Co,
                        const char *name)
{
    const int64_t D = 4 * c->width[0];

    r->has_shortcut = Ci != Co;
    layer_norm(l, &r->norm1, Ci, "%s.norm1", name);
    layer_conv(l, &r->conv1, Co, 3, Ci, true, "%s.conv1", name);
    layer_linear(l, &r->time_emb_proj, Co, D, true, "%s.time_emb_proj", name);
    layer_norm(l, &r->norm2, Co, "%s.norm2", name);
    layer_conv(l, &r->conv2, Co, 3, Co, true, "%s.conv2", name);
    if (r->has_shortcut)
        layer_conv(l, &r->conv_shortcut, Co, 1, Ci, true, "%s.conv_shortcut", name);
}

static void bind_attention(struct layers *l, struct attention *a, int64_t C, int64_t Ck, const char *name)
{
    layer_linear(l, &a->to_q, C, C, false, "%s.to_q", name);
    layer_linear(l, &a->to_k, C, Ck, false, "%s.to_k", name);
    layer_linear(l, &a->to_v, C, Ck, false, "%s.to_v", name);
    layer_linear(l, &a->to_out, C, C, true, "%s.to_out.0", name);
}

static const char *copy_name(struct layers *l, const char *name)
{
    const size_t n = strlen(name) + 1;
    char *p = arena_push(&l->mem->meta, n, &l->failed);

    return p ? memcpy(p, name, n) : NULL;
}

static void bind_transformer(struct layers *l, struct unet *u, struct transformer *a, int64_t C, int64_t heads,
                             const char *name)
{
    char block[96], attn[112];

    snprintf(block, sizeof block, "%s.transformer_blocks.0", name);
    a->heads = heads;
    a->groups = u->config.norm_num_groups;
    a->block = u->n_text;
    u->block_name[u->n_text] = copy_name(l, block);
    u->text[u->n_text++] = a;
    layer_norm(l, &a->norm, C, "%s.norm", name);
    layer_linear(l, &a->proj_in, C, C, true, "%s.proj_in", name);
    layer_norm(l, &a->norm1, C, "%s.norm1", block);
    snprintf(attn, sizeof attn, "%s.attn1", block);
    bind_attention(l, &a->attn1, C, C, attn);
    layer_norm(l, &a->norm2, C, "%s.norm2", block);
    snprintf(attn, sizeof attn, "%s.attn2", block);
    bind_attention(l, &a->attn2, C, u->config.cross_attention_dim, attn);
    layer_norm(l, &a->norm3, C, "%s.norm3", block);
    layer_linear(l, &a->ff_proj, 8 * C, C, true, "%s.ff.net.0.proj", block);
    layer_linear(l, &a->ff_out, C, 4 * C, true, "%s.ff.net.2", block);
    layer_linear(l, &a->proj_out, C, C, true, "%s.proj_out", name);
}

/* Layers of one stage; Ci[i] is what resnet i takes. */
static void bind_stage(struct layers *l, struct unet *u, struct stage *s, const int64_t *Ci, int64_t C, int64_t heads,
                       int n, const char *name)
{
    char part[80];

    for (int i = 0; i < n; i++) {
        snprintf(part, sizeof part, "%s.resnets.%d", name, i);
        bind_resnet(l, &s->resnet[i], &u->config, Ci[i], C, part);
        if (s->attends) {
            snprintf(part, sizeof part, "%s.attentions.%d", name, i);
            bind_transformer(l, u, &s->attention[i], C, heads, part);
        }
    }
    if (s->has_sampler)
        layer_conv(l, &s->sampler, C, 3, C, true, "%s.%s.0.conv", name, name[0] == 'd' ? "downsamplers" : "upsamplers");
}

static void bind_down(struct layers *l, struct unet *u)
{
    const struct unet_config *c = &u->config;

    for (int s = 0; s < c->n_stage; s++) {
        int64_t Ci[UNET_MAX_LAYERS];
        char name[32];

        for (int i = 0; i < c->layers_per_block; i++)
            Ci[i] = i ? c->width[s] : c->width[s ? s - 1 : 0];
        u->down[s].attends = c->down_attends[s];
        u->down[s].has_sampler = s + 1 < c->n_stage;
        snprintf(name, sizeof name, "down_blocks.%d", s);
        bind_stage(l, u, &u->down[s], Ci, c->width[s], c->heads[s], c->layers_per_block, name);
    }
}

/* Up stage j has the width of down stage n-1-j. Its layers take back that stage's skips, and as the last one what came
 * into it. */
static void bind_up(struct layers *l, struct unet *u)
{
    const struct unet_config *c = &u->config;
    const int n = c->layers_per_block;

    for (int j = 0; j < c->n_stage; j++) {
        const int s = c->n_stage - 1 - j;
        int64_t Ci[UNET_MAX_LAYERS + 1];
        char name[32];

        for (int i = 0; i <= n; i++)
            Ci[i] = (i ? c->width[s] : c->width[s + 1 < c->n_stage ? s + 1 : s])
                + (i < n ? c->width[s] : c->width[s ? s - 1 : 0]);
        u->up[j].attends = c->up_attends[j];
        u->up[j].has_sampler = s > 0;
        snprintf(name, sizeof name, "up_blocks.%d", j);
        bind_stage(l, u, &u->up[j], Ci, c->width[s], c->heads[s], n + 1, name);
    }
}

int unet_new(struct unet **out, const struct unet_config *c, struct layers *l, struct err *e)
{
    const int64_t D = 4 * c->width[0], C = c->n_stage > 0 ? c->width[c->n_stage - 1] : 0;
    const int64_t heads = c->n_stage > 0 ? c->heads[c->n_stage - 1] : 0;
    struct unet *u;
    int rc = check_config(c, e);

    u = rc ? NULL : arena_push_zero(&l->mem->meta, sizeof *u, e);
    if (!u)
        return rc ? rc : e->code;
    u->config = *c;
    layer_conv(l, &u->conv_in, c->width[0], 3, c->in_channels, true, "conv_in");
    layer_linear(l, &u->time1, D, c->width[0], true, "time_embedding.linear_1");
    layer_linear(l, &u->time2, D, D, true, "time_embedding.linear_2");
    bind_down(l, u);
    bind_resnet(l, &u->mid[0], c, C, C, "mid_block.resnets.0");
    bind_transformer(l, u, &u->mid_attention, C, heads, "mid_block.attentions.0");
    bind_resnet(l, &u->mid[1], c, C, C, "mid_block.resnets.1");
    bind_up(l, u);
    layer_norm(l, &u->conv_norm_out, c->width[0], "conv_norm_out");
    layer_conv(l, &u->conv_out, c->out_channels, 3, c->width[0], true, "conv_out");
    rc = layers_done(l, "UNet", NULL, e);
    if (!rc)
        *out = u;
    return rc;
}

const struct unet_config *unet_config(const struct unet *u) { return &u->config; }

struct weight *unet_attention_weight(struct unet *u, const char *name)
{
    for (int i = 0; i < u->n_text; i++) {
        struct attention *a[] = { &u->text[i]->attn1, &u->text[i]->attn2 };

        for (int j = 0; j < 2; j++) {
            struct weight *w[] = { &a[j]->to_q, &a[j]->to_k, &a[j]->to_v, &a[j]->to_out };

            for (int k = 0; k < 4; k++)
                if (w[k]->name && !strcmp(w[k]->name, name))
                    return w[k];
        }
    }
    return NULL;
}

/* ---- forward ---- */

struct pass {
    struct tape *t;
    struct unet *u;
    struct tensor *emb;                             /* (B,4 width) after its SiLU: what every resnet takes */
    const struct unet_text *text;
    const struct joint_run *run;
    struct tensor *skip[MAX_SKIP];
    int n_skip;
};

static struct tensor *linear(struct tape *t, struct tensor *x, struct weight *w, struct err *e)
{
    return op_linear(t, x, w, NULL, 0, NULL, e);
}

static struct tensor *like_but(struct tape *t, const struct tensor *x, int64_t C, struct err *e)
{
    return tape_new(t, x->type, 4, (int64_t[]){ x->dim[0], x->dim[1], x->dim[2], C }, e);
}

/* x (B,H,W,Ci) -> y (B,H,W,Co); He et al. 2016 as latent diffusion has it. */
static struct tensor *resnet(struct pass *p, struct resnet *r, struct tensor *x, struct tensor *y, struct err *e)
{
    const int64_t G = p->u->config.norm_num_groups;
    const struct op_shortcut shortcut = { &r->conv_shortcut, x, NULL };
    const struct op_epilogue add = { .residual = r->has_shortcut ? NULL : x };
    const float eps = p->u->config.norm_eps;
    struct op_epilogue time = { .act = K_ACT_NONE };
    struct tape *t = p->t;
    const struct tape_mark m = tape_mark(t);
    struct tensor *h;

    if (!(time.row_add = linear(t, p->emb, &r->time_emb_proj, e))
        || !(h = op_group_norm(t, x, r->norm1.gamma, r->norm1.beta, G, eps, true, e))
        || !(h = op_conv(t, h, NULL, &r->conv1, same, NULL, &time, e))
        || !(h = op_group_norm(t, h, r->norm2.gamma, r->norm2.beta, G, eps, true, e)))
        return NULL;
    tape_into(t, y);
    y = op_conv(t, h, NULL, &r->conv2, same, r->has_shortcut ? &shortcut : NULL, &add, e);
    tape_release(t, m);
    return y;
}

static struct tensor *transformer(struct pass *p, struct transformer *a, struct tensor *x, struct tensor *y,
                                  struct err *e)
{
    return transformer_forward(p->t, a, x, y, p->text->k[a->block], p->text->v[a->block], p->run, e);
}

/* Layer i of a stage over x, or over x joined with a skip: a resnet and, where the stage attends, a transformer. Only
 * the result stays. */
static struct tensor *layer(struct pass *p, struct stage *s, int i, struct tensor *x, struct tensor *skip,
                            struct err *e)
{
    struct tape *t = p->t;
    struct tensor *y = like_but(t, x, s->resnet[i].conv2.Co, e), *h;
    const struct tape_mark m = tape_mark(t);

    if (!y || (skip && !(x = op_join(t, x, skip, e))) || !(h = s->attends ? tape_like(t, y, e) : y)
        || !(h = resnet(p, &s->resnet[i], x, h, e)) || (s->attends && !transformer(p, &s->attention[i], h, y, e)))
        return NULL;
    tape_release(t, m);
    return y;
}

static struct tensor *middle(struct pass *p, struct tensor *x, struct err *e)
{
    struct tape *t = p->t;
    struct tensor *y = tape_like(t, x, e), *h, *a;
    const struct tape_mark m = tape_mark(t);

    if (!y || !(h = tape_like(t, x, e)) || !(a = tape_like(t, x, e)) || !(h = resnet(p, &p->u->mid[0], x, h, e))
        || !(a = transformer(p, &p->u->mid_attention, h, a, e)) || !(y = resnet(p, &p->u->mid[1], a, y, e)))
        return NULL;
    tape_release(t, m);
    return y;
}

static struct tensor *way_down(struct pass *p, struct tensor *x, struct err *e)
{
    struct unet *u = p->u;

    p->skip[p->n_skip++] = x;
    for (int s = 0; s < u->config.n_stage; s++) {
        for (int i = 0; i < u->config.layers_per_block; i++) {
            if (!(x = layer(p, &u->down[s], i, x, NULL, e)))
                return NULL;
            p->skip[p->n_skip++] = x;
        }
        if (u->down[s].has_sampler) {
            if (!(x = op_conv(p->t, x, NULL, &u->down[s].sampler, halve, NULL, NULL, e)))
                return NULL;
            p->skip[p->n_skip++] = x;
        }
    }
    return x;
}

/* What is doubled takes the size of the skip that it will be joined with. */
static struct tensor *way_up(struct pass *p, struct tensor *x, struct err *e)
{
    struct unet *u = p->u;

    for (int j = 0; j < u->config.n_stage; j++) {
        for (int i = 0; i <= u->config.layers_per_block; i++)
            if (!(x = layer(p, &u->up[j], i, x, p->skip[--p->n_skip], e)))
                return NULL;
        if (u->up[j].has_sampler) {
            const struct tensor *next = p->skip[p->n_skip - 1];

            if (!(x = op_upsample_conv(p->t, x, &u->up[j].sampler, next->dim[1], next->dim[2], e)))
                return NULL;
        }
    }
    return x;
}

/* time (B) -> (B,4 width): sinusoids through two layers, and the SiLU with which every resnet begins */
static struct tensor *time_embedding(struct tape *t, struct unet *u, struct tensor *time, enum dtype type,
                                     struct err *e)
{
    const struct op_epilogue silu = { .act = K_ACT_SILU };
    struct tensor *h;

    if (!(h = op_time_embed(t, time, u->config.width[0], type, e))
        || !(h = op_linear(t, h, &u->time1, NULL, 0, &silu, e)))
        return NULL;
    return op_linear(t, h, &u->time2, NULL, 0, &silu, e);
}

static int check_inputs(const struct unet *u, const struct tensor *x, const struct tensor *time,
                        const struct unet_text *text, struct err *e)
{
    char have[96], other[96];

    if (x->n_dim != 4 || x->dim[3] != u->config.in_channels || x->dim[1] < 1 || x->dim[2] < 1
        || x->type != u->conv_in.pack_type)
        return err_set(e, E_ARG, "UNet: x is %s, want %s (B,H,W,%" PRId64 ")", tensor_text(x, have, sizeof have),
                       dtype_name(u->conv_in.pack_type), u->config.in_channels);
    if (tensor_count(time) != x->dim[0] || text->n != u->n_text || text->k[0]->dim[0] != x->dim[0])
        return err_set(e, E_ARG, "UNet: x %s, but the time is %s and the text has %" PRId64 " rows",
                       tensor_text(x, have, sizeof have), tensor_text(time, other, sizeof other),
                       text->n ? text->k[0]->dim[0] : 0);
    return OK;
}

/* Rows that the inputs do not divide, and pairs of inputs that are not there. */
static int check_run(const struct tensor *x, const struct joint_run *r, struct err *e)
{
    if (!r)
        return OK;
    if (r->n_input < 1 || r->n_input > JOINT_MAX_PAIR || r->n_pair < 0 || r->n_pair > JOINT_MAX_PAIR
        || x->dim[0] % r->n_input)
        return err_set(e, E_ARG, "UNet: %" PRId64 " rows cannot be those of %d inputs in %d pairs", x->dim[0],
                       r->n_input, r->n_pair);
    for (int i = 0; i < r->n_pair; i++)
        if (r->pair[i].x < 0 || r->pair[i].x >= r->n_input || r->pair[i].y < 0 || r->pair[i].y >= r->n_input
            || r->pair[i].x == r->pair[i].y || !r->pair[i].joint)
            return err_set(e, E_ARG, "UNet: pair %d is of inputs %d and %d; there are %d", i, r->pair[i].x,
                           r->pair[i].y, r->n_input);
    return OK;
}

struct tensor *unet_forward(struct tape *t, struct unet *u, struct tensor *x, struct tensor *time,
                            const struct unet_text *text, const struct joint_run *run, struct err *e)
{
    const int64_t G = u->config.norm_num_groups;
    struct pass p = { .t = t, .u = u, .text = text, .run = run };
    struct tensor *y, *h;
    struct tape_mark m;

    if (check_inputs(u, x, time, text, e) || check_run(x, run, e) || !(y = like_but(t, x, u->config.out_channels, e)))
        return NULL;
    m = tape_mark(t);
    if (!(p.emb = time_embedding(t, u, time, x->type, e))
        || !(h = op_conv(t, x, NULL, &u->conv_in, same, NULL, NULL, e))
        || !(h = way_down(&p, h, e)) || !(h = middle(&p, h, e)) || !(h = way_up(&p, h, e))
        || !(h = op_group_norm(t, h, u->conv_norm_out.gamma, u->conv_norm_out.beta, G, u->config.norm_eps, true, e)))
        return NULL;
    tape_into(t, y);
    y = op_conv(t, h, NULL, &u->conv_out, same, NULL, NULL, e);
    tape_release(t, m);
    return y;
}

int unet_places(struct unet *u, struct joint_place *out)
{
    for (int i = 0; i < u->n_text; i++)
        out[i] = (struct joint_place){ u->block_name[i], u->text[i]->attn1.to_q.Co };
    return u->n_text;
}

int unet_text(struct tape *t, struct unet *u, struct tensor *text, const struct joint_run *run, struct unet_text *out,
              struct err *e)
{
    char have[96];
    int rc = OK;

    if (text->n_dim != 3 || text->dim[2] != u->config.cross_attention_dim || text->type != u->conv_in.pack_type)
        return err_set(e, E_ARG, "UNet: the text is %s, want %s (B,T,%" PRId64 "): is it of another model's encoder?",
                       tensor_text(text, have, sizeof have), dtype_name(u->conv_in.pack_type),
                       u->config.cross_attention_dim);
    rc = check_run(text, run, e);
    out->n = 0;
    for (int i = 0; i < u->n_text && !rc; i++)
        rc = transformer_text(t, u->text[i], text, run, &out->k[i], &out->v[i], e);
    out->n = rc ? 0 : u->n_text;
    return rc;
}
