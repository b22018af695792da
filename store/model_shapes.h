/* store/model_shapes.h: what a model is, told from the names and sizes of its tensors, for files that come without a
 * configuration. Tables have diffusers' names (store/checkpoint_keys.h). What sizes cannot tell is as in SD1.x and
 * SD2.x: 32 groups in norms, SD1's UNet has 8 heads everywhere, all other heads have 64 channels.
 *
 *     if ((kind = model_foreign(&file->table))) ...       "a ControlNet", "a LoRA", ..: no base model
 *     if (shapes_unet(&config, &unet_table, e)) ...                                                          */
#ifndef UNICON_STORE_MODEL_SHAPES_H
#define UNICON_STORE_MODEL_SHAPES_H

#include "core/model/clip_text.h"
#include "core/model/controlnet.h"
#include "core/model/unet.h"
#include "core/model/vae.h"
#include "core/weights.h"

/* E_FORMAT names a tensor that is missing or has sizes which no such model has. What remains is checked when the model
 * takes its weights. */
int shapes_unet(struct unet_config *out, const struct weights *w, struct err *e);
int shapes_vae(struct vae_config *out, const struct weights *w, struct err *e);
int shapes_text(struct clip_text_config *out, const struct weights *w, enum kact act, struct err *e);
/* What sizes cannot tell is as in `base`, the UNet that it is for. */
int shapes_control(struct controlnet_config *out, const struct weights *w, const struct unet_config *base,
                   struct err *e);

/* What a file seems to be that is no checkpoint of SD1.x or SD2.x in the original layout; NULL if it may be one. */
const char *model_foreign(const struct weights *file);

/* "an inpainting model", ..: what a UNet with so many input channels is made for; NULL for 4 or an unknown count. */
const char *model_of_channels(int64_t in_channels);

#endif
