/* store/aside.h: the only way files appear: written aside in the same directory, flushed to the disk, renamed. Whoever
 * looks sees the old file, or none, or all of the new one.
 *
 *     struct aside a;
 *     if (aside_open(&a, "out/fox.png", e)) ...
 *     fwrite(.., a.file);
 *     if (ok) rc = aside_commit(&a, e); else aside_abandon(&a);                                               */
#ifndef UNICON_STORE_ASIDE_H
#define UNICON_STORE_ASIDE_H

#include <stdbool.h>
#include <stdio.h>
#include "core/err.h"

struct aside {
    FILE *file;
    char *path, *temporary;     /* owned */
    int error;                  /* errno of the first aside_put that failed, for the message */
};

/* Directories on the way must exist. A process that is killed may leave a file ".NAME.XXXXXX", never a part of NAME. */
int aside_open(struct aside *a, const char *path, struct err *e);

/* fwrite that remembers why it failed (a full disk); aside_commit then says so. */
void aside_put(struct aside *a, const void *bytes, size_t size);

/* Flush, fsync, rename, fsync of the directory. On failure the temporary file is gone and what was at path is
 * untouched; only if the flush of the directory fails is the new file in place, and the message says so. */
int aside_commit(struct aside *a, struct err *e);
void aside_abandon(struct aside *a);            /* also of a zeroed or committed one */

/* Bytes in one go. */
int aside_write(const char *path, const void *bytes, size_t size, struct err *e);

#endif
