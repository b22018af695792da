/* core/op/embed.c: rows of a table by id, and the sinusoids of a time step. */
#include "core/op/common.h"

struct gather {
    struct tensor *table, *y;
    const int32_t *id; /* a copy in meta */
    int64_t n;
};

static int gather_back(struct tape *t, void *saved, struct err *e)
{
    const struct gather *s = saved;
    float *d;
    const int rc = op_grad_param(t, s->table, &d, e);

    if (rc)
        return rc;
    return op_run(e, op_name(s->table),
                  op_kern(t)->gather_back(op_ctx(t), d, s->y->grad->data, s->y->type, s->id, s->n, s->table->dim[0],
                                          s->table->dim[1]));
}

struct tensor *op_gather(struct tape *t, struct tensor *table, const int32_t *id, int64_t n, enum dtype type,
                         struct err *e)
{
    struct gather s = { .table = table, .n = n };
    char text[OP_TEXT];
    int32_t *copy;

    if (table->n_dim != 2 || n < 0)
        return op_fail(e, E_ARG, "gather '%s': %" PRId64 " rows of %s", op_name(table), n,
                       tensor_text(table, text, sizeof text));
    for (int64_t i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= table->dim[0])
            return op_fail(e, E_ARG, "gather '%s': id %" PRId32 " of %" PRId64 " rows", op_name(table), id[i],
                           table->dim[0]);
    copy = arena_push(&t->mem->meta, (size_t)n * sizeof *copy, e);
    if (!copy)
        return NULL;
    if (n)
        memcpy(copy, id, (size_t)n * sizeof *copy);
    s.id = copy;
    s.y = tape_out(t, type, 2, (int64_t[]){ n, table->dim[1] }, e);
    if (!s.y
        || op_run(e, op_name(table),
                  op_kern(t)->gather(op_ctx(t), s.y->data, type, table->data, table->type, copy, n, table->dim[0],
                                     table->dim[1])))
        return NULL;
    return op_note(t, op_wants(t, table), gather_back, &s, sizeof s, s.y, e);
}

struct tensor *op_time_embed(struct tape *t, struct tensor *time, int64_t dim, enum dtype type, struct err *e)
{
    const int64_t B = tensor_count(time);
    struct tensor *y;

    if (op_check_param("time_embed", time, B, e))
        return NULL;
    if (dim < 0 || dim % 2)
        return op_fail(e, E_ARG, "time_embed '%s': a width of %" PRId64 " is not even", op_name(time), dim);
    y = tape_out(t, type, 2, (int64_t[]){ B, dim }, e);
    if (!y || op_run(e, op_name(time), op_kern(t)->time_embed(op_ctx(t), y->data, type, time->data, B, dim)))
        return NULL;
    return y;
}
