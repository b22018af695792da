/* store/torch_zip.c: APPNOTE.TXT 6.3, sections 4.3 and 4.5.3.
 *
 *     local header, bytes | local header, bytes | .. | directory | [zip64 end, its locator] | end, comment
 *
 * The end is looked for from the back; it leads to the directory, which leads to the local headers. */
#include "store/torch_zip.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOCAL_BYTES = 30,
    ENTRY_BYTES = 46,
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    MAX_COMMENT = 65535,
    MAX_ENTRIES = 1 << 20,
    EXTRA_ZIP64 = 1,
    FLAG_ENCRYPTED = 1
};

static uint64_t get(const unsigned char *p, int bytes)
{
    uint64_t n = 0;

    for (int i = bytes - 1; i >= 0; i--)
        n = n << 8 | p[i];
    return n;
}

static bool has(const unsigned char *p, const char *mark)
{
    return !memcmp(p, mark, 4);
}

/* Where the directory is. */
struct extent {
    uint64_t offset, bytes, n;
};

/* The end record, or NULL: its comment has to end where the file does. */
static const unsigned char *find_end(const unsigned char *bytes, size_t size)
{
    for (size_t comment = 0; comment <= MAX_COMMENT && comment + END_BYTES <= size; comment++) {
        const unsigned char *p = bytes + size - END_BYTES - comment;
        if (has(p, "PK\5\6") && get(p + 20, 2) == comment)
            return p;
    }
    return NULL;
}

static int read_end(struct extent *x, const unsigned char *bytes, size_t size, struct err *e)
{
    const unsigned char *end = find_end(bytes, size), *p;
    uint64_t at;

    if (!end)
        return err_set(e, E_FORMAT, "the zip file has no directory: it is cut off");
    *x = (struct extent){ .offset = get(end + 16, 4), .bytes = get(end + 12, 4), .n = get(end + 10, 2) };
    p = end - bytes < LOCATOR_BYTES ? NULL : end - LOCATOR_BYTES;
    if (!p || !has(p, "PK\6\7"))
        return OK;
    at = get(p + 8, 8);
    if (at > (uint64_t)(p - bytes) || (uint64_t)(p - bytes) - at < END64_BYTES || !has(bytes + at, "PK\6\6"))
        return err_set(e, E_FORMAT, "the zip file's 64-bit directory is not where it says");
    p = bytes + at;
    *x = (struct extent){ .offset = get(p + 48, 8), .bytes = get(p + 40, 8), .n = get(p + 32, 8) };
    return OK;
}

/* Sizes and offset that did not fit in 32 bits are in an extra field, in this order, only those that did not. */
static bool read_extra(struct zip_entry *z, const unsigned char *p, size_t n)
{
    uint64_t *const field[] = { &z->bytes, &z->packed, &z->header };
    size_t size;

    for (; n >= 4; p += 4 + size, n -= 4 + size) {
        size = get(p + 2, 2);
        if (size > n - 4)
            return false;
        if (get(p, 2) != EXTRA_ZIP64)
            continue;
        for (size_t i = 0, at = 4; i < 3; i++) {
            if (*field[i] != UINT32_MAX)
                continue;
            if (at + 8 > 4 + size)
                return false;
            *field[i] = get(p + at, 8);
            at += 8;
        }
        return true;
    }
    return true;
}

static int by_name(const void *a, const void *b)
{
    const struct zip_entry *p = a, *q = b;
    const uint32_t n = p->name_bytes < q->name_bytes ? p->name_bytes : q->name_bytes;
    const int c = memcmp(p->name, q->name, n);

    return c ? c : (p->name_bytes > q->name_bytes) - (p->name_bytes < q->name_bytes);
}

/* Returns the bytes that the entry takes in the directory, or 0. */
static size_t read_entry(struct zip_entry *z, const unsigned char *p, size_t left)
{
    size_t name, extra, comment;

    if (left < ENTRY_BYTES || !has(p, "PK\1\2"))
        return 0;
    name = get(p + 28, 2);
    extra = get(p + 30, 2);
    comment = get(p + 32, 2);
    if (name + extra + comment > left - ENTRY_BYTES)
        return 0;
    *z = (struct zip_entry){
        .name = (const char *)p + ENTRY_BYTES,
        .name_bytes = (uint32_t)name,
        .flags = (uint16_t)get(p + 8, 2),
        .method = (uint16_t)get(p + 10, 2),
        .packed = get(p + 20, 4),
        .bytes = get(p + 24, 4),
        .header = get(p + 42, 4),
    };
    return read_extra(z, p + ENTRY_BYTES + name, extra) ? ENTRY_BYTES + name + extra + comment : 0;
}

int zip_open(struct zip *out, struct arena *scratch, const unsigned char *bytes, size_t size, struct err *e)
{
    struct zip z = { .bytes = bytes, .size = size };
    struct extent x = { 0 };
    size_t at = 0, used;

    if (read_end(&x, bytes, size, e))
        return E_FORMAT;
    if (x.offset > size || x.bytes > size - x.offset || x.n > x.bytes / ENTRY_BYTES || x.n > MAX_ENTRIES)
        return err_set(e, E_FORMAT, "the zip file's directory (%" PRIu64 " entries, %" PRIu64 " bytes at %" PRIu64
                       ") is not inside its %zu bytes", x.n, x.bytes, x.offset, size);
    z.n = (uint32_t)x.n;
    z.entry = arena_push(scratch, z.n * sizeof *z.entry, e);
    if (!z.entry)
        return E_NOMEM;
    for (uint32_t i = 0; i < z.n; i++, at += used) {
        used = read_entry(&z.entry[i], bytes + x.offset + at, (size_t)x.bytes - at);
        if (!used)
            return err_set(e, E_FORMAT, "entry %" PRIu32 " of the zip file's directory makes no sense", i);
    }
    if (z.n > 1)
        qsort(z.entry, z.n, sizeof *z.entry, by_name);
    for (uint32_t i = 1; i < z.n; i++)
        if (!by_name(&z.entry[i - 1], &z.entry[i]))
            return err_set(e, E_FORMAT, "entry '%.*s' is in the zip file twice", (int)z.entry[i].name_bytes,
                           z.entry[i].name);
    *out = z;
    return OK;
}

int zip_find(struct zip_span *out, const struct zip *z, const char *name, size_t name_bytes, struct err *e)
{
    const struct zip_entry key = { .name = name, .name_bytes = (uint32_t)name_bytes };
    const struct zip_entry *f = z->n ? bsearch(&key, z->entry, z->n, sizeof key, by_name) : NULL;
    const unsigned char *p;
    uint64_t left, skip;

    if (!f)
        return err_set(e, E_NONE, "entry '%.*s' is not in the zip file", (int)name_bytes, name);
    if (f->method || f->flags & FLAG_ENCRYPTED || f->packed != f->bytes)
        return err_set(e, E_FORMAT,
                       "entry '%.*s' of the zip file is compressed or encrypted; torch.save stores as it is",
                       (int)name_bytes, name);
    p = z->bytes + (f->header <= z->size ? f->header : z->size);
    left = z->size - (uint64_t)(p - z->bytes);
    if (left < LOCAL_BYTES || !has(p, "PK\3\4"))
        return err_set(e, E_FORMAT, "entry '%.*s' of the zip file has no header", (int)name_bytes, name);
    skip = LOCAL_BYTES + get(p + 26, 2) + get(p + 28, 2);
    if (skip > left || f->bytes > left - skip)
        return err_set(e, E_FORMAT, "entry '%.*s' of the zip file, %" PRIu64 " bytes, is not inside it",
                       (int)name_bytes, name, f->bytes);
    *out = (struct zip_span){ p + skip, (size_t)f->bytes };
    return OK;
}
