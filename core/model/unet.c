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
 * The way up takes the skips of the way down (unet_encoder.c) back, last first. */
#include "core/model/unet.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/model/unet_encoder.h"

struct unet {
    struct unet_encoder half;
    struct unet_stage up[UNET_MAX_STAGE];
    struct weight conv_out;
    struct norm conv_norm_out;
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

/* ---- weights by name ---- */

/* Up stage j has the width of down stage n-1-j. Its layers take back that stage's skips, and as the last one what came
 * into it. */
static void bind_up(struct layers *l, struct unet *u)
{
    const struct unet_config *c = &u->half.config;
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
        unet_stage_bind(l, &u->half, &u->up[j], Ci, c->width[s], c->heads[s], n + 1, name);
    }
}

int unet_new(struct unet **out, const struct unet_config *c, struct layers *l, struct err *e)
{
    struct unet *u = arena_push_zero(&l->mem->meta, sizeof *u, e);
    int rc = u ? unet_encoder_bind(l, &u->half, c, e) : e->code;

    if (rc)
        return rc;
    bind_up(l, u);
    u->half.block[u->half.n_block - 1]->last = c->up_attends[c->n_stage - 1];
    layer_norm(l, &u->conv_norm_out, c->width[0], "conv_norm_out");
    layer_conv(l, &u->conv_out, c->out_channels, 3, c->width[0], true, "conv_out");
    rc = layers_done(l, "UNet", NULL, e);
    if (!rc)
        *out = u;
    return rc;
}

const struct unet_config *unet_config(const struct unet *u) { return &u->half.config; }

struct weight *unet_attention_weight(struct unet *u, const char *name)
{
    for (int i = 0; i < u->half.n_block; i++) {
        struct attention *a[] = { &u->half.block[i]->attn1, &u->half.block[i]->attn2 };

        for (int j = 0; j < 2; j++) {
            struct weight *w[] = { &a[j]->to_q, &a[j]->to_k, &a[j]->to_v, &a[j]->to_out };

            for (int k = 0; k < 4; k++)
                if (w[k]->name && !strcmp(w[k]->name, name))
                    return w[k];
        }
    }
    return NULL;
}

int unet_places(struct unet *u, struct joint_place *out)
{
    for (int i = 0; i < u->half.n_block; i++)
        out[i] = (struct joint_place){ u->half.block_name[i], u->half.block[i]->attn1.to_q.Co,
                                       &u->half.block[i]->attn1.to_out };
    return u->half.n_block;
}

int unet_text(struct tape *t, struct unet *u, struct tensor *text, const struct joint_run *run, struct unet_text *out,
              struct err *e)
{
    return unet_encoder_text(t, &u->half, text, run, out, e);
}

/* ---- forward ---- */

static const struct op_conv_geom same = { 1, 1, 1, 1, 1 };

/* x + y for rows [first, first + rows of y), in place without gradients. */
static struct tensor *add_rows(struct tape *t, struct tensor *x, int64_t first, struct tensor *y, struct err *e)
{
    const int64_t n = y->dim[0], after = x->dim[0] - first - n;
    struct tensor *own = op_rows(t, x, first, n, e), *part[3] = { NULL }, *all;

    tape_into(t, t->recording ? NULL : own);
    part[1] = own ? op_add(t, own, y, e) : NULL;
    if (!part[1] || !t->recording)
        return part[1] ? x : NULL;
    if ((first && !(part[0] = op_rows(t, x, 0, first, e)))
        || (after && !(part[2] = op_rows(t, x, first + n, after, e))))
        return NULL;
    all = part[0] ? op_join_rows(t, part[0], part[1], e) : part[1];
    return all && part[2] ? op_join_rows(t, all, part[2], e) : all;
}

/* What ControlNets found: x is the middle's result; it and the skips get theirs. */
static struct tensor *take_added(struct unet_pass *p, struct tensor *x, const struct unet_added *a, struct err *e)
{
    if (!a)
        return x;
    if (a->n != p->n_skip)
        return op_fail(e, E_ARG, "UNet: %d residuals for %d skips: they are of another network", a->n, p->n_skip);
    for (int i = 0; i < a->n; i++)
        if (!(p->skip[i] = add_rows(p->t, p->skip[i], a->first, a->skip[i], e)))
            return NULL;
    return add_rows(p->t, x, a->first, a->mid, e);
}

/* What is doubled takes the size of the skip that it will be joined with. */
static struct tensor *way_up(struct unet_pass *p, struct unet *u, struct tensor *x, struct err *e)
{
    for (int j = 0; j < u->half.config.n_stage; j++) {
        for (int i = 0; i <= u->half.config.layers_per_block; i++)
            if (!(x = unet_layer(p, &u->up[j], i, x, p->skip[--p->n_skip], e)))
                return NULL;
        if (u->up[j].has_sampler) {
            const struct tensor *next = p->skip[p->n_skip - 1];

            if (!(x = op_upsample_conv(p->t, x, &u->up[j].sampler, next->dim[1], next->dim[2], e)))
                return NULL;
        }
    }
    return x;
}

/* The noise, from the last layer's result. */
static struct tensor *head(struct unet_pass *p, struct unet *u, struct tensor *h, struct tensor *y, struct err *e)
{
    const struct unet_config *c = &u->half.config;
    const struct norm *norm = &u->conv_norm_out;
    const struct tape_mark m = tape_mark(p->t);

    if (!(h = op_group_norm(p->t, h, norm->gamma, norm->beta, c->norm_num_groups, c->norm_eps, true, e)))
        return NULL;
    tape_into(p->t, y);
    y = op_conv(p->t, h, NULL, &u->conv_out, same, NULL, NULL, e);
    tape_release(p->t, m);
    return y;
}

/* Rows that nobody reads are left out; with gradients everything is done. */
static struct tensor *read_out(struct unet_pass *p, struct unet *u, struct tensor *h, struct tensor *y, struct err *e)
{
    int64_t first[JOINT_MAX_PAIR], n[JOINT_MAX_PAIR];
    const int m = joint_read_rows(p->call->pairs, h->dim[0], first, n);

    if (p->t->recording)
        return head(p, u, h, y, e);
    for (int i = 0; i < m; i++) {
        struct tensor *from = op_rows(p->t, h, first[i], n[i], e), *to = op_rows(p->t, y, first[i], n[i], e);

        if (!from || !to || !head(p, u, from, to, e))
            return NULL;
    }
    return y;
}

struct tensor *unet_forward(struct tape *t, struct unet *u, struct tensor *x, struct tensor *time,
                            const struct unet_text *text, const struct unet_call *call, struct err *e)
{
    const struct unet_call plain = { 0 };
    struct unet_pass p = { .t = t, .u = &u->half, .text = text, .call = call ? call : &plain };
    struct tensor *y, *h;
    struct tape_mark m;

    if (unet_check(&u->half, x, time, text, p.call, e)
        || !(y = tape_new(t, x->type, 4, (int64_t[]){ x->dim[0], x->dim[1], x->dim[2], u->conv_out.Co }, e)))
        return NULL;
    m = tape_mark(t);
    if (!(h = unet_encode(&p, x, time, NULL, e)) || !(h = take_added(&p, h, p.call->added, e))
        || !(h = way_up(&p, u, h, e)) || !(y = read_out(&p, u, h, y, e)))
        return NULL;
    tape_release(t, m);
    return y;
}
