/* core/op/resample.c: images (B,H,W,C) to other sizes. */
#include "core/op/common.h"

struct resample {
    struct tensor *x, *y;
    bool linear, align_corners;
};

static int resample_back(struct tape *t, void *saved, struct err *e)
{
    const struct resample *s = saved;
    const struct kern *k = op_kern(t);
    const int64_t *x = s->x->dim, *y = s->y->dim;
    const void *dy = s->y->grad->data;
    struct op_grad g;
    int rc = op_grad_open(t, &g, s->x, e);

    if (rc)
        return rc;
    if (s->linear)
        rc = k->bilinear_back(op_ctx(t), g.to->data, dy, s->x->type, x[0], x[1], x[2], x[3], y[1], y[2],
                              s->align_corners);
    else
        rc = k->nearest_back(op_ctx(t), g.to->data, dy, s->x->type, x[0], x[1], x[2], x[3], y[1], y[2]);
    rc = op_run(e, op_name(s->x), rc);
    return rc ? rc : op_grad_close(t, &g, e);
}

static struct tensor *resample(struct tape *t, struct resample s, int64_t Ho, int64_t Wo, struct err *e)
{
    const struct kern *k = op_kern(t);
    const struct tensor *x = s.x;
    const int64_t *d = x->dim;
    char text[OP_TEXT];
    int rc;

    if (x->n_dim != 4 || Ho < 0 || Wo < 0 || (Ho > 0 && Wo > 0 && (d[1] < 1 || d[2] < 1)))
        return op_fail(e, E_ARG, "resample '%s': %s to %" PRId64 "x%" PRId64, op_name(x),
                       tensor_text(x, text, sizeof text), Ho, Wo);
    s.y = tape_out(t, x->type, 4, (int64_t[]){ d[0], Ho, Wo, d[3] }, e);
    if (!s.y)
        return NULL;
    if (s.linear)
        rc = k->bilinear(op_ctx(t), s.y->data, x->data, x->type, d[0], d[1], d[2], d[3], Ho, Wo, s.align_corners);
    else
        rc = k->nearest(op_ctx(t), s.y->data, x->data, x->type, d[0], d[1], d[2], d[3], Ho, Wo);
    if (op_run(e, op_name(x), rc))
        return NULL;
    return op_note(t, op_wants(t, x), resample_back, &s, sizeof s, s.y, e);
}

struct tensor *op_nearest(struct tape *t, struct tensor *x, int64_t Ho, int64_t Wo, struct err *e)
{
    return resample(t, (struct resample){ .x = x }, Ho, Wo, e);
}

struct tensor *op_bilinear(struct tape *t, struct tensor *x, int64_t Ho, int64_t Wo, bool align_corners, struct err *e)
{
    return resample(t, (struct resample){ .x = x, .linear = true, .align_corners = align_corners }, Ho, Wo, e);
}
