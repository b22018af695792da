/* tests/t_cuda_elem.c: element by element, on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include <stdio.h>

#include "core/tensor.h"

static void fill(void)
{
    for (int t = 0; t < N_DTYPE; t++)
        for (int64_t n = 1; n < 5000; n = n * 3 + 1) {
            struct mirror y = mirror_new((enum dtype)t, n);
            bool ok = kit_cpu->fill(kit_cpu_ctx(), y.f, F32, n, 2.5f) == K_OK;

            CUDA_TWICE(&y, ok &= kit_cuda->fill(kit_cuda_ctx(), y.dev, y.type, n, 2.5f) == K_OK);
            tap_ok(mirror_near(&y, kit_near[t], "fill") && ok, "fill %s %d", dtype_name(y.type), (int)n);
            cuda_kit_release();
        }
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        fill();
    }
    return cuda_kit_end();
}
