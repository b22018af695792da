/* tests/adapters.h: the random checkpoints `depth` and `id` of tests/reference/unicon.py, drawn from their names
 * (tests/reference/unicon.txt lists them), as joint_new takes them.
 *
 *     struct adapters *a = adapters_open("depth");
 *     struct joint_weights w = { &a->xy, &a->yx, &a->y, &a->post, JOINT_CONV_FUSE, 1 };
 *     adapters_close(a);                                                                                      */
#ifndef UNICON_TESTS_ADAPTERS_H
#define UNICON_TESTS_ADAPTERS_H

#include "core/joint.h"

struct adapters {
    struct weights xy, yx, y, post;
};

struct adapters *adapters_open(const char *checkpoint);     /* says why and exits if not */
void adapters_close(struct adapters *a);

#endif
