/* store/json_conf.h: a JSON object that is read key by key, each with the type and the range that are expected. The
 * first failure is kept and what is asked afterwards gives defaults, so that a caller checks once, at the end.
 *
 *     struct json_conf c;
 *     if (json_conf_open(&c, "UNet configuration", text, n, e)) ...
 *     layers = json_conf_int(&c, "layers_per_block", 2, 1, 4);
 *     json_conf_only(&c, "class_embed_type", "null", NULL);
 *     return json_conf_close(&c);                                                                            */
#ifndef UNICON_STORE_JSON_CONF_H
#define UNICON_STORE_JSON_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/err.h"

struct json_t;                  /* jansson's */

struct json_conf {
    struct json_t *root;        /* an object */
    const char *what;           /* for messages; the caller's */
    struct err *e;
    int rc;                     /* of the first failure */
};

/* E_FORMAT unless the n bytes are one JSON object of at most 1 MiB without a key twice; close takes that too. */
int json_conf_open(struct json_conf *c, const char *what, const char *text, size_t n, struct err *e);
int json_conf_close(struct json_conf *c);

/* The value, or NULL where the key is missing or null. json_conf_has: also a null one counts. */
struct json_t *json_conf_get(const struct json_conf *c, const char *key);
bool json_conf_has(const struct json_conf *c, const char *key);

/* A missing or null value gives `otherwise`. Another type, or a value outside [lo,hi], is a failure. */
int64_t json_conf_int(struct json_conf *c, const char *key, int64_t otherwise, int64_t lo, int64_t hi);
double json_conf_number(struct json_conf *c, const char *key, double otherwise, double lo, double hi);
bool json_conf_bool(struct json_conf *c, const char *key, bool otherwise);
const char *json_conf_text(struct json_conf *c, const char *key, const char *otherwise);     /* until close */

/* The index of the text in names[] (NULL at the end). */
int json_conf_choice(struct json_conf *c, const char *key, const char *const *names, int otherwise);

/* Integers into out[at most max]: how many there are; 0 where the key is missing, 1 for a plain number. An empty list
 * is a failure. */
int json_conf_ints(struct json_conf *c, const char *key, int64_t *out, int max, int64_t lo, int64_t hi);

/* Element i of a list of texts, or NULL where it has none; *n its length, 0 where the key is missing. */
const char *json_conf_item(struct json_conf *c, const char *key, int i, int *n);

/* A failure unless the key is missing or its value is, as JSON, `only` or `also` (may be NULL). Numbers are compared
 * as such; a list of such values passes too. */
void json_conf_only(struct json_conf *c, const char *key, const char *only, const char *also);

int json_conf_fail(struct json_conf *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A value as text for a message, cut to fit; returns buf. */
const char *json_conf_show(const struct json_t *value, char *buf, size_t size);

#endif
