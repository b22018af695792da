/* tests/fuzz/f_index.c: any bytes as a weights file in a directory with two small shards, "a" and "b": an index of
 * them, safetensors, a file of torch.save, or nothing. Every open ends with a table or a sentence. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/weights_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char shard_a[] = "\x3c\0\0\0\0\0\0\0"
    "{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}       12";
static const char shard_b[] = "\x3c\0\0\0\0\0\0\0"
    "{\"y\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}       34";

static char dir[] = "/tmp/f_index.XXXXXX";

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void save(const char *name, const void *data, size_t size)
{
    char path[64];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "wb");
    must(f && fwrite(data, 1, size, f) == size && !fclose(f));
}

static void clean(void)
{
    static const char *const names[] = { "a", "b", "model.index.json" };
    char path[64];

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool made;
    struct weights_file *f = NULL;
    struct err e = { 0 };
    char path[64];
    int rc;

    if (!made) {
        must(mkdtemp(dir) && !atexit(clean));
        save("a", shard_a, sizeof shard_a - 1);
        save("b", shard_b, sizeof shard_b - 1);
        made = true;
    }
    save("model.index.json", data, size);
    snprintf(path, sizeof path, "%s/model.index.json", dir);
    rc = weights_file_open(&f, path, &e);
    must(rc ? !f && e.code == rc && e.text[0] : f && f->n_map >= 0 && f->n_map <= 3);
    for (int i = 0; !rc && i < f->table.n; i++) {
        must(weights_get(&f->table, f->table.entry[i].name) == &f->table.entry[i]);
        weights_drop(&f->table, &f->table.entry[i]);
    }
    weights_file_close(f);
    return 0;
}
