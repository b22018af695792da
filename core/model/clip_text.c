/* core/model/clip_text.c: CLIP's text transformer; Radford et al. 2021, sec. 2.4. For SD1.x: 77 tokens, width 768, 12
 * layers of 12 heads.
 *
 *   (77) ids -> token + position vectors -> 12 x [ h + attention(norm h), h + fc2(act(fc1(norm h))) ] -> norm ->
 * (77,768)
 *
 * A token sees those before it and itself; padding is seen like any other token. */
#include "core/model/clip_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct clip_layer {
    struct norm layer_norm1, layer_norm2;
    struct weight q_proj, k_proj, v_proj, out_proj, fc1, fc2;
};

struct clip_text {
    struct clip_text_config config;
    const struct weights *table;
    enum dtype type;
    struct weights_entry *token, *position;         /* (vocab,D), (77,D): read by row */
    struct clip_layer layer[CLIP_TEXT_MAX_LAYER];
    struct norm final_layer_norm;
};

struct clip_text_config clip_text_config_sd15(void)
{
    return (struct clip_text_config){
        .vocab_size = 49408, .max_position_embeddings = 77, .hidden_size = 768, .intermediate_size = 3072,
        .num_hidden_layers = 12, .num_attention_heads = 12, .act = K_ACT_QUICK_GELU, .layer_norm_eps = 1e-5f,
    };
}

struct clip_text_config clip_text_config_sd2(void)
{
    return (struct clip_text_config){
        .vocab_size = 49408, .max_position_embeddings = 77, .hidden_size = 1024, .intermediate_size = 4096,
        .num_hidden_layers = 23, .num_attention_heads = 16, .act = K_ACT_GELU, .layer_norm_eps = 1e-5f,
    };
}

static bool is_idle(const char *name)
{
    return !strcmp(name, "text_model.embeddings.position_ids") || !strcmp(name, "text_projection.weight")
        || !strcmp(name, "logit_scale");
}

static void bind_layer(struct layers *l, struct clip_layer *a, const struct clip_text_config *c, int i)
{
    const int64_t D = c->hidden_size, M = c->intermediate_size;
    char name[64];

    snprintf(name, sizeof name, "text_model.encoder.layers.%d", i);
    layer_norm(l, &a->layer_norm1, D, "%s.layer_norm1", name);
    layer_linear(l, &a->q_proj, D, D, true, "%s.self_attn.q_proj", name);
    layer_linear(l, &a->k_proj, D, D, true, "%s.self_attn.k_proj", name);
    layer_linear(l, &a->v_proj, D, D, true, "%s.self_attn.v_proj", name);
    layer_linear(l, &a->out_proj, D, D, true, "%s.self_attn.out_proj", name);
    layer_norm(l, &a->layer_norm2, D, "%s.layer_norm2", name);
    layer_linear(l, &a->fc1, M, D, true, "%s.mlp.fc1", name);
    layer_linear(l, &a->fc2, D, M, true, "%s.mlp.fc2", name);
}

int clip_text_new(struct clip_text **out, const struct clip_text_config *c, struct layers *l, struct err *e)
{
    const int64_t D = c->hidden_size;
    struct clip_text *m;
    int rc;

    if (c->num_hidden_layers < 1 || c->num_hidden_layers > CLIP_TEXT_MAX_LAYER || c->num_attention_heads < 1 || D < 1
        || D > 1 << 16 || D % c->num_attention_heads || c->intermediate_size < 1 || c->intermediate_size > 1 << 18
        || c->vocab_size < 1 || c->max_position_embeddings < 2)
        return err_set(e, E_FORMAT, "the text encoder's configuration has %d layers of %" PRId64 " in %" PRId64
                       " heads: that cannot be built", c->num_hidden_layers, D, c->num_attention_heads);
    m = arena_push_zero(&l->mem->meta, sizeof *m, e);
    if (!m)
        return e->code;
    m->config = *c;
    m->table = l->weights;
    m->type = l->type;
    m->token = layer_table(l, c->vocab_size, D, "text_model.embeddings.token_embedding");
    m->position = layer_table(l, c->max_position_embeddings, D, "text_model.embeddings.position_embedding");
    for (int i = 0; i < c->num_hidden_layers; i++)
        bind_layer(l, &m->layer[i], c, i);
    layer_norm(l, &m->final_layer_norm, D, "text_model.final_layer_norm");
    rc = layers_done(l, "text encoder", is_idle, e);
    if (!rc)
        *out = m;
    return rc;
}

/* One prompt's rows of the table, read on the host into `row`, to `token` (T,D) on the device. */
static int token_vectors(struct tape *t, struct clip_text *m, const int32_t *id, float *row, struct tensor *token,
                         struct err *e)
{
    const int64_t T = m->config.max_position_embeddings, D = m->config.hidden_size;
    int rc = OK;

    for (int64_t i = 0; i < T && !rc; i++) {
        if (id[i] < 0 || id[i] >= m->config.vocab_size)
            rc = err_set(e, E_ARG, "token id %" PRId32 " is outside the text encoder's vocabulary of %" PRId64, id[i],
                         m->config.vocab_size);
        else if (t->dev->kern->computes)
            rc = weights_read_rows(m->token, id[i], 1, row + i * D, F32, e);
    }
    return rc ? rc : device_put(t->dev, token->data, row, tensor_bytes(token), e);
}

/* Token and position vectors, added in f32: (B,T,D). */
static struct tensor *embed(struct tape *t, struct clip_text *m, const int32_t *id, int64_t B, struct err *e)
{
    const int64_t T = m->config.max_position_embeddings, D = m->config.hidden_size;
    struct tensor *x = tape_new(t, m->type, 3, (int64_t[]){ B, T, D }, e), *token, *position;
    const struct tape_mark mark = tape_mark(t);
    float *row = x ? arena_push(&t->mem->meta, (size_t)(T * D) * sizeof *row, e) : NULL;
    int rc = OK;

    if (!row || !(token = tape_new(t, F32, 2, (int64_t[]){ T, D }, e)) || !(position = tape_like(t, token, e)))
        return NULL;
    if (t->dev->kern->computes)
        rc = weights_read(m->position, row, F32, e);
    rc = rc ? rc : device_put(t->dev, position->data, row, tensor_bytes(position), e);
    for (int64_t b = 0; b < B && !rc; b++) {
        rc = token_vectors(t, m, id + b * T, row, token, e);
        if (!rc)
            rc = op_run(e, "token vectors", t->dev->kern->axpby(&t->dev->ctx, token->data, 1, token->data, 1,
                                                                position->data, F32, T * D));
        if (!rc)
            rc = op_run(e, "token vectors", t->dev->kern->cast(&t->dev->ctx, (char *)x->data + b * T * D
                                                               * (int64_t)dtype_bytes(x->type), x->type, token->data,
                                                               F32, T * D));
    }
    if (m->token)
        weights_drop(m->table, m->token);
    tape_release(t, mark);
    return rc ? NULL : x;
}

static struct tensor *linear(struct tape *t, struct tensor *x, struct weight *w, enum kact act,
                             struct tensor *residual, struct err *e)
{
    return op_linear(t, x, w, NULL, 0, &(struct op_epilogue){ .act = act, .residual = residual }, e);
}

/* h (B,T,D) through one layer, in place */
static struct tensor *layer(struct tape *t, struct clip_text *m, struct clip_layer *a, struct tensor *h, struct err *e)
{
    const float eps = m->config.layer_norm_eps;
    const struct tape_mark mark = tape_mark(t);
    struct tensor *n, *q, *k, *v;

    if (!(n = op_layer_norm(t, h, a->layer_norm1.gamma, a->layer_norm1.beta, eps, e))
        || !(q = linear(t, n, &a->q_proj, K_ACT_NONE, NULL, e)) || !(k = linear(t, n, &a->k_proj, K_ACT_NONE, NULL, e))
        || !(v = linear(t, n, &a->v_proj, K_ACT_NONE, NULL, e))
        || !(n = op_attention(t, q, k, v, m->config.num_attention_heads, 0, true, e)))
        return NULL;
    tape_into(t, t->recording ? NULL : h);
    if (!(h = linear(t, n, &a->out_proj, K_ACT_NONE, h, e))
        || !(n = op_layer_norm(t, h, a->layer_norm2.gamma, a->layer_norm2.beta, eps, e))
        || !(n = linear(t, n, &a->fc1, m->config.act, NULL, e)))
        return NULL;
    tape_into(t, t->recording ? NULL : h);
    h = linear(t, n, &a->fc2, K_ACT_NONE, h, e);
    tape_release(t, mark);
    return h;
}

struct tensor *clip_text_forward(struct tape *t, struct clip_text *m, const int32_t *id, int64_t B, int skip,
                                 struct err *e)
{
    const int n = m->config.num_hidden_layers - skip;
    struct tensor *h;

    if (skip < 0 || n < 1)
        return op_fail(e, E_ARG, "%d of the text encoder's %d layers cannot be left out", skip,
                       m->config.num_hidden_layers);
    h = embed(t, m, id, B, e);
    for (int i = 0; i < n && h; i++)
        h = layer(t, m, &m->layer[i], h, e);
    return h ? op_layer_norm(t, h, m->final_layer_norm.gamma, m->final_layer_norm.beta, m->config.layer_norm_eps, e)
             : NULL;
}
