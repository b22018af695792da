/* core/layer.c: names to parameters. What a file gets wrong is collected, so that one message tells it all. */
#include "core/layer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 256, CHUNK_BYTES = 4 << 20 };

/* Where a product's weights come from: kept in meta for as long as they may be packed. */
struct origin {
    struct device *dev;
    const struct weights *table;
    const struct weights_entry *entry;
    const struct lora_set *lora;
    enum lora_part part;
};

int model_memory_init(struct model_memory *m, const struct device *dev, size_t model_cap, struct err *e)
{
    const enum arena_place stage = dev->kern->computes ? ARENA_HOST : ARENA_NULL;
    int rc;

    memset(m, 0, sizeof *m);
    rc = arena_init(&m->meta, "model meta", ARENA_HOST, (size_t)64 << 20, e);
    rc = rc ? rc : arena_init(&m->model, "model", dev->place, model_cap ? model_cap : (size_t)64 << 30, e);
    rc = rc ? rc : arena_init(&m->stage, "stage", stage, (size_t)4 << 30, e);
    if (rc)
        model_memory_free(m);
    return rc;
}

void model_memory_free(struct model_memory *m)
{
    arena_free(&m->stage);
    arena_free(&m->model);
    arena_free(&m->meta);
}

void layers_init(struct layers *l, struct device *dev, enum dtype type, struct model_memory *mem,
                 const struct weights *weights)
{
    *l = (struct layers){ .dev = dev, .type = type, .mem = mem, .weights = weights };
    for (int i = 0; weights && i < weights->n; i++)
        weights->entry[i].used = false;
}

/* ---- what is wrong ---- */

static void add_text(char *buf, size_t size, const char *text)
{
    const size_t n = strlen(buf);

    if (n + strlen(text) + 8 < size)
        snprintf(buf + n, size - n, "%s%s", n ? ", " : "", text);
    else if (n + 6 < size && (n < 3 || strcmp(buf + n - 3, "...")))
        snprintf(buf + n, size - n, ", ...");
}

static bool failed(const struct layers *l) { return l->failed.code != OK; }

/* A copy of prefix + suffix in meta. */
static const char *keep_name(struct layers *l, const char *prefix, const char *suffix)
{
    const size_t n = strlen(prefix), m = strlen(suffix);
    char *p = arena_push(&l->mem->meta, n + m + 1, &l->failed);

    if (!p)
        return NULL;
    memcpy(p, prefix, n);
    memcpy(p + n, suffix, m + 1);
    return p;
}

/* Has the entry these sizes? Sizes of 1 at the end may be left out or added: a linear layer is a 1x1 convolution. */
static bool has_shape(const struct weights_entry *w, int n_dim, const int64_t *dim)
{
    const int most = w->n_dim > n_dim ? w->n_dim : n_dim;

    for (int i = 0; i < most; i++)
        if ((i < w->n_dim ? w->dim[i] : 1) != (i < n_dim ? dim[i] : 1))
            return false;
    return true;
}

static struct weights_entry *find(struct layers *l, const char *name, int n_dim, const int64_t *dim)
{
    struct weights_entry *w = weights_get(l->weights, name);
    char have[128], line[512];
    size_t n;

    if (!w) {
        l->n_missing++;
        add_text(l->missing, sizeof l->missing, name);
        return NULL;
    }
    w->used = true;
    if (has_shape(w, n_dim, dim))
        return w;
    n = (size_t)snprintf(line, sizeof line, "%s is %s, want (", name, weights_text(w, have, sizeof have));
    for (int i = 0; i < n_dim && n < sizeof line; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, "%s%" PRId64, i ? "," : "", dim[i]);
    if (n < sizeof line)
        snprintf(line + n, sizeof line - n, ")");
    l->n_bad++;
    add_text(l->bad, sizeof l->bad, line);
    return NULL;
}

/* ---- vectors: read now ---- */

static int read_vector(struct layers *l, const struct weights_entry *w, struct tensor *x)
{
    const size_t mark = arena_mark(&l->mem->stage);
    void *values = x->data;
    int rc;

    if (l->dev->place != ARENA_HOST)
        values = arena_push(&l->mem->stage, tensor_bytes(x), &l->failed);
    rc = values ? weights_read(w, values, F32, &l->failed) : l->failed.code;
    if (!rc && values != x->data)
        rc = device_put(l->dev, x->data, values, tensor_bytes(x), &l->failed);
    arena_release(&l->mem->stage, mark);
    return rc;
}

static struct tensor *vector(struct layers *l, int64_t n, const char *prefix, const char *suffix)
{
    const char *name = keep_name(l, prefix, suffix);
    struct weights_entry *w = NULL;
    struct tensor *x;

    if (!name || (l->weights && !(w = find(l, name, 1, &n))))
        return NULL;
    x = tensor_new(&l->mem->meta, &l->mem->model, F32, 1, &n, &l->failed);
    if (!x)
        return NULL;
    x->name = name;
    if (l->dev->kern->computes && read_vector(l, w, x)) {
        err_in(&l->failed, "reading '%s'", name);
        return NULL;
    }
    return x;
}

/* ---- weights of products: read when they are packed ---- */

/* (n,Ci,KHKW) to (n,KHKW,Ci) */
static int turn(struct device *d, void *dst, const void *src, enum dtype type, int64_t n, int64_t Ci, int64_t taps)
{
    const struct kview4 v = { { 1, n, taps, Ci }, { 0, Ci * taps, 1, taps } };

    if (!d->kern->computes)
        return OK;
    return kern_cpu(NULL)->permute(&(struct kctx){ .n_threads = d->n_threads }, dst, src, type, &v) ? E_BUG : OK;
}

/* Rows [first, first + n) in the file's order, as `type`; by the kernels' casts where values lie dense and aligned. */
static int read_rows(const struct weight *w, const struct origin *o, int64_t first, int64_t n, void *dst,
                     enum dtype type, struct err *e)
{
    static const enum dtype plain[] = { [STORED_F32] = F32, [STORED_F16] = F16, [STORED_BF16] = BF16 };
    const struct weights_entry *s = o->entry;
    const int64_t row = w->Ci * w->KH * w->KW;
    const char *src;

    if (!o->dev->kern->computes)
        return OK;
    if (s->type > STORED_BF16 || !weights_is_dense(s) || (uintptr_t)s->data % stored_bytes(s->type))
        return weights_read_rows(s, first, n, dst, type, e);
    src = (const char *)s->data + (size_t)(first * row) * stored_bytes(s->type);
    return kern_cpu(NULL)->cast(&(struct kctx){ .n_threads = o->dev->n_threads }, dst, type, src, plain[s->type],
                                n * row) ? err_set(e, E_BUG, "'%s' cannot be cast", w->name) : OK;
}

/* Values with what LoRA adds: summed in f32, then rounded once. */
static int fetch_changed(const struct weight *w, const struct origin *o, void *dst, struct err *e)
{
    const int64_t taps = w->KH * w->KW, n = w->Co * w->Ci * taps;
    float *sum = arena_push(w->stage, (size_t)n * sizeof *sum, e), *turned = sum;
    int rc = sum ? read_rows(w, o, 0, w->Co, sum, F32, e) : e->code;

    if (!rc)
        rc = lora_add(o->lora, o->part, o->entry->name, sum, w->Co, w->Ci * taps, w->stage, e);
    if (!rc && taps > 1) {
        turned = arena_push(w->stage, (size_t)n * sizeof *turned, e);
        rc = turned ? turn(o->dev, turned, sum, F32, w->Co, w->Ci, taps) : e->code;
    }
    if (!rc && o->dev->kern->computes)
        dtype_from_f32(dst, w->pack_type, turned, n);
    return rc;
}

/* A convolution's rows pass through a small block that turns OIHW into OHWI. */
static int fetch_turned(const struct weight *w, const struct origin *o, void *dst, struct err *e)
{
    const int64_t taps = w->KH * w->KW, row = w->Ci * taps, bytes = row * (int64_t)dtype_bytes(w->pack_type);
    const int64_t fit = bytes < CHUNK_BYTES ? CHUNK_BYTES / (bytes ? bytes : 1) : 1, most = fit < w->Co ? fit : w->Co;
    void *block = arena_push(w->stage, (size_t)(most * bytes), e);
    int rc = block ? OK : e->code;

    for (int64_t at = 0; at < w->Co && !rc; at += most) {
        const int64_t n = w->Co - at < most ? w->Co - at : most;

        rc = read_rows(w, o, at, n, block, w->pack_type, e);
        if (!rc)
            rc = turn(o->dev, (char *)dst + at * bytes, block, w->pack_type, n, w->Ci, taps);
    }
    return rc;
}

/* On the null device everything is asked for and nothing is read: staging is part of what a run takes. */
static int fetch(const struct weight *w, void *dst, struct err *e)
{
    const struct origin *o = w->origin;
    const size_t mark = arena_mark(w->stage);
    int rc;

    if (o->lora && o->entry && lora_changes(o->lora, o->part, o->entry->name))
        rc = fetch_changed(w, o, dst, e);
    else if (w->KH * w->KW > 1)
        rc = fetch_turned(w, o, dst, e);
    else
        rc = read_rows(w, o, 0, w->Co, dst, w->pack_type, e);
    arena_release(w->stage, mark);
    if (o->dev->kern->computes)
        weights_drop(o->table, o->entry);
    return rc ? err_in(e, "reading '%s'", w->name) : OK;
}

/* Raw values in `model`, for those who want gradients. */
static int keep_raw(struct layers *l, struct weight *w)
{
    const int64_t d4[] = { w->Co, w->KH, w->KW, w->Ci }, d2[] = { w->Co, w->Ci };
    const bool wide = w->KH * w->KW > 1;
    struct weight fetched = *w;
    struct tensor *raw =
        tensor_new(&l->mem->meta, &l->mem->model, l->type, wide ? 4 : 2, wide ? d4 : d2, &l->failed);

    if (!raw)
        return l->failed.code;
    if (l->dev->place == ARENA_CUDA)
        return err_set(&l->failed, E_DEVICE, "'%s': weights are kept for gradients on the processor only", w->name);
    if (l->dev->kern->computes && fetch(&fetched, raw->data, &l->failed))
        return l->failed.code;
    raw->name = w->name;
    return weight_init(w, w->name, raw, w->bias, w->arena, &l->failed);
}

static void product(struct layers *l, struct weight *w, int64_t Co, int K, int64_t Ci, bool bias, const char *prefix)
{
    const int64_t dim[] = { Co, Ci, K, K };
    const char *name = keep_name(l, prefix, ".weight");
    struct origin *o = arena_push(&l->mem->meta, sizeof *o, &l->failed);

    memset(w, 0, sizeof *w);
    if (!name || !o)
        return;
    *o = (struct origin){ l->dev, l->weights, NULL, l->lora, l->part };
    if (l->weights && !(o->entry = find(l, name, K > 1 ? 4 : 2, dim)))
        o = NULL;                       /* go on: a missing bias is told too */
    *w = (struct weight){ .name = name, .bias = bias ? vector(l, Co, prefix, ".bias") : NULL, .Co = Co, .Ci = Ci,
                          .KH = K, .KW = K, .pack_type = l->type, .arena = &l->mem->model, .fetch = fetch,
                          .origin = o, .stage = &l->mem->stage };
    if (!o || failed(l) || (bias && !w->bias) || weight_init_fetched(w, &l->failed))
        return;
    if (l->keep_raw)
        keep_raw(l, w);
}

#define NAME_FROM(l, buf, fmt)                                                                     \
    do {                                                                                           \
        va_list ap;                                                                                \
        va_start(ap, fmt);                                                                         \
        if (vsnprintf(buf, sizeof buf, fmt, ap) >= (int)sizeof buf && !failed(l))                  \
            err_set(&(l)->failed, E_BUG, "the name of a layer is too long: '%s..'", buf);          \
        va_end(ap);                                                                                \
    } while (0)

void layer_linear(struct layers *l, struct weight *w, int64_t Co, int64_t Ci, bool bias, const char *fmt, ...)
{
    char prefix[MAX_NAME];

    NAME_FROM(l, prefix, fmt);
    if (!failed(l))
        product(l, w, Co, 1, Ci, bias, prefix);
}

void layer_conv(struct layers *l, struct weight *w, int64_t Co, int K, int64_t Ci, bool bias, const char *fmt, ...)
{
    char prefix[MAX_NAME];

    NAME_FROM(l, prefix, fmt);
    if (!failed(l))
        product(l, w, Co, K, Ci, bias, prefix);
}

void layer_norm(struct layers *l, struct norm *n, int64_t C, const char *fmt, ...)
{
    char prefix[MAX_NAME];

    *n = (struct norm){ 0 };
    NAME_FROM(l, prefix, fmt);
    if (failed(l))
        return;
    n->gamma = vector(l, C, prefix, ".weight");
    n->beta = failed(l) ? NULL : vector(l, C, prefix, ".bias");
}

struct weights_entry *layer_table(struct layers *l, int64_t rows, int64_t D, const char *fmt, ...)
{
    char prefix[MAX_NAME];
    const char *name;

    NAME_FROM(l, prefix, fmt);
    if (failed(l) || !l->weights)
        return NULL;
    name = keep_name(l, prefix, ".weight");
    return name ? find(l, name, 2, (int64_t[]){ rows, D }) : NULL;
}

int layers_done(struct layers *l, const char *model, bool (*ignore)(const char *name), struct err *e)
{
    char extra[200] = "";
    int n_extra = 0;

    for (int i = 0; l->weights && i < l->weights->n; i++) {
        const struct weights_entry *w = &l->weights->entry[i];

        if (!w->used && !(ignore && ignore(w->name))) {
            n_extra++;
            add_text(extra, sizeof extra, w->name);
        }
    }
    if (failed(l)) {
        if (e)
            *e = l->failed;
        return err_in(e, "loading the %s", model);
    }
    if (l->n_bad)
        return err_set(e, E_FORMAT, "the weights do not fit the %s: %s", model, l->bad);
    if (l->n_missing)
        return err_set(e, E_FORMAT, "the %s lacks %d tensor%s: %.200s%s%s", model, l->n_missing,
                       l->n_missing > 1 ? "s" : "", l->missing, n_extra ? "; and these are unknown: " : "", extra);
    if (n_extra)
        return err_set(e, E_FORMAT, "the weights hold %d tensor%s that the %s does not know: %s", n_extra,
                       n_extra > 1 ? "s" : "", model, extra);
    return OK;
}
