/* tests/tool/tiny_base.c: a tiny base model on disk, for test scripts: `tiny_base sd1 DIRECTORY`, from the repository's
 * root. */
#include <stdio.h>
#include <string.h>

#include "tests/tiny.h"

int main(int argc, char **argv)
{
    if (argc != 3 || (strcmp(argv[1], "sd1") && strcmp(argv[1], "sd2"))) {
        fprintf(stderr, "usage: tiny_base sd1|sd2 DIRECTORY\n");
        return 2;
    }
    if (tiny_write(argv[1], argv[2])) {
        fprintf(stderr, "tiny_base: '%s' cannot be written\n", argv[2]);
        return 1;
    }
    return 0;
}
