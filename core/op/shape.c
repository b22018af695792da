/* core/op/shape.c: views, joins and ranges. A view's gradient is a tensor of its own: reshaping hands it on, a range of
 * images adds it into its place in the whole. */
#include "core/op/common.h"

struct shape {
    struct tensor *x, *z, *y;
    int64_t first; /* image or channel where the range begins */
};

/* ---- views ---- */

static struct tensor *view(struct tape *t, const char *op, struct tensor *x, int64_t first, int n_dim,
                           const int64_t *dim, struct err *e)
{
    const size_t offset = x->dim[0] ? (size_t)(first * (tensor_count(x) / x->dim[0])) * dtype_bytes(x->type) : 0;
    struct tensor *y;

    if (t->into) {
        t->into = NULL;
        return op_fail(e, E_ARG, "%s '%s': a view cannot be written into another tensor", op, op_name(x));
    }
    y = tensor_wrap(&t->mem->meta, (char *)x->data + offset, x->type, n_dim, dim, e);
    if (y)
        y->name = x->name;
    return y;
}

static int reshape_back(struct tape *t, void *saved, struct err *e)
{
    const struct shape *s = saved;

    return tape_grad_move(t, s->x, s->y, e);
}

struct tensor *op_reshape(struct tape *t, struct tensor *x, int n_dim, const int64_t *dim, struct err *e)
{
    struct shape s = { .x = x };
    char have[OP_TEXT], want[OP_TEXT];

    s.y = view(t, "reshape", x, 0, n_dim, dim, e);
    if (!s.y)
        return NULL;
    if (tensor_count(s.y) != tensor_count(x))
        return op_fail(e, E_ARG, "reshape '%s': %s to %s", op_name(x), tensor_text(x, have, sizeof have),
                       tensor_text(s.y, want, sizeof want));
    return op_note(t, op_wants(t, x), reshape_back, &s, sizeof s, s.y, e);
}

/* x's gradient with nothing but zeros where no one has written yet. */
static struct tensor *cleared_grad(struct tape *t, struct tensor *x, struct err *e)
{
    bool accumulate;
    struct tensor *g = tape_grad(t, x, &accumulate, e);

    if (!g || accumulate)
        return g;
    if (op_run(e, op_name(x), op_kern(t)->fill(op_ctx(t), g->data, g->type, tensor_count(g), 0)))
        return NULL;
    return g;
}

/* x's gradient, seen as rows of `ld`, += dy at column `at` of each. */
static int add_range(struct tape *t, struct tensor *x, int64_t at, int64_t ld, const struct tensor *dy, int64_t rows,
                     int64_t n, struct err *e)
{
    struct tensor *g = cleared_grad(t, x, e);

    if (!g)
        return op_code(e);
    return op_run(e, op_name(x),
                  op_kern(t)->copy_rows(op_ctx(t), (char *)g->data + (size_t)at * dtype_bytes(g->type), ld, dy->data, n,
                                        g->type, rows, n, true));
}

static int rows_back(struct tape *t, void *saved, struct err *e)
{
    const struct shape *s = saved;
    const int64_t n = s->x->dim[0] ? tensor_count(s->x) / s->x->dim[0] : 0;

    return add_range(t, s->x, s->first * n, n, s->y->grad, s->y->dim[0], n, e);
}

struct tensor *op_rows(struct tape *t, struct tensor *x, int64_t first, int64_t n, struct err *e)
{
    struct shape s = { .x = x, .first = first };
    int64_t dim[TENSOR_MAX_DIM];
    char text[OP_TEXT];

    if (x->n_dim < 1 || first < 0 || n < 0 || first > x->dim[0] - n)
        return op_fail(e, E_ARG, "rows '%s': %" PRId64 " from %" PRId64 " of %s", op_name(x), n, first,
                       tensor_text(x, text, sizeof text));
    memcpy(dim, x->dim, sizeof dim);
    dim[0] = n;
    s.y = view(t, "rows", x, first, x->n_dim, dim, e);
    return s.y ? op_note(t, op_wants(t, x), rows_back, &s, sizeof s, s.y, e) : NULL;
}

/* ---- joins and ranges, copied ---- */

static int copy(struct tape *t, const struct tensor *y, int64_t at, int64_t ldy, const struct tensor *x, int64_t from,
                int64_t ldx, int64_t rows, int64_t n, struct err *e)
{
    const size_t size = dtype_bytes(x->type);

    return op_run(e, op_name(x),
                  op_kern(t)->copy_rows(op_ctx(t), (char *)y->data + (size_t)at * size, ldy,
                                        (const char *)x->data + (size_t)from * size, ldx, x->type, rows, n, false));
}

/* Gradient of a whole input from the range of dy that it went to: columns [from, from+n) of rows of ld. */
static int take_range(struct tape *t, struct tensor *x, const struct tensor *dy, int64_t from, int64_t ld, int64_t rows,
                      int64_t n, struct err *e)
{
    bool accumulate;
    struct tensor *g;

    if (!x->needs_grad)
        return OK;
    g = tape_grad(t, x, &accumulate, e);
    if (!g)
        return op_code(e);
    return op_run(e, op_name(x),
                  op_kern(t)->copy_rows(op_ctx(t), g->data, n,
                                        (const char *)dy->data + (size_t)from * dtype_bytes(dy->type), ld, dy->type,
                                        rows, n, accumulate));
}

static int join_back(struct tape *t, void *saved, struct err *e)
{
    const struct shape *s = saved;
    const int64_t a = op_width(s->x), b = op_width(s->z), rows = op_rows_of(s->y);
    const int rc = take_range(t, s->x, s->y->grad, 0, a + b, rows, a, e);

    return rc ? rc : take_range(t, s->z, s->y->grad, a, a + b, rows, b, e);
}

/* E_ARG unless x and z agree in everything but dimension `along`. */
static int check_join(const char *op, const struct tensor *x, const struct tensor *z, int along, struct err *e)
{
    bool fits = x->type == z->type && x->n_dim == z->n_dim && x->n_dim > 0;
    char a[OP_TEXT], b[OP_TEXT];

    for (int i = 0; i < x->n_dim && fits; i++)
        fits = i == along || x->dim[i] == z->dim[i];
    if (fits)
        return OK;
    return err_set(e, E_ARG, "%s: '%s' %s and '%s' %s cannot be joined", op, op_name(x), tensor_text(x, a, sizeof a),
                   op_name(z), tensor_text(z, b, sizeof b));
}

struct tensor *op_join(struct tape *t, struct tensor *x, struct tensor *z, struct err *e)
{
    const int64_t a = op_width(x), b = op_width(z), rows = op_rows_of(x);
    struct shape s = { .x = x, .z = z };

    if (check_join("join", x, z, x->n_dim - 1, e))
        return NULL;
    s.y = op_out_width(t, x, a + b, e);
    if (!s.y || copy(t, s.y, 0, a + b, x, 0, a, rows, a, e) || copy(t, s.y, a, a + b, z, 0, b, rows, b, e))
        return NULL;
    return op_note(t, op_wants(t, x) || op_wants(t, z), join_back, &s, sizeof s, s.y, e);
}

static int join_rows_back(struct tape *t, void *saved, struct err *e)
{
    const struct shape *s = saved;
    const int64_t a = tensor_count(s->x), b = tensor_count(s->z);
    const int rc = take_range(t, s->x, s->y->grad, 0, a, 1, a, e);

    return rc ? rc : take_range(t, s->z, s->y->grad, a, b, 1, b, e);
}

struct tensor *op_join_rows(struct tape *t, struct tensor *x, struct tensor *z, struct err *e)
{
    const int64_t a = tensor_count(x), b = tensor_count(z);
    struct shape s = { .x = x, .z = z };
    int64_t dim[TENSOR_MAX_DIM];

    if (check_join("join_rows", x, z, 0, e))
        return NULL;
    memcpy(dim, x->dim, sizeof dim);
    dim[0] += z->dim[0];
    s.y = tape_out(t, x->type, x->n_dim, dim, e);
    if (!s.y || copy(t, s.y, 0, a, x, 0, a, 1, a, e) || copy(t, s.y, a, b, z, 0, b, 1, b, e))
        return NULL;
    return op_note(t, op_wants(t, x) || op_wants(t, z), join_rows_back, &s, sizeof s, s.y, e);
}

static int channels_back(struct tape *t, void *saved, struct err *e)
{
    const struct shape *s = saved;

    return add_range(t, s->x, s->first, op_width(s->x), s->y->grad, op_rows_of(s->y), op_width(s->y), e);
}

struct tensor *op_channels(struct tape *t, struct tensor *x, int64_t first, int64_t n, struct err *e)
{
    struct shape s = { .x = x, .first = first };
    char text[OP_TEXT];

    if (x->n_dim < 1 || first < 0 || n < 0 || first > op_width(x) - n)
        return op_fail(e, E_ARG, "channels '%s': %" PRId64 " from %" PRId64 " of %s", op_name(x), n, first,
                       tensor_text(x, text, sizeof text));
    s.y = op_out_width(t, x, n, e);
    if (!s.y || copy(t, s.y, 0, n, x, first, op_width(x), op_rows_of(x), n, e))
        return NULL;
    return op_note(t, op_wants(t, x), channels_back, &s, sizeof s, s.y, e);
}
