/* store/image_jpeg.c: JPEG through libjpeg. Where the library would fill what is missing with gray and warn, the
 * picture is refused. The spec travels in as many comments as it takes, in order, each behind SPEC_MARK. */
#include <limits.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

/* The codes of messages, by the second of the two ways in which the header may be read: its macros, which the first way
 * brings along, call what is banned here. */
#define JERROR_H
#define JMESSAGE(code, string) code,
enum message {
#include <jerror.h>
    N_MESSAGE
};

#include "store/exif.h"
#include "store/image_codec.h"

/* A scan costs the time of the whole picture and may cost four bytes of file; real ones have ten or so. */
enum { MAX_SCANS = 100, MAX_SIDE = 65500, SEGMENT_BYTES = 65533, MARK_BYTES = sizeof SPEC_MARK - 1 };

/* All that one pass owns. */
struct work {
    jmp_buf jump;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    struct jpeg_decompress_struct in;
    struct jpeg_compress_struct to;
    const unsigned char *bytes;
    size_t size;
    FILE *file;
    struct image m;
    char *text;
    int quality, orientation, rc;
    struct err *e;
};

static void stop(struct work *w, int rc)
{
    w->rc = rc;
    longjmp(w->jump, 1);
}

static void failed(j_common_ptr j)
{
    struct work *w = j->client_data;
    char line[JMSG_LENGTH_MAX];
    int code = E_FORMAT;

    j->err->format_message(j, line);
    image_one_line(line);
    if (j->err->msg_code == JERR_FILE_WRITE)
        code = E_IO;
    if (j->err->msg_code == JERR_OUT_OF_MEMORY)
        code = E_NOMEM;
    stop(w, err_set(w->e, code, "%s", line));
}

/* level -1: something is wrong with the data; 0 and above tell what is going on. */
static void noted(j_common_ptr j, int level)
{
    struct work *w = j->client_data;

    if (level >= 0)
        return;
    switch (j->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
        stop(w, err_set(w->e, E_FORMAT, "it is cut short or damaged: pixels are missing"));
        break;
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC:
        failed(j);
        break;
    default:                            /* stray bytes between segments and the like: all pixels are there */
        j->err->num_warnings++;
    }
}

static void printed(j_common_ptr j)
{
    (void)j;
}

static void progressed(j_common_ptr j)
{
    struct work *w = j->client_data;

    if (j->is_decompressor && ((j_decompress_ptr)j)->input_scan_number > MAX_SCANS)
        stop(w, err_set(w->e, E_FORMAT, "it has more than %d scans", MAX_SCANS));
}

/* The only place that is jumped to. */
static int guarded(struct work *w, void (*body)(struct work *w))
{
    if (!setjmp(w->jump))
        body(w);
    return w->rc;
}

static struct jpeg_error_mgr *error_mgr(struct work *w)
{
    jpeg_std_error(&w->errors);
    w->errors.error_exit = failed;
    w->errors.emit_message = noted;
    w->errors.output_message = printed;
    return &w->errors;
}

static bool is(const unsigned char *bytes, size_t size)
{
    return size >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff;
}

static bool writes(int64_t C, enum pixel type)
{
    return type == PIXEL_U8 && (C == 1 || C == 3);
}

static void begin_reading(struct work *w, int marker)
{
    w->in.err = error_mgr(w);
    w->in.client_data = w;
    jpeg_create_decompress(&w->in);
    jpeg_mem_src(&w->in, w->bytes, (unsigned long)w->size);
    jpeg_save_markers(&w->in, marker, 0xffff);
    jpeg_read_header(&w->in, TRUE);
}

/* ---- pixels ---- */

static int orientation_of(const struct jpeg_marker_struct *s)
{
    for (; s; s = s->next)
        if (s->marker == JPEG_APP0 + 1 && s->data_length > 6 && !memcmp(s->data, "Exif\0", 6))
            return exif_orientation(s->data + 6, s->data_length - 6);
    return 1;
}

/* A block of 8x8 samples takes two bits at least, one for its mean and one for its end; a progressive file's first
 * scan takes one. Arithmetic coding may take less. */
static void check_length(struct work *w)
{
    const double bits = w->in.progressive_mode ? 1 : 2;
    double blocks = 0;

    for (int i = 0; i < w->in.num_components; i++)
        blocks += (double)w->in.comp_info[i].width_in_blocks * (double)w->in.comp_info[i].height_in_blocks;
    if (!w->in.arith_code && blocks * bits > 8.0 * (double)w->size)
        stop(w, err_set(w->e, E_FORMAT, "it is cut short: %zu bytes cannot hold %ux%u pixels", w->size,
                        w->in.image_width, w->in.image_height));
}

/* Gray stays, all else becomes RGB or, with black, CMYK. */
static J_COLOR_SPACE colours(struct work *w)
{
    switch (w->in.jpeg_color_space) {
    case JCS_GRAYSCALE:
        return JCS_GRAYSCALE;
    case JCS_YCbCr:
    case JCS_RGB:
        return JCS_RGB;
    case JCS_CMYK:
    case JCS_YCCK:
        return JCS_CMYK;
    default:
        stop(w, err_set(w->e, E_FORMAT, "it has %d components of no known colour", w->in.num_components));
    }
    return JCS_UNKNOWN;
}

static void read_pixels(struct work *w)
{
    int64_t row;
    int rc;

    begin_reading(w, JPEG_APP0 + 1);
    w->orientation = orientation_of(w->in.marker_list);
    if (w->in.data_precision != 8)
        stop(w, err_set(w->e, E_FORMAT, "it has %d bits a sample: only 8 are supported", w->in.data_precision));
    check_length(w);
    w->in.out_color_space = colours(w);
    rc = image_declared(&w->m, w->in.image_height, w->in.image_width,
                        w->in.out_color_space == JCS_CMYK ? 4 : w->in.out_color_space == JCS_RGB ? 3 : 1, PIXEL_U8,
                        w->size, w->e);
    if (rc)
        stop(w, rc);
    w->progress.progress_monitor = progressed;
    w->in.progress = &w->progress;
    w->in.mem->max_memory_to_use = (long)(2 * IMAGE_MAX_BYTES < LONG_MAX ? 2 * IMAGE_MAX_BYTES : LONG_MAX);
    jpeg_start_decompress(&w->in);
    row = w->m.W * w->m.C;
    if (w->in.output_components != w->m.C || w->in.output_width != w->m.W || w->in.output_height != w->m.H)
        stop(w, err_set(w->e, E_BUG, "libjpeg gives other rows than it said"));
    while (w->in.output_scanline < w->in.output_height) {
        JSAMPROW to = (JSAMPROW)w->m.px + w->in.output_scanline * row;
        jpeg_read_scanlines(&w->in, &to, 1);
    }
    jpeg_finish_decompress(&w->in);                         /* to the end mark: what has none is cut short */
}

/* Adobe's programs write ink upside down, and so do all that follow them. */
static int from_ink(struct image *m, struct err *e)
{
    const int64_t n = m->H * m->W * 4;
    struct image rgb = { 0 };
    int rc;

    for (int64_t i = 0; i < n; i++)
        ((uint8_t *)m->px)[i] ^= 0xff;
    rc = image_from_cmyk(&rgb, m, e);
    if (!rc) {
        image_free(m);
        *m = rgb;
    }
    return rc;
}

static int load(struct image *out, int *orientation, const unsigned char *bytes, size_t size, struct err *e)
{
    struct work w = { .bytes = bytes, .size = size, .e = e };
    int rc = guarded(&w, read_pixels);

    jpeg_destroy_decompress(&w.in);
    if (!rc && w.m.C == 4)
        rc = from_ink(&w.m, e);
    if (rc) {
        image_free(&w.m);
        return rc;
    }
    *orientation = w.orientation;
    *out = w.m;
    return OK;
}

/* ---- text ---- */

static void read_text(struct work *w)
{
    const struct jpeg_marker_struct *s;
    size_t n = 0;
    bool found = false;

    begin_reading(w, JPEG_COM);
    for (s = w->in.marker_list; s; s = s->next)
        if (s->data_length >= MARK_BYTES && !memcmp(s->data, SPEC_MARK, MARK_BYTES)) {
            n += s->data_length - MARK_BYTES;
            found = true;
        }
    if (!found)
        stop(w, err_set(w->e, E_NONE, "it carries no spec"));
    if (n > SPEC_MAX_BYTES)
        stop(w, err_set(w->e, E_FORMAT, "its spec is longer than %d bytes", SPEC_MAX_BYTES));
    w->text = malloc(n + 1);
    if (!w->text)
        stop(w, err_set(w->e, E_NOMEM, "no memory for the spec"));
    n = 0;
    for (s = w->in.marker_list; s; s = s->next)
        if (s->data_length >= MARK_BYTES && !memcmp(s->data, SPEC_MARK, MARK_BYTES)) {
            memcpy(w->text + n, s->data + MARK_BYTES, s->data_length - MARK_BYTES);
            n += s->data_length - MARK_BYTES;
        }
    w->text[n] = '\0';
}

static int spec(char **out, const unsigned char *bytes, size_t size, struct err *e)
{
    struct work w = { .bytes = bytes, .size = size, .e = e };
    const int rc = guarded(&w, read_text);

    jpeg_destroy_decompress(&w.in);
    if (rc)
        free(w.text);
    else
        *out = w.text;
    return rc;
}

/* ---- writing ---- */

static void write_text(struct work *w)
{
    const char *at = w->text;
    size_t left = strlen(at);

    do {
        const size_t n = left < SEGMENT_BYTES - MARK_BYTES ? left : SEGMENT_BYTES - MARK_BYTES;
        jpeg_write_m_header(&w->to, JPEG_COM, (unsigned)(MARK_BYTES + n));
        for (size_t i = 0; i < MARK_BYTES; i++)
            jpeg_write_m_byte(&w->to, SPEC_MARK[i]);
        for (size_t i = 0; i < n; i++)
            jpeg_write_m_byte(&w->to, (unsigned char)at[i]);
        at += n;
        left -= n;
    } while (left);
}

static void write_file(struct work *w)
{
    const int64_t row = w->m.W * w->m.C;

    w->to.err = error_mgr(w);
    w->to.client_data = w;
    jpeg_create_compress(&w->to);
    jpeg_stdio_dest(&w->to, w->file);
    w->to.image_width = (JDIMENSION)w->m.W;
    w->to.image_height = (JDIMENSION)w->m.H;
    w->to.input_components = (int)w->m.C;
    w->to.in_color_space = w->m.C == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&w->to);
    jpeg_set_quality(&w->to, w->quality, TRUE);
    for (int i = 0; i < w->to.num_components; i++)
        w->to.comp_info[i].h_samp_factor = w->to.comp_info[i].v_samp_factor = 1;
    jpeg_start_compress(&w->to, TRUE);
    if (w->text)
        write_text(w);
    while (w->to.next_scanline < w->to.image_height) {
        JSAMPROW from = (JSAMPROW)w->m.px + w->to.next_scanline * row;
        jpeg_write_scanlines(&w->to, &from, 1);
    }
    jpeg_finish_compress(&w->to);
}

static int save(FILE *file, const struct image *m, const char *text, int quality, struct err *e)
{
    struct work w = { .file = file, .m = *m, .text = (char *)text, .quality = quality, .e = e };
    int rc;

    if (m->H > MAX_SIDE || m->W > MAX_SIDE)
        return err_set(e, E_ARG, "JPEG's sides are at most %d: say .png", MAX_SIDE);
    rc = guarded(&w, write_file);
    jpeg_destroy_compress(&w.to);
    return rc;
}

const struct image_codec image_jpeg = { "JPEG", is, writes, load, save, spec };
