/* tests/fuzz/f_spec.c: any bytes as a job spec in JSON. spec_from_json() refuses them with a status and a sentence of
 * one line, or makes a spec that goes to JSON and back without a change. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spec s = { 0 }, t = { 0 };
    struct err e = { 0 };
    char *text = NULL, *again = NULL;
    int rc = spec_from_json(&s, (const char *)data, size, &e);

    must(rc == OK || rc == E_FORMAT || rc == E_NOMEM);
    if (rc) {
        must(e.code == rc && !strncmp(e.text, "job spec: ", 10) && !strchr(e.text, '\n') && !s.kind);
        return 0;
    }
    must(s.kind != NULL && spec_to_json(&text, &s, &e) == OK);
    must(spec_from_json(&t, text, strlen(text), &e) == OK && t.kind == s.kind);
    must(spec_to_json(&again, &t, &e) == OK && !strcmp(text, again));
    for (int i = 0; i < s.kind->n_key; i++)
        if (s.kind->key[i].type == SPEC_DOUBLE)
            must(spec_double(&s, s.kind->key[i].name) == spec_double(&t, s.kind->key[i].name));
    free(text);
    free(again);
    spec_free(&s);
    spec_free(&t);
    return 0;
}
