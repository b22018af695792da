/* store/torch_pickle.c: three layouts of torch.save, one table.
 *
 *   zip     NAME/data.pkl, the objects     NAME/data/KEY, the numbers of a storage
 *   plain   five pickles in a row: a magic number, 1001, facts of the machine, the objects, the keys of the storages;
 *           then for every key int64 n and n elements, at any alignment
 *   tar     before 2017: refused                                                                                */
#include "store/torch_pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/torch_zip.h"
#include "store/unpickle.h"

static const size_t scratch_cap = (size_t)1 << 30;     /* address space; every table in it has its own limit */

enum {
    MAX_PICKLE = 64 << 20,
    MAX_ENTRIES = 1 << 18,
    MAX_DEPTH = 32,
    MAX_KEY = 64,
    TAR_MARK = 257,
    MAX_STEPS = 1 << 26
};

/* The magic number as protocol 2 and later write it, and as 0 and 1 do. */
static const char magic[] = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", magic_text[] = "119547037146038801333356";

struct reader {
    struct arena scratch, *meta;
    struct unpickler p;
    const unsigned char *bytes;
    size_t size;
    struct weights_entry *entry;        /* in scratch while it grows */
    uint32_t n_entry, cap_entry;
    int64_t n_step;                     /* of the walk through dicts */
    char name[WEIGHTS_MAX_NAME + 1];    /* of the place in the tree */
};

static bool begins(const unsigned char *bytes, size_t size, size_t at, const void *mark, size_t n)
{
    return size >= at + n && !memcmp(bytes + at, mark, n);
}

static bool is_zip(const unsigned char *bytes, size_t size)
{
    return begins(bytes, size, 0, "PK\3\4", 4) || begins(bytes, size, 0, "PK\5\6", 4);
}

static bool is_tar(const unsigned char *bytes, size_t size)
{
    return begins(bytes, size, TAR_MARK, "ustar", 5);
}

/* LONG1 of the magic number after the protocol's number, from 4 on also after a frame's length; or its digits. */
static bool is_plain(const unsigned char *bytes, size_t size)
{
    const size_t frame = size > 2 && bytes[2] == 0x95 ? 9 : 0;

    if (begins(bytes, size, 0, "L", 1))
        return begins(bytes, size, 1, magic_text, sizeof magic_text - 1);
    return begins(bytes, size, 0, "\x80", 1) && begins(bytes, size, 2 + frame, "\x8a\x0a", 2)
        && begins(bytes, size, 4 + frame, magic, sizeof magic - 1);
}

bool torch_pickle_looks(const unsigned char *bytes, size_t size)
{
    return is_zip(bytes, size) || is_tar(bytes, size) || is_plain(bytes, size);
}

/* ---- where the numbers lie ---- */

/* The one entry "NAME/data.pkl" without a slash in NAME; its name's bytes up to and with the slash. */
static int find_objects(const struct zip *z, const struct zip_entry **out, size_t *stem, struct err *e)
{
    static const char tail[] = "/data.pkl";
    const size_t n = sizeof tail - 1;

    *out = NULL;
    for (uint32_t i = 0; i < z->n; i++) {
        const struct zip_entry *f = &z->entry[i];
        if (f->name_bytes <= n || memcmp(f->name + f->name_bytes - n, tail, n)
            || memchr(f->name, '/', f->name_bytes - n))
            continue;
        if (*out)
            return err_set(e, E_FORMAT, "there are two data.pkl in the zip file");
        *out = f;
        *stem = f->name_bytes - n + 1;
    }
    return *out ? OK : err_set(e, E_FORMAT, "the zip file is none of torch.save: it has no data.pkl");
}

/* NAME/data/KEY of every storage. */
static int place_zip(struct reader *r, const struct zip *z, const char *stem, size_t n, struct err *e)
{
    static const char folder[] = "data/";
    const size_t mark = arena_mark(&r->scratch);
    char *name = arena_push(&r->scratch, n + sizeof folder + MAX_KEY, e);
    struct zip_span span;
    int rc = name ? OK : E_NOMEM;

    if (name) {
        memcpy(name, stem, n);
        memcpy(name + n, folder, sizeof folder - 1);
        n += sizeof folder - 1;
    }
    for (uint32_t i = 0; i < r->p.n_storage && !rc; i++) {
        struct pickle_storage *s = &r->p.storage[i];
        if (s->key_bytes > MAX_KEY) {
            rc = err_set(e, E_FORMAT, "the key of a storage has %" PRIu32 " bytes", s->key_bytes);
            break;
        }
        memcpy(name + n, s->key, s->key_bytes);
        rc = zip_find(&span, z, name, n + s->key_bytes, e);
        if (!rc && (uint64_t)s->n > span.bytes / (uint64_t)s->element_bytes)
            rc = err_set(e, E_FORMAT, "storage '%.*s' should have %" PRId64 " elements of %s, it has %zu bytes",
                         (int)s->key_bytes, s->key, s->n, s->type_name, span.bytes);
        if (!rc) {
            s->data = span.data;
            s->bytes = (size_t)(s->n * s->element_bytes);
        }
    }
    arena_release(&r->scratch, mark);
    return rc == E_NONE ? e->code = E_FORMAT : rc;
}

static int check_order(const struct zip *z, const char *stem, size_t n, struct err *e)
{
    char name[256];
    struct zip_span span;

    if (n + 9 > sizeof name)
        return OK;
    memcpy(name, stem, n);
    memcpy(name + n, "byteorder", 9);
    if (zip_find(&span, z, name, n + 9, NULL) || !begins(span.data, span.bytes, 0, "big", 3))
        return OK;
    return err_set(e, E_FORMAT, "its numbers are big-endian");
}

static int read_zip(struct reader *r, uint32_t *top, struct err *e)
{
    const struct zip_entry *f;
    struct zip_span span;
    struct zip z;
    size_t stem = 0;

    if (zip_open(&z, &r->scratch, r->bytes, r->size, e) || find_objects(&z, &f, &stem, e)
        || zip_find(&span, &z, f->name, f->name_bytes, e) || check_order(&z, f->name, stem, e))
        return e->code;
    if (span.bytes > MAX_PICKLE)
        return err_set(e, E_FORMAT, "data.pkl has %zu bytes; %d are allowed", span.bytes, MAX_PICKLE);
    if (unpickle(&r->p, top, span.data, span.bytes, e))
        return e->code;
    return place_zip(r, &z, f->name, stem, e);
}

static int by_key(const void *a, const void *b)
{
    const struct pickle_storage *p = *(struct pickle_storage *const *)a, *q = *(struct pickle_storage *const *)b;
    const uint32_t n = p->key_bytes < q->key_bytes ? p->key_bytes : q->key_bytes;
    const int c = n ? memcmp(p->key, q->key, n) : 0;

    return c ? c : (p->key_bytes > q->key_bytes) - (p->key_bytes < q->key_bytes);
}

/* Numbers of the key's storage at bytes + *at, which moves on; all the storages with that key are shown them. */
static int place_plain(struct reader *r, struct pickle_storage **order, struct pickle_storage *key, size_t *at,
                       struct err *e)
{
    struct pickle_storage **found = bsearch(&key, order, r->p.n_storage, sizeof key, by_key), **end, *s;
    uint64_t n = 0, bytes;

    if (!found)
        return err_set(e, E_FORMAT, "storage '%.*s' belongs to no tensor", (int)key->key_bytes, key->key);
    if (r->size - *at < 8)
        return err_set(e, E_FORMAT, "it ends before storage '%.*s'", (int)key->key_bytes, key->key);
    for (int i = 7; i >= 0; i--)
        n = n << 8 | r->bytes[*at + (size_t)i];
    *at += 8;
    for (end = found + 1; end < order + r->p.n_storage && !by_key(end, &key); end++)
        ;
    while (found > order && !by_key(found - 1, &key))
        found--;
    s = *found;
    if (n > (r->size - *at) / (uint64_t)s->element_bytes)
        return err_set(e, E_FORMAT, "storage '%.*s' has %" PRIu64 " elements of %s, more than the file",
                       (int)s->key_bytes, s->key, n, s->type_name);
    bytes = n * (uint64_t)s->element_bytes;
    for (; found < end; found++) {
        if ((*found)->data)
            return err_set(e, E_FORMAT, "storage '%.*s' comes twice", (int)s->key_bytes, s->key);
        if ((*found)->element_bytes != s->element_bytes || (uint64_t)(*found)->n != n)
            return err_set(e, E_FORMAT, "storage '%.*s' has %" PRIu64 " elements of %s in one place, %" PRId64
                           " of %s in another", (int)s->key_bytes, s->key, n, s->type_name, (*found)->n,
                           (*found)->type_name);
        (*found)->data = r->bytes + *at;
        (*found)->bytes = (size_t)bytes;
    }
    *at += (size_t)bytes;
    return OK;
}

static int place_all_plain(struct reader *r, uint32_t keys, size_t at, struct err *e)
{
    const uint32_t n = r->p.n_storage;
    struct pickle_storage **order;
    int rc = OK;

    if (r->p.value[keys].kind != P_LIST)
        return err_set(e, E_FORMAT, "there is no list of the storages");
    order = arena_push(&r->scratch, n * sizeof(*order), e);
    if (!order)
        return E_NOMEM;
    for (uint32_t i = 0; i < n; i++)
        order[i] = &r->p.storage[i];
    if (n > 1)
        qsort(order, n, sizeof(*order), by_key);
    for (uint32_t c = r->p.value[keys].first; c && !rc; c = r->p.cell[c].next) {
        const struct pickle_value *v = &r->p.value[r->p.cell[c].value];
        struct pickle_storage key = { .key = v->text, .key_bytes = (uint32_t)v->n };
        if (v->kind != P_STR || v->n > MAX_KEY)
            rc = err_set(e, E_FORMAT, "the key of a storage is no text, or is too long");
        else
            rc = place_plain(r, order, &key, &at, e);
    }
    return rc;
}

/* What the third pickle says about the machine: {'little_endian': True, ..} */
static bool is_big_endian(const struct unpickler *p, uint32_t facts)
{
    if (p->value[facts].kind != P_DICT)
        return false;
    for (uint32_t c = p->value[facts].first; c; c = p->cell[p->cell[c].next].next)
        if (unpickle_is(p, p->cell[c].value, "little_endian"))
            return p->cell[p->cell[c].next].value == V_FALSE;
    return false;
}

static int read_plain(struct reader *r, uint32_t *top, struct err *e)
{
    static const char *const part[] = { "its magic number", "its version", "its machine", "its objects",
                                        "its storages" };
    uint32_t v[5];
    size_t at = 0, left;

    for (int i = 0; i < 5; i++) {
        left = r->size - at < MAX_PICKLE ? r->size - at : MAX_PICKLE;
        if (unpickle(&r->p, &v[i], r->bytes + at, left, e))
            return err_in(e, "%s", part[i]);
        at = (size_t)(r->p.at - r->bytes);
    }
    if (r->p.value[v[1]].kind != P_INT || r->p.value[v[1]].n != 1001)
        return err_set(e, E_FORMAT, "it is of a version of torch.save that is not known; 1001 is");
    if (is_big_endian(&r->p, v[2]))
        return err_set(e, E_FORMAT, "its numbers are big-endian");
    *top = v[3];
    return place_all_plain(r, v[4], at, e);
}

/* ---- the table ---- */

static int add_tensor(struct reader *r, const struct pickle_value *t, struct err *e)
{
    const struct pickle_storage *s = &r->p.storage[t->of];
    struct weights_entry *more = unpickle_grow(&r->p, r->entry, &r->cap_entry, r->n_entry, sizeof *more, e), *w;
    const size_t size = stored_bytes(t->what), n = strlen(r->name) + 1;
    size_t skip = 0, bytes = s->bytes;
    char *name;

    if (!more)
        return e->code;
    r->entry = more;
    if (r->n_entry == MAX_ENTRIES)
        return err_set(e, E_FORMAT, "there are more than %d tensors", MAX_ENTRIES);
    if (!size)
        return err_set(e, E_FORMAT, "tensor '%s' is made of %s, which is not known here", r->name, s->type_name);
    if (!s->data)
        return err_set(e, E_FORMAT, "tensor '%s': its storage '%.*s' is not in the file", r->name, (int)s->key_bytes,
                       s->key);
    if (s->view_n >= 0) {
        skip = (size_t)(s->view_at * s->element_bytes);
        bytes = (size_t)(s->view_n * s->element_bytes);
    }
    if (t->n < 0 || (uint64_t)t->n > bytes / size)
        return err_set(e, E_FORMAT, "tensor '%s' begins at element %" PRId64 " of a storage of %zu bytes", r->name,
                       t->n, bytes);
    skip += (size_t)t->n * size;
    bytes -= (size_t)t->n * size;
    w = &r->entry[r->n_entry];
    *w = (struct weights_entry){ .name = r->name, .type = t->what, .data = s->data + skip };
    w->n_dim = (int)r->p.value[t->first].n;
    for (int i = 0; i < w->n_dim; i++) {
        w->dim[i] = r->p.value[unpickle_item(&r->p, t->first, i)].n;
        w->stride[i] = r->p.value[unpickle_item(&r->p, t->last, i)].n;
    }
    if (weights_check(w, bytes, e))
        return E_FORMAT;
    name = arena_push(r->meta, n, e);
    if (!name)
        return e->code;
    w->name = memcpy(name, r->name, n);
    r->n_entry++;
    return OK;
}

static bool is_key(const struct pickle_value *key)
{
    return key->kind == P_STR || key->kind == P_INT;
}

/* Put a dict's key behind the name's first `at` bytes; *end: the new length. */
static int put_key(struct reader *r, const struct pickle_value *key, size_t at, size_t *end, struct err *e)
{
    const size_t dot = at > 0;
    char number[24];
    const char *text = key->text;
    size_t n = (size_t)key->n;

    if (key->kind == P_INT) {
        n = (size_t)snprintf(number, sizeof number, "%" PRId64, key->n);
        text = number;
    }
    if (memchr(text, 0, n))
        return err_set(e, E_FORMAT, "a key has a zero byte in it");
    if (at + dot > WEIGHTS_MAX_NAME || n > WEIGHTS_MAX_NAME - at - dot)
        return err_set(e, E_FORMAT, "the names of nested dicts are longer than %d bytes: '%.60s..'", WEIGHTS_MAX_NAME,
                       r->name);
    if (dot)
        r->name[at] = '.';
    memcpy(r->name + at + dot, text, n);
    *end = at + dot + n;
    r->name[*end] = '\0';
    return OK;
}

/* Tensors under a dict, names behind the first `at` bytes of r->name. Dicts may be shared, so that a short pickle can
 * have a tree without end: the steps are counted. */
static int walk(struct reader *r, uint32_t dict, size_t at, int depth, struct err *e)
{
    size_t end = at;
    int rc = OK;

    if (r->p.value[dict].open)
        return err_set(e, E_FORMAT, "the dict '%.80s' holds itself", r->name);
    if (depth == MAX_DEPTH)
        return err_set(e, E_FORMAT, "dicts are nested deeper than %d: '%.80s'", MAX_DEPTH, r->name);
    r->p.value[dict].open = true;
    for (uint32_t c = r->p.value[dict].first; c && !rc; c = r->p.cell[r->p.cell[c].next].next) {
        const uint32_t key = r->p.cell[c].value, v = r->p.cell[r->p.cell[c].next].value;
        const enum pickle_kind kind = r->p.value[v].kind;
        if (r->n_step++ == MAX_STEPS)
            return err_set(e, E_FORMAT, "the tree of dicts has more than %d places", MAX_STEPS);
        if ((kind != P_TENSOR && kind != P_DICT) || !is_key(&r->p.value[key]))
            continue;
        rc = put_key(r, &r->p.value[key], at, &end, e);
        if (!rc && kind == P_TENSOR)
            rc = add_tensor(r, &r->p.value[v], e);
        else if (!rc)
            rc = walk(r, v, depth == 0 && unpickle_is(&r->p, key, "state_dict") ? 0 : end, depth + 1, e);
    }
    r->p.value[dict].open = false;
    return rc;
}

static int make_table(struct reader *r, uint32_t top, struct weights *out, struct err *e)
{
    struct weights table = { 0 };
    int rc;

    if (r->p.value[top].kind != P_DICT)
        return err_set(e, E_FORMAT, "it holds %s, not a dict of tensors",
                       r->p.value[top].kind == P_TENSOR ? "one tensor" : r->p.value[top].kind == P_LIST ? "a list"
                       : r->p.value[top].kind == P_OTHER ? "an object with code of its own" : "something else");
    rc = walk(r, top, 0, 0, e);
    if (rc)
        return rc;
    table.n = (int)r->n_entry;
    table.entry = arena_push(r->meta, r->n_entry * sizeof *table.entry, e);
    if (!table.entry)
        return e->code;
    if (r->n_entry)
        memcpy(table.entry, r->entry, r->n_entry * sizeof *table.entry);
    rc = weights_sort(&table, e);
    if (!rc)
        *out = table;
    return rc;
}

int torch_pickle_parse(struct weights *out, struct arena *meta, const unsigned char *bytes, size_t size, struct err *e)
{
    struct reader r = { .meta = meta, .bytes = bytes, .size = size };
    const size_t mark = arena_mark(meta);
    struct err mine;
    uint32_t top = V_NONE;
    int rc;

    e = e ? e : &mine;
    if (is_tar(bytes, size))
        return err_set(e, E_FORMAT,
                       "a tar file of torch.save from before 2017; a newer torch has to load it and save it"
                       " again");
    if (!torch_pickle_looks(bytes, size))
        return err_set(e, E_FORMAT, "it is no file of torch.save");
    rc = arena_init(&r.scratch, "pickle", ARENA_HOST, scratch_cap, e);
    if (rc)
        return rc;
    r.p.arena = &r.scratch;
    rc = is_zip(bytes, size) ? read_zip(&r, &top, e) : read_plain(&r, &top, e);
    if (!rc)
        rc = make_table(&r, top, out, e);
    arena_free(&r.scratch);
    if (rc)
        arena_release(meta, mark);
    return rc;
}
