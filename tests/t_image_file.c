/* tests/t_image_file.c: PNG, JPEG and TIFF read. The pictures of tests/corpus/images and what they hold were written by
 * tests/reference/images.py with Pillow. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/arena.h"
#include "store/exif.h"
#include "store/image_codec.h"
#include "store/image_file.h"
#include "tests/bytes.h"
#include "tests/image_kit.h"
#include "tests/kit.h"
#include "tests/tap.h"

#define CORPUS "tests/corpus/images/"

static char dir[256];

static struct bytes read_in(const char *folder, const char *name)
{
    char path[512];

    snprintf(path, sizeof path, "%s%s", folder, name);
    return bytes_read(path);
}

/* ---- what Pillow reads ---- */

struct line {
    char what[8], name[80], type[8];
    int64_t H, W, C, near;
    size_t offset;
};

static bool as_expected(const struct line *l, const struct bytes *all, const struct image *m)
{
    const enum pixel type = !strcmp(l->type, "u8") ? PIXEL_U8 : !strcmp(l->type, "u16") ? PIXEL_U16 : PIXEL_F32;
    const int64_t n = l->H * l->W * l->C;
    const unsigned char *want = all->p + l->offset, *px = m->px;

    if (m->H != l->H || m->W != l->W || m->C != l->C || m->type != type || l->offset + image_size(m) > all->n) {
        tap_note("%s %s: %" PRId64 "x%" PRId64 "x%" PRId64 " of type %d", l->what, l->name, m->H, m->W, m->C, m->type);
        return false;
    }
    for (int64_t i = 0; i < n; i++) {
        bool ok;
        if (type == PIXEL_U8) {
            ok = llabs((long long)px[i] - want[i]) <= l->near;
        } else if (type == PIXEL_U16) {
            ok = ((const uint16_t *)m->px)[i] == (want[2 * i] | want[2 * i + 1] << 8);
        } else {                                            /* bits, so that every NaN is the file's */
            const uint32_t bits = want[4 * i] | (uint32_t)want[4 * i + 1] << 8 | (uint32_t)want[4 * i + 2] << 16
                | (uint32_t)want[4 * i + 3] << 24;
            uint32_t got;
            memcpy(&got, (const float *)m->px + i, 4);
            ok = got == bits;
        }
        if (!ok) {
            tap_note("%s %s: sample %" PRId64 " of %" PRId64 " differs", l->what, l->name, i, n);
            return false;
        }
    }
    return true;
}

static bool try_load(const char *text, const struct bytes *all)
{
    struct line l;
    struct image m = { 0 };
    struct err e = { 0 };
    char path[256];
    bool ok;

    if (sscanf(text, "%7s %79s %" SCNd64 " %" SCNd64 " %" SCNd64 " %7s %zu %" SCNd64, l.what, l.name, &l.H, &l.W, &l.C,
               l.type, &l.offset, &l.near) != 8)
        return false;
    snprintf(path, sizeof path, "%s%s", CORPUS, l.name);
    ok = image_load(&m, path, !strcmp(l.what, "turn"), &e) == OK && as_expected(&l, all, &m);
    if (!ok)
        tap_note("%s: %s", l.name, e.text);
    image_free(&m);
    return ok;
}

static bool try_bad(const char *text)
{
    struct image m = { 0 };
    struct err e = { 0 };
    char name[80], words[200] = "", path[256], head[300];

    if (sscanf(text, "bad %79s %199[^\n]", name, words) < 1)
        return false;
    snprintf(path, sizeof path, "%s%s", CORPUS, name);
    snprintf(head, sizeof head, "cannot read image '%s': ", path);
    if (image_load(&m, path, true, &e) == E_FORMAT && is_err(&e, E_FORMAT, words) && !m.px
        && !strncmp(e.text, head, strlen(head)) && strlen(e.text) > strlen(head) && !strchr(e.text, '\n'))
        return true;
    tap_note("%s: %d %s", name, e.code, e.text);
    image_free(&m);
    return false;
}

static void test_corpus(void)
{
    const struct bytes all = bytes_read(CORPUS "expected.bin");
    FILE *f = fopen(CORPUS "expected.txt", "r");
    char line[256];
    int n_load = 0, n_turn = 0, n_bad = 0;
    bool load = true, turn = true, bad = true;

    while (f && all.p && fgets(line, sizeof line, f))
        if (!strncmp(line, "load ", 5)) {
            load &= try_load(line, &all);
            n_load++;
        } else if (!strncmp(line, "turn ", 5)) {
            turn &= try_load(line, &all);
            n_turn++;
        } else if (!strncmp(line, "bad ", 4)) {
            bad &= try_bad(line);
            n_bad++;
        }
    if (f)
        fclose(f);
    tap_ok(load && n_load >= 140, "%d files hold Pillow's pixels", n_load);
    tap_ok(turn && n_turn >= 25, "%d files are turned as EXIF says", n_turn);
    tap_ok(bad && n_bad >= 30, "%d files are refused in one line", n_bad);
    free(all.p);
}

static void test_missing(void)
{
    struct image m = { 0 };
    struct err e = { 0 };
    char *text = NULL;
    bool ok = image_load(&m, CORPUS "none.png", true, &e) == E_IO && is_err(&e, E_IO, "none.png")
        && is_err(&e, E_IO, "No such file");

    tap_ok(ok && !m.px, "%s", e.text);
    ok = image_spec(&text, CORPUS "none.png", &e) == E_IO && is_err(&e, E_IO, "none.png") && !text;
    tap_ok(ok && image_load(&m, "tests", true, &e) == E_IO && !m.px, "%s", e.text);
}

/* ---- files that end too early ---- */

/* `strict`: every shorter file is an error. TIFF may end in bytes that no pixel needs. */
static const struct { const char *name; bool strict; } cut[] = {
    { "gray1_laced.png", true }, { "c4_16.png", true }, { "palette4_alpha.png", true }, { "turn6.png", true },
    { "gray.jpg", true }, { "rgb_420.jpg", true }, { "rgb_422_progressive.jpg", true }, { "ycck.jpg", true },
    { "restart.jpg", true }, { "turn5.jpg", true }, { "gray4.tif", false }, { "rgb16_MM.tif", false },
    { "palette8.tif", false }, { "rgb_tiff_lzw.tif", false }, { "rgb_packbits.tif", false },
    { "jpeg_ycbcr.tif", false },
    { "fax_group4.tif", false }, { "fax_group3.tif", false }, { "rgb_tiff_adobe_deflate.tif", false },
    { "ycbcr.tif", false }, { "f32_rgb_planar.tif", false },
};

static void test_cut(void)
{
    for (size_t i = 0; i < LEN(cut); i++) {
        const struct bytes b = read_in(CORPUS, cut[i].name);
        struct image whole = { 0 };
        struct err e = { 0 };
        size_t refused = 0, n = 0;
        bool ok = b.p && image_load_bytes(&whole, b.p, b.n, true, &e) == OK;
        for (; ok && n < b.n; n++) {
            unsigned char *part = malloc(n ? n : 1);        /* of its own, so that a checker sees reads past it */
            struct image m = { 0 };
            char *text = NULL;
            int rc;
            if (!part)
                break;
            memcpy(part, b.p, n);
            rc = image_load_bytes(&m, part, n, true, &e);
            refused += rc != OK;
            ok = rc ? rc == E_FORMAT && e.text[0] && !m.px : !cut[i].strict && image_same(&m, &whole);
            if (!ok)
                tap_note("%s cut to %zu of %zu: %d %s", cut[i].name, n, b.n, rc, rc ? e.text : "was read");
            rc = image_spec_bytes(&text, part, n, &e);
            ok &= rc == E_FORMAT || rc == E_NONE;
            image_free(&m);
            free(part);
        }
        tap_ok(ok && n == b.n && refused > n / 2, "%s cut to every length: %zu of %zu refused", cut[i].name, refused,
               n);
        image_free(&whole);
        free(b.p);
    }
}

/* One byte at a time set to other values: an error or a picture, and a checker's peace. */
static void test_damaged(void)
{
    for (size_t i = 0; i < LEN(cut); i++) {
        const struct bytes b = read_in(CORPUS, cut[i].name);
        struct err e = { 0 };
        bool ok = b.p != NULL;
        for (size_t at = 0; ok && at < b.n; at++) {
            const unsigned char was = b.p[at];
            for (int k = 0; ok && k < 2; k++) {
                struct image m = { 0 };
                char *text = NULL;
                int rc;
                b.p[at] = k ? (unsigned char)~was : was ^ 1u << at % 8;
                rc = image_load_bytes(&m, b.p, b.n, true, &e);
                ok = rc ? rc == E_FORMAT && !m.px && e.text[0] : m.px && m.H >= 1 && m.H <= IMAGE_MAX_SIDE;
                rc = image_spec_bytes(&text, b.p, b.n, &e);
                ok &= rc == OK || rc == E_FORMAT || rc == E_NONE;
                free(text);
                image_free(&m);
            }
            b.p[at] = was;
        }
        tap_ok(ok, "%s with every byte changed in turn", cut[i].name);
        free(b.p);
    }
}

/* ---- EXIF ---- */

static void test_exif(void)
{
    static const unsigned char good[] = "MM\0*\0\0\0\10\0\2\1\0\0\4\0\0\0\1\0\0\0\7\1\22\0\3\0\0\0\1\0\6\0\0\0\0\0";
    static const struct { const char *why; size_t at; unsigned char to; int want; } change[] = {
        { "as it is", 0, 'M', 6 }, { "no byte order", 0, 'N', 1 }, { "two byte orders", 1, 'I', 1 },
        { "not 42", 3, '+', 1 },
        { "directory outside", 4, 0xff, 1 }, { "directory at the last byte", 7, 37, 1 }, { "no entries", 9, 0, 1 },
        { "one entry", 9, 1, 1 }, { "more entries than bytes", 8, 0x80, 6 }, { "another tag", 23, 19, 1 },
        { "not a short", 25, 4, 1 }, { "two values", 29, 2, 1 }, { "0", 31, 0, 1 }, { "9", 31, 9, 1 },
        { "256 and more", 30, 1, 1 },
        { "8", 31, 8, 8 },
    };
    unsigned char block[38];
    bool ok = true;

    for (size_t i = 0; i < LEN(change); i++) {
        memcpy(block, good, sizeof block);
        block[change[i].at] = change[i].to;
        if (exif_orientation(block, sizeof block) != change[i].want) {
            tap_note("%s: %d", change[i].why, exif_orientation(block, sizeof block));
            ok = false;
        }
    }
    for (size_t n = 0; n < sizeof block; n++) {
        unsigned char *part = malloc(n ? n : 1);
        const int want = n >= 34 ? 6 : 1;
        if (!part)
            break;
        memcpy(part, good, n);
        ok &= exif_orientation(part, n) == want;
        free(part);
    }
    tap_ok(ok, "orientation from EXIF: %zu changes, every length", LEN(change));
}

/* ---- memory, threads ---- */

static void test_faults(void)
{
    static const char *const name[] = { "turn6.png", "ycck.jpg", "palette8.tif", "cmyk8.tif", "turn_ycbcr.tif" };
    struct err e = { 0 };
    bool ok = true;
    long total = 0;

    for (size_t i = 0; i < LEN(name); i++) {
        const struct bytes b = read_in(CORPUS, name[i]);
        struct image m = { 0 };
        arena_fault_at(0);
        ok &= image_load_bytes(&m, b.p, b.n, true, &e) == OK;
        image_free(&m);
        const long n = arena_fault_count();
        for (long k = 1; k <= n; k++, total++) {
            arena_fault_at(k);
            ok &= image_load_bytes(&m, b.p, b.n, true, &e) == E_NOMEM && e.code == E_NOMEM && !m.px;
        }
        arena_fault_at(0);
        free(b.p);
    }
    tap_ok(ok && total >= 6, "out of memory at each of %ld points", total);
}

/* Good and broken files on four threads at once: whose message is whose? */
static void test_threads(void)
{
    static const char *const name[] = { "rgb16_MM.tif", "taller.tif", "turn3.jpg", "taller.jpg", "c4_16.png",
                                        "short_rows.png", "cmyk8.tif", "packed.tif" };
    static const char *const words[] = { NULL, "Read error", NULL, "pixels are missing", NULL, "Not enough", NULL,
                                         "4711" };
    int wrong = 0;

#pragma omp parallel for num_threads(4) reduction(+ : wrong)
    for (int i = 0; i < 400; i++) {
        const size_t k = (size_t)i % LEN(name);
        const struct bytes b = read_in(CORPUS, name[k]);
        struct image m = { 0 };
        struct err e = { 0 };
        const int rc = image_load_bytes(&m, b.p, b.n, true, &e);
        wrong += words[k] ? rc != E_FORMAT || !strstr(e.text, words[k]) : rc != OK;
        image_free(&m);
        free(b.p);
    }
    tap_ok(!wrong, "four threads, each its own errors (%d wrong)", wrong);
}

int main(void)
{
    snprintf(dir, sizeof dir, "%s/image.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(dir)) {
        printf("Bail out! %s: %s\n", dir, strerror(errno));
        return 1;
    }
    image_quiet(dir, test_corpus, "reading");
    test_missing();
    image_quiet(dir, test_cut, "short files");
    image_quiet(dir, test_damaged, "damaged files");
    test_exif();
    test_faults();
    test_threads();
    rmdir(dir);
    return tap_done();
}
