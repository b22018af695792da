/* core/model/clip_words.c: clean-up in three passes, then the regular expression by hand. Tables of characters are
 * libunistring's, of the Unicode version that it was made for. */
#include "core/model/clip_words.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unicase.h>
#include <unictype.h>
#include <uninorm.h>
#include <unistr.h>
#include "core/arena.h"

/* The blocks that transformers calls Chinese: ideographs, but neither kana nor Hangul. */
static bool is_han(ucs4_t c)
{
    static const ucs4_t range[][2] = { { 0x4E00, 0x9FFF },   { 0x3400, 0x4DBF },   { 0x20000, 0x2A6DF },
                                       { 0x2A700, 0x2B73F }, { 0x2B740, 0x2B81F }, { 0x2B820, 0x2CEAF },
                                       { 0xF900, 0xFAFF },   { 0x2F800, 0x2FA1F } };

    for (size_t i = 0; i < sizeof range / sizeof *range; i++)
        if (c >= range[i][0] && c <= range[i][1])
            return true;
    return false;
}

/* The next character of a text; U+FFFD for bytes that are none. */
static ucs4_t take(const uint8_t *text, size_t bytes, size_t *at)
{
    ucs4_t c = text[*at];

    if (c < 0x80)
        (*at)++;
    else
        *at += (size_t)u8_mbtouc(&c, text + *at, bytes - *at);
    return c;
}

/* At most 5 bytes for every 3: a Han character with two blanks. */
static size_t tidy(uint8_t *out, const uint8_t *text, size_t bytes)
{
    size_t n = 0, at = 0;

    while (at < bytes) {
        const ucs4_t c = take(text, bytes, &at);
        const bool blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
        const bool han = is_han(c);

        if (blank || (c >= 0x80 && uc_is_general_category_withtable(c, UC_CATEGORY_MASK_Zs))) {
            out[n++] = ' ';
            continue;
        }
        if (c == 0xFFFD || uc_is_general_category_withtable(c, UC_CATEGORY_MASK_C))
            continue;
        if (han)
            out[n++] = ' ';
        n += (size_t)u8_uctomb(out + n, c, 4);
        if (han)
            out[n++] = ' ';
    }
    return n;
}

/* Does a letter with case come next, if one looks past what case ignores? */
static bool before_letter(const uint8_t *text, size_t bytes, size_t at)
{
    while (at < bytes) {
        const ucs4_t c = take(text, bytes, &at);
        if (!uc_is_property_case_ignorable(c))
            return uc_is_property_cased(c);
    }
    return false;
}

/* Python's str.lower: one to one, but for the dotted capital I, which is two, and the capital sigma, which is final
 * behind a letter and not before one. u8_tolower() finds other letters around it where a character is both cased and
 * ignored. At most 3 bytes for every 2. Words end with a blank, so that those of a text may be lowered together. */
static size_t lower(uint8_t *out, const uint8_t *text, size_t bytes)
{
    bool behind_letter = false;
    size_t n = 0, at = 0;

    while (at < bytes) {
        const ucs4_t c = take(text, bytes, &at);
        if (c < 0x80)
            out[n++] = (uint8_t)(c >= 'A' && c <= 'Z' ? c + 32 : c);
        else if (c == 0x130) {
            memcpy(out + n, "i\xCC\x87", 3);
            n += 3;
        } else if (c == 0x3A3)
            n += (size_t)u8_uctomb(out + n, behind_letter && !before_letter(text, bytes, at) ? 0x3C2 : 0x3C3, 4);
        else
            n += (size_t)u8_uctomb(out + n, uc_tolower(c), 4);
        if (!uc_is_property_case_ignorable(c))
            behind_letter = uc_is_property_cased(c);
    }
    return n;
}

int clip_words_clean(char **out, size_t *out_bytes, const char *text, size_t bytes, struct err *e)
{
    uint8_t *tidied = NULL, *composed = NULL, *lowered = NULL;
    size_t n = 0;
    int rc = OK;

    errno = 0;
    if (bytes <= (SIZE_MAX - 8) / 5 && !arena_fault_now())
        tidied = malloc(bytes / 3 * 5 + 8);
    if (tidied) {
        n = tidy(tidied, (const uint8_t *)text, bytes);
        composed = u8_normalize(UNINORM_NFC, tidied, n, NULL, &n);
    }
    if (composed && n <= (SIZE_MAX - 8) / 3 && !arena_fault_now())
        lowered = malloc(n / 2 * 3 + 8);
    if (lowered) {
        *out_bytes = lower(lowered, composed, n);
        *out = (char *)lowered;
    } else
        rc = err_set(e, E_NOMEM, "cleaning up a text of %zu bytes: %s", bytes, strerror(errno ? errno : ENOMEM));
    free(tidied);
    free(composed);
    return rc;
}

/* What a character is to the regular expression. U+0345 (iota subscript) is nothing at all: in the `regex` module a
 * caseless set asks its capital, a letter, and finds it neither in the letters nor outside them. After clean-up the
 * only white space is the blank, U+2028 and U+2029. */
enum kind { NOTHING, LETTER, NUMBER, OTHER };

static enum kind kind_of(ucs4_t c)
{
    if (c >= 'a' && c <= 'z')
        return LETTER;
    if (c == ' ' || c == 0x2028 || c == 0x2029 || c == 0x345)
        return NOTHING;
    if (uc_is_general_category_withtable(c, UC_CATEGORY_MASK_L))
        return LETTER;
    return uc_is_general_category_withtable(c, UC_CATEGORY_MASK_N) ? NUMBER : OTHER;
}

/* Bytes of `word` (lower case) at the beginning of a text in lower case, 0 if it is not there. The long s has no lower
 * case but counts as an s where case does not matter. */
static size_t starts_with(const char *text, size_t bytes, const char *word)
{
    size_t at = 0;

    for (; *word; word++) {
        if (at < bytes && text[at] == *word)
            at++;
        else if (*word == 's' && bytes - at >= 2 && !memcmp(text + at, "\xC5\xBF", 2))
            at += 2;
        else
            return 0;
    }
    return at;
}

/* The alternatives come first in the expression, so they win over a longer run of punctuation. */
static size_t fixed_word(const char *text, size_t bytes)
{
    static const char *const words[] = { CLIP_START_WORD, CLIP_END_WORD, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d" };
    size_t n = 0;

    if (*text == '<' || *text == '\'')
        for (size_t i = 0; i < sizeof words / sizeof *words && !n; i++)
            n = starts_with(text, bytes, words[i]);
    return n;
}

bool clip_words_next(struct clip_word *word, const char *text, size_t bytes, size_t *at)
{
    const uint8_t *byte = (const uint8_t *)text;
    enum kind kind = NOTHING;
    size_t from = *at, to = from;

    while (kind == NOTHING && to < bytes) {
        from = to;
        kind = kind_of(take(byte, bytes, &to));
    }
    *at = to;
    if (kind == NOTHING)
        return false;
    *word = (struct clip_word){ text + from, fixed_word(text + from, bytes - from) };
    if (word->bytes) {
        *at = from + word->bytes;
        return true;
    }
    if (kind != NUMBER)
        for (size_t next = to; next < bytes && kind_of(take(byte, bytes, &next)) == kind;)
            to = next;
    word->bytes = to - from;
    *at = to;
    return true;
}
