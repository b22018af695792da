/* store/image_png.c: PNG through libpng. Of the chunks only those that decide what a pixel is reach the library; EXIF
 * is found by walking the chunks, and text is read on a pass of its own that decodes no pixels. */
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "store/exif.h"
#include "store/image_codec.h"

static const unsigned char magic[8] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n' };

enum { TEXT_MAX_BYTES = SPEC_MAX_BYTES + (1 << 16), PACK_FROM_BYTES = 1024, PACK_LEVEL = 6 };

/* All that one pass owns. */
struct work {
    jmp_buf jump;
    png_structp png;
    png_infop info;
    const unsigned char *at, *end;      /* reading */
    FILE *file;                         /* writing */
    struct image m;
    char *text;
    int rc;
    struct err *e;
};

static void failed(png_structp png, png_const_charp why)
{
    struct work *w = png_get_error_ptr(png);
    char line[200];

    if (!w->rc) {
        snprintf(line, sizeof line, "%s", why);
        image_one_line(line);
        w->rc = err_set(w->e, w->file ? E_IO : E_FORMAT, "%s", line);
    }
    longjmp(w->jump, 1);
}

static void warned(png_structp png, png_const_charp why)
{
    (void)png;                          /* of chunks that were left out, or of pixels that came whole anyway */
    (void)why;
}

static void stop(struct work *w, int rc)
{
    w->rc = rc;
    longjmp(w->jump, 1);
}

static void take(png_structp png, png_bytep to, size_t n)
{
    struct work *w = png_get_io_ptr(png);

    if ((size_t)(w->end - w->at) < n)
        png_error(png, "it is cut short");
    memcpy(to, w->at, n);
    w->at += n;
}

static void put(png_structp png, png_bytep from, size_t n)
{
    struct work *w = png_get_io_ptr(png);

    if (fwrite(from, 1, n, w->file) != n)
        png_error(png, "the disk did not take it");
}

static void flush(png_structp png)
{
    (void)png;                          /* whoever commits the file flushes it */
}

/* The only place that is jumped to. */
static int guarded(struct work *w, void (*body)(struct work *w))
{
    if (!setjmp(w->jump))
        body(w);
    return w->rc;
}

static void begin_reading(struct work *w)
{
    w->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, w, failed, warned);
    if (w->png)
        w->info = png_create_info_struct(w->png);
    if (!w->info)
        stop(w, err_set(w->e, E_NOMEM, "no memory for libpng"));
    png_set_read_fn(w->png, w, take);
    png_set_user_limits(w->png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
}

static bool is(const unsigned char *bytes, size_t size)
{
    return size >= sizeof magic && !memcmp(bytes, magic, sizeof magic);
}

static bool writes(int64_t C, enum pixel type)
{
    (void)C;
    return type != PIXEL_F32;
}

/* ---- chunks ---- */

/* The data of the first chunk of a kind, or NULL. A chunk is a length, four letters, so many bytes and a check sum. */
static const unsigned char *find_chunk(const unsigned char *bytes, size_t size, const char *kind, size_t *n)
{
    size_t at = sizeof magic;

    while (at <= size && size - at >= 12) {
        const unsigned char *p = bytes + at;
        *n = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        if (*n > size - at - 12)
            break;
        if (!memcmp(p + 4, kind, 4))
            return p + 8;
        at += *n + 12;
    }
    return NULL;
}

/* Every chunk up to the last lies in the file: libpng asks for the memory of a chunk before it reads it. */
static int check_chunks(const unsigned char *bytes, size_t size, struct err *e)
{
    size_t n;

    return find_chunk(bytes, size, "IEND", &n) ? OK : err_set(e, E_FORMAT, "it is cut short or damaged");
}

/* ---- pixels ---- */

/* Chunks that libpng knows and pixels do not need: what is wrong with them is no reason to refuse a picture. */
static void leave_out(struct work *w, bool text)
{
    static const unsigned char names[] = "bKGD\0cHRM\0eXIf\0gAMA\0hIST\0iCCP\0oFFs\0pCAL\0pHYs\0"
                                         "sBIT\0sCAL\0sPLT\0sRGB\0tIME\0iTXt\0tEXt\0zTXt";
    const int n = (int)sizeof names / 5;

    png_set_keep_unknown_chunks(w->png, PNG_HANDLE_CHUNK_NEVER, names, text ? n - 3 : n);
}

/* Gray of 1, 2, 4 bits to 8, palettes to colour, transparent colours to alpha; 16 bits to this machine's order. */
static void expand(struct work *w)
{
    const int bits = png_get_bit_depth(w->png, w->info), colour = png_get_color_type(w->png, w->info);

    if (colour == PNG_COLOR_TYPE_PALETTE)
        png_set_palette_to_rgb(w->png);
    else if (colour == PNG_COLOR_TYPE_GRAY && bits < 8)
        png_set_expand_gray_1_2_4_to_8(w->png);
    if (png_get_valid(w->png, w->info, PNG_INFO_tRNS))
        png_set_tRNS_to_alpha(w->png);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (bits == 16)
        png_set_swap(w->png);
#endif
}

static void read_pixels(struct work *w)
{
    const size_t size = (size_t)(w->end - w->at);
    size_t row;
    int passes, rc;

    begin_reading(w);
    leave_out(w, false);
    png_read_info(w->png, w->info);
    expand(w);
    passes = png_set_interlace_handling(w->png);
    png_read_update_info(w->png, w->info);
    rc = image_declared(&w->m, png_get_image_height(w->png, w->info), png_get_image_width(w->png, w->info),
                        png_get_channels(w->png, w->info),
                        png_get_bit_depth(w->png, w->info) == 16 ? PIXEL_U16 : PIXEL_U8, size, w->e);
    if (rc)
        stop(w, rc);
    row = (size_t)(w->m.W * w->m.C) * pixel_bytes(w->m.type);
    if (png_get_rowbytes(w->png, w->info) != row)
        stop(w, err_set(w->e, E_BUG, "libpng's rows have %zu bytes, not %zu", png_get_rowbytes(w->png, w->info), row));
    for (int p = 0; p < passes; p++)
        for (int64_t y = 0; y < w->m.H; y++)
            png_read_row(w->png, (png_bytep)w->m.px + (size_t)y * row, NULL);
    png_read_end(w->png, NULL);                             /* to IEND: what ends earlier is cut short */
}

static int load(struct image *out, int *orientation, const unsigned char *bytes, size_t size, struct err *e)
{
    struct work w = { .at = bytes, .end = bytes + size, .e = e };
    const unsigned char *block;
    size_t n;
    int rc = check_chunks(bytes, size, e);

    if (rc)
        return rc;
    rc = guarded(&w, read_pixels);
    png_destroy_read_struct(&w.png, &w.info, NULL);
    if (rc) {
        image_free(&w.m);
        return rc;
    }
    block = find_chunk(bytes, size, "eXIf", &n);
    *orientation = block ? exif_orientation(block, n) : 1;
    *out = w.m;
    return OK;
}

/* ---- text ---- */

/* Ours stands before the pixels. */
static void read_text(struct work *w)
{
    png_textp text = NULL;
    int n = 0;

    begin_reading(w);
    leave_out(w, true);
    png_set_chunk_malloc_max(w->png, TEXT_MAX_BYTES);
    png_read_info(w->png, w->info);
    png_get_text(w->png, w->info, &text, &n);
    for (int i = 0; i < n; i++)
        if (!strcmp(text[i].key, SPEC_KEYWORD)) {
            w->text = strdup(text[i].text ? text[i].text : "");
            if (!w->text)
                stop(w, err_set(w->e, E_NOMEM, "no memory for the spec"));
            return;
        }
    stop(w, err_set(w->e, E_NONE, "it carries no spec"));
}

static int spec(char **out, const unsigned char *bytes, size_t size, struct err *e)
{
    struct work w = { .at = bytes, .end = bytes + size, .e = e };
    int rc = check_chunks(bytes, size, e);

    if (rc)
        return rc;
    rc = guarded(&w, read_text);
    png_destroy_read_struct(&w.png, &w.info, NULL);
    if (!rc)
        *out = w.text;
    return rc;
}

/* ---- writing ---- */

static void write_file(struct work *w)
{
    static const int colours[] = { [1] = PNG_COLOR_TYPE_GRAY, [2] = PNG_COLOR_TYPE_GRAY_ALPHA,
                                   [3] = PNG_COLOR_TYPE_RGB, [4] = PNG_COLOR_TYPE_RGB_ALPHA };
    const size_t row = (size_t)(w->m.W * w->m.C) * pixel_bytes(w->m.type);
    png_text text = { .compression = PNG_ITXT_COMPRESSION_NONE, .key = SPEC_KEYWORD, .text = w->text };

    w->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, w, failed, warned);
    if (w->png)
        w->info = png_create_info_struct(w->png);
    if (!w->info)
        stop(w, err_set(w->e, E_NOMEM, "no memory for libpng"));
    png_set_write_fn(w->png, w, put, flush);
    png_set_user_limits(w->png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
    png_set_compression_level(w->png, PACK_LEVEL);
    png_set_IHDR(w->png, w->info, (png_uint_32)w->m.W, (png_uint_32)w->m.H, w->m.type == PIXEL_U16 ? 16 : 8,
                 colours[w->m.C], PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (w->text) {
        if (strlen(w->text) >= PACK_FROM_BYTES)
            text.compression = PNG_ITXT_COMPRESSION_zTXt;
        png_set_text(w->png, w->info, &text, 1);
    }
    png_write_info(w->png, w->info);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (w->m.type == PIXEL_U16)
        png_set_swap(w->png);
#endif
    for (int64_t y = 0; y < w->m.H; y++)
        png_write_row(w->png, (png_const_bytep)w->m.px + (size_t)y * row);
    png_write_end(w->png, NULL);
}

static int save(FILE *file, const struct image *m, const char *text, int quality, struct err *e)
{
    struct work w = { .file = file, .m = *m, .text = (char *)text, .e = e };
    const int rc = guarded(&w, write_file);

    (void)quality;
    png_destroy_write_struct(&w.png, &w.info);
    return rc;
}

const struct image_codec image_png = { "PNG", is, writes, load, save, spec };
