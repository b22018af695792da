/* core/layer.h: parameters of layers, taken from a table of weights by name. A model says which it needs and of what
 * sizes; what is missing, has other sizes or is left over is told in one message at the end.
 *
 *     struct layers l;
 *     layers_init(&l, dev, BF16, &mem, weights);
 *     layer_conv(&l, &u->conv_in, 320, 3, 4, true, "conv_in");                "conv_in.weight", "conv_in.bias"
 *     layer_norm(&l, &r->norm1, 320, "%s.norm1", prefix);
 *     if (layers_done(&l, "UNet", e)) ...
 *
 * Biases and norms are read at once. Weights of products are read when their pack is first needed (core/weight.h):
 * values go from the file through `stage` into the pack and are kept nowhere else, so a model needs its packs and the
 * largest layer once. */
#ifndef UNICON_CORE_LAYER_H
#define UNICON_CORE_LAYER_H

#include "core/device.h"
#include "core/lora.h"
#include "core/tensor.h"
#include "core/weight.h"
#include "core/weights.h"

struct model_memory {
    struct arena meta;          /* host: structs, names */
    struct arena model;         /* the device's place: parameters, packs */
    struct arena stage;         /* host (null on the null device): one weight on its way into a pack */
};

struct norm {
    struct tensor *gamma, *beta;            /* (C) f32 */
};

struct layers {
    struct device *dev;
    enum dtype type;                        /* storage of weights */
    struct model_memory *mem;
    const struct weights *weights;          /* NULL only on the null device: sizes are believed */
    const struct lora_set *lora;            /* NULL: none */
    enum lora_part part;                    /* which of its targets are meant */
    bool keep_raw;                          /* raw weights stay in mem->model, for gradients */
    int n_bad, n_missing;                   /* so far */
    char bad[400], missing[400];            /* the first few of each */
    struct err failed;                      /* out of memory and the like */
};

/* caps 0: 64 MiB of meta, 64 GiB of address space for model, 4 GiB for stage. */
int model_memory_init(struct model_memory *m, const struct device *dev, size_t model_cap, struct err *e);
void model_memory_free(struct model_memory *m);

void layers_init(struct layers *l, struct device *dev, enum dtype type, struct model_memory *mem,
                 const struct weights *weights);

/* Failures are kept for layers_done. Names are formats. A linear layer also accepts weights (Co,Ci,1,1). */
void layer_linear(struct layers *l, struct weight *w, int64_t Co, int64_t Ci, bool bias, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
void layer_conv(struct layers *l, struct weight *w, int64_t Co, int K, int64_t Ci, bool bias, const char *fmt, ...)
    __attribute__((format(printf, 7, 8)));
void layer_norm(struct layers *l, struct norm *n, int64_t C, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* A table (rows,D) that is read row by row on demand: the entry itself, checked. NULL on the null device. */
struct weights_entry *layer_table(struct layers *l, int64_t rows, int64_t D, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* An entry that nobody asked for is an error unless `ignore` (may be NULL) says it is known and idle. */
int layers_done(struct layers *l, const char *model, bool (*ignore)(const char *name), struct err *e);

#endif
