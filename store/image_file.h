/* store/image_file.h: PNG, JPEG and TIFF to pixels and back. First bytes decide what a file is, the name's ending what
 * is written. Every picture that is written carries the spec it was made from.
 *
 *     struct image m = { 0 };
 *     if (image_load(&m, "fox.jpg", true, e)) ...                      turned as its EXIF says
 *     if (image_save("out.png", &m, spec_json, 0, e)) ...              appears whole or not at all
 *     if (image_spec(&text, "out.png", e)) ...                         malloc'ed; E_NONE if it carries none   */
#ifndef UNICON_STORE_IMAGE_FILE_H
#define UNICON_STORE_IMAGE_FILE_H

#include "core/image.h"

/* Gray, palette, alpha, RGB, CMYK (Adobe's inverted too), YCbCr, 1 to 16 bits, float TIFF (as it is, not scaled; NaN
 * stays), little- and big-endian, tiled and striped: to 1-4 channels of U8 or U16 or F32. CMYK becomes RGB, palettes
 * become RGB(A), 1-4 bit gray becomes 8. Limits of core/image.h are checked before anything is decoded. Broken data is
 * E_FORMAT, also where a library would only warn about missing rows. */
int image_load(struct image *out, const char *path, bool turn, struct err *e);
int image_load_bytes(struct image *out, const unsigned char *bytes, size_t size, bool turn, struct err *e);

/* .png: U8 or U16. .jpg, .jpeg: U8 of 1 or 3 channels, `quality` 1..100 (0: 95), no chroma subsampling. .tif, .tiff:
 * all three types, deflate. spec (JSON text, up to 64 MiB) may be NULL. E_ARG for an ending or type that does not fit.
 * The same pixels and spec give the same bytes. */
int image_save(const char *path, const struct image *m, const char *spec, int quality, struct err *e);

/* E_ARG unless `path` ends in something that image_save can write for this pixel type. */
int image_can_save(const char *path, enum pixel type, struct err *e);

int image_spec(char **out, const char *path, struct err *e);

#endif
