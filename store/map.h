/* store/map.h: a whole file as read-only memory. The size is what it was when it was opened; a file that shrinks later
 * is the system's SIGBUS, as with any mapping.
 *
 *     struct map m;
 *     if (map_open(&m, path, e)) ...          m.base[0 .. m.size)
 *     map_drop(&m, p, bytes);                 these pages may leave memory; reading them again reads the file
 *     map_close(&m);                          takes a zeroed one                                              */
#ifndef UNICON_STORE_MAP_H
#define UNICON_STORE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include "core/err.h"

struct map {
    const unsigned char *base;  /* not NULL, even for an empty file */
    size_t size;
};

/* E_IO in the system's words ("No such file or directory"), also for directories. The message names the path. */
int map_open(struct map *out, const char *path, struct err *e);
/* Bytes here and there are wanted next, not what follows them: nothing is read ahead until this is taken back. */
void map_scattered(const struct map *m, bool scattered);
void map_drop(const struct map *m, const void *data, size_t bytes);
void map_close(struct map *m);

#endif
