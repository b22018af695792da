#include "store/image_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "store/aside.h"
#include "store/image_codec.h"
#include "store/map.h"

static const struct image_codec *const codecs[] = { &image_png, &image_jpeg, &image_tiff };
static const struct { const char *ending; const struct image_codec *codec; } endings[] = {
    { ".png", &image_png }, { ".jpg", &image_jpeg }, { ".jpeg", &image_jpeg }, { ".tif", &image_tiff },
    { ".tiff", &image_tiff },
};

#define LEN(a) (sizeof(a) / sizeof *(a))

/* ---- what codecs share ---- */

/* The densest that a format gets is a white fax page; 2^15 pixels a byte leaves room for all others. Files below a few
 * KiB may still declare 256 MiB. */
bool image_plausible(double bytes, size_t size)
{
    return bytes <= (double)((int64_t)1 << 28) || bytes <= 32768.0 * (double)size;
}

int image_declared(struct image *out, int64_t H, int64_t W, int64_t C, enum pixel type, size_t size, struct err *e)
{
    const double bytes = (double)H * (double)W * (double)C * (double)pixel_bytes(type);

    if (H < 1 || W < 1 || H > IMAGE_MAX_SIDE || W > IMAGE_MAX_SIDE)
        return err_set(e, E_FORMAT, "it declares %" PRId64 "x%" PRId64 " pixels: sides are 1..%d", W, H,
                       IMAGE_MAX_SIDE);
    if (bytes > (double)IMAGE_MAX_BYTES)
        return err_set(e, E_FORMAT, "it declares %" PRId64 "x%" PRId64 " pixels, more than %" PRId64 " bytes", W,
                       H, IMAGE_MAX_BYTES);
    if (!image_plausible(bytes, size))
        return err_set(e, E_FORMAT, "it declares %" PRId64 "x%" PRId64 " pixels in %zu bytes: cut short or forged", W,
                       H, size);
    return image_new(out, H, W, C, type, e);
}

/* R = w - K - C (w - K) / w, rounded, with w white. */
int image_from_cmyk(struct image *out, const struct image *m, struct err *e)
{
    const uint64_t w = m->type == PIXEL_U8 ? 255 : 65535;
    const int64_t n = m->H * m->W;
    struct image o;
    int rc;

    if (m->C != 4 || m->type == PIXEL_F32)
        return err_set(e, E_FORMAT, "CMYK of this type is not supported");
    rc = image_new(&o, m->H, m->W, 3, m->type, e);
    if (rc)
        return rc;
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++) {
            const uint8_t *p8 = m->px;
            const uint16_t *p16 = m->px;
            const uint64_t ink = m->type == PIXEL_U8 ? p8[4 * i + c] : p16[4 * i + c];
            const uint64_t light = w - (m->type == PIXEL_U8 ? p8[4 * i + 3] : p16[4 * i + 3]);
            const uint64_t v = light - (2 * ink * light + w) / (2 * w);
            if (m->type == PIXEL_U8)
                ((uint8_t *)o.px)[3 * i + c] = (uint8_t)v;
            else
                ((uint16_t *)o.px)[3 * i + c] = (uint16_t)v;
        }
    *out = o;
    return OK;
}

void image_one_line(char *text)
{
    size_t n = strlen(text);

    while (n && (text[n - 1] == '.' || (unsigned char)text[n - 1] <= ' '))
        text[--n] = '\0';
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 127)
            text[i] = ' ';
}

/* ---- reading ---- */

static int codec_of_bytes(const struct image_codec **out, const unsigned char *bytes, size_t size, struct err *e)
{
    for (size_t i = 0; i < LEN(codecs); i++)
        if (codecs[i]->is(bytes, size)) {
            *out = codecs[i];
            return OK;
        }
    return err_set(e, E_FORMAT, size ? "it is no PNG, JPEG or TIFF file" : "it is empty");
}

int image_load_bytes(struct image *out, const unsigned char *bytes, size_t size, bool turn, struct err *e)
{
    const struct image_codec *codec = NULL;
    struct image m = { 0 }, turned = { 0 };
    int orientation = 1, rc = codec_of_bytes(&codec, bytes, size, e);

    if (!rc)
        rc = codec->load(&m, &orientation, bytes, size, e);
    if (!rc && turn && orientation != 1) {
        rc = image_turn(&turned, &m, orientation, e);
        image_free(&m);
        m = turned;
    }
    if (!rc)
        *out = m;
    return rc;
}

int image_load(struct image *out, const char *path, bool turn, struct err *e)
{
    struct map m = { 0 };
    int rc = map_open(&m, path, e);

    if (rc)
        return rc;
    rc = image_load_bytes(out, m.base, m.size, turn, e);
    map_close(&m);
    if (rc)
        err_in(e, "cannot read image '%s'", path);
    return rc;
}

int image_spec_bytes(char **out, const unsigned char *bytes, size_t size, struct err *e)
{
    const struct image_codec *codec = NULL;
    const int rc = codec_of_bytes(&codec, bytes, size, e);

    return rc ? rc : codec->spec(out, bytes, size, e);
}

int image_spec(char **out, const char *path, struct err *e)
{
    struct map m = { 0 };
    int rc = map_open(&m, path, e);

    if (rc)
        return rc;
    rc = image_spec_bytes(out, m.base, m.size, e);
    map_close(&m);
    if (rc)
        err_in(e, "cannot read the spec of image '%s'", path);
    return rc;
}

/* ---- writing ---- */

static int codec_of_path(const struct image_codec **out, const char *path, struct err *e)
{
    const size_t n = strlen(path);

    for (size_t i = 0; i < LEN(endings); i++) {
        const size_t tail = strlen(endings[i].ending);
        if (n > tail && path[n - tail - 1] != '/' && !strcasecmp(path + n - tail, endings[i].ending)) {
            *out = endings[i].codec;
            return OK;
        }
    }
    return err_set(e, E_ARG, "its name must end in .png, .jpg or .tif");
}

static int can_save(const struct image_codec **out, const char *path, int64_t C, enum pixel type, struct err *e)
{
    static const char *const names[] = { [PIXEL_U8] = "8-bit", [PIXEL_U16] = "16-bit", [PIXEL_F32] = "float" };
    const int rc = codec_of_path(out, path, e);

    if (rc)
        return rc;
    if (type != PIXEL_U8 && type != PIXEL_U16 && type != PIXEL_F32)
        return err_set(e, E_ARG, "unknown pixel type %d", (int)type);
    if (!(*out)->writes(C, type))
        return err_set(e, E_ARG, "%s holds no %s pixels of %" PRId64 " channels: say .%s", (*out)->name, names[type], C,
                       type == PIXEL_F32 ? "tif" : "png");
    return OK;
}

int image_can_save(const char *path, enum pixel type, struct err *e)
{
    const struct image_codec *codec = NULL;
    const int rc = can_save(&codec, path, 3, type, e);

    if (rc)
        err_in(e, "cannot write image '%s'", path);
    return rc;
}

static int save_in(const char *path, const struct image_codec *codec, const struct image *m, const char *spec,
                   int quality, struct err *e)
{
    struct aside a = { 0 };
    int rc = aside_open(&a, path, e);

    if (rc)
        return rc;
    rc = codec->save(a.file, m, spec, quality ? quality : 95, e);
    if (!rc)
        return aside_commit(&a, e);
    aside_abandon(&a);
    err_in(e, "cannot write image '%s'", path);
    return rc;
}

int image_save(const char *path, const struct image *m, const char *spec, int quality, struct err *e)
{
    const struct image_codec *codec = NULL;
    int rc = can_save(&codec, path, m->C, m->type, e);

    if (!rc && (quality < 0 || quality > 100))
        rc = err_set(e, E_ARG, "quality %d: 1..100", quality);
    if (!rc && spec && strlen(spec) > SPEC_MAX_BYTES)
        rc = err_set(e, E_ARG, "its spec is longer than %d bytes", SPEC_MAX_BYTES);
    if (!rc)
        return save_in(path, codec, m, spec, quality, e);
    err_in(e, "cannot write image '%s'", path);
    return rc;
}
