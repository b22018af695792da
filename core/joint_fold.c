/* core/joint_fold.c: the joint attention's way out as one product for each direction. The base's output projection with
 * its adapter, and the projection back behind it, are linear: with blocks P[to][from] of the latter
 *
 *     Px = P[x][x] (Wo[xy] ox + bo) + P[x][y] (Wo[yx] oy + bo),   Wo[a] = Wo + scale B_a A_a,
 *
 * so P[to][from] Wo[from] is one weight and the sum of P[to][from] bo its bias. `conv` has the same P for both and
 * nothing across. Products are in f32 and rounded once. */
#include "core/joint.h"

#include <string.h>

struct fold {
    struct device *dev;
    const struct weight *out, *post;        /* Wo with bo; P */
    const struct joint_term *term;          /* of `from` */
    float scale;
    bool fused;
    int to, from;
};

static int product(struct device *d, struct kctx *k, const struct kgemm *g, struct err *e)
{
    if (!d->kern->computes)
        return OK;
    return kern_cpu(NULL)->gemm(k, g) ? err_set(e, E_BUG, "folding a projection: a product failed") : OK;
}

/* Wo[from] (C,C), into the stage. */
static float *adapted(const struct fold *f, struct kctx *k, struct arena *stage, struct err *e)
{
    const int64_t C = f->out->Co, r = f->term->down.Co;
    float *o = arena_push(stage, (size_t)(C * C) * sizeof *o, e);
    float *down = o ? arena_push(stage, (size_t)(r * C) * sizeof *down, e) : NULL;
    float *up = down ? arena_push(stage, (size_t)(C * r) * sizeof *up, e) : NULL;
    const struct kgemm g = { .M = C, .N = C, .K = r, .n = 1, .a = up, .b = down, .c = o, .a_type = F32, .b_type = F32,
                             .c_type = F32, .lda = r, .ldb = C, .ldc = C, .alpha = f->scale, .beta = 1 };

    if (!up || weight_values(f->out, o, e) || weight_values(&f->term->down, down, e)
        || weight_values(&f->term->up, up, e) || product(f->dev, k, &g, e))
        return NULL;
    return o;
}

/* Sums in double: few and long. P has rows of `ld`. */
static int fold_bias(const struct fold *f, const float *P, int64_t ld, struct tensor *out, struct arena *stage,
                     struct err *e)
{
    const int64_t C = f->out->Co;
    const float *row = P + f->to * f->fused * C * ld;
    float *bo = arena_push(stage, (size_t)C * sizeof *bo, e);
    float *bias = bo ? arena_push(stage, (size_t)C * sizeof *bias, e) : NULL;

    if (!bias || device_get(f->dev, bo, f->out->bias->data, (size_t)C * sizeof *bo, e))
        return e->code;
    if (!f->dev->kern->computes)
        return OK;
    for (int64_t i = 0; i < C; i++) {
        double sum = 0;

        for (int64_t j = 0; j < ld; j++)
            sum += (double)row[i * ld + j] * (double)bo[j % C];
        bias[i] = (float)sum;
    }
    return device_put(f->dev, out->data, bias, (size_t)C * sizeof *bias, e);
}

static int fold(const struct weight *w, void *dst, struct err *e)
{
    const struct fold *f = w->origin;
    const int64_t C = w->Co, ld = f->post->Ci;
    const size_t mark = arena_mark(w->stage), per_thread = kern_cpu(NULL)->scratch_bytes;
    struct kctx k = { .n_threads = f->dev->n_threads, .scratch_bytes = per_thread };
    float *o, *P = NULL, *y = NULL;
    int rc;

    k.scratch = arena_push(w->stage, (size_t)k.n_threads * per_thread, e);
    o = k.scratch ? adapted(f, &k, w->stage, e) : NULL;
    if (o && (P = arena_push(w->stage, (size_t)(ld * ld) * sizeof *P, e)))
        y = arena_push(w->stage, (size_t)(C * C) * sizeof *y, e);
    rc = y ? weight_values(f->post, P, e) : e->code;
    if (!rc) {
        const struct kgemm g = { .M = C, .N = C, .K = C, .n = 1, .a = P + f->fused * (f->to * C * ld + f->from * C),
                                 .b = o, .c = y, .a_type = F32, .b_type = F32, .c_type = F32, .lda = ld, .ldb = C,
                                 .ldc = C, .alpha = 1 };

        rc = product(f->dev, &k, &g, e);
    }
    if (!rc && f->dev->kern->computes)
        dtype_from_f32(dst, w->pack_type, y, C * C);
    if (!rc && w->bias)
        rc = fold_bias(f, P, ld, w->bias, w->stage, e);
    arena_release(w->stage, mark);
    return rc ? err_in(e, "folding '%s'", w->name) : OK;
}

static int bind_one(struct joint *j, int block, struct weight *out, int to, int from, const struct layers *l,
                    struct err *e)
{
    struct joint_block *b = &j->block[block];
    struct fold *f = arena_push(&l->mem->meta, sizeof *f, e);
    const int64_t C = out->Co;

    if (!f)
        return e->code;
    *f = (struct fold){ l->dev, out, &b->post, from ? &b->yx[JOINT_O] : &b->xy[JOINT_O], j->scale,
                        j->kind == JOINT_CONV_FUSE, to, from };
    b->out[to][from] = (struct weight){ .name = b->post.name, .Co = C, .Ci = C, .KH = 1, .KW = 1, .pack_type = l->type,
                                        .arena = &l->mem->model, .fetch = fold, .origin = f,
                                        .stage = &l->mem->stage };
    if (to == from && !(b->out[to][from].bias = tensor_new(&l->mem->meta, &l->mem->model, F32, 1, &C, e)))
        return e->code;
    return weight_init_fetched(&b->out[to][from], e);
}

int joint_fold(struct joint *j, const struct joint_place *place, int n, const struct layers *l, struct err *e)
{
    int rc = OK;

    for (int i = 0; i < n; i++)
        for (int to = 0; to < 2 && j->block[i].has_post; to++)
            for (int from = 0; from < 2 && !rc; from++)
                if (j->kind == JOINT_CONV_FUSE || to == from)
                    rc = bind_one(j, i, place[i].out, to, from, l, e);
    return rc;
}
