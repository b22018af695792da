/* store/torch_save.h: files of torch.save (.pth) written: a dict of names and tensors, as torch.load of 1.6 and later
 * reads it, with weights_only too.
 *
 *     struct safetensors_item item[] = { { "conv1n.weight", STORED_F32, 2, { 320, 320 }, data } };
 *     if (torch_save("model.pth", item, 1, e)) ...                                                          */
#ifndef UNICON_STORE_TORCH_SAVE_H
#define UNICON_STORE_TORCH_SAVE_H

#include "store/safetensors.h"

/* Each tensor is a storage of its own, stored as it is, its bytes at a multiple of 64 in the file. F32, F16, BF16;
 * E_ARG for other types, names that are no printable UTF-8 and names that are there twice. Written aside and
 * renamed. */
int torch_save(const char *path, const struct safetensors_item *item, int n, struct err *e);

/* The same with 64-bit fields for every size and offset from `narrow` on, for tests: torch_save has 0xFFFFFFFF, the
 * least that needs them. (torch's own reader refuses 64-bit offsets in a file that is smaller than 4 GiB.) */
int torch_save_narrow(const char *path, const struct safetensors_item *item, int n, uint64_t narrow, struct err *e);

#endif
