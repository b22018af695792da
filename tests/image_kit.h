/* tests/image_kit.h: pictures compared, and libraries that have to be silent. */
#ifndef UNICON_TESTS_IMAGE_KIT_H
#define UNICON_TESTS_IMAGE_KIT_H

#include "core/image.h"

size_t image_size(const struct image *m);       /* bytes of its pixels */
bool image_same(const struct image *a, const struct image *b);

/* One test: body() prints nothing to stderr, whatever the libraries under it think of their input. What they would have
 * printed goes through a file in `dir`. */
void image_quiet(const char *dir, void (*body)(void), const char *what);

#endif
