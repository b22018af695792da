/* core/model/controlnet.c: see controlnet.h. Sizes of SD 1.5 at 512 px, (H,W,C):
 *
 *   hint     (512,512, 3) -> conv 16, 16, halve 32, 32, halve 96, 96, halve 256 -> (64,64,320), SiLU between them
 *   way down and middle of the UNet, the hint added to conv_in's result
 *   a 1x1 convolution for each of the 12 skips and for the middle: zero when training begins */
#include "core/model/controlnet.h"

#include <inttypes.h>
#include <string.h>

#include "core/model/unet_encoder.h"

enum { MAX_HINT_CONV = 2 * CONTROLNET_MAX_HINT };

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, halve = { 2, 1, 1, 1, 1 }, point = { 1, 0, 0, 0, 0 };

struct controlnet {
    struct unet_encoder half;
    struct weight hint[MAX_HINT_CONV];      /* conv_in, blocks in pairs of which the second halves, conv_out */
    int n_hint;
    struct weight zero[UNET_MAX_SKIP], zero_mid;
    int64_t C[UNET_MAX_SKIP];               /* of the skips */
    bool halves[UNET_MAX_SKIP];             /* this skip is half as large as the one before */
    int n_skip;
};

struct controlnet_config controlnet_config_sd15(void)
{
    return (struct controlnet_config){ .unet = unet_config_sd15(), .n_hint = 4, .hint = { 16, 32, 96, 256 } };
}

int64_t controlnet_factor(const struct controlnet_config *c) { return (int64_t)1 << (c->n_hint - 1); }

/* ---- weights by name ---- */

static void bind_hint(struct layers *l, struct controlnet *c, const struct controlnet_config *f)
{
    const char *const name = "controlnet_cond_embedding";

    layer_conv(l, &c->hint[c->n_hint++], f->hint[0], 3, 3, true, "%s.conv_in", name);
    for (int i = 0; i + 1 < f->n_hint; i++) {
        layer_conv(l, &c->hint[c->n_hint++], f->hint[i], 3, f->hint[i], true, "%s.blocks.%d", name, 2 * i);
        layer_conv(l, &c->hint[c->n_hint++], f->hint[i + 1], 3, f->hint[i], true, "%s.blocks.%d", name, 2 * i + 1);
    }
    layer_conv(l, &c->hint[c->n_hint++], f->unet.width[0], 3, f->hint[f->n_hint - 1], true, "%s.conv_out", name);
}

static void bind_zero(struct layers *l, struct controlnet *c, int64_t C, bool halves)
{
    c->C[c->n_skip] = C;
    c->halves[c->n_skip] = halves;
    layer_conv(l, &c->zero[c->n_skip], C, 1, C, true, "controlnet_down_blocks.%d", c->n_skip);
    c->n_skip++;
}

static void bind_zeros(struct layers *l, struct controlnet *c, const struct unet_config *u)
{
    const int64_t last = u->width[u->n_stage - 1];

    bind_zero(l, c, u->width[0], false);
    for (int s = 0; s < u->n_stage; s++) {
        for (int i = 0; i < u->layers_per_block; i++)
            bind_zero(l, c, u->width[s], false);
        if (s + 1 < u->n_stage)
            bind_zero(l, c, u->width[s], true);
    }
    layer_conv(l, &c->zero_mid, last, 1, last, true, "controlnet_mid_block");
}

int controlnet_new(struct controlnet **out, const struct controlnet_config *f, struct layers *l, struct err *e)
{
    struct controlnet *c = arena_push_zero(&l->mem->meta, sizeof *c, e);
    int rc = c ? OK : e->code;

    if (!rc && (f->n_hint < 1 || f->n_hint > CONTROLNET_MAX_HINT))
        rc = err_set(e, E_FORMAT, "the ControlNet sees its picture through %d widths, 1 to %d can be", f->n_hint,
                     CONTROLNET_MAX_HINT);
    rc = rc ? rc : unet_encoder_bind(l, &c->half, &f->unet, e);
    if (rc)
        return rc;
    bind_hint(l, c, f);
    bind_zeros(l, c, &f->unet);
    rc = layers_done(l, "ControlNet", NULL, e);
    if (!rc)
        *out = c;
    return rc;
}

/* ---- once per run ---- */

struct tensor *controlnet_hint(struct tape *t, struct controlnet *c, struct tensor *picture, struct err *e)
{
    const struct op_epilogue silu = { .act = K_ACT_SILU };
    const int64_t f = (int64_t)1 << (c->n_hint - 2) / 2, C = c->half.config.width[0];
    struct tensor *x = picture, *y;
    struct tape_mark m;
    char have[96];

    if (x->n_dim != 4 || x->dim[0] != 1 || x->dim[3] != 3 || x->dim[1] < f || x->dim[2] < f || x->dim[1] % f
        || x->dim[2] % f || x->type != c->half.conv_in.pack_type)
        return op_fail(e, E_ARG, "ControlNet: the picture is %s, want %s (1,H,W,3), sides multiples of %" PRId64,
                       tensor_text(x, have, sizeof have), dtype_name(c->half.conv_in.pack_type), f);
    if (!(y = tape_new(t, x->type, 4, (int64_t[]){ 1, x->dim[1] / f, x->dim[2] / f, C }, e)))
        return NULL;
    m = tape_mark(t);
    for (int i = 0; i < c->n_hint && x; i++) {
        const bool last = i + 1 == c->n_hint;

        tape_into(t, last ? y : NULL);
        x = op_conv(t, x, NULL, &c->hint[i], i && i % 2 == 0 && !last ? halve : same, NULL, last ? NULL : &silu, e);
    }
    tape_release(t, m);
    return x;
}

int controlnet_text(struct tape *t, struct controlnet *c, struct tensor *text, struct unet_text *out, struct err *e)
{
    return unet_encoder_text(t, &c->half, text, NULL, out, e);
}

/* ---- once per step ---- */

/* The hint is the same for all rows. */
static struct tensor *repeat(struct tape *t, struct tensor *hint, const struct tensor *x, struct err *e)
{
    const int64_t n = tensor_count(hint), B = x->dim[0];
    const struct kview4 v = { { 1, 1, B, n }, { 0, 0, 0, 1 } };
    char have[96], other[96];
    struct tensor *y;

    if (hint->n_dim != 4 || hint->dim[0] != 1 || hint->dim[1] != x->dim[1] || hint->dim[2] != x->dim[2])
        return op_fail(e, E_ARG, "ControlNet: the hint is %s, the latents are %s", tensor_text(hint, have, sizeof have),
                       tensor_text(x, other, sizeof other));
    if (B == 1)
        return hint;
    y = tape_new(t, hint->type, 4, (int64_t[]){ B, hint->dim[1], hint->dim[2], hint->dim[3] }, e);
    if (!y || op_run(e, "hint", t->dev->kern->permute(&t->dev->ctx, y->data, hint->data, hint->type, &v)))
        return NULL;
    return y;
}

/* Without gradients all that is said goes to tensors that are there before. */
static int make_room(struct tape *t, const struct controlnet *c, const struct tensor *x, struct unet_added *out,
                     struct err *e)
{
    int64_t h = x->dim[1], w = x->dim[2];

    if (out->n || t->recording)
        return OK;
    for (int i = 0; i < c->n_skip; i++) {
        h = c->halves[i] ? (h + 1) / 2 : h;
        w = c->halves[i] ? (w + 1) / 2 : w;
        out->skip[i] = tape_new(t, x->type, 4, (int64_t[]){ x->dim[0], h, w, c->C[i] }, e);
        if (!out->skip[i])
            return e->code;
    }
    out->mid = tape_like(t, out->skip[c->n_skip - 1], e);
    return out->mid ? OK : e->code;
}

/* *to becomes weight times what `zero` makes of h, or has that added to it. */
static int add_residual(struct tape *t, struct weight *zero, struct tensor *h, float weight, bool first,
                        struct tensor **to, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *room = t->recording ? NULL : *to, *y;

    tape_into(t, first ? room : NULL);
    y = op_conv(t, h, NULL, zero, point, NULL, NULL, e);
    if (!y)
        return e->code;
    if (!first || weight != 1) {
        tape_into(t, room);
        y = first ? op_scale(t, weight, y, e) : op_axpby(t, 1, *to, weight, y, e);
    }
    *to = y;
    tape_release(t, m);
    return y ? OK : e->code;
}

/* What the way back needs again, if segments of the walk are done anew: it outlives the call. */
struct walk {
    struct unet_pass pass;
    struct unet_call call;
    struct unet_text text;
};

static struct unet_pass *start_walk(struct tape *t, struct controlnet *c, const struct unet_text *text, struct err *e)
{
    struct walk *w = tape_save(t, sizeof *w, e);

    if (!w)
        return NULL;
    w->text = *text;
    w->call.segments = t->recording;
    w->pass = (struct unet_pass){ .t = t, .u = &c->half, .text = &w->text, .call = &w->call };
    return &w->pass;
}

int controlnet_forward(struct tape *t, struct controlnet *c, struct tensor *x, struct tensor *time,
                       const struct unet_text *text, struct tensor *hint, float weight, struct unet_added *out,
                       struct err *e)
{
    const struct unet_call plain = { 0 };
    const bool first = !out->n;
    struct unet_pass *p;
    struct tape_mark m;
    struct tensor *h;
    int rc;

    if (!first && out->n != c->n_skip)
        return err_set(e, E_ARG, "ControlNet: %d residuals beside %d: they are of different bases", c->n_skip, out->n);
    rc = unet_check(&c->half, x, time, text, &plain, e);
    rc = rc ? rc : make_room(t, c, x, out, e);
    if (rc)
        return rc;
    m = tape_mark(t);
    if (!(p = start_walk(t, c, text, e)) || !(hint = repeat(t, hint, x, e)) || !(h = unet_encode(p, x, time, hint, e)))
        return e->code;
    for (int i = 0; i < c->n_skip && !rc; i++)
        rc = add_residual(t, &c->zero[i], p->skip[i], weight, first, &out->skip[i], e);
    rc = rc ? rc : add_residual(t, &c->zero_mid, h, weight, first, &out->mid, e);
    tape_release(t, m);
    out->n = c->n_skip;
    return rc;
}
