/* tests/golden.h: tensors that a script under tests/reference wrote, for tests. The file is one of safetensors: 8 bytes
 * of header length, a JSON header of one fixed shape, the numbers. Inputs that the file only names ("draw NAME" in its
 * metadata) are drawn from their names as tests/reference/golden.py draws them; callers see no difference.
 *
 *     struct golden *g = golden_open("tests/reference/ops.safetensors");      says why and exits if not
 *     const struct golden_tensor *y = golden_get(g, "conv_s2.y");             NULL if there is none
 *     golden_close(g);                                                                                             */
#ifndef UNICON_TESTS_GOLDEN_H
#define UNICON_TESTS_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

enum { GOLDEN_MAX_DIM = 5 };

struct golden_tensor {
    char *name;
    int n_dim;
    int64_t dim[GOLDEN_MAX_DIM], n;     /* n: product of dim */
    float *f;                           /* F32, or NULL */
    int32_t *i;                         /* I32, or NULL */
};

struct golden {
    struct golden_tensor *tensor;
    int n_tensor;
    uint64_t seed;
};

struct golden *golden_open(const char *path);
void golden_close(struct golden *g);
const struct golden_tensor *golden_get(const struct golden *g, const char *name);

/* n numbers from a name, as golden.py draws them: standard deviation 1.15 scale. */
enum { GOLDEN_SEED = 20240229 };
void golden_draw(float *v, int64_t n, const char *name, uint64_t seed, double scale);

/* Parse `size` bytes; NULL with the reason in why[], for tests of this reader. */
struct golden *golden_parse(const unsigned char *bytes, size_t size, char *why, size_t why_size);

#endif
