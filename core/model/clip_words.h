/* core/model/clip_words.h: what stands before CLIP's pair merging: a text cleaned up and split into words as
 * transformers' CLIPTokenizer does it without ftfy (its BasicTokenizer, then one regular expression).
 *
 *     char *clean;
 *     size_t n, at = 0;
 *     if (clip_words_clean(&clean, &n, text, bytes, e)) ...
 *     for (struct clip_word w; clip_words_next(&w, clean, n, &at);) ...
 *     free(clean);                                                                                            */
#ifndef UNICON_CORE_MODEL_CLIP_WORDS_H
#define UNICON_CORE_MODEL_CLIP_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include "core/err.h"

/* As they stand in a text: clip_words_next() gives them in one piece, in whatever case. */
#define CLIP_START_WORD "<|startoftext|>"
#define CLIP_END_WORD   "<|endoftext|>"

struct clip_word {
    const char *text;           /* borrowed, not ended by 0 */
    size_t bytes;
};

/* Drop control, unassigned and private characters and what is no UTF-8, put blanks around Han, compose (NFC), lower
 * the case. Valid UTF-8, malloc'ed into *out. */
int clip_words_clean(char **out, size_t *out_bytes, const char *text, size_t bytes, struct err *e);

/* The word at or after *at, which moves behind it; false at the end. Words are a start or end word, an English
 * contraction's tail, a run of letters, one digit, or a run of anything else. */
bool clip_words_next(struct clip_word *word, const char *text, size_t bytes, size_t *at);

#endif
