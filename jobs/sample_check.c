/* jobs/sample_check.c: what is easily got wrong with pairs, told in the user's words before a model is made: a
 * checkpoint of another base, a name that is none, a mask of another picture. */
#include "jobs/sample_inputs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- does a checkpoint fit its base? ---- */

/* Channels that a low-rank factor takes; 0 if the checkpoint has none there. */
static int64_t width_of(const struct weights *w, int stage, const char *projection)
{
    char name[160];
    const struct weights_entry *d;

    snprintf(name, sizeof name, "down_blocks.%d.attentions.0.transformer_blocks.0.%s.down.weight", stage, projection);
    d = w ? weights_get(w, name) : NULL;
    return d && d->n_dim > 1 ? d->dim[1] : 0;
}

static const char *family(int64_t cross)
{
    return cross == 768 ? ", as Stable Diffusion 1.x" : cross == 1024 ? ", as Stable Diffusion 2.x" : "";
}

int sample_check_fit(const struct sample_inputs *in, int k, struct err *e)
{
    const struct joint_weights *w = &in->unicon[k - 1]->weights;
    const struct unet_config *u = &in->base->unet;

    for (int i = 0; i < u->n_stage; i++) {
        const int64_t have = u->down_attends[i] ? width_of(w->xy, i, "attn1n.to_q") : 0;
        const int64_t text = u->down_attends[i] ? width_of(w->y, i, "attn2.to_k") : 0;

        if (have && have != u->width[i])
            return err_set(e, E_FORMAT, "--unicon '%s': it was made for a base with blocks of %" PRId64 " channels "
                           "where this one has %" PRId64 " (stage %d of the UNet): take the base it was trained on",
                           in->unicon[k - 1]->path, have, u->width[i], i);
        if (text && text != u->cross_attention_dim)
            return err_set(e, E_FORMAT, "--unicon '%s': it was made for a base whose text encoder gives %" PRId64
                           " numbers a token%s; this one gives %" PRId64 "%s: take the base it was trained on",
                           in->unicon[k - 1]->path, text, family(text), u->cross_attention_dim,
                           family(u->cross_attention_dim));
    }
    return OK;
}

/* ---- names ---- */

/* "'depth' (y), 'id' (y2), 'canny'" */
static void list_names(char *buf, size_t size, const struct sample_inputs *in)
{
    size_t n = 0;

    buf[0] = '\0';
    for (int k = 1; k <= in->n_unicon + in->n_control && n < size; k++)
        n += (size_t)snprintf(buf + n, size - n, k <= in->n_unicon ? "%s'%s' (%s)" : "%s'%s'", k > 1 ? ", " : "",
                              sample_name_of(in, k), k <= in->n_unicon ? in->name[k] : "");
}

int sample_check_names(const struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    static const struct { const char *key; bool path; } list[] = {
        { "y", true }, { "y-mask", true }, { "y-noise", false }, { "pair", false }, { "cond-guidance", false },
    };
    char known[(PAIR_MAX_INPUT + PIPELINE_MAX_CONTROL) * (UNICON_MAX_NAME + 16)];

    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        for (int j = 0; j < spec_count(spec, list[i].key); j++) {
            const char *text = spec_item(spec, list[i].key, j), *is = strchr(text, '=');

            if (!is || sample_whose(in, text, (size_t)(is - text)))
                continue;
            if (list[i].path && (memchr(text, '/', (size_t)(is - text)) || !access(text, F_OK)))
                continue;                       /* a path with '=' in it */
            list_names(known, sizeof known, in);
            return err_set(e, E_ARG, "--%s '%.200s': there is no checkpoint '%.*s'; the names are %s", list[i].key,
                           text, is - text < 60 ? (int)(is - text) : 60, text, known);
        }
    return OK;
}

/* ---- masks ---- */

/* A side as it is before the middle is kept. */
static double covered(int64_t h, int64_t w, int64_t H, int64_t W, int64_t side)
{
    const double a = (double)H / (double)h, b = (double)W / (double)w;

    return (a > b ? a : b) * (double)side;
}

static bool far(double a, double b, int64_t most) { return a - b > (double)most || b - a > (double)most; }

int sample_check_mask(const struct sample_inputs *in, const char *key, const char *path, int k, int64_t h, int64_t w,
                      struct err *e)
{
    const int64_t H = in->request.height, W = in->request.width, f = vae_factor(&in->base->vae);
    const int64_t ph = in->picture_size[k][0], pw = in->picture_size[k][1];

    if ((h == H && w == W) || (!far(covered(h, w, H, W, h), covered(ph, pw, H, W, ph), f)
                               && !far(covered(h, w, H, W, w), covered(ph, pw, H, W, pw), f)))
        return OK;
    return err_set(e, E_ARG, "--%s '%.200s': the mask is %" PRId64 " x %" PRId64 " and its picture %" PRId64 " x %"
                   PRId64 ", another shape: make the mask as large as the picture, or as what is drawn, %" PRId64 " x %"
                   PRId64, key, path, w, h, pw, ph, W, H);
}
