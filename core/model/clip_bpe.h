/* core/model/clip_bpe.h: CLIP's tokenizer: text to ids by byte-level pair merging (Sennrich et al. 2016; Radford et al.
 * 2021, sec. 2.4). The same ids as transformers' slow CLIPTokenizer without ftfy.
 *
 *     struct clip_bpe *b;
 *     if (clip_bpe_new(&b, merges, size, NULL, 0, e)) ...
 *     int32_t id[77];
 *     if (clip_bpe_encode(b, "a red fox", id, 77, pad, &n_left_out, e)) ...
 *     clip_bpe_free(b);                                                                                       */
#ifndef UNICON_CORE_MODEL_CLIP_BPE_H
#define UNICON_CORE_MODEL_CLIP_BPE_H

#include <stddef.h>
#include <stdint.h>
#include "core/err.h"

struct clip_bpe;

struct clip_bpe_word {          /* one line of vocab.json */
    const char *text;           /* in the alphabet of printable bytes, "</w>" at a word's end */
    int32_t id;
};

enum { CLIP_BPE_MAX_ID = (1 << 24) - 1, CLIP_BPE_MAX_TEXT = 1 << 20 };

/* From the bytes of merges.txt (a first line "#version.." is skipped, of the rest at most 48,894 are used) and the
 * words of vocab.json; without those (NULL, 0) ids follow from the merges: 256 bytes, 256 byte + "</w>", one per merge,
 * <|startoftext|>, <|endoftext|>. Everything is copied. E_FORMAT for a merge without two words, a word that
 * comes twice, an id below 0 or above CLIP_BPE_MAX_ID, or no start and end word. Bytes, and what merges make, that the
 * words leave out are unknown: they get the end's id. */
int clip_bpe_new(struct clip_bpe **out, const char *merges, size_t merges_bytes, const struct clip_bpe_word *word,
                 int n_word, struct err *e);
void clip_bpe_free(struct clip_bpe *b);

int32_t clip_bpe_start(const struct clip_bpe *b);
int32_t clip_bpe_end(const struct clip_bpe *b);
int32_t clip_bpe_id(const struct clip_bpe *b, const char *word);        /* -1: there is none */
int clip_bpe_n_id(const struct clip_bpe *b);                            /* largest id + 1 */

/* From now on `word` is one id wherever a text has it, cut out before anything else is looked at, as the start and end
 * words always are. Which is what transformers does with the pad token: with SD2's "!" as padding, "no!!" ends in two
 * ids of "!" and none of "!!</w>". One such word at most; E_FORMAT if it has no id. */
int clip_bpe_set_special(struct clip_bpe *b, const char *word, struct err *e);

/* The ids of all of `text` (UTF-8; what is not becomes U+FFFD and is dropped), malloc'ed into *id, without start, end
 * or padding. E_ARG beyond CLIP_BPE_MAX_TEXT bytes. */
int clip_bpe_ids(const struct clip_bpe *b, const char *text, int32_t **id, int *n, struct err *e);

/* start, at most n - 2 ids, end, then `pad` up to n >= 2. *left_out is how many ids had no room; may be NULL. */
int clip_bpe_encode(const struct clip_bpe *b, const char *text, int32_t *id, int n, int32_t pad, int *left_out,
                    struct err *e);

#endif
