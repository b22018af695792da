/* tests/t_pickle.c: what torch.save writes: files of torch 2.1.2 in every form against dense copies of their tensors
 * (tests/reference/weights_fixtures.py), and zips and old files that lie. Pickles that do are in t_unpickle.c. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/weights.h"
#include "store/torch_pickle.h"
#include "store/weights_file.h"
#include "tests/bytes.h"
#include "tests/kit.h"
#include "tests/tap.h"
#include "tests/zipper.h"

#define CORPUS "tests/corpus/weights/"

static struct arena meta;

/* ---- files of torch ---- */

static bool same_values(const struct weights_entry *got, const struct weights_entry *want)
{
    const int64_t n = weights_count(want);
    float a[100], b[100];
    struct err e = { 0 };

    if (n > (int64_t)LEN(a) || weights_read(got, a, F32, &e) || weights_read(want, b, F32, &e)) {
        tap_note("'%s', %" PRId64 " elements: %s", want->name, n, e.text);
        return false;
    }
    return !memcmp(a, b, (size_t)n * sizeof *a);
}

/* Every tensor of `want`, and no other. */
static bool same_table(const struct weights *got, const struct weights *want)
{
    char text[2][100];
    bool ok = got->n == want->n;

    for (int i = 0; i < got->n; i++)
        if (!weights_get(want, got->entry[i].name)) {
            tap_note("'%s' is not wanted", got->entry[i].name);
            ok = false;
        }
    for (int i = 0; i < want->n; i++) {
        const struct weights_entry *w = &want->entry[i], *g = weights_get(got, w->name);
        if (!g) {
            tap_note("'%s' is missing", w->name);
            ok = false;
        } else if (strcmp(weights_text(g, text[0], sizeof text[0]), weights_text(w, text[1], sizeof text[1]))) {
            tap_note("'%s' is %s, want %s", w->name, text[0], text[1]);
            ok = false;
        } else if (!same_values(g, w)) {
            tap_note("'%s' has other values", w->name);
            ok = false;
        }
    }
    return ok;
}

static void test_files(void)
{
    static const struct {
        const char *file, *want;
    } cases[] = {
        { "types.pt", "types" },            { "types_old.pt", "types" },
        { "views.pt", "views" },            { "views_old.pt", "views" },
        { "views_p1.pt", "views" },         { "views_old_p1.pt", "views" },
        { "views_p4.pt", "views" },         { "views_old_p4.pt", "views" },
        { "views_p5.pt", "views" },         { "views_old_p5.pt", "views" },
        { "views_repacked.pt", "views" },
        { "parameters.pt", "parameters" },  { "parameters_old.pt", "parameters" },
        { "trained.pt", "trained" },        { "trained_old.pt", "trained" },
        { "trained_p4.pt", "trained" },
    };

    for (size_t i = 0; i < LEN(cases); i++) {
        struct weights_file *f = NULL, *want = NULL;
        struct err e = { 0 };
        char path[300], wanted[300];
        snprintf(path, sizeof path, CORPUS "%s", cases[i].file);
        snprintf(wanted, sizeof wanted, CORPUS "%s.want.safetensors", cases[i].want);
        bool ok = weights_file_open(&f, path, &e) == OK && weights_file_open(&want, wanted, &e) == OK;
        ok = ok && same_table(&f->table, &want->table);
        tap_ok(ok, "%s: %d tensors%s%s", cases[i].file, f ? f->table.n : -1, e.code ? ": " : "", e.text);
        weights_file_close(f);
        weights_file_close(want);
    }
}

static void test_views(void)
{
    struct weights_file *f = NULL;
    struct err e = { 0 };
    bool ok = weights_file_open(&f, CORPUS "views.pt", &e) == OK;
    const struct weights *t = ok ? &f->table : &(struct weights){ 0 };
    const struct weights_entry *whole = weights_get(t, "whole"), *turned = weights_get(t, "transposed");
    const struct weights_entry *a = weights_get(t, "half.a"), *b = weights_get(t, "half.b");

    ok = ok && whole && turned && a && b && turned->data == whole->data && turned->stride[0] == 1
         && turned->stride[1] == 6;
    ok = ok && (const char *)b->data - (const char *)a->data == 14 && (uintptr_t)whole->data % 64 == 0;
    ok = ok && weights_get(t, "expanded")->stride[0] == 0;
    tap_ok(ok, "storages are shared, not copied; they lie on multiples of 64");
    weights_file_close(f);
}

static void test_refused_files(void)
{
    static const struct {
        const char *file, *part;
    } cases[] = {
        { "list.pt", "a list, not a dict" },        { "tensor.pt", "one tensor, not a dict" },
        { "module.pt", "an object with code" },     { "complex.pt", "'z' is made of ComplexFloatStorage" },
        { "cycle.pt", "'itself' holds itself" },    { "compressed.pt", "is compressed" },
        { "old_tar.pth", "a tar file of torch.save from before 2017" },
    };

    for (size_t i = 0; i < LEN(cases); i++) {
        struct weights_file *f = NULL;
        struct err e = { 0 };
        char path[300];
        snprintf(path, sizeof path, CORPUS "%s", cases[i].file);
        const bool ok = weights_file_open(&f, path, &e) == E_FORMAT && !f && is_err(&e, E_FORMAT, cases[i].part)
            && is_err(&e, E_FORMAT, cases[i].file) && !strchr(e.text, '\n');
        tap_ok(ok, "%s: %s", cases[i].file, e.text);
        weights_file_close(f);
    }
}

static int parse(struct weights *t, const struct bytes *b, struct err *e)
{
    arena_release(&meta, 0);
    err_clear(e);
    return torch_pickle_parse(t, &meta, b->p, b->n, e);
}

static void test_truncated(void)
{
    static const char *const file[] = { "views.pt", "views_old.pt", "trained_p4.pt", "views_old_p1.pt",
                                        "views_repacked.pt" };

    for (size_t i = 0; i < LEN(file); i++) {
        struct bytes b;
        struct weights t = { .n = -1 };
        struct err e;
        char path[300];
        bool ok = true;
        snprintf(path, sizeof path, CORPUS "%s", file[i]);
        b = bytes_read(path);
        for (size_t n = 0; n < b.n; n += b.n < 4000 ? 1 : 7) {
            struct bytes cut = bytes_copy(&b, n);
            if (parse(&t, &cut, &e) != E_FORMAT || e.code != E_FORMAT || t.n != -1 || arena_mark(&meta)) {
                tap_note("%zu of %zu bytes: '%s'", n, b.n, e.text);
                ok = false;
            }
            bytes_free(&cut);
        }
        tap_ok(ok, "%s, cut short", file[i]);
        bytes_free(&b);
    }
}

/* One byte after the other is changed: either the file is refused, or every tensor can still be read. */
static void test_changed(void)
{
    static const char *const file[] = { "views.pt", "views_old_p4.pt" };

    for (size_t i = 0; i < LEN(file); i++) {
        struct bytes b;
        struct weights t;
        struct err e;
        char path[300];
        float *v = malloc(4 << 20);
        int refused = 0;
        bool ok = v != NULL;
        snprintf(path, sizeof path, CORPUS "%s", file[i]);
        b = bytes_read(path);
        for (size_t at = 0; at < b.n && ok; at++)
            for (int k = 0; k < 2; k++) {
                const unsigned char was = b.p[at];
                b.p[at] = (unsigned char)(k ? was + 0x81 : was ^ 1);
                const int rc = parse(&t, &b, &e);
                refused += rc != OK;
                ok &= rc == OK ? true : rc == E_FORMAT && e.text[0];
                for (int w = 0; !rc && w < t.n; w++)
                    if (weights_count(&t.entry[w]) <= 1 << 20)
                        ok &= weights_read(&t.entry[w], v, F32, &e) == OK;
                b.p[at] = was;
            }
        tap_ok(ok && refused > 100, "%s, every byte changed: %d times refused", file[i], refused);
        free(v);
        bytes_free(&b);
    }
}

/* ---- zips ---- */

/* Change n bytes of the file at the k-th place of `mark`, plus `at`. */
static int parse_changed(const char *mark, int k, size_t at, int n, uint64_t x, int wide, struct err *e)
{
    struct bytes b = zipper_pickle(P(DICT_OF(TENSOR)), wide);
    struct weights t;
    size_t place = bytes_find(&b, 0, mark, 4);
    int rc;

    while (k-- > 0)
        place = bytes_find(&b, place + 1, mark, 4);
    if (place == SIZE_MAX) {
        bytes_free(&b);
        return E_BUG;
    }
    bytes_put(&b, place + at, n, x);
    rc = parse(&t, &b, e);
    bytes_free(&b);
    return rc;
}

static void test_zips(void)
{
    static const struct {
        const char *why, *mark;
        int k;
        size_t at;
        int n;
        uint64_t x;
        int wide;
        int code;
        const char *part;
    } cases[] = {
        { "nothing changed", "PK\5\6", 0, 4, 1, 0, ZIP_NARROW, OK, "" },
        { "nothing changed, 64 bits", "PK\5\6", 0, 4, 1, 0, ZIP_WIDE, OK, "" },
        { "nothing changed, 64 bits for the place alone", "PK\5\6", 0, 4, 1, 0, ZIP_FAR, OK, "" },
        { "a compressed pickle", "PK\1\2", 0, 10, 2, 8, ZIP_NARROW, E_FORMAT, "compressed" },
        { "a compressed storage", "PK\1\2", 2, 10, 2, 8, ZIP_NARROW, E_FORMAT,
          "'archive/data/0' of the zip file is compressed" },
        { "compressed, but not asked for", "PK\1\2", 1, 10, 2, 8, ZIP_NARROW, OK, "" },
        { "an encrypted storage", "PK\1\2", 2, 8, 2, 1, ZIP_NARROW, E_FORMAT, "encrypted" },
        { "sizes that differ", "PK\1\2", 2, 20, 4, 15, ZIP_NARROW, E_FORMAT, "compressed" },
        { "a storage past the end", "PK\1\2", 2, 20, 8, 0x7000000070000000, ZIP_NARROW, E_FORMAT, "not inside" },
        { "a header past the end", "PK\1\2", 2, 42, 4, 0xFFFFFF0, ZIP_NARROW, E_FORMAT, "no header" },
        { "a header elsewhere", "PK\1\2", 2, 42, 4, 1, ZIP_NARROW, E_FORMAT, "no header" },
        { "a local name past the end", "PK\3\4", 2, 26, 2, 0xFFFF, ZIP_NARROW, E_FORMAT, "not inside" },
        { "no local mark", "PK\3\4", 2, 0, 1, 'Q', ZIP_NARROW, E_FORMAT, "no header" },
        { "no mark in the directory", "PK\1\2", 1, 0, 1, 'Q', ZIP_NARROW, E_FORMAT, "entry 1" },
        { "a name past the directory", "PK\1\2", 2, 28, 2, 0xFFFF, ZIP_NARROW, E_FORMAT, "entry 2" },
        { "fewer entries", "PK\5\6", 0, 10, 2, 2, ZIP_NARROW, E_FORMAT, "archive/data/0" },
        { "more entries", "PK\5\6", 0, 10, 2, 4, ZIP_NARROW, E_FORMAT, "" },
        { "a directory past the end", "PK\5\6", 0, 16, 4, 0x7FFFFFFF, ZIP_NARROW, E_FORMAT, "directory" },
        { "a directory that is too long", "PK\5\6", 0, 12, 4, 0x7FFFFFFF, ZIP_NARROW, E_FORMAT, "directory" },
        { "a comment that is too short", "PK\5\6", 0, 20, 2, 2, ZIP_NARROW, E_FORMAT, "cut off" },
        { "64 bits: a directory past the end", "PK\6\6", 0, 48, 8, UINT64_MAX, ZIP_WIDE, E_FORMAT, "directory" },
        { "64 bits: a directory that is too long", "PK\6\6", 0, 40, 8, UINT64_MAX, ZIP_WIDE, E_FORMAT, "directory" },
        { "64 bits: more entries than there can be", "PK\6\6", 0, 32, 8, UINT64_MAX, ZIP_WIDE, E_FORMAT, "directory" },
        { "64 bits: the end elsewhere", "PK\6\7", 0, 8, 8, UINT64_MAX, ZIP_WIDE, E_FORMAT, "64-bit" },
        { "64 bits: the end a byte off", "PK\6\7", 0, 8, 8, 3, ZIP_WIDE, E_FORMAT, "64-bit" },
        { "64 bits: a size past the end", "PK\1\2", 2, 46 + 14 + 9, 8, UINT64_MAX, ZIP_WIDE, E_FORMAT, "compressed" },
        { "64 bits: an offset past the end", "PK\1\2", 2, 46 + 14 + 25, 8, UINT64_MAX, ZIP_WIDE, E_FORMAT,
          "no header" },
        { "64 bits: a field that is too short", "PK\1\2", 2, 46 + 14 + 7, 2, 16, ZIP_WIDE, E_FORMAT, "entry 2" },
        { "64 bits: a field past its place", "PK\1\2", 2, 46 + 14 + 7, 2, 0xFFFF, ZIP_WIDE, E_FORMAT, "entry 2" },
    };
    struct zipper z;
    struct bytes b;
    struct weights t;
    struct err e;
    bool ok;

    for (size_t i = 0; i < LEN(cases); i++) {
        const int rc = parse_changed(cases[i].mark, cases[i].k, cases[i].at, cases[i].n, cases[i].x, cases[i].wide, &e);
        ok = rc == cases[i].code && (!rc || is_err(&e, rc, cases[i].part));
        tap_ok(ok, "zip: %s%s%s", cases[i].why, rc ? ": " : "", e.text);
    }
    z = (struct zipper){ 0 };
    zipper_add(&z, "a/data.pkl", P(DICT_OF(TENSOR)), false);
    zipper_add(&z, "b/data.pkl", P(DICT_OF(TENSOR)), false);
    b = zipper_end(&z, false);
    ok = parse(&t, &b, &e) == E_FORMAT && is_err(&e, E_FORMAT, "two data.pkl");
    bytes_free(&b);
    z = (struct zipper){ 0 };
    zipper_add(&z, "a/data.pkl", P(DICT_OF(TENSOR)), false);
    zipper_add(&z, "a/data.pkl", P(DICT_OF(TENSOR)), false);
    b = zipper_end(&z, false);
    ok &= parse(&t, &b, &e) == E_FORMAT && is_err(&e, E_FORMAT, "twice");
    bytes_free(&b);
    z = (struct zipper){ 0 };
    zipper_add(&z, "a/b/data.pkl", P(DICT_OF(TENSOR)), false);
    zipper_add(&z, "data.pkl", P(DICT_OF(TENSOR)), false);
    b = zipper_end(&z, false);
    ok &= parse(&t, &b, &e) == E_FORMAT && is_err(&e, E_FORMAT, "no data.pkl");
    bytes_free(&b);
    z = (struct zipper){ 0 };
    b = zipper_end(&z, false);
    ok &= parse(&t, &b, &e) == E_FORMAT && is_err(&e, E_FORMAT, "no data.pkl");
    bytes_free(&b);
    tap_ok(ok, "which pickle is meant");
    z = (struct zipper){ 0 };
    zipper_add(&z, "a/data.pkl", P(DICT_OF(TENSOR)), false);
    zipper_add(&z, "a/data/0", pickle_numbers, sizeof pickle_numbers, false);
    zipper_add(&z, "a/byteorder", "big", 3, false);
    b = zipper_end(&z, false);
    ok = parse(&t, &b, &e) == E_FORMAT && is_err(&e, E_FORMAT, "big-endian");
    bytes_free(&b);
    tap_ok(ok, "big-endian numbers");
}

/* ---- the older form ---- */

#define MAGIC "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#define VERSION "\x80\2M\xe9\3."
#define FACTS "\x80\2}(U\rlittle_endian\x88u."
#define KEYS(list) "\x80\2](" list "e."
#define FOUR "\4\0\0\0\0\0\0\0" "\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40"
#define STORAGE_VIEW(view)                                                                                             \
    "(" STR("\7", "storage") "ctorch\nFloatStorage\n" STR("\1", "0") STR("\3", "cpu") "K\4" view "tQ"
#define VIEWED(view) TENSOR_WITH(STORAGE_VIEW(view), "K\0", "K\2\x85", "K\1\x85")

static const struct {
    const char *why, *file;
    size_t n;
    const char *text, *part;
} plains[] = {
    { "a tensor",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") FOUR),
      "F32 (2,2)", "" },
    { "bytes behind it",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") FOUR "x"),
      "F32 (2,2)", "" },
    { "all of a storage",
      P(MAGIC VERSION FACTS DICT_OF(VIEWED("N")) KEYS("U\1"
                                                      "0") FOUR),
      "F32 (2)", "" },
    { "a part of a storage",
      P(MAGIC VERSION FACTS DICT_OF(VIEWED("U\1"
                                           "1K\2K\2\x87")) KEYS("U\1"
                                                                "0") FOUR),
      "F32 (2)", "" },
    { "a part that is too short",
      P(MAGIC VERSION FACTS DICT_OF(VIEWED("U\1"
                                           "1K\2K\1\x87")) KEYS("U\1"
                                                                "0") FOUR),
      NULL, "element 2" },
    { "a part that is outside",
      P(MAGIC VERSION FACTS DICT_OF(VIEWED("U\1"
                                           "1K\3K\2\x87")) KEYS("U\1"
                                                                "0") FOUR),
      NULL, "not inside" },
    { "a part that is none",
      P(MAGIC VERSION FACTS DICT_OF(VIEWED("K\1")) KEYS("U\1"
                                                        "0") FOUR),
      NULL, "(key, offset, size)" },
    { "another version",
      P(MAGIC "K\1." FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                "0") FOUR),
      NULL, "1001" },
    { "big-endian numbers",
      P(MAGIC VERSION "}(U\rlittle_endian\x89u." DICT_OF(TENSOR) KEYS("U\1"
                                                                      "0") FOUR),
      NULL, "big-endian" },
    { "no list of keys", P(MAGIC VERSION FACTS DICT_OF(TENSOR) "}." FOUR), NULL, "no list" },
    { "keys that are no text", P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("K\0") FOUR), NULL, "no text" },
    { "a key of nothing",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "1") FOUR),
      NULL, "'1' belongs to no tensor" },
    { "a key twice",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0U\1"
                                                 "0") FOUR FOUR),
      NULL, "comes twice" },
    { "a storage that is not there", P(MAGIC VERSION FACTS DICT_OF(TENSOR) "]."), NULL, "'0' is not in the file" },
    { "other elements than said",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") "\3" FOUR),
      NULL, "" },
    { "fewer elements",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") "\3\0\0\0\0\0\0\0"
                                                      "123456789012"),
      NULL, "3 elements" },
    { "more than the file",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") "\4\0\0\0\0\0\0\0"
                                                      "123456789012345"),
      NULL, "more than the file" },
    { "a number that overflows",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") "\1\0\0\0\0\0\0\x40"
                                                      "1234567890123456"),
      NULL, "more than the file" },
    { "cut before the numbers",
      P(MAGIC VERSION FACTS DICT_OF(TENSOR) KEYS("U\1"
                                                 "0") "\4\0\0\0"),
      NULL, "ends before storage" },
    { "one key, two types",
      P(MAGIC VERSION FACTS "}(U\1a" TENSOR "U\1b" TENSOR_WITH(STORAGE_OF("torch\nHalfStorage", "K\4"), "K\0",
                                                               "K\1\x85", "K\1\x85") "u." KEYS("U\1"
                                                                                               "0") FOUR),
      NULL, "in one place" },
    { "the magic number alone", P(MAGIC), NULL, "its version" },
    { "another magic number", P("\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x18." VERSION), NULL,
      "no file of torch.save" },
    { "another pickle", P("\x80\2}."), NULL, "no file of torch.save" },
};

static void test_plain(void)
{
    for (size_t i = 0; i < LEN(plains); i++) {
        const struct bytes all = { (unsigned char *)(uintptr_t)plains[i].file, plains[i].n, plains[i].n };
        struct bytes b = bytes_copy(&all, plains[i].n);
        struct weights t = { .n = -1 };
        struct err e;
        char text[100] = "";
        const int rc = parse(&t, &b, &e);
        bool ok = rc == (plains[i].text ? OK : E_FORMAT);
        if (!rc)
            ok &= t.n == 1 && !strcmp(weights_text(&t.entry[0], text, sizeof text), plains[i].text);
        else
            ok &= is_err(&e, E_FORMAT, plains[i].part) && t.n == -1;
        if (!rc && strstr(plains[i].why, "a part of"))
            ok &= !memcmp(t.entry[0].data, pickle_numbers + 8, 8);
        tap_ok(ok, "old form: %s%s%s", plains[i].why, rc ? ": " : "", e.text);
        bytes_free(&b);
    }
}

int main(void)
{
    struct err e = { 0 };

    if (arena_init(&meta, "test", ARENA_HOST, (size_t)1 << 30, &e))
        return 1;
    test_files();
    test_views();
    test_refused_files();
    test_truncated();
    test_changed();
    test_zips();
    test_plain();
    arena_free(&meta);
    return tap_done();
}
