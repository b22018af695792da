/* core/op/common.c: see common.h; and messages of ops. */
#include "core/op/common.h"

#include <stdarg.h>

#include "kernels/dev.h"

struct tensor *op_fail(struct err *e, int code, const char *fmt, ...)
{
    char text[sizeof e->text];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(e, code, "%s", text);
    return NULL;
}

int op_run(struct err *e, const char *what, int kstatus)
{
    switch (kstatus) {
    case K_OK: return OK;
    case K_ARG: return err_set(e, E_ARG, "%s: sizes, types or values that the kernel does not take", what);
    case K_SCRATCH: return err_set(e, E_BUG, "%s: the kernel's scratch is too small", what);
    case K_MISSING: return err_set(e, E_DEVICE, "%s: there is no such kernel for this device yet; use cpu", what);
    default: return err_set(e, E_DEVICE, "%s: the device failed: %s", what, dev_cuda_why());
    }
}

const char *op_name(const struct tensor *x) { return x && x->name ? x->name : "unnamed tensor"; }

int op_code(const struct err *e) { return e && e->code ? e->code : E_NOMEM; }

int op_check_alike(const char *op, const struct tensor *x, const struct tensor *z, struct err *e)
{
    char a[OP_TEXT], b[OP_TEXT];

    if (x->type == z->type && tensor_same_shape(x, z))
        return OK;
    return err_set(e, E_ARG, "%s: '%s' is %s, '%s' is %s", op, op_name(x), tensor_text(x, a, sizeof a), op_name(z),
                   tensor_text(z, b, sizeof b));
}

int op_check_param(const char *op, const struct tensor *p, int64_t n, struct err *e)
{
    char text[OP_TEXT];

    if (p && p->type == F32 && tensor_count(p) == n)
        return OK;
    return err_set(e, E_ARG, "%s: '%s' is %s, want f32 (%" PRId64 ")", op, op_name(p),
                   p ? tensor_text(p, text, sizeof text) : "missing", n);
}

struct tensor *op_out_width(struct tape *t, const struct tensor *x, int64_t width, struct err *e)
{
    int64_t dim[TENSOR_MAX_DIM];

    for (int i = 0; i < x->n_dim; i++)
        dim[i] = x->dim[i];
    dim[x->n_dim - 1] = width;
    return tape_out(t, x->type, x->n_dim, dim, e);
}

struct tensor *op_note(struct tape *t, bool wanted, tape_back_fn *back, const void *saved, size_t bytes,
                       struct tensor *y, struct err *e)
{
    void *s;

    if (!wanted)
        return y;
    s = tape_save(t, bytes, e);
    if (!s)
        return NULL;
    memcpy(s, saved, bytes);
    return tape_note(t, back, s, y, e);
}

void *op_scratch(struct tape *t, size_t bytes, struct err *e) { return arena_push(&t->mem->scratch, bytes, e); }

/* ---- gradients ---- */

int op_grad_open(struct tape *t, struct op_grad *g, struct tensor *x, struct err *e)
{
    *g = (struct op_grad){ .x = x };
    if (!x || !x->needs_grad)
        return OK;
    g->to = tape_grad(t, x, &g->add, e);
    if (g->to && g->add)
        g->to = tensor_new(&t->mem->meta, &t->mem->scratch, x->type, x->n_dim, x->dim, e);
    return g->to ? OK : op_code(e);
}

int op_grad_close(struct tape *t, const struct op_grad *g, struct err *e)
{
    return g->to && g->add ? tape_grad_add(t, g->x, g->to, e) : OK;
}

int op_grad_param(struct tape *t, struct tensor *p, float **out, struct err *e)
{
    bool accumulate;
    struct tensor *g;

    *out = NULL;
    if (!p || !p->needs_grad)
        return OK;
    g = tape_grad_f32(t, p, &accumulate, e);
    if (!g)
        return op_code(e);
    *out = g->data;
    if (accumulate)
        return OK;
    return op_run(e, op_name(p), op_kern(t)->fill(op_ctx(t), g->data, F32, tensor_count(g), 0));
}

int op_grad_bias(struct tape *t, struct tensor *bias, const struct tensor *dy, struct err *e)
{
    const struct kern *k = op_kern(t);
    const int64_t rows = op_rows_of(dy), C = op_width(dy);
    const size_t mark = arena_mark(&t->mem->scratch);
    bool accumulate;
    struct tensor *g;
    void *work;
    int rc;

    if (!bias || !bias->needs_grad)
        return OK;
    g = tape_grad_f32(t, bias, &accumulate, e);
    if (!g)
        return op_code(e);
    work = op_scratch(t, k->col_sum_bytes(rows, C), e);
    if (!work)
        return op_code(e);
    rc = k->col_sum(op_ctx(t), g->data, accumulate, dy->data, C, dy->type, rows, C, work);
    arena_release(&t->mem->scratch, mark);
    return op_run(e, op_name(bias), rc);
}
