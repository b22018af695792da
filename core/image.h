/* core/image.h: pixels on the host, (H,W,C) rows from the top, and what is done to them before and after a model sees
 * them. Resizing gives the bytes that Pillow gives, because the reference results were made with it.
 *
 *     struct image a = { 0 }, b = { 0 };
 *     if (image_new(&a, H, W, 3, PIXEL_U8, e)) ...
 *     if (image_resize(&b, &a, 512, 512, FILTER_LANCZOS, e)) ...
 *     image_free(&a);                                         takes a zeroed one too                         */
#ifndef UNICON_CORE_IMAGE_H
#define UNICON_CORE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/err.h"

enum pixel { PIXEL_U8, PIXEL_U16, PIXEL_F32 };          /* 255, 65535 and 1.0 are white */

enum { IMAGE_MAX_SIDE = 65536 };
#define IMAGE_MAX_BYTES ((int64_t)1 << 32)              /* of all pixels of one image */

struct image {
    int64_t H, W, C;            /* C: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha */
    enum pixel type;
    void *px;                   /* H*W*C samples, native byte order; malloc'ed */
};

int image_new(struct image *out, int64_t H, int64_t W, int64_t C, enum pixel type, struct err *e);
void image_free(struct image *m);
size_t pixel_bytes(enum pixel type);

/* A copy with C channels (1 or 3) of another type. Alpha is blended over white; colour to gray is Pillow's
 * (19595 R + 38470 G + 7471 B + 32768) >> 16 for U8 and the same weights, unrounded, for the others; U16 to U8 is the
 * rounded x / 257. F32 to integers clamps to [0,1]. */
int image_convert(struct image *out, const struct image *m, int64_t C, enum pixel type, struct err *e);

/* The eight orientations of EXIF tag 274, 1..8: the result is as the photographer saw it. */
int image_turn(struct image *out, const struct image *m, int orientation, struct err *e);
int image_flip(struct image *out, const struct image *m, struct err *e);        /* left to right */
int image_crop(struct image *out, const struct image *m, int64_t y, int64_t x, int64_t H, int64_t W, struct err *e);

enum filter { FILTER_NEAREST, FILTER_BILINEAR, FILTER_BICUBIC, FILTER_LANCZOS };

/* Pillow's Image.resize, antialiased: for U8 with its fixed-point arithmetic (same bytes), for U16 and F32 in doubles.
 * A copy where the size fits already. */
int image_resize(struct image *out, const struct image *m, int64_t H, int64_t W, enum filter f, struct err *e);

/* Cover (H,W): resized so that both sides reach, then the middle is kept.
 *     ratio = max(H/h, W/w), resized to int(h ratio + .5) x int(w ratio + .5), offset int(round((size - crop)/2)) */
int image_cover(struct image *out, const struct image *m, int64_t H, int64_t W, enum filter f, struct err *e);

/* RGB to f32 (H,W,3) in [-1,1]: 2 v - 1; and back: v/2 + 1/2, clamped, rounded half to even at 8 or 16 bits. */
int image_to_signed(float *dst, const struct image *m, struct err *e);
int image_from_signed(struct image *out, const float *src, int64_t H, int64_t W, int64_t C, enum pixel type,
                      struct err *e);

#endif
