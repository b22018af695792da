/* core/model/clip_bpe.c: a vocabulary from its merges and words, and merging by a heap of pairs: n log n in a word's
 * length. Cleaning up and splitting is in clip_words.c. */
#include "core/model/clip_bpe.h"

#include <stdlib.h>
#include <string.h>
#include "core/arena.h"
#include "core/model/clip_table.h"
#include "core/model/clip_words.h"

enum {
    MAX_MERGES = 49152 - 256 - 2,       /* of CLIP's training; what a file has beyond is not read */
    MAX_WORDS = 1 << 20,
    MAX_BYTES = 1 << 26,                /* of all strings together */
    WORD_END_BYTES = 4                  /* "</w>" */
};

struct clip_bpe {
    struct clip_table t;
    int32_t byte[2][256];               /* the symbol of a byte, inside a word and at its end */
    int32_t start, end, special;        /* symbols; special -1: none */
    int n_id;
};

static const char *text_of(const struct clip_bpe *b, int32_t symbol)
{
    return b->t.text + b->t.symbol[symbol].at;
}

static int32_t id_of(const struct clip_bpe *b, int32_t symbol)
{
    return b->t.symbol[symbol].id;
}

static int32_t add_symbol(struct clip_bpe *b, const char *text, size_t bytes)
{
    return clip_table_add(&b->t, text, bytes);
}

/* A word from a file as a message may hold it: one line, whole characters, not long. */
struct shown {
    char text[44];
};

static struct shown show(const char *word)
{
    struct shown s = { { 0 } };
    size_t n = strnlen(word, sizeof s.text);

    if (n == sizeof s.text)
        for (n = 40; n > 0 && ((unsigned char)word[n] & 0xC0) == 0x80;)
            n--;
    for (size_t i = 0; i < n; i++)
        s.text[i] = (unsigned char)word[i] < 0x20 || word[i] == 0x7F ? '?' : word[i];
    if (word[n])
        memcpy(s.text + n, "..", 2);
    return s;
}

/* ---- making one ---- */

/* Bytes that print map to themselves, the other 68 in order to 256 and on: Radford et al. 2019, GPT-2. Ids count the
 * first kind first. */
static void add_bytes(struct clip_bpe *b)
{
    int32_t order[256], code[256], n = 0, other = 256;

    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < 256; i++)
            if (((i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174) == !pass) {
                code[i] = pass ? other++ : i;
                order[n++] = i;
            }
    for (int end = 0; end < 2; end++)
        for (int i = 0; i < 256; i++) {
            const int32_t c = code[order[i]];
            char text[8] = { (char)c };
            size_t bytes = 1;
            if (c >= 0x80) {
                text[0] = (char)(0xC0 | c >> 6);
                text[bytes++] = (char)(0x80 | (c & 0x3F));
            }
            if (end) {
                memcpy(text + bytes, "</w>", WORD_END_BYTES);
                bytes += WORD_END_BYTES;
            }
            b->byte[end][order[i]] = add_symbol(b, text, bytes);
        }
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next run of non-blanks in [*from, to). */
static size_t take_word(const char **word, const char **from, const char *to)
{
    const char *p = *from;

    while (p < to && is_blank(*p))
        p++;
    *word = p;
    while (p < to && !is_blank(*p))
        p++;
    *from = p;
    return (size_t)(p - *word);
}

/* The next line of [*from, to) without its end; false behind the last. */
static bool take_line(const char **line, const char **line_end, const char **from, const char *to)
{
    if (*from >= to)
        return false;
    *line = *from;
    *line_end = memchr(*from, '\n', (size_t)(to - *from));
    if (!*line_end)
        *line_end = to;
    *from = *line_end < to ? *line_end + 1 : to;
    return true;
}

static int add_merge(struct clip_bpe *b, const char *line, const char *line_end, int32_t rank, int32_t *joined,
                     struct err *e)
{
    const char *word[3];
    size_t bytes[3];
    int32_t left, right;

    for (int k = 0; k < 3; k++)
        bytes[k] = take_word(&word[k], &line, line_end);
    if (!bytes[1] || bytes[2])
        return err_set(e, E_FORMAT, "merge %d is not two words", (int)rank + 1);
    left = add_symbol(b, word[0], bytes[0]);
    right = add_symbol(b, word[1], bytes[1]);
    *joined = clip_table_join(&b->t, left, right);
    clip_table_rank(&b->t, left, right, *joined, rank);
    return OK;
}

static int set_id(struct clip_bpe *b, int32_t symbol, int32_t id, struct err *e)
{
    if (id_of(b, symbol) >= 0)
        return err_set(e, E_FORMAT, "the word '%s' comes twice", show(text_of(b, symbol)).text);
    if (id < 0 || id > CLIP_BPE_MAX_ID)
        return err_set(e, E_FORMAT, "the word '%s' has the id %ld: 0 to %d is allowed", show(text_of(b, symbol)).text,
                       (long)id, (int)CLIP_BPE_MAX_ID);
    b->t.symbol[symbol].id = id;
    if (id >= b->n_id)
        b->n_id = id + 1;
    return OK;
}

/* Start and end must have ids. A byte, or what a merge makes, that the words leave out is unknown: the end's id, as the
 * reference has it. */
static int complete_ids(struct clip_bpe *b, const int32_t *joined, int32_t n_merge, struct err *e)
{
    for (int i = 0; i < 2; i++)
        if (id_of(b, i ? b->end : b->start) < 0)
            return err_set(e, E_FORMAT, "the word '%s' is missing", show(text_of(b, i ? b->end : b->start)).text);
    for (int32_t i = 0; i < 512 + n_merge; i++) {
        const int32_t s = i < 512 ? i : joined[i - 512];
        if (id_of(b, s) < 0)
            b->t.symbol[s].id = id_of(b, b->end);
    }
    return OK;
}

/* joined: room for the symbol of every merge. */
static int fill(struct clip_bpe *b, int32_t *joined, const char *from, const char *to, const struct clip_bpe_word *word,
                int n_word, struct err *e)
{
    const char *line, *line_end;
    int32_t n_merge = 0;
    int rc = OK;

    add_bytes(b);
    while (!rc && n_merge < MAX_MERGES && take_line(&line, &line_end, &from, to)) {
        rc = add_merge(b, line, line_end, n_merge, &joined[n_merge], e);
        n_merge++;
    }
    b->start = add_symbol(b, CLIP_START_WORD, strlen(CLIP_START_WORD));
    b->end = add_symbol(b, CLIP_END_WORD, strlen(CLIP_END_WORD));
    for (int i = 0; !rc && i < n_word; i++)
        rc = set_id(b, add_symbol(b, word[i].text, strlen(word[i].text)), word[i].id, e);
    if (!word) {
        for (int32_t i = 0; !rc && i < 512 + n_merge; i++)
            rc = set_id(b, i < 512 ? i : joined[i - 512], i, e);
        if (!rc)
            rc = set_id(b, b->start, 512 + n_merge, e);
        if (!rc)
            rc = set_id(b, b->end, 513 + n_merge, e);
    }
    return rc ? rc : complete_ids(b, joined, n_merge, e);
}

/* Room for all that fill() can add, counted beforehand. */
static int reserve(struct clip_bpe *b, const char *from, const char *to, const struct clip_bpe_word *word, int n_word,
                   size_t *n_merge, struct err *e)
{
    size_t bytes = 512 * 8 + 64, n = 0;
    const char *line, *line_end;

    for (; n < MAX_MERGES && take_line(&line, &line_end, &from, to); n++)
        bytes += 2 * (size_t)(line_end - line) + 4;         /* left and right, both together, three zeros */
    for (int i = 0; i < n_word && bytes < MAX_BYTES; i++)
        bytes += strlen(word[i].text) + 1;
    if (bytes >= MAX_BYTES)
        return err_set(e, E_FORMAT, "the words are longer than %d bytes together", (int)MAX_BYTES);
    *n_merge = n;
    return clip_table_open(&b->t, bytes, 512 + 2 + 3 * n + (size_t)n_word, n, e);
}

/* Past the line "#version: 0.2" if the file begins with it. */
static const char *skip_version(const char *from, const char *to)
{
    const char *line, *line_end;

    if (to - from >= 8 && !memcmp(from, "#version", 8))
        (void)take_line(&line, &line_end, &from, to);
    return from;
}

int clip_bpe_new(struct clip_bpe **out, const char *merges, size_t merges_bytes, const struct clip_bpe_word *word,
                 int n_word, struct err *e)
{
    const char *from = merges_bytes ? merges : "", *to = from + merges_bytes;
    struct clip_bpe *b = NULL;
    int32_t *joined = NULL;
    size_t n_merge = 0;
    int rc = OK;

    if (n_word < 0 || (!word && n_word))
        return err_set(e, E_ARG, "a vocabulary of %d words", n_word);
    if (n_word > MAX_WORDS || merges_bytes >= MAX_BYTES)
        return err_set(e, E_FORMAT, "a vocabulary of %d words and %zu bytes of merges: up to %d and %d are read",
                       n_word, merges_bytes, (int)MAX_WORDS, (int)MAX_BYTES);
    while (to > from && (to[-1] == '\n' || is_blank(to[-1])))
        to--;
    from = skip_version(from, to);
    b = arena_fault_now() ? NULL : calloc(1, sizeof *b);
    if (b) {
        b->special = -1;
        rc = reserve(b, from, to, word, n_word, &n_merge, e);
        joined = rc || arena_fault_now() ? NULL : malloc((n_merge + 1) * sizeof *joined);
    }
    if (!rc && !joined)
        rc = err_set(e, E_NOMEM, "out of memory for a vocabulary of %zu merges", n_merge);
    if (!rc)
        rc = fill(b, joined, from, to, word, n_word, e);
    free(joined);
    if (rc)
        clip_bpe_free(b);
    else
        *out = b;
    return rc;
}

void clip_bpe_free(struct clip_bpe *b)
{
    if (b)
        clip_table_close(&b->t);
    free(b);
}

int32_t clip_bpe_start(const struct clip_bpe *b)
{
    return id_of(b, b->start);
}

int32_t clip_bpe_end(const struct clip_bpe *b)
{
    return id_of(b, b->end);
}

int32_t clip_bpe_id(const struct clip_bpe *b, const char *word)
{
    const int32_t s = clip_table_find(&b->t, word, strlen(word));

    return s < 0 ? -1 : id_of(b, s);
}

int clip_bpe_n_id(const struct clip_bpe *b)
{
    return b->n_id;
}

int clip_bpe_set_special(struct clip_bpe *b, const char *word, struct err *e)
{
    const int32_t s = clip_table_find(&b->t, word, strlen(word));

    if (!*word || s < 0 || id_of(b, s) < 0)
        return err_set(e, E_FORMAT, "the special word '%s' is not in the vocabulary", show(word).text);
    b->special = s;
    return OK;
}

/* ---- merging ---- */

/* A word being merged is a list of symbols over its bytes: a symbol stands where its first byte is. A heap holds the
 * ranked pairs as rank << 32 | place, so that the smallest is the next to merge, the leftmost first. A pair whose
 * symbols have gone stays until it comes up and is seen to be no more. A word of n bytes begins with n - 1 pairs and
 * each merge adds two at most, so 3 n have room. */
struct work {
    int32_t *symbol, *next, *before, *pass; /* symbol -1: merged into one on the left */
    uint64_t *heap;
    size_t n_heap, room;                /* room: bytes of a word */
    void *memory;
    int32_t *id;                        /* all ids so far */
    size_t n_id, id_room;
};

static void heap_push(struct work *w, uint64_t key)
{
    size_t i = w->n_heap++;

    for (; i && w->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = key;
}

static uint64_t heap_pop(struct work *w)
{
    const uint64_t top = w->heap[0], key = w->heap[--w->n_heap];
    size_t i = 0;

    for (size_t k = 1; k < w->n_heap; k = 2 * i + 1) {
        k += k + 1 < w->n_heap && w->heap[k + 1] < w->heap[k];
        if (w->heap[k] >= key)
            break;
        w->heap[i] = w->heap[k];
        i = k;
    }
    w->heap[i] = key;
    return top;
}

/* The pair that begins at place i; NULL if there is none or it is not ranked. n: the word's end. */
static const struct clip_pair *pair_at(const struct clip_bpe *b, const struct work *w, int32_t i, int32_t n)
{
    return w->symbol[i] < 0 || w->next[i] >= n ? NULL : clip_table_pair(&b->t, w->symbol[i], w->symbol[w->next[i]]);
}

static void push_pair(const struct clip_bpe *b, struct work *w, int32_t i, int32_t n)
{
    const struct clip_pair *p = i >= 0 ? pair_at(b, w, i, n) : NULL;

    if (p)
        heap_push(w, (uint64_t)p->rank << 32 | (uint32_t)i);
}

/* Merge all pairs of the lowest rank from left to right, and only then look at the pairs that this made: in a file
 * whose merges are out of order one of those could rank lower still. They cannot have the same rank, for they hold a
 * longer symbol. */
static void merge_pass(const struct clip_bpe *b, struct work *w, int32_t n)
{
    const uint64_t rank = w->heap[0] >> 32;
    int32_t n_pass = 0, n_done = 0;

    while (w->n_heap && w->heap[0] >> 32 == rank)
        w->pass[n_pass++] = (int32_t)(uint32_t)heap_pop(w);
    for (int32_t k = 0; k < n_pass; k++) {
        const int32_t i = w->pass[k];
        const struct clip_pair *p = pair_at(b, w, i, n);
        if (!p || (uint64_t)p->rank != rank)
            continue;
        w->symbol[i] = p->joined;
        w->symbol[w->next[i]] = -1;
        w->next[i] = w->next[w->next[i]];
        if (w->next[i] < n)
            w->before[w->next[i]] = i;
        w->pass[n_done++] = i;
    }
    for (int32_t k = 0; k < n_done; k++) {
        const int32_t i = w->pass[k];
        push_pair(b, w, i, n);
        if (!k || w->before[i] != w->pass[k - 1])           /* else it was pushed just now */
            push_pair(b, w, w->before[i], n);
    }
}

static int make_room(struct work *w, size_t bytes, struct err *e)
{
    const size_t room = bytes > 256 ? 2 * bytes : 512;

    if (bytes <= w->room)
        return OK;
    free(w->memory);
    w->room = 0;
    w->memory = arena_fault_now() ? NULL : malloc(room * (3 * sizeof *w->heap + 4 * sizeof *w->symbol));
    if (!w->memory)
        return err_set(e, E_NOMEM, "out of memory for a word of %zu bytes", bytes);
    w->heap = w->memory;
    w->symbol = (int32_t *)(w->heap + 3 * room);
    w->next = w->symbol + room;
    w->before = w->next + room;
    w->pass = w->before + room;
    w->room = room;
    return OK;
}

static int encode_word(const struct clip_bpe *b, struct work *w, const struct clip_word *word, struct err *e)
{
    const int32_t n = (int32_t)word->bytes;
    const int32_t whole[2] = { b->start, b->end };
    int rc = make_room(w, word->bytes, e);

    if (rc)
        return rc;
    for (int k = 0; k < 2; k++)
        if (word->bytes == b->t.symbol[whole[k]].bytes && !memcmp(word->text, text_of(b, whole[k]), word->bytes)) {
            w->id[w->n_id++] = id_of(b, whole[k]);
            return OK;
        }
    for (int32_t i = 0; i < n; i++) {
        w->symbol[i] = b->byte[i == n - 1][(unsigned char)word->text[i]];
        w->next[i] = i + 1;
        w->before[i] = i - 1;
    }
    w->n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        push_pair(b, w, i, n);
    while (w->n_heap)
        merge_pass(b, w, n);
    for (int32_t i = 0; i < n; i = w->next[i])
        w->id[w->n_id++] = id_of(b, w->symbol[i]);
    return OK;
}

/* Room for n more ids. */
static int make_id_room(struct work *w, size_t n, struct err *e)
{
    const size_t room = 2 * (w->n_id + n) + 64;
    int32_t *id;

    if (w->n_id + n <= w->id_room)
        return OK;
    id = arena_fault_now() ? NULL : realloc(w->id, room * sizeof *id);
    if (!id)
        return err_set(e, E_NOMEM, "out of memory for %zu ids", room);
    w->id = id;
    w->id_room = room;
    return OK;
}

/* The ids of a stretch between special words: at most one for each byte. */
static int encode_stretch(const struct clip_bpe *b, struct work *w, const char *text, size_t bytes, struct err *e)
{
    struct clip_word word;
    char *clean = NULL;
    size_t n = 0, at = 0;
    int rc = bytes ? clip_words_clean(&clean, &n, text, bytes, e) : OK;

    if (!rc)
        rc = make_id_room(w, n, e);
    while (!rc && clip_words_next(&word, clean, n, &at))
        rc = encode_word(b, w, &word, e);
    free(clean);
    return rc;
}

/* The special word that begins a text, the longest if several do; -1: none does. */
static int32_t special_at(const struct clip_bpe *b, const char *text, size_t bytes)
{
    const int32_t special[3] = { b->start, b->end, b->special };
    int32_t found = -1;

    for (int k = 0; k < 3; k++) {
        const struct clip_symbol *s = special[k] < 0 ? NULL : &b->t.symbol[special[k]];
        if (s && s->bytes <= bytes && !memcmp(text, b->t.text + s->at, s->bytes)
            && (found < 0 || s->bytes > b->t.symbol[found].bytes))
            found = special[k];
    }
    return found;
}

static int encode_text(const struct clip_bpe *b, struct work *w, const char *text, size_t bytes, struct err *e)
{
    size_t from = 0;
    int rc = OK;

    for (size_t i = 0; i <= bytes && !rc;) {
        const int32_t s = i < bytes ? special_at(b, text + i, bytes - i) : -1;
        if (s < 0 && i < bytes) {
            i++;
            continue;
        }
        rc = encode_stretch(b, w, text + from, i - from, e);
        if (!rc)
            rc = make_id_room(w, 1, e);
        if (rc || s < 0)
            break;
        w->id[w->n_id++] = id_of(b, s);
        from = i += b->t.symbol[s].bytes;
    }
    return rc;
}

int clip_bpe_ids(const struct clip_bpe *b, const char *text, int32_t **id, int *n, struct err *e)
{
    const size_t bytes = strlen(text);
    struct work w = { 0 };
    int rc;

    if (bytes > CLIP_BPE_MAX_TEXT)
        return err_set(e, E_ARG, "a prompt of %zu bytes: at most %d are allowed", bytes, (int)CLIP_BPE_MAX_TEXT);
    rc = encode_text(b, &w, text, bytes, e);
    free(w.memory);
    if (rc) {
        free(w.id);
        return rc;
    }
    *id = w.id;
    *n = (int)w.n_id;
    return OK;
}

int clip_bpe_encode(const struct clip_bpe *b, const char *text, int32_t *id, int n, int32_t pad, int *left_out,
                    struct err *e)
{
    int32_t *all = NULL;
    int n_all = 0, n_kept, rc;

    if (n < 2)
        return err_set(e, E_ARG, "room for %d ids: start and end alone need 2", n);
    rc = clip_bpe_ids(b, text, &all, &n_all, e);
    if (rc)
        return rc;
    n_kept = n_all < n - 2 ? n_all : n - 2;
    id[0] = clip_bpe_start(b);
    memcpy(id + 1, all, (size_t)n_kept * sizeof *id);
    id[n_kept + 1] = clip_bpe_end(b);
    for (int i = n_kept + 2; i < n; i++)
        id[i] = pad;
    if (left_out)
        *left_out = n_all - n_kept;
    free(all);
    return OK;
}
