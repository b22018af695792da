/* store/lora_file.h: LoRA files of diffusers, peft and kohya; which of them is seen from the names.
 *
 *     struct lora_file *f;
 *     if (lora_file_open(&f, path, &unet_config, e)) ...
 *     set.use[set.n++] = (struct lora_use){ &f->lora, 0.8 };
 *     lora_file_close(f);                                                                                   */
#ifndef UNICON_STORE_LORA_FILE_H
#define UNICON_STORE_LORA_FILE_H

#include "core/lora.h"
#include "core/model/unet.h"
#include "store/weights_file.h"

struct lora_file {
    struct lora lora;
    struct weights_file *file;
    int n_other;                /* tensors that are no LoRA of the UNet or the text encoder */
};

/* unet names the layers that kohya's underscored names stand for. E_FORMAT if nothing in the file is a LoRA, an up
 * has no down, or ranks differ. */
int lora_file_open(struct lora_file **out, const char *path, const struct unet_config *unet, struct err *e);
void lora_file_close(struct lora_file *f);

#endif
