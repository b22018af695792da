/* core/model/transformer.c: self-attention, text attention and the gated layer of a transformer block; and for pairs
 * the joint attention beside self-attention (UniCon, Eq. 4 and 5):
 *
 *     n = LN1(h);  X, Y: rows of x and y in n
 *     Ox = Wo[xy] softmax(Wq[xy] X (Wk[yx] Y)^T) Wv[yx] Y      Oy the other way round
 *     [Px|Py] = P [Ox|Oy]  (conv_fuse)     or     Px = P Ox, Py = P Oy  (conv)
 *     h += attention(n) + joint_scale (wx Px to the rows of x, wy Py to those of y)
 *
 * W[a] is the base's own weight with adapter a: xy_lora always works on features of x, yx_lora on those of y. Rows of y
 * have y_lora in self- and text attention. What the base's weights make of n is computed once for all rows where
 * adapters only add to it; the rest differs from input to input and is computed by input. Without gradients results go
 * into the rows of h, with them they are joined. transformer_pair.c has the joint attention. */
#include "core/model/transformer.h"

static const float norm_eps = 1e-6f, layer_norm_eps = 1e-5f;

/* x W^T of input k with the terms that attention `attn` has for it. base: x W^T of all rows, or NULL. */
static struct tensor *project(struct tape *t, struct tensor *base, struct tensor *x, struct weight *w,
                              const struct joint_run *r, int k, int block, int attn, int projection, struct err *e)
{
    struct op_lora terms[JOINT_MAX_PAIR];
    const int n = joint_y_terms(r, k, block, attn, projection, terms);

    if (!base)
        return op_linear(t, x, w, terms, n, NULL, e);
    base = transformer_rows(t, base, r, k, e);
    return base && n ? op_low_rank(t, base, x, terms, n, e) : base;
}

/* h + o W^T of input k, without gradients in place of h. */
static struct tensor *project_out(struct tape *t, struct tensor *o, struct weight *w, const struct joint_run *r, int k,
                                  int block, int attn, struct tensor *h, struct err *e)
{
    const struct op_epilogue add = { .residual = h };
    struct op_lora terms[JOINT_MAX_PAIR];
    const int n = joint_y_terms(r, k, block, attn, JOINT_O, terms);

    tape_into(t, t->recording ? NULL : h);
    return op_linear(t, o, w, terms, n, &add, e);
}

/* All inputs one below the other again. */
static struct tensor *join(struct tape *t, struct tensor **in, int n, struct err *e)
{
    struct tensor *y = in[0];

    for (int k = 1; k < n && y; k++)
        y = op_join_rows(t, y, in[k], e);
    return y;
}

/* ---- self-attention ---- */

static struct tensor *self_rows(struct tape *t, struct transformer *a, const struct joint_run *r, int k,
                                struct tensor *h, struct tensor *n, const struct shared *base, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct attention *w = &a->attn1;
    struct tensor *q, *key, *v, *o;

    if (!(q = project(t, base->q, n, &w->to_q, r, k, a->block, 1, JOINT_Q, e))
        || !(key = project(t, base->k, n, &w->to_k, r, k, a->block, 1, JOINT_K, e))
        || !(v = project(t, base->v, n, &w->to_v, r, k, a->block, 1, JOINT_V, e))
        || !(o = op_attention(t, q, key, v, a->heads, 0, false, e)))
        return NULL;
    h = project_out(t, o, &w->to_out, r, k, a->block, 1, h, e);
    tape_release(t, m);
    return h;
}

/* What every input takes from the base, once for all rows; nothing where training wants each product by itself. */
static int share(struct tape *t, struct transformer *a, const struct joint_run *r, struct tensor *n,
                 struct shared *base, struct err *e)
{
    *base = (struct shared){ NULL, NULL, NULL };
    for (int i = 0; r && i < r->n_pair; i++)
        if (r->pair[i].joint->apart)
            return OK;
    base->q = op_linear(t, n, &a->attn1.to_q, NULL, 0, NULL, e);
    base->k = base->q ? op_linear(t, n, &a->attn1.to_k, NULL, 0, NULL, e) : NULL;
    base->v = base->k ? op_linear(t, n, &a->attn1.to_v, NULL, 0, NULL, e) : NULL;
    return base->v ? OK : e->code;
}

/* h (B,T,C), changed in place where nothing is recorded */
static struct tensor *self_attention(struct tape *t, struct transformer *a, struct tensor *h, const struct joint_run *r,
                                     struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *n = op_layer_norm(t, h, a->norm1.gamma, a->norm1.beta, layer_norm_eps, e), *in;
    struct tensor *rows[JOINT_MAX_PAIR] = { NULL };
    struct shared base;

    if (!n || share(t, a, r, n, &base, e))
        return NULL;
    for (int k = 0; k < transformer_inputs(r); k++)
        if (!(in = transformer_rows(t, n, r, k, e)) || !(rows[k] = transformer_rows(t, h, r, k, e))
            || (!transformer_skips(t, a, r, k) && !(rows[k] = self_rows(t, a, r, k, rows[k], in, &base, e))))
            return NULL;
    for (int i = 0; r && i < r->n_pair; i++) {
        const struct joint_pair *p = &r->pair[i];

        if (p->joint->block[a->block].has_post && (p->wx != 0 || p->wy != 0) && r->scale != 0
            && transformer_pair(t, a, r, p, n, &base, &rows[p->x], &rows[p->y], e))
            return NULL;
    }
    if (t->recording)
        return join(t, rows, transformer_inputs(r), e);
    tape_release(t, m);
    return h;
}

/* ---- text attention ---- */

/* What the queries of input k get from the text, group by group: rows of one prompt are one long image to it. */
static struct tensor *ask_text(struct tape *t, struct transformer *a, const struct joint_run *r, int k,
                               struct tensor *q, const struct unet_text *text, struct err *e)
{
    const int n = text->n_group / transformer_inputs(r);
    const int64_t rows = n ? q->dim[0] / n : 0, one[] = { 1, rows * q->dim[1], q->dim[2] };
    struct tensor *key = text->k[a->block], *v = text->v[a->block], *o = NULL, *part_q;
    struct tensor *part_o[UNET_MAX_GROUP] = { NULL };

    if (!n)
        return (key = transformer_rows(t, key, r, k, e)) && (v = transformer_rows(t, v, r, k, e))
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

static struct tensor *text_rows(struct tape *t, struct transformer *a, const struct joint_run *r, int k,
                                struct tensor *h, struct tensor *n, const struct unet_text *text, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *q, *o;

    if (!(q = project(t, NULL, n, &a->attn2.to_q, r, k, a->block, 2, JOINT_Q, e))
        || !(o = ask_text(t, a, r, k, q, text, e)))
        return NULL;
    h = project_out(t, o, &a->attn2.to_out, r, k, a->block, 2, h, e);
    tape_release(t, m);
    return h;
}

static struct tensor *text_attention(struct tape *t, struct transformer *a, struct tensor *h,
                                     const struct unet_text *text, const struct joint_run *r, struct err *e)
{
    const struct tape_mark m = tape_mark(t);
    struct tensor *n = op_layer_norm(t, h, a->norm2.gamma, a->norm2.beta, layer_norm_eps, e);
    struct tensor *in, *rows[JOINT_MAX_PAIR] = { NULL };

    for (int k = 0; k < transformer_inputs(r); k++)
        if (!transformer_skips(t, a, r, k)
            && (!n || !(in = transformer_rows(t, n, r, k, e)) || !(rows[k] = transformer_rows(t, h, r, k, e))
                || !(rows[k] = text_rows(t, a, r, k, rows[k], in, text, e))))
            return NULL;
    if (t->recording)
        return join(t, rows, transformer_inputs(r), e);
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
    for (int k = 0; k < transformer_inputs(r); k++) {
        struct tensor *to = y ? transformer_rows(t, y, r, k, e) : NULL;

        if ((y && !to) || !(in = transformer_rows(t, text, r, k, e)))
            return NULL;
        tape_into(t, to);
        if (!(rows[k] = project(t, NULL, in, w, r, k, a->block, 2, projection, e)))
            return NULL;
    }
    return y ? y : join(t, rows, transformer_inputs(r), e);
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

/* y = x + proj_out(h), behind the gated layer. */
static struct tensor *finish(struct tape *t, struct transformer *a, struct tensor *x, struct tensor *h,
                             struct tensor *y, struct err *e)
{
    const struct op_epilogue add = { .residual = x };
    const struct tape_mark m = tape_mark(t);

    if (!(h = feed_forward(t, a, h, e)) || !(h = op_reshape(t, h, 4, x->dim, e)))
        return NULL;
    tape_into(t, y);
    y = op_linear(t, h, &a->proj_out, NULL, 0, &add, e);
    tape_release(t, m);
    return y;
}

static struct tensor *finish_read(struct tape *t, struct transformer *a, const struct joint_run *r, struct tensor *x,
                                  struct tensor *h, struct tensor *y, struct err *e)
{
    int64_t first[JOINT_MAX_PAIR], n[JOINT_MAX_PAIR];
    const int m = joint_read_rows(r, x->dim[0], first, n);

    for (int i = 0; i < m; i++) {
        struct tensor *own_x = op_rows(t, x, first[i], n[i], e), *own_h = op_rows(t, h, first[i], n[i], e);
        struct tensor *own_y = op_rows(t, y, first[i], n[i], e);

        if (!own_x || !own_h || !own_y || !finish(t, a, own_x, own_h, own_y, e))
            return NULL;
    }
    return y;
}

struct tensor *transformer_forward(struct tape *t, struct transformer *a, struct tensor *x, struct tensor *y,
                                   const struct unet_text *text, const struct joint_run *run, struct err *e)
{
    const int64_t tokens[] = { x->dim[0], x->dim[1] * x->dim[2], x->dim[3] };
    const struct tape_mark m = tape_mark(t);
    struct tensor *h;

    if (!(h = op_group_norm(t, x, a->norm.gamma, a->norm.beta, a->groups, norm_eps, false, e))
        || !(h = op_linear(t, h, &a->proj_in, NULL, 0, NULL, e)) || !(h = op_reshape(t, h, 3, tokens, e))
        || !(h = self_attention(t, a, h, run, e)) || !(h = text_attention(t, a, h, text, run, e)))
        return NULL;
    y = a->last && !t->recording ? finish_read(t, a, run, x, h, y, e) : finish(t, a, x, h, y, e);
    tape_release(t, m);
    return y;
}
