/* core/weights.h: named tensors as a file holds them, before any layer is made of them. store fills the table and keeps
 * what it points at; models take values from it by name.
 *
 *     struct weights_entry *w = weights_get(table, "conv_in.weight");         NULL if there is none
 *     weights_read(w, dst, F32);                                              in the order of w->dim
 *     weights_drop(table, w);                                                 its pages may go: it was the last read
 *
 * Whoever fills a table checks every entry once: names are unique and not empty, sizes are positive or zero, their
 * product fits, and every element that strides can reach lies inside what `data` points at. */
#ifndef UNICON_CORE_WEIGHTS_H
#define UNICON_CORE_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/err.h"
#include "kernels/kern.h"

enum stored_type {
    STORED_F32, STORED_F16, STORED_BF16, STORED_F64,
    STORED_I8, STORED_U8, STORED_I16, STORED_I32, STORED_I64, STORED_BOOL,
    STORED_F8_E4M3, STORED_F8_E5M2,     /* known to exist; weights_read refuses them */
    N_STORED
};

enum { WEIGHTS_MAX_DIM = 8, WEIGHTS_MAX_NAME = 1000 };       /* bytes, without the 0 at the end */

struct weights_entry {
    const char *name;
    enum stored_type type;
    int n_dim;
    int64_t dim[WEIGHTS_MAX_DIM];       /* as in the file: convolutions are (Co,Ci,KH,KW) */
    int64_t stride[WEIGHTS_MAX_DIM];    /* elements */
    const void *data;                   /* little-endian, any alignment */
    bool used;                          /* some layer has asked for it */
};

struct weights {
    struct weights_entry *entry;        /* sorted by name (strcmp) once weights_sort ran */
    int n;
    /* Values at [data, data + bytes) will not be read again soon; may be NULL. */
    void (*drop)(void *ctx, const void *data, size_t bytes);
    void *ctx;
    const char *path;                   /* for messages */
};

size_t stored_bytes(enum stored_type t);                /* of one element */
const char *stored_name(enum stored_type t);            /* "F32", "BF16", .. */
int64_t weights_count(const struct weights_entry *w);   /* product of dim */

/* What a table's filler asks once for every entry: the name is 1 to WEIGHTS_MAX_NAME bytes of printable UTF-8, sizes
 * and strides are not negative, counts fit, and every element lies in the `bytes` bytes from data on. E_FORMAT if
 * not. */
int weights_check(const struct weights_entry *w, size_t bytes, struct err *e);

/* Sort by name; E_FORMAT if two have the same. */
int weights_sort(struct weights *w, struct err *e);
struct weights_entry *weights_get(const struct weights *w, const char *name);

/* All elements in row-major order of dim, converted (F64 and integers too; floats to 16 bits round to nearest even).
 * E_FORMAT for types without a conversion. */
int weights_read(const struct weights_entry *w, void *dst, enum dtype type, struct err *e);
/* Rows [first, first + n) of the first dimension. */
int weights_read_rows(const struct weights_entry *w, int64_t first, int64_t n, void *dst, enum dtype type,
                      struct err *e);
bool weights_is_dense(const struct weights_entry *w);   /* row-major without gaps */
void weights_drop(const struct weights *w, const struct weights_entry *entry);

/* "F16 (320,4,3,3)" into buf; returns buf. */
const char *weights_text(const struct weights_entry *w, char *buf, size_t size);

#endif
