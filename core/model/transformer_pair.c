/* core/model/transformer_pair.c: the joint attention of a pair, beside self-attention (UniCon, Eq. 4 and 5); see the
 * head of transformer.c.
 *
 * For sampling the base's products are shared: of x and y there are q, k, v already, from self-attention, and an
 * adapter adds its low-rank term; the output projection and the one behind it are one product (core/joint_fold.c).
 * Where the adapters are trained everything is computed by itself. Both agree but for rounding. */
#include "core/model/transformer.h"

enum { X, Y };

/* What is computed of a side: queries for its own output, keys and values for the other's. */
struct side {
    struct tensor *in, *q, *k, *v, *o;      /* in: its normed tokens */
};

static struct tensor *adapted(struct tape *t, struct tensor *base, struct tensor *x, struct weight *w,
                              struct joint_term *m, float scale, struct err *e)
{
    const struct op_lora term = { &m->down, &m->up, scale };

    return base ? op_low_rank(t, base, x, &term, 1, e) : op_linear(t, x, w, &term, 1, NULL, e);
}

/* Projections of one side; which: JOINT_Q, .. */
static struct tensor *take(struct tape *t, struct transformer *a, const struct joint_run *r, const struct joint_pair *p,
                           int side, struct tensor *in, const struct shared *base, int which, struct err *e)
{
    struct weight *const weight[] = { &a->attn1.to_q, &a->attn1.to_k, &a->attn1.to_v };
    struct tensor *const all[] = { base->q, base->k, base->v };
    struct joint_block *b = &p->joint->block[a->block];
    struct tensor *own = all[which] ? transformer_rows(t, all[which], r, side == X ? p->x : p->y, e) : NULL;

    if (all[which] && !own)
        return NULL;
    return adapted(t, own, in, weight[which], side == X ? &b->xy[which] : &b->yx[which], p->joint->scale, e);
}

/* to.o = attention of side `to` to the other. */
static int attend(struct tape *t, struct transformer *a, const struct joint_run *r, const struct joint_pair *p,
                  struct side *side, int to, const struct shared *base, struct err *e)
{
    struct side *own = &side[to], *other = &side[!to];

    if (!(own->q = take(t, a, r, p, to, own->in, base, JOINT_Q, e))
        || !(other->k = take(t, a, r, p, !to, other->in, base, JOINT_K, e))
        || !(other->v = take(t, a, r, p, !to, other->in, base, JOINT_V, e))
        || !(own->o = op_attention(t, own->q, other->k, other->v, a->heads, 0, false, e)))
        return e->code;
    return OK;
}

/* h + w P, in place without gradients. */
static int add_weighted(struct tape *t, struct tensor **h, float w, struct tensor *p, struct err *e)
{
    tape_into(t, t->recording ? NULL : *h);
    *h = op_axpby(t, 1, *h, w, p, e);
    return *h ? OK : e->code;
}

/* ---- the way out, folded ---- */

/* Rows as one image of one line, so that two products can be summed. */
static struct tensor *line(struct tape *t, struct tensor *x, struct err *e)
{
    return op_reshape(t, x, 4, (int64_t[]){ 1, 1, x->dim[0] * x->dim[1], x->dim[2] }, e);
}

/* P[to] [Ox|Oy], over h where that is wanted whole. */
static struct tensor *fused(struct tape *t, struct joint_block *b, struct side *side, int to, struct tensor *h,
                            struct err *e)
{
    const struct op_conv_geom point = { .stride = 1 };
    struct tensor *own = line(t, side[to].o, e), *other = own ? line(t, side[!to].o, e) : NULL, *y;
    const struct op_shortcut across = { &b->out[to][!to], other, NULL };
    struct op_epilogue add = { .residual = NULL };

    if (!other || (h && !(add.residual = line(t, h, e))))
        return NULL;
    tape_into(t, t->recording ? NULL : add.residual);
    y = op_conv(t, own, NULL, &b->out[to][to], point, &across, &add, e);
    return y ? op_reshape(t, y, 3, side[to].o->dim, e) : NULL;
}

static struct tensor *separate(struct tape *t, struct joint_block *b, struct side *side, int to, struct tensor *h,
                               struct err *e)
{
    const struct op_epilogue add = { .residual = h };

    tape_into(t, t->recording ? NULL : h);
    return op_linear(t, side[to].o, &b->out[to][to], NULL, 0, &add, e);
}

static int folded_out(struct tape *t, struct joint *j, struct joint_block *b, struct side *side, int to, float w,
                      struct tensor **h, struct err *e)
{
    struct tensor *over = w == 1 ? *h : NULL;
    struct tensor *y = j->kind == JOINT_CONV_FUSE ? fused(t, b, side, to, over, e) : separate(t, b, side, to, over, e);

    if (!y || !over)
        return y ? add_weighted(t, h, w, y, e) : e->code;
    if (t->recording)               /* else it is in *h already */
        *h = y;
    return OK;
}

/* ---- the way out, one by one ---- */

static int project_back(struct tape *t, struct joint *j, struct joint_block *b, struct side *side, struct err *e)
{
    struct tensor *both;

    if (j->kind == JOINT_CONV) {
        side[X].o = op_linear(t, side[X].o, &b->post, NULL, 0, NULL, e);
        side[Y].o = side[X].o ? op_linear(t, side[Y].o, &b->post, NULL, 0, NULL, e) : NULL;
        return side[Y].o ? OK : e->code;
    }
    both = op_join(t, side[X].o, side[Y].o, e);
    both = both ? op_linear(t, both, &b->post, NULL, 0, NULL, e) : NULL;
    side[X].o = both ? op_channels(t, both, 0, b->post.Co / 2, e) : NULL;
    side[Y].o = side[X].o ? op_channels(t, both, b->post.Co / 2, b->post.Co / 2, e) : NULL;
    return side[Y].o ? OK : e->code;
}

static int apart_out(struct tape *t, struct transformer *a, struct joint *j, struct side *side, const float *w,
                     struct tensor **const *h, struct err *e)
{
    struct joint_block *b = &j->block[a->block];
    int rc = OK;

    for (int s = X; s <= Y && !rc; s++) {
        side[s].o = adapted(t, NULL, side[s].o, &a->attn1.to_out, s == X ? &b->xy[JOINT_O] : &b->yx[JOINT_O], j->scale,
                            e);
        rc = side[s].o ? OK : e->code;
    }
    rc = rc ? rc : project_back(t, j, b, side, e);
    for (int s = X; s <= Y && !rc; s++)
        rc = w[s] != 0 ? add_weighted(t, h[s], w[s], side[s].o, e) : OK;
    return rc;
}

int transformer_pair(struct tape *t, struct transformer *a, const struct joint_run *r, const struct joint_pair *p,
                     struct tensor *n, const struct shared *base, struct tensor **hx, struct tensor **hy,
                     struct err *e)
{
    const float w[] = { transformer_skips(t, a, r, p->x) ? 0 : r->scale * p->wx,
                        transformer_skips(t, a, r, p->y) ? 0 : r->scale * p->wy };
    struct tensor **const h[] = { hx, hy };
    struct joint *j = p->joint;
    const bool both = j->kind == JOINT_CONV_FUSE || j->apart;
    const struct tape_mark m = tape_mark(t);
    struct side side[2] = { { .in = transformer_rows(t, n, r, p->x, e) }, { .in = NULL } };
    int rc;

    if (w[X] == 0 && w[Y] == 0)
        return OK;
    rc = side[X].in && (side[Y].in = transformer_rows(t, n, r, p->y, e)) ? OK : e->code;

    for (int s = X; s <= Y && !rc; s++)
        rc = both || w[s] != 0 ? attend(t, a, r, p, side, s, base, e) : OK;
    if (!rc && j->apart)
        rc = apart_out(t, a, j, side, w, h, e);
    for (int s = X; s <= Y && !rc && !j->apart; s++)
        rc = w[s] != 0 ? folded_out(t, j, &j->block[a->block], side, s, w[s], h[s], e) : OK;
    tape_release(t, m);
    return rc;
}
