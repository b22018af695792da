#include "store/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "store/aside.h"
#include "store/strict_json.h"

enum { SIZE_BYTES = 8, MAX_HEADER = 100000000, MAX_DEPTH = 8, MAX_VALUES = 4 << 20, MAX_ITEMS = 1 << 20 };

static uint64_t get_u64(const unsigned char *p)
{
    uint64_t n = 0;

    for (int i = SIZE_BYTES - 1; i >= 0; i--)
        n = n << 8 | p[i];
    return n;
}

bool safetensors_looks(const unsigned char *bytes, size_t size)
{
    return size > SIZE_BYTES && get_u64(bytes) <= MAX_HEADER && bytes[SIZE_BYTES] == '{';
}

/* ---- reading ---- */

/* The bytes after the header, and where each tensor lies in them. */
struct span {
    uint64_t begin, end;
    const char *name;
};

struct reader {
    struct arena *meta;
    const unsigned char *data;
    size_t data_bytes;
    struct weights table;
    struct span *span;
};

static char *keep(struct arena *meta, const char *text, struct err *e)
{
    const size_t n = strlen(text) + 1;
    char *copy = arena_push(meta, n, e);

    return copy ? memcpy(copy, text, n) : NULL;
}

static int read_type(enum stored_type *out, const char *name, const json_t *text, struct err *e)
{
    if (!json_is_string(text))
        return err_set(e, E_FORMAT, "tensor '%s' has no dtype", name);
    for (int t = 0; t < N_STORED; t++)
        if (!strcmp(json_string_value(text), stored_name(t))) {
            *out = t;
            return OK;
        }
    return err_set(e, E_FORMAT, "tensor '%s' has dtype '%.40s', which is not known here", name,
                   json_string_value(text));
}

/* Whole numbers >= 0, at most max of them; the number of them, or E_FORMAT. */
static int read_counts(int64_t *out, const char *name, const char *what, const json_t *list, int max, struct err *e)
{
    const size_t n = json_array_size(list);         /* 0 if it is no list */

    if (!json_is_array(list) || n > (size_t)max)
        return err_set(e, E_FORMAT, "tensor '%s': %s has to be a list of at most %d numbers", name, what, max);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return err_set(e, E_FORMAT, "tensor '%s': %s has to be whole numbers from 0 on", name, what);
        out[i] = json_integer_value(v);
    }
    return (int)n;
}

static int read_tensor(struct reader *r, const char *name, const json_t *item, struct err *e)
{
    struct weights_entry *w = &r->table.entry[r->table.n];
    struct span *s = &r->span[r->table.n];
    int64_t at[2], n;

    if (!json_is_object(item) || json_object_size(item) != 3)
        return err_set(e, E_FORMAT, "tensor '%.200s' has to be described by dtype, shape and data_offsets", name);
    memset(w, 0, sizeof *w);
    w->name = keep(r->meta, name, e);
    if (!w->name)
        return e->code;
    if (read_type(&w->type, w->name, json_object_get(item, "dtype"), e))
        return E_FORMAT;
    w->n_dim = read_counts(w->dim, w->name, "shape", json_object_get(item, "shape"), WEIGHTS_MAX_DIM, e);
    if (w->n_dim < 0)
        return E_FORMAT;
    n = read_counts(at, w->name, "data_offsets", json_object_get(item, "data_offsets"), 2, e);
    if (n != 2)
        return n < 0 ? E_FORMAT : err_set(e, E_FORMAT, "tensor '%s': data_offsets has to be two numbers", w->name);
    *s = (struct span){ (uint64_t)at[0], (uint64_t)at[1], w->name };
    if (s->begin > s->end || s->end > r->data_bytes)
        return err_set(e, E_FORMAT, "tensor '%s' lies at %" PRIu64 " to %" PRIu64 ", the file has %zu bytes of data",
                       w->name, s->begin, s->end, r->data_bytes);
    w->data = r->data + s->begin;
    n = 1;
    for (int i = w->n_dim - 1; i >= 0; i--) {
        w->stride[i] = n;
        if (w->dim[i] && __builtin_mul_overflow(n, w->dim[i], &n))
            return err_set(e, E_FORMAT, "tensor '%s' is too large", w->name);
    }
    if (weights_check(w, (size_t)(s->end - s->begin), e))
        return E_FORMAT;
    if ((uint64_t)weights_count(w) * stored_bytes(w->type) != s->end - s->begin)
        return err_set(e, E_FORMAT, "tensor '%s' has %" PRId64 " elements of %s in %" PRIu64 " bytes", w->name,
                       weights_count(w), stored_name(w->type), s->end - s->begin);
    r->table.n++;
    return OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct span *p = a, *q = b;

    return (p->begin > q->begin) - (p->begin < q->begin);
}

static int check_overlaps(struct span *s, int n, struct err *e)
{
    int kept = 0;

    for (int i = 0; i < n; i++)
        if (s[i].begin < s[i].end)          /* an empty tensor overlaps nothing */
            s[kept++] = s[i];
    qsort(s, (size_t)kept, sizeof *s, by_begin);
    for (int i = 1; i < kept; i++)
        if (s[i].begin < s[i - 1].end)
            return err_set(e, E_FORMAT, "tensors '%s' and '%s' overlap", s[i - 1].name, s[i].name);
    return OK;
}

static int read_metadata(const char **out, struct arena *meta, json_t *item, struct err *e)
{
    const char *key;
    json_t *value;
    char *text;

    if (!json_is_object(item))
        return err_set(e, E_FORMAT, "__metadata__ has to be an object");
    json_object_foreach(item, key, value)
        if (!json_is_string(value))
            return err_set(e, E_FORMAT, "__metadata__ '%.80s' has to be a string", key);
    text = json_dumps(item, JSON_COMPACT);
    if (!text)
        return err_set(e, E_NOMEM, "out of memory for __metadata__");
    *out = keep(meta, text, e);
    free(text);
    return *out ? OK : e->code;
}

static int read_header(struct reader *r, json_t *top, const char **metadata, struct err *e)
{
    const size_t most = json_object_size(top);
    const char *key;
    json_t *item;
    size_t mark;
    int rc = OK;

    r->table.entry = arena_push(r->meta, most * sizeof *r->table.entry, e);
    r->span = arena_fault_now() ? NULL : malloc(most * sizeof *r->span + 1);
    if (!r->table.entry || !r->span)
        return r->table.entry ? err_set(e, E_NOMEM, "out of memory for %zu tensors", most) : e->code;
    json_object_foreach(top, key, item) {
        mark = arena_mark(r->meta);
        rc = strcmp(key, "__metadata__") ? read_tensor(r, key, item, e) : read_metadata(metadata, r->meta, item, e);
        if (rc) {
            arena_release(r->meta, mark);
            return rc;
        }
    }
    rc = check_overlaps(r->span, r->table.n, e);
    return rc ? rc : weights_sort(&r->table, e);
}

int safetensors_parse(struct weights *out, struct arena *meta, const unsigned char *bytes, size_t size,
                      const char **metadata, struct err *e)
{
    struct reader r = { .meta = meta };
    const size_t mark = arena_mark(meta);
    const char *text = NULL;
    json_t *top = NULL;
    struct err mine;
    uint64_t n;
    int rc;

    e = e ? e : &mine;
    if (size < SIZE_BYTES)
        return err_set(e, E_FORMAT, "a safetensors file of %zu bytes has no header", size);
    n = get_u64(bytes);
    if (n > MAX_HEADER || n > size - SIZE_BYTES)
        return err_set(e, E_FORMAT,
                       "the safetensors header says that it has %" PRIu64 " bytes; %zu are left, %d allowed", n,
                       size - SIZE_BYTES, MAX_HEADER);
    r.data = bytes + SIZE_BYTES + n;
    r.data_bytes = size - SIZE_BYTES - (size_t)n;
    rc = strict_json(&top, (const char *)bytes + SIZE_BYTES, (size_t)n, MAX_DEPTH, MAX_VALUES, e);
    if (rc)
        return err_in(e, "safetensors header");
    rc = read_header(&r, top, &text, e);
    json_decref(top);
    free(r.span);
    if (rc) {
        arena_release(meta, mark);
        return rc;
    }
    *out = r.table;
    if (metadata)
        *metadata = text;
    return OK;
}

/* ---- writing ---- */

/* Larger element types first, so that every tensor lies on a multiple of its element; then by name. */
static int by_size_then_name(const void *a, const void *b)
{
    const struct safetensors_item *p = *(const struct safetensors_item *const *)a;
    const struct safetensors_item *q = *(const struct safetensors_item *const *)b;
    const size_t m = stored_bytes(p->type), n = stored_bytes(q->type);

    return m != n ? (m < n) - (m > n) : strcmp(p->name, q->name);
}

/* "name": {"dtype": .., "shape": [..], "data_offsets": [..]} at *at, which moves on */
static int describe(json_t *top, const struct safetensors_item *item, uint64_t *at, struct err *e)
{
    struct weights_entry w = { .name = item->name, .type = item->type, .n_dim = item->n_dim };
    json_t *shape, *o;
    uint64_t bytes;

    if (item->n_dim >= 0 && item->n_dim <= WEIGHTS_MAX_DIM)
        memcpy(w.dim, item->dim, sizeof w.dim);
    if (weights_check(&w, SIZE_MAX, e))
        return e->code = E_ARG;
    bytes = (uint64_t)weights_count(&w) * stored_bytes(w.type);
    if (bytes > INT64_MAX - *at)
        return err_set(e, E_ARG, "tensor '%s' is too large beside the others", w.name);
    if (!strcmp(w.name, "__metadata__") || json_object_get(top, w.name))
        return err_set(e, E_ARG, "tensor '%s' is there twice, or that name is taken", w.name);
    shape = json_array();
    for (int i = 0; i < w.n_dim; i++)
        json_array_append_new(shape, json_integer(w.dim[i]));
    o = json_pack("{s:s, s:o, s:[I,I]}", "dtype", stored_name(w.type), "shape", shape, "data_offsets", (json_int_t)*at,
                  (json_int_t)(*at + bytes));
    *at += bytes;
    if (!o || json_array_size(shape) != (size_t)w.n_dim || json_object_set_new(top, w.name, o))
        return err_set(e, E_NOMEM, "out of memory for the header");
    return OK;
}

static int add_metadata(json_t *top, const char *const *metadata, struct err *e)
{
    json_t *o = json_pack("{s:s}", "format", "pt");

    if (!o || json_object_set_new(top, "__metadata__", o))
        return err_set(e, E_NOMEM, "out of memory for the header");
    for (; metadata && metadata[0]; metadata += 2)
        if (!metadata[1] || json_object_set_new(o, metadata[0], json_string(metadata[1])))
            return err_set(e, E_ARG, "the metadata '%s' is not text in UTF-8", metadata[0]);
    return OK;
}

static int write_header(FILE *file, const json_t *top, struct err *e)
{
    char *text = json_dumps(top, JSON_COMPACT);
    const size_t n = text ? strlen(text) : 0, padded = (n + 7) / 8 * 8;
    int rc = OK;

    if (!text)
        return err_set(e, E_NOMEM, "out of memory for the header");
    if (padded > MAX_HEADER)
        rc = err_set(e, E_ARG, "the header would have %zu bytes; %d are allowed", padded, MAX_HEADER);
    for (int i = 0; i < SIZE_BYTES; i++)
        putc((int)((uint64_t)padded >> 8 * i & 0xFF), file);
    fwrite(text, 1, n, file);
    for (size_t i = n; i < padded; i++)
        putc(' ', file);
    free(text);
    return rc;
}

/* The order in the file, and the header's text as an object. */
static int plan(const struct safetensors_item **order, json_t *top, const struct safetensors_item *item, int n,
                const char *const *metadata, struct err *e)
{
    uint64_t at = 0;
    int rc;

    for (int i = 0; i < n; i++) {
        order[i] = &item[i];
        if (!item[i].name)
            return err_set(e, E_ARG, "tensor %d has no name", i);
    }
    qsort(order, (size_t)n, sizeof *order, by_size_then_name);
    rc = add_metadata(top, metadata, e);
    for (int i = 0; i < n && !rc; i++)
        rc = describe(top, order[i], &at, e);
    return rc;
}

static int write_all(const char *path, const struct safetensors_item *const *item, int n, const json_t *top,
                     struct err *e)
{
    struct aside a;
    int rc = aside_open(&a, path, e);

    if (rc)
        return rc;
    rc = write_header(a.file, top, e);
    for (int i = 0; i < n && !rc; i++) {
        size_t bytes = stored_bytes(item[i]->type);
        for (int d = 0; d < item[i]->n_dim; d++)
            bytes *= (size_t)item[i]->dim[d];
        aside_put(&a, item[i]->data, bytes);
    }
    if (!rc)
        rc = aside_commit(&a, e);
    aside_abandon(&a);
    return rc;
}

int safetensors_write(const char *path, const struct safetensors_item *item, int n, const char *const *metadata,
                      struct err *e)
{
    const struct safetensors_item **order = NULL;
    struct err mine;
    json_t *top = NULL;
    int rc;

    e = e ? e : &mine;
    if (n < 0 || n > MAX_ITEMS)
        return err_set(e, E_ARG, "'%s': %d tensors; 0 to %d can be written", path, n, MAX_ITEMS);
    top = json_object();
    order = arena_fault_now() ? NULL : malloc(sizeof(*order) * (size_t)n + 1);
    if (top && order)
        rc = plan(order, top, item, n, metadata, e);
    else
        rc = err_set(e, E_NOMEM, "out of memory for %d tensors", n);
    if (rc)
        err_in(e, "writing '%s'", path);
    else
        rc = write_all(path, order, n, top, e);
    json_decref(top);
    free(order);
    return rc;
}
