/* core/tape.c: the tape's memory, its notes, and where gradients go.
 *
 * A gradient lives in the pool from the first contribution to the end of the note that made its tensor; a leaf's
 * stays. The structs of gradients are in `meta` and stay until tape_reset, also those made while a segment is run
 * again: they are what outlives it. */
#include "core/tape.h"

#include "core/op/op.h"

/* A gradient in x's type for a leaf that keeps it in f32: added to the leaf's after the note that made it. */
struct tape_owed {
    struct tape_owed *before;
    struct tensor *leaf, *grad;
};

static int code_of(const struct err *e) { return e && e->code ? e->code : E_NOMEM; }

static const char *name_of(const struct tensor *x) { return x->name ? x->name : "unnamed tensor"; }

/* ---- memory ---- */

int tape_memory_init(struct tape_memory *m, const struct device *d, const struct tape_caps *caps, struct err *e)
{
    int rc;

    memset(m, 0, sizeof *m);
    rc = arena_init(&m->meta, "meta", ARENA_HOST, caps->meta, e);
    if (!rc)
        rc = arena_init(&m->step, "step", d->place, caps->step, e);
    if (!rc)
        rc = arena_init(&m->grad_arena, "gradients", d->place, caps->grads, e);
    if (!rc)
        rc = arena_init(&m->scratch, "scratch", d->place, caps->scratch, e);
    if (!rc)
        rc = pool_init(&m->grads, &m->grad_arena, e);
    if (rc)
        tape_memory_free(m);
    return rc;
}

void tape_memory_free(struct tape_memory *m)
{
    pool_free(&m->grads);
    arena_free(&m->scratch);
    arena_free(&m->grad_arena);
    arena_free(&m->step);
    arena_free(&m->meta);
}

size_t tape_peak_bytes(const struct tape_memory *m)
{
    return arena_high(&m->step) + arena_high(&m->grad_arena) + arena_high(&m->scratch);
}

void tape_init(struct tape *t, struct device *d, struct tape_memory *m) { *t = (struct tape){ .dev = d, .mem = m }; }

void tape_reset(struct tape *t)
{
    t->last = NULL;
    t->into = t->result = NULL;
    t->forgetting = t->keeping = false;
    t->owed = NULL;
    arena_release(&t->mem->meta, 0);
    arena_release(&t->mem->step, 0);
    arena_release(&t->mem->scratch, 0);
    pool_reset(&t->mem->grads);
}

/* ---- results ---- */

struct tensor *tape_new(struct tape *t, enum dtype type, int n_dim, const int64_t *dim, struct err *e)
{
    return tensor_new(&t->mem->meta, &t->mem->step, type, n_dim, dim, e);
}

struct tensor *tape_like(struct tape *t, const struct tensor *x, struct err *e)
{
    return tape_new(t, x->type, x->n_dim, x->dim, e);
}

void tape_into(struct tape *t, struct tensor *y) { t->into = y; }

struct tensor *tape_out(struct tape *t, enum dtype type, int n_dim, const int64_t *dim, struct err *e)
{
    struct tensor *y = t->into, want = { .type = type, .n_dim = n_dim };
    char have_text[96], want_text[96];

    t->into = NULL;
    if (!y)
        return tape_new(t, type, n_dim, dim, e);
    for (int i = 0; i < n_dim && i < TENSOR_MAX_DIM; i++)
        want.dim[i] = dim[i];
    if (y->type == type && tensor_same_shape(y, &want))
        return y;
    return op_fail(e, E_ARG, "the result is %s, the place set for it '%s' %s",
                   tensor_text(&want, want_text, sizeof want_text), name_of(y),
                   tensor_text(y, have_text, sizeof have_text));
}

struct tape_mark tape_mark(const struct tape *t)
{
    return (struct tape_mark){ arena_mark(&t->mem->meta), arena_mark(&t->mem->step) };
}

static void release(struct tape *t, struct tape_mark m)
{
    arena_release(&t->mem->meta, m.meta);
    arena_release(&t->mem->step, m.step);
}

/* What was noted since the mark needs what lies above it, even if recording has ended meanwhile. */
void tape_release(struct tape *t, struct tape_mark m)
{
    const bool noted = t->last && (char *)t->last >= t->mem->meta.base + m.meta;

    if (!noted && !t->keeping && (!t->recording || t->forgetting))
        release(t, m);
}

/* ---- notes ---- */

void tape_watch(struct tensor *x, struct tensor *grad)
{
    x->needs_grad = true;
    x->grad = grad;
    x->grad_is_leaf = true;
}

void *tape_save(struct tape *t, size_t bytes, struct err *e) { return arena_push_zero(&t->mem->meta, bytes, e); }

struct tensor *tape_note(struct tape *t, tape_back_fn *back, void *saved, struct tensor *y, struct err *e)
{
    struct tape_note *n;

    if (y->needs_grad && !y->grad_is_leaf)
        return op_fail(e, E_BUG, "'%s' is written twice while recording", name_of(y));
    if (!t->forgetting) {
        n = tape_save(t, sizeof *n, e);
        if (!n)
            return NULL;
        *n = (struct tape_note){ .before = t->last, .back = back, .saved = saved, .out = y };
        t->last = n;
    }
    y->needs_grad = true;
    return y;
}

/* ---- gradients ---- */

static struct tensor *pool_tensor(struct tape *t, const struct tensor *like, enum dtype type, struct err *e)
{
    void *mem = pool_take(&t->mem->grads, (size_t)tensor_count(like) * dtype_bytes(type), e);
    struct tensor *g = mem ? tensor_wrap(&t->mem->meta, mem, type, like->n_dim, like->dim, e) : NULL;

    if (mem && !g)
        pool_give(&t->mem->grads, mem);
    if (g)
        g->name = like->name;
    return g;
}

/* dst = src, or dst += src; as many elements. Only a plain copy may change the type. */
static int put(struct tape *t, struct tensor *dst, bool add, const struct tensor *src, struct err *e)
{
    const struct kern *k = t->dev->kern;
    const int64_t n = tensor_count(dst);

    if (add)
        return op_run(e, name_of(dst), k->axpby(&t->dev->ctx, dst->data, 1, dst->data, 1, src->data, dst->type, n));
    return op_run(e, name_of(dst), k->cast(&t->dev->ctx, dst->data, dst->type, src->data, src->type, n));
}

/* The gradient owed to x in x's own type, made if there is none. */
static struct tensor *owe(struct tape *t, struct tensor *x, bool *accumulate, struct err *e)
{
    struct tape_owed *o = t->owed;

    while (o && o->leaf != x)
        o = o->before;
    *accumulate = o != NULL;
    if (o)
        return o->grad;
    o = tape_save(t, sizeof *o, e);
    if (!o)
        return NULL;
    o->leaf = x;
    o->grad = pool_tensor(t, x, x->type, e);
    if (!o->grad)
        return NULL;
    o->before = t->owed;
    t->owed = o;
    return o->grad;
}

/* Pay what is owed: widened in scratch, added to the leaf. */
static int settle(struct tape *t, struct err *e)
{
    int rc = OK;

    for (; t->owed && !rc; t->owed = t->owed->before) {
        struct tensor *leaf = t->owed->leaf, *g = t->owed->grad;
        const size_t mark = arena_mark(&t->mem->scratch);
        struct tensor *wide = tensor_new(&t->mem->meta, &t->mem->scratch, F32, g->n_dim, g->dim, e);

        rc = wide ? put(t, wide, false, g, e) : code_of(e);
        if (!rc)
            rc = put(t, leaf->grad, true, wide, e);
        arena_release(&t->mem->scratch, mark);
        pool_give(&t->mem->grads, g->data);
    }
    return rc;
}

static struct tensor *grad_of_type(struct tape *t, struct tensor *x, enum dtype type, bool *accumulate, struct err *e)
{
    char have[96], want[96];

    if (e)
        err_clear(e);
    if (!x->needs_grad)
        return NULL;
    *accumulate = x->grad != NULL;
    if (!x->grad)
        return x->grad = pool_tensor(t, x, type, e);
    if (tensor_count(x->grad) == tensor_count(x) && x->grad->type == type)
        return x->grad;
    if (tensor_count(x->grad) == tensor_count(x) && x->grad->type == F32)
        return owe(t, x, accumulate, e);
    return op_fail(e, E_ARG, "the gradient of '%s' %s cannot be kept in %s", name_of(x),
                   tensor_text(x, want, sizeof want), tensor_text(x->grad, have, sizeof have));
}

struct tensor *tape_grad(struct tape *t, struct tensor *x, bool *accumulate, struct err *e)
{
    return grad_of_type(t, x, x->type, accumulate, e);
}

struct tensor *tape_grad_f32(struct tape *t, struct tensor *x, bool *accumulate, struct err *e)
{
    return grad_of_type(t, x, F32, accumulate, e);
}

int tape_grad_add(struct tape *t, struct tensor *x, const struct tensor *d, struct err *e)
{
    bool accumulate;
    struct tensor *g;

    if (!x->needs_grad)
        return OK;
    g = tape_grad(t, x, &accumulate, e);
    return g ? put(t, g, accumulate, d, e) : code_of(e);
}

int tape_grad_move(struct tape *t, struct tensor *x, struct tensor *y, struct err *e)
{
    if (!x->needs_grad || !y->grad)
        return OK;
    if (x->grad)
        return tape_grad_add(t, x, y->grad, e);
    x->grad = tensor_wrap(&t->mem->meta, y->grad->data, x->type, x->n_dim, x->dim, e);
    if (!x->grad)
        return code_of(e);
    y->grad = NULL;
    return OK;
}

/* ---- backward ---- */

/* Run one note and give its gradient back. If the caller watches the result, the note works on a copy. */
static int run_note(struct tape *t, const struct tape_note *n, struct err *e)
{
    struct tensor *y = n->out, *kept = NULL;
    const size_t mark = arena_mark(&t->mem->scratch);
    int rc = OK;

    if (!y->grad)
        return OK;
    if (y->grad_is_leaf) {
        kept = y->grad;
        y->grad = pool_tensor(t, y, y->type, e);
        rc = y->grad ? put(t, y->grad, false, kept, e) : code_of(e);
    }
    if (!rc)
        rc = n->back(t, n->saved, e);
    if (!rc)
        rc = settle(t, e);
    arena_release(&t->mem->scratch, mark);
    if (y->grad)
        pool_give(&t->mem->grads, y->grad->data);
    y->grad = kept;
    return rc;
}

static int run_notes(struct tape *t, struct err *e)
{
    int rc = OK;

    while (t->last && !rc) {
        const struct tape_note *n = t->last;

        t->last = n->before;
        rc = run_note(t, n, e);
    }
    return rc;
}

static int seed_gradient(struct tape *t, struct tensor *y, struct tensor *seed, struct err *e)
{
    const struct kern *k = t->dev->kern;
    bool accumulate;
    struct tensor *g;
    int rc;

    if (seed)
        return tape_grad_add(t, y, seed, e);
    g = tape_grad(t, y, &accumulate, e);
    if (!g)
        return code_of(e);
    if (accumulate)
        rc = k->axpby(&t->dev->ctx, g->data, 1, g->data, 1, NULL, g->type, tensor_count(g));
    else
        rc = k->fill(&t->dev->ctx, g->data, g->type, tensor_count(g), 1);
    return op_run(e, "seed of the backward pass", rc);
}

int tape_backward(struct tape *t, struct tensor *y, struct tensor *seed, struct err *e)
{
    const bool recording = t->recording;
    char have[96], want[96];
    int rc;

    if (!y->needs_grad)
        return err_set(e, E_ARG, "backward: '%s' does not depend on anything that is watched", name_of(y));
    if (seed && (seed->type != y->type || tensor_count(seed) != tensor_count(y)))
        return err_set(e, E_ARG, "backward: the seed is %s, '%s' is %s", tensor_text(seed, have, sizeof have),
                       name_of(y), tensor_text(y, want, sizeof want));
    t->recording = false;
    rc = seed_gradient(t, y, seed, e);
    if (!rc)
        rc = settle(t, e);
    if (!rc)
        rc = run_notes(t, e);
    t->recording = recording;
    t->last = NULL;
    return rc;
}

/* ---- checkpointed segments ---- */

struct segment {
    tape_segment_fn *fn;
    void *ctx;
    struct tensor *in[TAPE_MAX_SEGMENT_IN], *y;
    int n_in;
};

/* Run fn again with a list of notes of its own, and that list backward. Its activations go; what it has added to
 * gradients outside stays, for that is in the pool. */
static int segment_back(struct tape *t, void *saved, struct err *e)
{
    struct segment *s = saved;
    struct tape_note *outer = t->last;
    const size_t mark = arena_mark(&t->mem->step);
    struct tensor *r;
    int rc;

    t->last = NULL;
    t->recording = true;
    r = s->fn(t, s->ctx, s->in, s->n_in, e);
    t->recording = false;
    t->into = NULL;
    rc = r ? tape_grad_move(t, r, s->y, e) : code_of(e);
    if (!rc)
        rc = settle(t, e);
    if (!rc)
        rc = run_notes(t, e);
    t->last = outer;
    arena_release(&t->mem->step, mark);
    return rc;
}

/* The forward run, without notes: fn's result in y. *needs_grad: gradients flow through the segment. */
static int segment_run(struct tape *t, struct segment *s, bool *needs_grad, struct err *e)
{
    const bool forgetting = t->forgetting;
    struct tensor *outer = t->result, *r;
    char have[96], want[96];

    t->forgetting = true;
    t->result = s->y;
    r = s->fn(t, s->ctx, s->in, s->n_in, e);
    t->forgetting = forgetting;
    t->result = outer;
    t->into = NULL;
    if (!r)
        return code_of(e);
    if (r->type != s->y->type || tensor_count(r) != tensor_count(s->y))
        return err_set(e, E_ARG, "segment: the result is %s, promised was %s", tensor_text(r, have, sizeof have),
                       tensor_text(s->y, want, sizeof want));
    *needs_grad = t->recording && r->needs_grad;
    if (!s->y->grad_is_leaf)
        s->y->needs_grad = false;
    return r->data == s->y->data ? OK : put(t, s->y, false, r, e);
}

struct tensor *tape_segment(struct tape *t, tape_segment_fn *fn, void *ctx, struct tensor **in, int n_in,
                            struct tensor *result_like, struct err *e)
{
    struct segment *s;
    struct tape_mark m;
    bool needs_grad = false;
    int rc;

    if (n_in < 0 || n_in > TAPE_MAX_SEGMENT_IN)
        return op_fail(e, E_ARG, "segment: %d inputs, at most %d", n_in, TAPE_MAX_SEGMENT_IN);
    s = tape_save(t, sizeof *s, e);
    if (!s)
        return NULL;
    *s = (struct segment){ .fn = fn, .ctx = ctx, .n_in = n_in };
    for (int i = 0; i < n_in; i++)
        s->in[i] = in[i];
    s->y = tape_out(t, result_like->type, result_like->n_dim, result_like->dim, e);
    if (!s->y)
        return NULL;
    m = tape_mark(t);
    rc = segment_run(t, s, &needs_grad, e);
    release(t, m);
    if (rc)
        return NULL;
    return needs_grad ? tape_note(t, segment_back, s, s->y, e) : s->y;
}
