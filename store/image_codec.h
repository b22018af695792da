/* store/image_codec.h: what image_file.c asks of each format. A codec reads bytes in memory and writes to a file that
 * is open for writing; it prints nothing, leaves *out untouched on failure and reports in one line without the file's
 * name.
 *
 * The libraries leave their depths by longjmp. Each codec therefore keeps all it owns in one struct of its caller's
 * frame, calls setjmp in one small function that changes no local variable, and releases after that has returned. */
#ifndef UNICON_STORE_IMAGE_CODEC_H
#define UNICON_STORE_IMAGE_CODEC_H

#include <stdbool.h>
#include <stdio.h>
#include "core/image.h"

enum { SPEC_MAX_BYTES = 64 << 20 };

/* Marks our text where other programs leave theirs (JPEG's comments, TIFF's description). PNG has keywords for it. */
#define SPEC_MARK "unicon:"
#define SPEC_KEYWORD "unicon"

struct image_codec {
    const char *name;
    bool (*is)(const unsigned char *bytes, size_t size);
    bool (*writes)(int64_t C, enum pixel type);
    /* *orientation is 1..8. */
    int (*load)(struct image *out, int *orientation, const unsigned char *bytes, size_t size, struct err *e);
    int (*save)(FILE *file, const struct image *m, const char *spec, int quality, struct err *e);
    int (*spec)(char **out, const unsigned char *bytes, size_t size, struct err *e);
};

extern const struct image_codec image_png, image_jpeg, image_tiff;

/* image_new for what a file of `size` bytes declares: E_FORMAT where its sides are out of range or where no picture
 * packs so many pixels into so few bytes, before memory is asked for. */
int image_declared(struct image *out, int64_t H, int64_t W, int64_t C, enum pixel type, size_t size, struct err *e);
bool image_plausible(double bytes, size_t size);

/* C, M, Y, K in four channels to R, G, B in three, 0 of ink being white: Pillow's bytes. U8 and U16. */
int image_from_cmyk(struct image *out, const struct image *m, struct err *e);

/* As image_spec, of bytes. */
int image_spec_bytes(char **out, const unsigned char *bytes, size_t size, struct err *e);

/* A line of a library as the tail of a message: no line ends, no control characters. */
void image_one_line(char *text);

#endif
