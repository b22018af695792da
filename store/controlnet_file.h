/* store/controlnet_file.h: a ControlNet on disk: a directory as diffusers writes it (config.json and its weights), or
 * one file, with diffusers' names or in the original layout ("control_model.", alone or beside the base it was trained
 * with). Whichever it is: a configuration and a table of weights with diffusers' names.
 *
 *     struct controlnet_file *f;
 *     if (controlnet_file_open(&f, path, NULL, &base->unet, e)) ...
 *     layers_init(&l, dev, BF16, &mem, &f->weights);  controlnet_new(&c, &f->config, &l, e);
 *     controlnet_file_close(f);                                                                              */
#ifndef UNICON_STORE_CONTROLNET_FILE_H
#define UNICON_STORE_CONTROLNET_FILE_H

#include "core/model/controlnet.h"
#include "store/weights_file.h"

struct controlnet_file {
    struct controlnet_config config;
    struct weights weights;
    struct weights_file *file;          /* what they lie in */
};

/* variant: as in struct base_options, or NULL. base: the UNet it is for; E_FORMAT says where it was made for another.
 * What a single file's sizes cannot tell, which is heads and groups, is the base's. */
int controlnet_file_open(struct controlnet_file **out, const char *path, const char *variant,
                         const struct unet_config *base, struct err *e);
void controlnet_file_close(struct controlnet_file *f);      /* takes NULL */

/* config.json as text (n bytes), checked; for tests and fuzzing too. In store/model_config.c. */
int controlnet_parse(struct controlnet_config *out, const char *json, size_t n, struct err *e);

#endif
