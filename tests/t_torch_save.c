/* tests/t_torch_save.c: files of torch.save written: every entry where and as the format wants it, read back to the
 * same bits, with 32-bit fields and 64-bit ones; what cannot be written is refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/torch_pickle.h"
#include "store/torch_save.h"
#include "store/torch_zip.h"
#include "tests/base_kit.h"
#include "tests/bytes.h"
#include "tests/kit.h"
#include "tests/tap.h"

static float some[64];

/* From the definition, a bit at a time. */
static uint32_t crc_bits(const unsigned char *p, size_t n)
{
    uint32_t x = UINT32_MAX;

    for (size_t i = 0; i < n; i++) {
        x ^= p[i];
        for (int k = 0; k < 8; k++)
            x = x >> 1 ^ (x & 1 ? 0xEDB88320u : 0);
    }
    return ~x;
}

static uint64_t number(const unsigned char *p, int n)
{
    uint64_t x = 0;

    while (n--)
        x = x << 8 | p[n];
    return x;
}

/* Every entry, by its local header: where torch looks for it, aligned, with its checksum; headers and directory agree.
 * The file ends where its last record does. */
static bool well_formed(const struct bytes *b, struct arena *a, int n)
{
    struct zip z;
    struct err e = { 0 };
    bool ok = !zip_open(&z, a, b->p, b->n, &e) && z.n == (uint32_t)n + 3;

    for (uint32_t i = 0; i < z.n && ok; i++) {
        const struct zip_entry *x = &z.entry[i];
        struct zip_span s;
        const unsigned char *h = b->p + x->header;
        ok = !zip_find(&s, &z, x->name, x->name_bytes, &e) && (s.data - b->p) % 64 == 0;
        ok = ok && number(h + 14, 4) == crc_bits(s.data, s.bytes) && number(h + 26, 2) == x->name_bytes &&
             !memcmp(h + 30, x->name, x->name_bytes);
        if (!ok)
            tap_note("entry '%.*s' %s", (int)x->name_bytes, x->name, e.text);
    }
    return ok;
}

static bool same_tensors(const struct weights *t, const struct safetensors_item *item, int n)
{
    bool ok = t->n == n;

    for (int i = 0; i < n && ok; i++) {
        const struct weights_entry *w = weights_get(t, item[i].name);
        ok = w && w->type == item[i].type && w->n_dim == item[i].n_dim && weights_is_dense(w) &&
             !memcmp(w->dim, item[i].dim, sizeof(int64_t) * (size_t)w->n_dim) &&
             (!weights_count(w) || !memcmp(w->data, item[i].data, (size_t)weights_count(w) * stored_bytes(w->type)));
        if (!ok)
            tap_note("'%s'", item[i].name);
    }
    return ok;
}

static void test_torch_save(struct arena *a)
{
    static const uint64_t narrow[] = { UINT64_MAX, 1, 3, 7, 65, 1000, 1500 };
    static unsigned char raw[4096];
    const struct safetensors_item item[] = {
        { "a.f32", STORED_F32, 2, { 5, 7 }, raw + 1 },          { "b", STORED_F16, 3, { 2, 1, 3 }, raw + 200 },
        { "c", STORED_BF16, 1, { 11 }, raw + 300 },             { "scalar", STORED_F32, 0, { 0 }, raw + 400 },
        { "empty", STORED_F32, 2, { 0, 3 }, NULL },             { "\xc3\xa9", STORED_F32, 2, { 1, 300 }, raw + 500 },
        { "far", STORED_F16, 2, { 5000000000, 0 }, NULL },
        { "h", STORED_F16, 8, { 1, 2, 1, 2, 1, 2, 1, 2 }, raw + 40 },
    };
    char path[300];
    struct err e = { 0 };
    struct bytes first = { 0 };

    for (size_t i = 0; i < sizeof raw; i++)
        raw[i] = (unsigned char)(i * i / 7 + i);
    snprintf(path, sizeof path, "%s", base_path("a.pth"));
    for (size_t i = 0; i < LEN(narrow); i++) {
        struct weights t = { 0 };
        struct bytes b;
        bool ok = !torch_save_narrow(path, item, (int)LEN(item), narrow[i], &e);
        b = bytes_read(path);
        ok = ok && torch_pickle_looks(b.p, b.n) && well_formed(&b, a, (int)LEN(item)) &&
             !torch_pickle_parse(&t, a, b.p, b.n, &e) && same_tensors(&t, item, (int)LEN(item));
        tap_ok(ok && (bytes_find(&b, 0, "PK\6\6", 4) == SIZE_MAX) == (i == 0), "64 bits from %llu on%s",
               (unsigned long long)narrow[i], e.text);
        if (i)
            bytes_free(&b);
        else
            first = b;
        arena_release(a, 0);
    }
    if (!torch_save(path, item, (int)LEN(item), &e)) {
        struct bytes b = bytes_read(path);
        tap_ok(b.n == first.n && !memcmp(b.p, first.p, b.n), "32 bits by default, the same bytes each time");
        bytes_free(&b);
    }
    bytes_free(&first);
}

/* More tensors than a 16-bit count holds, in many batches; and none. */
static void test_many(struct arena *a)
{
    enum { MANY = 65534 };
    struct safetensors_item *item = calloc(MANY, sizeof *item);
    char (*name)[12] = calloc(MANY, sizeof *name);
    char path[300];
    static const int count[] = { 0, 1000, 1001, 65532, MANY };
    struct err e = { 0 };

    if (!item || !name)
        exit(1);
    for (size_t i = 0; i < LEN(some); i++)
        some[i] = (float)i;
    snprintf(path, sizeof path, "%s", base_path("many.pth"));
    for (int i = 0; i < MANY; i++) {
        snprintf(name[i], sizeof name[i], "%d", i);
        item[i] = (struct safetensors_item){ name[i], STORED_F32, 1, { i % 2 }, &some[i % 64] };
    }
    for (size_t i = 0; i < LEN(count); i++) {
        struct weights t = { 0 };
        struct bytes b;
        bool ok = !torch_save(path, item, count[i], &e);
        b = bytes_read(path);
        ok = ok && well_formed(&b, a, count[i]) && !torch_pickle_parse(&t, a, b.p, b.n, &e) &&
             same_tensors(&t, item, count[i]);
        tap_ok(ok && (bytes_find(&b, 0, "PK\6\6", 4) == SIZE_MAX) == (count[i] < 65532), "%d tensors%s", count[i],
               e.text);
        bytes_free(&b);
        arena_release(a, 0);
    }
    free(item);
    free(name);
}

static void test_torch_refused(void)
{
    const struct safetensors_item good = { "a", STORED_F32, 1, { 4 }, some };
    const struct {
        struct safetensors_item two;
        const char *part;
    } bad[] = {
        { { "b", STORED_F64, 1, { 4 }, some }, "tensor 'b' is F64" },
        { { "b", STORED_I64, 1, { 4 }, some }, "tensor 'b' is I64" },
        { { "a", STORED_F32, 1, { 4 }, some }, "twice" },
        { { "", STORED_F32, 1, { 4 }, some }, "no name" },
        { { NULL, STORED_F32, 1, { 4 }, some }, "no name" },
        { { "a\n", STORED_F32, 1, { 4 }, some }, "0x0a" },
        { { "b", STORED_F32, 1, { -4 }, some }, "negative" },
        { { "b", STORED_F32, 9, { 1 }, some }, "9 dimensions" },
        { { "b", STORED_F32, 2, { INT64_MAX, 2 }, some }, "too large" },
    };
    char path[300];
    struct err e = { 0 };
    struct stat st;

    snprintf(path, sizeof path, "%s", base_path("bad.pth"));
    for (size_t i = 0; i < LEN(bad); i++) {
        const struct safetensors_item both[] = { good, bad[i].two };
        tap_ok(torch_save(path, both, 2, &e) == E_ARG && e.code == E_ARG && strstr(e.text, bad[i].part) &&
                   stat(path, &st),
               "refused: %s", e.text);
    }
    tap_ok(torch_save(path, &good, -1, &e) == E_ARG && strstr(e.text, "-1 tensors"), "refused: %s", e.text);
    tap_ok(torch_save(base_path("no/a.pth"), &good, 1, &e) == E_IO, "refused: %s", e.text);
}

int main(void)
{
    struct arena a;
    struct err e = { 0 };

    if (arena_init(&a, "test", ARENA_HOST, (size_t)1 << 30, &e))
        exit(1);
    base_dir();
    test_torch_save(&a);
    test_many(&a);
    test_torch_refused();
    arena_free(&a);
    return tap_done();
}
