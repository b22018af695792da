/* core/model/unet_encoder.h: the half of a UNet that goes down: time, conv_in, stages, the middle. The UNet goes up
 * from there, a ControlNet tells what it found. Private to those two; names are those of the checkpoint. */
#ifndef UNICON_CORE_MODEL_UNET_ENCODER_H
#define UNICON_CORE_MODEL_UNET_ENCODER_H

#include "core/model/transformer.h"
#include "core/model/unet.h"

struct unet_resnet {                                /* R(i,o) */
    struct norm norm1, norm2;
    struct weight conv1, time_emb_proj, conv2, conv_shortcut;
    bool has_shortcut;                              /* i != o */
};

struct unet_stage {
    struct unet_resnet resnet[UNET_MAX_LAYERS + 1];
    struct transformer attention[UNET_MAX_LAYERS + 1];
    struct weight sampler;                          /* halves or doubles; not in the last stage */
    bool attends, has_sampler;
};

struct unet_encoder {
    struct unet_config config;
    struct weight conv_in, time1, time2;
    struct unet_stage down[UNET_MAX_STAGE];
    struct unet_resnet mid[2];
    struct transformer mid_attention;
    struct transformer *block[UNET_MAX_BLOCK];      /* in the order of the forward pass, the UNet's way up included */
    const char *block_name[UNET_MAX_BLOCK];
    int n_block;
};

int unet_encoder_bind(struct layers *l, struct unet_encoder *u, const struct unet_config *c, struct err *e);
/* n layers of a stage of width C; Ci[i] is what resnet i takes. */
void unet_stage_bind(struct layers *l, struct unet_encoder *u, struct unet_stage *s, const int64_t *Ci, int64_t C,
                     int64_t heads, int n, const char *name);

/* One walk through the network. */
struct unet_pass {
    struct tape *t;
    struct unet_encoder *u;
    struct tensor *emb;                             /* (B,4 width) after its SiLU: what every resnet takes */
    const struct unet_text *text;
    const struct unet_call *call;
    struct tensor *skip[UNET_MAX_SKIP];
    int n_skip;
};

/* x, time and text fit this network. */
int unet_check(const struct unet_encoder *u, const struct tensor *x, const struct tensor *time,
               const struct unet_text *text, const struct unet_call *call, struct err *e);
/* Down and through the middle; p->skip has what there was on the way. hint, if not NULL, like conv_in's result, is
 * added to it. */
struct tensor *unet_encode(struct unet_pass *p, struct tensor *x, struct tensor *time, struct tensor *hint,
                           struct err *e);
/* Layer i of a stage over x, or over x joined with a skip: a resnet and, where the stage attends, a transformer. */
struct tensor *unet_layer(struct unet_pass *p, struct unet_stage *s, int i, struct tensor *x, struct tensor *skip,
                          struct err *e);
int unet_encoder_text(struct tape *t, struct unet_encoder *u, struct tensor *text, const struct joint_run *run,
                      struct unet_text *out, struct err *e);

#endif
