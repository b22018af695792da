/* tests/base_kit.h: what tests of model files share: the list of every tensor of SD1.5 and SD2 by both of its names, a
 * folder that disappears, and weight files of any size that take no room: their numbers are a hole.
 *
 *     struct keys *k = keys_open();                           tests/reference/base_keys.txt
 *     const char *dir = base_dir();
 *     struct hole h = { 0 };
 *     hole_add(&h, "conv_in.weight", &k->row[0].one);
 *     hole_write(&h, base_path("model.safetensors"));                                                       */
#ifndef UNICON_TESTS_BASE_KIT_H
#define UNICON_TESTS_BASE_KIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sizes {
    int n_dim;
    int64_t dim[4];
};

struct keys_row {
    char section[8];                    /* "unet", "vae", "text1", "text2" */
    char name[120], original[120];      /* diffusers', the original layout's; the same where there is no other */
    struct sizes one, two;              /* in diffusers' layout; two: of SD2 */
    struct sizes stored;                /* in the original layout, if that differs: n_dim > 0 */
};

struct keys {
    struct keys_row *row;
    int n;
};

struct keys *keys_open(void);           /* says why and exits if there is none */
struct keys *keys_of_controls(void);    /* tests/reference/control_keys.txt */
void keys_close(struct keys *k);

/* One folder per process under $TMPDIR or /tmp, removed at exit. */
const char *base_dir(void);
const char *base_path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));      /* one of 8 static buffers */
void base_mkdir(const char *path);
void base_text(const char *path, const char *text);     /* a file of that text */

/* A safetensors file that is put together piece by piece: F16, zeros. */
struct hole {
    char *header;
    size_t used, room;
    int64_t bytes;
};

void hole_add(struct hole *h, const char *name, const struct sizes *s);
/* The same with numbers; they stand at *at in the file, for base_poke. */
void hole_add_type(struct hole *h, const char *name, const char *type, int bytes, const struct sizes *s, int64_t *at);
/* Write and start anew; returns where the numbers begin. */
int64_t hole_write(struct hole *h, const char *path);
void base_poke(const char *path, int64_t at, const void *bytes, size_t n);

#endif
