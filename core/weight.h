/* core/weight.h: the parameters of a linear or convolution layer: raw (as read or as trained), and packed for
 * the device's products, once per direction, on first need. Values that nobody changes need not be kept: then a
 * `fetch` brings them each time something is packed.
 *
 *     struct weight w;
 *     weight_init(&w, "conv_in", raw, 3, 3, model_arena);       raw (Co,3,3,Ci), any storage type
 *     const void *p = weight_pack(&w, dev, K_PACK_FWD, e);      packed now or before
 *     weight_touch(&w);                                         after the raw values changed: packs are stale  */
#ifndef UNICON_CORE_WEIGHT_H
#define UNICON_CORE_WEIGHT_H

#include "core/device.h"
#include "core/tensor.h"

struct weight;

/* Write (Co,KH,KW,Ci) of w->pack_type into dst, host memory; on the null device only take from w->stage what that takes
 * and give it back. Who makes his values from others' may fill w->bias here too: a product packs before it reads it. */
typedef int weight_fetch_fn(const struct weight *w, void *dst, struct err *e);

struct weight {
    const char *name;    /* for messages */
    struct tensor *raw;  /* (Co,KH,KW,Ci) as 4-d, or (Co,Ci); NULL once dropped, or where they are fetched */
    struct tensor *bias; /* (Co) f32, or NULL */
    int64_t Co, Ci;
    int KH, KW;
    enum dtype pack_type; /* storage of packs: the weights' own type unless set otherwise */
    struct arena *arena;  /* where packs go: the model's, at the device's place */
    void *pack[K_N_PACK];
    bool stale[K_N_PACK];
    void *split_pack[2], *split_dx[2]; /* the two channel ranges of a product over a joined input, see op_conv */
    int64_t split_at;                  /* channels in the first range; 0: never split */
    void *glu_pack;                    /* K_PACK_FWD with glu */
    bool split_stale[2], split_dx_stale[2], glu_stale;
    weight_fetch_fn *fetch; /* where raw is NULL */
    const void *origin;     /* the fetcher's own */
    struct arena *stage;    /* where fetched values lie while they are packed */
};

int weight_init(struct weight *w, const char *name, struct tensor *raw, struct tensor *bias, struct arena *arena,
                struct err *e);
/* The same without raw values: sizes, bias, arena and pack_type are set in w; fetch, origin and stage too. */
int weight_init_fetched(struct weight *w, struct err *e);
const void *weight_pack(struct weight *w, struct device *d, enum kpack_kind kind, struct err *e);
const void *weight_pack_glu(struct weight *w, struct device *d, struct err *e);
/* Packs for input channels [0,at) and [at,Ci), K_PACK_FWD or K_PACK_DX; out[2]. A weight is always split alike. */
int weight_pack_split(struct weight *w, struct device *d, enum kpack_kind kind, int64_t at, const void *out[2],
                      struct err *e);
/* The values themselves, (Co,KH,KW,Ci) f32, into host memory; nothing on the null device but what that takes. */
int weight_values(const struct weight *w, float *dst, struct err *e);
void weight_touch(struct weight *w);

#endif
