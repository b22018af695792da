/* tests/fuzz/f_bpe_text.c: any text to ids of the built-in vocabulary, once plainly and once with "!" cut out. Ids are
 * the vocabulary's, no more than bytes can give, and the same when asked again. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void try(const struct clip_bpe *b, const char *text, size_t bytes)
{
    struct err e = { 0 };
    int32_t *id = NULL, all[77];
    int n = -1, left = -1;
    const int rc = clip_bpe_ids(b, text, &id, &n, &e);

    must(rc == OK || rc == E_ARG);
    if (rc) {
        must(bytes > CLIP_BPE_MAX_TEXT && e.text[0]);
        return;
    }
    must(n >= 0 && (size_t)n <= 4 * bytes);
    for (int i = 0; i < n; i++)
        must(id[i] >= 0 && id[i] < clip_bpe_n_id(b));
    must(!clip_bpe_encode(b, text, all, 77, 7, &left, &e) && all[0] == clip_bpe_start(b));
    must(left == (n > 75 ? n - 75 : 0) && all[n > 75 ? 76 : n + 1] == clip_bpe_end(b));
    must(!n || !memcmp(all + 1, id, sizeof *id * (size_t)(n > 75 ? 75 : n)));
    for (int i = n + 2; i < 77; i++)
        must(all[i] == 7);
    free(id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct clip_bpe *b, *padded;
    struct err e = { 0 };
    char *text = malloc(size + 1);

    if (!b)
        must(!vocab_builtin(&b, &e) && !vocab_builtin(&padded, &e) && !clip_bpe_set_special(padded, "!", &e));
    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = 0;
    try(b, text, strlen(text));
    try(padded, text, strlen(text));
    free(text);
    return 0;
}
