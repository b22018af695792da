/* core/lora.h: low-rank changes of a base model's weights, added to them with a weight while they are loaded:
 *     W += scale * up down        Hu et al. 2021;    down (r,Ci[,KH,KW])  up (Co,r[,1,1])
 * store reads the files and names the targets as the base model does ("unet.", "text." in front).
 *
 * A `lora_set` is what one run adds: any number of files, each with its weight; the order does not matter beyond
 * rounding. */
#ifndef UNICON_CORE_LORA_H
#define UNICON_CORE_LORA_H

#include "core/arena.h"
#include "core/weights.h"

enum lora_part { LORA_UNET, LORA_TEXT };

struct lora_delta {
    enum lora_part part;
    const char *target;                     /* "down_blocks.0.attentions.0.proj_in.weight"; owned by the file */
    struct weights_entry *down, *up;
    double scale;                           /* alpha / rank */
    bool used;                              /* a layer with this name has been loaded */
};

struct lora {
    const char *path;                       /* for messages */
    struct lora_delta *delta;               /* sorted by (part, target); one target may come more than once */
    int n;
    const struct weights *weights;
};

struct lora_use {
    struct lora *lora;
    double weight;
};

enum { LORA_MAX_USE = 16 };

struct lora_set {
    struct lora_use use[LORA_MAX_USE];
    int n;
};

/* w (Co, K) f32 row-major in the file's own order (K = Ci*KH*KW) += everything in the set for part's `target`. The
 * sum is taken in f32, products with kern. work: host arena, marked and released. E_FORMAT if sizes do not fit. */
int lora_add(const struct lora_set *set, enum lora_part part, const char *target, float *w, int64_t Co, int64_t K,
             struct arena *work, struct err *e);
bool lora_changes(const struct lora_set *set, enum lora_part part, const char *target);

#endif
