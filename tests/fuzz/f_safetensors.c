/* tests/fuzz/f_safetensors.c: any bytes as a safetensors file. They are refused with a sentence and nothing is left in
 * the arena, or every tensor of the table can be read, and lies in the bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "store/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float values[1 << 16];
    struct weights t = { .n = -1 };
    struct err e = { 0 };
    const char *metadata = NULL;
    struct arena a;
    int rc;

    if (arena_init(&a, "fuzz", ARENA_HOST, (size_t)1 << 30, &e))
        return 0;
    rc = safetensors_parse(&t, &a, data, size, &metadata, &e);
    must(rc == OK || (rc == E_FORMAT && e.code == rc && e.text[0] && t.n == -1 && arena_mark(&a) == 0));
    for (int i = 0; i < t.n; i++) {
        const struct weights_entry *w = &t.entry[i];
        const uint8_t *p = w->data;
        const size_t bytes = (size_t)weights_count(w) * stored_bytes(w->type);
        must(p >= data && p <= data + size && bytes <= (size_t)(data + size - p) && weights_get(&t, w->name) == w);
        if (weights_count(w) <= (int64_t)(sizeof values / sizeof *values))
            must(weights_read(w, values, F32, &e) == (w->type < STORED_F8_E4M3 ? OK : E_FORMAT));
    }
    must(!metadata || metadata[0] == '{');
    arena_free(&a);
    return 0;
}
