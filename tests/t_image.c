/* tests/t_image.c: pixels in memory. Resizing and converting 8 bits are held against hashes of what Pillow gives
 * (tests/reference/images.py); all else against loops written from the definition. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/image.h"
#include "tests/kit.h"
#include "tests/tap.h"

#define INDEX "tests/corpus/images/expected.txt"

static const char *const type_name[] = { [PIXEL_U8] = "u8", [PIXEL_U16] = "u16", [PIXEL_F32] = "f32" };

static bool is_err(const struct err *e, int code, const char *part)
{
    if (e->code == code && strstr(e->text, part))
        return true;
    tap_note("error %d '%s', want %d and '%s'", e->code, e->text, code, part);
    return false;
}

static uint64_t fnv(const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    uint64_t h = 0xcbf29ce484222325;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

static int64_t count(const struct image *m)
{
    return m->H * m->W * m->C;
}

static uint64_t hash_of(const struct image *m)
{
    return fnv(m->px, (size_t)count(m) * pixel_bytes(m->type));
}

static struct image make(int64_t H, int64_t W, int64_t C, enum pixel type)
{
    struct image m = { 0 };
    struct err e = { 0 };

    if (image_new(&m, H, W, C, type, &e)) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    return m;
}

/* The generator of images.py: 8 bits, "hard" pictures only black and white. */
static struct image drawn(int64_t H, int64_t W, int64_t C, bool hard)
{
    struct image m = make(H, W, C, PIXEL_U8);
    uint32_t s = (uint32_t)(H * 1000 + W);

    for (int64_t i = 0; i < count(&m); i++) {
        s = s * 1664525u + 1013904223u;
        ((uint8_t *)m.px)[i] = (uint8_t)(hard ? (s >> 31) * 255 : s >> 24);
    }
    return m;
}

static double at(const struct image *m, int64_t y, int64_t x, int64_t c)
{
    const int64_t i = (y * m->W + x) * m->C + c;

    return m->type == PIXEL_U8 ? ((const uint8_t *)m->px)[i]
           : m->type == PIXEL_U16 ? ((const uint16_t *)m->px)[i] : (double)((const float *)m->px)[i];
}

static void set(struct image *m, int64_t i, double v)
{
    if (m->type == PIXEL_U8)
        ((uint8_t *)m->px)[i] = (uint8_t)v;
    else if (m->type == PIXEL_U16)
        ((uint16_t *)m->px)[i] = (uint16_t)v;
    else
        ((float *)m->px)[i] = (float)v;
}

/* ---- making ---- */

static const struct { const char *why; int64_t H, W, C; int type; const char *text; } bad_sizes[] = {
    { "no rows", 0, 5, 3, PIXEL_U8, "5x0 pixels" },
    { "a negative width", 5, -1, 3, PIXEL_U8, "-1x5" },
    { "too high", 65537, 1, 1, PIXEL_U8, "1..65536" },
    { "too wide", 1, INT64_MAX, 1, PIXEL_U8, "1..65536" },
    { "no channels", 5, 5, 0, PIXEL_U8, "channels 1..4" },
    { "five channels", 5, 5, 5, PIXEL_U8, "channels 1..4" },
    { "more than the limit", 65536, 65536, 2, PIXEL_U8, "larger than 4294967296" },
    { "more than the limit, floats", 65536, 16384, 2, PIXEL_F32, "larger than" },
    { "an unknown type", 5, 5, 3, 7, "type 7" },
};

static void test_new(void)
{
    struct image m = { 0 };
    struct err e = { 0 };

    for (size_t i = 0; i < LEN(bad_sizes); i++) {
        const int rc = image_new(&m, bad_sizes[i].H, bad_sizes[i].W, bad_sizes[i].C, (enum pixel)bad_sizes[i].type, &e);
        tap_ok(rc == E_ARG && is_err(&e, E_ARG, bad_sizes[i].text) && !m.px && !m.H, "%s: %s", bad_sizes[i].why,
               e.text);
    }
    tap_ok(image_new(&m, 0, 0, 0, PIXEL_U8, NULL) == E_ARG, "no record, no crash");
    m = make(3, 4, 2, PIXEL_U16);
    memset(m.px, 1, 48);
    image_free(&m);
    image_free(&m);
    tap_ok(!m.px && !m.H && pixel_bytes(PIXEL_U8) == 1 && pixel_bytes(PIXEL_U16) == 2 && pixel_bytes(PIXEL_F32) == 4,
           "free, twice; bytes of the types");
}

/* ---- against Pillow ---- */

static bool try_resize(const char *line)
{
    int f, C;
    char type[8], kind[8];
    int64_t H, W, to_H, to_W;
    uint64_t want, got = 0;
    struct image m, o = { 0 };
    struct err e = { 0 };

    if (sscanf(line, "resize %d %d %7s %7s %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNx64, &f, &C, type,
               kind, &H, &W, &to_H, &to_W, &want) != 9)
        return false;
    m = drawn(H, W, C, kind[0] == 'h');
    if (!strcmp(type, "f32")) {
        struct image real = make(H, W, C, PIXEL_F32);
        for (int64_t i = 0; i < count(&m); i++)
            ((float *)real.px)[i] = (float)((const uint8_t *)m.px)[i] / 7.0f - 11.0f;
        image_free(&m);
        m = real;
    }
    if (!image_resize(&o, &m, to_H, to_W, (enum filter)f, &e) && o.H == to_H && o.W == to_W && o.C == C)
        got = hash_of(&o);
    image_free(&m);
    image_free(&o);
    if (got != want)
        tap_note("%.70s: %s", line, e.code ? e.text : "other bytes");
    return got == want;
}

static bool try_convert(const char *line)
{
    int64_t C, to_C;
    uint64_t want, got = 0;
    struct image m, o = { 0 };
    struct err e = { 0 };

    if (sscanf(line, "convert %" SCNd64 " %" SCNd64 " %" SCNx64, &C, &to_C, &want) != 3)
        return false;
    m = drawn(64, 64, C, false);
    if (!image_convert(&o, &m, to_C, PIXEL_U8, &e) && o.H == 64 && o.W == 64 && o.C == to_C)
        got = hash_of(&o);
    image_free(&m);
    image_free(&o);
    if (got != want)
        tap_note("%.70s: %s", line, e.code ? e.text : "other bytes");
    return got == want;
}

static void test_pillow(void)
{
    FILE *f = fopen(INDEX, "r");
    char line[256];
    int n_resize = 0, n_convert = 0;
    bool resize = true, convert = true;

    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "resize ", 7)) {
            resize &= try_resize(line);
            n_resize++;
        } else if (!strncmp(line, "convert ", 8)) {
            convert &= try_convert(line);
            n_convert++;
        }
    if (f)
        fclose(f);
    tap_ok(resize && n_resize >= 500, "resize: Pillow's bytes in %d cases", n_resize);
    tap_ok(convert && n_convert == 8, "convert: Pillow's bytes in %d cases", n_convert);
}

/* ---- converting between types ---- */

static struct image row_of(enum pixel type, int64_t C, int64_t n, const double *v)
{
    struct image m = make(1, n / C, C, type);

    for (int64_t i = 0; i < n; i++)
        set(&m, i, v[i]);
    return m;
}

/* One row of samples converts to these. */
static bool converts(enum pixel from, int64_t C, const double *in, int64_t n, enum pixel to, int64_t to_C,
                     const double *want, double near)
{
    struct image m = row_of(from, C, n, in), o = { 0 };
    struct err e = { 0 };
    bool ok = image_convert(&o, &m, to_C, to, &e) == OK && o.type == to && o.C == to_C && o.W == m.W && o.H == 1;

    for (int64_t i = 0; ok && i < count(&o); i++) {
        const double got = at(&o, 0, i / to_C, i % to_C);
        ok = isnan(want[i]) ? isnan(got) : got == want[i] || fabs(got - want[i]) <= near;
        if (!ok)
            tap_note("%s (%" PRId64 ") to %s (%" PRId64 "): sample %" PRId64 " is %.9g, not %.9g", type_name[from], C,
                     type_name[to], to_C, i, got, want[i]);
    }
    image_free(&m);
    image_free(&o);
    return ok;
}

static void test_types(void)
{
    static double u16[65536], u8[65536], f32[65536];
    const double one[] = { -0.5, 0, 0.25, 0.5, 0.71, 1, 1.5, (double)INFINITY, -(double)INFINITY, (double)NAN };
    const double bytes[] = { 0, 0, 64, 128, 181, 255, 255, 255, 0, 0 };
    const double words[] = { 0, 0, 16384, 32768, 46530, 65535, 65535, 65535, 0, 0 };
    bool ok;

    for (int i = 0; i < 65536; i++) {
        u16[i] = i;
        u8[i] = (2 * i + 257) / 514;
        f32[i] = (double)(float)(i / 65535.0);
    }
    ok = converts(PIXEL_U16, 1, u16, 65536, PIXEL_U8, 1, u8, 0)
        && converts(PIXEL_U16, 1, u16, 65536, PIXEL_F32, 1, f32, 0)
        && converts(PIXEL_F32, 1, f32, 65536, PIXEL_U16, 1, u16, 0);
    tap_ok(ok, "all 16-bit values to 8 bits, to floats, and back");
    for (int i = 0; i < 256; i++) {
        u8[i] = i;
        u16[i] = 257 * i;
        f32[i] = (double)(float)(i / 255.0);
    }
    ok = converts(PIXEL_U8, 1, u8, 256, PIXEL_U16, 1, u16, 0) && converts(PIXEL_U8, 1, u8, 256, PIXEL_F32, 1, f32, 0)
        && converts(PIXEL_F32, 1, f32, 256, PIXEL_U8, 1, u8, 0);
    tap_ok(ok, "all 8-bit values to 16 bits, to floats, and back");
    ok = converts(PIXEL_F32, 1, one, 10, PIXEL_U8, 1, bytes, 0)
        && converts(PIXEL_F32, 1, one, 10, PIXEL_U16, 1, words, 0)
        && converts(PIXEL_F32, 1, one, 10, PIXEL_F32, 1, one, 1e-7);
    tap_ok(ok, "floats are clamped and rounded; NaN is black");
}

static void test_colours(void)
{
    const double rgb[] = { 0.25, 0.5, 0.75, 2, -1, 40 }, la[] = { 0.5, 0.25, -3, 1 };
    const double gray[] = { 0.299 * 0.25 + 0.587 * 0.5 + 0.114 * 0.75, 0.299 * 2 - 0.587 + 0.114 * 40 };
    const double on_white[] = { 0.875, 0.875, 0.875, -3, -3, -3 };
    const double rgba16[] = { 65535, 0, 32768, 13107 };     /* alpha 1/5 */
    const double over[] = { 65535, 52428, 58982 };          /* 65535 - (65535 - v)/5 */
    const double nan3[] = { (double)NAN, 1, 2 }, nan1[] = { (double)NAN };
    const double third[] = { 1, 2, 3 }, weighed[] = { 0.299 + 2 * 0.587 + 3 * 0.114 };
    struct image m = make(2, 2, 3, PIXEL_U8), o = { 0 };
    struct err e = { 0 };
    bool ok = converts(PIXEL_F32, 3, rgb, 6, PIXEL_F32, 1, gray, 1e-4) && converts(PIXEL_F32, 2, la, 4, PIXEL_F32, 3,
                                                                                 on_white, 0);

    tap_ok(ok, "floats: gray is weighed without rounding, alpha lies over white, nothing is clamped");
    tap_ok(converts(PIXEL_U16, 4, rgba16, 4, PIXEL_U16, 3, over, 0), "16 bits with alpha over white");
    tap_ok(converts(PIXEL_U16, 3, third, 3, PIXEL_U16, 1, (double[]){ floor(weighed[0] + 0.5) }, 0), "16 bits to gray");
    tap_ok(converts(PIXEL_F32, 3, nan3, 3, PIXEL_F32, 1, nan1, 0), "NaN stays among floats");
    ok = image_convert(&o, &m, 4, PIXEL_U8, &e) == E_ARG && is_err(&e, E_ARG, "4 channels") && !o.px;
    ok &= image_convert(&o, &m, 2, PIXEL_U8, &e) == E_ARG && image_convert(&o, &m, 0, PIXEL_U8, NULL) == E_ARG;
    tap_ok(ok, "to other than 1 or 3 channels: %s", e.text);
    image_free(&m);
}

/* ---- moving ---- */

/* Where EXIF says the stored first row and first column are: 't'op, 'b'ottom, 'l'eft, 'r'ight. */
static const char sides[9][3] = { "", "tl", "tr", "br", "bl", "lt", "rt", "rb", "lb" };

static bool turned_right(const struct image *o, const struct image *m, int orientation)
{
    const char row = sides[orientation][0], column = sides[orientation][1];
    const bool across = row == 't' || row == 'b';
    bool ok = o->H == (across ? m->H : m->W) && o->W == (across ? m->W : m->H) && o->C == m->C && o->type == m->type;

    for (int64_t r = 0; ok && r < m->H; r++)
        for (int64_t k = 0; ok && k < m->W; k++) {
            const int64_t from_top = row == 't' ? r : row == 'b' ? m->H - 1 - r : column == 't' ? k : m->W - 1 - k;
            const int64_t from_left = row == 'l' ? r : row == 'r' ? m->H - 1 - r : column == 'l' ? k : m->W - 1 - k;
            for (int64_t c = 0; ok && c < m->C; c++)
                ok = at(o, from_top, from_left, c) == at(m, r, k, c);
        }
    return ok;
}

static void test_moves(void)
{
    static const int64_t sizes[][2] = { { 1, 1 }, { 1, 6 }, { 5, 1 }, { 4, 7 } };
    struct err e = { 0 };
    bool turns = true, flips = true, crops = true;

    for (int type = PIXEL_U8; type <= PIXEL_F32; type++)
        for (size_t s = 0; s < LEN(sizes); s++)
            for (int64_t C = 1; C <= 4; C++) {
                struct image m = make(sizes[s][0], sizes[s][1], C, (enum pixel)type), o = { 0 };
                for (int64_t i = 0; i < count(&m); i++)
                    set(&m, i, (double)i + 1);
                for (int way = 1; way <= 8; way++) {
                    turns &= image_turn(&o, &m, way, &e) == OK && turned_right(&o, &m, way);
                    image_free(&o);
                }
                flips &= image_flip(&o, &m, &e) == OK && turned_right(&o, &m, 2);
                image_free(&o);
                for (int64_t y = 0; y < m.H; y++)
                    for (int64_t x = 0; x < m.W; x++) {
                        crops &= image_crop(&o, &m, y, x, m.H - y, 1, &e) == OK && o.H == m.H - y && o.W == 1;
                        for (int64_t r = 0; crops && r < o.H; r++)
                            crops &= at(&o, r, 0, C - 1) == at(&m, y + r, x, C - 1);
                        image_free(&o);
                    }
                image_free(&m);
            }
    tap_ok(turns, "eight orientations of four sizes, all types and channels");
    tap_ok(flips, "flips");
    tap_ok(crops, "crops");
}

static void test_bad_moves(void)
{
    static const int64_t crop[][4] = { { -1, 0, 1, 1 }, { 0, -1, 1, 1 }, { 0, 0, 0, 1 }, { 0, 0, 1, 0 }, { 0, 0, 5, 1 },
                                       { 0, 0, 1, 8 }, { 4, 0, 1, 1 }, { 0, 7, 1, 1 }, { INT64_MAX, 0, 1, 1 },
                                       { 0, INT64_MAX, 1, 2 }, { 0, 0, INT64_MAX, 1 }, { 1, 1, 4, 6 } };
    struct image m = make(4, 7, 3, PIXEL_U8), o = { 0 };
    struct err e = { 0 };
    bool ok = true;

    for (size_t i = 0; i < LEN(crop); i++)
        ok &= image_crop(&o, &m, crop[i][0], crop[i][1], crop[i][2], crop[i][3], &e) == E_ARG && !o.px;
    tap_ok(ok && is_err(&e, E_ARG, "a crop of 6x4 at (1,1)"), "crops that do not fit: %s", e.text);
    ok = image_turn(&o, &m, 0, &e) == E_ARG && image_turn(&o, &m, 9, &e) == E_ARG && !o.px;
    tap_ok(ok && is_err(&e, E_ARG, "orientation 9"), "%s", e.text);
    ok = image_resize(&o, &m, 0, 5, FILTER_LANCZOS, &e) == E_ARG
        && image_resize(&o, &m, 5, 65537, FILTER_NEAREST, &e) == E_ARG
        && image_resize(&o, &m, 5, 5, (enum filter)9, &e) == E_ARG && is_err(&e, E_ARG, "filter 9") && !o.px;
    ok &= image_cover(&o, &m, 0, 5, FILTER_LANCZOS, &e) == E_ARG
        && image_cover(&o, &m, 65536, 1, FILTER_LANCZOS, &e) == E_ARG && !o.px;
    tap_ok(ok, "sizes that cannot be: %s", e.text);
    image_free(&m);
}

/* ---- resizing what Pillow does not ---- */

/* U16 is the float picture of the same numbers, clamped and rounded; and only where it must be. */
static void test_resize_u16(void)
{
    bool ok = true;

    for (int f = FILTER_NEAREST; f <= FILTER_LANCZOS; f++)
        for (int64_t C = 1; C <= 3; C += 2) {
            struct image small = drawn(19, 23, C, f & 1), wide = make(19, 23, C, PIXEL_U16);
            struct image real = make(19, 23, C, PIXEL_F32);
            struct image a = { 0 }, b = { 0 };
            struct err e = { 0 };
            for (int64_t i = 0; i < count(&small); i++) {
                set(&wide, i, ((uint8_t *)small.px)[i] * 257);
                set(&real, i, ((uint8_t *)small.px)[i] * 257);
            }
            ok &= !image_resize(&a, &wide, 31, 9, (enum filter)f, &e)
                && !image_resize(&b, &real, 31, 9, (enum filter)f, &e);
            for (int64_t i = 0; ok && i < count(&a); i++) {
                const double v = at(&b, 0, i / C, i % C), want = floor(fmin(fmax(v, 0), 65535) + 0.5);
                ok = a.type == PIXEL_U16 && at(&a, 0, i / C, i % C) == want;
            }
            image_free(&small);
            image_free(&wide);
            image_free(&real);
            image_free(&a);
            image_free(&b);
        }
    tap_ok(ok, "16 bits: the float picture, clamped and rounded");
}

/* Left half invisible red, right half blue: no red may show, and colour does not depend on how much is visible. */
static void test_resize_alpha(void)
{
    for (int type = PIXEL_U8; type <= PIXEL_F32; type++) {
        const double white = type == PIXEL_U8 ? 255 : type == PIXEL_U16 ? 65535 : 1;
        struct image m = make(8, 16, 4, (enum pixel)type), o = { 0 };
        struct err e = { 0 };
        bool ok = true, between = false;
        for (int64_t i = 0; i < count(&m); i++)
            set(&m, i, i / 4 % 16 < 8 ? (i % 4 == 0 ? white : 0) : (i % 4 >= 2 ? white : 0));
        ok &= !image_resize(&o, &m, 8, 5, FILTER_BILINEAR, &e);
        for (int64_t x = 0; ok && x < 5; x++) {
            const double a = at(&o, 3, x, 3);
            ok &= at(&o, 3, x, 0) == 0 && (a == 0 || fabs(at(&o, 3, x, 2) - white) <= white * 1e-2);
            between |= a > 0 && a < white;
        }
        tap_ok(ok && between, "%s: what is invisible does not bleed", type_name[type]);
        image_free(&m);
        image_free(&o);
    }
}

static void test_resize_rest(void)
{
    struct image m = drawn(7, 9, 3, false), o = { 0 }, huge = make(40000, 1, 4, PIXEL_U8);
    struct err e = { 0 };
    bool ok = !image_resize(&o, &m, 7, 9, FILTER_LANCZOS, &e) && o.px != m.px && hash_of(&o) == hash_of(&m);

    tap_ok(ok, "the size it has: a copy");
    image_free(&o);
    ok = image_resize(&o, &huge, 2, 65536, FILTER_BILINEAR, &e) == E_ARG && is_err(&e, E_ARG, "larger than") && !o.px;
    tap_ok(ok, "a picture between the passes that is too large: %s", e.text);
    image_free(&m);
    image_free(&huge);
    m = make(3, 3, 1, PIXEL_F32);
    for (int64_t i = 0; i < 9; i++)
        set(&m, i, i == 4 ? (double)NAN : 1);
    ok = !image_resize(&o, &m, 9, 9, FILTER_BILINEAR, &e) && at(&o, 0, 0, 0) == 1 && isnan(at(&o, 4, 4, 0));
    tap_ok(ok, "NaN spreads as far as the filter reaches");
    image_free(&m);
    image_free(&o);
}

/* H, W, the box to cover, then what the formula gives by hand: size between, offset. */
static const int64_t covers[][8] = {
    { 100, 150, 64, 64, 64, 96, 0, 16 },        /* ratio 0.64 */
    { 10, 20, 10, 15, 10, 20, 0, 2 },           /* (20-15)/2 = 2.5, to even */
    { 10, 20, 10, 13, 10, 20, 0, 4 },           /* 3.5, to even */
    { 20, 10, 15, 10, 20, 10, 2, 0 },
    { 20, 10, 13, 10, 20, 10, 4, 0 },
    { 3, 5, 7, 11, 7, 12, 0, 0 },               /* ratio 7/3: 11.67; (12-11)/2 = 0.5, to even */
    { 31, 17, 8, 40, 73, 40, 32, 0 },           /* ratio 40/17: 72.94; 32.5, to even */
    { 5, 5, 5, 5, 5, 5, 0, 0 },
};

static void test_cover(void)
{
    bool ok = true;

    for (size_t i = 0; i < LEN(covers); i++) {
        const int64_t *k = covers[i];
        struct image m = drawn(k[0], k[1], 3, false), o = { 0 }, mid = { 0 }, want = { 0 };
        struct err e = { 0 };
        bool same = !image_cover(&o, &m, k[2], k[3], FILTER_BILINEAR, &e) && !image_resize(&mid, &m, k[4], k[5],
                                                                                        FILTER_BILINEAR, &e)
            && !image_crop(&want, &mid, k[6], k[7], k[2], k[3], &e) && o.H == k[2] && o.W == k[3]
            && hash_of(&o) == hash_of(&want);
        if (!same)
            tap_note("cover %zu: %s", i, e.text);
        ok &= same;
        image_free(&m);
        image_free(&o);
        image_free(&mid);
        image_free(&want);
    }
    tap_ok(ok, "cover: sizes and offsets of the formula");
}

/* ---- to and from [-1,1] ---- */

static void test_signed(void)
{
    struct err e = { 0 };
    bool ok = true;

    for (int type = PIXEL_U8; type <= PIXEL_F32; type++) {
        const double white = type == PIXEL_U8 ? 255 : type == PIXEL_U16 ? 65535 : 1;
        struct image m = make(256, 257, 3, (enum pixel)type), o = { 0 };
        float *v = malloc(sizeof *v * (size_t)count(&m));
        bool same = v != NULL;
        for (int64_t i = 0; i < count(&m); i++)
            set(&m, i, type == PIXEL_F32 ? (double)(i % 4097) / 4096 : (double)(i % ((int64_t)white + 1)));
        same = same && !image_to_signed(v, &m, &e);
        for (int64_t i = 0; same && i < count(&m); i++)
            same = fabs((double)v[i] - (2 * at(&m, 0, i / 3, i % 3) / white - 1)) <= 1.2e-7;
        same = same && !image_from_signed(&o, v, 256, 257, 3, (enum pixel)type, &e) && o.type == m.type
            && hash_of(&o) == hash_of(&m);
        tap_ok(same, "%s to [-1,1] and back", type_name[type]);
        free(v);
        image_free(&m);
        image_free(&o);
    }
    {
        /* -0.4 becomes 76.5 in 8 bits, as float; halves go to even. */
        const float in[] = { -0.4f, -1.5f, 7.0f, -INFINITY, INFINITY, NAN, 0.0f, 1.0f };
        const double u8[] = { 76, 0, 255, 0, 255, 0, 128, 255 }, f32[] = { 0.3, 0, 1, 0, 1, 0, 0.5, 1 };
        struct image o = { 0 };
        ok &= !image_from_signed(&o, in, 2, 2, 2, PIXEL_U8, &e);
        for (int i = 0; ok && i < 8; i++)
            ok = ((uint8_t *)o.px)[i] == u8[i];
        image_free(&o);
        ok &= !image_from_signed(&o, in, 2, 1, 4, PIXEL_F32, &e);
        for (int i = 0; ok && i < 8; i++)
            ok = fabs((double)((float *)o.px)[i] - f32[i]) < 1e-7;
        image_free(&o);
        tap_ok(ok, "from signed: clamped, halves to even, NaN is black");
        o = make(2, 2, 1, PIXEL_U8);
        tap_ok(image_to_signed((float[12]){ 0 }, &o, &e) == E_ARG && is_err(&e, E_ARG, "1 channels"), "%s", e.text);
        image_free(&o);
    }
}

/* ---- memory running out ---- */

static int scenario(const struct image *m, struct err *e)
{
    struct image a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
    int rc = image_resize(&a, m, 5, 40, FILTER_LANCZOS, e);

    if (!rc)
        rc = image_convert(&b, &a, 3, PIXEL_F32, e);
    if (!rc)
        rc = image_cover(&c, &b, 8, 8, FILTER_BICUBIC, e);
    if (!rc)
        rc = image_turn(&d, &c, 6, e);
    if (rc && d.px)
        rc = E_BUG;
    image_free(&a);
    image_free(&b);
    image_free(&c);
    image_free(&d);
    return rc;
}

static void test_faults(void)
{
    struct image m = make(9, 30, 4, PIXEL_U16);
    struct err e = { 0 };
    long total;
    bool ok;

    memset(m.px, 77, (size_t)count(&m) * 2);
    arena_fault_at(0);
    ok = scenario(&m, &e) == OK;
    total = arena_fault_count();
    for (long n = 1; n <= total; n++) {
        err_clear(&e);
        arena_fault_at(n);
        ok &= scenario(&m, &e) == E_NOMEM && e.code == E_NOMEM;
    }
    arena_fault_at(0);
    tap_ok(ok && total > 8, "out of memory at each of %ld points", total);
    image_free(&m);
}

int main(void)
{
    test_new();
    test_pillow();
    test_types();
    test_colours();
    test_moves();
    test_bad_moves();
    test_resize_u16();
    test_resize_alpha();
    test_resize_rest();
    test_cover();
    test_signed();
    test_faults();
    return tap_done();
}
