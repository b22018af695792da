/* core/op/product.c: see product.h. */
#include "core/op/product.h"

enum { MAX_PART = 3 }; /* what kconv takes */

struct kgeom op_linear_geom(int64_t rows, int64_t Ci, int64_t Co)
{
    return (struct kgeom){
        .H = 1, .W = rows, .Ci = Ci, .Ho = 1, .Wo = rows, .Co = Co, .KH = 1, .KW = 1, .stride = 1, .up = 1
    };
}

static const void *term_pack(struct tape *t, const struct op_term *m, enum kpack_kind kind, bool glu, struct err *e)
{
    const void *pack[2];

    if (glu)
        return weight_pack_glu(m->w, t->dev, e);
    if (!m->split)
        return weight_pack(m->w, t->dev, kind, e);
    if (weight_pack_split(m->w, t->dev, kind, m->first ? m->first : m->g.Ci, pack, e))
        return NULL;
    return pack[m->first > 0];
}

int op_term_part(struct tape *t, const struct op_term *m, enum kdir dir, bool glu, const struct tensor *dy,
                 struct kpart *out, struct err *e)
{
    const bool even = m->g.up == 2 && m->g.Ho == 2 * m->g.H && m->g.Wo == 2 * m->g.W;
    const enum kpack_kind kind = dir == K_FWD ? even ? K_PACK_UP : K_PACK_FWD : even ? K_PACK_UP_DX : K_PACK_DX;
    const struct tensor *in = dir == K_FWD ? m->x : dy;

    *out = (struct kpart){ .x = in->data,
                           .type = in->type,
                           .ldx = op_width(in),
                           .pack_type = m->w->pack_type,
                           .pack_kind = kind,
                           .glu = glu,
                           .g = m->g };
    out->pack = term_pack(t, m, kind, glu, e);
    return out->pack ? OK : op_code(e);
}

int op_product(struct tape *t, const char *what, struct kconv *c, const struct kpart *part, int n, struct err *e)
{
    int rc = OK;

    for (int i = 0; i < n && !rc; i += MAX_PART) {
        c->n_part = n - i < MAX_PART ? n - i : MAX_PART;
        for (int j = 0; j < c->n_part; j++)
            c->part[j] = part[i + j];
        rc = op_run(e, what, op_kern(t)->conv(op_ctx(t), c));
        c->bias = NULL;
        c->row_add = NULL;
        c->residual = c->y; /* further parts are added to what is there */
        c->residual_ld = c->ldy;
    }
    return rc;
}

int op_term_dx(struct tape *t, struct tensor *x, const struct kconv *c, const struct kpart *part, int n, struct err *e)
{
    struct kconv d = *c;
    bool accumulate;
    struct tensor *g;

    g = tape_grad(t, x, &accumulate, e);
    if (!g)
        return op_code(e);
    d.dir = K_DX;
    d.y = g->data;
    d.y_type = g->type;
    d.ldy = op_width(x);
    d.residual = accumulate ? g->data : NULL;
    d.residual_ld = d.ldy;
    return op_product(t, op_name(x), &d, part, n, e);
}

/* dW of a 1x1 term: (Co,Ci) += dy^T x over all pixels, straight into its range of channels. */
static int pointwise_dw(struct tape *t, const struct op_term *m, const struct tensor *dy, float *dw, bool accumulate,
                        struct err *e)
{
    const struct kgemm g = {
        .M = m->g.Co,
        .N = m->g.Ci,
        .K = op_rows_of(dy),
        .n = 1,
        .a = dy->data,
        .b = m->x->data,
        .c = dw + m->first,
        .a_type = dy->type,
        .b_type = m->x->type,
        .c_type = F32,
        .lda = m->g.Co,
        .ldb = m->g.Ci,
        .ldc = m->w->Ci,
        .trans_a = true,
        .alpha = 1,
        .beta = accumulate,
    };

    return op_run(e, m->w->name, op_kern(t)->gemm(op_ctx(t), &g));
}

/* A range of channels of a wider kernel: its gradient is made dense, then put in place. */
static int range_dw(struct tape *t, const struct op_term *m, int64_t B, const struct tensor *dy, float *dw,
                    bool accumulate, struct err *e)
{
    const struct kern *k = op_kern(t);
    const int64_t rows = m->g.Co * m->g.KH * m->g.KW, Ci = m->g.Ci;
    const size_t mark = arena_mark(&t->mem->scratch);
    float *part = op_scratch(t, (size_t)(rows * Ci) * sizeof *part, e);
    int rc;

    if (!part)
        return op_code(e);
    rc = k->conv_dw(op_ctx(t), part, 0, &m->g, B, m->x->data, m->x->type, Ci, dy->data, dy->type, m->g.Co);
    if (!rc)
        rc = k->copy_rows(op_ctx(t), dw + m->first, m->w->Ci, part, Ci, F32, rows, Ci, accumulate);
    arena_release(&t->mem->scratch, mark);
    return op_run(e, m->w->name, rc);
}

/* A new gradient of a split weight is cleared first: this term writes one range of it, the other's adds to the rest. */
int op_term_dw(struct tape *t, const struct op_term *m, int64_t B, const struct tensor *dy, struct err *e)
{
    const struct kern *k = op_kern(t);
    bool accumulate;
    struct tensor *g;
    int rc = OK;

    if (!m->w->raw || !m->w->raw->needs_grad)
        return OK;
    g = tape_grad_f32(t, m->w->raw, &accumulate, e);
    if (!g)
        return op_code(e);
    if (m->split && !accumulate)
        rc = op_run(e, m->w->name, k->fill(op_ctx(t), g->data, F32, tensor_count(g), 0));
    if (rc)
        return rc;
    if (m->g.KH == 1 && m->g.KW == 1 && m->g.stride == 1)
        return pointwise_dw(t, m, dy, g->data, accumulate, e);
    if (m->split)
        return range_dw(t, m, B, dy, g->data, accumulate, e);
    return op_run(e, m->w->name,
                  k->conv_dw(op_ctx(t), g->data, accumulate, &m->g, B, m->x->data, m->x->type, m->g.Ci, dy->data,
                             dy->type, m->g.Co));
}

/* ---- epilogues ---- */

int op_check_epilogue(const char *what, const struct op_epilogue *epi, const struct tensor *x, int64_t Co,
                      struct err *e)
{
    const struct tensor *a = epi->row_add;
    char have[OP_TEXT];

    if (epi->act == K_ACT_GEGLU && Co % 2)
        return err_set(e, E_ARG, "%s: a gated product needs an even width, not %" PRId64, what, Co);
    if (a && (a->type != x->type || a->n_dim != 2 || a->dim[0] != x->dim[0] || a->dim[1] != Co))
        return err_set(e, E_ARG, "%s: the rows to add are %s, want %s (%" PRId64 ",%" PRId64 ")", what,
                       tensor_text(a, have, sizeof have), dtype_name(x->type), x->dim[0], Co);
    return OK;
}

int op_epilogue_back(struct tape *t, struct tensor *y, struct tensor *row_add, struct tensor *residual, struct err *e)
{
    const struct kern *k = op_kern(t);
    const struct tensor *dy = y->grad;
    struct op_grad g;
    int rc;

    if (row_add && row_add->needs_grad) {
        const int64_t B = row_add->dim[0], C = row_add->dim[1];

        rc = op_grad_open(t, &g, row_add, e);
        if (!rc)
            rc = op_run(e, op_name(row_add),
                        k->image_sum(op_ctx(t), g.to->data, dy->data, C, dy->type, B, B ? op_rows_of(dy) / B : 0, C));
        if (!rc)
            rc = op_grad_close(t, &g, e);
        if (rc)
            return rc;
    }
    return residual ? tape_grad_move(t, residual, y, e) : OK;
}

static struct tensor *activate(struct tape *t, enum kact act, struct tensor *h, struct err *e)
{
    switch (act) {
    case K_ACT_SILU: return op_unary(t, K_SILU, h, e);
    case K_ACT_GELU: return op_unary(t, K_GELU, h, e);
    case K_ACT_QUICK_GELU: return op_unary(t, K_QUICK_GELU, h, e);
    case K_ACT_RELU: return op_unary(t, K_RELU, h, e);
    case K_ACT_GEGLU: return op_geglu(t, h, e);
    default: return op_fail(e, E_BUG, "activation %d is not one", act);
    }
}

struct tensor *op_finish(struct tape *t, struct tensor *h, const struct op_epilogue *epi, struct tensor *into,
                         struct err *e)
{
    if (!h)
        return NULL;
    if (!epi->residual)
        tape_into(t, into);
    h = activate(t, epi->act, h, e);
    if (!h || !epi->residual)
        return h;
    tape_into(t, into);
    return op_add(t, h, epi->residual, e);
}
