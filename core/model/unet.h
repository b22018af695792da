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

enum { UNET_MAX_STAGE = 6, UNET_MAX_LAYERS = 4, UNET_MAX_BLOCK = 64, UNET_MAX_GROUP = 16 };
enum { UNET_MAX_SKIP = 1 + UNET_MAX_STAGE * (UNET_MAX_LAYERS + 1) };

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

/* Keys and values of text cross-attention of P prompts, one pair per transformer block in the order of unet_forward.
 * The rows of a batch lie in n_group equal groups and group g has prompt[g]; with n_group 0 row b has prompt b. */
struct unet_text {
    int n;
    struct tensor *k[UNET_MAX_BLOCK], *v[UNET_MAX_BLOCK];       /* (P,T,C) */
    int n_group, prompt[UNET_MAX_GROUP];
};

/* What ControlNets add to rows [first, first + n) of a batch: to each skip and to the middle's result; (n,H,W,C). */
struct unet_added {
    int64_t first;
    int n;
    struct tensor *skip[UNET_MAX_SKIP], *mid;
};

/* What a pass is asked for besides. All zero: the base alone. */
struct unet_call {
    const struct joint_run *pairs;          /* rows of inputs lie together and attend across pairs as it says */
    const struct unet_added *added;
    bool segments;                          /* while recording: layers keep their results and are done again on the
                                             * way back, less memory for a third more work */
};

/* The blocks that joint attention stands beside, in that order; out has room for UNET_MAX_BLOCK. Returns how many. */
int unet_places(struct unet *u, struct joint_place *out);

/* text (P,T,cross_attention_dim), of the UNet's type. run: which prompts are of which input; NULL: of none. */
int unet_text(struct tape *t, struct unet *u, struct tensor *text, const struct joint_run *run, struct unet_text *out,
              struct err *e);

/* x (B,H,W,in_channels) of the UNet's type, time (B) f32 -> (B,H,W,out_channels). call NULL: the base alone. */
struct tensor *unet_forward(struct tape *t, struct unet *u, struct tensor *x, struct tensor *time,
                            const struct unet_text *text, const struct unet_call *call, struct err *e);

#endif
