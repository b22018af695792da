/* core/model/unet_encoder.c: see unet_encoder.h. Skips are the result of conv_in, of each layer on the way down and of
 * each halving. */
#include "core/model/unet_encoder.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, halve = { 2, 1, 1, 1, 1 };

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

static void bind_resnet(struct layers *l, struct unet_resnet *r, const struct unet_config *c, int64_t Ci, int64_t Co,
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

static void bind_transformer(struct layers *l, struct unet_encoder *u, struct transformer *a, int64_t C, int64_t heads,
                             const char *name)
{
    char block[96], attn[112];

    snprintf(block, sizeof block, "%s.transformer_blocks.0", name);
    a->heads = heads;
    a->groups = u->config.norm_num_groups;
    a->block = u->n_block;
    u->block_name[u->n_block] = copy_name(l, block);
    u->block[u->n_block++] = a;
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

void unet_stage_bind(struct layers *l, struct unet_encoder *u, struct unet_stage *s, const int64_t *Ci, int64_t C,
                     int64_t heads, int n, const char *name)
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

static void bind_down(struct layers *l, struct unet_encoder *u)
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
        unet_stage_bind(l, u, &u->down[s], Ci, c->width[s], c->heads[s], c->layers_per_block, name);
    }
}

int unet_encoder_bind(struct layers *l, struct unet_encoder *u, const struct unet_config *c, struct err *e)
{
    const int64_t D = 4 * c->width[0], C = c->n_stage > 0 ? c->width[c->n_stage - 1] : 0;
    const int64_t heads = c->n_stage > 0 ? c->heads[c->n_stage - 1] : 0;
    const int rc = check_config(c, e);

    if (rc)
        return rc;
    u->config = *c;
    layer_conv(l, &u->conv_in, c->width[0], 3, c->in_channels, true, "conv_in");
    layer_linear(l, &u->time1, D, c->width[0], true, "time_embedding.linear_1");
    layer_linear(l, &u->time2, D, D, true, "time_embedding.linear_2");
    bind_down(l, u);
    bind_resnet(l, &u->mid[0], c, C, C, "mid_block.resnets.0");
    bind_transformer(l, u, &u->mid_attention, C, heads, "mid_block.attentions.0");
    bind_resnet(l, &u->mid[1], c, C, C, "mid_block.resnets.1");
    return OK;
}

/* ---- forward ---- */

static struct tensor *linear(struct tape *t, struct tensor *x, struct weight *w, struct err *e)
{
    return op_linear(t, x, w, NULL, 0, NULL, e);
}

static struct tensor *like_but(struct tape *t, const struct tensor *x, int64_t C, struct err *e)
{
    return tape_new(t, x->type, 4, (int64_t[]){ x->dim[0], x->dim[1], x->dim[2], C }, e);
}

/* x (B,H,W,Ci) -> y (B,H,W,Co); He et al. 2016 as latent diffusion has it. */
static struct tensor *resnet(struct unet_pass *p, struct unet_resnet *r, struct tensor *x, struct tensor *y,
                             struct err *e)
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

static struct tensor *transformer(struct unet_pass *p, struct transformer *a, struct tensor *x, struct tensor *y,
                                  struct err *e)
{
    return transformer_forward(p->t, a, x, y, p->text, p->call->pairs, e);
}

/* Only the result stays, in y, which is new if it is NULL. */
static struct tensor *layer(struct unet_pass *p, struct unet_stage *s, int i, struct tensor *x, struct tensor *skip,
                            struct tensor *y, struct err *e)
{
    struct tape *t = p->t;
    struct tape_mark m;
    struct tensor *h;

    y = y ? y : like_but(t, x, s->resnet[i].conv2.Co, e);
    m = tape_mark(t);
    if (!y || (skip && !(x = op_join(t, x, skip, e))) || !(h = s->attends ? tape_like(t, y, e) : y)
        || !(h = resnet(p, &s->resnet[i], x, h, e)) || (s->attends && !transformer(p, &s->attention[i], h, y, e)))
        return NULL;
    tape_release(t, m);
    return y;
}

static struct tensor *middle_layers(struct unet_pass *p, struct tensor *x, struct tensor *y, struct err *e)
{
    struct tape *t = p->t;
    struct tensor *h, *a;
    struct tape_mark m;

    y = y ? y : tape_like(t, x, e);
    m = tape_mark(t);
    if (!y || !(h = tape_like(t, x, e)) || !(a = tape_like(t, x, e)) || !(h = resnet(p, &p->u->mid[0], x, h, e))
        || !(a = transformer(p, &p->u->mid_attention, h, a, e)) || !(y = resnet(p, &p->u->mid[1], a, y, e)))
        return NULL;
    tape_release(t, m);
    return y;
}

/* ---- segments: layers that are done again on the way back ---- */

/* What a layer needs then, when the pass that asked for it is long gone. stage NULL: the middle. */
struct again {
    struct unet_pass pass;
    struct unet_call call;
    struct joint_run pairs;
    struct unet_text text;
    struct unet_stage *stage;
    int i, block;                                   /* block -1: no transformer */
};

enum { IN_X, IN_EMB, IN_K, IN_V, IN_SKIP, N_IN };

static struct tensor *do_layer(struct tape *t, void *ctx, struct tensor **in, int n_in, struct err *e)
{
    const struct again *a = ctx;
    const bool keeping = t->keeping;
    struct unet_text text = a->text;
    struct unet_pass p = a->pass;
    struct tensor *y;

    p.t = t;
    p.emb = in[IN_EMB];
    p.text = &text;
    if (a->block >= 0) {
        text.k[a->block] = in[IN_K];
        text.v[a->block] = in[IN_V];
    }
    t->keeping = true;                              /* transformers put results above their marks where they record */
    y = a->stage ? layer(&p, a->stage, a->i, in[IN_X], n_in > IN_SKIP ? in[IN_SKIP] : NULL, t->result, e)
        : middle_layers(&p, in[IN_X], t->result, e);
    t->keeping = keeping;
    return y;
}

static struct tensor *segment(struct unet_pass *p, struct unet_stage *s, int i, struct tensor *x, struct tensor *skip,
                              struct err *e)
{
    const struct transformer *own = !s ? &p->u->mid_attention : s->attends ? &s->attention[i] : NULL;
    const int64_t C = s ? s->resnet[i].conv2.Co : x->dim[3];
    struct tensor like = { .type = x->type, .n_dim = 4, .dim = { x->dim[0], x->dim[1], x->dim[2], C } };
    struct tensor *in[N_IN] = { x, p->emb, p->text->k[own ? own->block : 0], p->text->v[own ? own->block : 0], skip };
    struct again *a = tape_save(p->t, sizeof *a, e);

    if (!a)
        return NULL;
    *a = (struct again){ .pass = *p, .call = *p->call, .text = *p->text, .stage = s, .i = i,
                         .block = own ? own->block : -1 };
    if (p->call->pairs) {
        a->pairs = *p->call->pairs;
        a->call.pairs = &a->pairs;
    }
    a->pass.call = &a->call;
    return tape_segment(p->t, do_layer, a, in, skip ? N_IN : N_IN - 1, &like, e);
}

static bool in_segments(const struct unet_pass *p) { return p->call->segments && p->t->recording; }

/* Layer i of a stage over x, or over x joined with a skip: a resnet and, where the stage attends, a transformer. */
struct tensor *unet_layer(struct unet_pass *p, struct unet_stage *s, int i, struct tensor *x, struct tensor *skip,
                          struct err *e)
{
    return in_segments(p) ? segment(p, s, i, x, skip, e) : layer(p, s, i, x, skip, NULL, e);
}

static struct tensor *middle(struct unet_pass *p, struct tensor *x, struct err *e)
{
    return in_segments(p) ? segment(p, NULL, 0, x, NULL, e) : middle_layers(p, x, NULL, e);
}

static struct tensor *way_down(struct unet_pass *p, struct tensor *x, struct err *e)
{
    struct unet_encoder *u = p->u;

    p->skip[p->n_skip++] = x;
    for (int s = 0; s < u->config.n_stage; s++) {
        for (int i = 0; i < u->config.layers_per_block; i++) {
            if (!(x = unet_layer(p, &u->down[s], i, x, NULL, e)))
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

/* time (B) -> (B,4 width): sinusoids through two layers, and the SiLU with which every resnet begins */
static struct tensor *time_embedding(struct tape *t, struct unet_encoder *u, struct tensor *time, enum dtype type,
                                     struct err *e)
{
    const struct op_epilogue silu = { .act = K_ACT_SILU };
    struct tensor *h;

    if (!(h = op_time_embed(t, time, u->config.width[0], type, e))
        || !(h = op_linear(t, h, &u->time1, NULL, 0, &silu, e)))
        return NULL;
    return op_linear(t, h, &u->time2, NULL, 0, &silu, e);
}

static int check_shapes(const struct unet_encoder *u, const struct tensor *x, const struct tensor *time,
                        const struct unet_text *text, struct err *e)
{
    const int64_t groups = text->n_group, prompts = text->n ? text->k[0]->dim[0] : 0;
    char have[96], other[96];

    if (x->n_dim != 4 || x->dim[3] != u->config.in_channels || x->dim[1] < 1 || x->dim[2] < 1
        || x->type != u->conv_in.pack_type)
        return err_set(e, E_ARG, "UNet: x is %s, want %s (B,H,W,%" PRId64 ")", tensor_text(x, have, sizeof have),
                       dtype_name(u->conv_in.pack_type), u->config.in_channels);
    if (tensor_count(time) != x->dim[0] || text->n != u->n_block
        || (groups ? groups > UNET_MAX_GROUP || x->dim[0] % groups != 0 : prompts != x->dim[0]))
        return err_set(e, E_ARG, "UNet: x %s, but the time is %s and the text has %" PRId64 " rows in %" PRId64
                       " groups", tensor_text(x, have, sizeof have), tensor_text(time, other, sizeof other), prompts,
                       groups);
    for (int g = 0; g < groups; g++)
        if (text->prompt[g] < 0 || text->prompt[g] >= prompts)
            return err_set(e, E_ARG, "UNet: rows of prompt %d; there are %" PRId64, text->prompt[g], prompts);
    return OK;
}

static bool in_batch(const struct joint_pair *p, int input, int n)
{
    return input < n && (input >= 0 || (input == -1 && p->wx == 0 && p->wy == 0));
}

/* Rows that the inputs do not divide, and pairs of inputs that are not there. */
static int check_pairs(const struct tensor *x, const struct joint_run *r, int n_group, struct err *e)
{
    if (!r)
        return OK;
    if (r->n_input < 1 || r->n_input > JOINT_MAX_PAIR || r->n_pair < 0 || r->n_pair > JOINT_MAX_PAIR
        || x->dim[0] % r->n_input || n_group % r->n_input)
        return err_set(e, E_ARG, "UNet: %" PRId64 " rows cannot be those of %d inputs in %d pairs", x->dim[0],
                       r->n_input, r->n_pair);
    for (int i = 0; i < r->n_pair; i++)
        if (!in_batch(&r->pair[i], r->pair[i].x, r->n_input) || !in_batch(&r->pair[i], r->pair[i].y, r->n_input)
            || r->pair[i].x == r->pair[i].y || !r->pair[i].joint)
            return err_set(e, E_ARG, "UNet: pair %d is of inputs %d and %d; there are %d", i, r->pair[i].x,
                           r->pair[i].y, r->n_input);
    return OK;
}

int unet_check(const struct unet_encoder *u, const struct tensor *x, const struct tensor *time,
               const struct unet_text *text, const struct unet_call *call, struct err *e)
{
    const int rc = check_shapes(u, x, time, text, e);

    return rc ? rc : check_pairs(x, call->pairs, text->n_group, e);
}

struct tensor *unet_encode(struct unet_pass *p, struct tensor *x, struct tensor *time, struct tensor *hint,
                           struct err *e)
{
    const struct op_epilogue add = { .residual = hint };
    struct tensor *h;

    if (!(p->emb = time_embedding(p->t, p->u, time, x->type, e))
        || !(h = op_conv(p->t, x, NULL, &p->u->conv_in, same, NULL, &add, e)) || !(h = way_down(p, h, e)))
        return NULL;
    return middle(p, h, e);
}

int unet_encoder_text(struct tape *t, struct unet_encoder *u, struct tensor *text, const struct joint_run *run,
                      struct unet_text *out, struct err *e)
{
    char have[96];
    int rc = OK;

    if (text->n_dim != 3 || text->dim[2] != u->config.cross_attention_dim || text->type != u->conv_in.pack_type)
        return err_set(e, E_ARG, "UNet: the text is %s, want %s (P,T,%" PRId64 "): is it of another model's encoder?",
                       tensor_text(text, have, sizeof have), dtype_name(u->conv_in.pack_type),
                       u->config.cross_attention_dim);
    rc = check_pairs(text, run, 0, e);
    *out = (struct unet_text){ 0 };
    for (int i = 0; i < u->n_block && !rc; i++)
        rc = transformer_text(t, u->block[i], text, run, &out->k[i], &out->v[i], e);
    out->n = rc ? 0 : u->n_block;
    return rc;
}
