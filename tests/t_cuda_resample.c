/* tests/t_cuda_resample.c: nearest and bilinear, on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include "core/tensor.h"

static const struct shape {
    int64_t B, H, W, C, Ho, Wo;
    bool big;
} shapes[] = {
    { 1, 1, 1, 1, 1, 1, false },      { 1, 1, 1, 3, 7, 5, false },       { 2, 7, 5, 3, 1, 1, false },
    { 2, 8, 8, 16, 16, 16, false },   { 1, 9, 13, 8, 17, 31, false },    { 3, 31, 17, 7, 13, 9, false },
    { 1, 64, 48, 4, 23, 100, false }, { 2, 5, 6, 40, 11, 3, false },     { 1, 3, 299, 1, 2, 301, false },
    { 1, 61, 67, 3, 61, 67, false },  { 2, 64, 64, 320, 128, 128, true }, { 1, 1080, 1917, 3, 512, 512, true },
};

/* What a nearest neighbour is has no tolerance, and in f32 bilinear rounds as the CPU does. */
static void resample(const struct shape *s, enum dtype type, int mode)
{
    static const char *const name[] = { "nearest", "bilinear", "bilinear, corners aligned" };
    struct mirror x = mirror_random(type, s->B * s->H * s->W * s->C, 1, 1.0);
    struct mirror y = mirror_new(type, s->B * s->Ho * s->Wo * s->C);
    const double near = mode == 0 ? 0 : type == F32 ? 1e-7 : kit_near[type];
    struct kctx *k = kit_cuda_ctx(), *h = kit_cpu_ctx();
    bool ok;

    if (mode == 0) {
        ok = kit_cpu->nearest(h, y.f, x.f, F32, s->B, s->H, s->W, s->C, s->Ho, s->Wo) == K_OK;
        CUDA_TWICE(&y, ok &= kit_cuda->nearest(k, y.dev, x.dev, type, s->B, s->H, s->W, s->C, s->Ho, s->Wo) == K_OK);
    } else {
        ok = kit_cpu->bilinear(h, y.f, x.f, F32, s->B, s->H, s->W, s->C, s->Ho, s->Wo, mode == 2) == K_OK;
        CUDA_TWICE(&y, ok &= kit_cuda->bilinear(k, y.dev, x.dev, type, s->B, s->H, s->W, s->C, s->Ho, s->Wo,
                                                mode == 2) == K_OK);
    }
    tap_ok(mirror_near(&y, near, "%s", name[mode]) && ok, "%s %s %dx%dx%dx%d to %dx%d%s", name[mode], dtype_name(type),
           (int)s->B, (int)s->H, (int)s->W, (int)s->C, (int)s->Ho, (int)s->Wo, cuda_kit_odd ? ", odd addresses" : "");
    cuda_kit_release();
}

static void refused(void)
{
    struct kctx *k = kit_cuda_ctx();
    struct mirror x = mirror_random(F32, 64, 1, 1);
    int64_t size[6] = { 1, 2, 2, 4, 3, 3 };
    bool ok = true;

    for (int i = 0; i < 6; i++)
        for (int bad = -1; bad <= 0; bad++) {
            const int64_t was = size[i];

            size[i] = bad;
            for (int mode = 0; mode < 3; mode++)
                ok &= (mode ? kit_cuda->bilinear(k, x.dev, x.dev, F32, size[0], size[1], size[2], size[3], size[4],
                                                 size[5], mode == 2)
                            : kit_cuda->nearest(k, x.dev, x.dev, F32, size[0], size[1], size[2], size[3], size[4],
                                                size[5])) == (bad ? K_ARG : K_OK);
            size[i] = was;
        }
    ok &= kit_cuda->nearest(k, x.dev, x.dev, N_DTYPE, 1, 2, 2, 4, 3, 3) == K_ARG
        && kit_cuda->bilinear(k, x.dev, x.dev, N_DTYPE, 1, 2, 2, 4, 3, 3, false) == K_ARG;
    tap_ok(mirror_near(&x, 0, "untouched") && ok, "what is refused, and what is nothing to do");
    cuda_kit_release();
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        for (int t = 0; t < N_DTYPE; t++)
            for (size_t i = 0; i < LEN(shapes); i++)
                for (int mode = 0; mode < 3; mode++)
                    if (!shapes[i].big || (!odd && !cuda_kit_small()))
                        resample(&shapes[i], (enum dtype)t, mode);
    }
    cuda_kit_odd = false;
    refused();
    return cuda_kit_end();
}
