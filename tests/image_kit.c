#include "tests/image_kit.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/tap.h"

size_t image_size(const struct image *m) { return (size_t)(m->H * m->W * m->C) * pixel_bytes(m->type); }

bool image_same(const struct image *a, const struct image *b)
{
    return a->H == b->H && a->W == b->W && a->C == b->C && a->type == b->type && !memcmp(a->px, b->px, image_size(a));
}

void image_quiet(const char *dir, void (*body)(void), const char *what)
{
    char path[300];
    off_t n = -1;
    const int keep = dup(2);
    int to;

    snprintf(path, sizeof path, "%s/stderr", dir);
    to = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    fflush(stderr);
    if (keep >= 0 && to >= 0 && dup2(to, 2) == 2) {
        body();
        fflush(stderr);
        n = lseek(2, 0, SEEK_END);
        dup2(keep, 2);
    }
    if (to >= 0)
        close(to);
    if (keep >= 0)
        close(keep);
    unlink(path);
    tap_ok(n == 0, "%s: the libraries print nothing (%jd bytes)", what, (intmax_t)n);
}
