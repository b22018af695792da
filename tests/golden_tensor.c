#include "tests/golden_tensor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/tap.h"

/* Values of g in a tensor's order, to be freed. */
static float *turned(const struct golden_tensor *g, int n_input)
{
    const int64_t R = g->dim[0], n = g->n / R, C = g->n_dim == 4 ? g->dim[1] : 1, P = n / C, each = R / n_input;
    float *v = malloc(sizeof *v * (size_t)g->n);

    if (!v) {
        printf("Bail out! out of memory\n");
        exit(1);
    }
    for (int64_t r = 0; r < R; r++)
        for (int64_t p = 0; p < P; p++)
            for (int64_t c = 0; c < C; c++)
                v[r * n + p * C + c] = g->f[(r % each * n_input + r / each) * n + c * P + p];
    return v;
}

struct tensor *golden_tensor_new(const struct golden_tensor *g, int n_input, enum dtype type, struct model_memory *mem,
                                 struct device *dev)
{
    const int64_t *d = g->dim, nhwc[] = { d[0], d[2], d[3], d[1] };
    struct err e = { 0 };
    struct tensor *x = tensor_new(&mem->meta, &mem->model, type, g->n_dim, g->n_dim == 4 ? nhwc : d, &e);
    float *v = turned(g, n_input), *typed = malloc((size_t)g->n * sizeof *typed);

    if (typed)
        dtype_from_f32(typed, type, v, g->n);
    if (!x || !typed || device_put(dev, x->data, typed, tensor_bytes(x), &e)) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    free(v);
    free(typed);
    return x;
}

double golden_tensor_off(const struct tensor *got, const struct golden_tensor *g, int n_input, struct device *dev)
{
    float *v, *want, *typed;
    struct err e = { 0 };
    double d = 0, s = 0;

    if (!got || tensor_count(got) != g->n) {
        tap_note("%s: %s", g->name, got ? "another size" : "no result");
        return INFINITY;
    }
    want = turned(g, n_input);
    v = malloc(sizeof *v * (size_t)g->n);
    typed = malloc(sizeof *typed * (size_t)g->n);
    if (!v || !typed || (dev && device_get(dev, typed, got->data, tensor_bytes(got), &e))) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    dtype_to_f32(v, dev ? typed : got->data, got->type, g->n);
    free(typed);
    for (int64_t i = 0; i < g->n; i++) {
        d += ((double)v[i] - want[i]) * ((double)v[i] - want[i]);
        s += (double)want[i] * want[i];
    }
    free(want);
    free(v);
    return s > 0 ? sqrt(d / s) : INFINITY;
}
