/* core/op/attn.c: attention. The backward pass rebuilds the probabilities from q, k and one number per query and head,
 * so that is all that is kept of them. */
#include "core/op/common.h"

#include <math.h>

struct attn {
    struct tensor *q, *k, *v, *y;
    struct kattn f;
};

static bool wanted(const struct tape *t, const struct attn *s)
{
    return op_wants(t, s->q) || op_wants(t, s->k) || op_wants(t, s->v);
}

/* Room for a gradient that the kernel makes though nobody asked. */
static int open_any(struct tape *t, struct op_grad *g, struct tensor *x, void **to, struct err *e)
{
    const int rc = op_grad_open(t, g, x, e);

    *to = rc ? NULL : g->to ? g->to->data : op_scratch(t, tensor_bytes(x), e);
    return *to ? OK : op_code(e);
}

static int attn_back(struct tape *t, void *saved, struct err *e)
{
    const struct attn *s = saved;
    const struct kern *k = op_kern(t);
    struct kattn_back b = {
        .f = s->f, .d_o = s->y->grad->data, .ldd_o = s->f.ldo, .lddq = s->f.ldq, .lddk = s->f.ldk, .lddv = s->f.ldv
    };
    struct op_grad dq, dk, dv;
    int rc = open_any(t, &dq, s->q, &b.dq, e);

    if (!rc)
        rc = open_any(t, &dk, s->k, &b.dk, e);
    if (!rc)
        rc = open_any(t, &dv, s->v, &b.dv, e);
    if (rc)
        return rc;
    b.work = op_scratch(t, k->attn_back_bytes(&s->f, t->dev->ctx.n_threads), e);
    if (!b.work)
        return op_code(e);
    rc = op_run(e, op_name(s->q), k->attn_back(op_ctx(t), &b));
    if (!rc)
        rc = op_grad_close(t, &dq, e);
    if (!rc)
        rc = op_grad_close(t, &dk, e);
    return rc ? rc : op_grad_close(t, &dv, e);
}

static int check(const struct attn *s, int64_t N, bool causal, struct err *e)
{
    const struct tensor *q = s->q, *k = s->k, *v = s->v;
    const int64_t width = op_width(q);
    char a[OP_TEXT], b[OP_TEXT], c[OP_TEXT];

    if (q->n_dim >= 2 && k->n_dim >= 2 && N > 0 && width % N == 0 && width > 0 && q->type == k->type
        && q->dim[0] == k->dim[0] && op_width(k) == width && v->type == k->type && tensor_same_shape(k, v)
        && (!causal || op_rows_of(q) == op_rows_of(k)))
        return OK;
    return err_set(e, E_ARG, "attention '%s': q %s, k %s, v %s do not fit %" PRId64 " heads%s", op_name(q),
                   tensor_text(q, a, sizeof a), tensor_text(k, b, sizeof b), tensor_text(v, c, sizeof c), N,
                   causal ? ", causal" : "");
}

struct tensor *op_attention(struct tape *t, struct tensor *q, struct tensor *k, struct tensor *v, int64_t N,
                            float scale, bool causal, struct err *e)
{
    struct attn s = { .q = q, .k = k, .v = v };
    const int64_t B = q->dim[0], width = op_width(q);

    if (check(&s, N, causal, e))
        return NULL;
    s.y = tape_out(t, q->type, q->n_dim, q->dim, e);
    if (!s.y)
        return NULL;
    s.f = (struct kattn){ .type = q->type,
                          .B = B,
                          .N = N,
                          .Tq = B ? op_rows_of(q) / B : 0,
                          .Tk = B ? op_rows_of(k) / B : 0,
                          .D = width / N,
                          .q = q->data,
                          .k = k->data,
                          .v = v->data,
                          .o = s.y->data,
                          .ldq = width,
                          .ldk = width,
                          .ldv = width,
                          .ldo = width,
                          .causal = causal,
                          .scale = scale != 0 ? scale : 1 / sqrtf((float)(width / N)) };
    if (wanted(t, &s)) {
        s.f.lse = arena_push(&t->mem->step, (size_t)(B * N * s.f.Tq) * sizeof *s.f.lse, e);
        if (!s.f.lse)
            return NULL;
    }
    if (op_run(e, op_name(q), op_kern(t)->attn(op_ctx(t), &s.f)))
        return NULL;
    return op_note(t, wanted(t, &s), attn_back, &s, sizeof s, s.y, e);
}
