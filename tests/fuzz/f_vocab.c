/* tests/fuzz/f_vocab.c: any bytes as merges.txt and vocab.json. The first byte says how much is merges, in 255ths; 255:
 * all of it, and there is no vocab.json. A vocabulary that is taken encodes texts. */
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

static void use(struct clip_bpe *b)
{
    static const char text[] = "abab a'b aaaab bbaa<|endoftext|>\xC3\xA9!\xFF x";
    struct err e = { 0 };
    int32_t *id = NULL;
    int n = 0, n_special = 0;

    must(clip_bpe_n_id(b) > 0 && clip_bpe_n_id(b) <= CLIP_BPE_MAX_ID + 1);
    must(clip_bpe_start(b) >= 0 && clip_bpe_end(b) < clip_bpe_n_id(b));
    must(!clip_bpe_ids(b, text, &id, &n, &e) && n > 0 && n < (int)sizeof text);
    for (int i = 0; i < n; i++)
        must(id[i] >= 0 && id[i] < clip_bpe_n_id(b));
    free(id);
    id = NULL;
    must(!clip_bpe_set_special(b, "a", &e) && !clip_bpe_ids(b, "aba", &id, &n, &e));
    for (int i = 0; i < n; i++)
        n_special += id[i] == clip_bpe_id(b, "a");
    must(n == 3 && n_special >= 2);
    free(id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct clip_bpe *b = NULL;
    struct err e = { 0 };
    const size_t n = size ? size - 1 : 0, cut = n && data[0] < 255 ? n * data[0] / 255 : n;
    char *merges = malloc(cut + 1), *json = malloc(n - cut + 1);        /* exact sizes, so that overruns are seen */
    int rc;

    if (merges && json && size) {
        memcpy(merges, data + 1, cut);
        memcpy(json, data + 1 + cut, n - cut);
        merges = realloc(merges, cut ? cut : 1);
        rc = vocab_parse(&b, merges, cut, data[0] < 255 ? json : NULL, n - cut, &e);
        must(rc == OK || rc == E_FORMAT);
        must(rc ? !b && e.code == rc && e.text[0] && !strchr(e.text, '\n') : b != NULL);
        if (b)
            use(b);
        clip_bpe_free(b);
    }
    free(merges);
    free(json);
    return 0;
}
