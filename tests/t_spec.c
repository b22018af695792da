/* tests/t_spec.c: job specs: the tables, what each key takes and refuses, JSON there and back, JSON from strangers. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/spec.h"
#include "tests/kit.h"
#include "tests/tap.h"

static bool is_err(const struct err *e, int code, const char *text)
{
    return e->code == code && strstr(e->text, text) && !strchr(e->text, '\n');
}

/* ---- tables ---- */

/* What the keys are, said once more; `standard` as text. */
static const struct { const char *name; enum spec_type type; const char *standard; } sample[] = {
    { "base", SPEC_PATH, NULL }, { "lora", SPEC_LIST, NULL }, { "vae", SPEC_PATH, NULL },
    { "tokenizer", SPEC_PATH, NULL }, { "variant", SPEC_STRING, NULL }, { "prompt", SPEC_STRING, "" },
    { "negative", SPEC_STRING, "" }, { "x", SPEC_PATH, NULL }, { "x-mask", SPEC_PATH, NULL },
    { "x-noise", SPEC_DOUBLE, "1" }, { "steps", SPEC_INT, "50" }, { "sampler", SPEC_CHOICE, "ddim" },
    { "eta", SPEC_DOUBLE, "0" }, { "cfg", SPEC_DOUBLE, "7.5" }, { "prediction", SPEC_CHOICE, "auto" },
    { "clip-skip", SPEC_INT, "0" }, { "width", SPEC_INT, "0" }, { "height", SPEC_INT, "0" },
    { "count", SPEC_INT, "1" }, { "batch", SPEC_INT, "1" }, { "seed", SPEC_UINT64, "0" },
    { "rng", SPEC_CHOICE, "philox" }, { "noise", SPEC_PATH, NULL }, { "save-latents", SPEC_PATH, NULL },
    { "exif", SPEC_CHOICE, "on" }, { "x-sample", SPEC_CHOICE, "sample" }, { "out", SPEC_PATH, "out.png" },
    { "dtype", SPEC_CHOICE, "auto" }, { "noise-row", SPEC_INT, NULL },
    { "unicon", SPEC_LIST, NULL }, { "y", SPEC_LIST, NULL }, { "y-mask", SPEC_LIST, NULL },
    { "y-noise", SPEC_LIST, NULL }, { "y-prompt", SPEC_STRING, "" }, { "task", SPEC_CHOICE, NULL },
    { "schedule", SPEC_STRING, NULL }, { "pair", SPEC_LIST, NULL }, { "joint-scale", SPEC_DOUBLE, "1" },
    { "cond-guidance", SPEC_LIST, NULL }, { "guide", SPEC_LIST, NULL },
    { "guide-opt", SPEC_CHOICE, "adamw" }, { "guide-lr", SPEC_DOUBLE, "0.02" }, { "guide-steps", SPEC_INT, "1" },
    { "guide-range", SPEC_STRING, "0,1" }, { "guide-decay", SPEC_DOUBLE, "0" }, { "compat", SPEC_CHOICE, "none" },
    { "controlnet", SPEC_LIST, NULL }, { "control-range", SPEC_STRING, "0,1" },
    { "sweep", SPEC_STRING, NULL }, { "sweep-steps", SPEC_INT, "9" }, { "sheet", SPEC_PATH, NULL },
};

static void test_tables(void)
{
    struct spec s = spec_new("sample"), shared = spec_new("shared");
    struct err e = { 0 };
    bool ok = s.kind == &spec_sample && shared.kind == &spec_shared && s.kind->n_key == (int)LEN(sample);

    tap_ok(ok && !spec_check(&spec_sample, &e) && !spec_check(&spec_shared, &e), "the tables are well formed: %s",
           e.text);
    for (size_t i = 0; i < LEN(sample); i++) {
        const struct spec_key *k = spec_key_of(s.kind, sample[i].name);
        const char *want = sample[i].standard, *name = sample[i].name, *text;
        ok = k && k->type == sample[i].type && !spec_is_set(&s, name);
        text = spec_text(&s, name);
        if (ok && (k->type == SPEC_STRING || k->type == SPEC_PATH || k->type == SPEC_CHOICE))
            ok = want ? text && !strcmp(text, want) : !text;
        else
            ok = ok && !text && spec_count(&s, name) == 0;
        if (ok && k->type == SPEC_INT)
            ok = spec_int(&s, name) == (want ? strtoll(want, NULL, 10) : 0);
        if (ok && k->type == SPEC_DOUBLE)
            ok = spec_double(&s, name) == strtod(want, NULL);
        if (ok && k->type == SPEC_UINT64)
            ok = spec_uint64(&s, name) == 0;
        tap_ok(ok, "--%s: %s", name, want ? want : "no default");
    }
    tap_ok(spec_choice(&s, "sampler") == 0 && spec_choice(&s, "steps") == -1 && spec_int(&s, "cfg") == 0
           && spec_double(&s, "steps") == 0 && !spec_text(&s, "nothing") && !spec_flag(&s, "seed")
           && !spec_item(&s, "lora", 0) && !spec_item(&s, "prompt", 0) && spec_int(&shared, "quality") == 95
           && !spec_flag(&shared, "plan") && spec_uint64(&shared, "memory") == 0,
           "a key asked for as something else is nothing");
    for (int i = 0; ok && i < spec_shared.n_key; i++)
        ok = !spec_key_of(&spec_sample, spec_shared.key[i].name);
    tap_ok(ok, "no key is in both tables");
}

#define KEY .group = "G", .name = "a", .help = "h"

static const struct { const char *why; struct spec_key key[2]; int n; } broken[] = {
    { "no keys", { { 0 } }, 0 },
    { "no name", { { .group = "G", .help = "h" } }, 1 },
    { "no help", { { .group = "G", .name = "a" } }, 1 },
    { "no heading", { { .name = "a", .help = "h" } }, 1 },
    { "a name of the format's own", { { .group = "G", .name = "version", .help = "h" } }, 1 },
    { "a default that is no value", { { KEY, .type = SPEC_INT, .value = "N", .high = 1, .standard = "x" } }, 1 },
    { "an empty range", { { KEY, .type = SPEC_INT, .value = "N", .standard = "0" } }, 1 },
    { "a range where there is none", { { KEY, .type = SPEC_STRING, .value = "N", .high = 1 } }, 1 },
    { "a choice without words", { { KEY, .type = SPEC_CHOICE } }, 1 },
    { "a flag with a value", { { KEY, .value = "N" } }, 1 },
    { "a path without a word for it", { { KEY, .type = SPEC_PATH } }, 1 },
    { "a name twice", { { KEY }, { KEY } }, 2 },
    { "a letter twice", { { KEY, .letter = 'a' }, { .name = "b", .help = "h", .letter = 'a' } }, 2 },
};

static void test_broken(void)
{
    struct err e = { 0 };

    for (size_t i = 0; i < LEN(broken); i++) {
        const struct spec_kind k = { "broken", 1, broken[i].key, broken[i].n };
        tap_ok(spec_check(&k, &e) == E_BUG && e.code == E_BUG, "%s: %s", broken[i].why, e.text);
    }
}

/* ---- values ---- */

static const struct { const char *kind, *key, *text; } good[] = {
    { "sample", "steps", "1" }, { "sample", "steps", "1000" }, { "sample", "steps", "007" },
    { "sample", "width", "0" }, { "sample", "width", "8" }, { "sample", "height", "8192" },
    { "sample", "count", "100000" }, { "sample", "batch", "0" }, { "sample", "clip-skip", "11" },
    { "sample", "x-noise", "0" }, { "sample", "x-noise", "1e-300" }, { "sample", "cfg", "+1.5E1" },
    { "sample", "cfg", "100" }, { "sample", "seed", "18446744073709551615" }, { "sample", "rng", "torch-cpu:bf16" },
    { "sample", "sampler", "dpm++2m" }, { "sample", "prompt", "" },
    { "sample", "prompt", "Füchse, 狐, 🦊\n\ttwo lines" },
    { "sample", "lora", "a.safetensors:0.5" }, { "sample", "out", "-" }, { "shared", "memory", "6G" },
    { "shared", "memory", "800m" }, { "shared", "memory", "16777215T" }, { "shared", "memory", "18446744073709551615" },
    { "shared", "plan", "on" }, { "shared", "dry-run", "off" }, { "shared", "quality", "100" },
};

static const struct { const char *kind, *key, *text, *says; } refused[] = {
    { "sample", "steps", "0", "--steps '0': want a whole number from 1 to 1000" },
    { "sample", "steps", "1001", "from 1 to 1000" }, { "sample", "steps", "", "--steps ''" },
    { "sample", "steps", "5.0", "--steps '5.0'" }, { "sample", "steps", " 5", "--steps ' 5'" },
    { "sample", "steps", "5 ", "--steps '5 '" }, { "sample", "steps", "+5", "--steps '+5'" },
    { "sample", "steps", "0x10", "--steps" }, { "sample", "steps", "99999999999999999999", "--steps" },
    { "sample", "width", "7", "--width '7': want a whole number from 8 to 8192, or 0" },
    { "sample", "width", "-1", "--width '-1'" }, { "sample", "clip-skip", "12", "from 0 to 11" },
    { "sample", "cfg", "nan", "--cfg 'nan': want a number from 0 to 100" }, { "sample", "cfg", "inf", "--cfg" },
    { "sample", "cfg", "0x1p3", "--cfg" }, { "sample", "cfg", "1e", "--cfg" }, { "sample", "cfg", "e1", "--cfg" },
    { "sample", "cfg", "100.00000000000002", "--cfg" }, { "sample", "cfg", "-1e-300", "--cfg" },
    { "sample", "cfg", "1e999", "--cfg" }, { "sample", "cfg", "7,5", "--cfg '7,5'" }, { "sample", "cfg", "", "--cfg" },
    { "sample", "seed", "-1", "--seed '-1': want a whole number from 0 to 18446744073709551615" },
    { "sample", "seed", "18446744073709551616", "--seed" }, { "sample", "seed", "1e3", "--seed" },
    { "sample", "sampler", "heun", "--sampler 'heun': want ddim, ddpm, euler, euler-a, dpm++2m or pndm" },
    { "sample", "sampler", "", "--sampler ''" }, { "sample", "sampler", "ddim ddpm", "--sampler" },
    { "sample", "sampler", "DDIM", "--sampler" }, { "sample", "exif", "yes", "want on or off" },
    { "sample", "base", "", "--base '': want PATH" }, { "sample", "lora", "", "--lora '': want PATH[:W]" },
    { "sample", "prompt", "\xff", "--prompt: the value is not UTF-8" }, { "sample", "prompt", "a\xc3", "UTF-8" },
    { "sample", "prompt", "\xc0\xaf", "UTF-8" }, { "sample", "prompt", "\xed\xa0\x80", "UTF-8" },
    { "sample", "prompt", "\xf4\x90\x80\x80", "UTF-8" }, { "sample", "out", "\x80.png", "UTF-8" },
    { "shared", "memory", "6X", "--memory '6X': want a number of bytes" }, { "shared", "memory", "G", "--memory" },
    { "shared", "memory", "16777216T", "--memory" }, { "shared", "memory", "-1", "--memory" },
    { "shared", "memory", "1 ", "--memory" }, { "shared", "memory", "", "--memory" },
    { "shared", "memory", "6GB", "--memory" }, { "shared", "memory", "999999999999999999999999999", "--memory" },
    { "shared", "plan", "1", "--plan '1': want on or off" }, { "shared", "quality", "0", "from 1 to 100" },
    { "sample", "stpes", "5", "no option --stpes; did you mean --steps?" },
    { "sample", "promt", "5", "did you mean --prompt?" }, { "sample", "clipskip", "5", "did you mean --clip-skip?" },
    { "sample", "", "5", "no option --" }, { "sample", "quite-another", "5", "no option --quite-another" },
    { "sample", "threads", "5", "no option --threads" }, { "sample", "a\nb", "5", "no option --a?b" },
    { "sample", "steps", "a\nb\x7f", "'a?b?'" },
    { "sample", "steps", "1234567890123456789012345678901234567890123456789äöü!!",
      "'1234567890123456789012345678901234567890123456789ä...'" },
};

static void test_values(void)
{
    struct err e = { 0 };

    for (size_t i = 0; i < LEN(good); i++) {
        struct spec s = spec_new(good[i].kind);
        bool ok = spec_set(&s, good[i].key, good[i].text, &e) == OK && spec_is_set(&s, good[i].key);
        tap_ok(ok && spec_set(&s, good[i].key, good[i].text, &e) == OK, "--%s %zu: taken", good[i].key, i);
        spec_free(&s);
    }
    for (size_t i = 0; i < LEN(refused); i++) {
        struct spec s = spec_new(refused[i].kind), before = s;
        tap_ok(spec_set(&s, refused[i].key, refused[i].text, &e) == E_ARG && is_err(&e, E_ARG, refused[i].says)
               && !memcmp(&s, &before, sizeof s), "%s", e.text);
    }
}

static void test_last_wins(void)
{
    struct spec s = spec_new("sample"), shared = spec_new("shared");
    struct err e = { 0 };
    bool ok = !spec_set(&s, "steps", "3", &e) && !spec_set(&s, "steps", "4", &e) && spec_set(&s, "steps", "0", &e)
        && spec_int(&s, "steps") == 4;
    char *longest = malloc(SPEC_MAX_TEXT + 2);

    ok = ok && !spec_set(&s, "prompt", "a", &e) && !spec_set(&s, "prompt", "b", &e)
        && !strcmp(spec_text(&s, "prompt"), "b") && !spec_set(&s, "sampler", "pndm", &e)
        && spec_choice(&s, "sampler") == 5 && !strcmp(spec_text(&s, "sampler"), "pndm");
    tap_ok(ok, "the last value counts, a wrong one does not");
    ok = !spec_set(&shared, "plan", NULL, &e) && spec_flag(&shared, "plan") && !spec_set(&shared, "plan", "off", &e)
        && !spec_flag(&shared, "plan") && spec_is_set(&shared, "plan") && spec_set(&shared, "replay", NULL, &e) == E_ARG
        && !spec_set(&shared, "memory", "3K", &e) && spec_uint64(&shared, "memory") == 3072;
    tap_ok(ok, "flags and sizes");
    for (int i = 0; ok && i < SPEC_MAX_ITEM; i++) {
        char text[16];
        snprintf(text, sizeof text, "l%d", i);
        ok = !spec_set(&s, "lora", text, &e) && spec_count(&s, "lora") == i + 1
            && !strcmp(spec_item(&s, "lora", i), text);
    }
    tap_ok(ok && spec_set(&s, "lora", "more", &e) == E_ARG && spec_count(&s, "lora") == SPEC_MAX_ITEM
           && !strcmp(spec_item(&s, "lora", 63), "l63") && !spec_item(&s, "lora", 64) && !spec_item(&s, "lora", -1),
           "a list grows to its cap: %s", e.text);
    memset(longest, 'p', SPEC_MAX_TEXT + 1);
    longest[SPEC_MAX_TEXT + 1] = '\0';
    ok = spec_set(&s, "prompt", longest, &e) == E_ARG && is_err(&e, E_ARG, "65537 bytes");
    tap_ok(ok && !spec_set(&s, "prompt", longest + 1, &e), "a text has a cap: %s", e.text);
    free(longest);
    spec_free(&s);
    spec_free(&s);
    spec_free(&shared);
}

/* ---- JSON ---- */

static void random_value(const struct spec_key *k, uint64_t *seed, char *text, size_t size)
{
    const double u = erfc(kit_normal(seed)) / 2;
    const char *const words[] = { "", "a b", "\"\\/\b\f\n\r\t", "Füchse", "狐🦊", "{\"kind\":1}", "\x01\x7f" };
    const int choice = (int)(u * 5), word = (int)(u * (double)LEN(words));
    const char *c = k->choices;

    switch (k->type) {
    case SPEC_INT: snprintf(text, size, "%.0f", floor(k->low + u * (k->high - k->low))); break;
    case SPEC_DOUBLE: snprintf(text, size, "%.17g", k->low + u * (k->high - k->low)); break;
    case SPEC_UINT64: snprintf(text, size, "%" PRIu64, (uint64_t)(u * 0x1p63) * 2 + 1); break;
    case SPEC_CHOICE:
        for (int i = 0; i < choice && strchr(c, ' '); i++)
            c = strchr(c, ' ') + 1;
        snprintf(text, size, "%.*s", (int)strcspn(c, " "), c);
        break;
    case SPEC_STRING: snprintf(text, size, "%s", words[word]); break;
    default: snprintf(text, size, "%s%d", words[word], word);
    }
}

static bool same_value(const struct spec *a, const struct spec *b, const struct spec_key *k)
{
    const char *s = spec_text(a, k->name), *t = spec_text(b, k->name);
    bool ok = spec_int(a, k->name) == spec_int(b, k->name) && spec_uint64(a, k->name) == spec_uint64(b, k->name)
        && spec_double(a, k->name) == spec_double(b, k->name) && spec_choice(a, k->name) == spec_choice(b, k->name)
        && spec_flag(a, k->name) == spec_flag(b, k->name) && spec_count(a, k->name) == spec_count(b, k->name)
        && (s && t ? !strcmp(s, t) : s == t);

    for (int i = 0; ok && i < spec_count(a, k->name); i++)
        ok = !strcmp(spec_item(a, k->name, i), spec_item(b, k->name, i));
    return ok;
}

static void test_round_trip(void)
{
    uint64_t seed = 1;
    bool ok = true;
    int n_set = 0;

    for (int n = 0; n < 400 && ok; n++) {
        struct spec a = spec_new("sample"), b = { 0 };
        char text[64], *json = NULL, *again = NULL;
        struct err e = { 0 };
        for (int i = 0; ok && i < a.kind->n_key; i++)
            if (kit_normal(&seed) > 0) {
                random_value(&a.kind->key[i], &seed, text, sizeof text);
                ok = spec_set(&a, a.kind->key[i].name, text, &e) == OK;
                n_set++;
            }
        ok = ok && !spec_to_json(&json, &a, &e) && !spec_from_json(&b, json, strlen(json), &e)
            && !spec_to_json(&again, &b, &e) && !strcmp(json, again);
        for (int i = 0; ok && i < a.kind->n_key; i++)
            ok = same_value(&a, &b, &a.kind->key[i]);
        if (!ok)
            tap_note("%s\n# %s", e.text, json ? json : "");
        free(json);
        free(again);
        spec_free(&a);
        spec_free(&b);
    }
    tap_ok(ok && n_set > 4000, "400 specs with %d values go to JSON and come back", n_set);
}

static bool writes(struct spec *s, const char *want)
{
    struct err e = { 0 };
    char *json = NULL;
    bool ok = spec_to_json(&json, s, &e) == OK && !strcmp(json, want);

    if (!ok)
        tap_note("%s", json ? json : e.text);
    free(json);
    return ok;
}

static void test_writing(void)
{
    struct spec s = spec_new("sample"), shared = spec_new("shared"), none = spec_new("paint");
    struct err e = { 0 };
    char *json = NULL;
    bool ok = writes(&s, "{\"kind\":\"sample\",\"version\":1}") && !spec_set(&s, "steps", "50", &e)
        && !spec_set(&s, "cfg", "7.50", &e) && !spec_set(&s, "sampler", "ddim", &e) && !spec_set(&s, "seed", "0", &e)
        && !spec_set(&s, "prompt", "", &e) && spec_is_set(&s, "steps");

    tap_ok(ok && writes(&s, "{\"kind\":\"sample\",\"version\":1}"), "what is as it is by default is not written");
    ok = !spec_set(&s, "x-noise", "1", &e);
    tap_ok(ok && writes(&s, "{\"kind\":\"sample\",\"version\":1,\"x-noise\":1.0}"), "but x-noise is: with pairs its"
           " default is another");
    spec_unset(&s, "x-noise");
    ok = !spec_set(&s, "seed", "9223372036854775808", &e) && !spec_set(&s, "steps", "20", &e)
        && !spec_set(&s, "lora", "a:1", &e) && !spec_set(&s, "cfg", "0.1", &e) && !spec_set(&s, "base", "m", &e);
    tap_ok(ok && writes(&s, "{\"kind\":\"sample\",\"version\":1,\"base\":\"m\",\"lora\":[\"a:1\"],\"steps\":20,"
                        "\"cfg\":0.1,\"seed\":\"9223372036854775808\"}"), "in the order of the table");
    ok = !spec_set(&shared, "plan", NULL, &e) && !spec_set(&shared, "dry-run", "off", &e)
        && !spec_set(&shared, "memory", "1K", &e);
    tap_ok(ok && writes(&shared, "{\"kind\":\"shared\",\"version\":1,\"memory\":1024,\"plan\":true}"), "flags, sizes");
    tap_ok(!none.kind && spec_to_json(&json, &none, &e) == E_ARG && !json
           && spec_set(&none, "steps", "1", &e) == E_ARG && spec_overlay(&none, &none, &e) == E_ARG, "%s", e.text);
    spec_free(&s);
    spec_free(&shared);
}

#define SAMPLE "{\"kind\":\"sample\",\"version\":1,"

static const struct { const char *json, *says; } foreign[] = {
    { "", "job spec: not JSON" }, { "{", "not JSON" }, { "[]", "not a JSON object" }, { "3", "not JSON" },
    { "{}", "does not say its kind" }, { "{\"kind\":3}", "does not say its kind" },
    { "{\"kind\":\"paint\",\"version\":1}", "kind 'paint' is not one that this program knows" },
    { "{\"kind\":\"a\\nb\",\"version\":1}", "its kind is not one" },
    { "{\"kind\":\"sample\"}", "does not say its version" },
    { "{\"kind\":\"sample\",\"version\":\"1\"}", "its version" },
    { "{\"kind\":\"sample\",\"version\":0}", "its version" },
    { "{\"kind\":\"sample\",\"version\":2}", "version 2 is later than 1" },
    { SAMPLE "\"stepps\":1}", "no option --stepps; did you mean --steps?" },
    { SAMPLE "\"threads\":1}", "no option --threads" },
    { SAMPLE "\"steps\":1,\"steps\":2}", "duplicate" }, { SAMPLE "\"steps\":0}", "--steps '0'" },
    { SAMPLE "\"steps\":2.0}", "'steps' is not a whole number" }, { SAMPLE "\"steps\":\"2\"}", "not a whole number" },
    { SAMPLE "\"steps\":null}", "not a whole number" }, { SAMPLE "\"steps\":99999999999999999999}", "not JSON" },
    { SAMPLE "\"cfg\":\"2\"}", "'cfg' is not a number" }, { SAMPLE "\"cfg\":1e999}", "not JSON" },
    { SAMPLE "\"cfg\":-0.5}", "--cfg" }, { SAMPLE "\"seed\":-1}", "--seed '-1'" },
    { SAMPLE "\"seed\":\"x\"}", "--seed 'x'" }, { SAMPLE "\"seed\":1.5}", "not a whole number" },
    { SAMPLE "\"prompt\":3}", "'prompt' is not a string" }, { SAMPLE "\"prompt\":[\"a\"]}", "not a string" },
    { SAMPLE "\"prompt\":\"\\u0000\"}", "not JSON" }, { SAMPLE "\"prompt\":\"\\ud800\"}", "not JSON" },
    { SAMPLE "\"prompt\":\"\xff\"}", "not JSON" }, { SAMPLE "\"sampler\":\"heun\"}", "--sampler 'heun'" },
    { SAMPLE "\"lora\":\"a\"}", "'lora' is not a list of strings" },
    { SAMPLE "\"lora\":[1]}", "not a list of strings" },
    { SAMPLE "\"lora\":[\"a\",\"\"]}", "--lora ''" }, { SAMPLE "\"exif\":true}", "'exif' is not a string" },
    { "{\"kind\":\"shared\",\"version\":1,\"plan\":1}", "'plan' is not true or false" },
    { SAMPLE "\"steps\":3} x", "not JSON" },
};

static void test_foreign(void)
{
    static const char more[] = SAMPLE "\"cfg\":3,\"seed\":\"7\"}xxx";      /* the last bytes are not its own */
    struct err e = { 0 };
    struct spec s, before;
    bool ok;
    char *big = calloc(1, SPEC_MAX_JSON + 2), *deep = calloc(1, 100001);

    memset(&s, 0x5A, sizeof s);
    before = s;
    for (size_t i = 0; i < LEN(foreign); i++)
        tap_ok(spec_from_json(&s, foreign[i].json, strlen(foreign[i].json), &e) == E_FORMAT
               && is_err(&e, E_FORMAT, foreign[i].says) && !memcmp(&s, &before, sizeof s), "%s", e.text);
    memset(big, ' ', SPEC_MAX_JSON + 1);
    memset(deep, '[', 100000);
    tap_ok(spec_from_json(&s, big, SPEC_MAX_JSON + 1, &e) == E_FORMAT && is_err(&e, E_FORMAT, "too many")
           && spec_from_json(&s, deep, 100000, &e) == E_FORMAT && is_err(&e, E_FORMAT, "nested deeper"),
           "too large, too deep");
    free(big);
    free(deep);
    ok = spec_from_json(&s, more, sizeof more - 4, &e) == OK;
    tap_ok(ok && spec_double(&s, "cfg") == 3 && spec_uint64(&s, "seed") == 7, "whole numbers and strings of digits do");
    if (ok)
        spec_free(&s);
}

static void test_overlay(void)
{
    struct spec s = spec_new("sample"), over = spec_new("sample"), shared = spec_new("shared");
    struct err e = { 0 };
    bool ok = !spec_set(&s, "steps", "5", &e) && !spec_set(&s, "lora", "a", &e) && !spec_set(&s, "lora", "b", &e)
        && !spec_set(&s, "prompt", "p", &e) && !spec_set(&s, "seed", "9", &e) && !spec_set(&over, "lora", "c", &e)
        && !spec_set(&over, "prompt", "", &e) && !spec_set(&over, "steps", "50", &e)
        && spec_overlay(&s, &over, &e) == OK;

    spec_free(&over);
    tap_ok(ok && spec_int(&s, "steps") == 50 && spec_count(&s, "lora") == 1 && !strcmp(spec_item(&s, "lora", 0), "c")
           && !strcmp(spec_text(&s, "prompt"), "") && spec_uint64(&s, "seed") == 9,
           "options lie over a spec that was read, defaults that were asked for too");
    tap_ok(spec_overlay(&s, &shared, &e) == E_ARG && is_err(&e, E_ARG, "'shared'"), "%s", e.text);
    spec_free(&s);
}

/* ---- memory ---- */

static long countdown;

static void *scarce(size_t n)
{
    return countdown-- > 0 ? malloc(n) : NULL;
}

/* The n-th allocation of the JSON library fails, for every n. It does not always say why, so some are E_FORMAT. */
static void test_scarce(void)
{
    static const char json[] = SAMPLE "\"lora\":[\"a\",\"b\"],\"prompt\":\"p\",\"cfg\":2.5,\"steps\":3}";
    struct err e = { 0 };
    struct spec s;
    char *text = NULL;
    int failed = 0, other = 0, rc = E_NOMEM;

    for (long n = 0; n < 500 && rc; n++) {
        json_set_alloc_funcs(scarce, free);
        countdown = n;
        rc = spec_from_json(&s, json, sizeof json - 1, &e);
        failed += rc == E_NOMEM && strstr(e.text, "job spec: out of memory");
        other += rc == E_FORMAT;
        if (!rc) {
            rc = spec_to_json(&text, &s, &e);
            failed += rc == E_NOMEM && strstr(e.text, "out of memory") && !text;
            spec_free(&s);
        }
        if (rc && rc != E_NOMEM && rc != E_FORMAT)
            break;
    }
    json_set_alloc_funcs(malloc, free);
    tap_ok(!rc && text && failed > 30 && other < 12 && !strncmp(text, json, 40),
           "%d ways to run out of memory", failed);
    free(text);
}

int main(void)
{
    test_tables();
    test_broken();
    test_values();
    test_last_wins();
    test_round_trip();
    test_writing();
    test_foreign();
    test_overlay();
    test_scarce();
    return tap_done();
}
