/* jobs/spec.h: what a job is asked to do: values for the keys of its kind, checked one by one. A kind is a table: the
 * command line's options, --help, the JSON in the queue and in a picture's metadata all come from it.
 *
 *     struct spec s = spec_new("sample");
 *     if (spec_set(&s, "steps", "20", e)) ...          --steps '0': want a whole number from 1 to 1000
 *     n = spec_int(&s, "steps");                       the default where nothing was set
 *     if (spec_to_json(&text, &s, e)) ...              {"kind":"sample","version":1,"steps":20}
 *     spec_free(&s);                                                                                           */
#ifndef UNICON_JOBS_SPEC_H
#define UNICON_JOBS_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/err.h"

enum spec_type {
    SPEC_FLAG,          /* takes no value; "on" or "off" */
    SPEC_INT,
    SPEC_UINT64,
    SPEC_DOUBLE,
    SPEC_SIZE,          /* bytes, with K, M, G or T for powers of 1024 */
    SPEC_STRING,
    SPEC_PATH,
    SPEC_CHOICE,
    SPEC_LIST           /* of strings: each setting adds one */
};

enum { SPEC_MAX_KEY = 64, SPEC_MAX_ITEM = 64, SPEC_MAX_TEXT = 65536, SPEC_MAX_JSON = 1 << 20 };

struct spec_key {
    const char *group;          /* heading that begins here in --help, or NULL */
    const char *name;
    enum spec_type type;
    const char *value;          /* what stands for the value in --help: "PATH", "N" */
    const char *standard;       /* the default, as one would type it; NULL: none. It may lie outside the range. */
    double low, high;           /* SPEC_INT, SPEC_DOUBLE: both allowed */
    const char *choices;        /* SPEC_CHOICE: words between single spaces */
    char letter;                /* short option, or 0 */
    bool always;                /* written to JSON wherever it was set: what stands for it if not hangs on other keys */
    const char *help;           /* one line, with the unit */
};

struct spec_kind {
    const char *name;
    int version;                /* of the table: a spec of a later one is refused */
    const struct spec_key *key;
    int n_key;
};

extern const struct spec_kind spec_sample, spec_shared;     /* shared: keys that do not change what is made */

struct spec_value {
    bool set;
    int64_t i;                  /* SPEC_INT; SPEC_CHOICE: its place; SPEC_FLAG */
    uint64_t u;                 /* SPEC_UINT64, SPEC_SIZE */
    double d;
    char *text;                 /* SPEC_STRING, SPEC_PATH, SPEC_CHOICE */
    char **item;                /* SPEC_LIST */
    int n_item;
};

struct spec {
    const struct spec_kind *kind;       /* NULL for an unknown one */
    struct spec_value value[SPEC_MAX_KEY];
};

const struct spec_kind *spec_kind_of(const char *name);     /* NULL if there is none */
struct spec spec_new(const char *kind);                     /* nothing is set, nothing allocated */
void spec_free(struct spec *s);                             /* takes a zeroed one */

/* Set a key from text, over what was there (a list gets one more). E_ARG says which key, which text, what is allowed;
 * for an unknown key, which one is nearest. Nothing changes on failure. A flag takes "on", "off" or NULL for on. */
int spec_set(struct spec *s, const char *key, const char *text, struct err *e);

/* Copy every key that is set in `over` into s, of the same kind; lists are replaced. */
int spec_overlay(struct spec *s, const struct spec *over, struct err *e);

/* Back to the default. */
void spec_unset(struct spec *s, const char *key);

/* Was it set, be it to its default? */
bool spec_is_set(const struct spec *s, const char *key);

/* Values, or defaults. A key of another type or name gives 0, NULL or nothing. Text lives until it is set again. */
bool spec_flag(const struct spec *s, const char *key);
int64_t spec_int(const struct spec *s, const char *key);
uint64_t spec_uint64(const struct spec *s, const char *key);        /* also SPEC_SIZE */
double spec_double(const struct spec *s, const char *key);
const char *spec_text(const struct spec *s, const char *key);       /* SPEC_STRING, SPEC_PATH, SPEC_CHOICE */
int spec_choice(const struct spec *s, const char *key);             /* place among the choices, -1 if none */
int spec_count(const struct spec *s, const char *key);
const char *spec_item(const struct spec *s, const char *key, int i);

/* JSON: "kind", "version" and the keys whose values differ from the default (those that say `always`: that were set),
 * in the order of the table. Doubles come back as they were; whole numbers above 2^63 - 1 are strings. *out is
 * malloc'ed. */
int spec_to_json(char **out, const struct spec *s, struct err *e);

/* *out is new and to be freed; untouched on failure. Unknown keys, other types and values that spec_set would refuse
 * are E_FORMAT and named. `size` bytes, not terminated. */
int spec_from_json(struct spec *out, const char *text, size_t size, struct err *e);

/* For command lines: the key of that name; and how many letters `name` is away from the nearest one, *best. */
const struct spec_key *spec_key_of(const struct spec_kind *k, const char *name);
int spec_nearest(const struct spec_kind *k, const char *name, const struct spec_key **best);

/* E_BUG with a sentence if a table is not well formed; for tests. */
int spec_check(const struct spec_kind *k, struct err *e);

#endif
