/* jobs/spec_json.c: specs as JSON, for the queue and for a picture's metadata. What is read is hostile: it passes the
 * same checks as a command line. */
#include "jobs/spec.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/strict_json.h"

enum { MAX_DEPTH = 64 };

static int no_memory(struct err *e)
{
    return err_set(e, E_NOMEM, "out of memory");
}

/* ---- writing ---- */

static json_t *uint64_to_json(uint64_t u)
{
    char digits[24];

    if (u <= INT64_MAX)
        return json_integer((json_int_t)u);
    snprintf(digits, sizeof digits, "%" PRIu64, u);
    return json_string(digits);
}

static json_t *list_to_json(const struct spec_value *v)
{
    json_t *list = json_array();

    for (int i = 0; list && i < v->n_item; i++)
        if (json_array_append_new(list, json_string(v->item[i]))) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static json_t *value_to_json(const struct spec_key *k, const struct spec_value *v)
{
    switch (k->type) {
    case SPEC_FLAG: return json_boolean(v->i);
    case SPEC_INT: return json_integer((json_int_t)v->i);
    case SPEC_UINT64:
    case SPEC_SIZE: return uint64_to_json(v->u);
    case SPEC_DOUBLE: return json_real(v->d);
    case SPEC_LIST: return list_to_json(v);
    default: return json_string(v->text);
    }
}

static bool is_standard(const struct spec *s, const struct spec_key *k)
{
    const struct spec_value *v = &s->value[k - s->kind->key];
    const struct spec bare = { .kind = s->kind };

    if (!v->set || k->always)
        return !v->set;
    if (!k->standard && (k->type == SPEC_INT || k->type == SPEC_DOUBLE))
        return false;                       /* there is none that it could be */
    switch (k->type) {
    case SPEC_FLAG: return !v->i;
    case SPEC_INT: return v->i == spec_int(&bare, k->name);
    case SPEC_UINT64:
    case SPEC_SIZE: return v->u == spec_uint64(&bare, k->name);
    case SPEC_DOUBLE: return v->d == spec_double(&bare, k->name);
    case SPEC_LIST: return false;
    default: return k->standard && !strcmp(v->text, k->standard);
    }
}

/* Fewest digits, 15 to 17, with which all doubles come back as they were: 0.1 stays 0.1. */
static size_t precision(const struct spec *s)
{
    char text[40];
    int digits = 15;

    for (int i = 0; i < s->kind->n_key; i++)
        while (s->kind->key[i].type == SPEC_DOUBLE && digits < 17
               && snprintf(text, sizeof text, "%.*g", digits, s->value[i].d) > 0
               && strtod(text, NULL) != s->value[i].d)
            digits++;
    return (size_t)digits;
}

int spec_to_json(char **out, const struct spec *s, struct err *e)
{
    json_t *root;
    char *text = NULL;
    bool ok;

    if (!s->kind)
        return err_set(e, E_ARG, "a spec of an unknown kind");
    root = json_object();
    ok = root && !json_object_set_new(root, "kind", json_string(s->kind->name))
        && !json_object_set_new(root, "version", json_integer(s->kind->version));
    for (int i = 0; i < s->kind->n_key && ok; i++) {
        const struct spec_key *k = &s->kind->key[i];
        if (!is_standard(s, k))
            ok = !json_object_set_new(root, k->name, value_to_json(k, &s->value[i]));
    }
    if (ok)
        text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(precision(s)));
    json_decref(root);
    if (!text)
        return no_memory(e);
    *out = text;
    return OK;
}

/* ---- reading ---- */

static int wrong_type(const struct spec_key *k, const char *want, struct err *e)
{
    return err_set(e, E_FORMAT, "'%s' is not %s", k->name, want);
}

static int set_number(struct spec *s, const struct spec_key *k, const json_t *j, struct err *e)
{
    const bool digits = json_is_string(j) && (k->type == SPEC_UINT64 || k->type == SPEC_SIZE);
    char text[64];

    if (digits)
        return spec_set(s, k->name, json_string_value(j), e);
    if (json_is_integer(j))
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(j));
    else if (json_is_real(j) && k->type == SPEC_DOUBLE)
        snprintf(text, sizeof text, "%.17g", json_real_value(j));
    else
        return wrong_type(k, k->type == SPEC_DOUBLE ? "a number" : "a whole number", e);
    return spec_set(s, k->name, text, e);
}

static int set_list(struct spec *s, const struct spec_key *k, const json_t *j, struct err *e)
{
    int rc = OK;

    if (!json_is_array(j))
        return wrong_type(k, "a list of strings", e);
    for (size_t i = 0; i < json_array_size(j) && !rc; i++) {
        const char *item = json_string_value(json_array_get(j, i));
        rc = item ? spec_set(s, k->name, item, e) : wrong_type(k, "a list of strings", e);
    }
    return rc;
}

static int set_from_json(struct spec *s, const char *name, const json_t *j, struct err *e)
{
    const struct spec_key *k = spec_key_of(s->kind, name);

    if (!k)
        return spec_set(s, name, "", e);                /* says which and what is near */
    switch (k->type) {
    case SPEC_FLAG:
        return json_is_boolean(j) ? spec_set(s, name, json_is_true(j) ? "on" : "off", e)
            : wrong_type(k, "true or false", e);
    case SPEC_INT:
    case SPEC_UINT64:
    case SPEC_SIZE:
    case SPEC_DOUBLE: return set_number(s, k, j, e);
    case SPEC_LIST: return set_list(s, k, j, e);
    default: return json_is_string(j) ? spec_set(s, name, json_string_value(j), e) : wrong_type(k, "a string", e);
    }
}

/* "kind" and "version". */
static int begin(struct spec *s, const json_t *root, struct err *e)
{
    const char *kind = json_string_value(json_object_get(root, "kind"));
    const json_t *version = json_object_get(root, "version");
    json_int_t n = json_integer_value(version);

    if (!kind)
        return err_set(e, E_FORMAT, "it does not say its kind");
    *s = spec_new(kind);
    if (!s->kind && strlen(kind) < 40 && !kind[strspn(kind, "abcdefghijklmnopqrstuvwxyz-")])
        return err_set(e, E_FORMAT, "kind '%s' is not one that this program knows", kind);
    if (!s->kind)
        return err_set(e, E_FORMAT, "its kind is not one that this program knows");
    if (!json_is_integer(version) || n < 1)
        return err_set(e, E_FORMAT, "it does not say its version");
    if (n > s->kind->version)
        return err_set(e, E_FORMAT, "version %lld is later than %d, the last that this program knows", (long long)n,
                       s->kind->version);
    return OK;
}

int spec_from_json(struct spec *out, const char *text, size_t size, struct err *e)
{
    struct spec made = { 0 };
    json_t *root = NULL, *j;
    const char *name;
    int rc;

    if (size > SPEC_MAX_JSON)
        return err_set(e, E_FORMAT, "job spec: %zu bytes are too many, want at most %d", size, SPEC_MAX_JSON);
    rc = strict_json(&root, text, size, MAX_DEPTH, SPEC_MAX_JSON, e);
    if (!rc)
        rc = begin(&made, root, e);
    if (!rc)
        json_object_foreach(root, name, j)
            if (strcmp(name, "kind") && strcmp(name, "version") && (rc = set_from_json(&made, name, j, e)))
                break;
    json_decref(root);
    if (rc) {
        spec_free(&made);
        if (rc == E_ARG)
            rc = E_FORMAT;
        if (e)
            e->code = rc;
        err_in(e, "job spec");
        return rc;
    }
    *out = made;
    return OK;
}
