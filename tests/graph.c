#include "tests/graph.h"

#include <string.h>

#include "core/rng.h"

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, halve = { 2, 1, 1, 1, 1 };

/* ---- weights and inputs ---- */

/* A tensor in the model arena; drawn from the stream of its own number, scale * N(0,1) + shift. */
static struct tensor *draw(struct graph *g, const char *name, enum dtype type, int n_dim, const int64_t *dim,
                           double scale, double shift, struct err *e)
{
    struct tensor *x = tensor_new(&g->meta, &g->model, type, n_dim, dim, e);
    const struct krng r = rng_stream(11, RNG_TEST, 0, (uint64_t)g->meta.used);
    struct kctx *c = &g->dev.ctx;
    int rc;

    if (!x)
        return NULL;
    x->name = name;
    rc = g->dev.kern->random_normal(c, x->data, type, tensor_count(x), &r, 0);
    if (!rc)
        rc = g->dev.kern->axpby(c, x->data, (float)scale, x->data, (float)shift, NULL, type, tensor_count(x));
    return op_run(e, name, rc) ? NULL : x;
}

static int train(struct graph *g, struct tensor *p, struct err *e)
{
    struct tensor *d = tensor_new(&g->meta, &g->model, F32, p->n_dim, p->dim, e);

    if (!d)
        return e->code;
    g->param[g->n_param] = p;
    g->grad[g->n_param++] = d;
    return OK;
}

/* A K x K layer; K = 0: linear. */
static int layer(struct graph *g, struct weight *w, const char *name, int64_t Co, int K, int64_t Ci, bool bias,
                 bool trained, struct err *e)
{
    const int64_t d4[] = { Co, K, K, Ci }, d2[] = { Co, Ci };
    struct tensor *raw =
        draw(g, name, g->type, K ? 4 : 2, K ? d4 : d2, 1.0 / (1.7 * (K ? K : 1)) / (double)Ci * 3, 0, e);
    struct tensor *b = raw && bias ? draw(g, name, F32, 1, &Co, 0.1, 0, e) : NULL;
    int rc;

    if (!raw || (bias && !b))
        return e->code;
    rc = weight_init(w, name, raw, b, &g->model, e);
    if (!rc && trained)
        rc = train(g, raw, e);
    if (!rc && trained && b)
        rc = train(g, b, e);
    return rc;
}

static int norm(struct graph *g, struct tensor **gamma, struct tensor **beta, int64_t C, bool trained, struct err *e)
{
    int rc = OK;

    *gamma = draw(g, "gamma", F32, 1, &C, 0.2, 1, e);
    *beta = *gamma ? draw(g, "beta", F32, 1, &C, 0.2, 0, e) : NULL;
    if (!*beta)
        return e->code;
    if (trained)
        rc = train(g, *gamma, e);
    return rc || !trained ? rc : train(g, *beta, e);
}

static int make_block(struct graph *g, struct graph_block *b, int64_t Ci, bool shortcut, struct err *e)
{
    const int64_t C = GRAPH_C;
    int rc = norm(g, &b->gamma1, &b->beta1, Ci, true, e);

    rc = rc ? rc : norm(g, &b->gamma2, &b->beta2, C, false, e);
    rc = rc ? rc : layer(g, &b->time, "block.time", C, 0, 2 * C, true, true, e);
    rc = rc ? rc : layer(g, &b->conv1, "block.conv1", C, 3, Ci, true, true, e);
    rc = rc ? rc : layer(g, &b->conv2, "block.conv2", C, 3, C, true, false, e);
    return rc || !shortcut ? rc : layer(g, &b->shortcut, "block.shortcut", C, 1, Ci, true, true, e);
}

static int make_attn(struct graph *g, struct graph_attn *a, int64_t Ck, struct err *e)
{
    struct weight *const w[4] = { &a->q, &a->k, &a->v, &a->o };
    static const char *const name[4] = { "attn.q", "attn.k", "attn.v", "attn.o" };
    const int64_t C = GRAPH_C;
    int rc = OK;

    for (int i = 0; i < 4 && !rc; i++) {
        const int64_t Ci = i == 1 || i == 2 ? Ck : C;

        rc = layer(g, w[i], name[i], C, 0, Ci, i == 3, false, e);
        rc = rc ? rc : layer(g, &a->down[i], "attn.lora.down", 3, 0, Ci, false, true, e);
        rc = rc ? rc : layer(g, &a->up[i], "attn.lora.up", C, 0, 3, false, true, e);
    }
    return rc;
}

static int make_weights(struct graph *g, struct err *e)
{
    const int64_t C = GRAPH_C;
    int rc = layer(g, &g->conv_in, "conv_in", C, 3, 4, true, true, e);

    rc = rc ? rc : layer(g, &g->time1, "time1", 2 * C, 0, 8, true, false, e);
    rc = rc ? rc : layer(g, &g->time2, "time2", 2 * C, 0, 2 * C, true, false, e);
    rc = rc ? rc : layer(g, &g->down, "down", C, 3, C, true, true, e);
    rc = rc ? rc : layer(g, &g->up, "up", C, 3, C, true, true, e);
    rc = rc ? rc : layer(g, &g->conv_out, "conv_out", 4, 3, 2 * C, true, true, e);
    rc = rc ? rc : layer(g, &g->ff_in, "ff.in", 4 * C, 0, C, true, false, e);
    rc = rc ? rc : layer(g, &g->ff_out, "ff.out", C, 0, 2 * C, true, true, e);
    rc = rc ? rc : make_block(g, &g->block[0], C, false, e);
    rc = rc ? rc : make_block(g, &g->block[1], 2 * C, true, e);
    rc = rc ? rc : make_attn(g, &g->self, C, e);
    rc = rc ? rc : make_attn(g, &g->cross, 10, e);
    for (int i = 0; i < 4 && !rc; i++)
        rc = norm(g, &g->gamma[i], &g->beta[i], C, i == 1, e);
    return rc;
}

static int make_inputs(struct graph *g, struct err *e)
{
    const int64_t image[] = { GRAPH_B, GRAPH_H, GRAPH_W, 4 }, text[] = { GRAPH_B, GRAPH_T, 10 }, B = GRAPH_B;

    g->x = draw(g, "latents", g->type, 4, image, 1, 0, e);
    g->target = g->x ? draw(g, "target", g->type, 4, image, 1, 0, e) : NULL;
    g->text = g->target ? draw(g, "text", g->type, 3, text, 1, 0, e) : NULL;
    g->time = g->text ? draw(g, "time", F32, 1, &B, 100, 400, e) : NULL;
    g->dx = g->time ? tensor_new(&g->meta, &g->model, F32, 4, image, e) : NULL;
    return g->dx ? OK : e->code;
}

int graph_open(struct graph *g, const char *device, int n_threads, enum dtype type, struct err *e)
{
    const struct tape_caps caps = { 1 << 22, 1 << 24, 1 << 24, 1 << 24 };
    int rc;

    memset(g, 0, sizeof *g);
    g->type = type;
    rc = device_open(&g->dev, device, n_threads, e);
    rc = rc ? rc : arena_init(&g->meta, "test meta", ARENA_HOST, 1 << 20, e);
    rc = rc ? rc : arena_init(&g->model, "test model", g->dev.place, 1 << 24, e);
    rc = rc ? rc : tape_memory_init(&g->mem, &g->dev, &caps, e);
    if (!rc)
        tape_init(&g->t, &g->dev, &g->mem);
    rc = rc ? rc : make_weights(g, e);
    rc = rc ? rc : make_inputs(g, e);
    if (rc)
        graph_close(g);
    return rc;
}

void graph_close(struct graph *g)
{
    tape_memory_free(&g->mem);
    arena_free(&g->model);
    arena_free(&g->meta);
    device_close(&g->dev);
}

/* ---- the network ---- */

/* h (B,H,W,C) [joined with skip] -> (B,H,W,GRAPH_C) */
static struct tensor *block(struct graph *g, struct graph_block *b, struct tensor *h, struct tensor *skip,
                            struct err *e)
{
    struct tape *t = &g->t;
    const struct op_epilogue silu = { .act = K_ACT_SILU };
    struct tensor *in = skip ? op_join(t, h, skip, e) : h, *a, *time;
    const struct op_shortcut cut = { &b->shortcut, h, skip };

    a = in ? op_group_norm(t, in, b->gamma1, b->beta1, 4, 1e-5f, true, e) : NULL;
    time = a ? op_linear(t, g->temb, &b->time, NULL, 0, &silu, e) : NULL;
    a = time ? op_conv(t, a, NULL, &b->conv1, same, NULL, &(struct op_epilogue){ .row_add = time }, e) : NULL;
    a = a ? op_group_norm(t, a, b->gamma2, b->beta2, 4, 1e-5f, true, e) : NULL;
    if (!a || skip)
        return a ? op_conv(t, a, NULL, &b->conv2, same, &cut, NULL, e) : NULL;
    return op_conv(t, a, NULL, &b->conv2, same, NULL, &(struct op_epilogue){ .residual = h }, e);
}

/* x + attention of norm(x) over y, or over norm(x) itself */
static struct tensor *attend(struct graph *g, struct graph_attn *a, int n, struct tensor *x, struct tensor *y,
                             struct err *e)
{
    struct tape *t = &g->t;
    struct tensor *out = tape_like(t, x, e), *in, *q, *k, *v;
    const struct tape_mark mark = tape_mark(t);
    struct op_lora lora[4];

    in = out ? op_layer_norm(t, x, g->gamma[n], g->beta[n], 1e-5f, e) : NULL;
    for (int i = 0; i < 4; i++)
        lora[i] = (struct op_lora){ &a->down[i], &a->up[i], 0.5f };
    if (!y)
        y = in;
    q = in ? op_linear(t, in, &a->q, &lora[0], 1, NULL, e) : NULL;
    k = q ? op_linear(t, y, &a->k, &lora[1], 1, NULL, e) : NULL;
    v = k ? op_linear(t, y, &a->v, &lora[2], 1, NULL, e) : NULL;
    q = v ? op_attention(t, q, k, v, 2, 0, false, e) : NULL;
    tape_into(t, out);
    if (!q || !op_linear(t, q, &a->o, &lora[3], 1, &(struct op_epilogue){ .residual = x }, e))
        return NULL;
    tape_release(t, mark);
    return out;
}

/* in[0] x (B,T,C), in[1] text. Without recording the result goes where the segment wants it. */
static struct tensor *transformer(struct tape *t, void *ctx, struct tensor **in, int n_in, struct err *e)
{
    struct graph *g = ctx;
    struct tensor *h = attend(g, &g->self, 0, in[0], NULL, e), *f;

    (void)n_in;
    h = h ? attend(g, &g->cross, 1, h, in[1], e) : NULL;
    f = h ? op_layer_norm(t, h, g->gamma[2], g->beta[2], 1e-5f, e) : NULL;
    f = f ? op_linear(t, f, &g->ff_in, NULL, 0, &(struct op_epilogue){ .act = K_ACT_GEGLU }, e) : NULL;
    if (!f)
        return NULL;
    if (g->segments)
        tape_into(t, t->result);
    return op_linear(t, f, &g->ff_out, NULL, 0, &(struct op_epilogue){ .residual = h }, e);
}

/* Halve, transform, double: in[0] h (B,H,W,C), in[1] text -> like in[0] */
static struct tensor *middle(struct tape *t, void *ctx, struct tensor **in, int n_in, struct err *e)
{
    struct graph *g = ctx;
    const int64_t *d = in[0]->dim;
    struct tensor *h = op_conv(t, in[0], NULL, &g->down, halve, NULL, NULL, e), *s, *pair[2];

    (void)n_in;
    s = h ? op_reshape(t, h, 3, (int64_t[]){ h->dim[0], h->dim[1] * h->dim[2], h->dim[3] }, e) : NULL;
    if (!s)
        return NULL;
    pair[0] = s;
    pair[1] = in[1];
    s = g->segments ? tape_segment(t, transformer, g, pair, 2, s, e) : transformer(t, g, pair, 2, e);
    s = s ? op_reshape(t, s, 4, h->dim, e) : NULL;
    return s ? op_upsample_conv(t, s, &g->up, d[1], d[2], e) : NULL;
}

static struct tensor *embed_time(struct graph *g, struct err *e)
{
    const struct op_epilogue silu = { .act = K_ACT_SILU };
    struct tensor *h = op_time_embed(&g->t, g->time, 8, g->type, e);

    h = h ? op_linear(&g->t, h, &g->time1, NULL, 0, &silu, e) : NULL;
    return h ? op_linear(&g->t, h, &g->time2, NULL, 0, NULL, e) : NULL;
}

struct tensor *graph_forward(struct graph *g, struct err *e)
{
    struct tape *t = &g->t;
    struct tensor *h0, *h, *pair[2] = { NULL, g->text };

    g->temb = embed_time(g, e);
    h0 = g->temb ? op_conv(t, g->x, NULL, &g->conv_in, same, NULL, NULL, e) : NULL;
    pair[0] = h0 ? block(g, &g->block[0], h0, NULL, e) : NULL;
    if (!pair[0])
        return NULL;
    h = g->segments ? tape_segment(t, middle, g, pair, 2, pair[0], e) : middle(t, g, pair, 2, e);
    h = h ? block(g, &g->block[1], h, pair[0], e) : NULL;
    h = h ? op_group_norm(t, h, g->gamma[3], g->beta[3], 4, 1e-5f, true, e) : NULL;
    return h ? op_conv(t, h, h0, &g->conv_out, same, NULL, NULL, e) : NULL;
}

int graph_infer(struct graph *g, struct tensor **y, struct err *e)
{
    tape_reset(&g->t);
    g->t.recording = false;
    *y = graph_forward(g, e);
    return *y ? OK : e->code;
}

static int clear(struct graph *g, struct tensor *x, struct err *e)
{
    return op_run(e, "clearing gradients", g->dev.kern->fill(&g->dev.ctx, x->data, x->type, tensor_count(x), 0));
}

int graph_step(struct graph *g, struct err *e)
{
    struct tensor *y;
    int rc = clear(g, g->dx, e);

    tape_reset(&g->t);
    g->t.recording = true;
    tape_watch(g->x, g->dx);
    for (int i = 0; i < g->n_param && !rc; i++) {
        rc = clear(g, g->grad[i], e);
        tape_watch(g->param[i], g->grad[i]);
        g->param[i]->needs_grad = !g->frozen;
    }
    y = rc ? NULL : graph_forward(g, e);
    g->loss = y ? op_mse(&g->t, y, g->target, NULL, NULL, e) : NULL;
    return g->loss ? tape_backward(&g->t, g->loss, NULL, e) : e->code;
}

static uint64_t fnv(uint64_t h, const struct tensor *x)
{
    const unsigned char *p = x->data;

    for (size_t i = 0; i < tensor_bytes(x); i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

uint64_t graph_digest(const struct graph *g)
{
    uint64_t h = fnv(fnv(0xcbf29ce484222325u, g->loss), g->dx);

    for (int i = 0; i < g->n_param; i++)
        h = fnv(h, g->grad[i]);
    return h;
}
