/* core/model/controlnet.h: a copy of the UNet's way down that sees a condition image and says what to add to the UNet's
 * skips and to its middle; ControlNetModel; Zhang, Rao and Agrawala 2023.
 *
 *     struct controlnet *c;
 *     if (controlnet_new(&c, &config, &layers, e)) ...            takes its weights from layers->weights by name
 *     struct tensor *hint = controlnet_hint(t, c, picture, e);    (1,H,W,3) -> (1,h,w,C), once per run
 *     if (controlnet_text(t, c, text, &kv, e)) ...                keys and values of the prompts, once per run
 *     struct unet_added added = { .first = 0 };
 *     if (controlnet_forward(t, c, x, time, &kv, hint, 1, &added, e)) ...
 *     unet_forward(t, u, x, time, .., &(struct unet_call){ .added = &added }, e);
 *
 * Of several each adds its own to what is there. While the tape records, gradients flow through them to x. */
#ifndef UNICON_CORE_MODEL_CONTROLNET_H
#define UNICON_CORE_MODEL_CONTROLNET_H

#include "core/model/unet.h"

enum { CONTROLNET_MAX_HINT = 8 };

/* Named as in config.json where that has a name. */
struct controlnet_config {
    struct unet_config unet;                /* out_channels and up_attends are not read */
    int n_hint;
    int64_t hint[CONTROLNET_MAX_HINT];      /* conditioning_embedding_out_channels; from each to the next it halves */
};

struct controlnet_config controlnet_config_sd15(void);

/* Pixels of the condition image along a side of a latent. */
int64_t controlnet_factor(const struct controlnet_config *c);

struct controlnet;

/* In l->meta and l->model. E_FORMAT names every tensor that is missing, has other sizes or fits nowhere. */
int controlnet_new(struct controlnet **out, const struct controlnet_config *c, struct layers *l, struct err *e);

/* picture (1,H,W,3) in [0,1], of the network's type -> (1,H/factor,W/factor,C) */
struct tensor *controlnet_hint(struct tape *t, struct controlnet *c, struct tensor *picture, struct err *e);

/* text (P,T,cross_attention_dim), of the network's type */
int controlnet_text(struct tape *t, struct controlnet *c, struct tensor *text, struct unet_text *out, struct err *e);

/* x (B,h,w,in_channels) of the network's type, time (B) f32, hint the same for all rows. out->n is 0 before the first
 * network; what this one says, weight times, is added to what out has. Tensors of out live as long as the mark that the
 * tape had. */
int controlnet_forward(struct tape *t, struct controlnet *c, struct tensor *x, struct tensor *time,
                       const struct unet_text *text, struct tensor *hint, float weight, struct unet_added *out,
                       struct err *e);

#endif
