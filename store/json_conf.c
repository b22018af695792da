#include "store/json_conf.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/strict_json.h"

enum { MAX_BYTES = 1 << 20, MAX_DEPTH = 64 };

int json_conf_fail(struct json_conf *c, const char *fmt, ...)
{
    char text[400];
    va_list ap;

    if (c->rc)
        return c->rc;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->rc = err_set(c->e, E_FORMAT, "%s: %s", c->what, text);
    return c->rc;
}

int json_conf_open(struct json_conf *c, const char *what, const char *text, size_t n, struct err *e)
{
    struct err why = { 0 };

    *c = (struct json_conf){ .what = what, .e = e };
    if (n > MAX_BYTES)
        return json_conf_fail(c, "%zu bytes are no configuration", n);
    return strict_json(&c->root, text, n, MAX_DEPTH, MAX_BYTES, &why) ? json_conf_fail(c, "%s", why.text) : OK;
}

int json_conf_close(struct json_conf *c)
{
    json_decref(c->root);
    c->root = NULL;
    return c->rc;
}

const char *json_conf_show(const struct json_t *value, char *buf, size_t size)
{
    const size_t flags = JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(6);
    char *text = value ? json_dumps(value, flags) : NULL;

    snprintf(buf, size, "%s", text ? text : "?");
    free(text);
    return buf;
}

bool json_conf_has(const struct json_conf *c, const char *key)
{
    return json_object_get(c->root, key) != NULL;
}

struct json_t *json_conf_get(const struct json_conf *c, const char *key)
{
    json_t *value = c->rc ? NULL : json_object_get(c->root, key);

    return value && !json_is_null(value) ? value : NULL;
}

static void expected(struct json_conf *c, const char *key, const json_t *value, const char *kind)
{
    char shown[60];

    json_conf_fail(c, "'%s' is %s, not %s", key, json_conf_show(value, shown, sizeof shown), kind);
}

static int64_t one_int(struct json_conf *c, const char *key, const json_t *value, int64_t otherwise, int64_t lo,
                       int64_t hi)
{
    char kind[80];
    const bool fits = json_is_integer(value) && json_integer_value(value) >= lo && json_integer_value(value) <= hi;

    if (fits)
        return json_integer_value(value);
    snprintf(kind, sizeof kind, "an integer from %" PRId64 " to %" PRId64, lo, hi);
    expected(c, key, value, kind);
    return otherwise;
}

int64_t json_conf_int(struct json_conf *c, const char *key, int64_t otherwise, int64_t lo, int64_t hi)
{
    const json_t *value = json_conf_get(c, key);

    return value ? one_int(c, key, value, otherwise, lo, hi) : otherwise;
}

double json_conf_number(struct json_conf *c, const char *key, double otherwise, double lo, double hi)
{
    const json_t *value = json_conf_get(c, key);
    char kind[80];

    if (!value)
        return otherwise;
    if (json_is_number(value) && json_number_value(value) >= lo && json_number_value(value) <= hi)
        return json_number_value(value);
    snprintf(kind, sizeof kind, "a number from %g to %g", lo, hi);
    expected(c, key, value, kind);
    return otherwise;
}

bool json_conf_bool(struct json_conf *c, const char *key, bool otherwise)
{
    const json_t *value = json_conf_get(c, key);

    if (!value)
        return otherwise;
    if (!json_is_boolean(value))
        expected(c, key, value, "true or false");
    return json_is_true(value);
}

const char *json_conf_text(struct json_conf *c, const char *key, const char *otherwise)
{
    const json_t *value = json_conf_get(c, key);

    if (!value)
        return otherwise;
    if (json_is_string(value))
        return json_string_value(value);
    expected(c, key, value, "a text");
    return otherwise;
}

int json_conf_choice(struct json_conf *c, const char *key, const char *const *names, int otherwise)
{
    const char *text = json_conf_text(c, key, NULL);
    char shown[60];

    if (!text)
        return otherwise;
    for (int i = 0; names[i]; i++)
        if (!strcmp(text, names[i]))
            return i;
    json_conf_fail(c, "%s %s is not supported", key, json_conf_show(json_conf_get(c, key), shown, sizeof shown));
    return otherwise;
}

int json_conf_ints(struct json_conf *c, const char *key, int64_t *out, int max, int64_t lo, int64_t hi)
{
    const json_t *value = json_conf_get(c, key);
    size_t n;

    if (!value)
        return 0;
    if (!json_is_array(value)) {
        out[0] = one_int(c, key, value, lo, lo, hi);
        return 1;
    }
    n = json_array_size(value);
    if (n < 1 || n > (size_t)max) {
        json_conf_fail(c, "'%s' has %zu elements, not 1 to %d", key, n, max);
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = one_int(c, key, json_array_get(value, i), lo, lo, hi);
    return (int)n;
}

const char *json_conf_item(struct json_conf *c, const char *key, int i, int *n)
{
    const json_t *value = json_conf_get(c, key), *item;

    *n = 0;
    if (!value)
        return NULL;
    if (!json_is_array(value) || json_array_size(value) > 1000) {
        expected(c, key, value, "a list of texts");
        return NULL;
    }
    *n = (int)json_array_size(value);
    item = i < *n ? json_array_get(value, (size_t)i) : NULL;
    if (item && !json_is_string(item))
        expected(c, key, value, "a list of texts");
    return json_string_value(item);
}

static bool same(const json_t *value, const char *want)
{
    json_t *other = json_loads(want, JSON_DECODE_ANY, NULL);
    bool ok = json_equal(value, other);

    if (json_is_number(value) && json_is_number(other))
        ok = fabs(json_number_value(value) - json_number_value(other)) < 1e-9;
    json_decref(other);
    return ok;
}

void json_conf_only(struct json_conf *c, const char *key, const char *only, const char *also)
{
    const json_t *value = c->rc ? NULL : json_object_get(c->root, key), *item;
    const bool list = json_is_array(value);
    const size_t n = list ? json_array_size(value) : 1;
    char shown[60];

    if (!value)
        return;
    if (n < 1)
        expected(c, key, value, only);
    for (size_t i = 0; i < n; i++) {
        item = list ? json_array_get(value, i) : value;
        if (!same(item, only) && !(also && same(item, also))) {
            json_conf_fail(c, "%s %s is not supported", key, json_conf_show(value, shown, sizeof shown));
            return;
        }
    }
}
