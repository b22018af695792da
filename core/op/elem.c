/* core/op/elem.c: element by element. Where two inputs share a gradient, the first gets a copy and the last takes over
 * the memory of the one that came in. */
#include "core/op/common.h"

struct elem {
    struct tensor *x, *z, *y;
    struct tensor *row_a, *row_c;
    float a, b;
};

static bool wanted(const struct tape *t, const struct elem *s) { return op_wants(t, s->x) || op_wants(t, s->z); }

/* ---- y = a x + b z ---- */

/* x's gradient += factor * dy, dy left as it is. */
static int add_scaled(struct tape *t, struct tensor *x, float factor, const struct tensor *dy, struct err *e)
{
    bool accumulate;
    struct tensor *g;

    if (!x || !x->needs_grad)
        return OK;
    g = tape_grad(t, x, &accumulate, e);
    if (!g)
        return op_code(e);
    return op_run(e, op_name(x),
                  op_kern(t)->axpby(op_ctx(t), g->data, factor, dy->data, accumulate, accumulate ? g->data : NULL,
                                    g->type, tensor_count(g)));
}

/* The same, and y is done with its gradient. */
static int give_scaled(struct tape *t, struct tensor *x, float factor, struct tensor *y, struct err *e)
{
    struct tensor *dy = y->grad;
    int rc = OK;

    if (!x->needs_grad)
        return OK;
    if (x->grad)
        return add_scaled(t, x, factor, dy, e);
    if (factor != 1)
        rc = op_run(e, op_name(x),
                    op_kern(t)->axpby(op_ctx(t), dy->data, factor, dy->data, 0, NULL, dy->type, tensor_count(dy)));
    return rc ? rc : tape_grad_move(t, x, y, e);
}

static int axpby_back(struct tape *t, void *saved, struct err *e)
{
    const struct elem *s = saved;
    const bool both = s->z && s->z->needs_grad;
    int rc;

    if (!both)
        return give_scaled(t, s->x, s->a, s->y, e);
    rc = add_scaled(t, s->x, s->a, s->y->grad, e);
    return rc ? rc : give_scaled(t, s->z, s->b, s->y, e);
}

struct tensor *op_axpby(struct tape *t, float a, struct tensor *x, float b, struct tensor *z, struct err *e)
{
    struct elem s = { .x = x, .z = z, .a = a, .b = b };

    if (z && op_check_alike("axpby", x, z, e))
        return NULL;
    s.y = tape_out(t, x->type, x->n_dim, x->dim, e);
    if (!s.y
        || op_run(e, op_name(x),
                  op_kern(t)->axpby(op_ctx(t), s.y->data, a, x->data, z ? b : 0, z ? z->data : NULL, x->type,
                                    tensor_count(x))))
        return NULL;
    return op_note(t, wanted(t, &s), axpby_back, &s, sizeof s, s.y, e);
}

struct tensor *op_add(struct tape *t, struct tensor *x, struct tensor *z, struct err *e)
{
    return op_axpby(t, 1, x, 1, z, e);
}

struct tensor *op_scale(struct tape *t, float a, struct tensor *x, struct err *e)
{
    return op_axpby(t, a, x, 0, NULL, e);
}

/* ---- y = x z ---- */

static int mul_back(struct tape *t, void *saved, struct err *e)
{
    const struct elem *s = saved;
    const struct kern *k = op_kern(t);
    const int64_t n = tensor_count(s->x);
    void *dy = s->y->grad->data;
    struct op_grad g;
    int rc = op_grad_open(t, &g, s->x, e);

    if (!rc && g.to)
        rc = op_run(e, op_name(s->x), k->mul(op_ctx(t), g.to->data, dy, s->z->data, s->x->type, n));
    if (!rc)
        rc = op_grad_close(t, &g, e);
    if (rc || !s->z->needs_grad)
        return rc;
    rc = op_run(e, op_name(s->z), k->mul(op_ctx(t), dy, dy, s->x->data, s->x->type, n));
    return rc ? rc : tape_grad_move(t, s->z, s->y, e);
}

struct tensor *op_mul(struct tape *t, struct tensor *x, struct tensor *z, struct err *e)
{
    struct elem s = { .x = x, .z = z };

    if (op_check_alike("mul", x, z, e))
        return NULL;
    s.y = tape_out(t, x->type, x->n_dim, x->dim, e);
    if (!s.y
        || op_run(e, op_name(x), op_kern(t)->mul(op_ctx(t), s.y->data, x->data, z->data, x->type, tensor_count(x))))
        return NULL;
    return op_note(t, wanted(t, &s), mul_back, &s, sizeof s, s.y, e);
}

/* ---- y[b] = a[b] x[b] + c[b] z[b] ---- */

static int row_axpby(struct tape *t, const struct tensor *x, void *y, const struct tensor *a, const void *from,
                     const struct tensor *c, const struct tensor *z, struct err *e)
{
    const int64_t B = x->dim[0];

    return op_run(e, op_name(x),
                  op_kern(t)->row_axpby(op_ctx(t), y, a->data, from, c ? c->data : NULL, z ? z->data : NULL, x->type, B,
                                        B ? tensor_count(x) / B : 0));
}

static int row_axpby_back(struct tape *t, void *saved, struct err *e)
{
    const struct elem *s = saved;
    const bool z_wants = s->z && s->z->needs_grad;
    void *dy = s->y->grad->data;
    struct op_grad g;
    int rc = OK;

    if (s->x->needs_grad && z_wants) {
        rc = op_grad_open(t, &g, s->x, e);
        if (!rc)
            rc = row_axpby(t, s->x, g.to->data, s->row_a, dy, NULL, NULL, e);
        if (!rc)
            rc = op_grad_close(t, &g, e);
    }
    if (!rc)
        rc = row_axpby(t, s->x, dy, z_wants ? s->row_c : s->row_a, dy, NULL, NULL, e);
    return rc ? rc : tape_grad_move(t, z_wants ? s->z : s->x, s->y, e);
}

struct tensor *op_row_axpby(struct tape *t, struct tensor *a, struct tensor *x, struct tensor *c, struct tensor *z,
                            struct err *e)
{
    struct elem s = { .x = x, .z = z, .row_a = a, .row_c = c };
    const int64_t B = x->dim[0];

    if (!c != !z)
        return op_fail(e, E_ARG, "row_axpby '%s': a second factor without its input, or the other way round",
                       op_name(x));
    if (op_check_param("row_axpby", a, B, e) || (c && op_check_param("row_axpby", c, B, e))
        || (z && op_check_alike("row_axpby", x, z, e)))
        return NULL;
    s.y = tape_out(t, x->type, x->n_dim, x->dim, e);
    if (!s.y || row_axpby(t, x, s.y->data, a, x->data, c, z, e))
        return NULL;
    return op_note(t, wanted(t, &s), row_axpby_back, &s, sizeof s, s.y, e);
}

/* ---- types ---- */

static int cast_back(struct tape *t, void *saved, struct err *e)
{
    const struct elem *s = saved;
    const struct tensor *dy = s->y->grad;
    struct op_grad g;
    int rc = op_grad_open(t, &g, s->x, e);

    if (!rc)
        rc = op_run(e, op_name(s->x),
                    op_kern(t)->cast(op_ctx(t), g.to->data, s->x->type, dy->data, dy->type, tensor_count(dy)));
    return rc ? rc : op_grad_close(t, &g, e);
}

struct tensor *op_cast(struct tape *t, struct tensor *x, enum dtype type, struct err *e)
{
    struct elem s = { .x = x };

    s.y = tape_out(t, type, x->n_dim, x->dim, e);
    if (!s.y || op_run(e, op_name(x), op_kern(t)->cast(op_ctx(t), s.y->data, type, x->data, x->type, tensor_count(x))))
        return NULL;
    return op_note(t, wanted(t, &s), cast_back, &s, sizeof s, s.y, e);
}
