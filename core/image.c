/* core/image.c: pixels on the host. Two ways run through it: 8 bits in whole numbers, as Pillow computes, and all else
 * in doubles with one rounding at the end. A sample as a double lies in [0,1] (F32: wherever the file had it). */
#include "core/image.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"

size_t pixel_bytes(enum pixel type)
{
    return type == PIXEL_U8 ? 1 : type == PIXEL_U16 ? 2 : 4;
}

int image_new(struct image *out, int64_t H, int64_t W, int64_t C, enum pixel type, struct err *e)
{
    struct image m = { .H = H, .W = W, .C = C, .type = type };

    if (H < 1 || W < 1 || H > IMAGE_MAX_SIDE || W > IMAGE_MAX_SIDE || C < 1 || C > 4)
        return err_set(e, E_ARG, "an image of %" PRId64 "x%" PRId64 " pixels and %" PRId64 " channels: sides "
                       "are 1..%d, channels 1..4", W, H, C, IMAGE_MAX_SIDE);
    if (type != PIXEL_U8 && type != PIXEL_U16 && type != PIXEL_F32)
        return err_set(e, E_ARG, "an image of unknown pixel type %d", (int)type);
    if (H * W * C * (int64_t)pixel_bytes(type) > IMAGE_MAX_BYTES)
        return err_set(e, E_ARG, "an image of %" PRId64 "x%" PRId64 " pixels is larger than %" PRId64 " bytes", W, H,
                       IMAGE_MAX_BYTES);
    m.px = arena_fault_now() ? NULL : malloc((size_t)(H * W * C) * pixel_bytes(type));
    if (!m.px)
        return err_set(e, E_NOMEM, "no memory for an image of %" PRId64 "x%" PRId64 " pixels", W, H);
    *out = m;
    return OK;
}

void image_free(struct image *m)
{
    free(m->px);
    memset(m, 0, sizeof *m);
}

/* ---- converting ---- */

static double sample_get(const void *px, enum pixel type, int64_t i)
{
    if (type == PIXEL_U8)
        return ((const uint8_t *)px)[i] / 255.0;
    if (type == PIXEL_U16)
        return ((const uint16_t *)px)[i] / 65535.0;
    return (double)((const float *)px)[i];
}

/* Rounded to nearest after a clamp; NaN becomes 0. From U16 to U8 there are no halves, for 257 is odd. */
static void sample_put(void *px, enum pixel type, int64_t i, double v)
{
    const double white = type == PIXEL_U8 ? 255 : 65535;
    const double scaled = v > 0 ? (v < 1 ? v : 1) * white + 0.5 : 0.5;

    if (type == PIXEL_U8)
        ((uint8_t *)px)[i] = (uint8_t)scaled;
    else if (type == PIXEL_U16)
        ((uint16_t *)px)[i] = (uint16_t)scaled;
    else
        ((float *)px)[i] = (float)v;
}

enum { GRAY_R = 19595, GRAY_G = 38470, GRAY_B = 7471 };     /* ITU-R 601 in 65536ths; they sum to 65536 */

/* One pixel of n_from channels to n_to, 8 bits: alpha over white, rounded; then gray. */
static void convert_u8(uint8_t *to, int64_t n_to, const uint8_t *from, int64_t n_from)
{
    const int64_t n_colour = n_from - !(n_from & 1);        /* 1 or 3 */
    unsigned v[3];

    for (int64_t c = 0; c < 3; c++) {
        v[c] = from[c < n_colour ? c : 0];
        if (n_from != n_colour)
            v[c] = (2 * (v[c] * from[n_colour] + 255 * (255u - from[n_colour])) + 255) / 510;
    }
    if (n_to == 1)
        to[0] = n_colour == 1 ? (uint8_t)v[0]
                              : (uint8_t)((GRAY_R * v[0] + GRAY_G * v[1] + GRAY_B * v[2] + 32768) >> 16);
    else
        for (int c = 0; c < 3; c++)
            to[c] = (uint8_t)v[c];
}

static void convert_real(double *v, int64_t n_to, int64_t n_from)
{
    const int64_t n_colour = n_from - !(n_from & 1);

    if (n_from != n_colour)
        for (int64_t c = 0; c < n_colour; c++)
            v[c] = v[c] * v[n_colour] + (1 - v[n_colour]);
    if (n_colour == 1)
        v[1] = v[2] = v[0];
    else if (n_to == 1)
        v[0] = (GRAY_R * v[0] + GRAY_G * v[1] + GRAY_B * v[2]) / 65536;
}

int image_convert(struct image *out, const struct image *m, int64_t C, enum pixel type, struct err *e)
{
    const int64_t n = m->H * m->W;
    struct image o;
    int rc;

    if (C != 1 && C != 3)
        return err_set(e, E_ARG, "converting an image to %" PRId64 " channels: 1 or 3", C);
    rc = image_new(&o, m->H, m->W, C, type, e);
    if (rc)
        return rc;
    if (m->C == C && m->type == type) {
        memcpy(o.px, m->px, (size_t)(n * C) * pixel_bytes(type));
    } else if (m->type == PIXEL_U8 && type == PIXEL_U8) {
        for (int64_t i = 0; i < n; i++)
            convert_u8((uint8_t *)o.px + i * C, C, (const uint8_t *)m->px + i * m->C, m->C);
    } else {
        for (int64_t i = 0; i < n; i++) {
            double v[4];
            for (int64_t c = 0; c < m->C; c++)
                v[c] = sample_get(m->px, m->type, i * m->C + c);
            if (m->C != C)
                convert_real(v, C, m->C);
            for (int64_t c = 0; c < C; c++)
                sample_put(o.px, type, i * C + c, v[c]);
        }
    }
    *out = o;
    return OK;
}

/* ---- moving ---- */

/* out(y,x) = m at pixel start + y dy + x dx: all that turns, flips and crops do. */
static void gather(struct image *out, const struct image *m, int64_t start, int64_t dy, int64_t dx)
{
    const size_t bytes = (size_t)m->C * pixel_bytes(m->type);
    const char *from = m->px;
    char *to = out->px;

    for (int64_t y = 0; y < out->H; y++) {
        const int64_t at = start + y * dy;
        if (dx == 1)
            memcpy(to, from + (size_t)at * bytes, (size_t)out->W * bytes);
        else
            for (int64_t x = 0; x < out->W; x++)
                memcpy(to + (size_t)x * bytes, from + (size_t)(at + x * dx) * bytes, bytes);
        to += (size_t)out->W * bytes;
    }
}

int image_turn(struct image *out, const struct image *m, int orientation, struct err *e)
{
    const int64_t W = m->W, last = (m->H - 1) * W, right = W - 1;
    const struct { int64_t start, dy, dx; } way[9] = {
        [1] = { 0, W, 1 },                  [2] = { right, W, -1 },
        [3] = { last + right, -W, -1 },     [4] = { last, -W, 1 },
        [5] = { 0, 1, W },                  [6] = { last, 1, -W },
        [7] = { last + right, -1, -W },     [8] = { right, -1, W },
    };
    struct image o;
    int rc;

    if (orientation < 1 || orientation > 8)
        return err_set(e, E_ARG, "orientation %d: 1..8", orientation);
    rc = image_new(&o, orientation < 5 ? m->H : m->W, orientation < 5 ? m->W : m->H, m->C, m->type, e);
    if (rc)
        return rc;
    gather(&o, m, way[orientation].start, way[orientation].dy, way[orientation].dx);
    *out = o;
    return OK;
}

int image_flip(struct image *out, const struct image *m, struct err *e)
{
    return image_turn(out, m, 2, e);
}

int image_crop(struct image *out, const struct image *m, int64_t y, int64_t x, int64_t H, int64_t W, struct err *e)
{
    struct image o;
    int rc;

    if (H < 1 || W < 1 || y < 0 || x < 0 || H > m->H || W > m->W || y > m->H - H || x > m->W - W)
        return err_set(e, E_ARG, "a crop of %" PRId64 "x%" PRId64 " at (%" PRId64 ",%" PRId64 ") does not lie in "
                       "an image of %" PRId64 "x%" PRId64 " pixels", W, H, x, y, m->W, m->H);
    rc = image_new(&o, H, W, m->C, m->type, e);
    if (rc)
        return rc;
    gather(&o, m, y * m->W + x, m->W, 1);
    *out = o;
    return OK;
}

int image_cover(struct image *out, const struct image *m, int64_t H, int64_t W, enum filter f, struct err *e)
{
    const double down = (double)H / (double)m->H, across = (double)W / (double)m->W;
    const double ratio = down > across ? down : across;
    struct image mid = { 0 };
    int64_t h, w;
    int rc;

    if (H < 1 || W < 1 || H > IMAGE_MAX_SIDE || W > IMAGE_MAX_SIDE)
        return err_set(e, E_ARG, "covering %" PRId64 "x%" PRId64 " pixels: sides are 1..%d", W, H, IMAGE_MAX_SIDE);
    h = (int64_t)((double)m->H * ratio + 0.5);
    w = (int64_t)((double)m->W * ratio + 0.5);
    rc = image_resize(&mid, m, h, w, f, e);
    if (!rc)                                                /* nearbyint: halves to even, as Python's round() */
        rc = image_crop(out, &mid, (int64_t)nearbyint((double)(h - H) / 2), (int64_t)nearbyint((double)(w - W) / 2), H,
                        W, e);
    image_free(&mid);
    return rc;
}

/* ---- to and from what models see ---- */

/* In float, operation by operation, as the reference's arrays: x / 255, then 2 x - 1. */
int image_to_signed(float *dst, const struct image *m, struct err *e)
{
    const int64_t n = m->H * m->W * 3;

    if (m->C != 3)
        return err_set(e, E_ARG, "a model takes RGB, not %" PRId64 " channels", m->C);
    for (int64_t i = 0; i < n; i++) {
        const float v = m->type == PIXEL_U8    ? (float)((const uint8_t *)m->px)[i] / 255.0f
                        : m->type == PIXEL_U16 ? (float)((const uint16_t *)m->px)[i] / 65535.0f
                                               : ((const float *)m->px)[i];
        dst[i] = 2.0f * v - 1.0f;
    }
    return OK;
}

int image_from_signed(struct image *out, const float *src, int64_t H, int64_t W, int64_t C, enum pixel type,
                      struct err *e)
{
    struct image o;
    int64_t n;
    int rc;

    rc = image_new(&o, H, W, C, type, e);
    if (rc)
        return rc;
    n = H * W * C;
    for (int64_t i = 0; i < n; i++) {
        float v = src[i] / 2.0f + 0.5f;
        v = v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f;        /* NaN too is 0 */
        if (type == PIXEL_U8)
            ((uint8_t *)o.px)[i] = (uint8_t)rintf(v * 255.0f);
        else if (type == PIXEL_U16)
            ((uint16_t *)o.px)[i] = (uint16_t)rintf(v * 65535.0f);
        else
            ((float *)o.px)[i] = v;
    }
    *out = o;
    return OK;
}
