/* tests/t_golden.c: every operation, forward and backward, and two blocks made of them, against what PyTorch, diffusers
 * and peft compute (tests/reference/ops.py), on every instruction set of this machine and in all storage types.
 *
 * A case builds its result from leaves of the golden file; the harness runs it three times: without recording, where
 * epilogues are fused; recording, then backward from the golden's dy; and again, so that gradients that the caller owns
 * come out doubled. Errors are ||got - want|| / ||want||.
 *
 *     build/t_golden [FILE]          UNICON_TEST_ISA=avx2 limits it to one instruction set                        */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/op/op.h"
#include "tests/golden.h"
#include "tests/kit.h"
#include "tests/tap.h"

enum { MAX_LEAF = 48, MAX_NAME = 64, MIB = 1 << 20 };

struct leaf {
    char name[MAX_NAME];        /* within the case */
    struct tensor *x;
    bool watched, owned;        /* owned: an f32 gradient of ours; otherwise it is left in the pool */
};

struct run {
    const struct golden *g;
    const struct golden_case *c;
    enum dtype type;            /* of activations and raw weights */
    struct device dev;
    struct tape_memory mem;
    struct tape tape;
    struct arena meta, model;   /* structs; leaves, their gradients, packs */
    struct leaf leaf[MAX_LEAF];
    struct weight weight[MAX_LEAF];
    int n_leaf, n_weight;
    struct err e;
};

struct golden_case {
    const char *name;
    struct tensor *(*make)(struct run *r);
    struct op_conv_geom geom;
    int choice;                 /* an activation, or heads, or groups */
    const char *golden;         /* the golden's name where it differs */
};

/* What may differ, in units u = 2^-24, 2^-11, 2^-8. The golden is exact and carries the case's noise: how far
 * PyTorch's own float32 and bfloat16 are from it. We may be off by half as much again, for we add in other orders and
 * round in other places, and by a bit where PyTorch's noise happens to be less: 3 u in f32, where a sum of a few terms
 * costs that much; 0.5 u in 16 bits, where one rounding costs 0.42 u in the norm. f16 rounds as often as bf16 does.
 * Most f32 cases come to 5 u = 3e-7, the deep gradients of the blocks to 26 u; one tensor rounded to f16 where it
 * should not be costs 3000 u. */
static const double unit[N_DTYPE] = { 0x1p-24, 0x1p-11, 0x1p-8 };
static const double share_of_noise = 1.5, bit_more[N_DTYPE] = { 3, 0.5, 0.5 };

/* ---- leaves ---- */

static const struct golden_tensor *golden(const struct run *r, const char *prefix, const char *name)
{
    char full[2 * MAX_NAME];

    snprintf(full, sizeof full, "%s.%s%s", r->c->golden ? r->c->golden : r->c->name, prefix, name);
    return golden_get(r->g, full);
}

static void die(const struct run *r, const char *what)
{
    printf("Bail out! %s: %s %s\n", r->c->name, what, r->e.text);
    exit(1);
}

/* The golden NAME as a leaf of `type`, the same one each time; NULL if there is none. */
static struct tensor *leaf(struct run *r, const char *name, enum dtype type, bool watched, bool owned)
{
    const struct golden_tensor *v = golden(r, "", name);
    struct leaf *l = r->leaf;
    struct tensor *grad = NULL;

    for (; l < r->leaf + r->n_leaf; l++)
        if (!strcmp(l->name, name))
            return l->x;
    if (!v)
        return NULL;
    if (r->n_leaf++ == MAX_LEAF)
        die(r, "too many leaves");
    *l = (struct leaf){ .watched = watched, .owned = owned };
    snprintf(l->name, sizeof l->name, "%s", name);
    l->x = tensor_new(&r->meta, &r->model, type, v->n_dim, v->dim, &r->e);
    if (owned)
        grad = tensor_new(&r->meta, &r->model, F32, v->n_dim, v->dim, &r->e);
    if (!l->x || (owned && !grad))
        die(r, name);
    dtype_from_f32(l->x->data, type, v->f, v->n);
    l->x->name = l->name;
    if (grad)
        memset(grad->data, 0, tensor_bytes(grad));
    if (watched)
        tape_watch(l->x, grad);
    return l->x;
}

static struct tensor *need(struct run *r, struct tensor *x, const char *name)
{
    if (!x)
        die(r, name);
    return x;
}

static struct tensor *maybe(struct run *r, const char *name)
{
    return leaf(r, name, r->type, true, false);
}

static struct tensor *act(struct run *r, const char *name)      /* an activation */
{
    return need(r, maybe(r, name), name);
}

static struct tensor *vec(struct run *r, const char *name)      /* a trained f32 vector */
{
    return need(r, leaf(r, name, F32, true, true), name);
}

static struct tensor *constant(struct run *r, const char *name)
{
    return need(r, leaf(r, name, F32, false, false), name);
}

/* Weights and, where the golden has it, a bias. */
static struct weight *layer(struct run *r, const char *name, const char *bias)
{
    struct tensor *raw = need(r, leaf(r, name, r->type, true, true), name), *b = leaf(r, bias, F32, true, true);
    struct weight *w = r->weight;

    for (; w < r->weight + r->n_weight; w++)
        if (w->raw == raw)
            return w;
    r->n_weight++;
    if (weight_init(w, raw->name, raw, b, &r->model, &r->e))
        die(r, name);
    return w;
}

static struct weight *module(struct run *r, const char *name)
{
    char w[MAX_NAME + 8], b[MAX_NAME + 8];

    snprintf(w, sizeof w, "%s_weight", name);
    snprintf(b, sizeof b, "%s_bias", name);
    return layer(r, w, b);
}

/* ---- cases ---- */

static struct tensor *linear(struct run *r)
{
    const struct op_epilogue epi = { .act = (enum kact)r->c->choice, .row_add = maybe(r, "row"),
                                     .residual = maybe(r, "r") };

    return op_linear(&r->tape, act(r, "x"), layer(r, "w", "b"), NULL, 0, &epi, &r->e);
}

/* Two terms of peft's: alpha / r = 6/4 and 3/6. */
static struct tensor *lora(struct run *r)
{
    const struct op_lora term[2] = { { module(r, "lora_A_p"), module(r, "lora_B_p"), 1.5f },
                                     { module(r, "lora_A_q"), module(r, "lora_B_q"), 0.5f } };

    return op_linear(&r->tape, act(r, "x"), module(r, "base_layer"), term, 2, NULL, &r->e);
}

/* One of diffusers': alpha / rank = 8/4, times 0.75. */
static struct tensor *lora_residual(struct run *r)
{
    const struct op_lora term = { module(r, "down"), module(r, "up"), 1.5f };
    const struct op_epilogue epi = { .residual = act(r, "r") };

    return op_linear(&r->tape, act(r, "x"), layer(r, "w", "b"), &term, 1, &epi, &r->e);
}

static struct tensor *conv(struct run *r)
{
    const struct op_epilogue epi = { .act = (enum kact)r->c->choice, .row_add = maybe(r, "row"),
                                     .residual = maybe(r, "r") };
    struct op_shortcut s = { .x = maybe(r, "s"), .x2 = maybe(r, "s2") };

    if (s.x)
        s.w = layer(r, "v", "vb");
    return op_conv(&r->tape, act(r, "x"), maybe(r, "x2"), layer(r, "w", "b"), r->c->geom, s.x ? &s : NULL, &epi, &r->e);
}

static struct tensor *upsample_conv(struct run *r)
{
    const int64_t *dim = golden(r, "", "y")->dim;

    return op_upsample_conv(&r->tape, act(r, "x"), layer(r, "w", "b"), dim[1], dim[2], &r->e);
}

static struct tensor *attention(struct run *r)
{
    return op_attention(&r->tape, act(r, "q"), act(r, "k"), act(r, "v"), r->c->choice, 0,
                        !strcmp(r->c->name, "attention_causal"), &r->e);
}

static struct tensor *group_norm(struct run *r)
{
    const bool silu = !strcmp(r->c->name, "group_norm_silu");

    return op_group_norm(&r->tape, act(r, "x"), vec(r, "gamma"), vec(r, "beta"), r->c->choice, silu ? 1e-5f : 1e-6f,
                         silu, &r->e);
}

static struct tensor *layer_norm(struct run *r)
{
    return op_layer_norm(&r->tape, act(r, "x"), vec(r, "gamma"), vec(r, "beta"), 1e-5f, &r->e);
}

static struct tensor *unary(struct run *r)
{
    return op_unary(&r->tape, (enum kunary)r->c->choice, act(r, "x"), &r->e);
}

/* Operations with nothing to set. */
enum simple { GEGLU, SOFTMAX, AXPBY, ADD, SCALE, MUL, JOIN, JOIN_ROWS, ROWS, CHANNELS, RESHAPE };

static struct tensor *simple(struct run *r)
{
    struct tensor *x = act(r, "x"), *z = maybe(r, "z");

    switch ((enum simple)r->c->choice) {
    case GEGLU: return op_geglu(&r->tape, x, &r->e);
    case SOFTMAX: return op_softmax(&r->tape, x, &r->e);
    case AXPBY: return op_axpby(&r->tape, 0.75f, x, -1.5f, z, &r->e);
    case ADD: return op_add(&r->tape, x, z, &r->e);
    case SCALE: return op_scale(&r->tape, -0.375f, x, &r->e);
    case MUL: return op_mul(&r->tape, x, z, &r->e);
    case JOIN: return op_join(&r->tape, x, z, &r->e);
    case JOIN_ROWS: return op_join_rows(&r->tape, x, z, &r->e);
    case ROWS: return op_rows(&r->tape, x, 1, 2, &r->e);
    case CHANNELS: return op_channels(&r->tape, x, 2, 3, &r->e);
    case RESHAPE: return op_reshape(&r->tape, x, 3, (int64_t[]){ 3, 35, 3 }, &r->e);
    }
    return NULL;
}

static struct tensor *row_axpby(struct run *r)
{
    struct tensor *z = maybe(r, "z");

    return op_row_axpby(&r->tape, constant(r, "a"), act(r, "x"), z ? constant(r, "c") : NULL, z, &r->e);
}

static struct tensor *cast(struct run *r)
{
    return op_cast(&r->tape, act(r, "x"), (enum dtype)r->c->choice, &r->e);
}

static struct tensor *resample(struct run *r)                  /* choice: nearest, bilinear, corners aligned */
{
    const int64_t *dim = golden(r, "", "y")->dim;

    if (r->c->choice == 0)
        return op_nearest(&r->tape, act(r, "x"), dim[1], dim[2], &r->e);
    return op_bilinear(&r->tape, act(r, "x"), dim[1], dim[2], r->c->choice == 2, &r->e);
}

static struct tensor *gather(struct run *r)
{
    const struct golden_tensor *id = golden(r, "", "id");
    struct tensor *table = need(r, leaf(r, "table", r->type, true, true), "table");

    return op_gather(&r->tape, table, id->i, id->n, r->type, &r->e);
}

static struct tensor *time_embed(struct run *r)
{
    return op_time_embed(&r->tape, constant(r, "t"), golden(r, "", "y")->dim[1], r->type, &r->e);
}

static struct tensor *mse(struct run *r)
{
    const bool mean = !strcmp(r->c->name, "mse_mean");

    return op_mse(&r->tape, act(r, "x"), act(r, "z"), mean ? NULL : constant(r, "w"), mean ? NULL : constant(r, "mask"),
                  &r->e);
}

/* ---- blocks ---- */

/* diffusers' ResnetBlock2D: norm, SiLU, conv, + time; norm, SiLU, conv, + 1x1 of the input. */
static struct tensor *resnet_body(struct tape *t, void *ctx, struct tensor **in, int n_in, struct err *e)
{
    struct run *r = ctx;
    const struct op_conv_geom same = { 1, 1, 1, 1, 1 };
    const struct op_shortcut shortcut = { .w = module(r, "conv_shortcut"), .x = in[0] };
    struct op_epilogue time = { 0 };
    struct tensor *h;

    h = op_unary(t, K_SILU, in[n_in - 1], e);
    time.row_add = h ? op_linear(t, h, module(r, "time_emb_proj"), NULL, 0, NULL, e) : NULL;
    if (!time.row_add)
        return NULL;
    h = op_group_norm(t, in[0], vec(r, "norm1_weight"), vec(r, "norm1_bias"), 8, 1e-5f, true, e);
    if (h)
        h = op_conv(t, h, NULL, module(r, "conv1"), same, NULL, &time, e);
    if (h)
        h = op_group_norm(t, h, vec(r, "norm2_weight"), vec(r, "norm2_bias"), 8, 1e-5f, true, e);
    return h ? op_conv(t, h, NULL, module(r, "conv2"), same, &shortcut, NULL, e) : NULL;
}

static struct tensor *resnet(struct run *r)
{
    struct tensor *in[2] = { act(r, "x"), act(r, "temb") };

    return resnet_body(&r->tape, r, in, 2, &r->e);
}

/* The same as a checkpointed segment: computed again in the backward pass. */
static struct tensor *resnet_segment(struct run *r)
{
    struct tensor *in[2] = { act(r, "x"), act(r, "temb") };

    return tape_segment(&r->tape, resnet_body, r, in, 2, leaf(r, "dy", r->type, false, false), &r->e);
}

/* x + to_out(attention(to_q h, to_k text, to_v text)), two heads */
static struct tensor *attend(struct run *r, const char *name, struct tensor *h, struct tensor *text, struct tensor *x)
{
    const struct op_epilogue add_x = { .residual = x };
    struct tensor *q, *k, *v;
    char part[4][MAX_NAME];
    static const char *const end[] = { "to_q", "to_k", "to_v", "to_out_0" };

    for (int i = 0; i < 4; i++)
        snprintf(part[i], MAX_NAME, "%s_%s", name, end[i]);
    q = op_linear(&r->tape, h, module(r, part[0]), NULL, 0, NULL, &r->e);
    k = op_linear(&r->tape, text, module(r, part[1]), NULL, 0, NULL, &r->e);
    v = op_linear(&r->tape, text, module(r, part[2]), NULL, 0, NULL, &r->e);
    h = q && k && v ? op_attention(&r->tape, q, k, v, 2, 0, false, &r->e) : NULL;
    return h ? op_linear(&r->tape, h, module(r, part[3]), NULL, 0, &add_x, &r->e) : NULL;
}

static struct tensor *norm_of(struct run *r, const char *w, const char *b, struct tensor *x)
{
    return x ? op_layer_norm(&r->tape, x, vec(r, w), vec(r, b), 1e-5f, &r->e) : NULL;
}

/* diffusers' BasicTransformerBlock: self attention, attention to text, GEGLU, each after a norm and added to x. */
static struct tensor *transformer(struct run *r)
{
    const struct op_epilogue gate = { .act = K_ACT_GEGLU };
    struct op_epilogue add_x = { 0 };
    struct tensor *x = act(r, "x"), *h;

    h = norm_of(r, "norm1_weight", "norm1_bias", x);
    x = h ? attend(r, "attn1", h, h, x) : NULL;
    h = norm_of(r, "norm2_weight", "norm2_bias", x);
    x = h ? attend(r, "attn2", h, act(r, "text"), x) : NULL;
    h = norm_of(r, "norm3_weight", "norm3_bias", x);
    h = h ? op_linear(&r->tape, h, module(r, "ff_net_0_proj"), NULL, 0, &gate, &r->e) : NULL;
    add_x.residual = x;
    return h ? op_linear(&r->tape, h, module(r, "ff_net_2"), NULL, 0, &add_x, &r->e) : NULL;
}

#define SAME .geom = { 1, 1, 1, 1, 1 }      /* stride; rows above, columns left, below, right */

static const struct golden_case cases[] = {
    { "linear", linear, .choice = K_ACT_NONE },
    { "linear_plain", linear, .choice = K_ACT_NONE },
    { "linear_silu", linear, .choice = K_ACT_SILU },
    { "linear_gelu", linear, .choice = K_ACT_GELU },
    { "linear_quick_gelu", linear, .choice = K_ACT_QUICK_GELU },
    { "linear_relu", linear, .choice = K_ACT_RELU },
    { "linear_residual", linear, .choice = K_ACT_NONE },
    { "linear_everything", linear, .choice = K_ACT_SILU },
    { "linear_geglu", linear, .choice = K_ACT_GEGLU },
    { "lora", lora, .choice = 0 },
    { "lora_residual", lora_residual, .choice = 0 },
    { "conv_s1", conv, SAME },
    { "conv_s2", conv, .geom = { 2, 1, 1, 1, 1 } },
    { "conv_s2_even", conv, .geom = { 2, 1, 1, 1, 1 } },
    { "conv_s2_vae", conv, .geom = { 2, 0, 0, 1, 1 } },
    { "conv_s2_vae_odd", conv, .geom = { 2, 0, 0, 1, 1 } },
    { "conv_1x1", conv, .geom = { 1, 0, 0, 0, 0 } },
    { "conv_1x7", conv, .geom = { 1, 0, 3, 0, 3 } },
    { "conv_4x4_s2", conv, .geom = { 2, 0, 0, 0, 0 } },
    { "conv_silu", conv, SAME, .choice = K_ACT_SILU },
    { "conv_add", conv, SAME },
    { "conv_join", conv, SAME },
    { "conv_shortcut", conv, SAME },
    { "conv_join_shortcut", conv, SAME },
    { "upsample_even", upsample_conv, .choice = 0 },
    { "upsample_odd", upsample_conv, .choice = 0 },
    { "upsample_mixed", upsample_conv, .choice = 0 },
    { "attention_cross", attention, .choice = 8 },
    { "attention_self", attention, .choice = 3 },
    { "attention_causal", attention, .choice = 1 },
    { "attention_batch", attention, .choice = 3 },
    { "group_norm", group_norm, .choice = 4 },
    { "group_norm_silu", group_norm, .choice = 6 },
    { "layer_norm", layer_norm, .choice = 0 },
    { "silu", unary, .choice = K_SILU },
    { "gelu", unary, .choice = K_GELU },
    { "quick_gelu", unary, .choice = K_QUICK_GELU },
    { "relu", unary, .choice = K_RELU },
    { "geglu", simple, .choice = GEGLU },
    { "softmax", simple, .choice = SOFTMAX },
    { "axpby", simple, .choice = AXPBY },
    { "add", simple, .choice = ADD },
    { "scale", simple, .choice = SCALE },
    { "mul", simple, .choice = MUL },
    { "join", simple, .choice = JOIN },
    { "join_rows", simple, .choice = JOIN_ROWS },
    { "rows", simple, .choice = ROWS },
    { "channels", simple, .choice = CHANNELS },
    { "reshape", simple, .choice = RESHAPE },
    { "row_axpby", row_axpby, .choice = 0 },
    { "row_scale", row_axpby, .choice = 0 },
    { "cast_bf16", cast, .choice = BF16 },
    { "cast_f16", cast, .choice = F16 },
    { "nearest_up", resample, .choice = 0 },
    { "nearest_down", resample, .choice = 0 },
    { "nearest_twice", resample, .choice = 0 },
    { "bilinear_up", resample, .choice = 1 },
    { "bilinear_down", resample, .choice = 1 },
    { "bilinear_twice", resample, .choice = 1 },
    { "bilinear_corners_up", resample, .choice = 2 },
    { "bilinear_corners_down", resample, .choice = 2 },
    { "bilinear_corners_twice", resample, .choice = 2 },
    { "gather", gather, .choice = 0 },
    { "time_embed", time_embed, .choice = 0 },
    { "mse", mse, .choice = 0 },
    { "mse_mean", mse, .choice = 0 },
    { "resnet", resnet, .choice = 0 },
    { "resnet_segment", resnet_segment, .golden = "resnet" },
    { "transformer", transformer, .choice = 0 },
};

/* ---- harness ---- */

static double tolerance(const struct run *r, bool gradient)
{
    const struct golden_tensor *noise = golden(r, "", "noise");         /* (2,2): f32, bf16; results, gradients */
    const double n = noise ? (double)noise->f[2 * (r->type != F32) + gradient] : 0;

    return (share_of_noise * n + bit_more[r->type]) * unit[r->type];
}

/* ||got - times want|| / ||times want||; a NaN or other sizes are infinitely wrong. */
static double distance(const struct tensor *got, const struct golden_tensor *want, double times)
{
    double num = 0, den = 0;
    float *v;

    if (!got || !want || tensor_count(got) != want->n)
        return INFINITY;
    v = malloc(sizeof *v * (size_t)want->n + 1);
    if (!v)
        return INFINITY;
    dtype_to_f32(v, got->data, got->type, want->n);
    for (int64_t i = 0; i < want->n; i++) {
        num += (v[i] - times * want->f[i]) * (v[i] - times * want->f[i]);
        den += times * want->f[i] * times * want->f[i];
    }
    free(v);
    num = num > 0 || isnan(num) ? sqrt(num / den) : 0;
    return isnan(num) ? INFINITY : num;
}

static bool near(const struct run *r, const char *pass, const char *prefix, const char *name, const struct tensor *got,
                 double times, double *worst)
{
    const double d = distance(got, golden(r, prefix, name), times), most = tolerance(r, *prefix == 'd');

    if (d > *worst)
        *worst = d;
    if (d <= most)
        return true;
    tap_note("%s, %s: %s%s is off by %.3g, allowed %.3g", r->c->name, pass, prefix, name, d, most);
    return false;
}

/* Before each pass: pool gradients are gone with the last one. */
static void fresh(struct run *r, bool recording)
{
    tape_reset(&r->tape);
    r->tape.recording = recording;
    err_clear(&r->e);
    for (struct leaf *l = r->leaf; l < r->leaf + r->n_leaf; l++)
        if (l->watched && !l->owned)
            tape_watch(l->x, NULL);
}

static bool failed(const struct run *r, const char *pass)
{
    tap_note("%s, %s: %s", r->c->name, pass, r->e.text);
    return false;
}

static bool pass_forward(struct run *r, double *worst)
{
    struct tensor *y;

    fresh(r, false);
    y = r->c->make(r);
    return y ? near(r, "not recording", "", "y", y, 1, worst) : failed(r, "not recording");
}

static bool pass_backward(struct run *r, int times, double *worst_y, double *worst)
{
    const char *pass = times == 1 ? "recording" : "second time";
    bool ok, any = false;
    struct tensor *y;

    fresh(r, true);
    y = r->c->make(r);
    if (!y)
        return failed(r, pass);
    ok = near(r, pass, "", "y", y, 1, worst_y);
    for (int i = 0; i < r->n_leaf; i++)
        any = any || r->leaf[i].watched;
    if (!any)
        return ok;
    if (tape_backward(&r->tape, y, leaf(r, "dy", y->type, false, false), &r->e))
        return failed(r, pass);
    for (struct leaf *l = r->leaf; l < r->leaf + r->n_leaf; l++)
        if (l->watched)
            ok &= near(r, pass, "d", l->name, l->x->grad, l->owned ? times : 1, worst);
    return ok;
}

static void run_case(struct run *r, const struct golden_case *c)
{
    static const char *const type_name[N_DTYPE] = { "f32", "f16", "bf16" };
    const size_t meta = arena_mark(&r->meta), model = arena_mark(&r->model);
    double y = 0, d = 0;
    bool ok;

    r->c = c;
    r->n_leaf = r->n_weight = 0;
    ok = pass_forward(r, &y);
    ok &= pass_backward(r, 1, &y, &d);
    ok &= pass_backward(r, 2, &y, &d);
    tap_ok(ok, "%s %s %s: y %.2g u, gradients %.2g u", r->dev.kern->name, type_name[r->type], c->name,
           y / unit[r->type], d / unit[r->type]);
    tape_reset(&r->tape);
    arena_release(&r->meta, meta);
    arena_release(&r->model, model);
}

/* torch.optim.AdamW, five steps from zero moments. */
static void adamw(struct run *r)
{
    static const struct golden_case c = { "adamw", NULL, .choice = 0 };
    const size_t meta = arena_mark(&r->meta), model = arena_mark(&r->model);
    const struct golden_tensor *g;
    struct tensor *p, *m, *v;
    double worst = 0;
    bool ok = true;

    r->c = &c;
    r->n_leaf = 0;
    g = golden(r, "", "g");                             /* (steps, n) */
    p = constant(r, "p");
    m = tensor_new(&r->meta, &r->model, F32, 1, p->dim, &r->e);
    v = tensor_new(&r->meta, &r->model, F32, 1, p->dim, &r->e);
    if (!g || !m || !v)
        die(r, "adamw");
    memset(m->data, 0, tensor_bytes(m));
    memset(v->data, 0, tensor_bytes(v));
    for (int64_t i = 0; i < g->dim[0]; i++) {
        const struct kadamw o = { .lr = 0.0625f, .beta1 = 0.875f, .beta2 = 0.96875f, .eps = 0x1p-20f,
                                  .weight_decay = 0.125f, .bias1 = (float)(1 - pow(0.875, (double)i + 1)),
                                  .bias2 = (float)(1 - pow(0.96875, (double)i + 1)), .grad_scale = 1 };
        ok &= r->dev.kern->adamw(&r->dev.ctx, p->data, m->data, v->data, g->f + i * g->dim[1], g->dim[1], &o, NULL, F32)
            == K_OK;
    }
    ok &= near(r, "5 steps", "", "p_end", p, 1, &worst);
    ok &= near(r, "5 steps", "", "m_end", m, 1, &worst);
    ok &= near(r, "5 steps", "", "v_end", v, 1, &worst);
    tap_ok(ok, "%s f32 adamw: %.2g u", r->dev.kern->name, worst / unit[F32]);
    arena_release(&r->meta, meta);
    arena_release(&r->model, model);
}

static bool open_run(struct run *r, const struct golden *g, const char *isa)
{
    static const struct tape_caps caps = { 16 * MIB, 64 * MIB, 64 * MIB, 64 * MIB };
    char name[64];

    memset(r, 0, sizeof *r);
    r->g = g;
    snprintf(name, sizeof name, "cpu:%s", isa);
    if (device_open(&r->dev, name, 2, &r->e) || tape_memory_init(&r->mem, &r->dev, &caps, &r->e)
        || arena_init(&r->meta, "test meta", ARENA_HOST, 16 * MIB, &r->e)
        || arena_init(&r->model, "model", r->dev.place, 64 * MIB, &r->e))
        return false;
    tape_init(&r->tape, &r->dev, &r->mem);
    return true;
}

static void close_run(struct run *r)
{
    arena_free(&r->model);
    arena_free(&r->meta);
    tape_memory_free(&r->mem);
    device_close(&r->dev);
}

/* The reader itself: every cut of a good file, and a few bad ones, are refused. */
static void reader(void)
{
    static const char good[] = "{\"__metadata__\":{\"seed\":\"7\",\"draw b\":\"0.5 2 3\"},"
                               "\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}}";
    static const char *const bad[] = {
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
        "{\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,0]}}",
        "{\"__metadata__\":{\"draw b\":\"1.0 -2\"}}",
        "{\"__metadata__\":{\"draw b\":\"1.0\"}}",
    };
    unsigned char file[512];
    char why[256];
    struct golden *g;
    bool ok = true;

    for (size_t i = 0; i <= LEN(bad); i++) {
        const char *header = i < LEN(bad) ? bad[i] : good;
        const size_t n = strlen(header);

        memset(file, 0, sizeof file);
        file[0] = (unsigned char)n;
        memcpy(file + 8, header, n);
        for (size_t cut = 0; cut < 8 + n + 8; cut++) {
            g = golden_parse(file, cut, why, sizeof why);
            ok &= !g;
            golden_close(g);
        }
        g = golden_parse(file, 8 + n + 8, why, sizeof why);
        ok &= (g != NULL) == (header == good);
        if (g)
            ok &= golden_get(g, "a") && golden_get(g, "b") && golden_get(g, "b")->n == 6 && !golden_get(g, "c");
        golden_close(g);
    }
    tap_ok(ok, "the golden reader takes a good file and refuses its cuts and %zu bad ones", LEN(bad));
}

int main(int argc, char **argv)
{
    const char *only = getenv("UNICON_TEST_ISA");
    struct golden *g = golden_open(argc > 1 ? argv[1] : "tests/reference/ops.safetensors");
    static struct run r;

    reader();
    for (const char *const *isa = kern_cpu_names(); *isa; isa++) {
        if (only && strcmp(only, *isa))
            continue;
        if (!kern_cpu(*isa)) {
            tap_skip(*isa, "this machine lacks it");
            continue;
        }
        if (!open_run(&r, g, *isa)) {
            tap_ok(false, "%s: %s", *isa, r.e.text);
            close_run(&r);
            continue;
        }
        for (int t = 0; t < N_DTYPE; t++)
            for (size_t i = 0; i < LEN(cases); i++) {
                r.type = (enum dtype)t;
                if (cases[i].make != cast || t == F32)
                    run_case(&r, &cases[i]);
            }
        adamw(&r);
        close_run(&r);
    }
    golden_close(g);
    return tap_done();
}
