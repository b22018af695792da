/* core/op/norm.c: GroupNorm (with SiLU) and LayerNorm. Mean and 1/deviation are kept for the backward pass: a few
 * numbers per group or row. The gradient is made in the memory of the one that came in. */
#include "core/op/common.h"

struct norm {
    struct tensor *x, *gamma, *beta, *y;
    float *mean, *rstd;
    int64_t B, HW, C, G; /* LayerNorm: B rows of C */
    bool silu;
};

static bool wanted(const struct tape *t, const struct norm *s)
{
    return op_wants(t, s->x) || op_wants(t, s->gamma) || op_wants(t, s->beta);
}

/* n means and deviations: in step if they are to stay, else in scratch. */
static int take_statistics(struct tape *t, struct norm *s, int64_t n, bool stay, struct err *e)
{
    struct arena *a = stay ? &t->mem->step : &t->mem->scratch;

    s->mean = arena_push(a, (size_t)n * sizeof *s->mean, e);
    s->rstd = s->mean ? arena_push(a, (size_t)n * sizeof *s->rstd, e) : NULL;
    return s->rstd ? OK : op_code(e);
}

/* Where dgamma and dbeta go: both NULL, or both somewhere, for the kernel makes both or none. */
static int take_param_grads(struct tape *t, const struct norm *s, float **dgamma, float **dbeta, struct err *e)
{
    float **none;
    int rc = op_grad_param(t, s->gamma, dgamma, e);

    if (!rc)
        rc = op_grad_param(t, s->beta, dbeta, e);
    if (rc || !*dgamma == !*dbeta)
        return rc;
    none = *dgamma ? dbeta : dgamma;
    *none = op_scratch(t, (size_t)s->C * sizeof **none, e);
    if (!*none)
        return op_code(e);
    return op_run(e, op_name(s->gamma), op_kern(t)->fill(op_ctx(t), *none, F32, s->C, 0));
}

static int group_norm_back(struct tape *t, void *saved, struct err *e)
{
    const struct norm *s = saved;
    const struct kern *k = op_kern(t);
    void *dy = s->y->grad->data, *work;
    float *dgamma, *dbeta;
    int rc = take_param_grads(t, s, &dgamma, &dbeta, e);

    if (rc)
        return rc;
    work = op_scratch(t, k->group_norm_back_bytes(s->B, s->HW, s->C, s->G), e);
    if (!work)
        return op_code(e);
    rc = op_run(e, op_name(s->gamma),
                k->group_norm_back(op_ctx(t), dy, dgamma, dbeta, dy, s->C, s->x->data, s->C, s->mean, s->rstd,
                                   s->x->type, s->gamma->data, s->beta->data, s->B, s->HW, s->C, s->G, s->silu, work));
    return rc ? rc : tape_grad_move(t, s->x, s->y, e);
}

struct tensor *op_group_norm(struct tape *t, struct tensor *x, struct tensor *gamma, struct tensor *beta, int64_t G,
                             float eps, bool silu, struct err *e)
{
    const size_t mark = arena_mark(&t->mem->scratch);
    struct norm s = { .x = x, .gamma = gamma, .beta = beta, .C = op_width(x), .G = G, .silu = silu };
    char text[OP_TEXT];
    int rc;

    if (x->n_dim < 2 || G < 1 || s.C % G)
        return op_fail(e, E_ARG, "group_norm '%s': x %s cannot be cut into %" PRId64 " groups", op_name(gamma),
                       tensor_text(x, text, sizeof text), G);
    s.B = x->dim[0];
    s.HW = s.B ? op_rows_of(x) / s.B : 0;
    if (op_check_param("group_norm", gamma, s.C, e) || op_check_param("group_norm", beta, s.C, e))
        return NULL;
    s.y = tape_out(t, x->type, x->n_dim, x->dim, e);
    if (!s.y || take_statistics(t, &s, s.B * G, wanted(t, &s), e))
        return NULL;
    rc = op_kern(t)->group_norm(op_ctx(t), s.y->data, s.C, s.mean, s.rstd, x->data, s.C, x->type, gamma->data,
                                beta->data, s.B, s.HW, s.C, G, eps, silu);
    arena_release(&t->mem->scratch, mark);
    if (op_run(e, op_name(gamma), rc))
        return NULL;
    return op_note(t, wanted(t, &s), group_norm_back, &s, sizeof s, s.y, e);
}

int op_group_stats(struct tape *t, struct op_group_stats *out, struct tensor *x, int64_t G, float eps, struct err *e)
{
    const int64_t B = x->n_dim ? x->dim[0] : 0, C = op_width(x), stats[] = { B, G };
    char text[OP_TEXT];

    if (x->n_dim < 2 || G < 1 || C % G || op_wants(t, x))
        return err_set(e, op_wants(t, x) ? E_BUG : E_ARG,
                       "group_norm '%s': x %s cannot be cut into %" PRId64 " groups%s", op_name(x),
                       tensor_text(x, text, sizeof text), G, op_wants(t, x) ? " in bands" : "");
    out->mean = tape_new(t, F32, 2, stats, e);
    out->rstd = out->mean ? tape_new(t, F32, 2, stats, e) : NULL;
    if (!out->rstd)
        return op_code(e);
    return op_run(e, op_name(x),
                  op_kern(t)->group_norm(op_ctx(t), NULL, 0, out->mean->data, out->rstd->data, x->data, C, x->type,
                                         NULL, NULL, B, B ? op_rows_of(x) / B : 0, C, G, eps, false));
}

struct tensor *op_group_norm_rows(struct tape *t, struct tensor *x, const struct op_group_stats *s, int64_t b,
                                  struct tensor *gamma, struct tensor *beta, bool silu, struct err *e)
{
    const int64_t C = op_width(x), G = s->mean->dim[1];
    struct tensor *y;

    if (x->n_dim < 2 || x->dim[0] != 1 || C % G || b < 0 || b >= s->mean->dim[0])
        return op_fail(e, E_BUG, "group_norm '%s': image %" PRId64 " has no statistics", op_name(gamma), b);
    if (op_check_param("group_norm", gamma, C, e) || op_check_param("group_norm", beta, C, e))
        return NULL;
    y = tape_out(t, x->type, x->n_dim, x->dim, e);
    if (!y
        || op_run(e, op_name(gamma),
                  op_kern(t)->group_norm_apply(op_ctx(t), y->data, C, (float *)s->mean->data + b * G,
                                               (float *)s->rstd->data + b * G, x->data, C, x->type, gamma->data,
                                               beta->data, 1, op_rows_of(x), C, G, silu)))
        return NULL;
    return y;
}

static int layer_norm_back(struct tape *t, void *saved, struct err *e)
{
    const struct norm *s = saved;
    const struct kern *k = op_kern(t);
    void *dy = s->y->grad->data, *work;
    float *dgamma, *dbeta;
    int rc = take_param_grads(t, s, &dgamma, &dbeta, e);

    if (rc)
        return rc;
    work = op_scratch(t, k->layer_norm_back_bytes(s->B, s->C), e);
    if (!work)
        return op_code(e);
    rc = op_run(e, op_name(s->gamma),
                k->layer_norm_back(op_ctx(t), dy, dgamma, dbeta, dy, s->x->data, s->mean, s->rstd, s->x->type,
                                   s->gamma->data, s->B, s->C, work));
    return rc ? rc : tape_grad_move(t, s->x, s->y, e);
}

struct tensor *op_layer_norm(struct tape *t, struct tensor *x, struct tensor *gamma, struct tensor *beta, float eps,
                             struct err *e)
{
    struct norm s = { .x = x, .gamma = gamma, .beta = beta, .B = op_rows_of(x), .C = op_width(x) };

    if (op_check_param("layer_norm", gamma, s.C, e) || op_check_param("layer_norm", beta, s.C, e))
        return NULL;
    s.y = tape_out(t, x->type, x->n_dim, x->dim, e);
    if (!s.y || (wanted(t, &s) && take_statistics(t, &s, s.B, true, e)))
        return NULL;
    if (op_run(e, op_name(gamma),
               op_kern(t)->layer_norm(op_ctx(t), s.y->data, s.mean, s.rstd, x->data, x->type, gamma->data, beta->data,
                                      s.B, s.C, eps)))
        return NULL;
    return op_note(t, wanted(t, &s), layer_norm_back, &s, sizeof s, s.y, e);
}
