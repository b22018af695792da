/* tests/golden_tensor.h: goldens as tensors: PyTorch's (B,C,H,W) as (B,H,W,C), other shapes as they are. n_input > 1:
 * in the golden rows of a pair's inputs alternate within each half of guidance, in a tensor those of an input lie
 * together.
 *
 *     x = golden_tensor_new(golden_get(golden, "unet.x"), 1, BF16, &mem, &dev);
 *     if (golden_tensor_off(y, golden_get(golden, "unet.y"), 1, &dev) > 2e-5) ...                                  */
#ifndef UNICON_TESTS_GOLDEN_TENSOR_H
#define UNICON_TESTS_GOLDEN_TENSOR_H

#include "core/layer.h"
#include "tests/golden.h"

/* In mem, which is on dev; exits and says why if there is no room. */
struct tensor *golden_tensor_new(const struct golden_tensor *g, int n_input, enum dtype type, struct model_memory *mem,
                                 struct device *dev);

/* ||got - g|| / ||g||; infinity, with a note, for NULL or another size. dev: where got is; NULL: on the host. */
double golden_tensor_off(const struct tensor *got, const struct golden_tensor *g, int n_input, struct device *dev);

#endif
