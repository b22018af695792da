/* tests/tool/tiny_base.c: a tiny base model, UniCon checkpoint or ControlNet on disk, for test scripts: `tiny_base sd1
 * DIRECTORY`, from the repository's root. */
#include <stdio.h>
#include <string.h>

#include "store/unicon_file.h"
#include "tests/adapters.h"
#include "tests/tiny.h"

/* The checkpoint `depth` or `id` of the references, for the model sd1. */
static int write_checkpoint(const char *name, const char *directory)
{
    const bool depth = !strcmp(name, "depth");
    struct adapters *a = adapters_open(name);
    const struct joint_weights w = { &a->xy, &a->yx, depth ? &a->y : NULL, &a->post,
                                     depth ? JOINT_CONV_FUSE : JOINT_CONV, 1 };
    struct err e = { 0 };
    const int rc = unicon_file_write(directory, &w, name, depth ? "depth_map, " : "", depth, &e);

    if (rc)
        fprintf(stderr, "tiny_base: %s\n", e.text);
    adapters_close(a);
    return rc;
}

static int write_it(const char *what, const char *directory)
{
    if (!strcmp(what, "control"))
        return tiny_write_control(what, directory);
    return !strcmp(what, "depth") || !strcmp(what, "id") ? write_checkpoint(what, directory)
        : tiny_write(what, directory);
}

static bool one_of(const char *name, const char *a, const char *b) { return !strcmp(name, a) || !strcmp(name, b); }

int main(int argc, char **argv)
{
    if (argc != 3 || !(one_of(argv[1], "sd1", "sd2") || one_of(argv[1], "depth", "id")
                       || one_of(argv[1], "control", "control"))) {
        fprintf(stderr, "usage: tiny_base sd1|sd2|depth|id|control DIRECTORY\n");
        return 2;
    }
    if (write_it(argv[1], argv[2])) {
        fprintf(stderr, "tiny_base: '%s' cannot be written\n", argv[2]);
        return 1;
    }
    return 0;
}
