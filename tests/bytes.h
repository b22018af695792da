/* tests/bytes.h: files for tests of readers and writers: in memory, changed, cut, in a directory of their own.
 *
 *     struct bytes b = bytes_read("tests/corpus/weights/types.pt");       says why and exits if not
 *     bytes_put(&b, 8, 1, '{');
 *     char path[300]; bytes_save(&b, bytes_path(path, sizeof path, "a.pt"));     removed by bytes_clean()
 *     bytes_free(&b);                                                                                       */
#ifndef UNICON_TESTS_BYTES_H
#define UNICON_TESTS_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/err.h"

struct bytes {
    unsigned char *p;
    size_t n, cap;
};

struct bytes bytes_read(const char *path);
struct bytes bytes_copy(const struct bytes *b, size_t n);               /* the first n, in a block of exactly n */
void bytes_free(struct bytes *b);
void bytes_add(struct bytes *b, const void *p, size_t n);
void bytes_add_number(struct bytes *b, uint64_t x, int n);              /* little-endian, n bytes */
void bytes_put(struct bytes *b, size_t at, int n, uint64_t x);          /* over what is there */
size_t bytes_find(const struct bytes *b, size_t from, const void *what, size_t n);     /* SIZE_MAX: nowhere */

/* A file in a directory that belongs to this process. */
const char *bytes_path(char *buf, size_t size, const char *name);
bool bytes_save(const struct bytes *b, const char *path);
int bytes_count_files(void);
void bytes_clean(void);

/* Was this the error? Notes what it was otherwise. */
bool is_err(const struct err *e, int code, const char *part);

#endif
