/* tests/tiny.h: two tiny base models, sd1 and sd2, sd1b, which is sd1 with other weights, and two ControlNets for sd1,
 * parts "control" and "control2". Weights are drawn from their names (tests/reference/tiny.py has the configurations,
 * tests/reference/tiny.txt the names and sizes).
 *
 *     struct tiny *m = tiny_open("sd1", "unet");          a table of weights in memory, file order (OIHW)
 *     unet_new(&u, &config, &layers_over(m->table), &e);
 *     tiny_close(m);                                                                                      */
#ifndef UNICON_TESTS_TINY_H
#define UNICON_TESTS_TINY_H

#include "core/model/clip_text.h"
#include "core/model/controlnet.h"
#include "core/model/unet.h"
#include "core/model/vae.h"

struct tiny {
    struct weights table;
    float **values;
    struct weights_entry *file_order;   /* (n), as tiny.txt lists them; table is sorted */
    char **original;                    /* (n), names in a checkpoint of the original layout, in that order */
    int n;
};

struct tiny *tiny_open(const char *model, const char *part);    /* says why and exits if not */
void tiny_close(struct tiny *m);

struct unet_config tiny_unet_config(const char *model);
struct controlnet_config tiny_control_config(void);
struct vae_config tiny_vae_config(const char *model);
struct clip_text_config tiny_text_config(const char *model);

/* The model as a diffusers directory, which is made if it is not there, and (sd1) as one file of the original
 * layout, a pickle if the path ends in .ckpt.
 * Nonzero on failure. Both read tests/reference and store/builtin: run from the top of the sources. */
int tiny_write(const char *model, const char *directory);
int tiny_write_single(const char *model, const char *path);

/* A ControlNet as diffusers writes it, and as one file (a pickle if it ends in .ckpt or .pth) with diffusers' names or
 * those of the original layout, with the UNet of a base beside it or without. */
int tiny_write_control(const char *part, const char *directory);
int tiny_write_control_single(const char *part, const char *path, bool original, bool with_base);

#endif
