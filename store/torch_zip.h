/* store/torch_zip.h: the directory of a zip file in memory, of the kind that torch.save writes: entries as they are,
 * not compressed. Internal to the reader of such files.
 *
 *     if (zip_open(&z, scratch, bytes, size, e)) ...
 *     if (zip_find(&span, &z, "archive/data/0", 14, e)) ...        E_NONE if there is none                  */
#ifndef UNICON_STORE_TORCH_ZIP_H
#define UNICON_STORE_TORCH_ZIP_H

#include <stdint.h>
#include "core/arena.h"

struct zip_entry {
    const char *name;           /* in the file's bytes, name_bytes of them */
    uint32_t name_bytes;
    uint16_t method, flags;
    uint64_t header;            /* offset of its local header */
    uint64_t bytes, packed;
};

struct zip {
    const unsigned char *bytes;
    size_t size;
    struct zip_entry *entry;    /* sorted by name, in the scratch arena */
    uint32_t n;
};

struct zip_span {
    const unsigned char *data;
    size_t bytes;
};

/* The directory alone is read, zip64 too. */
int zip_open(struct zip *out, struct arena *scratch, const unsigned char *bytes, size_t size, struct err *e);

/* Where an entry's bytes lie: E_FORMAT if it is compressed, encrypted or not inside the file. Checksums are not looked
 * at: they would make every opening read all of the file. */
int zip_find(struct zip_span *out, const struct zip *z, const char *name, size_t name_bytes, struct err *e);

#endif
