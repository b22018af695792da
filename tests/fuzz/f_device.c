/* tests/fuzz/f_device.c: any text as a device name. device_open() refuses it with a status and a sentence, or opens a
 * device whose context can be used. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/device.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *name = malloc(size + 1);
    struct device d = { 0 };
    struct err e = { 0 };
    int rc;

    if (!name)
        return 0;
    memcpy(name, data, size);
    name[size] = 0;
    rc = device_open(&d, name, 1, &e);
    must(rc == OK || rc == E_ARG || rc == E_DEVICE || rc == E_NOMEM);
    if (rc) {
        must(e.code == rc && e.text[0] && strlen(e.text) < sizeof e.text);
    } else {
        must(d.kern && d.kern->name && d.ctx.n_threads == 1 && d.ctx.scratch_bytes >= d.kern->scratch_bytes);
        must(d.kern->computes == (d.place != ARENA_NULL));
        if (d.place == ARENA_HOST && d.ctx.scratch_bytes)
            memset(d.ctx.scratch, 0xA5, d.ctx.scratch_bytes);
        device_close(&d);
    }
    free(name);
    return 0;
}
