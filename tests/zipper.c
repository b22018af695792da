#include "tests/zipper.h"

#include <string.h>

void zipper_add(struct zipper *z, const char *name, const void *p, size_t n, int wide)
{
    const size_t at = z->file.n, name_bytes = strlen(name);

    bytes_add(&z->file, "PK\3\4", 4);
    bytes_add_number(&z->file, 0, 8);
    bytes_add_number(&z->file, 0, 6);
    bytes_add_number(&z->file, 0, 8);               /* sizes: a reader takes those of the directory */
    bytes_add_number(&z->file, name_bytes, 2);
    bytes_add_number(&z->file, 5, 2);
    bytes_add(&z->file, name, name_bytes);
    bytes_add(&z->file, "FB\1\0\0", 5);
    bytes_add(&z->file, p, n);
    bytes_add(&z->directory, "PK\1\2", 4);
    bytes_add_number(&z->directory, 0, 8);
    bytes_add_number(&z->directory, 0, 8);
    bytes_add_number(&z->directory, wide == ZIP_WIDE ? UINT32_MAX : n, 4);
    bytes_add_number(&z->directory, wide == ZIP_WIDE ? UINT32_MAX : n, 4);
    bytes_add_number(&z->directory, name_bytes, 2);
    bytes_add_number(&z->directory, wide == ZIP_WIDE ? 33 : wide ? 17 : 0, 2);
    bytes_add_number(&z->directory, 0, 8);
    bytes_add_number(&z->directory, 0, 2);
    bytes_add_number(&z->directory, wide ? UINT32_MAX : at, 4);
    bytes_add(&z->directory, name, name_bytes);
    if (wide) {
        bytes_add(&z->directory, wide == ZIP_WIDE ? "FB\1\0\0\1\0\x18\0" : "FB\1\0\0\1\0\x08\0", 9);
        if (wide == ZIP_WIDE) {
            bytes_add_number(&z->directory, n, 8);
            bytes_add_number(&z->directory, n, 8);
        }
        bytes_add_number(&z->directory, at, 8);
    }
    z->n++;
}

struct bytes zipper_end(struct zipper *z, bool wide)
{
    const uint64_t at = z->file.n, bytes = z->directory.n, n = (uint64_t)z->n;
    struct bytes *f = &z->file;

    bytes_add(f, z->directory.p, z->directory.n);
    if (wide) {
        const uint64_t end = f->n;
        bytes_add(f, "PK\6\6", 4);
        bytes_add_number(f, 44, 8);
        bytes_add_number(f, 0, 8);
        bytes_add_number(f, 0, 4);
        bytes_add_number(f, n, 8);
        bytes_add_number(f, n, 8);
        bytes_add_number(f, bytes, 8);
        bytes_add_number(f, at, 8);
        bytes_add(f, "PK\6\7", 4);
        bytes_add_number(f, 0, 4);
        bytes_add_number(f, end, 8);
        bytes_add_number(f, 1, 4);
    }
    bytes_add(f, "PK\5\6", 4);
    bytes_add_number(f, 0, 4);
    bytes_add_number(f, wide ? UINT16_MAX : n, 2);
    bytes_add_number(f, wide ? UINT16_MAX : n, 2);
    bytes_add_number(f, wide ? UINT32_MAX : bytes, 4);
    bytes_add_number(f, wide ? UINT32_MAX : at, 4);
    bytes_add_number(f, 3, 2);
    bytes_add(f, "end", 3);
    bytes_free(&z->directory);
    return *f;
}

const char pickle_numbers[16] = "\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40";      /* 1, 2, 3, 4 */

struct bytes zipper_pickle(const void *pickle, size_t n, int wide)
{
    struct zipper z = { 0 };

    zipper_add(&z, "archive/data.pkl", pickle, n, wide);
    zipper_add(&z, "archive/version", "3\n", 2, false);
    zipper_add(&z, "archive/data/0", pickle_numbers, sizeof pickle_numbers, wide);
    return zipper_end(&z, wide);
}
