/* store/image_tiff.c: TIFF through libtiff. Samples are unpacked here, from strips or tiles, chunky or in planes, of 1
 * to 16 bits or floats; then gray is turned right way round, palettes are looked up, ink becomes light, alpha is taken
 * out of the colour. Only colour spaces that are none of these go through the library's own conversion to RGB. */
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <tiffio.h>

#include "core/tensor.h"
#include "store/image_codec.h"

#define HAS_OPTIONS (TIFFLIB_VERSION >= 20221213)       /* 4.5: handlers and limits of one file, not of the process */

/* A file in memory, or one that is being written, and what the library had to say about it. */
struct source {
    const unsigned char *bytes;
    size_t size, at;
    FILE *file;
    bool decoding;              /* from here on a warning means that pixels are missing */
    bool bad;
    char why[200];
};

/* What the tags say. */
struct layout {
    uint32_t W, H, tile_W, tile_H;      /* a tile or a strip */
    uint16_t n_sample, bits, format, colour, planes, packing, orientation;
    bool tiled;
    enum { ALPHA_NONE, ALPHA_APART, ALPHA_INSIDE } alpha;
    int n_used;                         /* of n_sample: colour, and alpha if there is any */
    enum pixel type;
};

/* ---- the library's view of a source ---- */

static tmsize_t source_read(thandle_t h, void *to, tmsize_t n)
{
    struct source *s = h;
    const size_t left = s->at < s->size ? s->size - s->at : 0, take = (size_t)n < left ? (size_t)n : left;

    if (s->file || n < 0)
        return 0;
    memcpy(to, s->bytes + s->at, take);
    s->at += take;
    return (tmsize_t)take;
}

static tmsize_t source_write(thandle_t h, void *from, tmsize_t n)
{
    struct source *s = h;

    return s->file && n >= 0 ? (tmsize_t)fwrite(from, 1, (size_t)n, s->file) : 0;
}

static toff_t source_seek(thandle_t h, toff_t to, int whence)
{
    struct source *s = h;

    if (s->file)
        return fseeko(s->file, (off_t)to, whence) ? (toff_t)-1 : (toff_t)ftello(s->file);
    s->at = (size_t)(to + (whence == SEEK_CUR ? s->at : whence == SEEK_END ? s->size : 0));
    return s->at;
}

static int source_close(thandle_t h)
{
    (void)h;                    /* whoever opened it closes it */
    return 0;
}

static toff_t source_size(thandle_t h)
{
    struct source *s = h;
    off_t here, end;

    if (!s->file)
        return s->size;
    here = ftello(s->file);
    end = fseeko(s->file, 0, SEEK_END) ? 0 : ftello(s->file);
    return fseeko(s->file, here, SEEK_SET) || end < 0 ? 0 : (toff_t)end;
}

static int source_map(thandle_t h, void **base, toff_t *size)
{
    struct source *s = h;

    if (s->file)
        return 0;
    *base = (void *)s->bytes;
    *size = s->size;
    return 1;
}

static void source_unmap(thandle_t h, void *base, toff_t size)
{
    (void)h;
    (void)base;
    (void)size;
}

/* The first complaint is the cause of the rest. Tags too may lie past the end of the file. */
static void keep(struct source *s, bool warning, const char *format, va_list ap)
{
    if (s->bad || (warning && !s->decoding && strncmp(format, "IO error", 8)))
        return;
    s->bad = true;
    vsnprintf(s->why, sizeof s->why, format, ap);
    image_one_line(s->why);
}

#if HAS_OPTIONS
static int on_error(TIFF *t, void *user, const char *module, const char *format, va_list ap)
{
    (void)t;
    (void)module;
    keep(user, false, format, ap);
    return 1;                   /* dealt with: nothing is printed */
}

static int on_warning(TIFF *t, void *user, const char *module, const char *format, va_list ap)
{
    (void)t;
    (void)module;
    keep(user, true, format, ap);
    return 1;
}

static TIFF *open_quietly(struct source *s, const char *mode)
{
    TIFFOpenOptions *o = TIFFOpenOptionsAlloc();
    TIFF *t = NULL;

    if (!o)
        return NULL;
    TIFFOpenOptionsSetErrorHandlerExtR(o, on_error, s);
    TIFFOpenOptionsSetWarningHandlerExtR(o, on_warning, s);
    TIFFOpenOptionsSetMaxSingleMemAlloc(o, s->file ? 0 : (tmsize_t)(s->size + ((size_t)1 << 28)));
    t = TIFFClientOpenExt("image", mode, s, source_read, source_write, source_seek, source_close, source_size,
                          source_map, source_unmap, o);
    TIFFOpenOptionsFree(o);
    return t;
}
#else
static _Thread_local struct source *current;    /* before 4.5 the process had one handler; a thread has one file open */

static void on_error(const char *module, const char *format, va_list ap)
{
    (void)module;
    if (current)
        keep(current, false, format, ap);
}

static void on_warning(const char *module, const char *format, va_list ap)
{
    (void)module;
    if (current)
        keep(current, true, format, ap);
}

static TIFF *open_quietly(struct source *s, const char *mode)
{
    current = s;
    TIFFSetErrorHandler(on_error);
    TIFFSetWarningHandler(on_warning);
    return TIFFClientOpen("image", mode, s, source_read, source_write, source_seek, source_close, source_size,
                          source_map, source_unmap);
}
#endif

static void close_quietly(TIFF *t)
{
    if (t)
        TIFFClose(t);
#if !HAS_OPTIONS
    current = NULL;
#endif
}

static int complain(const struct source *s, const char *otherwise, struct err *e)
{
    return err_set(e, s->file ? E_IO : E_FORMAT, "%s", s->bad && s->why[0] ? s->why : otherwise);
}

static bool is(const unsigned char *bytes, size_t size)
{
    return size >= 4 && (!memcmp(bytes, "II*\0", 4) || !memcmp(bytes, "MM\0*", 4) || !memcmp(bytes, "II+\0", 4)
                         || !memcmp(bytes, "MM\0+", 4));
}

static bool writes(int64_t C, enum pixel type)
{
    (void)C;
    (void)type;
    return true;
}

/* ---- what the tags say ---- */

static int colour_samples(const struct layout *l)
{
    return l->colour == PHOTOMETRIC_RGB ? 3 : l->colour == PHOTOMETRIC_SEPARATED ? 4 : 1;
}

/* What the library converts while it decodes is as good as RGB. */
static bool is_jpeg_colour(const struct layout *l)
{
    return l->colour == PHOTOMETRIC_YCBCR && l->packing == COMPRESSION_JPEG && l->planes == PLANARCONFIG_CONTIG
        && l->n_sample == 3 && l->bits == 8;
}

static bool is_odd(const struct layout *l)
{
    return l->colour != PHOTOMETRIC_MINISWHITE && l->colour != PHOTOMETRIC_MINISBLACK && l->colour != PHOTOMETRIC_RGB
        && l->colour != PHOTOMETRIC_PALETTE && l->colour != PHOTOMETRIC_SEPARATED;
}

static void read_blocks(struct layout *l, TIFF *t)
{
    l->tiled = TIFFIsTiled(t);
    if (l->tiled) {
        TIFFGetField(t, TIFFTAG_TILEWIDTH, &l->tile_W);
        TIFFGetField(t, TIFFTAG_TILELENGTH, &l->tile_H);
    } else {
        l->tile_W = l->W;
        TIFFGetFieldDefaulted(t, TIFFTAG_ROWSPERSTRIP, &l->tile_H);
        if (l->tile_H > l->H)
            l->tile_H = l->H;
    }
}

static int read_layout(struct layout *l, TIFF *t, struct err *e)
{
    uint16_t n_extra = 0, *extra = NULL;

    if (!TIFFGetField(t, TIFFTAG_IMAGEWIDTH, &l->W) || !TIFFGetField(t, TIFFTAG_IMAGELENGTH, &l->H)
        || !TIFFGetField(t, TIFFTAG_PHOTOMETRIC, &l->colour))
        return err_set(e, E_FORMAT, "it does not say its size or what its samples mean");
    TIFFGetFieldDefaulted(t, TIFFTAG_SAMPLESPERPIXEL, &l->n_sample);
    TIFFGetFieldDefaulted(t, TIFFTAG_BITSPERSAMPLE, &l->bits);
    TIFFGetFieldDefaulted(t, TIFFTAG_SAMPLEFORMAT, &l->format);
    TIFFGetFieldDefaulted(t, TIFFTAG_PLANARCONFIG, &l->planes);
    TIFFGetFieldDefaulted(t, TIFFTAG_COMPRESSION, &l->packing);
    TIFFGetFieldDefaulted(t, TIFFTAG_ORIENTATION, &l->orientation);
    TIFFGetFieldDefaulted(t, TIFFTAG_EXTRASAMPLES, &n_extra, &extra);
    if (l->orientation < 1 || l->orientation > 8)
        l->orientation = 1;
    if (l->packing == COMPRESSION_OJPEG || !TIFFIsCODECConfigured(l->packing))
        return err_set(e, E_FORMAT, "its compression %u is not supported", l->packing);
    if (l->colour == PHOTOMETRIC_YCBCR && l->n_sample == 1)
        l->colour = PHOTOMETRIC_MINISBLACK;
    if (is_jpeg_colour(l) && TIFFSetField(t, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB))
        l->colour = PHOTOMETRIC_RGB;
    read_blocks(l, t);
    if (l->n_sample < colour_samples(l))
        return err_set(e, E_FORMAT, "it has %u samples a pixel, too few for its colours", l->n_sample);
    l->n_used = colour_samples(l);
    if ((l->n_used == 1 || l->n_used == 3) && l->colour != PHOTOMETRIC_PALETTE && n_extra && l->n_sample > l->n_used) {
        l->alpha = extra[0] == EXTRASAMPLE_UNASSALPHA ? ALPHA_APART
                   : extra[0] == EXTRASAMPLE_ASSOCALPHA ? ALPHA_INSIDE : ALPHA_NONE;
        l->n_used += l->alpha != ALPHA_NONE;
    }
    return OK;
}

/* The type that samples are kept in. */
static int choose_type(struct layout *l, struct err *e)
{
    const bool whole = l->format == SAMPLEFORMAT_UINT || l->format == SAMPLEFORMAT_VOID;
    const bool small = whole && (l->bits == 1 || l->bits == 2 || l->bits == 4 || l->bits == 8);
    const bool real = l->format == SAMPLEFORMAT_IEEEFP && (l->bits == 16 || l->bits == 32 || l->bits == 64);
    uint16_t bits = l->bits;

    l->type = small ? PIXEL_U8 : real ? PIXEL_F32 : PIXEL_U16;
    if (!small && !real && !(whole && bits == 16))
        return err_set(e, E_FORMAT, "samples of %u bits of format %u are not supported: 1 to 16 bits unsigned, or "
                       "floats", bits, l->format);
    if ((l->colour == PHOTOMETRIC_PALETTE && !small) || (l->colour == PHOTOMETRIC_SEPARATED && (bits < 8 || real)))
        return err_set(e, E_FORMAT, "%s of %u-bit samples is not supported",
                       l->colour == PHOTOMETRIC_PALETTE ? "a palette" : "CMYK", bits);
    return OK;
}

/* ---- samples ---- */

/* `n` samples from the i-th of a packed row, `step` apart, to every C-th of dst. Whole numbers of less than 8 bits are
 * spread over 0..255, but for indices of a palette. */
static void unpack(struct image *m, int64_t at, const unsigned char *row, int64_t i, int64_t step, int64_t n,
                   const struct layout *l)
{
    const unsigned most = (1u << (l->bits < 8 ? l->bits : 8)) - 1;
    const unsigned spread = l->colour == PHOTOMETRIC_PALETTE ? 1 : 255 / most;
    const int64_t C = m->C;
    uint8_t *u8 = (uint8_t *)m->px + (m->type == PIXEL_U8 ? at : 0);
    uint16_t *u16 = (uint16_t *)m->px + (m->type == PIXEL_U16 ? at : 0);
    float *f32 = (float *)m->px + (m->type == PIXEL_F32 ? at : 0);

    for (int64_t x = 0; x < n; x++, i += step) {
        double d;
        if (m->type == PIXEL_U16) {
            memcpy(u16 + x * C, row + 2 * i, 2);
        } else if (m->type == PIXEL_U8) {
            const unsigned shift = 8 - l->bits - (unsigned)(i * l->bits & 7);
            u8[x * C] = (uint8_t)(l->bits == 8 ? row[i] : (row[i * l->bits >> 3] >> shift & most) * spread);
        } else if (l->bits == 32) {
            memcpy(f32 + x * C, row + 4 * i, 4);
        } else if (l->bits == 16) {
            dtype_to_f32(f32 + x * C, row + 2 * i, F16, 1);
        } else {
            memcpy(&d, row + 8 * i, 8);
            f32[x * C] = (float)d;
        }
    }
}

struct block {
    unsigned char *mem;
    size_t row_bytes, bytes;
};

static int block_open(struct block *b, TIFF *t, const struct layout *l, size_t size, struct err *e)
{
    const double samples = (double)l->tile_W * (l->planes == PLANARCONFIG_CONTIG ? l->n_sample : 1);
    const tmsize_t row = l->tiled ? TIFFTileRowSize(t) : TIFFScanlineSize(t);
    const tmsize_t bytes = l->tiled ? TIFFTileSize(t) : TIFFStripSize(t);

    if (!l->tile_W || !l->tile_H || l->tile_W > IMAGE_MAX_SIDE || l->tile_H > IMAGE_MAX_SIDE || row < 1 || bytes < row
        || !image_plausible((double)bytes, size) || (double)row * 8 < samples * l->bits
        || (double)bytes < (double)row * l->tile_H)
        return err_set(e, E_FORMAT, "its %s of %ux%u pixels make no sense", l->tiled ? "tiles" : "strips", l->tile_W,
                       l->tile_H);
    b->row_bytes = (size_t)row;
    b->bytes = (size_t)bytes;
    b->mem = calloc(b->bytes, 1);
    return b->mem ? OK : err_set(e, E_NOMEM, "no memory for a strip of %zu bytes", b->bytes);
}

/* Strip or tile at (y,x) of a plane into *m. */
static int read_block(struct image *m, TIFF *t, const struct layout *l, const struct block *b, uint32_t y, uint32_t x,
                      uint16_t plane)
{
    const uint32_t rows = l->H - y < l->tile_H ? l->H - y : l->tile_H;
    const uint32_t cols = l->W - x < l->tile_W ? l->W - x : l->tile_W;
    const size_t need = (l->tiled ? l->tile_H : rows) * b->row_bytes;
    const bool chunky = l->planes == PLANARCONFIG_CONTIG;
    const tmsize_t got = l->tiled ? TIFFReadEncodedTile(t, TIFFComputeTile(t, x, y, 0, plane), b->mem, (tmsize_t)need)
                                  : TIFFReadEncodedStrip(t, TIFFComputeStrip(t, y, plane), b->mem, (tmsize_t)need);

    if (got < 0 || (size_t)got < need)
        return E_FORMAT;
    for (uint32_t r = 0; r < rows; r++)
        for (int s = chunky ? 0 : plane; s < (chunky ? l->n_used : plane + 1); s++)
            unpack(m, ((int64_t)(y + r) * m->W + x) * m->C + s, b->mem + r * b->row_bytes, chunky ? s : 0,
                   chunky ? l->n_sample : 1, cols, l);
    return OK;
}

/* ---- from samples to gray and RGB ---- */

static void turn_white(struct image *m)
{
    const int64_t n = m->H * m->W * m->C;

    for (int64_t i = 0; i < n; i += m->C)
        if (m->type == PIXEL_U8)
            ((uint8_t *)m->px)[i] ^= 0xff;
        else if (m->type == PIXEL_U16)
            ((uint16_t *)m->px)[i] ^= 0xffff;
}

/* Colour that was multiplied by its alpha; 8 bits as Pillow does, without rounding. */
static void free_of_alpha(struct image *m)
{
    const int64_t n = m->H * m->W * m->C, C = m->C;

    for (int64_t i = 0; i < n; i += C)
        for (int64_t c = i; c < i + C - 1; c++) {
            uint8_t *u8 = m->px;
            uint16_t *u16 = m->px;
            float *f32 = m->px;
            if (m->type == PIXEL_U8) {
                const unsigned a = u8[i + C - 1], v = a ? 255u * u8[c] / a : 0;
                u8[c] = (uint8_t)(v < 255 ? v : 255);
            } else if (m->type == PIXEL_U16) {
                const uint32_t a = u16[i + C - 1], v = a ? (65535u * u16[c] + a / 2) / a : 0;
                u16[c] = (uint16_t)(v < 65535 ? v : 65535);
            } else if (f32[i + C - 1] != 0) {
                f32[c] /= f32[i + C - 1];
            }
        }
}

static int look_up(struct image *m, TIFF *t, const struct layout *l, size_t size, struct err *e)
{
    const int64_t n = m->H * m->W;
    uint16_t *map[3];
    struct image o;
    int rc;

    if (!TIFFGetField(t, TIFFTAG_COLORMAP, &map[0], &map[1], &map[2]))
        return err_set(e, E_FORMAT, "its palette is missing");
    rc = image_declared(&o, m->H, m->W, 3, PIXEL_U8, size, e);
    if (rc)
        return rc;
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            ((uint8_t *)o.px)[3 * i + c] = (uint8_t)(map[c][((const uint8_t *)m->px)[i] & ((1u << l->bits) - 1)] >> 8);
    image_free(m);
    *m = o;
    return OK;
}

static int finish(struct image *m, TIFF *t, const struct layout *l, size_t size, struct err *e)
{
    struct image rgb = { 0 };
    uint16_t inks = INKSET_CMYK;
    int rc;

    if (l->colour == PHOTOMETRIC_MINISWHITE)
        turn_white(m);
    if (l->alpha == ALPHA_INSIDE)
        free_of_alpha(m);
    if (l->colour == PHOTOMETRIC_PALETTE)
        return look_up(m, t, l, size, e);
    if (l->colour != PHOTOMETRIC_SEPARATED)
        return OK;
    TIFFGetFieldDefaulted(t, TIFFTAG_INKSET, &inks);
    if (inks != INKSET_CMYK)
        return err_set(e, E_FORMAT, "its inks are not CMYK");
    rc = image_from_cmyk(&rgb, m, e);
    if (!rc) {
        image_free(m);
        *m = rgb;
    }
    return rc;
}

static int read_samples(struct image *m, TIFF *t, struct layout *l, struct source *s, struct err *e)
{
    const uint16_t n_plane = l->planes == PLANARCONFIG_CONTIG ? 1 : (uint16_t)l->n_used;
    struct block b = { 0 };
    int rc = choose_type(l, e);

    if (!rc)
        rc = image_declared(m, l->H, l->W, l->n_used, l->type, s->size, e);
    if (!rc)
        rc = block_open(&b, t, l, s->size, e);
    for (uint16_t plane = 0; plane < n_plane && !rc; plane++)
        for (uint32_t y = 0; y < l->H && !rc; y += l->tile_H)
            for (uint32_t x = 0; x < l->W && !rc; x += l->tile_W) {
                rc = read_block(m, t, l, &b, y, x, plane);
                if (rc || s->bad)
                    rc = complain(s, "it is cut short or damaged: pixels are missing", e);
            }
    free(b.mem);
    return rc ? rc : finish(m, t, l, s->size, e);
}

/* The library's own way to 8-bit RGB; its rows come as they are stored when the orientation asked for is the file's. */
static int read_odd(struct image *m, TIFF *t, const struct layout *l, struct source *s, struct err *e)
{
    const size_t n = (size_t)l->W * l->H;
    uint32_t *raster = NULL;
    char why[1024] = "";
    int rc = image_declared(m, l->H, l->W, 3, PIXEL_U8, s->size, e);

    if (rc)
        return rc;
    if (!TIFFRGBAImageOK(t, why)) {
        image_one_line(why);
        return err_set(e, E_FORMAT, "its colours are not supported: %s", why);
    }
    raster = malloc(n * sizeof *raster);
    if (!raster)
        return err_set(e, E_NOMEM, "no memory for %ux%u pixels", l->W, l->H);
    if (!TIFFReadRGBAImageOriented(t, l->W, l->H, raster, l->orientation, 1) || s->bad)
        rc = complain(s, "it is cut short or damaged: pixels are missing", e);
    for (size_t i = 0; i < n && !rc; i++) {
        ((uint8_t *)m->px)[3 * i] = (uint8_t)TIFFGetR(raster[i]);
        ((uint8_t *)m->px)[3 * i + 1] = (uint8_t)TIFFGetG(raster[i]);
        ((uint8_t *)m->px)[3 * i + 2] = (uint8_t)TIFFGetB(raster[i]);
    }
    free(raster);
    return rc;
}

static int load(struct image *out, int *orientation, const unsigned char *bytes, size_t size, struct err *e)
{
    struct source s = { .bytes = bytes, .size = size };
    struct layout l = { 0 };
    struct image m = { 0 };
    TIFF *t = open_quietly(&s, "r");
    int rc = t ? read_layout(&l, t, e) : complain(&s, "it is damaged", e);

    if (!rc && s.bad)
        rc = complain(&s, "it is damaged", e);
    if (!rc) {
        s.decoding = true;
        rc = is_odd(&l) ? read_odd(&m, t, &l, &s, e) : read_samples(&m, t, &l, &s, e);
    }
    close_quietly(t);
    if (rc) {
        image_free(&m);
        return rc;
    }
    *orientation = l.orientation;
    *out = m;
    return OK;
}

/* ---- text ---- */

static int spec(char **out, const unsigned char *bytes, size_t size, struct err *e)
{
    const size_t mark = sizeof SPEC_MARK - 1;
    struct source s = { .bytes = bytes, .size = size };
    TIFF *t = open_quietly(&s, "r");
    char *text = NULL, *copy = NULL;
    int rc = OK;

    if (!t)
        rc = complain(&s, "it is damaged", e);
    else if (!TIFFGetField(t, TIFFTAG_IMAGEDESCRIPTION, &text) || strncmp(text, SPEC_MARK, mark))
        rc = err_set(e, E_NONE, "it carries no spec");
    else if (strlen(text) - mark > SPEC_MAX_BYTES)
        rc = err_set(e, E_FORMAT, "its spec is longer than %d bytes", SPEC_MAX_BYTES);
    else if (!(copy = strdup(text + mark)))
        rc = err_set(e, E_NOMEM, "no memory for the spec");
    close_quietly(t);
    if (!rc)
        *out = copy;
    return rc;
}

/* ---- writing ---- */

static bool write_tags(TIFF *t, const struct image *m, uint32_t strip_rows)
{
    const uint16_t alpha = EXTRASAMPLE_UNASSALPHA;
    bool ok = true;

    ok &= TIFFSetField(t, TIFFTAG_IMAGEWIDTH, (uint32_t)m->W) && TIFFSetField(t, TIFFTAG_IMAGELENGTH, (uint32_t)m->H);
    ok &= TIFFSetField(t, TIFFTAG_SAMPLESPERPIXEL, (int)m->C)
        && TIFFSetField(t, TIFFTAG_BITSPERSAMPLE, (int)(8 * pixel_bytes(m->type)));
    ok &= TIFFSetField(t, TIFFTAG_SAMPLEFORMAT, m->type == PIXEL_F32 ? SAMPLEFORMAT_IEEEFP : SAMPLEFORMAT_UINT);
    ok &= TIFFSetField(t, TIFFTAG_PHOTOMETRIC, m->C < 3 ? PHOTOMETRIC_MINISBLACK : PHOTOMETRIC_RGB);
    ok &= TIFFSetField(t, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
    ok &= TIFFSetField(t, TIFFTAG_ORIENTATION, ORIENTATION_TOPLEFT);
    ok &= TIFFSetField(t, TIFFTAG_ROWSPERSTRIP, strip_rows);
    ok &= TIFFSetField(t, TIFFTAG_COMPRESSION, COMPRESSION_ADOBE_DEFLATE);
    if (m->type != PIXEL_F32)                               /* differences of floats are read by few programs */
        ok &= TIFFSetField(t, TIFFTAG_PREDICTOR, PREDICTOR_HORIZONTAL);
    if (!(m->C & 1))
        ok &= TIFFSetField(t, TIFFTAG_EXTRASAMPLES, 1, &alpha);
    return ok;
}

static bool write_text(TIFF *t, const char *text)
{
    const size_t n = sizeof SPEC_MARK + strlen(text);
    char *marked = malloc(n);
    bool ok;

    if (!marked)
        return false;
    snprintf(marked, n, "%s%s", SPEC_MARK, text);
    ok = TIFFSetField(t, TIFFTAG_IMAGEDESCRIPTION, marked);
    free(marked);
    return ok;
}

/* Strips of about 256 KiB. The library may change what it is given, so it is given a copy. */
static bool write_strips(TIFF *t, const struct image *m, uint32_t strip_rows, unsigned char *mem)
{
    const size_t row = (size_t)(m->W * m->C) * pixel_bytes(m->type);
    bool ok = true;

    for (int64_t y = 0; y < m->H && ok; y += strip_rows) {
        const size_t n = (size_t)(m->H - y < strip_rows ? m->H - y : strip_rows) * row;
        memcpy(mem, (const unsigned char *)m->px + (size_t)y * row, n);
        ok = TIFFWriteEncodedStrip(t, (uint32_t)(y / strip_rows), mem, (tmsize_t)n) == (tmsize_t)n;
    }
    return ok;
}

static int save(FILE *file, const struct image *m, const char *text, int quality, struct err *e)
{
    const size_t row = (size_t)(m->W * m->C) * pixel_bytes(m->type), want = (size_t)1 << 18;
    const uint32_t strip_rows = row >= want ? 1 : want / row > (size_t)m->H ? (uint32_t)m->H : (uint32_t)(want / row);
    const bool big = row * (size_t)m->H > (size_t)0xf0000000;
    struct source s = { .file = file };
    unsigned char *mem = malloc(strip_rows * row);
    TIFF *t = mem ? open_quietly(&s, big ? "wl8" : "wl") : NULL;
    int rc = OK;

    (void)quality;
    if (!mem)
        rc = err_set(e, E_NOMEM, "no memory for a strip of %zu bytes", strip_rows * row);
    else if (!t || !write_tags(t, m, strip_rows) || (text && !write_text(t, text))
             || !write_strips(t, m, strip_rows, mem) || !TIFFWriteDirectory(t))
        rc = complain(&s, "the disk did not take it", e);
    close_quietly(t);
    free(mem);
    if (!rc && s.bad)
        rc = complain(&s, "the disk did not take it", e);
    return rc;
}

const struct image_codec image_tiff = { "TIFF", is, writes, load, save, spec };
