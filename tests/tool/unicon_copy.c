/* tests/tool/unicon_copy.c: a UniCon checkpoint read and written again, for test scripts: `unicon_copy FROM TO`, with
 * model.pth; `unicon_copy -s FROM TO`, with model.safetensors. */
#include <stdio.h>
#include <string.h>

#include "store/unicon_file.h"

int main(int argc, char **argv)
{
    const bool safe = argc > 1 && !strcmp(argv[1], "-s");
    struct unicon_file *f = NULL;
    struct err e = { 0 };

    if (argc != 3 + safe) {
        fprintf(stderr, "usage: unicon_copy [-s] FROM TO\n");
        return 2;
    }
    if (unicon_file_open(&f, argv[1 + safe], NULL, &e)
        || unicon_file_write(argv[2 + safe], &f->weights, f->name, f->trigger, !safe, &e))
        fprintf(stderr, "unicon_copy: %s\n", e.text);
    unicon_file_close(f);
    return e.code ? 1 : 0;
}
