/* store/vocab.c: vocab.json and the two files of special tokens by jansson; CLIP's merges as part of the program. */
#include "store/vocab.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "store/map.h"
#include "store/strict_json.h"

enum { MAX_JSON_BYTES = 1 << 25, MAX_DEPTH = 64, MAX_VALUES = 1 << 22 };

/* The path is relative to the repository's root, where the compiler runs. */
__asm__(".pushsection .rodata\n"
        ".globl unicon_clip_merges, unicon_clip_merges_end\n"
        ".hidden unicon_clip_merges, unicon_clip_merges_end\n"
        "unicon_clip_merges: .incbin \"store/builtin/clip_merges.txt\"\n"
        "unicon_clip_merges_end: .byte 0\n"
        ".popsection\n");
extern const char unicon_clip_merges[], unicon_clip_merges_end[];

static int load_object(json_t **out, const char *text, size_t bytes, struct err *e)
{
    if (bytes > MAX_JSON_BYTES)
        return err_set(e, E_FORMAT, "%zu bytes: at most %d are read", bytes, (int)MAX_JSON_BYTES);
    return strict_json(out, text, bytes, MAX_DEPTH, MAX_VALUES, e);
}

/* {"word": id, ..} as a list; texts are the object's. */
static int list_words(struct clip_bpe_word **out, int *n_out, json_t *root, struct err *e)
{
    const size_t n = json_object_size(root);
    struct clip_bpe_word *word = malloc((n + 1) * sizeof *word);
    const char *key;
    json_t *value;
    int i = 0;

    if (!word)
        return err_set(e, E_NOMEM, "out of memory for %zu words", n);
    json_object_foreach(root, key, value) {
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > CLIP_BPE_MAX_ID) {
            free(word);
            return err_set(e, E_FORMAT, "word %d has no id from 0 to %d", i + 1, (int)CLIP_BPE_MAX_ID);
        }
        word[i++] = (struct clip_bpe_word){ key, (int32_t)id };
    }
    *out = word;
    *n_out = i;
    return OK;
}

int vocab_parse(struct clip_bpe **out, const char *merges, size_t merges_bytes, const char *json, size_t json_bytes,
                struct err *e)
{
    struct clip_bpe_word *word = NULL;
    json_t *root = NULL;
    int n = 0, rc = OK;

    if (json) {
        rc = load_object(&root, json, json_bytes, e);
        if (!rc)
            rc = list_words(&word, &n, root, e);
        if (rc)
            rc = err_in(e, "vocab.json");
    }
    if (!rc) {
        rc = clip_bpe_new(out, merges, merges_bytes, word, n, e);
        if (rc)
            rc = err_in(e, json ? "merges.txt with vocab.json" : "merges.txt");
    }
    free(word);
    json_decref(root);
    return rc;
}

int vocab_builtin(struct clip_bpe **out, struct err *e)
{
    return vocab_parse(out, unicon_clip_merges, (size_t)(unicon_clip_merges_end - unicon_clip_merges), NULL, 0, e);
}

/* A file of the directory; without `needed` one that is not there is empty and has no base. */
static int open_file(struct map *m, const char *directory, const char *name, bool needed, struct err *e)
{
    char path[4096];
    struct stat st;

    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return err_set(e, E_ARG, "the path is too long");
    if (!needed && stat(path, &st) && (errno == ENOENT || errno == ENOTDIR))
        return OK;
    return map_open(m, path, e);
}

static int open_object(json_t **out, const char *directory, const char *name, struct err *e)
{
    struct map m = { 0 };
    int rc = open_file(&m, directory, name, false, e);

    if (!rc && m.base) {
        rc = load_object(out, (const char *)m.base, m.size, e);
        if (rc)
            rc = err_in(e, "%s", name);
    }
    map_close(&m);
    return rc;
}

/* "pad_token": "!" or {"content": "!", ..}; NULL if it is missing or null. */
static int pad_of(const char **pad, json_t *root, struct err *e)
{
    json_t *value = json_object_get(root, "pad_token");

    if (json_is_object(value))
        value = json_object_get(value, "content");
    else if (!value || json_is_null(value))
        return OK;
    if (!json_is_string(value))
        return err_set(e, E_FORMAT, "the pad token is neither a string nor an object with a string \"content\"");
    *pad = json_string_value(value);
    return OK;
}

/* special_tokens_map.json is older and wins over tokenizer_config.json, unless that has "added_tokens_decoder": then
 * it was written by a version that no longer reads the map. A pad token is cut out of texts like start and end. */
static int find_pad(struct clip_bpe *b, const char *directory, int32_t *pad_id, struct err *e)
{
    json_t *map = NULL, *config = NULL;
    const char *pad = NULL;
    int rc = open_object(&config, directory, "tokenizer_config.json", e);

    if (!rc && !json_object_get(config, "added_tokens_decoder"))
        rc = open_object(&map, directory, "special_tokens_map.json", e);
    if (!rc && (rc = pad_of(&pad, map, e)))
        rc = err_in(e, "special_tokens_map.json");
    if (!rc && !pad && (rc = pad_of(&pad, config, e)))
        rc = err_in(e, "tokenizer_config.json");
    if (!rc && pad && (rc = clip_bpe_set_special(b, pad, e)))
        rc = err_in(e, "the pad token of %s", map && json_object_get(map, "pad_token") ? "special_tokens_map.json"
                    : "tokenizer_config.json");
    if (!rc)
        *pad_id = pad ? clip_bpe_id(b, pad) : clip_bpe_end(b);
    json_decref(map);
    json_decref(config);
    return rc;
}

int vocab_open(struct clip_bpe **out, const char *directory, int32_t *pad_id, struct err *e)
{
    struct map merges = { 0 }, words = { 0 };
    struct clip_bpe *b = NULL;
    int rc = open_file(&merges, directory, "merges.txt", true, e);

    if (!rc)
        rc = open_file(&words, directory, "vocab.json", false, e);
    if (!rc)
        rc = vocab_parse(&b, (const char *)merges.base, merges.size, (const char *)words.base, words.size, e);
    if (!rc)
        rc = find_pad(b, directory, pad_id, e);
    map_close(&merges);
    map_close(&words);
    if (rc) {
        clip_bpe_free(b);
        return err_in(e, "reading the tokenizer in '%s'", directory);
    }
    *out = b;
    return OK;
}
