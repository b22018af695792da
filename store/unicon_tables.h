/* store/unicon_tables.h: the tensors of a UniCon checkpoint: from the names in files to those of core/joint.h, and
 * whether they are complete and fit each other. Internal to store/unicon_file.c.
 *
 *     struct unicon_picker k = { .part = UNICON_XY };
 *     rc = weights_file_select(&table, file, unicon_pick_lora, &k, e);
 *     rc = rc ? rc : unicon_picked(&k, e);                                                                  */
#ifndef UNICON_STORE_UNICON_TABLES_H
#define UNICON_STORE_UNICON_TABLES_H

#include "core/joint.h"
#include "store/weights_file.h"

enum { UNICON_XY, UNICON_YX, UNICON_Y, UNICON_POST };

extern const char *const unicon_folder[3];      /* of the adapters */
extern const char *const unicon_kind[3];        /* by enum joint_post, NULL at the end */

/* What weights_file_select is given, and what it found. */
struct unicon_picker {
    int part;
    const char *model;          /* projections: the model, if the file says one */
    const char *unknown;        /* the first name that has no business here */
    bool two_models;
};

/* What peft 0.10 saves as the adapter y_lora is everything with "y_lora" in its name: of training's files y_lora holds
 * "B.attn1n.to_q.lora.down.xy_lora.weight" and so on too. The official loader makes nothing of them; they are passed
 * over. */
bool unicon_pick_lora(const char *name, char *out, size_t size, void *ctx);
/* As the official loader does: what has "lora" in its name is a copy of the adapters, and passed over. */
bool unicon_pick_post(const char *name, char *out, size_t size, void *ctx);
int unicon_picked(const struct unicon_picker *k, struct err *e);        /* E_FORMAT if there was an unknown one */

/* All that store/unicon_file.h says is checked. *kind: the one that it has to be, or -1; then the one that it is. */
int unicon_check(int *kind, const struct joint_weights *w, struct err *e);

#endif
