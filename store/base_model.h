/* store/base_model.h: a base model on disk: a diffusers directory (model_index.json and its folders) or a single-file
 * checkpoint (.safetensors, .ckpt, .pth) in the original layout. Either way: three configurations, three tables of
 * weights with diffusers' names, a schedule, a tokenizer.
 *
 *     struct base_model *b;
 *     if (base_model_open(&b, path, &options, e)) ...
 *     layers_init(&l, dev, BF16, &mem, &b->unet_weights);  unet_new(&u, &b->unet, &l, e);
 *     base_model_close(b);                                                                                  */
#ifndef UNICON_STORE_BASE_MODEL_H
#define UNICON_STORE_BASE_MODEL_H

#include "core/diffusion/schedule.h"
#include "core/model/clip_bpe.h"
#include "core/model/clip_text.h"
#include "core/model/unet.h"
#include "core/model/vae.h"
#include "store/weights_file.h"

struct base_options {
    const char *variant;        /* "fp16": prefer those files; NULL: the plain ones, a variant if there is only that */
    const char *tokenizer;      /* a directory with merges.txt (and vocab.json), or NULL: the model's, else built in */
    const char *vae;            /* another VAE: a directory or file; NULL: the model's */
    int prediction;             /* an enum prediction, or -1: what the model says (single-file SD2: v) */
};

struct base_model {
    char *path;
    bool single_file;
    struct unet_config unet;
    struct vae_config vae;
    struct clip_text_config text;
    struct schedule_config schedule;
    struct clip_bpe *bpe;
    int32_t pad_id;             /* what fills a prompt up to 77 */
    struct weights unet_weights, vae_weights, text_weights;
    struct weights_file *file[4];       /* what they lie in; some NULL */
};

/* E_FORMAT for a model of another architecture, naming what is not supported. */
int base_model_open(struct base_model **out, const char *path, const struct base_options *o, struct err *e);
void base_model_close(struct base_model *b);    /* takes NULL */

/* The weights in a diffusers folder, as base_model_open finds them: safetensors before pickles, a whole file before the
 * index of shards, the variant (may be NULL) before the plain ones. out has room for 4096 bytes. */
int base_weights_path(char *out, const char *dir, const char *variant, struct err *e);

/* Configurations as JSON text (n bytes), each checked; for tests and fuzzing too. */
int base_parse_unet(struct unet_config *out, const char *json, size_t n, struct err *e);
int base_parse_vae(struct vae_config *out, const char *json, size_t n, struct err *e);
int base_parse_text(struct clip_text_config *out, const char *json, size_t n, struct err *e);
int base_parse_schedule(struct schedule_config *out, const char *json, size_t n, struct err *e);

#endif
