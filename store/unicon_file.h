/* store/unicon_file.h: UniCon checkpoints on disk, read and written: a directory with xy_lora/, yx_lora/ and, for some,
 * y_lora/, each holding pytorch_lora_weights.safetensors, and model.pth or model.safetensors with the projections.
 *
 *     struct unicon_file *f;
 *     if (unicon_file_open(&f, "unicon/depth", NULL, e)) ...       f->weights for joint_new, f->name, f->trigger
 *     unicon_file_close(f);
 *
 * Accepted: names with or without "unet.", .lora.down/.lora.up, .lora_A/.lora_B(.adapter), .processor. infix, conv1n or
 * post1n.<model>; F32, F16, BF16; parameters or plain tensors; no y_lora. Where both are there model.pth is read, as
 * the official code does; what it holds of LoRAs and optimizers is passed over. Without a configuration the name is the
 * directory's, the trigger follows from it where it is a published one (depth, edge, pose, id, appearance), and the
 * kind of projection follows from the sizes.
 *
 * Checked, E_FORMAT if not: every block is complete; down and up have one rank, and all pairs of an adapter the same
 * one, for files say no alpha and the scale would be anybody's guess (two adapters may have different ranks); xy and yx
 * have the same blocks, y has them too, with the same widths; projections are all (C,C) or all (2C,2C), and each of the
 * three parts of the UNet has them in all of its blocks or in none. */
#ifndef UNICON_STORE_UNICON_FILE_H
#define UNICON_STORE_UNICON_FILE_H

#include "core/joint.h"
#include "store/weights_file.h"

enum { UNICON_MAX_NAME = 64, UNICON_MAX_TRIGGER = 256, UNICON_MAX_PATH = 4096 };

struct unicon_file {
    char name[UNICON_MAX_NAME], trigger[UNICON_MAX_TRIGGER];
    struct joint_weights weights;           /* points at the tables below */
    struct weights xy, yx, y, post;
    struct weights_file *file[4];
    char *path;
};

/* path: the directory, or a model configuration whose checkpoint_path leads to it from where that file is, else from
 * the current directory, as the published ones do. config: a configuration for a directory, or NULL for its own
 * unicon.json if it has one. */
int unicon_file_open(struct unicon_file **out, const char *path, const char *config, struct err *e);
void unicon_file_close(struct unicon_file *f);

/* Write a checkpoint in the published layout into `directory` (made if missing): tensors as in joint_weights, F32, and
 * a configuration, unicon.json. `pth`: projections as model.pth (what the official code reads), else as
 * model.safetensors. Each file appears whole, the projections last: without them the directory is no checkpoint.
 * Refused with E_ARG: a scale other than 1, which these files cannot say; a directory with files of another checkpoint
 * that would be read with these. name, trigger: NULL for those that follow from the directory's name. */
int unicon_file_write(const char *directory, const struct joint_weights *w, const char *name, const char *trigger,
                      bool pth, struct err *e);

/* A model configuration, as JSON. */
struct unicon_config {
    char name[UNICON_MAX_NAME], trigger[UNICON_MAX_TRIGGER], path[UNICON_MAX_PATH];     /* path: "" if none is said */
    bool has_trigger;
    int kind;                               /* an enum joint_post; -1: not said */
    int y;                                  /* 1: has a y_lora, 0: has none, -1: not said */
};

int unicon_config_parse(struct unicon_config *out, const char *text, size_t n, struct err *e);

#endif
