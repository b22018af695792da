/* core/model/transformer.c: self-attention, text attention and the gated layer of a transformer block; and for pairs
 * the joint attention beside self-attention (UniCon, Eq. 4 and 5):
 *
 *     n = LN1(h);  X, Y: rows of x and y in n
 *     Ox = Wo[xy] softmax(Wq[xy] X (Wk[yx] Y)^T) Wv[yx] Y      Oy the other way round
 *     [Px|Py] = P [Ox|Oy]  (conv_fuse)     or     Px = P Ox, Py = P Oy  (conv)
 *     h += attention(n) + joint_scale (wx Px to the rows of x, wy Py to those of y)
 *
 * W[a] is the base's own weight with adapter a: xy_lora always works on features of x, yx_lora on those of y. Rows of y
 * have y_lora in self- and text attention. The inputs of a run differ in their adapters, so each is computed by itself;
 * without gradients results go into the rows of h, with them they are joined. */
#include "core/model/transformer.h"

static const float norm_eps = 1e-6f, layer_norm_eps = 1e-5f;

static int n_inputs(const struct joint_run *r) { return r ? r->n_input : 1; }

/* The rows of input k. */
static struct tensor *part(struct tape *t, struct tensor *x, const struct joint_run *r, int k, struct err *e)
{
    const int64_t n = x->dim[0] / n_inputs(r);

    return n_inputs(r) == 1 ? x : op_rows(t, x, k * n, n, e);
}

/* x W^T of one input with the terms that attention `attn` has for it. */
static struct tensor *project(struct tape *t, struct tensor *x, struct weight *w, const struct joint_run *r, int k,
                              int block, int attn, int projection, struct tensor *residual, struct err *e)
{
    struct op_lora terms[JOINT_MAX_PAIR];
    const int n = joint_y_terms(r, k, block, attn, projection, terms);

    return op_linear(t, x, w, terms, n, &(struct op_epilogue){ .residual = residual }, e);
}

/* All inputs one below the other again. */
static struct tensor *join(struct tape *t, struct tensor **in, int n, struct err *e)
{
    struct tensor *y = in[0];

    for (int k = 1; k < n && y; k++)
        y = op_join_rows(t, y, in[k], e);
    return y;
}

/* What the queries of input k get from the text, group by group: rows of one prompt are one long image to it. */
static struct tensor *ask_text(struct tape *t, struct transformer *a, const struct joint_run *r, int k,
                               struct tensor *q, const struct unet_text *text, struct err *e)
{
    const int n = text->n_group / n_inputs(r);
    const int64_t rows = n ? q->dim[0] / n : 0, one[] = { 1, rows * q->dim[1], q->dim[2] };
    struct tensor *key = text->k[a->block], *v = text->v[a->block], *o = NULL, *part_q, *part_o[UNET_MAX_GROUP] = { NULL };

    if (!n)
        return (key = part(t, key, r, k, e)) && (v = part(t, v, r, k, e))
            ? op_attention(t, q, key, v, a->heads, 0, false, e) : NULL;
    if (!t->recording && !(o = tape_like(t, q, e)))
        return NULL;
    for (int g = 0; g < n; g++) {
        const int prompt = text->prompt[k * n + g];
        struct tensor *own_k = op_rows(t, key, prompt, 1, e), *own_v = own_k ? op_rows(t, v, prompt, 1, e) : NULL;
        struct tensor *to = o && own_v ? op_rows(t, o, g * rows, rows, e) : NULL;

        if (!own_v || (o && (!to || !(to = op_reshape(t, to, 3, one, e))))
            || !(part_q = op_rows(t, q, g * rows, rows, e)) || !(part_q = op_reshape(t, part_q, 3, one, e)))
            return NULL;
        tape_into(t, to);
        if (!(part_o[g] = op_attention(t, part_q, own_k, own_v, a->heads, 0, false, e))
            || (!o && !(part_o[g] = op_reshape(t, part_o[g], 3, (int64_t[]){ rows, q->dim[1], q->dim[2] }, e))))
            return NULL;
    }
    return o ? o : join(t, part_o, n, e);
}

/* h + to_out(attention of n) of input k, to key and v or, if those are NULL, to the text; without gradients in place of
 * h. */
static struct tensor *attend(struct tape *t, struct transformer *a, const struct joint_run *r, int k, struct tensor *h,
                             struct tensor *n, struct tensor *key, struct tensor *v, const struct unet_text *text,
                             struct err *e)
{
    struct attention *w = key ? &a->attn1 : &a->attn2;
    const struct tape_mark m = tape_mark(t);
    const int attn = key ? 1 : 2;
    struct tensor *q, *o;

    if (!(q = project(t, n, &w->to_q, r, k, a->block, attn, JOINT_Q, NULL, e))
        || !(o = key ? op_attention(t, q, key, v, a->heads, 0, false, e) : ask_text(t, a, r, k, q, text, e)))
        return NULL;
    tape_into(t, t->recording ? NULL : h);
    h = project(t, o, &w->to_out, r, k, a->block, attn, JOINT_O, h, e);
    tape_release(t, m);
    return h;
}

/* ---- self-attention ---- */

static struct tensor *self_rows(struct tape *t, struct transformer *a, const struct joint_run *r, int k,
                                struct tensor *h, struct tensor *n, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *key, *v;

    if (!(key = project(t, n, &a->attn1.to_k, r, k, a->block, 1, JOINT_K, NULL, e))
        || !(v = project(t, n, &a->attn1.to_v, r, k, a->block, 1, JOINT_V, NULL, e)))
        return NULL;
    h = attend(t, a, r, k, h, n, key, v, NULL, e);
    tape_release(t, m);
    return h;
}

/* One side's q, k and v in the joint attention. */
struct side {
    struct tensor *q, *k, *v, *o;
};

static struct tensor *adapted(struct tape *t, struct tensor *x, struct weight *w, struct joint_term *m, float scale,
                              struct err *e)
{
    return op_linear(t, x, w, &(struct op_lora){ &m->down, &m->up, scale }, 1, NULL, e);
}

static int take_side(struct tape *t, struct transformer *a, struct joint_term *m, float scale, struct tensor *x,
                     struct side *s, struct err *e)
{
    s->q = adapted(t, x, &a->attn1.to_q, &m[JOINT_Q], scale, e);
    s->k = s->q ? adapted(t, x, &a->attn1.to_k, &m[JOINT_K], scale, e) : NULL;
    s->v = s->k ? adapted(t, x, &a->attn1.to_v, &m[JOINT_V], scale, e) : NULL;
    return s->v ? OK : e->code;
}

/* h + w P, in place without gradients. */
static int add_weighted(struct tape *t, struct tensor **h, float w, struct tensor *p, struct err *e)
{
    tape_into(t, t->recording ? NULL : *h);
    *h = op_axpby(t, 1, *h, w, p, e);
    return *h ? OK : e->code;
}

static int project_back(struct tape *t, struct joint *j, struct joint_block *b, struct side *x, struct side *y,
                        struct err *e)
{
    const int64_t C = x->o->dim[2];
    struct tensor *both;

    if (j->kind == JOINT_CONV) {
        x->o = op_linear(t, x->o, &b->post, NULL, 0, NULL, e);
        y->o = x->o ? op_linear(t, y->o, &b->post, NULL, 0, NULL, e) : NULL;
        return y->o ? OK : e->code;
    }
    both = op_join(t, x->o, y->o, e);
    both = both ? op_linear(t, both, &b->post, NULL, 0, NULL, e) : NULL;
    x->o = both ? op_channels(t, both, 0, C, e) : NULL;
    y->o = x->o ? op_channels(t, both, C, C, e) : NULL;
    return y->o ? OK : e->code;
}

/* What one pair adds to the rows of its two inputs, hx and hy. n: the normed tokens of the batch. */
static int joint_attention(struct tape *t, struct transformer *a, const struct joint_run *r, const struct joint_pair *p,
                           struct tensor *n, struct tensor **hx, struct tensor **hy, struct err *e)
{
    struct joint_block *b = &p->joint->block[a->block];
    const float s = p->joint->scale;
    const struct tape_mark m = tape_mark(t);
    struct side x, y;
    struct tensor *nx = part(t, n, r, p->x, e), *ny = nx ? part(t, n, r, p->y, e) : NULL;
    int rc = ny ? take_side(t, a, b->xy, s, nx, &x, e) : e->code;

    rc = rc ? rc : take_side(t, a, b->yx, s, ny, &y, e);
    if (rc)
        return rc;
    if (!(x.o = op_attention(t, x.q, y.k, y.v, a->heads, 0, false, e))
        || !(x.o = adapted(t, x.o, &a->attn1.to_out, &b->xy[JOINT_O], s, e))
        || !(y.o = op_attention(t, y.q, x.k, x.v, a->heads, 0, false, e))
        || !(y.o = adapted(t, y.o, &a->attn1.to_out, &b->yx[JOINT_O], s, e)))
        return e->code;
    rc = project_back(t, p->joint, b, &x, &y, e);
    rc = rc ? rc : add_weighted(t, hx, r->scale * p->wx, x.o, e);
    rc = rc ? rc : add_weighted(t, hy, r->scale * p->wy, y.o, e);
    tape_release(t, m);
    return rc;
}

/* h (B,T,C), changed in place where nothing is recorded */
static struct tensor *self_attention(struct tape *t, struct transformer *a, struct tensor *h, const struct joint_run *r,
                                     struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *n = op_layer_norm(t, h, a->norm1.gamma, a->norm1.beta, layer_norm_eps, e), *in;
    struct tensor *rows[JOINT_MAX_PAIR] = { NULL };

    for (int k = 0; k < n_inputs(r); k++)
        if (!n || !(in = part(t, n, r, k, e)) || !(rows[k] = part(t, h, r, k, e))
            || !(rows[k] = self_rows(t, a, r, k, rows[k], in, e)))
            return NULL;
    for (int i = 0; r && !r->off && i < r->n_pair; i++) {
        const struct joint_pair *p = &r->pair[i];

        if (p->joint->block[a->block].has_post && (p->wx != 0 || p->wy != 0)
            && joint_attention(t, a, r, p, n, &rows[p->x], &rows[p->y], e))
            return NULL;
    }
    if (t->recording)
        return join(t, rows, n_inputs(r), e);
    tape_release(t, m);
    return h;
}

/* ---- text attention ---- */

static struct tensor *text_attention(struct tape *t, struct transformer *a, struct tensor *h,
                                     const struct unet_text *text, const struct joint_run *r, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *n = op_layer_norm(t, h, a->norm2.gamma, a->norm2.beta, layer_norm_eps, e);
    struct tensor *in, *rows[JOINT_MAX_PAIR] = { NULL };

    for (int k = 0; k < n_inputs(r); k++)
        if (!n || !(in = part(t, n, r, k, e)) || !(rows[k] = part(t, h, r, k, e))
            || !(rows[k] = attend(t, a, r, k, rows[k], in, NULL, NULL, text, e)))
            return NULL;
    if (t->recording)
        return join(t, rows, n_inputs(r), e);
    tape_release(t, m);
    return h;
}

/* One of keys and values, (P,T,C). */
static struct tensor *text_projection(struct tape *t, struct transformer *a, struct weight *w, int projection,
                                      struct tensor *text, const struct joint_run *r, struct err *e)
{
    struct tensor *rows[JOINT_MAX_PAIR] = { NULL }, *in, *y = NULL;

    if (!t->recording && !(y = tape_new(t, text->type, 3, (int64_t[]){ text->dim[0], text->dim[1], w->Co }, e)))
        return NULL;
    for (int k = 0; k < n_inputs(r); k++) {
        struct tensor *to = y ? part(t, y, r, k, e) : NULL;

        if ((y && !to) || !(in = part(t, text, r, k, e)))
            return NULL;
        tape_into(t, to);
        if (!(rows[k] = project(t, in, w, r, k, a->block, 2, projection, NULL, e)))
            return NULL;
    }
    return y ? y : join(t, rows, n_inputs(r), e);
}

int transformer_text(struct tape *t, struct transformer *a, struct tensor *text, const struct joint_run *run,
                     struct tensor **k, struct tensor **v, struct err *e)
{
    *k = text_projection(t, a, &a->attn2.to_k, JOINT_K, text, run, e);
    *v = *k ? text_projection(t, a, &a->attn2.to_v, JOINT_V, text, run, e) : NULL;
    return *v ? OK : e ? e->code : E_NOMEM;
}

/* ---- the block ---- */

static struct tensor *feed_forward(struct tape *t, struct transformer *a, struct tensor *h, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    const struct op_epilogue gated = { .act = K_ACT_GEGLU }, add = { .residual = h };
    struct tensor *n;

    if (!(n = op_layer_norm(t, h, a->norm3.gamma, a->norm3.beta, layer_norm_eps, e))
        || !(n = op_linear(t, n, &a->ff_proj, NULL, 0, &gated, e)))
        return NULL;
    tape_into(t, t->recording ? NULL : h);
    h = op_linear(t, n, &a->ff_out, NULL, 0, &add, e);
    tape_release(t, m);
    return h;
}

struct tensor *transformer_forward(struct tape *t, struct transformer *a, struct tensor *x, struct tensor *y,
                                   const struct unet_text *text, const struct joint_run *run, struct err *e)
{
    const int64_t tokens[] = { x->dim[0], x->dim[1] * x->dim[2], x->dim[3] };
    const struct op_epilogue add = { .residual = x };
    const struct tape_mark m = tape_mark(t);
    struct tensor *h;

    if (!(h = op_group_norm(t, x, a->norm.gamma, a->norm.beta, a->groups, norm_eps, false, e))
        || !(h = op_linear(t, h, &a->proj_in, NULL, 0, NULL, e)) || !(h = op_reshape(t, h, 3, tokens, e))
        || !(h = self_attention(t, a, h, run, e)) || !(h = text_attention(t, a, h, text, run, e))
        || !(h = feed_forward(t, a, h, e)) || !(h = op_reshape(t, h, 4, x->dim, e)))
        return NULL;
    tape_into(t, y);
    y = op_linear(t, h, &a->proj_out, NULL, 0, &add, e);
    tape_release(t, m);
    return y;
}
