/* core/model/vae.h: AutoencoderKL: images to latents and back; Rombach et al. 2022, sec. 3.1, Esser et al. 2021.
 *
 *     struct vae *v;
 *     if (vae_new(&v, &config, VAE_DECODER, &layers, e)) ...
 *     struct tensor *image = vae_decode(t, v, z, e);              z (B,h,w,4) scaled -> (B,8h,8w,3) about [-1,1]
 *
 * Without gradients a level is computed in bands of rows, with the bits of the whole, so that large images need two
 * maps of a level and no more. */
#ifndef UNICON_CORE_MODEL_VAE_H
#define UNICON_CORE_MODEL_VAE_H

#include "core/layer.h"
#include "core/op/op.h"

enum { VAE_MAX_STAGE = 6 };
enum vae_half { VAE_ENCODER = 1, VAE_DECODER = 2, VAE_BOTH = 3 };

struct vae_config {
    int64_t in_channels, out_channels, latent_channels;
    int n_stage;
    int64_t width[VAE_MAX_STAGE];           /* block_out_channels */
    int layers_per_block;
    int64_t norm_num_groups;
    float scaling_factor;                   /* 0.18215 */
    int64_t sample_size;
};

struct vae_config vae_config_sd15(void);

struct vae;

int vae_new(struct vae **out, const struct vae_config *c, enum vae_half half, struct layers *l, struct err *e);
const struct vae_config *vae_config(const struct vae *v);
int64_t vae_factor(const struct vae_config *c);             /* pixels per latent: 2^(n_stage - 1) */

/* image (B,H,W,3) of the VAE's type in [-1,1], sides multiples of vae_factor -> moments (B,h,w,2L) f32: mean, then log
 * variance as the encoder gives it. */
struct tensor *vae_encode(struct tape *t, struct vae *v, struct tensor *image, struct err *e);

/* moments -> latents (B,h,w,L) f32 times scaling_factor: mean + exp(logvar/2) noise with logvar
 * clamped to [-30,20]; noise NULL: the mode. */
struct tensor *vae_latents(struct tape *t, const struct vae_config *c, struct tensor *moments, struct tensor *noise,
                           struct err *e);

/* z (B,h,w,L) f32, scaled -> image (B,H,W,3) f32, not clamped. */
struct tensor *vae_decode(struct tape *t, struct vae *v, struct tensor *z, struct err *e);

#endif
