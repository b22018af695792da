#include "store/controlnet_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/base_model.h"
#include "store/checkpoint_keys.h"
#include "store/model_shapes.h"

enum { MAX_PATH = 4096 };

/* ---- does it fit? ---- */

static int other_base(struct err *e, const char *what, int64_t own, int64_t base)
{
    return err_set(e, E_FORMAT, "it has %s %" PRId64 ", the base %" PRId64 ": it is made for another base", what, own,
                   base);
}

static int check(const struct unet_config *c, const struct unet_config *base, struct err *e)
{
    if (c->cross_attention_dim != base->cross_attention_dim)
        return other_base(e, "a text width of", c->cross_attention_dim, base->cross_attention_dim);
    if (c->in_channels != base->in_channels)
        return other_base(e, "latent channels:", c->in_channels, base->in_channels);
    if (c->n_stage != base->n_stage)
        return other_base(e, "stages:", c->n_stage, base->n_stage);
    if (c->layers_per_block != base->layers_per_block)
        return other_base(e, "layers per stage:", c->layers_per_block, base->layers_per_block);
    for (int i = 0; i < c->n_stage; i++)
        if (c->width[i] != base->width[i])
            return other_base(e, "a stage of width", c->width[i], base->width[i]);
    return OK;
}

/* ---- a directory ---- */

static int read_config(struct controlnet_config *out, const char *dir, struct err *e)
{
    char path[MAX_PATH];
    struct map m = { 0 };
    int rc;

    if (snprintf(path, sizeof path, "%s/config.json", dir) >= (int)sizeof path)
        return err_set(e, E_ARG, "the path is too long");
    rc = map_open(&m, path, e);
    if (rc)
        return rc;
    rc = controlnet_parse(out, (const char *)m.base, m.size, e);
    map_close(&m);
    return rc ? err_in(e, "'%s'", path) : OK;
}

static int open_directory(struct controlnet_file *f, const char *dir, const char *variant, struct err *e)
{
    char path[MAX_PATH];
    struct stat st;
    int rc;

    if (snprintf(path, sizeof path, "%s/model_index.json", dir) < (int)sizeof path && !stat(path, &st))
        return err_set(e, E_FORMAT, "this is a base model, not a ControlNet");
    rc = read_config(&f->config, dir, e);
    rc = rc ? rc : base_weights_path(path, dir, variant, e);
    rc = rc ? rc : weights_file_open(&f->file, path, e);
    if (!rc)
        f->weights = f->file->table;
    return rc;
}

/* ---- one file ---- */

static bool begins(const struct weights *w, const char *with)
{
    for (int i = 0; i < w->n; i++)
        if (!strncmp(w->entry[i].name, with, strlen(with)))
            return true;
    return false;
}

/* Files that are near to a ControlNet's and are none. */
static int check_kind(const struct weights *w, struct err *e)
{
    const char *kind;

    if (weights_get(w, "lora_controlnet"))
        return err_set(e, E_FORMAT, "it is a Control-LoRA, which is not supported: take a ControlNet");
    if (weights_get(w, "difference"))
        return err_set(e, E_FORMAT, "it holds only the difference to a base, which is not supported: take a whole "
                       "ControlNet");
    if (begins(w, "control_model.") || begins(w, "input_hint_block.") || begins(w, "controlnet_cond_embedding."))
        return OK;
    kind = model_foreign(w);
    if (kind && !strncmp(kind, "something", 9))
        return err_set(e, E_FORMAT, "there is no ControlNet in it");
    return err_set(e, E_FORMAT, "there is no ControlNet in it; it seems to be %s", kind ? kind : "a base model");
}

static int open_single(struct controlnet_file *f, const char *path, const struct unet_config *base, struct err *e)
{
    struct checkpoint_layout layout;
    int rc = weights_file_open(&f->file, path, e);

    rc = rc ? rc : check_kind(&f->file->table, e);
    if (rc)
        return rc;
    f->weights = f->file->table;
    if (!begins(&f->weights, "controlnet_cond_embedding.")) {
        checkpoint_layout(&layout, &f->file->table);
        rc = weights_file_select(&f->weights, f->file, checkpoint_control_key, &layout, e);
    }
    return rc ? rc : shapes_control(&f->config, &f->weights, base, e);
}

int controlnet_file_open(struct controlnet_file **out, const char *path, const char *variant,
                         const struct unet_config *base, struct err *e)
{
    struct controlnet_file *f = arena_fault_now() ? NULL : calloc(1, sizeof *f);
    struct stat st;
    struct err mine;
    int rc;

    e = e ? e : &mine;
    if (!f)
        rc = err_set(e, E_NOMEM, "out of memory");
    else if (stat(path, &st))
        rc = err_set(e, E_IO, "%s", strerror(errno));
    else if (S_ISDIR(st.st_mode))
        rc = open_directory(f, path, variant, e);
    else
        rc = open_single(f, path, base, e);
    rc = rc ? rc : check(&f->config.unet, base, e);
    if (rc) {
        controlnet_file_close(f);
        return err_in(e, "ControlNet '%s'", path);
    }
    *out = f;
    return OK;
}

void controlnet_file_close(struct controlnet_file *f)
{
    if (!f)
        return;
    weights_file_close(f->file);
    free(f);
}
