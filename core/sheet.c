/* core/sheet.c: see sheet.h. Sizes first, from the texts alone; then the sheet is there and cells are put into it. */
#include "core/sheet.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRAY = 214, INK = 24, LABEL_LINES = 4, PARAGRAPH_LINES = 3, LABEL_LETTERS = 16, CAPTION_LETTERS = 44,
       MARGIN = 12, GAP = 8, ROW_GAP = 12, LEADING = 2, BOX = 0xFFFD };

/* ---- letters ---- */

/* The character at *s, which moves behind it; BOX for a byte that begins none. Control characters are blanks. */
static uint32_t next_letter(const char **s)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *p = (const unsigned char *)*s;
    const int n = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
    uint32_t c = n == 1 ? p[0] : p[0] & (0xFFu >> (n + 1));

    ++*s;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return BOX;
        c = c << 6 | (p[i] & 0x3F);
    }
    if (!n || c < least[n] || c > 0x10FFFF)
        return BOX;
    *s += n - 1;
    return c < 32 || c == 127 ? ' ' : c;
}

static const unsigned char *glyph_of(const struct font *f, uint32_t c)
{
    if (c >= 0x20 && c < 0x7F)
        return f->glyph + (c - 0x20) * (uint32_t)f->height;
    return c >= 0xA0 && c < 0x100 ? f->glyph + (c - 0xA0 + 0x5F) * (uint32_t)f->height : NULL;
}

/* Is pixel (x,y) of a letter ink? A letter that the font lacks is a frame, a pixel from the edges. */
static bool is_ink(const struct font *f, const unsigned char *glyph, int x, int y)
{
    const int right = f->width - 2, top = 1, bottom = f->height - 3;

    if (glyph)
        return glyph[y] >> (7 - x) & 1;
    return x <= right && y >= top && y <= bottom && (x == 0 || x == right || y == top || y == bottom);
}

static void draw_letter(struct sheet *s, uint32_t c, int64_t X, int64_t Y)
{
    const unsigned char *glyph = glyph_of(s->font, c);
    const int64_t k = s->scale;

    for (int64_t y = 0; y < s->font->height * k; y++)
        for (int64_t x = 0; x < s->font->width * k; x++)
            if (is_ink(s->font, glyph, (int)(x / k), (int)(y / k)) && X + x < s->image.W && Y + y < s->image.H)
                memset((unsigned char *)s->image.px + ((Y + y) * s->image.W + X + x) * 3, INK, 3);
}

/* ---- lines ---- */

/* One line: where the next one begins. */
static const char *break_line(struct sheet_line *line, const char *text, int columns)
{
    const char *p = text, *blank = NULL;
    int n = 0, before = 0;

    while (*p && *p != '\n' && n < columns) {
        if (*p == ' ') {
            blank = p;
            before = n;
        }
        next_letter(&p);
        n++;
    }
    if (*p && *p != '\n' && *p != ' ' && blank && before > 0) {
        p = blank;
        n = before;
    }
    *line = (struct sheet_line){ text, n };
    while (*p == ' ')
        p++;
    return p + (*p == '\n');
}

int sheet_wrap(struct sheet_line *from, const char *text, int columns, int most, bool *whole)
{
    struct sheet_line line;
    int n = 0;

    columns = columns < 1 ? 1 : columns;
    for (; *text && n < most; n++) {
        text = break_line(&line, text, columns);
        if (from)
            from[n] = line;
    }
    *whole = !*text;
    return n;
}

/* Letters of the longest line of a text, at most `most`. */
static int longest(const char *text, int most)
{
    int n = 0, best = 0;

    while (*text && best < most) {
        n = *text == '\n' ? 0 : n + 1;
        next_letter(&text);
        best = n > best ? n : best;
    }
    return best;
}

/* At most `most` lines of `columns` letters from (X,Y) down. What is left out shows as dots at the end of the last. */
static void draw_text(struct sheet *s, const char *text, int columns, int most, int64_t X, int64_t Y)
{
    struct sheet_line line[PARAGRAPH_LINES > LABEL_LINES ? PARAGRAPH_LINES : LABEL_LINES];
    bool whole;
    const int n = sheet_wrap(line, text, columns, most, &whole);

    for (int i = 0; i < n; i++) {
        const int dots = whole || i < n - 1 ? 0 : columns < 3 ? columns : 3;
        const int letters = line[i].n < columns - dots ? line[i].n : columns - dots;
        const char *p = line[i].from;

        for (int j = 0; j < letters + dots; j++)
            draw_letter(s, j < letters ? next_letter(&p) : '.', X + (int64_t)j * s->font->width * s->scale,
                        Y + (int64_t)i * (s->font->height + LEADING) * s->scale);
    }
}

/* ---- life ---- */

int sheet_init(struct sheet *s, const struct font *font, int rows, int columns, int64_t W, int64_t H, struct err *e)
{
    *s = (struct sheet){ .font = font, .rows = rows, .columns = columns, .W = W, .H = H };
    if (rows < 1 || columns < 1 || rows > SHEET_MAX_ROWS || columns > SHEET_MAX_COLUMNS || W < 1 || H < 1
        || W > IMAGE_MAX_SIDE || H > IMAGE_MAX_SIDE)
        return err_set(e, E_ARG, "a sheet of %d rows of %d pictures of %" PRId64 " x %" PRId64 " pixels; at most %d "
                       "rows of %d", rows, columns, W, H, SHEET_MAX_ROWS, SHEET_MAX_COLUMNS);
    s->label = calloc((size_t)(rows * columns), sizeof *s->label);
    return s->label ? OK : err_set(e, E_NOMEM, "out of memory for a sheet");
}

void sheet_free(struct sheet *s)
{
    for (int i = 0; s->label && i < s->rows * s->columns; i++)
        free(s->label[i]);
    free(s->label);
    free(s->caption);
    image_free(&s->image);
    *s = (struct sheet){ 0 };
}

int sheet_label(struct sheet *s, int row, int column, struct err *e, const char *fmt, ...)
{
    char **label = &s->label[row * s->columns + column];
    va_list args;
    int n;

    free(*label);
    *label = NULL;
    va_start(args, fmt);
    n = vasprintf(label, fmt, args);
    va_end(args);
    if (n >= 0)
        return OK;
    *label = NULL;
    return err_set(e, E_NOMEM, "out of memory for a label");
}

int sheet_caption(struct sheet *s, const char *text, struct err *e)
{
    free(s->caption);
    s->caption = strdup(text);
    return s->caption ? OK : err_set(e, E_NOMEM, "out of memory for a caption");
}

/* ---- sizes ---- */

static int letters_in(const struct sheet *s, int64_t width) { return (int)(width / (s->font->width * s->scale)); }

static int64_t line_height(const struct sheet *s) { return (int64_t)(s->font->height + LEADING) * s->scale; }

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* The caption's paragraphs from `Y` down, drawn or only measured; returns where they end. */
static int64_t caption(struct sheet *s, int64_t width, int64_t Y, bool draw)
{
    const int columns = letters_in(s, width);
    bool whole;

    for (const char *p = s->caption; p && *p;) {
        const size_t n = strcspn(p, "\n");
        char *one = strndup(p, n);

        if (one) {
            if (draw)
                draw_text(s, one, columns, PARAGRAPH_LINES, (int64_t)MARGIN * s->scale, Y);
            Y += sheet_wrap(NULL, one, columns, PARAGRAPH_LINES, &whole) * line_height(s);
        }
        free(one);
        p += n + (p[n] == '\n');
    }
    return Y;
}

/* Everything for cells of this width; the sheet's size. */
static void settle(struct sheet *s, int64_t cell, int letters, int64_t *W, int64_t *H)
{
    int64_t y, gap, row_gap;

    s->scale = cell < 512 ? 1 : (int)(cell / 256);
    s->cell_W = cell;
    s->cell_H = larger(1, (s->H * cell + s->W / 2) / s->W);
    s->column_W = larger(cell, (int64_t)letters * s->font->width * s->scale);
    gap = (int64_t)GAP * s->scale;
    row_gap = (int64_t)ROW_GAP * s->scale;
    *W = s->columns * (s->column_W + gap) - gap;
    if (s->caption && *s->caption)
        *W = larger(*W, (int64_t)CAPTION_LETTERS * s->font->width * s->scale);
    y = caption(s, *W, (int64_t)MARGIN * s->scale, false);
    y += y > (int64_t)MARGIN * s->scale ? row_gap : 0;
    for (int r = 0; r < s->rows; r++) {
        int lines = 0;

        for (int c = 0; c < s->columns; c++) {
            const char *label = s->label[r * s->columns + c];
            bool whole;
            const int n = label ? sheet_wrap(NULL, label, letters_in(s, s->column_W), LABEL_LINES, &whole) : 0;

            lines = n > lines ? n : lines;
        }
        s->cell_Y[r] = y + lines * line_height(s);
        y = s->cell_Y[r] + s->cell_H + row_gap;
    }
    *W += 2 * (int64_t)MARGIN * s->scale;
    *H = y - row_gap + (int64_t)MARGIN * s->scale;
}

int64_t sheet_x(const struct sheet *s, int column)
{
    return (int64_t)MARGIN * s->scale + column * (s->column_W + (int64_t)GAP * s->scale);
}

/* The largest cells with which the sheet stays within its limits: between a width that fits and one that does not. */
static int choose_size(struct sheet *s, int64_t *W, int64_t *H, struct err *e)
{
    int64_t fits = 0, not = s->W + 1, cell = s->W;
    int letters = 0;

    for (int i = 0; i < s->rows * s->columns; i++) {
        const int n = s->label[i] ? longest(s->label[i], LABEL_LETTERS) : 0;

        letters = n > letters ? n : letters;
    }
    for (; not - fits > 1; cell = fits + (not - fits) / 2) {
        settle(s, cell, letters, W, H);
        if (*W <= SHEET_MAX_SIDE && *H <= SHEET_MAX_SIDE && *W * *H <= SHEET_MAX_PIXELS)
            fits = cell;
        else
            not = cell;
    }
    if (!fits)
        return err_set(e, E_ARG, "%d rows of %d pictures of %" PRId64 " x %" PRId64 " do not fit on a sheet of at most "
                       "%d pixels a side", s->rows, s->columns, s->W, s->H, SHEET_MAX_SIDE);
    settle(s, fits, letters, W, H);
    return OK;
}

int sheet_open(struct sheet *s, struct err *e)
{
    int64_t W = 0, H = 0;
    bool whole;
    int rc = choose_size(s, &W, &H, e), columns;

    rc = rc ? rc : image_new(&s->image, H, W, 3, PIXEL_U8, e);
    if (rc)
        return rc;
    memset(s->image.px, GRAY, (size_t)(H * W * 3));
    caption(s, W - 2 * (int64_t)MARGIN * s->scale, (int64_t)MARGIN * s->scale, true);
    columns = letters_in(s, s->column_W);
    for (int i = 0; i < s->rows * s->columns; i++)
        if (s->label[i])
            draw_text(s, s->label[i], columns, LABEL_LINES, sheet_x(s, i % s->columns), s->cell_Y[i / s->columns]
                      - sheet_wrap(NULL, s->label[i], columns, LABEL_LINES, &whole) * line_height(s));
    return OK;
}

/* ---- cells ---- */

int sheet_put(struct sheet *s, int row, int column, const struct image *picture, struct err *e)
{
    struct image small = { 0 };
    int rc;

    if (!s->image.px || row < 0 || row >= s->rows || column < 0 || column >= s->columns || picture->W != s->W
        || picture->H != s->H || picture->C != 3 || picture->type != PIXEL_U8)
        return err_set(e, E_BUG, "a picture of %" PRId64 " x %" PRId64 " for row %d, column %d of a sheet", picture->W,
                       picture->H, row, column);
    rc = image_resize(&small, picture, s->cell_H, s->cell_W, FILTER_LANCZOS, e);
    for (int64_t y = 0; !rc && y < s->cell_H; y++)
        memcpy((unsigned char *)s->image.px + ((s->cell_Y[row] + y) * s->image.W + sheet_x(s, column)) * 3,
               (unsigned char *)small.px + y * s->cell_W * 3, (size_t)s->cell_W * 3);
    image_free(&small);
    return rc;
}
