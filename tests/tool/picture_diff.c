/* tests/tool/picture_diff.c: how far two pictures are from each other, for test scripts: `picture_diff A B` prints the
 * largest difference of a sample in levels of 255 and how many differ by more than one; 1 if their shapes differ. */
#include <stdio.h>
#include <stdlib.h>

#include "store/image_file.h"

static bool load(struct image *out, const char *path)
{
    struct image m = { 0 };
    struct err e = { 0 };

    if (image_load(&m, path, false, &e) || image_convert(out, &m, 3, PIXEL_U8, &e))
        fprintf(stderr, "picture_diff: %s\n", e.text);
    image_free(&m);
    return !e.code;
}

int main(int argc, char **argv)
{
    struct image a = { 0 }, b = { 0 };
    int most = 0;
    long n = 0;
    bool ok;

    if (argc != 3) {
        fprintf(stderr, "usage: picture_diff A B\n");
        return 2;
    }
    ok = load(&a, argv[1]) && load(&b, argv[2]) && a.H == b.H && a.W == b.W;
    for (int64_t i = 0; ok && i < a.H * a.W * 3; i++) {
        const int d = abs(((unsigned char *)a.px)[i] - ((unsigned char *)b.px)[i]);

        most = d > most ? d : most;
        n += d > 1;
    }
    if (ok)
        printf("%d %ld\n", most, n);
    image_free(&a);
    image_free(&b);
    return ok ? 0 : 1;
}
