/* tests/t_image_save.c: PNG, JPEG and TIFF written, with the spec inside, and read again. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/image_file.h"
#include "tests/bytes.h"
#include "tests/image_kit.h"
#include "tests/kit.h"
#include "tests/tap.h"

#define CORPUS "tests/corpus/images/"

static char dir[256];

/* ---- out and in again ---- */

/* Noise, with values at both ends; floats of all kinds. */
static struct image picture(int64_t H, int64_t W, int64_t C, enum pixel type)
{
    static const uint32_t odd[] = { 0x7fc00000, 0x7f800001, 0xff800000, 0x80000000, 1, 0x7f7fffff };
    struct image m = { 0 };
    struct err e = { 0 };
    uint32_t s = 7;

    if (image_new(&m, H, W, C, type, &e)) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    for (int64_t i = 0; i < H * W * C; i++) {
        s = s * 1664525u + 1013904223u;
        if (type == PIXEL_U8)
            ((uint8_t *)m.px)[i] = (uint8_t)(s >> 24);
        else if (type == PIXEL_U16)
            ((uint16_t *)m.px)[i] = (uint16_t)(s >> 16);
        else if (i < (int64_t)LEN(odd))
            memcpy((float *)m.px + i, odd + i, 4);
        else
            ((float *)m.px)[i] = (float)(int32_t)s / 1e8f;
    }
    return m;
}

static char *text_of(size_t n)
{
    char *t = malloc(n + 1);

    if (!t)
        exit(1);
    for (size_t i = 0; i < n; i++)
        t[i] = "{\"prompt\": \"a f\xc3\xb8x\\n\"}, "[i % 23];
    t[n] = '\0';
    return t;
}

static bool round_trip(const char *ending, const struct image *m, const char *spec)
{
    char path[300], twin[300];
    struct image back = { 0 };
    struct bytes a = { 0 }, b = { 0 };
    struct err e = { 0 };
    char *text = NULL;
    bool ok;

    snprintf(path, sizeof path, "%s/a%s", dir, ending);
    snprintf(twin, sizeof twin, "%s/b%s", dir, ending);
    ok = image_can_save(path, m->type, &e) == OK && image_save(path, m, spec, 0, &e) == OK
        && image_save(twin, m, spec, 0, &e) == OK && image_load(&back, path, true, &e) == OK && image_same(m, &back);
    if (ok && spec)
        ok = image_spec(&text, path, &e) == OK && !strcmp(text, spec);
    else if (ok)
        ok = image_spec(&text, path, &e) == E_NONE && is_err(&e, E_NONE, path) && !text;
    a = bytes_read(path);
    b = bytes_read(twin);
    ok = ok && a.n && a.n == b.n && !memcmp(a.p, b.p, a.n);
    if (!ok)
        tap_note("%s, type %d, %" PRId64 " channels, %zu bytes of spec: %s", ending, m->type, m->C,
                 spec ? strlen(spec) : 0, e.text);
    free(text);
    free(a.p);
    free(b.p);
    image_free(&back);
    unlink(path);
    unlink(twin);
    return ok;
}

static void test_round_trips(void)
{
    static const char *const ending[] = { ".png", ".PNG", ".tif", ".Tiff" };
    static const size_t spec[] = { 0, 10, 1023, 1024, 100000, 3000000 };
    struct image m;

    for (size_t i = 0; i < LEN(ending); i++) {
        bool ok = true;
        for (int type = PIXEL_U8; type <= (i < 2 ? PIXEL_U16 : PIXEL_F32); type++)
            for (int64_t C = 1; C <= 4; C++) {
                m = picture(7, 11, C, (enum pixel)type);
                ok &= round_trip(ending[i], &m, NULL) && round_trip(ending[i], &m, "{}");
                image_free(&m);
                m = picture(1, 1, C, (enum pixel)type);
                ok &= round_trip(ending[i], &m, NULL);
                image_free(&m);
            }
        m = picture(300, 701, 3, i < 2 ? PIXEL_U16 : PIXEL_F32);       /* several strips */
        ok &= round_trip(ending[i], &m, "x");
        image_free(&m);
        m = picture(3, 5, 3, PIXEL_U8);
        for (size_t k = 0; k < LEN(spec); k++) {
            char *text = text_of(spec[k]);
            ok &= round_trip(ending[i], &m, text);
            free(text);
        }
        image_free(&m);
        tap_ok(ok, "%s and back: all types, channels, specs of 0 to 3000000 bytes; same bytes twice", ending[i]);
    }
}

static struct image smooth(int64_t C)
{
    struct image m = picture(40, 56, C, PIXEL_U8);

    for (int64_t i = 0; i < 40 * 56 * C; i++) {
        const double x = (double)(i / C % 56), y = (double)(i / C / 56);
        ((uint8_t *)m.px)[i] = (uint8_t)(128 + 100 * sin(x / 9 + (double)(i % C)) * cos(y / 7));
    }
    return m;
}

static double worst(const struct image *a, const struct image *b)
{
    double d = 0;

    for (int64_t i = 0; i < a->H * a->W * a->C; i++)
        d = fmax(d, fabs((double)((uint8_t *)a->px)[i] - ((uint8_t *)b->px)[i]));
    return d;
}

static void test_jpeg(void)
{
    static const size_t spec[] = { 0, 10, 65526, 65527, 100000, 3000000 };
    char path[300];
    struct err e = { 0 };

    snprintf(path, sizeof path, "%s/a.jpg", dir);
    for (int64_t C = 1; C <= 3; C += 2) {
        struct image m = smooth(C), back = { 0 };
        size_t size[4];
        double far[4];
        bool ok = true;
        for (int k = 0; k < 4; k++) {
            struct bytes b;
            ok &= !image_save(path, &m, NULL, (int[]){ 0, 95, 30, 100 }[k], &e) && !image_load(&back, path, true, &e)
                && back.H == m.H && back.W == m.W && back.C == C;
            far[k] = ok ? worst(&m, &back) : 999;
            image_free(&back);
            b = bytes_read(path);
            size[k] = b.n;
            free(b.p);
        }
        tap_ok(ok && size[0] == size[1] && size[2] < size[1] && size[1] < size[3] && far[0] <= 6 && far[3] <= 3,
               "JPEG of %" PRId64 " channels: off by %g at 95, %g at 30, %g at 100", C, far[0], far[2], far[3]);
        image_free(&m);
    }
    for (size_t k = 0; k < LEN(spec); k++) {
        struct image m = smooth(3), back = { 0 }, plain = { 0 };
        char *text = text_of(spec[k]), *got = NULL;
        bool ok = !image_save(path, &m, NULL, 95, &e) && !image_load(&plain, path, true, &e)
            && !image_save(path, &m, text, 95, &e) && !image_load(&back, path, true, &e) && image_same(&back, &plain)
            && !image_spec(&got, path, &e) && !strcmp(got, text);
        tap_ok(ok, "JPEG with a spec of %zu bytes%s%s", spec[k], ok ? "" : ": ", ok ? "" : e.text);
        free(text);
        free(got);
        image_free(&m);
        image_free(&back);
        image_free(&plain);
    }
    unlink(path);
}

/* Red and blue stripes a pixel wide stay apart only without chroma subsampling. */
static void test_jpeg_chroma(void)
{
    struct image m = picture(16, 16, 3, PIXEL_U8), back = { 0 };
    struct err e = { 0 };
    char path[300];
    bool ok;

    for (int i = 0; i < 256; i++)
        memcpy((uint8_t *)m.px + 3 * i, i & 1 ? "\xff\0\0" : "\0\0\xff", 3);
    snprintf(path, sizeof path, "%s/a.jpeg", dir);
    ok = !image_save(path, &m, NULL, 0, &e) && !image_load(&back, path, true, &e) && worst(&m, &back) <= 12;
    tap_ok(ok, "JPEG keeps stripes of colour: off by %g", ok ? worst(&m, &back) : -1);
    unlink(path);
    image_free(&m);
    image_free(&back);
}

/* Text that others left is not ours. */
static void test_foreign_text(void)
{
    static const char *const name[] = { "extras.png", "extras.jpg", "described.tif", "gray.jpg", "c3_8.png" };
    struct err e = { 0 };
    bool ok = true;

    for (size_t i = 0; i < LEN(name); i++) {
        char path[300], *text = NULL;
        snprintf(path, sizeof path, "%s%s", CORPUS, name[i]);
        ok &= image_spec(&text, path, &e) == E_NONE && is_err(&e, E_NONE, name[i]) && !text;
    }
    tap_ok(ok, "%s", e.text);
}

/* ---- refusals to write ---- */

static const struct { const char *name; int64_t C; enum pixel type; int quality; const char *text; } refused[] = {
    { "a.gif", 3, PIXEL_U8, 0, "must end in .png, .jpg or .tif" },
    { "png", 3, PIXEL_U8, 0, "must end in" },
    { ".png", 3, PIXEL_U8, 0, "must end in" },
    { "a.png.bak", 3, PIXEL_U8, 0, "must end in" },
    { "a.png", 3, PIXEL_F32, 0, "PNG holds no float pixels of 3 channels: say .tif" },
    { "a.jpg", 3, PIXEL_U16, 0, "JPEG holds no 16-bit pixels of 3 channels: say .png" },
    { "a.jpg", 1, PIXEL_F32, 0, "say .tif" },
    { "a.jpg", 4, PIXEL_U8, 0, "JPEG holds no 8-bit pixels of 4 channels: say .png" },
    { "a.jpg", 2, PIXEL_U8, 0, "of 2 channels" },
    { "a.jpg", 3, PIXEL_U8, 101, "quality 101" },
    { "a.jpg", 3, PIXEL_U8, -1, "quality -1" },
};

static void test_refused(void)
{
    struct err e = { 0 };
    char path[300];

    for (size_t i = 0; i < LEN(refused); i++) {
        struct image m = picture(3, 3, refused[i].C, refused[i].type);
        char head[400];
        snprintf(path, sizeof path, "%s/%s", dir, refused[i].name);
        snprintf(head, sizeof head, "cannot write image '%s': ", path);
        tap_ok(image_save(path, &m, NULL, refused[i].quality, &e) == E_ARG && is_err(&e, E_ARG, refused[i].text)
               && !strncmp(e.text, head, strlen(head)) && access(path, F_OK), "%s", refused[i].text);
        image_free(&m);
    }
    tap_ok(image_can_save("a.gif", PIXEL_U8, &e) == E_ARG && image_can_save("a.png", PIXEL_F32, &e) == E_ARG
           && image_can_save("a.jpg", PIXEL_U16, NULL) == E_ARG && !image_can_save("x/a.JPG", PIXEL_U8, &e)
           && !image_can_save("a.tif", PIXEL_F32, &e), "can_save: %s", e.text);
    {
        struct image m = picture(3, 3, 3, PIXEL_U8);
        snprintf(path, sizeof path, "%s/none/a.png", dir);
        tap_ok(image_save(path, &m, NULL, 0, &e) == E_IO && is_err(&e, E_IO, path), "%s", e.text);
        image_free(&m);
    }
}

/* A disk that is full after 20 kB: an error, the old file, and nothing else in the directory. */
static void test_full_disk(void)
{
    static const char *const name[] = { "a.png", "a.jpg", "a.tif" };
    struct image m = picture(300, 300, 3, PIXEL_U8), small = picture(4, 4, 3, PIXEL_U8);
    struct rlimit was, now;
    struct err e = { 0 };
    char path[300];

    getrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < LEN(name); i++) {
        struct bytes before, after;
        bool ok;
        snprintf(path, sizeof path, "%s/%s", dir, name[i]);
        ok = image_save(path, &small, "old", 0, &e) == OK;
        before = bytes_read(path);
        now = was;
        now.rlim_cur = 20000;
        setrlimit(RLIMIT_FSIZE, &now);
        ok &= image_save(path, &m, NULL, 0, &e) == E_IO && is_err(&e, E_IO, path);
        setrlimit(RLIMIT_FSIZE, &was);
        after = bytes_read(path);
        ok &= before.n && before.n == after.n && !memcmp(before.p, after.p, after.n);
        ok &= unlink(path) == 0;
        tap_ok(ok && rmdir(dir) == 0 && mkdir(dir, 0700) == 0, "full disk: %s", e.text);
        free(before.p);
        free(after.p);
    }
    signal(SIGXFSZ, SIG_DFL);
    image_free(&m);
    image_free(&small);
}

int main(void)
{
    snprintf(dir, sizeof dir, "%s/image.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(dir)) {
        printf("Bail out! %s: %s\n", dir, strerror(errno));
        return 1;
    }
    image_quiet(dir, test_round_trips, "writing");
    test_jpeg();
    test_jpeg_chroma();
    test_foreign_text();
    test_refused();
    test_full_disk();
    rmdir(dir);
    return tap_done();
}
