/* store/checkpoint_keys.h: what tensors are called. Checkpoints in one file have the names of the original latent
 * diffusion code; older diffusers files have older names in the VAE's attention. Here they become the names that
 * diffusers and transformers use now, "down_blocks.0.resnets.0.conv1.weight".
 *
 *     struct checkpoint_layout layout;
 *     checkpoint_layout(&layout, &file->table);
 *     weights_file_select(&unet, file, checkpoint_unet_key, &layout, e);
 *     weights_file_select(&text, file, checkpoint_text_key, &layout, e);
 *     checkpoint_split_qkv(&text, &file->meta, e);                        OpenCLIP's stacked q, k, v         */
#ifndef UNICON_STORE_CHECKPOINT_KEYS_H
#define UNICON_STORE_CHECKPOINT_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include "core/arena.h"
#include "core/weights.h"

/* What has to be counted before names can be understood. 0: there is none of it. */
struct checkpoint_layout {
    int unet_layers;            /* resnets per down block */
    int vae_stages;
    const char *vae_prefix;     /* "first_stage_model.", or "" in a file of a VAE alone */
    int openclip_blocks;        /* to be used: SD2.x takes the last but one block's output */
    int control_layers;         /* as unet_layers, of a ControlNet */
    int hint_last;              /* the last of its input_hint_block */
    const char *control_prefix; /* "control_model.", or "" in a file that leaves it out */
};

void checkpoint_layout(struct checkpoint_layout *out, const struct weights *file);

/* For weights_file_select with a struct checkpoint_layout as ctx: false for a tensor of another part, or one that
 * nobody needs (EMA copies, buffers, losses, position_ids). A name of this part that is not understood comes through
 * without its prefix, so that the model reports it. */
bool checkpoint_unet_key(const char *name, char *out, size_t size, void *layout);
bool checkpoint_vae_key(const char *name, char *out, size_t size, void *layout);
bool checkpoint_text_key(const char *name, char *out, size_t size, void *layout);
bool checkpoint_control_key(const char *name, char *out, size_t size, void *layout);

/* The same for files of diffusers' and transformers' own; ctx is not read. */
bool diffusers_vae_key(const char *name, char *out, size_t size, void *ctx);
bool diffusers_text_key(const char *name, char *out, size_t size, void *ctx);

/* Replace every "..self_attn.in_proj_{weight,bias}" (3D..) by q_proj, k_proj and v_proj: views of its rows. */
int checkpoint_split_qkv(struct weights *w, struct arena *meta, struct err *e);

/* Attention weights of a VAE that are stored as 1x1 convolutions, (D,D,1) or (D,D,1,1), become (D,D). */
void checkpoint_squeeze_vae(struct weights *w);

#endif
