/* core/sheet.h: a contact sheet: pictures of one size in a grid on gray, a label above each, a caption above all.
 *
 *     struct sheet s;
 *     if (sheet_init(&s, font, 2, 3, W, H, e)) ...                 2 rows, 3 columns
 *     sheet_label(&s, row, column, e, "x #%d", i);                 a cell without a label stays empty
 *     sheet_caption(&s, "a red fox\nddim, 50 steps", e);
 *     sheet_open(&s, e);                                           sizes are settled, the text is drawn
 *     sheet_put(&s, row, column, &picture, e);                     at any time, in any order
 *     image_save("sheet.png", &s.image, ..);
 *     sheet_free(&s);
 *
 * Cells have the pictures' size; where the sheet would be larger than SHEET_MAX_SIDE a side or SHEET_MAX_PIXELS in all,
 * they are shrunk together until it fits. Letters are the font's, enlarged by whole numbers: by one for every 256
 * pixels of a cell's width. A label has up to four lines and what does not fit ends in dots; columns are at least as
 * wide as 16 letters of their labels, so that small pictures can be told apart. */
#ifndef UNICON_CORE_SHEET_H
#define UNICON_CORE_SHEET_H

#include "core/image.h"

/* Glyphs of U+0020..7E and U+00A0..FF, `height` bytes each: a row a byte, the left pixel its highest bit. What is not
 * among them is drawn as a box, and so is every byte that is not UTF-8. */
struct font {
    int width, height;
    const unsigned char *glyph;
};

enum { SHEET_MAX_SIDE = 16384, SHEET_MAX_PIXELS = 1 << 26, SHEET_MAX_ROWS = 64, SHEET_MAX_COLUMNS = 64 };

struct sheet {
    const struct font *font;
    int rows, columns;
    int64_t W, H;               /* of the pictures */
    char **label;               /* (rows,columns), owned; NULL: an empty cell */
    char *caption;              /* owned; NULL: none */
    /* from sheet_open on */
    int scale;                  /* of letters */
    int64_t cell_W, cell_H, column_W;
    int64_t cell_Y[SHEET_MAX_ROWS];     /* a label ends where its cell begins */
    struct image image;         /* RGB, U8 */
};

/* *s is overwritten and may be freed whether or not this succeeds. font is borrowed. */
int sheet_init(struct sheet *s, const struct font *font, int rows, int columns, int64_t W, int64_t H, struct err *e);
void sheet_free(struct sheet *s);           /* takes a zeroed one */

int sheet_label(struct sheet *s, int row, int column, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
int sheet_caption(struct sheet *s, const char *text, struct err *e);    /* a paragraph a line; copied */
int sheet_open(struct sheet *s, struct err *e);

/* Left edge of a column's cells. */
int64_t sheet_x(const struct sheet *s, int column);

/* picture: (H,W,3) U8. A cell that is not shrunk gets its very pixels, others what image_resize makes of it
 * (Lanczos). */
int sheet_put(struct sheet *s, int row, int column, const struct image *picture, struct err *e);

/* Lines into which at most `columns` letters a line break a text, at most `most` of them, at blanks where there are
 * any; fills `from` (NULL or `most` of them) with where each begins and how many letters it has. A line end in the text
 * begins a new line. *whole: nothing was left out. */
struct sheet_line {
    const char *from;
    int n;
};
int sheet_wrap(struct sheet_line *from, const char *text, int columns, int most, bool *whole);

#endif
