/* tests/fuzz/f_tiff.c: any bytes as a TIFF file: pixels, orientation and spec, or one sentence. */
#include "tests/fuzz/image_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return image_target(&image_tiff, data, size);
}
