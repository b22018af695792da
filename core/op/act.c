/* core/op/act.c: activations, alone and gated, and softmax. Where sizes allow, the gradient is made in the memory of
 * the one that came in. */
#include "core/op/common.h"

struct act {
    struct tensor *x, *y;
    enum kunary f;
};

static int unary_back(struct tape *t, void *saved, struct err *e)
{
    const struct act *s = saved;
    void *dy = s->y->grad->data;
    const int rc = op_run(e, op_name(s->x),
                          op_kern(t)->unary_back(op_ctx(t), s->f, dy, dy, s->x->data, s->x->type, tensor_count(s->x)));

    return rc ? rc : tape_grad_move(t, s->x, s->y, e);
}

struct tensor *op_unary(struct tape *t, enum kunary f, struct tensor *x, struct err *e)
{
    struct tensor *y = tape_out(t, x->type, x->n_dim, x->dim, e);

    if (!y || op_run(e, op_name(x), op_kern(t)->unary(op_ctx(t), f, y->data, x->data, x->type, tensor_count(x))))
        return NULL;
    return op_note(t, op_wants(t, x), unary_back, &(struct act){ x, y, f }, sizeof(struct act), y, e);
}

static int geglu_back(struct tape *t, void *saved, struct err *e)
{
    const struct act *s = saved;
    struct op_grad g;
    int rc = op_grad_open(t, &g, s->x, e);

    if (!rc)
        rc = op_run(e, op_name(s->x),
                    op_kern(t)->geglu_back(op_ctx(t), g.to->data, s->y->grad->data, s->x->data, s->x->type,
                                           op_rows_of(s->y), op_width(s->y)));
    return rc ? rc : op_grad_close(t, &g, e);
}

struct tensor *op_geglu(struct tape *t, struct tensor *x, struct err *e)
{
    const int64_t D = op_width(x) / 2;
    char text[OP_TEXT];
    struct tensor *y;

    if (op_width(x) % 2)
        return op_fail(e, E_ARG, "geglu '%s': %s has an odd width", op_name(x), tensor_text(x, text, sizeof text));
    y = op_out_width(t, x, D, e);
    if (!y || op_run(e, op_name(x), op_kern(t)->geglu(op_ctx(t), y->data, x->data, x->type, op_rows_of(x), D)))
        return NULL;
    return op_note(t, op_wants(t, x), geglu_back, &(struct act){ .x = x, .y = y }, sizeof(struct act), y, e);
}

static int softmax_back(struct tape *t, void *saved, struct err *e)
{
    const struct act *s = saved;
    void *dy = s->y->grad->data;
    const int rc =
        op_run(e, op_name(s->x),
               op_kern(t)->softmax_back(op_ctx(t), dy, dy, s->y->data, s->x->type, op_rows_of(s->y), op_width(s->y)));

    return rc ? rc : tape_grad_move(t, s->x, s->y, e);
}

struct tensor *op_softmax(struct tape *t, struct tensor *x, struct err *e)
{
    struct tensor *y = tape_out(t, x->type, x->n_dim, x->dim, e);

    if (!y
        || op_run(e, op_name(x), op_kern(t)->softmax(op_ctx(t), y->data, x->data, x->type, op_rows_of(x), op_width(x))))
        return NULL;
    return op_note(t, op_wants(t, x), softmax_back, &(struct act){ .x = x, .y = y }, sizeof(struct act), y, e);
}
