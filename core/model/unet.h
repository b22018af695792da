/* core/model/unet.h: the denoiser of latent diffusion: UNet2DConditionModel; Rombach et al. 2022, sec. 3.2. SD1.x and
 * SD2.x are two configurations of it.
 *
 *     struct unet *u;
 *     if (unet_new(&u, &config, &layers, e)) ...                  takes its weights from layers->weights by name
 *     if (unet_text(t, u, text, NULL, &kv, e)) ...                      keys and values of the prompts, once per run
 *     struct tensor *eps = unet_forward(t, u, x, time, &kv, NULL, e);   (B,H,W,4)
 *
 * Latents of any size from 1 x 1: where a side is odd, a level up is cropped to the skip connection that it meets. */
#ifndef UNICON_CORE_MODEL_UNET_H
#define UNICON_CORE_MODEL_UNET_H

#include "core/joint.h"
#include "core/layer.h"
#include "core/op/op.h"

enum { UNET_MAX_STAGE = 6, UNET_MAX_LAYERS = 4, UNET_MAX_BLOCK = 64 };

/* Named as in unet/config.json where that has a name. */
struct unet_config {
    int64_t in_channels, out_channels;
    int n_stage;
    int64_t width[UNET_MAX_STAGE];          /* block_out_channels */
    bool down_attends[UNET_MAX_STAGE];      /* CrossAttnDownBlock2D, not DownBlock2D; stage 0 is the finest */
    bool up_attends[UNET_MAX_STAGE];        /* up_block_types, in the file's order: up block 0 is the coarsest */
    int64_t heads[UNET_MAX_STAGE];          /* attention_head_dim: the number of heads, by stage */
    int layers_per_block;
    int64_t cross_attention_dim;
    bool use_linear_projection;
    int64_t norm_num_groups;
    float norm_eps;
    int64_t sample_size;                    /* latent side that it was trained at; 0 unknown */
};

struct unet_config unet_config_sd15(void);
struct unet_config unet_config_sd2(void);

struct unet;

/* In l->meta and l->model. E_FORMAT names every tensor that is missing, has other sizes or fits nowhere. */
int unet_new(struct unet **out, const struct unet_config *c, struct layers *l, struct err *e);
const struct unet_config *unet_config(const struct unet *u);

/* The weights of an attention projection by its name,
 * "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"; NULL
 * for any other name. */
struct weight *unet_attention_weight(struct unet *u, const char *name);

/* Keys and values of text cross-attention, one pair per transformer block in the order of unet_forward. */
struct unet_text {
    int n;
    struct tensor *k[UNET_MAX_BLOCK], *v[UNET_MAX_BLOCK];       /* (B,T,C) */
};

/* The blocks that joint attention stands beside, in that order; out has room for UNET_MAX_BLOCK. Returns how many. */
int unet_places(struct unet *u, struct joint_place *out);

/* text (B,T,cross_attention_dim), of the UNet's type. run: which rows belong together, as for unet_forward; NULL:
 * none. */
int unet_text(struct tape *t, struct unet *u, struct tensor *text, const struct joint_run *run, struct unet_text *out,
              struct err *e);

/* x (B,H,W,in_channels) of the UNet's type, time (B) f32, text of B images -> (B,H,W,out_channels). run NULL: the base
 * alone; else the rows of inputs lie together and attend across pairs as it says. */
struct tensor *unet_forward(struct tape *t, struct unet *u, struct tensor *x, struct tensor *time,
                            const struct unet_text *text, const struct joint_run *run, struct err *e);

#endif
