/* store/weights_file.h: weights by path, whatever the format: first bytes decide. A ".index.json" of shards gives one
 * table over all of them.
 *
 *     struct weights_file *f;
 *     if (weights_file_open(&f, "unet/diffusion_pytorch_model.safetensors", e)) ...
 *     weights_get(&f->table, "conv_in.weight");
 *     weights_file_close(f);                                                                                */
#ifndef UNICON_STORE_WEIGHTS_FILE_H
#define UNICON_STORE_WEIGHTS_FILE_H

#include "core/arena.h"
#include "core/weights.h"
#include "store/map.h"

enum { WEIGHTS_FILE_MAX_SHARD = 256 };

struct weights_file {
    struct weights table;
    struct arena meta;          /* names, entries */
    struct map map[WEIGHTS_FILE_MAX_SHARD];
    int n_map;
    const char *metadata;       /* safetensors: JSON text of __metadata__, or NULL */
    char *path;
};

int weights_file_open(struct weights_file **out, const char *path, struct err *e);
void weights_file_close(struct weights_file *f);        /* takes NULL */

/* Another table over the same file: the entries for which rename() gives a name. rename writes into out[size] and is
 * true, or false to leave the entry out. Names and entries go to f->meta. */
int weights_file_select(struct weights *out, struct weights_file *f,
                        bool (*rename)(const char *name, char *out, size_t size, void *ctx), void *ctx, struct err *e);

#endif
