/* tests/t_sheet.c: contact sheets: where text breaks, where cells lie, that nothing lies over anything else, what is
 * shrunk, and one small sheet bit by bit. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/sheet.h"
#include "store/font.h"
#include "tests/tap.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

enum { GRAY = 214 };

/* ---- lines ---- */

static const struct { const char *text; int columns, most; const char *lines; bool whole; } breaks[] = {
    { "", 5, 3, "", true },
    { "abc", 5, 3, "[abc]", true },
    { "abcde", 5, 3, "[abcde]", true },
    { "abcdef", 5, 3, "[abcde][f]", true },
    { "ab cd ef", 5, 3, "[ab cd][ef]", true },
    { "ab cd ef", 6, 3, "[ab cd][ef]", true },
    { "ab  cd", 3, 3, "[ab ][cd]", true },
    { "a b c d e f", 1, 3, "[a][b][c]", false },
    { "ab\ncd", 5, 3, "[ab][cd]", true },
    { "ab\n\ncd", 5, 3, "[ab][][cd]", true },
    { "ab\n", 5, 3, "[ab]", true },
    { "abcdefghij", 3, 2, "[abc][def]", false },
    { "abcdefghij", 0, 2, "[a][b]", false },
    { "\xC3\xA4\xC3\xB6\xC3\xBC\xC3\xA9", 3, 3, "[\xC3\xA4\xC3\xB6\xC3\xBC][\xC3\xA9]", true },
    { "\xE7\x8B\x90\xF0\x9F\xA6\x8A x", 2, 3, "[\xE7\x8B\x90\xF0\x9F\xA6\x8A][x]", true },
    { "\xFF\xC3\x80\xE7\x8B", 2, 3, "[\xFF\xC3\x80][\xE7\x8B]", true },
};

/* Bytes of the first n characters, where a byte that begins none counts as one. */
static int bytes_of(const char *s, int n)
{
    const unsigned char *p = (const unsigned char *)s;
    int at = 0;

    for (; n > 0; n--) {
        const int more = p[at] >= 0xF0 ? 3 : p[at] >= 0xE0 ? 2 : p[at] >= 0xC0 ? 1 : 0;
        int i = 1;

        while (i <= more && p[at] < 0xF8 && (p[at + i] & 0xC0) == 0x80)
            i++;
        at += i > more ? i : 1;
    }
    return at;
}

static void test_lines(void)
{
    for (size_t i = 0; i < LEN(breaks); i++) {
        struct sheet_line line[3];
        bool whole;
        const int n = sheet_wrap(line, breaks[i].text, breaks[i].columns, breaks[i].most, &whole);
        char got[200] = "";
        size_t at = 0;

        for (int j = 0; j < n; j++) {
            at += (size_t)snprintf(got + at, sizeof got - at, "[%.*s]", bytes_of(line[j].from, line[j].n),
                                   line[j].from);
        }
        tap_ok(!strcmp(got, breaks[i].lines) && whole == breaks[i].whole
               && sheet_wrap(NULL, breaks[i].text, breaks[i].columns, breaks[i].most, &whole) == n,
               "'%s' in %d lines of %d: %s", strchr(breaks[i].text, '\n') ? "(lines)" : breaks[i].text, breaks[i].most,
               breaks[i].columns, strchr(got, '\n') ? "?" : got);
    }
}

/* ---- layout ---- */

/* A picture in which every cell of a sheet is another. */
static void fill(struct image *m, int64_t W, int64_t H, int seed)
{
    struct err e = { 0 };

    if (image_new(m, H, W, 3, PIXEL_U8, &e)) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    for (int64_t i = 0; i < W * H * 3; i++)
        ((unsigned char *)m->px)[i] = (unsigned char)((i * 31 + i / 7 + seed * 57) % 200);
}

/* Is this cell's rectangle in the sheet the picture's? */
static bool holds(const struct sheet *s, int row, int column, const struct image *m)
{
    for (int64_t y = 0; y < m->H; y++)
        if (memcmp((unsigned char *)s->image.px + ((s->cell_Y[row] + y) * s->image.W + sheet_x(s, column)) * 3,
                   (unsigned char *)m->px + y * m->W * 3, (size_t)m->W * 3))
            return false;
    return true;
}

/* Pixels that are not the background, in a rectangle that is cut to the sheet. */
static int64_t marks(const struct sheet *s, int64_t x0, int64_t y0, int64_t x1, int64_t y1)
{
    int64_t n = 0;

    for (int64_t y = y0 < 0 ? 0 : y0; y < y1 && y < s->image.H; y++)
        for (int64_t x = x0; x < x1 && x < s->image.W; x++)
            n += ((unsigned char *)s->image.px)[(y * s->image.W + x) * 3] != GRAY;
    return n;
}

static const struct grid { const char *why; int rows, columns; int64_t W, H; const char *label, *caption; } grids[] = {
    { "one cell", 1, 1, 64, 48, "x #0 seed 7", "a red fox\nddim, 50 steps" },
    { "no text at all", 2, 3, 20, 10, "", NULL },
    { "cells of one pixel", 3, 4, 1, 1, "y", "caption" },
    { "odd sizes", 2, 5, 17, 31, "y depth mask", "" },
    { "letters twice as large", 2, 2, 513, 64, "x #1 seed 18446744073709551615", "a\nb\nc" },
    { "as many columns as can be", 1, 64, 24, 8, "x #63", "many" },
    { "as many rows as can be", 64, 1, 8, 24, "x", "many" },
    { "very wide", 1, 2, 3000, 3, "x", "wide" },
    { "labels of several lines", 2, 2, 40, 40, "x #3\nx-noise\xC2\xA0""1 y-noise\xC2\xA0""0.25", "lines" },
    { "letters that the font lacks", 1, 2, 64, 64, "\xE7\x8B\x90 \xF0\x9F\xA6\x8A \xFF\xFE", "\xE7\x8B\x90" },
};

/* Cells and labels lie in their columns, one below the other, and between columns is nothing. */
static bool in_order(const struct sheet *s)
{
    int64_t inside = 0, right = 0;

    for (int r = 0; r < s->rows; r++)
        if (s->cell_Y[r] + s->cell_H > s->image.H || (r && s->cell_Y[r] < s->cell_Y[r - 1] + s->cell_H))
            return false;
    for (int c = 0; c < s->columns; c++) {
        const int64_t x = sheet_x(s, c), end = x + s->column_W;

        if (x < right || end > s->image.W || s->column_W < s->cell_W)
            return false;
        right = end;
        inside += marks(s, x, s->cell_Y[0], end, s->cell_Y[s->rows - 1] + s->cell_H);
    }
    return inside == marks(s, 0, s->cell_Y[0], s->image.W, s->image.H);     /* above the first cells is the caption */
}

static void test_layout(void)
{
    for (size_t i = 0; i < LEN(grids); i++) {
        const struct grid *g = &grids[i];
        struct sheet s;
        struct err e = { 0 };
        struct image m = { 0 };
        int rc = sheet_init(&s, font_builtin(), g->rows, g->columns, g->W, g->H, &e);
        bool ok = true;

        for (int c = 0; c < g->rows * g->columns && !rc; c++)
            rc = sheet_label(&s, c / g->columns, c % g->columns, &e, "%s", g->label);
        if (!rc && g->caption)
            rc = sheet_caption(&s, g->caption, &e);
        rc = rc ? rc : sheet_open(&s, &e);
        ok = !rc && s.cell_W == g->W && s.cell_H == g->H && s.image.C == 3;
        for (int c = 0; c < g->rows * g->columns && ok; c++) {
            fill(&m, g->W, g->H, c);
            ok = !sheet_put(&s, c / g->columns, c % g->columns, &m, &e);
            image_free(&m);
        }
        for (int c = 0; c < g->rows * g->columns && ok; c++) {
            fill(&m, g->W, g->H, c);
            ok = holds(&s, c / g->columns, c % g->columns, &m);
            image_free(&m);
        }
        tap_ok(ok && in_order(&s), "%s: %" PRId64 " x %" PRId64 " pixels, letters %d %s", g->why, s.image.W, s.image.H,
               s.scale, e.text);
        if (ok && *g->label)
            tap_ok(marks(&s, sheet_x(&s, 0), s.cell_Y[0] - 12 * s.scale, sheet_x(&s, 0) + s.column_W, s.cell_Y[0]) > 4,
                   "%s: there is a label above the first cell", g->why);
        sheet_free(&s);
    }
}

/* An empty cell, a label that never ends, one that is said twice. */
static void test_labels(void)
{
    struct sheet s;
    struct err e = { 0 };
    char *huge = malloc(200001);
    int rc = huge ? sheet_init(&s, font_builtin(), 2, 2, 64, 16, &e) : E_NOMEM;

    memset(huge, 'M', 200000);
    huge[200000] = '\0';
    rc = rc ? rc : sheet_label(&s, 0, 0, &e, "first");
    rc = rc ? rc : sheet_label(&s, 0, 0, &e, "%s", huge);
    rc = rc ? rc : sheet_label(&s, 1, 1, &e, "x");
    rc = rc ? rc : sheet_caption(&s, huge, &e);
    rc = rc ? rc : sheet_open(&s, &e);
    tap_ok(!rc && s.column_W == 16 * 6 && s.image.W < 400 && s.image.H < 200, "a label and a caption of 200,000 letters"
           " are cut: %" PRId64 " x %" PRId64 " %s", s.image.W, s.image.H, e.text);
    tap_ok(!rc && marks(&s, sheet_x(&s, 0), s.cell_Y[0] - 56, sheet_x(&s, 0) + 96, s.cell_Y[0]) > 100
           && !marks(&s, sheet_x(&s, 0) + 96, s.cell_Y[0] - 56, s.image.W, s.cell_Y[1] - 14)
           && !marks(&s, 0, s.cell_Y[0], sheet_x(&s, 1), s.image.H), "it stays above its cell; empty cells are empty");
    sheet_free(&s);
    free(huge);
}

/* ---- limits ---- */

static const struct { int rows, columns; int64_t W, H; } large[] = {
    { 1, 64, 512, 512 }, { 64, 1, 512, 768 }, { 3, 9, 8192, 8192 }, { 1, 1, 32768, 16 }, { 2, 40, 1024, 8 },
};

static void test_shrinking(void)
{
    for (size_t i = 0; i < LEN(large); i++) {
        const double aspect = (double)large[i].H / (double)large[i].W;
        struct sheet s;
        struct err e = { 0 };
        int rc = sheet_init(&s, font_builtin(), large[i].rows, large[i].columns, large[i].W, large[i].H, &e);
        double off;

        for (int c = 0; c < large[i].rows * large[i].columns && !rc; c++)
            rc = sheet_label(&s, c / large[i].columns, c % large[i].columns, &e, "x #%d", c);
        rc = rc ? rc : sheet_open(&s, &e);
        off = (double)s.cell_H - aspect * (double)s.cell_W;
        tap_ok(!rc && s.image.W <= SHEET_MAX_SIDE && s.image.H <= SHEET_MAX_SIDE
               && s.image.W * s.image.H <= SHEET_MAX_PIXELS && s.cell_W < large[i].W && off < 1 && off > -1
               && in_order(&s), "%d rows of %d pictures of %" PRId64 " x %" PRId64 ": cells of %" PRId64 " x %" PRId64
               " on %" PRId64 " x %" PRId64 " %s", large[i].rows, large[i].columns, large[i].W, large[i].H, s.cell_W,
               s.cell_H, s.image.W, s.image.H, e.text);
        sheet_free(&s);
    }
}

/* A cell that is shrunk is what image_resize makes of the picture. */
static void test_small_cells(void)
{
    struct sheet s;
    struct err e = { 0 };
    struct image m = { 0 }, small = { 0 };
    int rc = sheet_init(&s, font_builtin(), 1, 60, 400, 300, &e);

    fill(&m, 400, 300, 1);
    rc = rc ? rc : sheet_label(&s, 0, 0, &e, "x");
    rc = rc ? rc : sheet_open(&s, &e);
    rc = rc ? rc : sheet_put(&s, 0, 59, &m, &e);
    rc = rc ? rc : image_resize(&small, &m, s.cell_H, s.cell_W, FILTER_LANCZOS, &e);
    tap_ok(!rc && s.cell_W < 400 && holds(&s, 0, 59, &small), "a cell of %" PRId64 " x %" PRId64 " of a picture of 400"
           " x 300 %s", s.cell_W, s.cell_H, e.text);
    image_free(&small);
    image_free(&m);
    sheet_free(&s);
}

static void test_refused(void)
{
    struct sheet s;
    struct err e = { 0 };
    struct image m = { 0 };

    tap_ok(sheet_init(&s, font_builtin(), 0, 1, 8, 8, &e) == E_ARG, "%s", e.text);
    sheet_free(&s);
    tap_ok(sheet_init(&s, font_builtin(), 1, 65, 8, 8, &e) == E_ARG, "%s", e.text);
    sheet_free(&s);
    fill(&m, 9, 8, 0);
    tap_ok(!sheet_init(&s, font_builtin(), 1, 1, 8, 8, &e) && !sheet_open(&s, &e)
           && sheet_put(&s, 0, 0, &m, &e) == E_BUG, "a picture of another size: %s", e.text);
    sheet_free(&s);
    image_free(&m);
}

/* ---- bit by bit ---- */

static void test_bits(void)
{
    static const char text[] = "AZaz09 !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \xC3\x84\xC3\xBF \xE7\x8B\x90";
    const uint64_t want = UINT64_C(0x4004ADC1B489419F);
    struct sheet s;
    struct err e = { 0 };
    struct image m = { 0 };
    uint64_t hash = UINT64_C(14695981039346656037);
    int rc = sheet_init(&s, font_builtin(), 2, 2, 40, 24, &e);

    fill(&m, 40, 24, 3);
    for (int i = 0; i < 4 && !rc; i++) {
        rc = sheet_label(&s, i / 2, i % 2, &e, "%s #%d", i < 2 ? "x" : "y depth", i);
        rc = rc ? rc : sheet_caption(&s, text, &e);
    }
    rc = rc ? rc : sheet_open(&s, &e);
    rc = rc ? rc : sheet_put(&s, 1, 0, &m, &e);
    for (int64_t i = 0; !rc && i < s.image.H * s.image.W * 3; i++)
        hash = (hash ^ ((unsigned char *)s.image.px)[i]) * UINT64_C(1099511628211);
    tap_ok(!rc && hash == want, "a sheet of %" PRId64 " x %" PRId64 " has the pixels %016" PRIX64 " %s", s.image.W,
           s.image.H, hash, e.text);
    image_free(&m);
    sheet_free(&s);
}

int main(void)
{
    test_lines();
    test_layout();
    test_labels();
    test_shrinking();
    test_small_cells();
    test_refused();
    test_bits();
    return tap_done();
}
