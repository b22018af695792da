/* store/safetensors.h: the safetensors format: 8 bytes of header size, a JSON header, the numbers.
 *
 *     if (safetensors_parse(&table, strings, m.base, m.size, e)) ...      entries point into the bytes
 *     struct safetensors_item item[] = { { "x", F32, 4, { 1, 4, 64, 64 }, data } };
 *     if (safetensors_write(path, item, 1, (const char *const[]){ "seed", "7", NULL }, e)) ...               */
#ifndef UNICON_STORE_SAFETENSORS_H
#define UNICON_STORE_SAFETENSORS_H

#include <stdbool.h>
#include "core/arena.h"
#include "core/weights.h"

/* Do these bytes begin like a safetensors file? (A plausible header size, then '{'.) */
bool safetensors_looks(const unsigned char *bytes, size_t size);

/* Entries and names go to `meta` (host). Checked: header inside the file and below 100 MB, JSON, no name twice, known
 * dtype, at most WEIGHTS_MAX_DIM sizes whose product is what the offsets say, offsets inside the file. Gaps between
 * tensors are allowed, overlaps are E_FORMAT. *metadata, if not NULL: the JSON text of __metadata__ in meta, or NULL.
 * */
int safetensors_parse(struct weights *out, struct arena *meta, const unsigned char *bytes, size_t size,
                      const char **metadata, struct err *e);

struct safetensors_item {
    const char *name;
    enum stored_type type;
    int n_dim;
    int64_t dim[WEIGHTS_MAX_DIM];
    const void *data;           /* dense, little-endian */
};

/* Written aside and renamed. metadata: pairs of strings, key then value, NULL at the end, or NULL for none; "format":
 * "pt" is always there. */
int safetensors_write(const char *path, const struct safetensors_item *item, int n, const char *const *metadata,
                      struct err *e);

#endif
