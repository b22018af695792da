/* store/unpickle.h: Python's pickles, protocols 0 to 5, as torch.save writes them. Nothing is ever executed: what a
 * pickle calls is looked up in a short table of things that hold tensors (store/unpickle_class.c), and whatever is not
 * in it becomes P_OTHER, which swallows all that is put into it. Internal to the reader of such files.
 *
 *     struct unpickler p = { .arena = &scratch };
 *     if (unpickle(&p, &top, bytes, size, e)) ...         p.at is after it; may be called again for what follows
 *     p.value[top].kind == P_DICT
 *
 * A value is an index into p.value. Indices stay; pointers into the tables are good until the next value is made. */
#ifndef UNICON_STORE_UNPICKLE_H
#define UNICON_STORE_UNPICKLE_H

#include "core/arena.h"
#include "core/weights.h"

enum pickle_kind {
    P_MARK,                     /* never anything but a mark on the stack */
    P_NONE,
    P_BOOL,                     /* n */
    P_INT,                      /* n */
    P_BIG,                      /* text, n: an integer that is no int64_t */
    P_STR,                      /* text, n */
    P_TUPLE, P_LIST, P_DICT,    /* first, last, n: cells; a dict's are key, value, key, value .. */
    P_CLASS,                    /* what: an enum pickle_class; of: its row in the table for that */
    P_STORAGE,                  /* of: in p.storage */
    P_TENSOR,                   /* of: in p.storage; n: offset; first, last: tuples of sizes and strides; what: type */
    P_OTHER                     /* floats, bytes, sets, all other objects */
};

enum { UNPICKLE_MAX = 1 << 22 };       /* values, cells, places of the stack, of the memo: so many of each */

enum { V_MARK, V_NONE, V_FALSE, V_TRUE, V_OTHER, V_FIRST_MADE };     /* the same in every unpickler */

struct pickle_value {
    unsigned char kind, what;
    bool open;                  /* for who walks through dicts: this one is being walked through */
    uint32_t first, last, of;
    int64_t n;
    const char *text;           /* in the pickle's bytes */
};

struct pickle_cell {
    uint32_t value, next;       /* next: 0 after the last */
};

/* What a persistent id names: numbers outside the pickle. */
struct pickle_storage {
    const char *key;            /* in the pickle's bytes */
    uint32_t key_bytes;
    const char *type_name;      /* "FloatStorage" */
    enum stored_type type;      /* N_STORED: known to torch, not to us */
    int64_t element_bytes;
    int64_t n;                  /* elements */
    int64_t view_at, view_n;    /* old files: a part of it; view_n < 0: all */
    const unsigned char *data;  /* set by who knows where they lie, else NULL */
    size_t bytes;
};

struct unpickler {
    struct arena *arena;        /* tables; host */
    struct pickle_value *value;
    struct pickle_cell *cell;   /* cell 0 is not used */
    struct pickle_storage *storage;
    uint32_t *stack, *memo;
    uint32_t n_value, n_cell, n_storage, n_stack, n_memo;
    uint32_t cap_value, cap_cell, cap_storage, cap_stack, cap_memo;
    uint32_t memo_used;
    const unsigned char *base, *at, *end;
};

/* One pickle, up to its STOP. */
int unpickle(struct unpickler *p, uint32_t *top, const unsigned char *bytes, size_t size, struct err *e);

/* ---- between the sources; makers return 0 with e set on failure ---- */

/* Room for one more in a table of n of cap; the table, moved perhaps, or NULL. */
void *unpickle_grow(struct unpickler *p, const void *table, uint32_t *cap, uint32_t n, size_t bytes, struct err *e);
uint32_t unpickle_new(struct unpickler *p, enum pickle_kind kind, struct err *e);
int unpickle_append(struct unpickler *p, uint32_t container, uint32_t value, struct err *e);
uint32_t unpickle_item(const struct unpickler *p, uint32_t container, int64_t i);      /* i < n; from the front */
bool unpickle_is(const struct unpickler *p, uint32_t value, const char *text);         /* a string of this text? */

int unpickle_push(struct unpickler *p, uint32_t v, struct err *e);
int unpickle_push_made(struct unpickler *p, uint32_t v, struct err *e);     /* 0: what was to be made was not */
int unpickle_pop(struct unpickler *p, uint32_t *v, struct err *e);          /* never a mark */
int unpickle_mark(const struct unpickler *p, uint32_t *at, struct err *e);  /* the first place above the last mark */

const unsigned char *unpickle_take(struct unpickler *p, uint64_t n, struct err *e);
int unpickle_take_number(struct unpickler *p, int bytes, uint64_t *n, struct err *e);      /* little-endian, 1 to 8 */
const char *unpickle_take_line(struct unpickler *p, size_t *n, struct err *e);  /* n without its end */

uint32_t unpickle_class(struct unpickler *p, const char *module, size_t module_bytes, const char *name,
                        size_t name_bytes, struct err *e);
uint32_t unpickle_call(struct unpickler *p, uint32_t callee, uint32_t args, struct err *e);
uint32_t unpickle_persistent(struct unpickler *p, uint32_t id, struct err *e);

#endif
