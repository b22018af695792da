#include "store/exif.h"

#include <stdbool.h>
#include <stdint.h>

enum { TAG_ORIENTATION = 274, TYPE_SHORT = 3, HEADER_BYTES = 8, ENTRY_BYTES = 12 };

static unsigned u16_at(const unsigned char *p, bool big)
{
    return big ? (unsigned)p[0] << 8 | p[1] : (unsigned)p[1] << 8 | p[0];
}

static uint32_t u32_at(const unsigned char *p, bool big)
{
    return (uint32_t)u16_at(big ? p : p + 2, big) << 16 | u16_at(big ? p + 2 : p, big);
}

/* Header: byte order, 42, offset of the directory. Directory: a count, then entries of tag, type, count, value. */
int exif_orientation(const unsigned char *tiff, size_t size)
{
    const bool big = size && tiff[0] == 'M';
    uint32_t at;
    unsigned n;

    if (size < HEADER_BYTES || tiff[0] != tiff[1] || (!big && tiff[0] != 'I') || u16_at(tiff + 2, big) != 42)
        return 1;
    at = u32_at(tiff + 4, big);
    if (at > size - 2)
        return 1;
    n = u16_at(tiff + at, big);
    for (unsigned i = 0; i < n; i++) {
        const size_t entry = (size_t)at + 2 + (size_t)i * ENTRY_BYTES;
        unsigned value;
        if (entry > size || size - entry < ENTRY_BYTES)
            return 1;
        if (u16_at(tiff + entry, big) != TAG_ORIENTATION)
            continue;
        value = u16_at(tiff + entry + 8, big);
        if (u16_at(tiff + entry + 2, big) != TYPE_SHORT || u32_at(tiff + entry + 4, big) != 1)
            return 1;
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}
