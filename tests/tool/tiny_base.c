/* tests/tool/tiny_base.c: a tiny base model, UniCon checkpoint or ControlNet on disk, for test scripts: `tiny_base sd1
 * DIRECTORY`, from the repository's root. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/unicon_file.h"
#include "tests/adapters.h"
#include "tests/tiny.h"

/* Zeros of another size in the place of a tensor's values. */
static void resize(struct weights_entry *w, int64_t rows, int64_t columns)
{
    free((void *)(uintptr_t)w->data);
    w->data = calloc((size_t)(rows * columns), sizeof(float));
    w->dim[0] = rows;
    w->dim[1] = w->stride[0] = columns;
}

/* As for a base with other blocks, twice as wide, or (`cross`) with a text encoder that is. */
static void widen(struct weights *t, bool cross)
{
    for (int i = 0; i < t->n; i++) {
        struct weights_entry *w = &t->entry[i];
        const bool down = strstr(w->name, ".down.weight"), up = strstr(w->name, ".up.weight");
        const bool text = down && (strstr(w->name, "attn2.to_k") || strstr(w->name, "attn2.to_v"));

        if (cross != text)
            continue;
        resize(w, down ? w->dim[0] : 2 * w->dim[0], up ? w->dim[1] : 2 * w->dim[1]);
    }
}

/* The checkpoint `depth` or `id` of the references, for the model sd1; `wide` and `cross` are `depth` for models that
 * are not there. */
static int write_checkpoint(const char *name, const char *directory)
{
    const bool depth = strcmp(name, "id") != 0, cross = !strcmp(name, "cross");
    struct adapters *a = adapters_open(depth ? "depth" : "id");
    const struct joint_weights w = { &a->xy, &a->yx, depth ? &a->y : NULL, &a->post,
                                     depth ? JOINT_CONV_FUSE : JOINT_CONV, 1 };
    struct err e = { 0 };
    int rc;

    if (cross || !strcmp(name, "wide")) {
        widen(&a->xy, cross);
        widen(&a->yx, cross);
        widen(&a->y, cross);
        widen(&a->post, cross);
    }
    rc = unicon_file_write(directory, &w, name, depth ? "depth_map, " : "", depth, &e);

    if (rc)
        fprintf(stderr, "tiny_base: %s\n", e.text);
    adapters_close(a);
    return rc;
}

static bool one_of(const char *name, const char *const *names)
{
    for (; *names; names++)
        if (!strcmp(name, *names))
            return true;
    return false;
}

int main(int argc, char **argv)
{
    static const char *const bases[] = { "sd1", "sd2", NULL }, *const controls[] = { "control", NULL };
    static const char *const checkpoints[] = { "depth", "id", "wide", "cross", NULL };
    const char *what = argc == 3 ? argv[1] : "";
    int rc;

    if (!one_of(what, bases) && !one_of(what, controls) && !one_of(what, checkpoints)) {
        fprintf(stderr, "usage: tiny_base sd1|sd2|depth|id|wide|cross|control DIRECTORY\n");
        return 2;
    }
    rc = one_of(what, checkpoints) ? write_checkpoint(what, argv[2])
        : one_of(what, controls) ? tiny_write_control(what, argv[2]) : tiny_write(what, argv[2]);
    if (rc) {
        fprintf(stderr, "tiny_base: '%s' cannot be written\n", argv[2]);
        return 1;
    }
    return 0;
}
