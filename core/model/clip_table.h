/* core/model/clip_table.h: the strings and pairs of a byte-pair vocabulary. Strings have numbers (symbols) in order of
 * their coming, pairs of symbols a rank. Nothing grows: the room is reserved at the start.
 *
 *     struct clip_table t = { 0 };
 *     if (clip_table_open(&t, bytes, n_symbol, n_pair, e)) ...
 *     int32_t a = clip_table_add(&t, "a", 1), aa = clip_table_join(&t, a, a);
 *     clip_table_rank(&t, a, a, aa, 0);
 *     clip_table_close(&t);                                                                                      */
#ifndef UNICON_CORE_MODEL_CLIP_TABLE_H
#define UNICON_CORE_MODEL_CLIP_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include "core/err.h"

struct clip_symbol {
    uint32_t at, bytes;                 /* in clip_table.text */
    int32_t id;                         /* -1: it has none, as a part that only merges have */
};

struct clip_pair {
    int32_t left, right;                /* symbols */
    int32_t rank, joined;               /* joined: the symbol that both make; -1: this slot is free */
};

struct clip_table {
    char *text;                         /* the strings, each ended by 0 */
    struct clip_symbol *symbol;
    int32_t *slot;                      /* by a string's hash: a symbol or -1 */
    struct clip_pair *pair;             /* by a pair's hash */
    uint32_t text_bytes, slot_mask, pair_mask;
    int32_t n_symbol;
};

/* Room for `bytes` of strings, each with a 0 at its end, that many different ones, and pairs. */
int clip_table_open(struct clip_table *t, size_t bytes, size_t n_symbol, size_t n_pair, struct err *e);
void clip_table_close(struct clip_table *t);            /* takes a zeroed or half-made one */

int32_t clip_table_find(const struct clip_table *t, const char *text, size_t bytes);        /* -1: not there */
int32_t clip_table_add(struct clip_table *t, const char *text, size_t bytes);               /* new or found */
int32_t clip_table_join(struct clip_table *t, int32_t left, int32_t right);     /* add both strings as one */

/* A pair that comes again has its later rank, as in a Python dictionary. */
void clip_table_rank(struct clip_table *t, int32_t left, int32_t right, int32_t joined, int32_t rank);
const struct clip_pair *clip_table_pair(const struct clip_table *t, int32_t left, int32_t right);   /* or NULL */

#endif
