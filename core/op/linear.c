/* core/op/linear.c: y = x W^T + b with low-rank terms, as one product of up to three parts:
 *     z_i = scale_i x A_i^T  (rows, r_i)        y = x W^T + sum of z_i B_i^T + b
 * or, where x W^T is there already and serves several adapters, y = base + sum of z_i B_i^T. */
#include "core/op/product.h"

enum { MAX_LORA = 8 };

struct linear {
    const char *name;
    struct weight *w;           /* NULL: low-rank terms alone */
    int64_t Ci, Co;
    struct op_lora lora[MAX_LORA];
    struct tensor *z[MAX_LORA]; /* NULL where the gradient of `up` is not wanted */
    int n_lora;
    struct tensor *x, *row_add, *residual, *y;
    int64_t rows;
};

static struct op_term base_term(const struct linear *s)
{
    return (struct op_term){ .w = s->w, .x = s->x, .g = op_linear_geom(s->rows, s->w->Ci, s->w->Co) };
}

static struct op_term down_term(const struct linear *s, int i)
{
    struct weight *a = s->lora[i].down;

    return (struct op_term){ .w = a, .x = s->x, .g = op_linear_geom(s->rows, a->Ci, a->Co) };
}

static struct op_term up_term(const struct linear *s, int i, struct tensor *z)
{
    struct weight *b = s->lora[i].up;

    return (struct op_term){ .w = b, .x = z, .g = op_linear_geom(s->rows, b->Ci, b->Co) };
}

static bool weight_wanted(const struct tape *t, const struct weight *w)
{
    return op_wants(t, w->raw) || op_wants(t, w->bias);
}

/* Does a gradient flow through the product itself, so that an activation behind it must be an op of its own? */
static bool inside_wanted(const struct tape *t, const struct linear *s)
{
    bool wanted = op_wants(t, s->x) || op_wants(t, s->row_add) || (s->w && weight_wanted(t, s->w));

    for (int i = 0; i < s->n_lora; i++)
        wanted |= weight_wanted(t, s->lora[i].down) || weight_wanted(t, s->lora[i].up);
    return wanted;
}

/* ---- forward ---- */

static int check(const struct linear *s, const struct op_epilogue *epi, struct err *e)
{
    char text[OP_TEXT];

    if (s->x->n_dim < 1 || op_width(s->x) != s->Ci || (s->w && (s->w->KH != 1 || s->w->KW != 1)))
        return err_set(e, E_ARG, "linear '%s': x %s has width %" PRId64 ", weights take %" PRId64 "%s", s->name,
                       tensor_text(s->x, text, sizeof text), op_width(s->x), s->Ci,
                       s->w && (s->w->KH != 1 || s->w->KW != 1) ? " and are a convolution's" : "");
    for (int i = 0; i < s->n_lora; i++) {
        const struct weight *a = s->lora[i].down, *b = s->lora[i].up;

        if (a->Ci != s->Ci || b->Co != s->Co || a->Co != b->Ci || a->bias || b->bias
            || a->KH * a->KW * b->KH * b->KW != 1)
            return err_set(e, E_ARG,
                           "linear '%s' (%" PRId64 ",%" PRId64 "): low-rank '%s' (%" PRId64 ",%" PRId64
                           ") and '%s' (%" PRId64 ",%" PRId64 ") do not fit",
                           s->name, s->Co, s->Ci, a->name, a->Co, a->Ci, b->name, b->Co, b->Ci);
    }
    return op_check_epilogue(s->name, epi, s->x, s->Co, e);
}

/* z_i, in step if its gradient's sake it must stay, else in scratch. */
static struct tensor *project_down(struct tape *t, const struct linear *s, int i, struct err *e)
{
    const struct op_term m = down_term(s, i);
    const bool stays = op_wants(t, s->lora[i].up->raw);
    struct tape_memory *mem = t->mem;
    struct kconv c = { .dir = K_FWD, .B = 1, .alpha = s->lora[i].scale, .y_type = s->x->type, .ldy = m.w->Co };
    struct kpart part;
    struct tensor *z =
        tensor_new(&mem->meta, stays ? &mem->step : &mem->scratch, s->x->type, 2, (int64_t[]){ s->rows, m.w->Co }, e);

    if (!z || op_term_part(t, &m, K_FWD, false, NULL, &part, e))
        return NULL;
    c.y = z->data;
    return op_product(t, m.w->name, &c, &part, 1, e) ? NULL : z;
}

/* The product, with what fits into its epilogue, into s->y. */
static int run(struct tape *t, struct linear *s, enum kact act, struct err *e)
{
    const bool glu = act == K_ACT_GEGLU;
    const int64_t B = s->row_add ? s->x->dim[0] : 1;
    struct kconv c = {
        .dir = K_FWD,
        .B = B,
        .alpha = 1,
        .bias = s->w && s->w->bias ? s->w->bias->data : NULL,
        .row_add = s->row_add ? s->row_add->data : NULL,
        .row_add_ld = s->Co,
        .act = act,
        .residual = s->residual ? s->residual->data : NULL,
        .residual_ld = op_width(s->y),
        .y = s->y->data,
        .y_type = s->y->type,
        .ldy = op_width(s->y),
    };
    struct kpart part[1 + MAX_LORA];
    int rc = OK, n = 0;

    if (s->w) {
        const struct op_term base = base_term(s);

        rc = op_term_part(t, &base, K_FWD, glu, NULL, &part[n++], e);
    }
    for (int i = 0; i < s->n_lora && !rc; i++) {
        struct tensor *z = project_down(t, s, i, e);
        struct op_term up;

        if (!z)
            return op_code(e);
        up = up_term(s, i, z);
        rc = op_term_part(t, &up, K_FWD, glu, NULL, &part[n++], e);
        s->z[i] = op_wants(t, up.w->raw) ? z : NULL;
    }
    for (int i = 0; i < n; i++)
        part[i].g.W = part[i].g.Wo = B ? s->rows / B : 0;
    return rc ? rc : op_product(t, s->name, &c, part, n, e);
}

static tape_back_fn linear_back;

static struct tensor *linear(struct tape *t, struct linear *s, const struct op_epilogue *epi, struct err *e)
{
    const size_t mark = arena_mark(&t->mem->scratch);
    const int64_t width = epi->act == K_ACT_GEGLU ? s->Co / 2 : s->Co;
    int rc;

    s->residual = epi->residual;
    s->y = op_out_width(t, s->x, width, e);
    if (!s->y)
        return NULL;
    if (!s->y->name)
        s->y->name = s->name;
    if (s->residual && op_check_alike(s->name, s->residual, s->y, e))
        return NULL;
    rc = run(t, s, epi->act, e);
    arena_release(&t->mem->scratch, mark);
    if (rc)
        return NULL;
    return op_note(t, inside_wanted(t, s) || op_wants(t, s->residual), linear_back, s, sizeof *s, s->y, e);
}

static int set_up(struct linear *s, const struct op_lora *lora, int n_lora, const struct op_epilogue *epi,
                  struct err *e)
{
    if (n_lora < 0 || n_lora > MAX_LORA)
        return err_set(e, E_ARG, "linear '%s': %d low-rank terms, at most %d", s->name, n_lora, MAX_LORA);
    s->n_lora = n_lora;
    for (int i = 0; i < n_lora; i++)
        s->lora[i] = lora[i];
    s->rows = op_rows_of(s->x);
    return check(s, epi, e);
}

struct tensor *op_linear(struct tape *t, struct tensor *x, struct weight *w, const struct op_lora *lora, int n_lora,
                         const struct op_epilogue *epi, struct err *e)
{
    const struct op_epilogue none = { .act = K_ACT_NONE }, *p = epi ? epi : &none;
    const struct op_epilogue plain = { .row_add = p->row_add };
    struct linear s = { .name = w->name, .w = w, .Ci = w->Ci, .Co = w->Co, .x = x, .row_add = p->row_add };
    struct tensor *into = t->into;

    if (set_up(&s, lora, n_lora, p, e))
        return NULL;
    if (p->act == K_ACT_NONE || (n_lora <= 2 && !inside_wanted(t, &s)))
        return linear(t, &s, p, e);
    t->into = NULL;
    return op_finish(t, linear(t, &s, &plain, e), p, into, e);
}

struct tensor *op_low_rank(struct tape *t, struct tensor *base, struct tensor *x, const struct op_lora *lora,
                           int n_lora, struct err *e)
{
    const struct op_epilogue add = { .residual = base };
    struct linear s = { .name = op_name(base), .Ci = op_width(x), .Co = op_width(base), .x = x };

    if (n_lora < 1)
        return op_fail(e, E_ARG, "low-rank terms on '%s': there are none", s.name);
    return set_up(&s, lora, n_lora, &add, e) ? NULL : linear(t, &s, &add, e);
}

/* ---- backward ---- */

/* dz_i = scale dy B_i, the gradient of x A_i^T, in scratch. */
static struct tensor *pull_up(struct tape *t, const struct linear *s, int i, struct err *e)
{
    const struct op_term m = up_term(s, i, NULL);
    struct kconv c = { .dir = K_DX, .B = 1, .alpha = s->lora[i].scale, .y_type = s->y->type, .ldy = m.w->Ci };
    struct kpart part;
    struct tensor *dz = tensor_new(&t->mem->meta, &t->mem->scratch, s->y->type, 2, (int64_t[]){ s->rows, m.w->Ci }, e);

    if (!dz || op_term_part(t, &m, K_DX, false, s->y->grad, &part, e))
        return NULL;
    c.y = dz->data;
    return op_product(t, m.w->name, &c, &part, 1, e) ? NULL : dz;
}

/* Gradients of A_i and B_i; dz for those who go on with it. */
static int lora_back(struct tape *t, const struct linear *s, int i, struct tensor **dz, struct err *e)
{
    const struct op_term down = down_term(s, i), up = up_term(s, i, s->z[i]);
    int rc = s->z[i] ? op_term_dw(t, &up, 1, s->y->grad, e) : OK;

    *dz = NULL;
    if (rc || (!s->x->needs_grad && !(down.w->raw && down.w->raw->needs_grad)))
        return rc;
    *dz = pull_up(t, s, i, e);
    return *dz ? op_term_dw(t, &down, 1, *dz, e) : op_code(e);
}

static int linear_back(struct tape *t, void *saved, struct err *e)
{
    const struct linear *s = saved;
    const struct op_term base = s->w ? base_term(s) : (struct op_term){ 0 };
    const struct kconv c = { .B = 1, .alpha = 1 };
    struct tensor *dy = s->y->grad, *dz[MAX_LORA];
    struct kpart part[1 + MAX_LORA];
    int rc = s->w ? op_term_dw(t, &base, 1, dy, e) : OK, n = 0;

    if (!rc && s->w)
        rc = op_grad_bias(t, s->w->bias, dy, e);
    for (int i = 0; i < s->n_lora && !rc; i++)
        rc = lora_back(t, s, i, &dz[i], e);
    if (!rc && s->x->needs_grad) {
        if (s->w)
            rc = op_term_part(t, &base, K_DX, false, dy, &part[n++], e);
        for (int i = 0; i < s->n_lora && !rc; i++) {
            const struct op_term down = down_term(s, i);

            rc = op_term_part(t, &down, K_DX, false, dz[i], &part[n++], e);
        }
        if (!rc)
            rc = op_term_dx(t, s->x, &c, part, n, e);
    }
    return rc ? rc : op_epilogue_back(t, s->y, s->row_add, s->residual, e);
}
