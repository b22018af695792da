/* store/vocab.h: a tokenizer's files.
 *
 *     struct clip_bpe *b;
 *     if (vocab_open(&b, "model/tokenizer", &pad, e)) ...      merges.txt, vocab.json, special_tokens_map.json
 *     if (vocab_builtin(&b, e)) ...                            CLIP's own, compiled in                      */
#ifndef UNICON_STORE_VOCAB_H
#define UNICON_STORE_VOCAB_H

#include "core/model/clip_bpe.h"

/* vocab.json may be missing: ids then follow from the merges. *pad_id: the pad token's id by special_tokens_map.json,
 * tokenizer_config.json, else the end token's. */
int vocab_open(struct clip_bpe **out, const char *directory, int32_t *pad_id, struct err *e);
int vocab_builtin(struct clip_bpe **out, struct err *e);

/* From bytes: merges, and vocab.json or NULL. */
int vocab_parse(struct clip_bpe **out, const char *merges, size_t merges_bytes, const char *json, size_t json_bytes,
                struct err *e);

#endif
