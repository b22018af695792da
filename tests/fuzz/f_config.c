/* tests/fuzz/f_config.c: any bytes as one of five JSON configurations; the first byte picks which. What is taken is in
 * range, what is refused leaves the output as it was. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/base_model.h"
#include "store/controlnet_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void check_unet(const struct unet_config *u)
{
    must(u->n_stage >= 1 && u->n_stage <= UNET_MAX_STAGE);
    must(u->layers_per_block >= 1 && u->layers_per_block <= UNET_MAX_LAYERS);
    must(u->in_channels > 0 && u->out_channels > 0 && u->cross_attention_dim > 0 && u->norm_eps > 0);
    for (int i = 0; i < u->n_stage; i++)
        must(u->width[i] > 0 && u->heads[i] > 0 && u->width[i] % u->heads[i] == 0 &&
             u->width[i] % u->norm_num_groups == 0);
}

static void check_control(const struct controlnet_config *c)
{
    check_unet(&c->unet);
    must(c->n_hint >= 1 && c->n_hint <= CONTROLNET_MAX_HINT);
    for (int i = 0; i < c->n_hint; i++)
        must(c->hint[i] > 0);
}

static void check_vae(const struct vae_config *v)
{
    must(v->n_stage >= 1 && v->n_stage <= VAE_MAX_STAGE && v->layers_per_block >= 1);
    must(v->in_channels > 0 && v->out_channels > 0 && v->latent_channels > 0 && v->scaling_factor > 0);
    for (int i = 0; i < v->n_stage; i++)
        must(v->width[i] > 0 && v->width[i] % v->norm_num_groups == 0);
}

static void check_text(const struct clip_text_config *t)
{
    must(t->vocab_size > 0 && t->max_position_embeddings > 0 && t->hidden_size > 0 && t->intermediate_size > 0);
    must(t->num_hidden_layers > 0 && t->num_hidden_layers <= CLIP_TEXT_MAX_LAYER);
    must(t->num_attention_heads > 0 && t->hidden_size % t->num_attention_heads == 0 && t->layer_norm_eps > 0);
}

static void check_schedule(const struct schedule_config *s)
{
    must(s->n_train > 0 && s->n_train <= SCHEDULE_MAX_T && s->steps_offset >= 0 && s->steps_offset <= s->n_train);
    must(s->beta_start > 0 && s->beta_start <= s->beta_end && s->beta_end < 1 && s->clip_range > 0);
    must(s->beta <= BETA_SQUARED_COSINE && s->prediction <= PREDICT_SAMPLE && s->spacing <= SPACING_TRAILING);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    union {
        struct unet_config unet;
        struct vae_config vae;
        struct clip_text_config text;
        struct schedule_config schedule;
        struct controlnet_config control;
    } out;
    const char *json = (const char *)data + 1;
    struct err e = { 0 };
    int rc;

    if (size < 1)
        return 0;
    memset(&out, 0xA5, sizeof out);
    switch (data[0] == '4' ? 4 : data[0] % 4) {
    case 4:
        rc = controlnet_parse(&out.control, json, size - 1, &e);
        if (!rc)
            check_control(&out.control);
        break;
    case 0:
        rc = base_parse_unet(&out.unet, json, size - 1, &e);
        if (!rc)
            check_unet(&out.unet);
        break;
    case 1:
        rc = base_parse_vae(&out.vae, json, size - 1, &e);
        if (!rc)
            check_vae(&out.vae);
        break;
    case 2:
        rc = base_parse_text(&out.text, json, size - 1, &e);
        if (!rc)
            check_text(&out.text);
        break;
    default:
        rc = base_parse_schedule(&out.schedule, json, size - 1, &e);
        if (!rc)
            check_schedule(&out.schedule);
    }
    must(rc == OK || rc == E_FORMAT);
    if (rc) {
        must(e.code == rc && e.text[0] && strlen(e.text) < sizeof e.text);
        for (size_t i = 0; i < sizeof out; i++)
            must(((unsigned char *)&out)[i] == 0xA5);
    }
    return 0;
}
