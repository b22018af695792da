/* core/op/loss.c: weighted mean squared error, one number that never visits the host. */
#include "core/op/common.h"

struct mse {
    struct tensor *x, *z, *w, *mask, *y;
    int64_t B, HW, C;
};

/* Weights per image on the device: the caller's, or 1/B each in scratch. */
static const float *weights(struct tape *t, const struct mse *s, struct err *e)
{
    float *w;

    if (s->w)
        return s->w->data;
    w = op_scratch(t, (size_t)s->B * sizeof *w, e);
    if (!w || op_run(e, "mse", op_kern(t)->fill(op_ctx(t), w, F32, s->B, s->B ? 1 / (float)s->B : 0)))
        return NULL;
    return w;
}

/* The one number d_loss for each image. */
static const float *repeated(struct tape *t, const struct mse *s, struct err *e)
{
    const struct kview4 v = { .dim = { 1, 1, 1, s->B }, .stride = { 0, 0, 0, 0 } };
    float *d = op_scratch(t, (size_t)s->B * sizeof *d, e);

    if (!d || op_run(e, "mse", op_kern(t)->permute(op_ctx(t), d, s->y->grad->data, F32, &v)))
        return NULL;
    return d;
}

/* d_loss/dz is d_loss/dx with x and z exchanged. */
static int mse_back(struct tape *t, void *saved, struct err *e)
{
    const struct mse *s = saved;
    const struct kern *k = op_kern(t);
    const float *mask = s->mask ? s->mask->data : NULL, *w = weights(t, s, e), *d = w ? repeated(t, s, e) : NULL;
    struct op_grad g;
    int rc = d ? OK : op_code(e);

    for (int i = 0; i < 2 && !rc; i++) {
        struct tensor *a = i ? s->z : s->x, *b = i ? s->x : s->z;

        rc = op_grad_open(t, &g, a, e);
        if (!rc && g.to)
            rc = op_run(e, "mse",
                        k->mse_back(op_ctx(t), g.to->data, d, a->data, b->data, a->type, w, mask, s->B, s->HW, s->C));
        if (!rc)
            rc = op_grad_close(t, &g, e);
    }
    return rc;
}

/* One sum per image, then their sum. */
static int run(struct tape *t, const struct mse *s, struct err *e)
{
    const struct kern *k = op_kern(t);
    const float *mask = s->mask ? s->mask->data : NULL, *w = weights(t, s, e);
    float *image = w ? op_scratch(t, (size_t)s->B * sizeof *image, e) : NULL;
    int rc;

    if (!image)
        return op_code(e);
    rc = k->mse(op_ctx(t), image, s->x->data, s->z->data, s->x->type, w, mask, s->B, s->HW, s->C);
    if (!rc)
        rc = k->sum(op_ctx(t), s->y->data, image, F32, s->B);
    return op_run(e, "mse", rc);
}

struct tensor *op_mse(struct tape *t, struct tensor *x, struct tensor *z, struct tensor *w, struct tensor *mask,
                      struct err *e)
{
    const size_t mark = arena_mark(&t->mem->scratch);
    struct mse s = { .x = x, .z = z, .w = w, .mask = mask, .B = x->dim[0], .C = op_width(x) };
    int rc;

    if (op_check_alike("mse", x, z, e))
        return NULL;
    if (x->n_dim < 2)
        return op_fail(e, E_ARG, "mse '%s': want (B,..,C)", op_name(x));
    s.HW = s.B ? op_rows_of(x) / s.B : 0;
    if ((w && op_check_param("mse", w, s.B, e)) || (mask && op_check_param("mse", mask, s.B * s.HW, e)))
        return NULL;
    s.y = tape_out(t, F32, 1, (int64_t[]){ 1 }, e);
    if (!s.y)
        return NULL;
    if (!s.y->name)
        s.y->name = "mse";
    rc = run(t, &s, e);
    arena_release(&t->mem->scratch, mark);
    return rc ? NULL : op_note(t, op_wants(t, x) || op_wants(t, z), mse_back, &s, sizeof s, s.y, e);
}
