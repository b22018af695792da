/* tests/fuzz/f_pickle.c: any bytes as a file of torch.save, and as the pickle in a zip of one. They are refused with a
 * sentence and nothing is left in the arena, or every tensor of the table can be read. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "store/torch_pickle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void parse(const uint8_t *data, size_t size)
{
    static float values[1 << 16];
    struct weights t = { .n = -1 };
    struct err e = { 0 };
    struct arena a;
    int rc;

    if (arena_init(&a, "fuzz", ARENA_HOST, (size_t)1 << 30, &e))
        return;
    rc = torch_pickle_parse(&t, &a, data, size, &e);
    must(rc == OK || (rc == E_FORMAT && e.code == rc && e.text[0] && t.n == -1 && arena_mark(&a) == 0));
    for (int i = 0; i < t.n; i++) {
        const struct weights_entry *w = &t.entry[i];
        must((const uint8_t *)w->data >= data && (const uint8_t *)w->data <= data + size && weights_get(&t, w->name));
        if (weights_count(w) <= (int64_t)(sizeof values / sizeof *values))
            must(weights_read(w, values, F32, &e) == (w->type < STORED_F8_E4M3 ? OK : E_FORMAT));
    }
    arena_free(&a);
}

static void put(uint8_t *p, size_t at, size_t n, uint64_t x)
{
    for (size_t i = 0; i < n; i++)
        p[at + i] = (uint8_t)(x >> 8 * i);
}

/* One entry with its local header and its line in the directory; returns the bytes of both so far. */
static size_t add(uint8_t *zip, size_t at, uint8_t *line, const char *name, const uint8_t *data, size_t size)
{
    const size_t n = strlen(name);

    memcpy(zip + at, "PK\3\4", 4);
    put(zip, at + 26, 2, n);
    memcpy(zip + at + 30, name, n);
    memcpy(zip + at + 30 + n, data, size);
    memcpy(line, "PK\1\2", 4);
    put(line, 20, 4, size);
    put(line, 24, 4, size);
    put(line, 28, 2, n);
    put(line, 42, 4, at);
    memcpy(line + 46, name, n);
    return at + 30 + n + size;
}

/* A zip whose a/data.pkl is the input, with one storage of 64 bytes, a/data/0. */
static void parse_zipped(const uint8_t *data, size_t size)
{
    static const uint8_t numbers[64] = { 0, 0, 0x80, 0x3F };
    uint8_t line[56 + 54] = { 0 }, *zip = calloc(1, size + 400);
    size_t at;

    if (!zip)
        return;
    at = add(zip, 0, line, "a/data.pkl", data, size);
    at = add(zip, at, line + 56, "a/data/0", numbers, sizeof numbers);
    memcpy(zip + at, line, sizeof line);
    memcpy(zip + at + sizeof line, "PK\5\6", 4);
    put(zip, at + sizeof line + 10, 2, 2);
    put(zip, at + sizeof line + 12, 4, sizeof line);
    put(zip, at + sizeof line + 16, 4, at);
    parse(zip, at + sizeof line + 22);
    free(zip);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse(data, size);
    if (size <= 1 << 20)
        parse_zipped(data, size);
    return 0;
}
