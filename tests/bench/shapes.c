/* tests/bench/shapes.c: the products and attentions of Stable Diffusion 1.5, 512 x 512, one image. */
#include "tests/bench/bench.h"

#include <stdio.h>

const struct bench_shape bench_shapes[] = {
    { "conv_in", 64, 4, 320, 3, 1, 1, 0, 1 },
    { "resnet", 64, 320, 320, 3, 1, 1, 0, 7 },
    { "resnet, joined", 64, 640, 320, 3, 1, 1, 0, 2 },
    { "resnet, joined", 64, 960, 320, 3, 1, 1, 0, 1 },
    { "up-sampling", 64, 640, 640, 3, 1, 2, 0, 1 },
    { "conv_out", 64, 320, 4, 3, 1, 1, 0, 1 },
    { "down-sampling", 32, 320, 320, 3, 2, 1, 0, 1 },
    { "resnet", 32, 320, 640, 3, 1, 1, 0, 1 },
    { "resnet", 32, 640, 640, 3, 1, 1, 0, 6 },
    { "resnet, joined", 32, 960, 640, 3, 1, 1, 0, 1 },
    { "resnet, joined", 32, 1280, 640, 3, 1, 1, 0, 1 },
    { "resnet, joined", 32, 1920, 640, 3, 1, 1, 0, 1 },
    { "up-sampling", 32, 1280, 1280, 3, 1, 2, 0, 1 },
    { "down-sampling", 16, 640, 640, 3, 2, 1, 0, 1 },
    { "resnet", 16, 640, 1280, 3, 1, 1, 0, 1 },
    { "resnet", 16, 1280, 1280, 3, 1, 1, 0, 6 },
    { "resnet, joined", 16, 1920, 1280, 3, 1, 1, 0, 1 },
    { "resnet, joined", 16, 2560, 1280, 3, 1, 1, 0, 2 },
    { "up-sampling", 16, 1280, 1280, 3, 1, 2, 0, 1 },
    { "down-sampling", 8, 1280, 1280, 3, 2, 1, 0, 1 },
    { "resnet", 8, 1280, 1280, 3, 1, 1, 0, 11 },
    { "resnet, joined", 8, 2560, 1280, 3, 1, 1, 0, 3 },
    { "q k v o, in out", 0, 320, 320, 1, 1, 1, 4096, 40 },
    { "GEGLU", 0, 320, 2560, 1, 1, 1, 4096, 5 },
    { "feed-forward out", 0, 1280, 320, 1, 1, 1, 4096, 5 },
    { "shortcut", 0, 640, 320, 1, 1, 1, 4096, 2 },
    { "shortcut", 0, 960, 320, 1, 1, 1, 4096, 1 },
    { "q k v o, in out", 0, 640, 640, 1, 1, 1, 1024, 40 },
    { "GEGLU", 0, 640, 5120, 1, 1, 1, 1024, 5 },
    { "feed-forward out", 0, 2560, 640, 1, 1, 1, 1024, 5 },
    { "shortcut", 0, 320, 640, 1, 1, 1, 1024, 1 },
    { "shortcut", 0, 960, 640, 1, 1, 1, 1024, 1 },
    { "shortcut", 0, 1280, 640, 1, 1, 1, 1024, 1 },
    { "shortcut", 0, 1920, 640, 1, 1, 1, 1024, 1 },
    { "q k v o, in out", 0, 1280, 1280, 1, 1, 1, 256, 40 },
    { "GEGLU", 0, 1280, 10240, 1, 1, 1, 256, 5 },
    { "feed-forward out", 0, 5120, 1280, 1, 1, 1, 256, 5 },
    { "shortcut", 0, 640, 1280, 1, 1, 1, 256, 1 },
    { "shortcut", 0, 1920, 1280, 1, 1, 1, 256, 1 },
    { "shortcut", 0, 2560, 1280, 1, 1, 1, 256, 2 },
    { "q k v o, in out", 0, 1280, 1280, 1, 1, 1, 64, 8 },
    { "GEGLU", 0, 1280, 10240, 1, 1, 1, 64, 1 },
    { "feed-forward out", 0, 5120, 1280, 1, 1, 1, 64, 1 },
    { "shortcut", 0, 2560, 1280, 1, 1, 1, 64, 3 },
    { "text k v", 0, 768, 320, 1, 1, 1, 77, 10 },
    { "text k v", 0, 768, 640, 1, 1, 1, 77, 10 },
    { "text k v", 0, 768, 1280, 1, 1, 1, 77, 12 },
};
const int bench_n_shapes = sizeof bench_shapes / sizeof *bench_shapes;

const struct bench_attention bench_attentions[] = {
    { "self, 64x64", 4096, 4096, 8, 40, false }, { "self, 32x32", 1024, 1024, 8, 80, false },
    { "self, 16x16", 256, 256, 8, 160, false },  { "self, 8x8", 64, 64, 8, 160, false },
    { "text, 64x64", 4096, 77, 8, 40, false },   { "text, 32x32", 1024, 77, 8, 80, false },
    { "text, 16x16", 256, 77, 8, 160, false },   { "VAE", 4096, 4096, 1, 512, false },
    { "text encoder", 77, 77, 12, 64, true },
};
const int bench_n_attentions = sizeof bench_attentions / sizeof *bench_attentions;

struct kgeom bench_geometry(const struct bench_shape *s)
{
    struct kgeom g = { .Ci = s->Ci, .Co = s->Co, .KH = s->KH, .KW = s->KH, .stride = s->stride, .up = s->up };

    g.pad_t = g.pad_l = s->KH / 2;
    g.Ho = s->side ? s->side : 1;
    g.Wo = s->side ? s->side : s->rows;
    g.H = s->side ? s->side * s->stride / s->up : 1;
    g.W = s->side ? s->side * s->stride / s->up : s->rows;
    return g;
}

struct kconv bench_product(const struct bench_shape *s, enum dtype t, int64_t B, bool dx, bool plain,
                           struct kpack *pack)
{
    static const enum kpack_kind kind[2][2] = { { K_PACK_FWD, K_PACK_DX }, { K_PACK_UP, K_PACK_UP_DX } };
    const bool glu = s->Co == 8 * s->Ci && !plain;
    struct kgeom g = bench_geometry(s);
    struct kconv c = { .dir = dx ? K_DX : K_FWD, .B = s->side ? B : 1, .n_part = 1, .alpha = 1, .y_type = t,
                       .act = glu ? K_ACT_GEGLU : K_ACT_NONE, .ldy = dx ? g.Ci : glu ? g.Co / 2 : g.Co };

    if (!s->side)
        g.W = g.Wo = B * s->rows;
    *pack = (struct kpack){ .kind = kind[g.up == 2][dx], .src = F32, .dst = t, .Co = g.Co, .Ci = g.Ci, .KH = g.KH,
                            .KW = g.KW, .ci_total = g.Ci, .glu = glu };
    c.part[0] = (struct kpart){ .type = t, .ldx = dx ? g.Co : g.Ci, .pack_type = t, .pack_kind = pack->kind, .glu = glu,
                                .g = g };
    return c;
}

const char *bench_shape_text(const struct bench_shape *s, char *buf, size_t size)
{
    if (s->side)
        snprintf(buf, size, "%dx%d %d->%d, %dx%d%s", s->side, s->side, s->Ci, s->Co, s->KH, s->KH,
                 s->stride == 2 ? " /2" : s->up == 2 ? " x2" : "");
    else
        snprintf(buf, size, "%d rows %d->%d", s->rows, s->Ci, s->Co);
    return buf;
}
