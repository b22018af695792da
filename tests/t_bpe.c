/* tests/t_bpe.c: CLIP's tokenizer against transformers (tests/reference/tokens.bin), against merging done plainly, and
 * with files that are wrong. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/arena.h"
#include "core/model/clip_bpe.h"
#include "store/vocab.h"
#include "tests/tap.h"

static struct clip_bpe *builtin;

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---- vectors ---- */

static const struct vector {
    const char *text;
    int n, id[40];
} vectors[] = {
    { "a photo of an astronaut riding a horse on mars", 10,
      { 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496 } },
    { "depth_map, best quality, extremely detailed, golden retriever in a field of dandelions", 18,
      { 10350, 318, 3923, 267, 949, 3027, 267, 6519, 12609, 267, 3878, 28394, 530, 320, 1570, 539, 12593, 44159 } },
    { "edge_map, ", 4, { 5461, 318, 3923, 267 } },
    { "pose_map, ", 4, { 4230, 318, 3923, 267 } },
    { "hed_map, ", 5, { 71, 538, 318, 3923, 267 } },
    { "It's  3 CATS\tdon't caf\u00E9 \u732B \U0001F642 v1.5", 15,
      { 585, 568, 274, 3989, 847, 713, 15304, 163, 234, 360, 14860, 341, 272, 269, 276 } },
    { "", 0, { 0 } },
    { " \t\r\n\u2028", 0, { 0 } },
    { "<|startoftext|>a<|EndOfText|>", 3, { 49406, 320, 49407 } },
    { "no!!", 2, { 871, 748 } },
};

static bool same_ids(const int32_t *id, int n, const int *want, int n_want)
{
    bool same = n == n_want;

    for (int i = 0; same && i < n; i++)
        same = id[i] == want[i];
    return same;
}

static void test_vectors(void)
{
    for (size_t k = 0; k < sizeof vectors / sizeof *vectors; k++) {
        const struct vector *v = &vectors[k];
        struct err e = { 0 };
        int32_t *id = NULL;
        int n = -1, rc = clip_bpe_ids(builtin, v->text, &id, &n, &e);
        tap_ok(!rc && same_ids(id, n, v->id, v->n), "ids of '%.30s': %d of them %s", k == 7 ? "blanks" : v->text, n,
               e.text);
        free(id);
    }
    tap_ok(clip_bpe_start(builtin) == 49406 && clip_bpe_end(builtin) == 49407 && clip_bpe_n_id(builtin) == 49408
           && clip_bpe_id(builtin, "!") == 0 && clip_bpe_id(builtin, "_") == 62 && clip_bpe_id(builtin, "a") == 64
           && clip_bpe_id(builtin, "a</w>") == 320 && clip_bpe_id(builtin, "in") == 512
           && clip_bpe_id(builtin, "re") == 515 && clip_bpe_id(builtin, "\u0143") == 255
           && clip_bpe_id(builtin, "jekyll</w>") == 49405 && clip_bpe_id(builtin, "<|endoftext|>") == 49407
           && clip_bpe_id(builtin, "no such word") == -1 && clip_bpe_id(builtin, "") == -1,
           "ids follow from the merges");
}

static void test_encode(void)
{
    struct err e = { 0 };
    int32_t id[8], wide[78];
    int left = -1;
    bool ok;

    ok = !clip_bpe_encode(builtin, "hed_map, ", id, 8, 5, &left, &e) && left == 0;
    tap_ok(ok && same_ids(id, 8, (const int[]){ 49406, 71, 538, 318, 3923, 267, 49407, 5 }, 8), "start, ids, end, pad");
    ok = !clip_bpe_encode(builtin, "hed_map, ", id, 7, 5, &left, &e) && left == 0;
    tap_ok(ok && same_ids(id, 7, (const int[]){ 49406, 71, 538, 318, 3923, 267, 49407 }, 7), "no room to spare");
    ok = !clip_bpe_encode(builtin, "hed_map, ", id, 5, 5, &left, &e) && left == 2;
    tap_ok(ok && same_ids(id, 5, (const int[]){ 49406, 71, 538, 318, 49407 }, 5), "too long: %d ids left out", left);
    ok = !clip_bpe_encode(builtin, "hed_map, ", id, 2, 5, NULL, &e);
    tap_ok(ok && id[0] == 49406 && id[1] == 49407, "start and end alone");
    id[0] = 9;
    tap_ok(clip_bpe_encode(builtin, "a", id, 1, 5, &left, &e) == E_ARG && id[0] == 9, "refused: %s", e.text);
    wide[77] = -7;
    ok = !clip_bpe_encode(builtin, "", wide, 77, 49407, &left, &e) && wide[0] == 49406 && wide[77] == -7;
    for (int i = 1; ok && i < 77; i++)
        ok = wide[i] == 49407;
    tap_ok(ok, "the empty prompt is 77 ids");
}

/* ---- what transformers says ---- */

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    long size = f && !fseek(f, 0, SEEK_END) ? ftell(f) : -1;
    char *text = size >= 0 ? malloc((size_t)size + 1) : NULL;

    if (text && (fseek(f, 0, SEEK_SET) || fread(text, 1, (size_t)size, f) != (size_t)size)) {
        free(text);
        text = NULL;
    }
    if (f)
        fclose(f);
    *n = text ? (size_t)size : 0;
    return text;
}

struct record {
    bool special;
    int n_bytes, n_id;
    const unsigned char *bytes, *id;
};

static int u16(const unsigned char *p)
{
    return p[0] | p[1] << 8;
}

static bool next_record(struct record *r, const unsigned char **at, const unsigned char *end)
{
    const unsigned char *p = *at;

    if (end - p < 5)
        return false;
    *r = (struct record){ p[0], u16(p + 1), u16(p + 3), p + 5, p + 5 + u16(p + 1) };
    if (end - p - 5 < r->n_bytes + 2 * r->n_id)
        return false;
    *at = r->id + 2 * r->n_id;
    return true;
}

static bool equals(const struct clip_bpe *b, const struct record *r, int number)
{
    char text[8192] = { 0 };
    struct err e = { 0 };
    int32_t *id = NULL;
    int n = 0, i = 0, rc;

    if (r->n_bytes >= (int)sizeof text)
        return false;
    memcpy(text, r->bytes, (size_t)r->n_bytes);
    rc = clip_bpe_ids(b, text, &id, &n, &e);
    while (!rc && i < n && i < r->n_id && id[i] == u16(r->id + 2 * i))
        i++;
    free(id);
    if (!rc && n == r->n_id && i == n)
        return true;
    tap_note("record %d, %d bytes: differs at id %d of %d (%d) %s", number, r->n_bytes, i, r->n_id, n, e.text);
    return false;
}

static void test_reference(void)
{
    size_t n = 0;
    char *file = read_file("tests/reference/tokens.bin", &n), *line = file ? memchr(file, '\n', n) : NULL;
    const unsigned char *at = (const unsigned char *)(line ? line + 1 : ""), *end = (const unsigned char *)file + n;
    struct clip_bpe *padded = NULL;
    struct record r;
    struct err e = { 0 };
    int count[2] = { 0 }, wrong[2] = { 0 };

    if (!line || vocab_builtin(&padded, &e) || clip_bpe_set_special(padded, "!", &e)) {
        tap_ok(false, "tests/reference/tokens.bin can be read %s", e.text);
        free(file);
        return;
    }
    for (int i = 0; next_record(&r, &at, end); i++) {
        count[r.special]++;
        wrong[r.special] += !equals(r.special ? padded : builtin, &r, i);
    }
    tap_ok(at == end && count[0] == 5300 && !wrong[0], "%d strings: %d differ from transformers", count[0], wrong[0]);
    tap_ok(count[1] == 300 && !wrong[1], "%d strings with \"!\" as padding: %d differ", count[1], wrong[1]);
    clip_bpe_free(padded);
    free(file);
}

/* ---- merging as its definition says: the lowest pair everywhere from the left, again and again ---- */

enum { N_MERGE = 40, MAX_TEXT = 64 };

struct plain {
    char left[N_MERGE][MAX_TEXT], right[N_MERGE][MAX_TEXT];
    char word[MAX_TEXT][MAX_TEXT];      /* what a text has become so far */
    int n;
};

static uint32_t draw(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

static int rank_of(const struct plain *p, int i)
{
    for (int r = N_MERGE - 1; r >= 0; r--)                  /* a pair that comes again counts where it came last */
        if (!strcmp(p->left[r], p->word[i]) && !strcmp(p->right[r], p->word[i + 1]))
            return r;
    return N_MERGE;
}

static void merge_plainly(struct plain *p)
{
    for (;;) {
        int best = N_MERGE, to = 0;
        for (int i = 0; i + 1 < p->n; i++)
            best = rank_of(p, i) < best ? rank_of(p, i) : best;
        if (best == N_MERGE)
            return;
        for (int i = 0; i < p->n; i++, to++) {
            const bool hit = i + 1 < p->n && rank_of(p, i) == best;
            char both[2 * MAX_TEXT];
            snprintf(both, sizeof both, "%s%s", p->word[i], hit ? p->word[i + 1] : "");
            snprintf(p->word[to], MAX_TEXT, "%.*s", MAX_TEXT - 1, both);
            i += hit;
        }
        p->n = to;
    }
}

/* The character that stands for byte number k of the vocabulary's order. */
static int byte_code(int k)
{
    return k < 94 ? 33 + k : k < 106 ? 161 + k - 94 : k < 188 ? 174 + k - 106 : 256 + k - 188;
}

static char texts[2 * N_MERGE][2 * MAX_TEXT], names[512][12];

/* Random pairs in random order, so that a pair may come before those that make its halves, the same string may be made
 * in two ways, and a pair may come twice. Returns how many strings there are. */
static int random_merges(struct plain *p, uint64_t *state)
{
    int n = 4;

    for (int i = 0; i < 4; i++)
        snprintf(texts[i], MAX_TEXT, "%c", 'a' + i);
    for (int i = 0; i < N_MERGE; i++) {
        const char *l, *r;
        int to = (int)draw(state, N_MERGE);
        do {
            l = texts[draw(state, (uint32_t)n)];
            r = texts[draw(state, (uint32_t)n)];
        } while (strchr(l, '<') || strlen(l) + strlen(r) > 15);
        while (p->left[to][0])
            to = (to + 1) % N_MERGE;
        snprintf(p->left[to], MAX_TEXT, "%.20s", l);
        snprintf(p->right[to], MAX_TEXT, "%.20s%s", r, strchr(r, '<') || draw(state, 3) ? "" : "</w>");
        snprintf(texts[n++], MAX_TEXT, "%.20s%.20s", p->left[to], p->right[to]);
    }
    return n;
}

/* The 512 bytes with ids 0 to 511, then what the merges make, each once. */
static int list_words(struct clip_bpe_word *word, int n_text)
{
    int n = 0;

    for (; n < 512; n++) {
        const int c = byte_code(n % 256);
        if (c < 128)
            snprintf(names[n], sizeof names[n], "%c%s", c, n < 256 ? "" : "</w>");
        else
            snprintf(names[n], sizeof names[n], "%c%c%s", 0xC0 | c >> 6, 0x80 | (c & 63), n < 256 ? "" : "</w>");
        word[n] = (struct clip_bpe_word){ names[n], n };
    }
    for (int i = 4; i < n_text; i++) {
        bool seen = false;
        for (int k = 0; k < n; k++)
            seen |= !strcmp(word[k].text, texts[i]);
        if (!seen) {
            word[n] = (struct clip_bpe_word){ texts[i], 2000 - n };
            n++;
        }
    }
    word[n++] = (struct clip_bpe_word){ "<|startoftext|>", 3000 };
    word[n++] = (struct clip_bpe_word){ "<|endoftext|>", 3001 };
    return n;
}

static struct clip_bpe *random_vocabulary(struct plain *p, uint64_t *state)
{
    static struct clip_bpe_word word[600 + N_MERGE];
    static char merges[1 << 14];
    struct clip_bpe *b = NULL;
    struct err e = { 0 };
    const int n_word = list_words(word, random_merges(p, state));
    int at = snprintf(merges, sizeof merges, "#version: x\n");

    for (int i = 0; i < N_MERGE; i++)
        at += snprintf(merges + at, sizeof merges - (size_t)at, "%s %s\n", p->left[i], p->right[i]);
    if (clip_bpe_new(&b, merges, (size_t)at, word, n_word, &e))
        tap_note("%s", e.text);
    return b;
}

static bool merges_as_defined(const struct clip_bpe *b, struct plain *p, uint64_t *state)
{
    char text[MAX_TEXT / 4] = { 0 };
    struct err e = { 0 };
    int32_t *id = NULL;
    int n = 0;
    bool ok;

    p->n = 1 + (int)draw(state, sizeof text - 2);
    for (int i = 0; i < p->n; i++) {
        text[i] = (char)('a' + draw(state, 1 + draw(state, 4)));
        snprintf(p->word[i], MAX_TEXT, "%c%s", text[i], i + 1 < p->n ? "" : "</w>");
    }
    merge_plainly(p);
    ok = !clip_bpe_ids(b, text, &id, &n, &e) && n == p->n;
    for (int i = 0; ok && i < n; i++)
        ok = id[i] == clip_bpe_id(b, p->word[i]);
    free(id);
    return ok;
}

static void test_merging(void)
{
    struct plain *p = malloc(sizeof *p);
    uint64_t state = 1;
    int wrong = 0, made = 0;

    for (int k = 0; p && k < 60; k++) {
        struct clip_bpe *b;
        memset(p, 0, sizeof *p);
        b = random_vocabulary(p, &state);
        made += b != NULL;
        for (int i = 0; b && i < 200; i++)
            wrong += !merges_as_defined(b, p, &state);
        clip_bpe_free(b);
    }
    tap_ok(made == 60 && !wrong, "60 vocabularies out of order, 200 words each: %d differ from the definition", wrong);
    free(p);
}

/* ---- sizes and speed ---- */

static void test_long(void)
{
    const size_t n = CLIP_BPE_MAX_TEXT;
    static const char *const patterns[] = { "a", "the", "a!", "\u00C5\u0301\u0327", "\u03A3", "\u0301",
                                             "<|endoftext|>", "'s" };
    char *text = malloc(n + 2);
    struct err e = { 0 };

    for (size_t k = 0; text && k < sizeof patterns / sizeof *patterns; k++) {
        const size_t len = strlen(patterns[k]);
        int32_t *id = NULL;
        int n_id = 0, rc;
        double t = now_ms();
        for (size_t i = 0; i < n; i++)
            text[i] = patterns[k][i % len];
        text[n - n % len] = 0;
        rc = clip_bpe_ids(builtin, text, &id, &n_id, &e);
        t = now_ms() - t;
        tap_ok(!rc && n_id > 1000 && t < 20e3, "1 MiB of '%s': %d ids, %.0f ms", patterns[k], n_id, t);
        free(id);
    }
    if (text) {
        int32_t *id = NULL;
        int n_id = -1;
        memset(text, 'a', n + 1);
        text[n + 1] = 0;
        tap_ok(clip_bpe_ids(builtin, text, &id, &n_id, &e) == E_ARG && !id && n_id == -1, "refused: %s", e.text);
    }
    free(text);
}

static void test_speed(void)
{
    struct clip_bpe *b = NULL;
    struct err e = { 0 };
    int32_t id[77];
    double make = now_ms(), prompt;

    if (vocab_builtin(&b, &e))
        return;
    make = now_ms() - make;
    prompt = now_ms();
    for (int i = 0; i < 100; i++)
        (void)clip_bpe_encode(b, vectors[1].text, id, 77, 49407, NULL, &e);
    prompt = (now_ms() - prompt) / 100;
    tap_note("making the built-in vocabulary takes %.1f ms, a prompt %.3f ms", make, prompt);
    clip_bpe_free(b);
}

/* ---- wrong bytes ---- */

struct wrong {
    const char *merges, *json, *says;
    int code;
};

static void test_wrong(void)
{
    static const struct wrong cases[] = {
        { "a b\nc\n", NULL, "merge 2 is not two words", E_FORMAT },
        { "#version: 0.2\na b\n\nc d\n", NULL, "merge 2 is not two words", E_FORMAT },
        { "a b c\n", NULL, "merge 1 is not two words", E_FORMAT },
        { "a b\na b\n", NULL, "'ab' comes twice", E_FORMAT },
        { "a bc\nab c\n", NULL, "'abc' comes twice", E_FORMAT },
        { "", "{}", "'<|startoftext|>' is missing", E_FORMAT },
        { "", "", "line 1", E_FORMAT },
        { "", "[]", "not a JSON object", E_FORMAT },
        { "", "{\"a\": 1", "line 1", E_FORMAT },
        { "", "{\"a\": 1, \"a\": 2}", "duplicate", E_FORMAT },
        { "", "{\"a\": -1}", "word 1 has no id", E_FORMAT },
        { "", "{\"a\": 1, \"b\": 16777216}", "word 2 has no id", E_FORMAT },
        { "", "{\"a\": 4294967296}", "word 1 has no id", E_FORMAT },
        { "", "{\"a\": 9223372036854775807}", "word 1 has no id", E_FORMAT },
        { "", "{\"a\": 99999999999999999999}", "line 1", E_FORMAT },
        { "", "{\"a\": 1.0}", "word 1 has no id", E_FORMAT },
        { "", "{\"a\": \"1\"}", "word 1 has no id", E_FORMAT },
        { "", "{\"\xFF\": 1}", "line 1", E_FORMAT },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const struct wrong *w = &cases[k];
        struct clip_bpe *b = NULL;
        struct err e = { 0 };
        const int rc = vocab_parse(&b, w->merges, strlen(w->merges), w->json, w->json ? strlen(w->json) : 0, &e);
        tap_ok(rc == w->code && e.code == rc && !b && strstr(e.text, w->says) && !strchr(e.text, '\n'), "refused: %s",
               e.text);
    }
}

static void test_words(void)
{
    struct clip_bpe_word twice[2] = { { "a\n\x1B[1m", 1 }, { "a\n\x1B[1m", 2 } }, low = { "a", -1 };
    struct clip_bpe_word high = { "a", CLIP_BPE_MAX_ID + 1 };
    const char *ends = "#version: 0.2\r\na b\r\nab  c</w>\t\r\n\n";
    struct clip_bpe *b = NULL;
    struct err e = { 0 };

    tap_ok(clip_bpe_new(&b, "", 0, twice, 2, &e) == E_FORMAT && strstr(e.text, "'a??[1m' comes twice"), "refused: %s",
           e.text);
    tap_ok(clip_bpe_new(&b, "", 0, &low, 1, &e) == E_FORMAT && strstr(e.text, "id -1"), "refused: %s", e.text);
    tap_ok(clip_bpe_new(&b, "", 0, &high, 1, &e) == E_FORMAT && strstr(e.text, "16777216"), "refused: %s", e.text);
    tap_ok(clip_bpe_new(&b, NULL, 0, NULL, -1, &e) == E_ARG && !b, "refused: %s", e.text);
    tap_ok(!clip_bpe_new(&b, NULL, 0, NULL, 0, &e) && clip_bpe_n_id(b) == 514, "no merges: bytes, start and end");
    tap_ok(clip_bpe_set_special(b, "", &e) == E_FORMAT && clip_bpe_set_special(b, "zz", &e) == E_FORMAT
           && strstr(e.text, "'zz'"), "refused: %s", e.text);
    clip_bpe_free(b);
    b = NULL;
    tap_ok(!vocab_parse(&b, ends, strlen(ends), NULL, 0, &e)
           && clip_bpe_id(b, "abc</w>") == 513 && clip_bpe_end(b) == 515, "line ends of either kind %s", e.text);
    clip_bpe_free(b);
    b = NULL;
    tap_ok(!vocab_parse(&b, "a b", 3, NULL, 0, &e) && clip_bpe_id(b, "ab") == 512, "no version, no line end %s",
           e.text);
    clip_bpe_free(b);
    clip_bpe_free(NULL);
}

/* The n-th allocation fails, for every n. */
static void test_memory(void)
{
    int refused = 0, wrong = 0;

    for (long k = 1; k < 100; k++) {
        struct clip_bpe *b = NULL;
        struct err e = { 0 };
        int32_t *id = NULL;
        int n = -1, rc;
        arena_fault_at(k);
        rc = vocab_parse(&b, "a b\n", 4, NULL, 0, &e);
        if (!rc)
            rc = clip_bpe_ids(b, "ab ab<|endoftext|>cd", &id, &n, &e);
        arena_fault_at(0);
        if (!rc) {
            wrong += n != 7;
            free(id);
            clip_bpe_free(b);
            break;
        }
        refused++;
        wrong += rc != E_NOMEM || e.code != rc || id || n != -1;
        clip_bpe_free(b);
    }
    tap_ok(refused >= 9 && !wrong, "memory runs out at %d places: %d go wrong", refused, wrong);
}

/* ---- files ---- */

static char dir[64];

static void put(const char *name, const char *text)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    (void)unlink(path);
    f = text ? fopen(path, "wb") : NULL;
    if (f && (fputs(text, f) < 0 || fclose(f)))
        exit(1);
}

/* {"!": 0, ..}: the vocabulary that follows from no merges, with other ids for start and end, and an empty word. */
static void put_vocab(void)
{
    static char json[1 << 14];
    int at = snprintf(json, sizeof json, "{\"\": 599, \"<|startoftext|>\": 600, \"<|endoftext|>\": 601");

    for (int i = 0; i < 512; i++) {
        const unsigned c = (unsigned)byte_code(i % 256);
        at += snprintf(json + at, sizeof json - (size_t)at, ", \"\\u%04x%s\": %d", c, i < 256 ? "" : "</w>", i);
    }
    snprintf(json + at, sizeof json - (size_t)at, "}");
    put("vocab.json", json);
}

struct pad_case {
    const char *map, *config, *why;
    int32_t pad;                        /* -1: refused */
};

static void test_pad(void)
{
    static const struct pad_case cases[] = {
        { NULL, NULL, "nothing said", 601 },
        { "{\"pad_token\": \"!\"}", NULL, "the map", 0 },
        { "{\"pad_token\": {\"content\": \"!\", \"lstrip\": false}}", NULL, "an object", 0 },
        { NULL, "{\"pad_token\": \"#\"}", "the configuration", 2 },
        { "{\"pad_token\": \"!\"}", "{\"pad_token\": \"#\"}", "the map wins", 0 },
        { "{\"pad_token\": \"!\"}", "{\"pad_token\": \"#\", \"added_tokens_decoder\": {}}", "a newer file wins", 2 },
        { "{\"bos_token\": \"!\"}", "{\"pad_token\": \"#\"}", "a map without", 2 },
        { "{\"pad_token\": null}", "{\"pad_token\": null}", "null", 601 },
        { "{\"pad_token\": \"<|endoftext|>\"}", NULL, "the end word", 601 },
        { "{\"pad_token\": \"zz\"}", NULL, "a word that is not there", -1 },
        { "{\"pad_token\": \"\"}", NULL, "an empty word", -1 },
        { "{\"pad_token\": 3}", NULL, "a number", -1 },
        { NULL, "{\"pad_token\": {\"content\": 3}}", "an object without text", -1 },
        { NULL, "{\"pad_token\": {}}", "an empty object", -1 },
        { "[", NULL, "broken", -1 },
        { NULL, "7", "no object", -1 },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const struct pad_case *c = &cases[k];
        struct clip_bpe *b = NULL;
        struct err e = { 0 };
        int32_t pad = -5, id[6];
        int rc;
        put("special_tokens_map.json", c->map);
        put("tokenizer_config.json", c->config);
        rc = vocab_open(&b, dir, &pad, &e);
        if (c->pad < 0) {
            tap_ok(rc == E_FORMAT && pad == -5 && !b && strstr(e.text, dir) && !strchr(e.text, '\n')
                   && strstr(e.text, c->map ? "special_tokens_map.json" : "tokenizer_config.json"), "refused: %s",
                   e.text);
            continue;
        }
        tap_ok(!rc && pad == c->pad && clip_bpe_start(b) == 600, "padding, %s: %d %s", c->why, (int)pad, e.text);
        if (!rc && pad == 0)                                /* "!" is cut out: 0, not "!</w>" */
            tap_ok(!clip_bpe_encode(b, "a!", id, 6, pad, NULL, &e) && id[1] == 320 && id[2] == 0 && id[3] == 601
                   && id[4] == 0, "the pad token in a text");
        clip_bpe_free(b);
    }
}

static void test_files(void)
{
    struct clip_bpe *b = NULL;
    struct err e = { 0 };
    int32_t pad = -5;

    snprintf(dir, sizeof dir, "/tmp/t_bpe.XXXXXX");
    if (!mkdtemp(dir))
        exit(1);
    tap_ok(vocab_open(&b, dir, &pad, &e) == E_IO && strstr(e.text, "merges.txt") && pad == -5, "refused: %s", e.text);
    put("merges.txt", "#version: 0.2\na b\n");
    tap_ok(!vocab_open(&b, dir, &pad, &e) && pad == 514 && clip_bpe_id(b, "ab") == 512, "without vocab.json %s",
           e.text);
    clip_bpe_free(b);
    b = NULL;
    put_vocab();
    tap_ok(!vocab_open(&b, dir, &pad, &e) && clip_bpe_id(b, "ab") == clip_bpe_end(b),
           "what merges make and the words leave out is unknown %s", e.text);
    clip_bpe_free(b);
    b = NULL;
    put("merges.txt", "#version: 0.2\n");
    test_pad();
    put("special_tokens_map.json", NULL);
    put("tokenizer_config.json", NULL);
    put("merges.txt", "#version: 0.2\na\n");
    tap_ok(vocab_open(&b, dir, &pad, &e) == E_FORMAT && strstr(e.text, "merges.txt") && strstr(e.text, dir),
           "refused: %s", e.text);
    put("vocab.json", "{");
    tap_ok(vocab_open(&b, dir, &pad, &e) == E_FORMAT && strstr(e.text, "vocab.json"), "refused: %s", e.text);
    put("merges.txt", NULL);
    put("vocab.json", NULL);
    tap_ok(!rmdir(dir), "nothing else was written");
    tap_ok(vocab_open(&b, dir, &pad, &e) == E_IO && !b, "refused: %s", e.text);
}

int main(void)
{
    struct err e = { 0 };

    if (!tap_ok(!vocab_builtin(&builtin, &e), "the built-in vocabulary %s", e.text))
        return tap_done();
    test_vectors();
    test_encode();
    test_reference();
    test_merging();
    test_long();
    test_speed();
    test_wrong();
    test_words();
    test_memory();
    test_files();
    clip_bpe_free(builtin);
    return tap_done();
}
