/* tests/t_weights_file.c: safetensors files read and written, shards, files written aside, mapped files. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "core/arena.h"
#include "core/weights.h"
#include "store/aside.h"
#include "store/map.h"
#include "store/safetensors.h"
#include "store/weights_file.h"
#include "tests/bytes.h"
#include "tests/kit.h"
#include "tests/tap.h"

#define CORPUS "tests/corpus/weights/"

/* ---- safetensors ---- */

static int parse(struct weights *t, struct arena *a, const struct bytes *b, const char **metadata, struct err *e)
{
    return safetensors_parse(t, a, b->p, b->n, metadata, e);
}

/* tests/reference/weights_fixtures.py has the formula. */
static double formula(enum stored_type t, int64_t i)
{
    const double x = (double)(i % 17) * 0.375 - 2;

    if (t == STORED_BOOL)
        return i % 3 == 0;
    return t == STORED_U8 ? trunc(fabs(x)) : t >= STORED_I8 ? trunc(x) : x;
}

static void test_types(struct arena *a)
{
    static const struct {
        const char *name, *text;
    } want[] = {
        { "bf16", "BF16 (7)" }, { "bool", "BOOL (4,2)" }, { "empty", "F32 (0,3)" }, { "f16", "F16 (2,3,5)" },
        { "f32", "F32 (3,4)" }, { "f64", "F64 (2,2)" }, { "i16", "I16 (5,1)" }, { "i32", "I32 (6)" },
        { "i64", "I64 (1,18)" }, { "i8", "I8 (17)" }, { "scalar", "F32 ()" }, { "u8", "U8 (17)" },
    };
    struct bytes b = bytes_read(CORPUS "types.safetensors");
    struct weights t = { 0 };
    struct err e = { 0 };
    const char *metadata = NULL;
    char text[60];
    float f[64];
    bool ok = safetensors_looks(b.p, b.n) && parse(&t, a, &b, &metadata, &e) == OK && t.n == (int)LEN(want);

    for (int i = 0; i < t.n && ok; i++) {
        const struct weights_entry *w = &t.entry[i];
        ok &= !strcmp(w->name, want[i].name) && !strcmp(weights_text(w, text, sizeof text), want[i].text);
        ok &= weights_count(w) <= (int64_t)LEN(f) && weights_read(w, f, F32, &e) == OK && !w->used;
        for (int64_t k = 0; k < weights_count(w); k++)
            ok &= (double)f[k] == formula(w->type, k);
    }
    tap_ok(ok, "every type, as safetensors 0.8.0 writes it");
    ok = metadata && strstr(metadata, "\"format\":\"pt\"") && strstr(metadata, "\"note\":\"r\xc3\xa9""f \\\"q\\\"\"");
    tap_ok(ok, "metadata: %s", metadata ? metadata : "none");
    bytes_free(&b);
    b = bytes_read(CORPUS "f8.safetensors");
    metadata = "x";
    ok = parse(&t, a, &b, &metadata, &e) == OK && t.n == 2 && t.entry[0].type == STORED_F8_E4M3 && !metadata;
    tap_ok(ok && t.entry[1].type == STORED_F8_E5M2, "8-bit floats are told from others; no metadata");
    bytes_free(&b);
    arena_release(a, 0);
}

/* A header of text over `data` bytes of numbers. */
static struct bytes make(const char *header, size_t data)
{
    struct bytes b = { 0 };

    bytes_add_number(&b, strlen(header), 8);
    bytes_add(&b, header, strlen(header));
    for (size_t i = 0; i < data; i++)
        bytes_add(&b, "", 1);
    return b;
}

#define T(name, type, shape, at) "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" at "}"

static const struct {
    const char *why, *header;
    int code;
    const char *part;
} headers[] = {
    { "an empty table", "{}", OK, "" },
    { "spaces behind", "{" T("a", "F32", "[2]", "[0,8]") "}   ", OK, "" },
    { "a gap", "{" T("a", "F32", "[2]", "[0,8]") "," T("b", "U8", "[3]", "[13,16]") "}", OK, "" },
    { "an empty tensor anywhere", "{" T("a", "F32", "[2]", "[0,8]") "," T("b", "U8", "[0,7]", "[5,5]") "}", OK, "" },
    { "an empty tensor at the end", "{" T("a", "F32", "[0]", "[16,16]") "}", OK, "" },
    { "other order of keys", "{\"a\":{\"data_offsets\":[4,8],\"shape\":[],\"dtype\":\"F32\"}}", OK, "" },
    { "no JSON", "{\"a\"", E_FORMAT, "JSON" },
    { "no object", "[1]", E_FORMAT, "object" },
    { "text behind", "{} x", E_FORMAT, "JSON" },
    { "bytes that are no UTF-8", "{\"\xff\":1}", E_FORMAT, "JSON" },
    { "a name twice", "{" T("a", "F32", "[1]", "[0,4]") "," T("a", "F32", "[1]", "[4,8]") "}", E_FORMAT, "duplicate" },
    { "a key twice", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,4]}}", E_FORMAT,
      "duplicate" },
    { "an empty name", "{" T("", "F32", "[1]", "[0,4]") "}", E_FORMAT, "no name" },
    { "a control character in a name", "{" T("a\\u001b", "F32", "[1]", "[0,4]") "}", E_FORMAT, "0x1b" },
    { "a zero in a name", "{" T("a\\u0000", "F32", "[1]", "[0,4]") "}", E_FORMAT, "JSON" },
    { "no tensor", "{\"a\":1}", E_FORMAT, "dtype, shape" },
    { "one key too many", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", E_FORMAT,
      "dtype, shape" },
    { "a key missing", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"x\":1}}", E_FORMAT, "data_offsets" },
    { "an unknown dtype", "{" T("a", "U32", "[1]", "[0,4]") "}", E_FORMAT, "'U32'" },
    { "a dtype that is none", "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", E_FORMAT, "dtype" },
    { "a shape that is none", "{" T("a", "F32", "4", "[0,4]") "}", E_FORMAT, "shape" },
    { "a size that is not whole", "{" T("a", "F32", "[1.0]", "[0,4]") "}", E_FORMAT, "shape" },
    { "a negative size", "{" T("a", "F32", "[-1]", "[0,4]") "}", E_FORMAT, "shape" },
    { "nine dimensions", "{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", E_FORMAT, "shape" },
    { "a size past 64 bits", "{" T("a", "F32", "[9223372036854775808]", "[0,4]") "}", E_FORMAT, "JSON" },
    { "a product past 64 bits", "{" T("a", "F32", "[4294967296,4294967296]", "[0,4]") "}", E_FORMAT, "too large" },
    { "a product that wraps to 4", "{" T("a", "U8", "[4611686018427387905,4]", "[0,4]") "}", E_FORMAT, "too large" },
    { "a product of 0 that hides another", "{" T("a", "U8", "[4611686018427387905,4,0]", "[0,0]") "}", E_FORMAT,
      "too large" },
    { "a huge shape", "{" T("a", "F32", "[1000000,1000000]", "[0,16]") "}", E_FORMAT, "16 bytes" },
    { "more bytes than the shape", "{" T("a", "F32", "[3]", "[0,16]") "}", E_FORMAT, "3 elements" },
    { "fewer bytes than the shape", "{" T("a", "F32", "[3]", "[0,8]") "}", E_FORMAT, "8 bytes" },
    { "one offset", "{" T("a", "F32", "[1]", "[0]") "}", E_FORMAT, "data_offsets" },
    { "three offsets", "{" T("a", "F32", "[1]", "[0,4,8]") "}", E_FORMAT, "data_offsets" },
    { "offsets that run back", "{" T("a", "F32", "[1]", "[8,4]") "}", E_FORMAT, "8 to 4" },
    { "a negative offset", "{" T("a", "F32", "[1]", "[-4,0]") "}", E_FORMAT, "data_offsets" },
    { "an end outside the file", "{" T("a", "F32", "[1]", "[13,17]") "}", E_FORMAT, "16 bytes" },
    { "offsets that overflow", "{" T("a", "U8", "[1]", "[9223372036854775806,9223372036854775807]") "}", E_FORMAT,
      "16 bytes" },
    { "an overlap", "{" T("b", "F32", "[2]", "[4,12]") "," T("a", "F32", "[2]", "[0,8]") "}", E_FORMAT,
      "'a' and 'b' overlap" },
    { "one inside another", "{" T("a", "U8", "[16]", "[0,16]") "," T("b", "U8", "[2]", "[4,6]") "}", E_FORMAT,
      "overlap" },
    { "the same place twice", "{" T("a", "U8", "[4]", "[0,4]") "," T("b", "U8", "[4]", "[0,4]") "}", E_FORMAT,
      "overlap" },
    { "metadata that is no object", "{\"__metadata__\":1}", E_FORMAT, "__metadata__" },
    { "metadata that is no text", "{\"__metadata__\":{\"a\":1}}", E_FORMAT, "'a' has to be a string" },
    { "nesting", "{\"a\":[[[[[[[[[1]]]]]]]]]}", E_FORMAT, "nested deeper" },
};

static void test_headers(struct arena *a)
{
    const size_t used = arena_mark(a);

    for (size_t i = 0; i < LEN(headers); i++) {
        struct bytes b = make(headers[i].header, 16);
        struct weights t = { .n = -5 };
        struct err e = { 0 };
        const char *metadata = "none";
        const int rc = parse(&t, a, &b, &metadata, &e);
        bool ok = rc == headers[i].code && (rc == OK || is_err(&e, rc, headers[i].part));
        if (rc)                                             /* nothing came out, nothing is left in the arena */
            ok &= t.n == -5 && !strcmp(metadata, "none") && arena_mark(a) == used;
        tap_ok(ok, "header: %s%s%s", headers[i].why, rc ? ": " : "", e.text);
        arena_release(a, used);
        bytes_free(&b);
    }
}

static void test_lying_sizes(struct arena *a)
{
    static const uint64_t size[] = { 0, 1, 9, 30, 1000, 100000000, 100000001, INT64_MAX, UINT64_MAX, UINT64_MAX - 7 };
    struct bytes b = make("{" T("a", "F32", "[2]", "[0,8]") "}", 8);
    const uint64_t right = b.n - 16;
    struct weights t;
    struct err e = { 0 };
    bool ok = parse(&t, a, &b, NULL, &e) == OK;

    for (size_t i = 0; i < LEN(size); i++) {
        bytes_put(&b, 0, 8, size[i]);
        ok &= parse(&t, a, &b, NULL, &e) == E_FORMAT;
    }
    bytes_put(&b, 0, 8, right + 1);                         /* one byte of numbers is taken for header */
    ok &= parse(&t, a, &b, NULL, &e) == E_FORMAT;
    tap_ok(ok, "header sizes that lie");
    bytes_put(&b, 0, 8, right);
    for (size_t n = 0; n <= b.n; n++) {
        struct bytes cut = bytes_copy(&b, n);
        ok &= parse(&t, a, &cut, NULL, &e) == (n == b.n ? OK : E_FORMAT);
        ok &= safetensors_looks(cut.p, cut.n) == (n > 8);
        bytes_free(&cut);
    }
    bytes_free(&b);
    b = bytes_read(CORPUS "types.safetensors");
    for (size_t n = 0; n < b.n; n++) {
        struct bytes cut = bytes_copy(&b, n);
        ok &= parse(&t, a, &cut, NULL, &e) == E_FORMAT;
        bytes_free(&cut);
    }
    tap_ok(ok, "cut at every length");
    bytes_free(&b);
    arena_release(a, 0);
}

/* A header like that of a whole Stable Diffusion checkpoint, and one of nothing but commas. */
static void test_large_headers(struct arena *a)
{
    struct bytes b = { 0 };
    struct weights t = { 0 };
    struct err e = { 0 };
    char text[300];
    bool ok;

    bytes_add_number(&b, 0, 8);
    bytes_add(&b, "{", 1);
    for (int i = 0; i < 20000; i++) {
        const int n = snprintf(text, sizeof text,
                               "%s\"model.diffusion_model.input_blocks.%d.weight\":{\"dtype\":\"F16\","
                               "\"shape\":[2,2,1,1],\"data_offsets\":[%d,%d]}",
                               i ? "," : "", i, 8 * i, 8 * i + 8);
        bytes_add(&b, text, (size_t)n);
    }
    bytes_add(&b, "}", 1);
    bytes_put(&b, 0, 8, b.n - 8);
    for (int i = 0; i < 20000; i++)
        bytes_add_number(&b, (uint64_t)i, 8);
    ok = parse(&t, a, &b, NULL, &e) == OK && t.n == 20000;
    ok &= ok && weights_get(&t, "model.diffusion_model.input_blocks.19999.weight")
          && *(const unsigned char *)weights_get(&t, "model.diffusion_model.input_blocks.300.weight")->data
                 == (300 & 255);
    tap_ok(ok, "20000 tensors");
    bytes_free(&b);
    bytes_add_number(&b, 5000000 + 8, 8);
    bytes_add(&b, "{\"a\":[0", 7);
    for (int i = 0; i < 2500000; i++)
        bytes_add(&b, ",0", 2);
    for (int i = 0; i < 2500000; i++)
        bytes_add(&b, ",,", 2);
    bytes_put(&b, 0, 8, b.n - 8);
    ok = parse(&t, a, &b, NULL, &e) == E_FORMAT && is_err(&e, E_FORMAT, "values");
    tap_ok(ok, "what would cost a hundred times its size is refused before it does");
    bytes_free(&b);
    arena_release(a, 0);
}

/* ---- writing ---- */

static const float numbers[] = { 1, 2.5f, -3, 4, 5, 6e-30f };
static const struct safetensors_item items[] = {
    { "b.half", STORED_F16, 2, { 2, 3 }, numbers }, { "a.float", STORED_F32, 2, { 3, 2 }, numbers },
    { "a.bytes", STORED_U8, 1, { 5 }, numbers }, { "z", STORED_F64, 0, { 0 }, numbers },
    { "empty", STORED_I64, 2, { 0, 4 }, NULL }, { "quote\"\xc3\xa9", STORED_I16, 1, { 1 }, numbers },
};

static void test_write(void)
{
    const char *const metadata[] = { "seed", "7", "spec", "{\"a\": \"\xc3\xa9\"}", NULL };
    struct weights_file *f = NULL;
    struct err e = { 0 };
    char path[300];
    struct bytes once, again;
    bool ok = safetensors_write(bytes_path(path, sizeof path, "w.safetensors"), items, LEN(items), metadata, &e) == OK;

    ok &= weights_file_open(&f, path, &e) == OK && f->table.n == (int)LEN(items);
    for (size_t i = 0; i < LEN(items) && ok; i++) {
        const struct weights_entry *w = weights_get(&f->table, items[i].name);
        ok &= w && w->type == items[i].type && w->n_dim == items[i].n_dim
            && !memcmp(w->dim, items[i].dim, sizeof *w->dim * (size_t)w->n_dim);
        ok &= ok && !memcmp(w->data, numbers, (size_t)weights_count(w) * stored_bytes(w->type));
        ok &= ok && (uintptr_t)w->data % stored_bytes(w->type) == 0;
    }
    tap_ok(ok, "written and read again; every tensor lies on a multiple of its element%s%s", e.code ? ": " : "",
           e.text);
    ok = f && f->metadata && strstr(f->metadata, "\"format\":\"pt\"") && strstr(f->metadata, "\"seed\":\"7\"")
        && strstr(f->metadata, "\"spec\":\"{\\\"a\\\": \\\"\xc3\xa9\\\"}\"");
    tap_ok(ok, "metadata: %s", f && f->metadata ? f->metadata : "none");
    weights_file_close(f);
    once = bytes_read(path);
    ok = safetensors_write(path, items, LEN(items), metadata, &e) == OK;
    again = bytes_read(path);
    tap_ok(ok && once.n == again.n && !memcmp(once.p, again.p, once.n) && once.p[0] % 8 == 0,
           "the same bytes every time");
    ok = safetensors_write(path, NULL, 0, NULL, &e) == OK && weights_file_open(&f, path, &e) == OK && f->table.n == 0;
    tap_ok(ok && !strcmp(f->metadata, "{\"format\":\"pt\"}"), "no tensors at all");
    weights_file_close(f);
    bytes_free(&once);
    bytes_free(&again);
}

static void test_bad_writes(void)
{
    static const struct safetensors_item bad[][2] = {
        { { "a", STORED_U8, 0, { 0 }, "" }, { "a", STORED_U8, 0, { 0 }, "" } }, { { NULL, STORED_U8, 0, { 0 }, "" } },
        { { "", STORED_U8, 0, { 0 }, "" } }, { { "\xff", STORED_U8, 0, { 0 }, "" } },
        { { "__metadata__", STORED_U8, 0, { 0 }, "" } }, { { "a", N_STORED, 0, { 0 }, "" } },
        { { "a", STORED_U8, WEIGHTS_MAX_DIM + 1, { 0 }, "" } }, { { "a", STORED_U8, -1, { 0 }, "" } },
        { { "a", STORED_U8, 1, { -1 }, "" } }, { { "a", STORED_F64, 2, { (int64_t)1 << 40, (int64_t)1 << 40 }, "" } },
        { { "a", STORED_U8, 1, { (int64_t)1 << 62 }, "" }, { "b", STORED_U8, 1, { (int64_t)1 << 62 }, "" } },
    };
    const char *const odd[] = { "key", NULL }, *const no_text[] = { "key", "\xff", NULL };
    struct err e = { 0 };
    char path[300];
    bool ok = true;
    const int before = bytes_count_files();

    bytes_path(path, sizeof path, "bad.safetensors");
    for (size_t i = 0; i < LEN(bad); i++) {
        const bool two = i == 0 || i == LEN(bad) - 1;
        ok &= safetensors_write(path, bad[i], two ? 2 : 1, NULL, &e) == E_ARG && is_err(&e, E_ARG, "bad.safetensors");
    }
    ok &= safetensors_write(path, items, -1, NULL, &e) == E_ARG;
    ok &=
        safetensors_write(path, items, 1, odd, &e) == E_ARG && safetensors_write(path, items, 1, no_text, &e) == E_ARG;
    tap_ok(ok && bytes_count_files() == before, "what cannot be written leaves no file");
}

/* ---- write aside ---- */

static bool holds(const char *path, const char *text)
{
    struct bytes b = bytes_read(path);
    const bool ok = b.n == strlen(text) && !memcmp(b.p, text, b.n);

    bytes_free(&b);
    return ok;
}

static void test_aside(void)
{
    struct aside a = { 0 };
    struct err e = { 0 };
    struct stat st;
    char path[300], other[300];
    const mode_t mask = umask(027);
    bool ok = aside_write(bytes_path(path, sizeof path, "f"), "first", 5, &e) == OK && holds(path, "first");

    ok &= !stat(path, &st) && (st.st_mode & 0777) == 0640;
    tap_ok(ok, "a new file has the permissions of new files");
    chmod(path, 0604);
    const int before = bytes_count_files();
    ok = aside_open(&a, path, &e) == OK && fputs("second", a.file) >= 0 && holds(path, "first");
    ok &= bytes_count_files() == before + 1 && !strncmp(strrchr(a.temporary, '/'), "/.f.", 4);
    ok &= aside_commit(&a, &e) == OK && holds(path, "second") && bytes_count_files() == before;
    ok &= !stat(path, &st) && (st.st_mode & 0777) == 0604;
    tap_ok(ok, "the old file until the new one is whole; its permissions stay");
    aside_abandon(&a);
    ok = aside_commit(&a, &e) == E_BUG && aside_open(&a, path, &e) == OK && fputs("third", a.file) >= 0;
    aside_abandon(&a);
    aside_abandon(&a);
    tap_ok(ok && holds(path, "second") && bytes_count_files() == before, "abandoned");
    ok = aside_open(&a, bytes_path(other, sizeof other, "no/f"), &e) == E_IO && is_err(&e, E_IO, "No such file");
    ok &= aside_open(&a, bytes_path(other, sizeof other, "."), &e) == E_IO && is_err(&e, E_IO, "directory");
    ok &= aside_open(&a, "", &e) == E_ARG && aside_open(&a, "a/", &e) == E_ARG && !a.file && !a.path;
    tap_ok(ok, "places where no file can be");
    const size_t dir = strlen(bytes_path(other, sizeof other, ""));
    char *name = malloc(dir + 256);
    memcpy(name, other, dir);
    memset(name + dir, 'n', 255);
    name[dir + 255] = '\0';
    ok = aside_write(name, "long", 4, &e) == OK && holds(name, "long") && bytes_count_files() == before + 1;
    tap_ok(ok, "a name as long as names may be");
    free(name);
    umask(mask);
}

/* A file may grow to 100 bytes, or 5000: the disk is full in the middle of what is buffered, or of what is written. */
static void test_full_disk(void)
{
    static char large[20000];
    struct safetensors_item item = { "x", STORED_U8, 1, { sizeof large }, large };
    struct rlimit was, now;
    struct err e = { 0 };
    char path[300];
    bool ok = aside_write(bytes_path(path, sizeof path, "keep"), "kept", 4, &e) == OK;
    const int before = bytes_count_files();

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &was);
    for (rlim_t limit = 100; limit <= 5000; limit += 4900) {
        now = was;
        now.rlim_cur = limit;
        setrlimit(RLIMIT_FSIZE, &now);
        err_clear(&e);
        ok &= safetensors_write(path, &item, 1, NULL, &e) == E_IO && is_err(&e, E_IO, "keep")
              && is_err(&e, E_IO, strerror(EFBIG));
        ok &= aside_write(path, large, sizeof large, NULL) == E_IO;
        setrlimit(RLIMIT_FSIZE, &was);
        ok &= bytes_count_files() == before && holds(path, "kept");
    }
    signal(SIGXFSZ, SIG_DFL);
    tap_ok(ok, "a write that fails leaves the old file and nothing else: %s", e.text);
}

/* ---- files ---- */

static void test_map(void)
{
    struct map m = { 0 };
    struct err e = { 0 };
    char path[300];
    struct bytes b = { 0 };
    bool ok = map_open(&m, bytes_path(path, sizeof path, "none"), &e) == E_IO && is_err(&e, E_IO, "No such file");

    ok &= is_err(&e, E_IO, path) && map_open(&m, "tests", &e) == E_IO && is_err(&e, E_IO, "directory");
    ok &= map_open(&m, "/dev/null", &e) == E_IO && is_err(&e, E_IO, "regular") && !m.base;
    bytes_path(path, sizeof path, "pipe");
    ok &= !mkfifo(path, 0600) && map_open(&m, path, &e) == E_IO && is_err(&e, E_IO, "regular");
    tap_ok(ok, "what cannot be mapped; a pipe does not make us wait");
    map_close(&m);
    ok = aside_write(path, "", 0, &e) == OK && map_open(&m, path, &e) == OK && m.base && m.size == 0;
    map_drop(&m, m.base, 0);
    map_close(&m);
    tap_ok(ok && !m.base, "an empty file");
    for (int i = 0; i < 100000; i++)
        bytes_add_number(&b, (uint64_t)i, 4);
    ok = bytes_save(&b, path) && map_open(&m, path, &e) == OK && m.size == b.n && !memcmp(m.base, b.p, b.n);
    for (size_t from = 0; from < 5000; from += 617)
        map_drop(&m, m.base + from, m.size - from - from / 2);
    map_drop(&m, m.base + 1, 4095);
    tap_ok(ok && !memcmp(m.base, b.p, b.n), "pages that were dropped come again");
    map_close(&m);
    bytes_free(&b);
}

static bool wanted(const char *name, char *out, size_t size, void *ctx)
{
    const char *prefix = ctx;
    const size_t n = strlen(prefix);

    if (strncmp(name, prefix, n))
        return false;
    snprintf(out, size, "%s", name[n] ? name + n : "same");
    return true;
}

static bool all_same(const char *name, char *out, size_t size, void *ctx)
{
    (void)name;
    snprintf(out, size, "%s", (const char *)ctx);
    return true;
}

static void test_select(void)
{
    struct weights_file *f = NULL;
    struct weights t = { .n = -1 };
    struct err e = { 0 };
    bool ok = weights_file_open(&f, CORPUS "types.safetensors", &e) == OK;

    f->table.entry[0].used = true;
    ok &= weights_file_select(&t, f, wanted, "b", &e) == OK && t.n == 2 && !t.entry[0].used;
    ok &= weights_get(&t, "f16") && weights_get(&t, "f16")->data == weights_get(&f->table, "bf16")->data;
    ok &= t.path == f->path && t.drop && weights_get(&t, "ool");
    weights_drop(&t, weights_get(&t, "f16"));
    ok &= weights_file_select(&t, f, wanted, "nothing", &e) == OK && t.n == 0;
    tap_ok(ok, "a part of a table under other names");
    const size_t mark = arena_mark(&f->meta);
    t.n = -1;
    ok = weights_file_select(&t, f, all_same, "x", &e) == E_FORMAT && is_err(&e, E_FORMAT, "'x' is there twice");
    tap_ok(ok && t.n == -1 && arena_mark(&f->meta) == mark, "two entries under one name");
    weights_file_close(f);
}

static int write_index(const char *text, char *path, size_t size)
{
    return aside_write(bytes_path(path, size, "m.index.json"), text, strlen(text), NULL);
}

static void test_shards(void)
{
    static const struct {
        const char *why, *text, *part;
    } bad[] = {
        { "no map", "{\"metadata\":{}}", "weight_map" }, { "a map that is none", "{\"weight_map\":[]}", "weight_map" },
        { "a name twice", "{\"weight_map\":{\"a\":\"s1\",\"a\":\"s1\"}}", "duplicate" },
        { "a shard that is no name", "{\"weight_map\":{\"a\":1}}", "same directory" },
        { "a shard elsewhere", "{\"weight_map\":{\"a\":\"../s1\"}}", "same directory" },
        { "an absolute path", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "same directory" },
        { "a folder", "{\"weight_map\":{\"a\":\"x/s1\"}}", "same directory" },
        { "the directory above", "{\"weight_map\":{\"a\":\"..\"}}", "same directory" },
        { "no name at all", "{\"weight_map\":{\"a\":\"\"}}", "same directory" },
        { "a control character", "{\"weight_map\":{\"a\":\"s\\u001b\"}}", "same directory" },
        { "no such shard", "{\"weight_map\":{\"a\":\"s9\"}}", "No such file" },
        { "a tensor that is elsewhere", "{\"weight_map\":{\"a\":\"s1\",\"b\":\"s1\"}}", "'b' is not in 's1'" },
        { "a tensor in two shards", "{\"weight_map\":{\"a\":\"s1\",\"b\":\"s2\",\"c\":\"s3\"}}", "'a' is there twice" },
        { "an index as a shard", "{\"weight_map\":{\"a\":\"m.index.json\"}}", "neither" },
        { "deep nesting", "{\"weight_map\":{\"a\":[[[[[[[[1]]]]]]]]}}", "nested" },
    };
    const struct safetensors_item a = { "a", STORED_U8, 1, { 2 }, "ab" }, b = { "b", STORED_U8, 1, { 2 }, "cd" };
    const struct safetensors_item both[] = { a, { "c", STORED_U8, 1, { 2 }, "ef" } };
    struct weights_file *f = NULL;
    struct err e = { 0 };
    char path[300];
    bool ok =
        weights_file_open(&f, CORPUS "model.safetensors.index.json", &e) == OK && f->n_map == 2 && f->table.n == 3;
    struct weights_file *want = NULL;

    ok &= weights_file_open(&want, CORPUS "model.want.safetensors", &e) == OK && want->table.n == 3;
    for (int i = 0; i < 3 && ok; i++) {
        const struct weights_entry *w = &want->table.entry[i], *g = weights_get(&f->table, w->name);
        ok &= g && g->type == w->type && !memcmp(g->data, w->data, (size_t)weights_count(w) * stored_bytes(w->type));
        weights_drop(&f->table, g);
    }
    tap_ok(ok && f->metadata && strstr(f->metadata, "pt"), "two shards as one table%s%s", e.code ? ": " : "", e.text);
    weights_file_close(f);
    weights_file_close(want);
    ok = safetensors_write(bytes_path(path, sizeof path, "s1"), &a, 1, NULL, &e) == OK;
    ok &= safetensors_write(bytes_path(path, sizeof path, "s2"), &b, 1, NULL, &e) == OK;
    ok &= safetensors_write(bytes_path(path, sizeof path, "s3"), both, 2, NULL, &e) == OK;
    ok &= !write_index(" \n{\"weight_map\":{\"a\":\"s1\",\"b\":\"s2\"}}", path, sizeof path);
    tap_ok(ok && weights_file_open(&f, path, &e) == OK && f->table.n == 2 && weights_get(&f->table, "b"),
           "blanks before it");
    weights_file_close(f);
    for (size_t i = 0; i < LEN(bad); i++) {
        struct weights_file *none = NULL;
        write_index(bad[i].text, path, sizeof path);
        err_clear(&e);
        ok = weights_file_open(&none, path, &e) < 0 && !none && strstr(e.text, bad[i].part)
             && strstr(e.text, "m.index.json");
        tap_ok(ok, "index: %s: %s", bad[i].why, e.text);
    }
}

static void test_other_files(void)
{
    struct weights_file *f = NULL;
    struct err e = { 0 };
    char path[300];
    bool ok = weights_file_open(&f, bytes_path(path, sizeof path, "absent"), &e) == E_IO && is_err(&e, E_IO, "absent");

    aside_write(path, "GIF89a", 6, &e);
    ok &= weights_file_open(&f, path, &e) == E_FORMAT && is_err(&e, E_FORMAT, "neither safetensors nor");
    aside_write(path, "", 0, &e);
    ok &= weights_file_open(&f, path, &e) == E_FORMAT && weights_file_open(&f, "tests", &e) == E_IO && !f;
    weights_file_close(NULL);
    tap_ok(ok, "files that hold no weights: %s", e.text);
    ok = weights_file_open(&f, CORPUS "views.pt", &e) == OK && !f->metadata && weights_get(&f->table, "whole");
    tap_ok(ok && !strcmp(f->table.path, CORPUS "views.pt"), "first bytes decide");
    weights_file_close(f);
}

/* Every allocation on the way fails once. Under an address checker this shows that nothing is left behind. */
static void test_faults(void)
{
    static const char *const file[] = { "types.safetensors", "model.safetensors.index.json", "trained.pt",
                                        "views_old.pt" };
    struct err e = { 0 };
    char path[300], name[300];
    bool ok = true;
    long total = 0;

    for (size_t i = 0; i < LEN(file); i++) {
        snprintf(name, sizeof name, CORPUS "%s", file[i]);
        for (long n = 1;; n++) {
            struct weights_file *f = NULL;
            arena_fault_at(n);
            const int rc = weights_file_open(&f, name, &e);
            arena_fault_at(0);
            total++;
            ok &= rc ? rc == E_NOMEM && !f : f != NULL;
            weights_file_close(f);
            if (!rc)
                break;
        }
    }
    bytes_path(path, sizeof path, "faults");
    const int before = bytes_count_files();
    for (long n = 1;; n++) {
        arena_fault_at(n);
        const int rc = safetensors_write(path, items, LEN(items), NULL, &e);
        arena_fault_at(0);
        total++;
        ok &= rc == OK || (rc == E_NOMEM && bytes_count_files() == before);
        if (!rc)
            break;
    }
    tap_ok(ok && total > 30, "%ld allocations fail in turn", total);
}

int main(void)
{
    struct arena a;
    struct err e = { 0 };

    if (arena_init(&a, "test", ARENA_HOST, (size_t)1 << 30, &e))
        return 1;
    test_types(&a);
    test_headers(&a);
    test_lying_sizes(&a);
    test_large_headers(&a);
    test_write();
    test_bad_writes();
    test_aside();
    test_full_disk();
    test_map();
    test_select();
    test_shards();
    test_other_files();
    test_faults();
    arena_free(&a);
    bytes_clean();
    return tap_done();
}
