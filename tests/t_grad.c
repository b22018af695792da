/* tests/t_grad.c: the gradient of every op with respect to every input against differences.
 *
 * L = <r, y> with r random, summed in doubles. Along a random direction u the derivative of L is
 * (L(x + h u) - L(x - h u)) / 2h; two such differences, h and h/2, cancel the error of h^2 (Richardson). What remains
 * is h^4 and the rounding of L, 1e-7 or so relative, over h: with h = 1/16 (1/64 for weights, of which many meet in one
 * output) both lie near 1e-5 of |g u|, the size that a sum of random terms g_i u_i has; 1e-4 where an activation is
 * steep. 16-bit gradients are compared with those of f32 at the same, representable, inputs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/op/op.h"
#include "tests/kit.h"
#include "tests/tap.h"

enum { MAX_LEAF = 9, MAX_WEIGHT = 24, MAX_N = 4096 };

/* ACT: activations, RAW: weights, both of the type under test; VEC: f32 parameters; FIX: f32, positive, not watched. */
enum kind { ACT, RAW, VEC, FIX };

struct leaf {
    enum kind kind;
    int64_t dim[4]; /* up to the first 0 */
};

typedef struct tensor *build_fn(struct tape *t, struct tensor **in, struct err *e);

struct op_case {
    const char *name;
    build_fn *build;
    struct leaf leaf[MAX_LEAF];
    double away; /* distance to keep from zero, where the function has a corner */
};

/* ---- the ops ---- */

static struct weight weights[MAX_WEIGHT];
static int n_weight;
static struct arena data; /* leaves and packs of one run */

static struct weight *layer(struct tensor *raw, struct tensor *bias)
{
    struct weight *w = &weights[n_weight++ % MAX_WEIGHT];
    struct err e = { 0 };

    if (weight_init(w, "layer", raw, bias, &data, &e))
        tap_ok(false, "layer: %s", e.text);
    return w;
}

static struct op_lora low_rank(struct tensor *down, struct tensor *up)
{
    return (struct op_lora){ layer(down, NULL), layer(up, NULL), 0.5f };
}

#define OP(name) static struct tensor *name(struct tape *t, struct tensor **in, struct err *e)

OP(linear) { return op_linear(t, in[0], layer(in[1], in[2]), NULL, 0, NULL, e); }
OP(linear_1x1) { return op_linear(t, in[0], layer(in[1], NULL), NULL, 0, NULL, e); }

OP(linear_silu)
{
    return op_linear(t, in[0], layer(in[1], in[2]), NULL, 0, &(struct op_epilogue){ K_ACT_SILU, in[3], NULL }, e);
}

OP(linear_gelu)
{
    return op_linear(t, in[0], layer(in[1], in[2]), NULL, 0, &(struct op_epilogue){ K_ACT_GELU, NULL, in[3] }, e);
}

OP(linear_quick)
{
    return op_linear(t, in[0], layer(in[1], in[2]), NULL, 0, &(struct op_epilogue){ K_ACT_QUICK_GELU, NULL, NULL }, e);
}

OP(linear_geglu)
{
    const struct op_lora l = low_rank(in[4], in[5]);

    return op_linear(t, in[0], layer(in[1], in[2]), &l, 1, &(struct op_epilogue){ K_ACT_GEGLU, NULL, in[3] }, e);
}

OP(linear_residual)
{
    return op_linear(t, in[0], layer(in[1], in[2]), NULL, 0, &(struct op_epilogue){ K_ACT_NONE, in[3], in[4] }, e);
}

OP(linear_lora2)
{
    const struct op_lora l[] = { low_rank(in[2], in[3]), low_rank(in[4], in[5]) };

    return op_linear(t, in[0], layer(in[1], NULL), l, 2, &(struct op_epilogue){ .residual = in[6] }, e);
}

OP(low_rank_alone)
{
    const struct op_lora l = low_rank(in[2], in[3]);

    return op_low_rank(t, in[0], in[1], &l, 1, e);
}
/* As a pair does it: one product serves two adapters and whoever takes it bare. */
OP(low_rank_shared)
{
    const struct op_lora l[] = { low_rank(in[2], in[3]), low_rank(in[4], in[5]) };
    struct tensor *base = op_linear(t, in[0], layer(in[1], NULL), NULL, 0, NULL, e);
    struct tensor *a = base ? op_low_rank(t, base, in[0], &l[0], 1, e) : NULL;
    struct tensor *b = a ? op_low_rank(t, base, in[0], l, 2, e) : NULL;

    a = b ? op_mul(t, a, b, e) : NULL;
    return a ? op_mul(t, a, base, e) : NULL;
}
OP(linear_lora3)
{
    const struct op_lora l[] = { low_rank(in[2], in[3]), low_rank(in[4], in[5]), low_rank(in[4], in[3]) };

    return op_linear(t, in[0], layer(in[1], in[6]), l, 3, &(struct op_epilogue){ K_ACT_SILU, NULL, in[7] }, e);
}

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, half = { 2, 1, 1, 1, 1 }, half_vae = { 2, 0, 0, 1, 1 };
static const struct op_conv_geom point = { 1, 0, 0, 0, 0 };

OP(conv_same) { return op_conv(t, in[0], NULL, layer(in[1], in[2]), same, NULL, NULL, e); }
OP(conv_half) { return op_conv(t, in[0], NULL, layer(in[1], in[2]), half, NULL, NULL, e); }
OP(conv_half_vae) { return op_conv(t, in[0], NULL, layer(in[1], in[2]), half_vae, NULL, NULL, e); }
OP(conv_point) { return op_conv(t, in[0], NULL, layer(in[1], in[2]), point, NULL, NULL, e); }

OP(conv_joined)
{
    return op_conv(t, in[0], in[1], layer(in[2], in[3]), same, NULL, &(struct op_epilogue){ K_ACT_SILU, NULL, NULL },
                   e);
}

OP(conv_shortcut)
{
    const struct op_shortcut cut = { layer(in[3], in[4]), in[5], NULL };

    return op_conv(t, in[0], NULL, layer(in[1], in[2]), same, &cut, &(struct op_epilogue){ .residual = in[6] }, e);
}

OP(conv_shortcut_joined)
{
    const struct op_shortcut cut = { layer(in[3], in[4]), in[5], in[6] };

    return op_conv(t, in[0], NULL, layer(in[1], NULL), same, &cut, &(struct op_epilogue){ .row_add = in[2] }, e);
}

OP(conv_joined_self) /* the same tensor in both halves and in the shortcut */
{
    const struct op_shortcut cut = { layer(in[2], NULL), in[0], NULL };

    return op_conv(t, in[0], in[0], layer(in[1], NULL), same, &cut, NULL, e);
}

OP(conv_geglu)
{
    return op_conv(t, in[0], in[1], layer(in[2], in[3]), same, NULL, &(struct op_epilogue){ K_ACT_GEGLU, NULL, in[4] },
                   e);
}

OP(up_even) { return op_upsample_conv(t, in[0], layer(in[1], in[2]), 2 * in[0]->dim[1], 2 * in[0]->dim[2], e); }
OP(up_odd) { return op_upsample_conv(t, in[0], layer(in[1], in[2]), 2 * in[0]->dim[1] - 1, 2 * in[0]->dim[2], e); }
OP(attention) { return op_attention(t, in[0], in[1], in[2], 2, 0, false, e); }
OP(attention_causal) { return op_attention(t, in[0], in[1], in[2], 3, 0.7f, true, e); }
OP(attention_self) { return op_attention(t, in[0], in[0], in[0], 2, 0, false, e); }
OP(group_norm) { return op_group_norm(t, in[0], in[1], in[2], 3, 1e-3f, false, e); }
OP(group_norm_silu) { return op_group_norm(t, in[0], in[1], in[2], 2, 1e-3f, true, e); }
OP(layer_norm) { return op_layer_norm(t, in[0], in[1], in[2], 1e-3f, e); }
OP(silu) { return op_unary(t, K_SILU, in[0], e); }
OP(gelu) { return op_unary(t, K_GELU, in[0], e); }
OP(quick_gelu) { return op_unary(t, K_QUICK_GELU, in[0], e); }
OP(relu) { return op_unary(t, K_RELU, in[0], e); }
OP(geglu) { return op_geglu(t, in[0], e); }
OP(softmax) { return op_softmax(t, in[0], e); }
OP(axpby) { return op_axpby(t, -0.75f, in[0], 1.5f, in[1], e); }
OP(add) { return op_add(t, in[0], in[1], e); }
OP(add_self) { return op_add(t, in[0], in[0], e); }
OP(scale) { return op_scale(t, -1.25f, in[0], e); }
OP(mul) { return op_mul(t, in[0], in[1], e); }
OP(mul_self) { return op_mul(t, in[0], in[0], e); }
OP(row_axpby) { return op_row_axpby(t, in[0], in[1], in[2], in[3], e); }
OP(row_scale) { return op_row_axpby(t, in[0], in[1], NULL, NULL, e); }
OP(cast) { return op_cast(t, in[0], F32, e); }
OP(join) { return op_join(t, in[0], in[1], e); }
OP(join_self) { return op_join(t, in[0], in[0], e); }
OP(join_rows) { return op_join_rows(t, in[0], in[1], e); }
OP(nearest) { return op_nearest(t, in[0], 7, 3, e); }
OP(bilinear) { return op_bilinear(t, in[0], 7, 3, false, e); }
OP(bilinear_corners) { return op_bilinear(t, in[0], 3, 8, true, e); }
OP(gather) { return op_gather(t, in[0], (const int32_t[]){ 4, 0, 4, 2 }, 4, in[0]->type, e); }
OP(mse) { return op_mse(t, in[0], in[1], NULL, NULL, e); }
OP(mse_masked) { return op_mse(t, in[0], in[1], in[2], in[3], e); }

OP(reshape)
{
    struct tensor *h = op_reshape(t, in[0], 2, (int64_t[]){ 6, 10 }, e);

    return h ? op_mul(t, h, h, e) : NULL;
}

OP(rows) /* overlapping views, one of them twice */
{
    struct tensor *a = op_rows(t, in[0], 1, 2, e), *b = op_rows(t, in[0], 0, 2, e);

    a = a && b ? op_mul(t, a, b, e) : NULL;
    return a ? op_add(t, a, b, e) : NULL;
}

OP(channels)
{
    struct tensor *a = op_channels(t, in[0], 2, 3, e), *b = op_channels(t, in[0], 0, 3, e);

    return a && b ? op_mul(t, a, b, e) : NULL;
}

/* 2, 3 or 4 sizes */
#define A2(...)                                                                                                        \
    {                                                                                                                  \
        ACT, { __VA_ARGS__ }                                                                                           \
    }
#define R(...)                                                                                                         \
    {                                                                                                                  \
        RAW, { __VA_ARGS__ }                                                                                           \
    }
#define V(n)                                                                                                           \
    {                                                                                                                  \
        VEC, { n }                                                                                                     \
    }
#define X(...)                                                                                                         \
    {                                                                                                                  \
        FIX, { __VA_ARGS__ }                                                                                           \
    }

static const struct op_case cases[] = {
    { "linear", linear, { A2(3, 5, 7), R(9, 7), V(9) }, 0 },
    { "linear, 4-d weights, no bias", linear_1x1, { A2(11, 7), R(9, 1, 1, 7) }, 0 },
    { "linear, silu, row_add", linear_silu, { A2(3, 5, 7), R(9, 7), V(9), A2(3, 9) }, 0 },
    { "linear, gelu, residual", linear_gelu, { A2(3, 5, 7), R(9, 7), V(9), A2(3, 5, 9) }, 0 },
    { "linear, quick gelu", linear_quick, { A2(15, 7), R(9, 7), V(9) }, 0 },
    { "linear, geglu, low rank, residual",
      linear_geglu,
      { A2(3, 5, 7), R(10, 7), V(10), A2(3, 5, 5), R(2, 7), R(10, 2) },
      0 },
    { "linear, row_add, residual", linear_residual, { A2(3, 5, 7), R(9, 7), V(9), A2(3, 9), A2(3, 5, 9) }, 0 },
    { "linear, two low-rank terms, residual",
      linear_lora2,
      { A2(3, 5, 7), R(9, 7), R(2, 7), R(9, 2), R(3, 7), R(9, 3), A2(3, 5, 9) },
      0 },
    { "linear, three low-rank terms, silu, residual",
      linear_lora3,
      { A2(3, 5, 7), R(9, 7), R(2, 7), R(9, 2), R(2, 7), R(9, 2), V(9), A2(3, 5, 9) },
      0 },
    { "low-rank term alone", low_rank_alone, { A2(3, 5, 9), A2(3, 5, 7), R(2, 7), R(9, 2) }, 0 },
    { "low-rank terms on one product",
      low_rank_shared,
      { A2(3, 5, 7), R(9, 7), R(2, 7), R(9, 2), R(3, 7), R(9, 3) },
      0 },
    { "conv 3x3", conv_same, { A2(2, 5, 6, 5), R(7, 3, 3, 5), V(7) }, 0 },
    { "conv 3x3, stride 2", conv_half, { A2(2, 5, 6, 5), R(7, 3, 3, 5), V(7) }, 0 },
    { "conv 3x3, stride 2, padded below and right", conv_half_vae, { A2(2, 6, 5, 5), R(7, 3, 3, 5), V(7) }, 0 },
    { "conv 1x1", conv_point, { A2(2, 3, 4, 5), R(7, 1, 1, 5), V(7) }, 0 },
    { "conv, joined input, silu", conv_joined, { A2(2, 4, 3, 5), A2(2, 4, 3, 2), R(6, 3, 3, 7), V(6) }, 0 },
    { "conv, shortcut, two biases, residual",
      conv_shortcut,
      { A2(2, 4, 3, 5), R(6, 3, 3, 5), V(6), R(6, 1, 1, 3), V(6), A2(2, 4, 3, 3), A2(2, 4, 3, 6) },
      0 },
    { "conv, joined shortcut, row_add",
      conv_shortcut_joined,
      { A2(2, 4, 3, 5), R(6, 3, 3, 5), A2(2, 6), R(6, 1, 1, 7), V(6), A2(2, 4, 3, 3), A2(2, 4, 3, 4) },
      0 },
    { "conv, one tensor in all places", conv_joined_self, { A2(2, 4, 3, 3), R(6, 3, 3, 6), R(6, 1, 1, 3) }, 0 },
    { "conv, geglu, joined input, residual",
      conv_geglu,
      { A2(2, 4, 3, 5), A2(2, 4, 3, 2), R(6, 3, 3, 7), V(6), A2(2, 4, 3, 3) },
      0 },
    { "doubling, then conv", up_even, { A2(2, 3, 4, 5), R(7, 3, 3, 5), V(7) }, 0 },
    { "doubling to an odd size, then conv", up_odd, { A2(2, 3, 4, 5), R(7, 3, 3, 5), V(7) }, 0 },
    { "attention", attention, { A2(2, 5, 10), A2(2, 3, 10), A2(2, 3, 10) }, 0 },
    { "attention, causal", attention_causal, { A2(2, 5, 12), A2(2, 5, 12), A2(2, 5, 12) }, 0 },
    { "attention, one tensor", attention_self, { A2(2, 3, 3, 10) }, 0 },
    { "group_norm", group_norm, { A2(2, 3, 5, 6), V(6), V(6) }, 0 },
    { "group_norm, silu", group_norm_silu, { A2(2, 7, 6), V(6), V(6) }, 0 },
    { "layer_norm", layer_norm, { A2(2, 3, 9), V(9), V(9) }, 0 },
    { "silu", silu, { A2(3, 7) }, 0 },
    { "gelu", gelu, { A2(3, 7) }, 0 },
    { "quick gelu", quick_gelu, { A2(3, 7) }, 0 },
    { "relu", relu, { A2(3, 7) }, 0.5 },
    { "geglu", geglu, { A2(3, 2, 10) }, 0 },
    { "softmax", softmax, { A2(3, 2, 5) }, 0 },
    { "axpby", axpby, { A2(3, 7), A2(3, 7) }, 0 },
    { "add", add, { A2(3, 7), A2(3, 7) }, 0 },
    { "add to itself", add_self, { A2(3, 7) }, 0 },
    { "scale", scale, { A2(3, 7) }, 0 },
    { "mul", mul, { A2(3, 7), A2(3, 7) }, 0 },
    { "mul by itself", mul_self, { A2(3, 7) }, 0 },
    { "row_axpby", row_axpby, { X(3), A2(3, 2, 5), X(3), A2(3, 2, 5) }, 0 },
    { "row_axpby of one", row_scale, { X(3), A2(3, 2, 5) }, 0 },
    { "cast to f32", cast, { A2(3, 7) }, 0 },
    { "join", join, { A2(2, 3, 5), A2(2, 3, 4) }, 0 },
    { "join with itself", join_self, { A2(2, 3, 5) }, 0 },
    { "join_rows", join_rows, { A2(2, 3, 5), A2(1, 3, 5) }, 0 },
    { "nearest", nearest, { A2(2, 3, 5, 3) }, 0 },
    { "bilinear", bilinear, { A2(2, 3, 5, 3) }, 0 },
    { "bilinear, corners aligned", bilinear_corners, { A2(2, 5, 4, 3) }, 0 },
    { "gather", gather, { R(6, 5) }, 0 },
    { "mse", mse, { A2(3, 2, 2, 5), A2(3, 2, 2, 5) }, 0 },
    { "mse, weights and mask", mse_masked, { A2(3, 2, 2, 5), A2(3, 2, 2, 5), X(3), X(3, 2, 2) }, 0 },
    { "reshape", reshape, { A2(3, 4, 5) }, 0 },
    { "rows", rows, { A2(3, 2, 5) }, 0 },
    { "channels", channels, { A2(3, 2, 6) }, 0 },
};

/* ---- running one ---- */

static struct device dev;
static struct tape_memory mem;
static struct tape tape;
static struct arena meta;

/* How to run: a watched leaf's bit is set in `watched`. */
struct mode {
    enum dtype type;
    unsigned watched;
    bool caller, segment; /* gradients in f32 of the caller's, begun at 1; all in a checkpointed segment */
};

struct values {
    int n;
    int64_t count[MAX_LEAF];
    double v[MAX_LEAF][MAX_N];
};

struct outcome {
    double loss;
    bool f32[MAX_LEAF];
    double grad[MAX_LEAF][MAX_N];
    int failed;
};

static struct tensor *in[MAX_LEAF];

static int leaf_dims(const struct leaf *l, int64_t *count)
{
    int n = 0;

    *count = 1;
    while (n < 4 && l->dim[n])
        *count *= l->dim[n++];
    return n;
}

static void write_values(struct tensor *x, const double *v)
{
    static float f[MAX_N];

    for (int64_t i = 0; i < tensor_count(x); i++)
        f[i] = (float)v[i];
    dtype_from_f32(x->data, x->type, f, tensor_count(x));
}

static void read_values(double *v, const struct tensor *x)
{
    static float f[MAX_N];

    dtype_to_f32(f, x->data, x->type, tensor_count(x));
    for (int64_t i = 0; i < tensor_count(x); i++)
        v[i] = f[i];
}

/* r_i, the same for every run, representable in every type. */
static double projection(int64_t i)
{
    uint64_t s = (uint64_t)i * 77 + 5;

    return kit_round(BF16, kit_normal(&s));
}

static struct tensor *run_case(struct tape *t, void *ctx, struct tensor **x, int n, struct err *e)
{
    const struct op_case *c = ctx;

    (void)n;
    return c->build(t, x, e);
}

static struct tensor *make_result(const struct op_case *c, const struct mode *m, int n, struct err *e)
{
    struct tensor *y;
    struct tape_mark mark;

    if (!m->segment)
        return c->build(&tape, in, e);
    tape.recording = false; /* a rehearsal, for the shape */
    mark = tape_mark(&tape);
    y = c->build(&tape, in, e);
    if (!y)
        return NULL;
    y = &(struct tensor){ .type = y->type, .n_dim = y->n_dim, .dim = { y->dim[0], y->dim[1], y->dim[2], y->dim[3] } };
    tape_release(&tape, mark);
    tape.recording = true;
    return tape_segment(&tape, run_case, (void *)c, in, n < TAPE_MAX_SEGMENT_IN ? n : TAPE_MAX_SEGMENT_IN, y, e);
}

static void make_leaves(const struct op_case *c, const struct values *x, const struct mode *m, struct err *e)
{
    for (int i = 0; i < x->n; i++) {
        const enum kind kind = c->leaf[i].kind;
        int64_t count;
        const int n_dim = leaf_dims(&c->leaf[i], &count);
        struct tensor *grad = NULL;

        in[i] = tensor_new(&meta, &data, kind == VEC || kind == FIX ? F32 : m->type, n_dim, c->leaf[i].dim, e);
        in[i]->name = "leaf";
        write_values(in[i], x->v[i]);
        if (kind == FIX || !(m->watched >> i & 1))
            continue;
        if (m->caller) {
            grad = tensor_new(&meta, &data, F32, n_dim, c->leaf[i].dim, e);
            for (int64_t j = 0; j < count; j++)
                ((float *)grad->data)[j] = 1;
        }
        tape_watch(in[i], grad);
    }
}

static void run_once(const struct op_case *c, const struct values *x, const struct mode *m, struct outcome *out)
{
    static double y[MAX_N];
    struct err e = { 0 };
    struct tensor *r, *res;

    arena_release(&meta, 0);
    arena_release(&data, 0);
    tape_reset(&tape);
    tape.recording = m->watched != 0;
    make_leaves(c, x, m, &e);
    memset(out->grad, 0, sizeof out->grad);
    out->failed = 1;
    res = make_result(c, m, x->n, &e);
    if (!res) {
        tap_note("%s: %s", c->name, e.text);
        return;
    }
    read_values(y, res);
    out->loss = 0;
    for (int64_t i = 0; i < tensor_count(res); i++)
        out->loss += projection(i) * y[i];
    for (int64_t i = 0; i < tensor_count(res); i++)
        y[i] = projection(i);
    r = tensor_new(&meta, &data, res->type, res->n_dim, res->dim, &e);
    write_values(r, y);
    if (m->watched && tape_backward(&tape, res, r, &e)) {
        tap_note("%s: %s", c->name, e.text);
        return;
    }
    for (int i = 0; i < x->n; i++)
        if (in[i]->grad)
            read_values(out->grad[i], in[i]->grad);
    out->failed = 0;
}

/* ---- checks ---- */

static void draw(struct values *x, const struct op_case *c, enum dtype type)
{
    uint64_t s = 3;

    for (x->n = 0; x->n < MAX_LEAF && c->leaf[x->n].dim[0]; x->n++) {
        const struct leaf *l = &c->leaf[x->n];

        leaf_dims(l, &x->count[x->n]);
        for (int64_t j = 0; j < x->count[x->n]; j++) {
            const double v = kit_normal(&s) * (l->kind == RAW ? 0.4 : 1);

            x->v[x->n][j] = kit_round(type, l->kind == FIX ? fabs(v) + 0.25 : v + copysign(c->away, v));
        }
    }
}

static bool watchable(const struct op_case *c, int i) { return c->leaf[i].kind != FIX; }

/* L along direction u of leaf i, at distance h. */
static double along(const struct op_case *c, struct values *x, int i, const double *u, double h)
{
    static struct outcome o;
    double keep[MAX_N], l[2];

    memcpy(keep, x->v[i], sizeof keep);
    for (int s = 0; s < 2; s++) {
        for (int64_t j = 0; j < x->count[i]; j++)
            x->v[i][j] = keep[j] + (s ? -h : h) * u[j];
        run_once(c, x, &(struct mode){ .type = F32 }, &o);
        l[s] = o.failed ? (double)NAN : o.loss;
    }
    memcpy(x->v[i], keep, sizeof keep);
    return (l[0] - l[1]) / (2 * h);
}

static double worst_share;

static bool check_difference(const struct op_case *c, struct values *x, const struct outcome *o, int i)
{
    const double h = c->away > 0 || c->leaf[i].kind == RAW ? 1.0 / 64 : 1.0 / 16, tolerance = 2e-4;
    double u[MAX_N] = { 0 }, want, got = 0, size = 0;
    uint64_t s = 1000 + (uint64_t)i;

    for (int64_t j = 0; j < x->count[i]; j++) {
        u[j] = fmax(-2, fmin(2, kit_normal(&s)));
        got += o->grad[i][j] * u[j];
        size += o->grad[i][j] * u[j] * (o->grad[i][j] * u[j]);
    }
    want = (4 * along(c, x, i, u, h / 2) - along(c, x, i, u, h)) / 3;
    size = sqrt(size);
    if (fabs(got - want) / size > worst_share)
        worst_share = fabs(got - want) / size;
    if (size > 0 && fabs(got - want) <= tolerance * size)
        return true;
    tap_note("%s, input %d: %.9g by differences, %.9g by the tape (size %.3g)", c->name, i, want, got, size);
    return false;
}

/* ||a - b - shift|| <= rel ||b||, for every watched leaf; shift + b was rounded to f32. */
static bool near_norm(const struct op_case *c, const struct values *x, const struct outcome *a, const struct outcome *b,
                      double shift, double rel, unsigned watched, const char *what)
{
    bool ok = !a->failed && !b->failed;

    for (int i = 0; i < x->n; i++) {
        double num = 0, den = 0;

        if (!(watched >> i & 1) || !watchable(c, i))
            continue;
        for (int64_t j = 0; j < x->count[i]; j++) {
            const double d = a->grad[i][j] - b->grad[i][j] - shift;

            num += d * d;
            den += b->grad[i][j] * b->grad[i][j];
        }
        if (!(sqrt(num) <= rel * sqrt(den) + 0x1p-23 * shift * sqrt((double)x->count[i]))) {
            tap_note("%s, %s, input %d: off by %.3g of %.3g", c->name, what, i, sqrt(num), sqrt(den));
            ok = false;
        }
    }
    return ok;
}

static void test_case(const struct op_case *c)
{
    /* 16 bits: activations, their gradients and a few intermediates are each rounded once; errors of a few units of
     * roundoff, which add up where gradients cancel (norms, softmax). */
    static const double rel[N_DTYPE] = { 0, 8 * 0x1p-11, 8 * 0x1p-8 };
    static struct values x;
    static struct outcome all, o;
    const struct mode whole = { .type = F32, .watched = ~0u };
    bool ok = true, frozen = true, rounded = true;

    draw(&x, c, F32);
    run_once(c, &x, &whole, &all);
    for (int i = 0; i < x.n && !all.failed; i++)
        ok &= !watchable(c, i) || check_difference(c, &x, &all, i);
    tap_ok(ok && !all.failed, "%s: gradients are differences", c->name);

    for (int i = 0; i < x.n; i++) {
        if (!watchable(c, i))
            continue;
        run_once(c, &x, &(struct mode){ .type = F32, .watched = 1u << i }, &o);
        frozen &= near_norm(c, &x, &o, &all, 0, 1e-6, 1u << i, "alone"); /* fused otherwise: rounding */
    }
    tap_ok(frozen, "%s: the same gradients when all else is frozen", c->name);

    run_once(c, &x, &(struct mode){ .type = F32, .watched = ~0u, .caller = true }, &o);
    ok = near_norm(c, &x, &o, &all, 1, 1e-6, ~0u, "added to 1");
    tap_ok(ok, "%s: gradients are added to the caller's", c->name);

    run_once(c, &x, &(struct mode){ .type = F32, .watched = ~0u, .segment = true }, &o);
    ok = near_norm(c, &x, &o, &all, 0, 0, ~0u, "in a segment") && o.loss == all.loss;
    tap_ok(ok, "%s: the same bits in a segment", c->name);

    for (enum dtype t = F16; t < N_DTYPE; t++) {
        draw(&x, c, t);
        run_once(c, &x, &whole, &all);
        run_once(c, &x, &(struct mode){ .type = t, .watched = ~0u }, &o);
        rounded &= near_norm(c, &x, &o, &all, 0, rel[t], ~0u, dtype_name(t));
        run_once(c, &x, &(struct mode){ .type = t, .watched = ~0u, .caller = true }, &o);
        rounded &= near_norm(c, &x, &o, &all, 1, rel[t], ~0u, dtype_name(t));
    }
    tap_ok(rounded, "%s: 16-bit gradients are near", c->name);
}

int main(void)
{
    const struct tape_caps caps = { 1 << 22, 1 << 22, 1 << 22, 1 << 22 };
    const char *isa = getenv("UNICON_TEST_ISA");
    struct err e = { 0 };
    char name[32];

    snprintf(name, sizeof name, "cpu%s%s", isa ? ":" : "", isa ? isa : "");
    if (device_open(&dev, name, 2, &e) || tape_memory_init(&mem, &dev, &caps, &e)
        || arena_init(&meta, "test meta", ARENA_HOST, 1 << 20, &e)
        || arena_init(&data, "test data", ARENA_HOST, 1 << 24, &e)) {
        tap_ok(false, "set up: %s", e.text);
        return tap_done();
    }
    tape_init(&tape, &dev, &mem);
    for (size_t i = 0; i < LEN(cases); i++)
        test_case(&cases[i]);
    tap_note("largest distance from a difference: %.2g of the gradient's size", worst_share);
    tape_memory_free(&mem);
    arena_free(&meta);
    arena_free(&data);
    device_close(&dev);
    return tap_done();
}
