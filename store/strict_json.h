/* store/strict_json.h: JSON from outside: one object, of limited depth and size, no key twice in an object, no text
 * after it.
 *
 *     json_t *top;
 *     if (strict_json(&top, text, n, 4, 1000000, e)) ...       "not JSON, line 1, column 7: .."
 *     json_decref(top);                                                                                     */
#ifndef UNICON_STORE_STRICT_JSON_H
#define UNICON_STORE_STRICT_JSON_H

#include <jansson.h>
#include <stddef.h>
#include "core/err.h"

/* max_depth: of lists and objects in each other, the outermost counts. max_values: numbers, strings, keys, .. in all: a
 * value costs up to 100 bytes, so that a file of nothing but commas would cost a hundred times its size. */
int strict_json(json_t **out, const char *text, size_t n, int max_depth, size_t max_values, struct err *e);

#endif
