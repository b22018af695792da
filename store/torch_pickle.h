/* store/torch_pickle.h: files of torch.save (.pt .pth .bin .ckpt): a zip of a pickle and raw storages, or the older
 * plain form. The unpickler knows tensors, parameters, dicts, lists, tuples, strings and numbers; any other class that
 * the pickle names becomes an empty object that holds nothing and runs nothing.
 *
 *     if (torch_pickle_parse(&table, meta, m.base, m.size, e)) ...        entries point into the bytes      */
#ifndef UNICON_STORE_TORCH_PICKLE_H
#define UNICON_STORE_TORCH_PICKLE_H

#include <stdbool.h>
#include "core/arena.h"
#include "core/weights.h"

bool torch_pickle_looks(const unsigned char *bytes, size_t size);

/* Every tensor that can be reached through dicts from the top, named by the keys on the way: a dict of tensors gives
 * its keys; "state_dict" at the top is left out of the names ("state_dict.a.b" is "a.b"); other nesting is joined by
 * '.'. Values that are no tensors are passed over. Checked: the zip's directory and that entries are stored, not
 * compressed, and inside the file; the pickle's stack, memo, sizes, nesting (cycles are E_FORMAT), storage sizes
 * against the bytes, offsets and strides against the storage. */
int torch_pickle_parse(struct weights *out, struct arena *meta, const unsigned char *bytes, size_t size, struct err *e);

#endif
