/* tests/zipper.h: zip files and pickles put together by hand, for tests of what reads them.
 *
 *     struct bytes b = zipper_pickle(P(DICT_OF(TENSOR)), false);       {'a': a tensor of 2 x 2}
 *     bytes_free(&b);                                                                                       */
#ifndef UNICON_TESTS_ZIPPER_H
#define UNICON_TESTS_ZIPPER_H

#include "tests/bytes.h"

struct zipper {
    struct bytes file, directory;
    int n;
};

enum { ZIP_NARROW, ZIP_WIDE, ZIP_FAR };

/* Stored as it is; ZIP_WIDE: sizes and place are in a 64-bit extra field, ZIP_FAR: only the place, as of a small entry
 * behind large ones. */
void zipper_add(struct zipper *z, const char *name, const void *p, size_t n, int wide);
/* The whole file, to be freed; wide: everything in the 64-bit records, nothing in the old one. */
struct bytes zipper_end(struct zipper *z, bool wide);

/* archive/data.pkl, archive/version, and the numbers 1 to 4 as archive/data/0. */
struct bytes zipper_pickle(const void *pickle, size_t n, int wide);
extern const char pickle_numbers[16];

/* Pieces of pickles. STORAGE(numel) leaves a storage on the stack, TENSOR a tensor over the four numbers. */
#define STR(n, s) "X" n "\0\0\0" s
#define STORAGE_OF(type, numel) "(" STR("\7", "storage") "c" type "\n" STR("\1", "0") STR("\3", "cpu") numel "tQ"
#define STORAGE(numel) STORAGE_OF("torch\nFloatStorage", numel)
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
#define TENSOR_WITH(storage, offset, size, stride) \
    REBUILD "(" storage offset size stride "\x89" "ccollections\nOrderedDict\n)R" "tR"
#define TENSOR TENSOR_WITH(STORAGE("K\4"), "K\0", "K\2K\2\x86", "K\2K\1\x86")
#define DICT_OF(value) "\x80\2}(" STR("\1", "a") value "u."
#define P(text) text, sizeof text - 1

#endif
