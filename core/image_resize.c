/* core/image_resize.c: antialiased separable resampling, rows first, then columns. 8 bits go through weights of 22
 * fractional bits and an 8-bit picture between the passes, which is what makes the bytes Pillow's; U16 and F32 are
 * summed in doubles with a float picture between. Colour is weighted by alpha before, and freed of it after. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/image.h"

enum { WEIGHT_BITS = 32 - 8 - 2, BLOCK = 256 };

static const double reach[] = { [FILTER_BILINEAR] = 1, [FILTER_BICUBIC] = 2, [FILTER_LANCZOS] = 3 };
static const double pi = 3.14159265358979323846;

static double sinc(double x)
{
    return x == 0 ? 1 : sin(x * pi) / (x * pi);
}

/* Keys' cubic has a = -1/2; Lanczos has three lobes. */
static double weight_at(enum filter f, double x)
{
    const double a = -0.5, r = fabs(x);

    if (f == FILTER_BILINEAR)
        return r < 1 ? 1 - r : 0;
    if (f == FILTER_LANCZOS)
        return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
    if (r < 1)
        return ((a + 2) * r - (a + 3)) * r * r + 1;
    return r < 2 ? (((r - 5) * r + 8) * r - 4) * a : 0;
}

/* One axis: output i is the sum over j < count[i] of w[i most + j] input[first[i] + j]. */
struct axis {
    int64_t n, most;
    int64_t *first, *count;
    double *w;
    int32_t *fixed;             /* w in 2^-22ths */
};

static void axis_free(struct axis *a)
{
    free(a->first);
    free(a->count);
    free(a->w);
    free(a->fixed);
    memset(a, 0, sizeof *a);
}

/* The window of output i is `support` to either side of its centre in the input, cut at the edges, weights scaled to
 * sum to 1; when shrinking the filter is stretched by the ratio. Sides are at most 2^16, so the weights of an axis are
 * fewer than 7 (in + out) + out. */
static int axis_plan(struct axis *a, int64_t from, int64_t to, enum filter f, struct err *e)
{
    const double ratio = (double)from / (double)to, scale = ratio < 1 ? 1 : ratio, support = reach[f] * scale;

    a->n = to;
    a->most = (int64_t)ceil(support) * 2 + 1;
    a->first = malloc(sizeof *a->first * (size_t)to);
    a->count = malloc(sizeof *a->count * (size_t)to);
    a->w = malloc(sizeof *a->w * (size_t)(to * a->most));
    a->fixed = malloc(sizeof *a->fixed * (size_t)(to * a->most));
    if (!a->first || !a->count || !a->w || !a->fixed || arena_fault_now())
        return err_set(e, E_NOMEM, "no memory to resize %" PRId64 " to %" PRId64 " pixels", from, to);
    for (int64_t i = 0; i < to; i++) {
        const double centre = ((double)i + 0.5) * ratio, stretch = 1 / scale;
        const double low = centre - support + 0.5, high = centre + support + 0.5;
        const int64_t first = low > 0 ? (int64_t)low : 0, end = high < (double)from ? (int64_t)high : from;
        double *w = a->w + i * a->most, sum = 0;
        for (int64_t j = 0; j < end - first; j++) {
            w[j] = weight_at(f, ((double)(j + first) - centre + 0.5) * stretch);
            sum += w[j];
        }
        for (int64_t j = 0; j < end - first; j++) {
            w[j] = sum != 0 ? w[j] / sum : w[j];
            a->fixed[i * a->most + j] = (int32_t)(w[j] * (1 << WEIGHT_BITS) + (w[j] < 0 ? -0.5 : 0.5));
        }
        a->first[i] = first;
        a->count[i] = end - first;
    }
    return OK;
}

static uint8_t clip(int32_t sum)
{
    const int32_t v = sum >> WEIGHT_BITS;

    return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

/* ---- 8 bits ---- */

static inline void across_u8(uint8_t *to, const uint8_t *from, const struct axis *a, const int64_t C)
{
    for (int64_t x = 0; x < a->n; x++) {
        const int32_t *k = a->fixed + x * a->most;
        const uint8_t *p = from + a->first[x] * C;
        int32_t sum[4];
        for (int64_t c = 0; c < C; c++)
            sum[c] = 1 << (WEIGHT_BITS - 1);
        for (int64_t j = 0; j < a->count[x]; j++)
            for (int64_t c = 0; c < C; c++)
                sum[c] += k[j] * p[j * C + c];
        for (int64_t c = 0; c < C; c++)
            to[x * C + c] = clip(sum[c]);
    }
}

static void rows_u8(struct image *out, const struct image *m, const struct axis *a)
{
    for (int64_t y = 0; y < m->H; y++) {
        uint8_t *to = (uint8_t *)out->px + y * out->W * m->C;
        const uint8_t *from = (const uint8_t *)m->px + y * m->W * m->C;
        switch (m->C) {                                     /* a constant number of channels unrolls */
        case 1: across_u8(to, from, a, 1); break;
        case 2: across_u8(to, from, a, 2); break;
        case 3: across_u8(to, from, a, 3); break;
        default: across_u8(to, from, a, 4);
        }
    }
}

static void columns_u8(struct image *out, const struct image *m, const struct axis *a)
{
    const int64_t row = m->W * m->C;

    for (int64_t y = 0; y < a->n; y++)
        for (int64_t x = 0; x < row; x += BLOCK) {
            const int64_t n = row - x < BLOCK ? row - x : BLOCK;
            const uint8_t *p = (const uint8_t *)m->px + a->first[y] * row + x;
            int32_t sum[BLOCK];
            for (int64_t i = 0; i < n; i++)
                sum[i] = 1 << (WEIGHT_BITS - 1);
            for (int64_t j = 0; j < a->count[y]; j++) {
                const int32_t k = a->fixed[y * a->most + j];
                for (int64_t i = 0; i < n; i++)
                    sum[i] += k * p[j * row + i];
            }
            for (int64_t i = 0; i < n; i++)
                ((uint8_t *)out->px)[y * row + x + i] = clip(sum[i]);
        }
}

/* ---- floats; samples keep the range of the type they came from ---- */

static void rows_f32(struct image *out, const struct image *m, const struct axis *a)
{
    for (int64_t y = 0; y < m->H; y++)
        for (int64_t x = 0; x < a->n; x++)
            for (int64_t c = 0; c < m->C; c++) {
                const float *p = (const float *)m->px + (y * m->W + a->first[x]) * m->C + c;
                double sum = 0;
                for (int64_t j = 0; j < a->count[x]; j++)
                    sum += (double)p[j * m->C] * a->w[x * a->most + j];
                ((float *)out->px)[(y * out->W + x) * m->C + c] = (float)sum;
            }
}

static void columns_f32(struct image *out, const struct image *m, const struct axis *a)
{
    const int64_t row = m->W * m->C;

    for (int64_t y = 0; y < a->n; y++)
        for (int64_t x = 0; x < row; x += BLOCK) {
            const int64_t n = row - x < BLOCK ? row - x : BLOCK;
            const float *p = (const float *)m->px + a->first[y] * row + x;
            double sum[BLOCK] = { 0 };
            for (int64_t j = 0; j < a->count[y]; j++)
                for (int64_t i = 0; i < n; i++)
                    sum[i] += (double)p[j * row + i] * a->w[y * a->most + j];
            for (int64_t i = 0; i < n; i++)
                ((float *)out->px)[y * row + x + i] = (float)sum[i];
        }
}

/* ---- alpha ---- */

/* In 8 bits Pillow's: colour alpha / 255 rounded; back, 255 colour / alpha cut off, and as it is where alpha is 0. */
static void weigh_alpha(struct image *m, bool back)
{
    const int64_t n = m->H * m->W, C = m->C;

    for (int64_t i = 0; i < n * C; i += C)
        for (int64_t c = 0; c < C - 1; c++) {
            if (m->type == PIXEL_U8) {
                uint8_t *v = (uint8_t *)m->px + i;
                const unsigned a = v[C - 1], whole = a ? 255u * v[c] / a : v[c];
                v[c] = (uint8_t)(back ? (whole < 255 ? whole : 255) : (2u * v[c] * a + 255) / 510);
            } else {
                float *v = (float *)m->px + i;
                if (!back)
                    v[c] = (float)((double)v[c] * (double)v[C - 1]);
                else if (v[C - 1] != 0)
                    v[c] = (float)((double)v[c] / (double)v[C - 1]);
            }
        }
}

/* ---- the whole ---- */

/* Samples are picked at centres that are stepped to, not multiplied out: the sum's rounding is Pillow's. */
static void pick_nearest(struct image *out, const struct image *m)
{
    const double down = (double)m->H / (double)out->H, across = (double)m->W / (double)out->W;
    const size_t bytes = (size_t)m->C * pixel_bytes(m->type);
    double at_y = down * 0.5;
    char *to = out->px;

    for (int64_t y = 0; y < out->H; y++, at_y += down) {
        const int64_t from_y = at_y < (double)m->H ? (int64_t)at_y : m->H - 1;
        double at_x = across * 0.5;
        for (int64_t x = 0; x < out->W; x++, at_x += across, to += bytes) {
            const int64_t from_x = at_x < (double)m->W ? (int64_t)at_x : m->W - 1;
            memcpy(to, (const char *)m->px + (size_t)(from_y * m->W + from_x) * bytes, bytes);
        }
    }
}

/* A copy; U16 becomes floats of 0..65535. */
static int widen(struct image *out, const struct image *m, struct err *e)
{
    const int64_t n = m->H * m->W * m->C;
    const int rc = image_new(out, m->H, m->W, m->C, m->type == PIXEL_U8 ? PIXEL_U8 : PIXEL_F32, e);

    if (rc)
        return rc;
    if (m->type == PIXEL_U16)
        for (int64_t i = 0; i < n; i++)
            ((float *)out->px)[i] = ((const uint16_t *)m->px)[i];
    else
        memcpy(out->px, m->px, (size_t)n * pixel_bytes(m->type));
    return OK;
}

static int narrow(struct image *out, const struct image *m, struct err *e)
{
    const int64_t n = m->H * m->W * m->C;
    const int rc = image_new(out, m->H, m->W, m->C, PIXEL_U16, e);

    if (rc)
        return rc;
    for (int64_t i = 0; i < n; i++) {
        const float v = ((const float *)m->px)[i];
        ((uint16_t *)out->px)[i] = v > 0 ? (uint16_t)((v < 65535 ? v : 65535) + 0.5f) : 0;
    }
    return OK;
}

/* One pass over *m, in place of which the result is put; nothing where the side fits already. */
static int pass(struct image *m, int64_t side, bool rows, enum filter f, struct err *e)
{
    struct image o = { 0 };
    struct axis a = { 0 };
    int rc;

    if (side == (rows ? m->W : m->H))
        return OK;
    rc = axis_plan(&a, rows ? m->W : m->H, side, f, e);
    if (!rc)
        rc = image_new(&o, rows ? m->H : side, rows ? side : m->W, m->C, m->type, e);
    if (!rc) {
        if (m->type == PIXEL_U8)
            (rows ? rows_u8 : columns_u8)(&o, m, &a);
        else
            (rows ? rows_f32 : columns_f32)(&o, m, &a);
        image_free(m);
        *m = o;
    }
    axis_free(&a);
    return rc;
}

int image_resize(struct image *out, const struct image *m, int64_t H, int64_t W, enum filter f, struct err *e)
{
    const bool alpha = !(m->C & 1);
    struct image o = { 0 }, u16 = { 0 };
    int rc;

    if (f != FILTER_NEAREST && f != FILTER_BILINEAR && f != FILTER_BICUBIC && f != FILTER_LANCZOS)
        return err_set(e, E_ARG, "unknown filter %d", (int)f);
    if (H < 1 || W < 1 || H > IMAGE_MAX_SIDE || W > IMAGE_MAX_SIDE)
        return err_set(e, E_ARG, "resizing to %" PRId64 "x%" PRId64 " pixels: sides are 1..%d", W, H, IMAGE_MAX_SIDE);
    if (H == m->H && W == m->W)
        return image_turn(out, m, 1, e);
    if (f == FILTER_NEAREST) {
        rc = image_new(&o, H, W, m->C, m->type, e);
        if (!rc)
            pick_nearest(&o, m);
    } else {
        rc = widen(&o, m, e);
        if (!rc && alpha)
            weigh_alpha(&o, false);
        if (!rc)
            rc = pass(&o, W, true, f, e);
        if (!rc)
            rc = pass(&o, H, false, f, e);
        if (!rc && alpha)
            weigh_alpha(&o, true);
    }
    if (!rc && o.type != m->type) {
        rc = narrow(&u16, &o, e);
        image_free(&o);
        o = u16;
    }
    if (rc)
        image_free(&o);
    else
        *out = o;
    return rc;
}
