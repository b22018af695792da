/* core/tensor.c: sizes are checked here, once, so that products of them need no check elsewhere. */
#include "core/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const int64_t max_count = (int64_t)1 << 62;

const char *dtype_name(enum dtype t)
{
    static const char *const names[N_DTYPE] = { "f32", "f16", "bf16" };

    return (unsigned)t < N_DTYPE ? names[t] : "?";
}

int64_t tensor_count(const struct tensor *x)
{
    int64_t n = 1;

    for (int i = 0; i < x->n_dim; i++)
        n *= x->dim[i];
    return n;
}

size_t tensor_bytes(const struct tensor *x)
{
    return (size_t)tensor_count(x) * dtype_bytes(x->type);
}

bool tensor_same_shape(const struct tensor *a, const struct tensor *b)
{
    return a->n_dim == b->n_dim && !memcmp(a->dim, b->dim, sizeof *a->dim * (size_t)a->n_dim);
}

static const char *shape_text(int n_dim, const int64_t *dim, char *buf, size_t size)
{
    size_t n = (size_t)snprintf(buf, size, "(");

    for (int i = 0; i < n_dim && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%" PRId64, i ? "," : "", dim[i]);
    if (n < size)
        snprintf(buf + n, size - n, ")");
    return buf;
}

const char *tensor_text(const struct tensor *x, char *buf, size_t size)
{
    const size_t n = (size_t)snprintf(buf, size, "%s ", dtype_name(x->type));

    if (n < size)
        shape_text(x->n_dim, x->dim, buf + n, size - n);
    return buf;
}

/* 0 in one dimension does not excuse the others: partial products are formed from them. */
static int check_sizes(enum dtype type, int n_dim, const int64_t *dim, struct err *e)
{
    int64_t n = (int64_t)dtype_bytes(type);
    char text[128];

    if ((unsigned)type >= N_DTYPE)
        return err_set(e, E_ARG, "a tensor of an unknown type (%d)", (int)type);
    if (n_dim < 0 || n_dim > TENSOR_MAX_DIM)
        return err_set(e, E_ARG, "a tensor of %d dimensions; 0 to %d are possible", n_dim, TENSOR_MAX_DIM);
    for (int i = 0; i < n_dim; i++) {
        if (dim[i] < 0)
            return err_set(e, E_ARG, "a tensor of size %s", shape_text(n_dim, dim, text, sizeof text));
        if (dim[i] > 0 && n > max_count / dim[i])
            return err_set(e, E_ARG, "a tensor of size %s is too large", shape_text(n_dim, dim, text, sizeof text));
        n *= dim[i] > 0 ? dim[i] : 1;
    }
    return OK;
}

static struct tensor *make(struct arena *meta, enum dtype type, int n_dim, const int64_t *dim, struct err *e)
{
    struct tensor *x;

    if (check_sizes(type, n_dim, dim, e))
        return NULL;
    x = arena_push_zero(meta, sizeof *x, e);
    if (!x)
        return NULL;
    x->type = type;
    x->n_dim = n_dim;
    if (n_dim)
        memcpy(x->dim, dim, sizeof *dim * (size_t)n_dim);
    return x;
}

struct tensor *tensor_new(struct arena *meta, struct arena *data, enum dtype type, int n_dim, const int64_t *dim,
                          struct err *e)
{
    const size_t mark = arena_mark(meta);
    struct tensor *x = make(meta, type, n_dim, dim, e);

    if (!x)
        return NULL;
    x->data = arena_push(data, tensor_bytes(x), e);
    if (!x->data) {
        arena_release(meta, mark);
        return NULL;
    }
    return x;
}

struct tensor *tensor_wrap(struct arena *meta, void *mem, enum dtype type, int n_dim, const int64_t *dim,
                           struct err *e)
{
    struct tensor *x = make(meta, type, n_dim, dim, e);

    if (x)
        x->data = mem;
    return x;
}

struct tensor *tensor_view(struct arena *meta, const struct tensor *x, int n_dim, const int64_t *dim,
                           struct err *e)
{
    const size_t mark = arena_mark(meta);
    struct tensor *v = make(meta, x->type, n_dim, dim, e);
    char have[128], want[128];

    if (!v)
        return NULL;
    if (tensor_count(v) != tensor_count(x)) {
        err_set(e, E_ARG, "'%s' is %s and cannot be seen as %s", x->name ? x->name : "a tensor",
                tensor_text(x, have, sizeof have), shape_text(n_dim, dim, want, sizeof want));
        arena_release(meta, mark);
        return NULL;
    }
    v->data = x->data;
    v->name = x->name;
    return v;
}

/* The portable twin's cast: the same bits on every machine, subnormal numbers included. */
static void convert(void *dst, enum dtype dst_type, const void *src, enum dtype src_type, int64_t n)
{
    const struct kern *kern = kern_cpu("portable");
    struct kctx one = { .n_threads = 1 };

    kern->cast(&one, dst, dst_type, src, src_type, n);
}

void dtype_to_f32(float *dst, const void *src, enum dtype type, int64_t n)
{
    convert(dst, F32, src, type, n);
}

void dtype_from_f32(void *dst, enum dtype type, const float *src, int64_t n)
{
    convert(dst, type, src, F32, n);
}
