/* jobs/sample_control.c: the part of a sample job that is about ControlNets: files, names, pictures, when they act. */
#include "jobs/sample_inputs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- files and names ---- */

static bool ends(const char *name, size_t n, const char *with)
{
    return n > strlen(with) && !memcmp(name + n - strlen(with), with, strlen(with));
}

/* The name that was given, else the last part of the path without its ending. */
static int name_it(struct sample_control *c, const char *given, int n_given, const char *path, struct err *e)
{
    static const char *const ending[] = { ".safetensors", ".pth", ".ckpt", ".bin", ".pt" };
    char *real = n_given ? NULL : realpath(path, NULL);
    const char *all = real ? real : path, *slash = strrchr(all, '/'), *name = slash && slash[1] ? slash + 1 : all;
    size_t n = strlen(name);
    int rc = OK;

    for (size_t i = 0; i < sizeof ending / sizeof *ending; i++)
        if (ends(name, n, ending[i])) {
            n -= strlen(ending[i]);
            break;
        }
    if (n_given) {
        name = given;
        n = (size_t)n_given;
    }
    if (n >= sizeof c->name)
        rc = err_set(e, E_ARG, "--controlnet: the name '%.40s..' is too long: say a shorter one, NAME=PATH", name);
    else
        snprintf(c->name, sizeof c->name, "%.*s", (int)n, name);
    free(real);
    return rc;
}

static int open_one(struct sample_inputs *in, const struct spec *spec, const char *text, struct err *e)
{
    struct sample_control *c = &in->control[in->n_control];
    char path[4096];
    int n, rc;
    const char *rest = sample_path_of(text, &n);

    rc = sample_split_weight("controlnet", rest, path, sizeof path, &c->weight, e);
    if (rc)
        return rc;
    rc = controlnet_file_open(&c->file, path, spec_text(spec, "variant"), &in->base->unet, e);
    if (rc)
        return err_in(e, "--controlnet");
    rc = name_it(c, text, n, path, e);
    if (!rc && sample_whose(in, c->name, strlen(c->name)))
        rc = err_set(e, E_ARG, "--controlnet: two checkpoints are named '%s': say NAME=PATH for one", c->name);
    in->n_control++;
    return rc;
}

int sample_open_controls(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    const int n = spec_count(spec, "controlnet");
    int rc = OK;

    if (n > PIPELINE_MAX_CONTROL)
        return err_set(e, E_ARG, "--controlnet: %d of them; at most %d at once", n, PIPELINE_MAX_CONTROL);
    if (!n && spec_is_set(spec, "control-range"))
        return err_set(e, E_ARG, "--control-range is about ControlNets: say which, --controlnet PATH");
    for (int i = 0; i < n && !rc; i++)
        rc = open_one(in, spec, spec_item(spec, "controlnet", i), e);
    return rc;
}

void sample_close_controls(struct sample_inputs *in)
{
    for (int i = 0; i < PIPELINE_MAX_CONTROL; i++)
        controlnet_file_close(in->control[i].file);
}

/* ---- pictures ---- */

/* (H,W,3) in [0,1], resized by Lanczos as the reference pipelines do with ControlNets' pictures. */
static int load(struct sample_inputs *in, const struct spec *spec, struct sample_control *c, const char *path,
                struct err *e)
{
    const int64_t n = in->request.height * in->request.width * 3;
    struct image fit = { 0 }, f32 = { 0 };
    int rc = sample_load_picture(&fit, NULL, in, spec, "y", path, FILTER_LANCZOS, e);

    rc = rc ? rc : image_convert(&f32, &fit, 3, PIXEL_F32, e);
    if (!rc && !(c->picture = malloc(sizeof *c->picture * (size_t)n)))
        rc = err_set(e, E_NOMEM, "out of memory for a picture of %" PRId64 " x %" PRId64, in->request.width,
                     in->request.height);
    if (!rc)
        memcpy(c->picture, f32.px, sizeof *c->picture * (size_t)n);
    image_free(&f32);
    image_free(&fit);
    return rc;
}

static int set_range(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    const char *text = spec_text(spec, "control-range");
    double *from = &in->request.control_from, *to = &in->request.control_to;

    if (!sample_two_numbers(text, from, to) || !(*from >= 0 && *from < *to && *to <= 1))
        return err_set(e, E_ARG, "--control-range '%.60s': want two numbers from 0 to 1, the smaller one first, as "
                       "0,0.5", text);
    return OK;
}

int sample_make_controls(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    struct pipeline_request *q = &in->request;
    int rc = in->n_control ? set_range(in, spec, e) : OK;

    if (!rc && in->n_control && (in->n_unicon ? in->held[0] : !(q->x_noise > 0)))
        return err_set(e, E_ARG, "--controlnet: x has no noise and stays as it is, so a ControlNet does nothing: give "
                       "x noise");
    for (int i = 0; i < in->n_control && !rc; i++) {
        struct sample_control *c = &in->control[i];
        const char *path;

        rc = sample_value_of(&path, in, spec, "y", in->n_unicon + 1 + i, e);
        if (!rc && !path)
            rc = err_set(e, E_ARG, "--controlnet: '%s' has no picture to follow: say --y %s%sIMAGE", c->name,
                         in->n_unicon + in->n_control > 1 ? c->name : "",
                         in->n_unicon + in->n_control > 1 ? "=" : "");
        rc = rc || c->picture ? rc : load(in, spec, c, path, e);
        q->control[q->n_control++] = (struct pipeline_control){ &c->file->config, &c->file->weights, c->picture,
                                                                (float)c->weight };
    }
    return rc;
}
