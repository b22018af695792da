#include "store/weights_file.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "store/safetensors.h"
#include "store/strict_json.h"
#include "store/torch_pickle.h"

static const size_t meta_cap = (size_t)2 << 30;        /* address space: the readers limit what they put there */

enum { MAX_INDEX = 64 << 20, MAX_INDEX_DEPTH = 8, MAX_INDEX_VALUES = 4 << 20, MAX_FILE_NAME = 255 };

/* The file that holds these pages. */
static void drop(void *ctx, const void *data, size_t bytes)
{
    const struct weights_file *f = ctx;
    const uintptr_t at = (uintptr_t)data;

    for (int i = 0; i < f->n_map; i++)
        if (at - (uintptr_t)f->map[i].base < f->map[i].size)
            map_drop(&f->map[i], data, bytes);
}

static int parse(struct weights *out, struct weights_file *f, const struct map *m, struct err *e)
{
    const char *metadata = NULL;
    int rc;

    if (safetensors_looks(m->base, m->size)) {
        rc = safetensors_parse(out, &f->meta, m->base, m->size, &metadata, e);
    } else if (torch_pickle_looks(m->base, m->size)) {
        map_scattered(m, true);                 /* every storage has a header of its own in front of it */
        rc = torch_pickle_parse(out, &f->meta, m->base, m->size, e);
        map_scattered(m, false);
    } else {
        rc = err_set(e, E_FORMAT, "neither safetensors nor a file of torch.save");
    }
    f->metadata = f->metadata ? f->metadata : metadata;
    return rc;
}

/* ---- shards ---- */

static bool is_index(const struct map *m)
{
    size_t i = 0;

    while (i < m->size && isspace(m->base[i]))
        i++;
    return i < m->size && m->base[i] == '{';
}

/* A file of the same directory: nothing that leads elsewhere, nothing hidden. */
static bool is_plain_name(const char *name)
{
    const size_t n = strlen(name);

    if (!n || n > MAX_FILE_NAME || name[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7F || name[i] == '/')
            return false;
    return true;
}

static int open_shard(struct weights *out, struct weights_file *f, const char *index, const char *name, struct err *e)
{
    const char *slash = strrchr(index, '/');
    const size_t dir = slash ? (size_t)(slash - index) + 1 : 0, size = dir + strlen(name) + 1;
    char *path = arena_push(&f->meta, size, e);
    int rc;

    if (!path)
        return e->code;
    memcpy(path, index, dir);
    memcpy(path + dir, name, size - dir);
    rc = map_open(&f->map[f->n_map], path, e);
    if (rc)
        return rc;
    f->n_map++;
    rc = parse(out, f, &f->map[f->n_map - 1], e);
    return rc ? err_in(e, "shard '%s'", name) : OK;
}

struct shard {
    const char *name;
    struct weights table;
};

/* Shards in the order in which the map of names mentions them; every name has to be where it is said to be. */
static int open_shards(struct weights_file *f, const char *index, json_t *map, struct shard *shard, int *n,
                       struct err *e)
{
    const char *key, *name;
    json_t *value;
    int i, rc;

    json_object_foreach(map, key, value) {
        name = json_string_value(value);
        if (!name || !is_plain_name(name))
            return err_set(e, E_FORMAT,
                           "tensor '%.80s': its shard '%.80s' is not the name of a file in the same directory", key,
                           name ? name : "?");
        for (i = 0; i < *n && strcmp(shard[i].name, name); i++)
            ;
        if (i == WEIGHTS_FILE_MAX_SHARD)
            return err_set(e, E_FORMAT, "there are more than %d shards", WEIGHTS_FILE_MAX_SHARD);
        if (i == *n) {
            shard[i].name = name;
            rc = open_shard(&shard[i].table, f, index, name, e);
            if (rc)
                return rc;
            ++*n;
        }
        if (!weights_get(&shard[i].table, key))
            return err_set(e, E_FORMAT, "tensor '%.80s' is not in '%s', as the index says", key, name);
    }
    return OK;
}

static int merge(struct weights_file *f, const struct shard *shard, int n, struct err *e)
{
    struct weights *t = &f->table;
    size_t total = 0;

    for (int i = 0; i < n; i++)
        total += (size_t)shard[i].table.n;
    if (total > INT32_MAX)
        return err_set(e, E_FORMAT, "there are %zu tensors", total);
    t->entry = arena_push(&f->meta, total * sizeof *t->entry, e);
    if (!t->entry)
        return e->code;
    for (int i = 0; i < n; i++) {
        memcpy(t->entry + t->n, shard[i].table.entry, (size_t)shard[i].table.n * sizeof *t->entry);
        t->n += shard[i].table.n;
    }
    return weights_sort(t, e);
}

static int read_index(struct weights_file *f, const char *path, const struct map *m, struct err *e)
{
    struct shard *shard = arena_push_zero(&f->meta, WEIGHTS_FILE_MAX_SHARD * sizeof *shard, e);
    json_t *top = NULL, *map;
    int n = 0, rc;

    if (!shard)
        return e->code;
    if (m->size > MAX_INDEX)
        return err_set(e, E_FORMAT, "an index of %zu bytes; %d are allowed", m->size, MAX_INDEX);
    rc = strict_json(&top, (const char *)m->base, m->size, MAX_INDEX_DEPTH, MAX_INDEX_VALUES, e);
    if (rc)
        return rc;
    map = json_object_get(top, "weight_map");
    if (json_is_object(map))
        rc = open_shards(f, path, map, shard, &n, e);
    else
        rc = err_set(e, E_FORMAT, "this JSON is no index of shards: it has no weight_map");
    if (!rc)
        rc = merge(f, shard, n, e);
    json_decref(top);
    return rc;
}

/* ---- files ---- */

static int read_file(struct weights_file *f, const char *path, struct err *e)
{
    struct map m = { 0 };
    int rc = map_open(&m, path, e);

    if (rc)
        return rc;
    if (!safetensors_looks(m.base, m.size) && !torch_pickle_looks(m.base, m.size) && is_index(&m)) {
        rc = read_index(f, path, &m, e);
        map_close(&m);
    } else {
        f->map[f->n_map++] = m;
        rc = parse(&f->table, f, &f->map[0], e);
    }
    return rc ? err_in(e, "weights '%s'", path) : OK;
}

int weights_file_open(struct weights_file **out, const char *path, struct err *e)
{
    struct weights_file *f = arena_fault_now() ? NULL : calloc(1, sizeof *f);
    struct err mine;
    int rc;

    e = e ? e : &mine;
    if (f)
        f->path = arena_fault_now() ? NULL : strdup(path);
    if (!f || !f->path) {
        free(f);
        return err_set(e, E_NOMEM, "weights '%s': out of memory", path);
    }
    rc = arena_init(&f->meta, "weights file", ARENA_HOST, meta_cap, e);
    if (!rc)
        rc = read_file(f, path, e);
    if (rc) {
        weights_file_close(f);
        return rc;
    }
    f->table.drop = drop;
    f->table.ctx = f;
    f->table.path = f->path;
    *out = f;
    return OK;
}

void weights_file_close(struct weights_file *f)
{
    if (!f)
        return;
    for (int i = 0; i < f->n_map; i++)
        map_close(&f->map[i]);
    arena_free(&f->meta);
    free(f->path);
    free(f);
}

int weights_file_select(struct weights *out, struct weights_file *f,
                        bool (*rename)(const char *name, char *out, size_t size, void *ctx), void *ctx, struct err *e)
{
    const size_t mark = arena_mark(&f->meta);
    struct weights table = f->table;
    char name[WEIGHTS_MAX_NAME + 1];
    struct err mine;
    int rc = OK;

    e = e ? e : &mine;
    table.n = 0;
    table.entry = arena_push(&f->meta, (size_t)f->table.n * sizeof *table.entry, e);
    if (!table.entry)
        return e->code;
    for (int i = 0; i < f->table.n && !rc; i++) {
        struct weights_entry *w = &table.entry[table.n];
        char *kept;
        if (!rename(f->table.entry[i].name, name, sizeof name, ctx))
            continue;
        kept = arena_push(&f->meta, strlen(name) + 1, e);
        if (!kept) {
            rc = e->code;
            break;
        }
        *w = f->table.entry[i];
        w->name = memcpy(kept, name, strlen(name) + 1);
        w->used = false;
        table.n++;
    }
    if (!rc)
        rc = weights_sort(&table, e);
    if (rc) {
        arena_release(&f->meta, mark);
        return rc;
    }
    *out = table;
    return OK;
}
