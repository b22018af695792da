#include "store/strict_json.h"

#include <stdbool.h>
#include <string.h>

/* What the text could grow to, seen from its punctuation alone, before anything is built from it. */
static int check_extent(const char *text, size_t n, int max_depth, size_t max_values, struct err *e)
{
    size_t values = 1;
    int depth = 0;
    bool quoted = false;

    for (size_t i = 0; i < n; i++) {
        const char c = text[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
            continue;
        }
        quoted = c == '"';
        values += c == ',' || c == ':' || c == '[' || c == '{';
        depth += c == '[' || c == '{';
        if (depth > max_depth)
            return err_set(e, E_FORMAT, "JSON is nested deeper than %d at byte %zu", max_depth, i);
        if (values > max_values)
            return err_set(e, E_FORMAT, "JSON has more than %zu values", max_values);
        depth -= c == ']' || c == '}';
    }
    return OK;
}

/* What jansson says, less the piece of the file that it quotes: that may be anything. Out of memory it mostly says
 * nothing. */
static int explain(json_error_t *why, struct err *e)
{
    char *quote;

    if (!why->text[0] || json_error_code(why) == json_error_out_of_memory)
        return err_set(e, E_NOMEM, "out of memory for JSON");
    quote = strstr(why->text, json_error_code(why) == json_error_duplicate_key ? " \"" : " near ");
    if (quote)
        *quote = '\0';
    return err_set(e, E_FORMAT, "not JSON, line %d, column %d: %s", why->line, why->column, why->text);
}

int strict_json(json_t **out, const char *text, size_t n, int max_depth, size_t max_values, struct err *e)
{
    json_error_t why = { 0 };
    json_t *top;

    if (check_extent(text, n, max_depth, max_values, e))
        return E_FORMAT;
    top = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!top)
        return explain(&why, e);
    if (!json_is_object(top)) {
        json_decref(top);
        return err_set(e, E_FORMAT, "not a JSON object");
    }
    *out = top;
    return OK;
}
