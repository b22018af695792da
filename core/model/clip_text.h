/* core/model/clip_text.h: CLIP's text transformer: CLIPTextModel; Radford et al. 2021. SD1.x: ViT-L/14's, SD2.x:
 * OpenCLIP ViT-H's with its last layer left out.
 *
 *     struct tensor *text = clip_text_forward(t, c, id, B, 0, e);     id (B,77) on the host -> (B,77,D)  */
#ifndef UNICON_CORE_MODEL_CLIP_TEXT_H
#define UNICON_CORE_MODEL_CLIP_TEXT_H

#include "core/layer.h"
#include "core/op/op.h"

enum { CLIP_TEXT_MAX_LAYER = 48 };

struct clip_text_config {
    int64_t vocab_size, max_position_embeddings;
    int64_t hidden_size, intermediate_size;
    int num_hidden_layers;
    int64_t num_attention_heads;
    enum kact act;                          /* hidden_act: K_ACT_QUICK_GELU or K_ACT_GELU */
    float layer_norm_eps;
};

struct clip_text_config clip_text_config_sd15(void);
struct clip_text_config clip_text_config_sd2(void);

struct clip_text;

int clip_text_new(struct clip_text **out, const struct clip_text_config *c, struct layers *l, struct err *e);

/* The last hidden state after the final norm; skip = k leaves out the last k layers ("clip skip"). Ids outside the
 * vocabulary are E_ARG. */
struct tensor *clip_text_forward(struct tape *t, struct clip_text *c, const int32_t *id, int64_t B, int skip,
                                 struct err *e);

#endif
