/* core/op/conv.c: convolutions as one product of up to three terms: the input, or the two halves of a joined one, and a
 * 1x1 shortcut beside them, joined or not. */
#include "core/op/product.h"

enum { MAX_TERM = 3 };

struct conv {
    const char *name;
    struct op_term term[MAX_TERM];
    int n_term;
    struct tensor *bias[2], *row_add, *residual, *y;
    int64_t B;
};

static bool inside_wanted(const struct tape *t, const struct conv *s)
{
    bool wanted = op_wants(t, s->row_add) || op_wants(t, s->bias[0]) || op_wants(t, s->bias[1]);

    for (int i = 0; i < s->n_term; i++)
        wanted |= op_wants(t, s->term[i].x) || op_wants(t, s->term[i].w->raw);
    return wanted;
}

static bool any_split(const struct conv *s) { return s->term[0].split || s->term[s->n_term - 1].split; }

/* ---- setting up ---- */

/* Terms for one weight over x, or x and x2 joined. g carries everything but the input's channels. */
static int add_terms(struct conv *s, struct weight *w, struct tensor *x, struct tensor *x2, struct kgeom g,
                     struct err *e)
{
    struct tensor *const half[2] = { x, x2 };
    const int64_t C = op_width(x), C2 = x2 ? op_width(x2) : 0;
    const int n = x2 ? 2 : 1;
    char text[OP_TEXT], text2[OP_TEXT];

    if (C + C2 != w->Ci)
        return err_set(e, E_ARG, "conv '%s': x %s%s%s has %" PRId64 " channels, weights take %" PRId64, w->name,
                       tensor_text(x, text, sizeof text), x2 ? " and " : "",
                       x2 ? tensor_text(x2, text2, sizeof text2) : "", C + C2, w->Ci);
    if (s->n_term + n > MAX_TERM)
        return err_set(e, E_ARG, "conv '%s': more than %d inputs in one product", s->name, MAX_TERM);
    for (int i = 0; i < n; i++) {
        const struct tensor *h = half[i];

        if (h->n_dim != 4 || h->type != x->type || h->dim[0] != s->B || h->dim[1] != g.H || h->dim[2] != g.W)
            return err_set(e, E_ARG, "conv '%s': '%s' is %s, want %s (%" PRId64 ",%" PRId64 ",%" PRId64 ",..)", w->name,
                           op_name(h), tensor_text(h, text, sizeof text), dtype_name(x->type), s->B, g.H, g.W);
        g.Ci = op_width(h);
        s->term[s->n_term++] =
            (struct op_term){ .w = w, .x = half[i], .first = i ? C : 0, .split = x2 != NULL, .g = g };
    }
    return OK;
}

static int set_geometry(struct kgeom *out, const struct tensor *x, const struct weight *w, struct op_conv_geom g,
                        struct err *e)
{
    char text[OP_TEXT];

    *out = (struct kgeom){
        .KH = w->KH, .KW = w->KW, .stride = g.stride, .pad_t = g.pad_t, .pad_l = g.pad_l, .up = 1, .Co = w->Co
    };
    if (x->n_dim != 4)
        return err_set(e, E_ARG, "conv '%s': x is %s, want (B,H,W,C)", w->name, tensor_text(x, text, sizeof text));
    out->H = x->dim[1];
    out->W = x->dim[2];
    if ((g.stride != 1 && g.stride != 2) || g.pad_t < 0 || g.pad_l < 0 || g.pad_b < 0 || g.pad_r < 0
        || out->H + g.pad_t + g.pad_b < w->KH || out->W + g.pad_l + g.pad_r < w->KW)
        return err_set(e, E_ARG, "conv '%s': a %dx%d kernel with stride %d and padding %d,%d,%d,%d does not fit x %s",
                       w->name, w->KH, w->KW, g.stride, g.pad_t, g.pad_l, g.pad_b, g.pad_r,
                       tensor_text(x, text, sizeof text));
    out->Ho = (out->H + g.pad_t + g.pad_b - w->KH) / g.stride + 1;
    out->Wo = (out->W + g.pad_l + g.pad_r - w->KW) / g.stride + 1;
    return OK;
}

static int set_up(struct conv *s, struct tensor *x, struct tensor *x2, struct weight *w, struct op_conv_geom g,
                  const struct op_shortcut *c, const struct op_epilogue *epi, struct err *e)
{
    struct kgeom k, one;
    int rc = set_geometry(&k, x, w, g, e);

    if (rc)
        return rc;
    *s = (struct conv){
        .name = w->name, .B = x->dim[0], .bias = { w->bias, c ? c->w->bias : NULL }, .row_add = epi->row_add
    };
    rc = add_terms(s, w, x, x2, k, e);
    if (!rc && c) {
        if (c->w->Co != w->Co || c->w->KH != 1 || c->w->KW != 1 || c->x->type != x->type)
            return err_set(e, E_ARG,
                           "conv '%s': shortcut '%s' is %dx%d to %" PRId64 " channels, want 1x1 to %" PRId64 " in %s",
                           w->name, c->w->name, c->w->KH, c->w->KW, c->w->Co, w->Co, dtype_name(x->type));
        one = (struct kgeom){
            .H = k.Ho, .W = k.Wo, .Ho = k.Ho, .Wo = k.Wo, .Co = k.Co, .KH = 1, .KW = 1, .stride = 1, .up = 1
        };
        rc = add_terms(s, c->w, c->x, c->x2, one, e);
    }
    return rc ? rc : op_check_epilogue(w->name, epi, x, w->Co, e);
}

/* ---- forward ---- */

/* One bias for the kernel: that of the weights, of the shortcut, or their sum in scratch. */
static int joint_bias(struct tape *t, const struct conv *s, const float **out, struct err *e)
{
    struct tensor *a = s->bias[0], *b = s->bias[1];
    const int64_t n = s->term[0].g.Co;
    float *sum;

    *out = a ? a->data : b ? b->data : NULL;
    if (!a || !b)
        return OK;
    sum = op_scratch(t, (size_t)n * sizeof *sum, e);
    if (!sum)
        return op_code(e);
    *out = sum;
    return op_run(e, s->name, op_kern(t)->axpby(op_ctx(t), sum, 1, a->data, 1, b->data, F32, n));
}

static int run(struct tape *t, const struct conv *s, enum kact act, struct err *e)
{
    const int64_t width = op_width(s->y);
    struct kconv c = {
        .dir = K_FWD,
        .B = s->B,
        .alpha = 1,
        .row_add = s->row_add ? s->row_add->data : NULL,
        .row_add_ld = s->term[0].g.Co,
        .act = act,
        .residual = s->residual ? s->residual->data : NULL,
        .residual_ld = width,
        .y = s->y->data,
        .y_type = s->y->type,
        .ldy = width,
    };
    struct kpart part[MAX_TERM];
    int rc = joint_bias(t, s, &c.bias, e);

    for (int i = 0; i < s->n_term && !rc; i++)
        rc = op_term_part(t, &s->term[i], K_FWD, act == K_ACT_GEGLU, NULL, &part[i], e);
    return rc ? rc : op_product(t, s->name, &c, part, s->n_term, e);
}

static tape_back_fn conv_back;

static struct tensor *conv(struct tape *t, struct conv *s, const struct op_epilogue *epi, struct err *e)
{
    const size_t mark = arena_mark(&t->mem->scratch);
    const struct kgeom *g = &s->term[0].g;
    const int64_t dim[] = { s->B, g->Ho, g->Wo, epi->act == K_ACT_GEGLU ? g->Co / 2 : g->Co };
    int rc;

    s->residual = epi->residual;
    s->y = tape_out(t, s->term[0].x->type, 4, dim, e);
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
    return op_note(t, inside_wanted(t, s) || op_wants(t, s->residual), conv_back, s, sizeof *s, s->y, e);
}

struct tensor *op_conv(struct tape *t, struct tensor *x, struct tensor *x2, struct weight *w, struct op_conv_geom g,
                       const struct op_shortcut *shortcut, const struct op_epilogue *epi, struct err *e)
{
    const struct op_epilogue none = { .act = K_ACT_NONE }, *p = epi ? epi : &none;
    const struct op_epilogue plain = { .row_add = p->row_add };
    struct tensor *into = t->into;
    struct conv s;

    if (set_up(&s, x, x2, w, g, shortcut, p, e))
        return NULL;
    if (p->act == K_ACT_NONE || (!inside_wanted(t, &s) && !(p->act == K_ACT_GEGLU && any_split(&s))))
        return conv(t, &s, p, e);
    t->into = NULL;
    return op_finish(t, conv(t, &s, &plain, e), p, into, e);
}

/* Doubling is part of how the product reads its input: no larger image is made. */
struct tensor *op_upsample_conv(struct tape *t, struct tensor *x, struct weight *w, int64_t Ho, int64_t Wo,
                                struct err *e)
{
    const struct op_epilogue none = { .act = K_ACT_NONE };
    struct kgeom k;
    struct conv s;
    char text[OP_TEXT];

    if (set_geometry(&k, x, w, (struct op_conv_geom){ 1, 1, 1, 1, 1 }, e))
        return NULL;
    if (w->KH != 3 || w->KW != 3 || (Ho != 2 * k.H && Ho != 2 * k.H - 1) || (Wo != 2 * k.W && Wo != 2 * k.W - 1))
        return op_fail(e, E_ARG, "conv '%s': %s cannot be doubled to %" PRId64 "x%" PRId64 " for a %dx%d kernel",
                       w->name, tensor_text(x, text, sizeof text), Ho, Wo, w->KH, w->KW);
    k.up = 2;
    k.Ho = Ho;
    k.Wo = Wo;
    s = (struct conv){ .name = w->name, .B = x->dim[0], .bias = { w->bias } };
    if (add_terms(&s, w, x, NULL, k, e))
        return NULL;
    return conv(t, &s, &none, e);
}

/* ---- backward ---- */

/* Odd targets of the doubling: the gradient of the doubled image in scratch, then gathered by fours. */
static int odd_up_dx(struct tape *t, const struct conv *s, const struct op_term *m, struct err *e)
{
    const struct kgeom *g = &m->g;
    const struct kern *k = op_kern(t);
    struct op_term same = *m;
    struct kpart part;
    struct kconv c = { .dir = K_DX, .B = s->B, .alpha = 1, .y_type = m->x->type, .ldy = g->Ci };
    struct op_grad to;
    int rc;

    same.g.H = g->Ho;
    same.g.W = g->Wo;
    same.g.up = 1;
    rc = op_grad_open(t, &to, m->x, e);
    if (!rc)
        rc = op_term_part(t, &same, K_DX, false, s->y->grad, &part, e);
    if (rc)
        return rc;
    c.y = op_scratch(t, (size_t)(s->B * g->Ho * g->Wo * g->Ci) * dtype_bytes(m->x->type), e);
    if (!c.y)
        return op_code(e);
    rc = op_product(t, s->name, &c, &part, 1, e);
    if (!rc)
        rc = op_run(e, s->name,
                    k->nearest_back(op_ctx(t), to.to->data, c.y, m->x->type, s->B, g->H, g->W, g->Ci, g->Ho, g->Wo));
    return rc ? rc : op_grad_close(t, &to, e);
}

static int term_back(struct tape *t, const struct conv *s, const struct op_term *m, struct err *e)
{
    const struct kconv c = { .B = s->B, .alpha = 1 };
    struct kpart part;
    int rc = op_term_dw(t, m, s->B, s->y->grad, e);

    if (rc || !m->x->needs_grad)
        return rc;
    if (m->g.up == 2 && (m->g.Ho != 2 * m->g.H || m->g.Wo != 2 * m->g.W))
        return odd_up_dx(t, s, m, e);
    rc = op_term_part(t, m, K_DX, false, s->y->grad, &part, e);
    return rc ? rc : op_term_dx(t, m->x, &c, &part, 1, e);
}

static int conv_back(struct tape *t, void *saved, struct err *e)
{
    const struct conv *s = saved;
    int rc = OK;

    for (int i = 0; i < s->n_term && !rc; i++)
        rc = term_back(t, s, &s->term[i], e);
    for (int i = 0; i < 2 && !rc; i++)
        rc = op_grad_bias(t, s->bias[i], s->y->grad, e);
    return rc ? rc : op_epilogue_back(t, s->y, s->row_add, s->residual, e);
}
