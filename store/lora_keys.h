/* store/lora_keys.h: what the tensors of LoRA files are called. Three families of names say the same:
 *
 *     unet.down_blocks.0.attentions.0.proj_in.lora.down.weight           diffusers ("lora_A", "lora_B" in peft)
 *     down_blocks.0...attn1.processor.to_q_lora.down.weight              older diffusers
 *     lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight      kohya, LyCORIS
 *     lora_unet_input_blocks_1_1_proj_in.lora_down.weight                the same with the original layout's names
 *
 *     struct lora_key key;
 *     lora_key_parse(&key, names, "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha");
 *     key.role is LORA_KEY_ALPHA, key.target "text_model.encoder.layers.0.mlp.fc1.weight"                    */
#ifndef UNICON_STORE_LORA_KEYS_H
#define UNICON_STORE_LORA_KEYS_H

#include "core/lora.h"
#include "core/model/unet.h"

enum lora_key_role {
    LORA_KEY_DOWN, LORA_KEY_UP, LORA_KEY_ALPHA,
    LORA_KEY_OTHER,             /* no part of a LoRA */
    LORA_KEY_FOREIGN,           /* of a LoRA, for a layer that this model does not have */
    LORA_KEY_REFUSED            /* of an adapter of another kind */
};

enum { LORA_KEY_MAX = 320 };

struct lora_key {
    enum lora_key_role role;
    enum lora_part part;
    bool peft;                          /* as peft alone writes it: scales are in adapter_config.json */
    const char *kind;                   /* refused: "a LoHa" */
    char target[LORA_KEY_MAX];          /* "mid_block.resnets.0.conv1.weight" */
    char group[LORA_KEY_MAX];           /* what the tensors of one pair have in common */
};

struct lora_names;                      /* the layers of one UNet under all their names */

int lora_names_new(struct lora_names **out, const struct unet_config *u, struct err *e);
void lora_names_free(struct lora_names *n);         /* takes NULL */

void lora_key_parse(struct lora_key *out, const struct lora_names *n, const char *name);

#endif
