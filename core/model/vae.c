/* core/model/vae.c: AutoencoderKL. Sizes of SD 1.5 at 512 px, (H,W,C):
 *
 *   encoder                                         decoder
 *   conv_in (512,512,  3) -> (512,512,128)          conv_in ( 64, 64,  4) -> ( 64, 64,512)
 *   down 0  (512,512,128) -> (256,256,128) 2 x V    mid     ( 64, 64,512): V, attention of one head, V
 *   down 1  (256,256,128) -> (128,128,256) 2 x V    up 0    ( 64, 64,512) -> (128,128,512) 3 x V, double
 *   down 2  (128,128,256) -> ( 64, 64,512) 2 x V    up 1    (128,128,512) -> (256,256,512) 3 x V, double
 *   down 3  ( 64, 64,512) -> ( 64, 64,512) 2 x V    up 2    (256,256,512) -> (512,512,256) 3 x V, double
 *   mid     ( 64, 64,512): V, attention, V          up 3    (512,512,256) -> (512,512,128) 3 x V
 *   norm, SiLU, conv_out -> 8, quant_conv -> 8      norm, SiLU, conv_out -> (512,512,3)
 *
 * V is a residual block without a time. Halving pads one row below and one column right, not all around: with padding
 * all around, latents come out shifted by half a pixel.
 *
 * Without gradients images go one by one, and norm and convolution in bands: the statistics are those of the whole map,
 * so a band gets the bits of the whole, but the normed map is never there. */
#include "core/model/vae.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_LAYERS = 4, BAND_BYTES = 16 << 20, BAND_LEAST = 8 };

static const float norm_eps = 1e-6f;
static const struct op_conv_geom same = { 1, 1, 1, 1, 1 }, halve = { 2, 0, 0, 1, 1 };

struct block {                                      /* V(i,o) */
    struct norm norm1, norm2;
    struct weight conv1, conv2, conv_shortcut;
    bool has_shortcut;
};

struct middle {
    struct block resnet[2];
    struct norm group_norm;
    struct weight to_q, to_k, to_v, to_out;
};

struct stage {
    struct block resnet[MAX_LAYERS + 1];
    struct weight sampler;
    bool has_sampler;
};

struct coder {
    struct weight conv_in, conv_out, quant_conv;    /* quant_conv: post_quant_conv in the decoder */
    struct norm conv_norm_out;
    struct stage stage[VAE_MAX_STAGE];
    struct middle mid;
    int n_layer;                                    /* per stage */
};

struct vae {
    struct vae_config config;
    enum vae_half half;
    enum dtype type;
    struct coder encoder, decoder;
};

struct vae_config vae_config_sd15(void)
{
    return (struct vae_config){
        .in_channels = 3, .out_channels = 3, .latent_channels = 4, .n_stage = 4, .width = { 128, 256, 512, 512 },
        .layers_per_block = 2, .norm_num_groups = 32, .scaling_factor = 0.18215f, .sample_size = 512,
    };
}

int64_t vae_factor(const struct vae_config *c) { return (int64_t)1 << (c->n_stage - 1); }

const struct vae_config *vae_config(const struct vae *v) { return &v->config; }

/* ---- weights by name ---- */

static void bind_block(struct layers *l, struct block *b, int64_t Ci, int64_t Co, const char *name)
{
    b->has_shortcut = Ci != Co;
    layer_norm(l, &b->norm1, Ci, "%s.norm1", name);
    layer_conv(l, &b->conv1, Co, 3, Ci, true, "%s.conv1", name);
    layer_norm(l, &b->norm2, Co, "%s.norm2", name);
    layer_conv(l, &b->conv2, Co, 3, Co, true, "%s.conv2", name);
    if (b->has_shortcut)
        layer_conv(l, &b->conv_shortcut, Co, 1, Ci, true, "%s.conv_shortcut", name);
}

static void bind_middle(struct layers *l, struct middle *m, int64_t C, const char *name)
{
    char part[64];

    for (int i = 0; i < 2; i++) {
        snprintf(part, sizeof part, "%s.mid_block.resnets.%d", name, i);
        bind_block(l, &m->resnet[i], C, C, part);
    }
    layer_norm(l, &m->group_norm, C, "%s.mid_block.attentions.0.group_norm", name);
    layer_linear(l, &m->to_q, C, C, true, "%s.mid_block.attentions.0.to_q", name);
    layer_linear(l, &m->to_k, C, C, true, "%s.mid_block.attentions.0.to_k", name);
    layer_linear(l, &m->to_v, C, C, true, "%s.mid_block.attentions.0.to_v", name);
    layer_linear(l, &m->to_out, C, C, true, "%s.mid_block.attentions.0.to_out.0", name);
}

/* The stages of a coder; width[s] channels each, Ci into the first. */
static void bind_stages(struct layers *l, struct coder *c, int n_stage, const int64_t *width, int64_t Ci,
                        const char *name, const char *blocks, const char *sampler)
{
    for (int s = 0; s < n_stage; s++) {
        char part[64];

        for (int i = 0; i < c->n_layer; i++) {
            snprintf(part, sizeof part, "%s.%s.%d.resnets.%d", name, blocks, s, i);
            bind_block(l, &c->stage[s].resnet[i], i ? width[s] : Ci, width[s], part);
        }
        Ci = width[s];
        c->stage[s].has_sampler = s + 1 < n_stage;
        if (c->stage[s].has_sampler)
            layer_conv(l, &c->stage[s].sampler, Ci, 3, Ci, true, "%s.%s.%d.%s.0.conv", name, blocks, s, sampler);
    }
}

static void bind_encoder(struct layers *l, struct vae *v)
{
    const struct vae_config *c = &v->config;
    const int64_t top = c->width[c->n_stage - 1], L = c->latent_channels;
    struct coder *k = &v->encoder;

    k->n_layer = c->layers_per_block;
    layer_conv(l, &k->conv_in, c->width[0], 3, c->in_channels, true, "encoder.conv_in");
    bind_stages(l, k, c->n_stage, c->width, c->width[0], "encoder", "down_blocks", "downsamplers");
    bind_middle(l, &k->mid, top, "encoder");
    layer_norm(l, &k->conv_norm_out, top, "encoder.conv_norm_out");
    layer_conv(l, &k->conv_out, 2 * L, 3, top, true, "encoder.conv_out");
    layer_linear(l, &k->quant_conv, 2 * L, 2 * L, true, "quant_conv");
}

static void bind_decoder(struct layers *l, struct vae *v)
{
    const struct vae_config *c = &v->config;
    const int64_t top = c->width[c->n_stage - 1], L = c->latent_channels;
    int64_t width[VAE_MAX_STAGE];
    struct coder *k = &v->decoder;

    for (int s = 0; s < c->n_stage; s++)
        width[s] = c->width[c->n_stage - 1 - s];
    k->n_layer = c->layers_per_block + 1;
    layer_linear(l, &k->quant_conv, L, L, true, "post_quant_conv");
    layer_conv(l, &k->conv_in, top, 3, L, true, "decoder.conv_in");
    bind_middle(l, &k->mid, top, "decoder");
    bind_stages(l, k, c->n_stage, width, top, "decoder", "up_blocks", "upsamplers");
    layer_norm(l, &k->conv_norm_out, c->width[0], "decoder.conv_norm_out");
    layer_conv(l, &k->conv_out, c->out_channels, 3, c->width[0], true, "decoder.conv_out");
}

/* One half may be loaded without the other. */
static bool is_encoders(const char *name) { return !strncmp(name, "encoder.", 8) || !strncmp(name, "quant_conv.", 11); }

static bool is_decoders(const char *name)
{
    return !strncmp(name, "decoder.", 8) || !strncmp(name, "post_quant_conv.", 16);
}

int vae_new(struct vae **out, const struct vae_config *c, enum vae_half half, struct layers *l, struct err *e)
{
    bool (*const others)(const char *) = half == VAE_ENCODER ? is_decoders : half == VAE_DECODER ? is_encoders : NULL;
    struct vae *v;
    int rc;

    for (int i = 0; i < c->n_stage && i < VAE_MAX_STAGE; i++)
        if (c->norm_num_groups < 1 || c->width[i] < 1 || c->width[i] > 1 << 16 || c->width[i] % c->norm_num_groups)
            return err_set(e, E_FORMAT, "stage %d of the VAE has %" PRId64 " channels, which %" PRId64
                           " groups do not divide", i, c->width[i], c->norm_num_groups);
    if (c->n_stage < 1 || c->n_stage > VAE_MAX_STAGE || c->layers_per_block < 1 || c->layers_per_block > MAX_LAYERS
        || c->in_channels < 1 || c->out_channels < 1 || c->latent_channels < 1 || !(c->scaling_factor > 0))
        return err_set(e, E_FORMAT, "the VAE's configuration has %d stages of %d layers and %" PRId64
                       " latent channels: that cannot be built", c->n_stage, c->layers_per_block, c->latent_channels);
    v = arena_push_zero(&l->mem->meta, sizeof *v, e);
    if (!v)
        return e->code;
    v->config = *c;
    v->half = half;
    v->type = l->type;
    if (half & VAE_ENCODER)
        bind_encoder(l, v);
    if (half & VAE_DECODER)
        bind_decoder(l, v);
    rc = layers_done(l, "VAE", others, e);
    if (!rc)
        *out = v;
    return rc;
}

/* ---- norm, SiLU, convolution: whole, or in bands ---- */

static struct tensor *map_new(struct tape *t, const struct tensor *x, int64_t H, int64_t W, int64_t C, struct err *e)
{
    return tape_new(t, x->type, 4, (int64_t[]){ x->dim[0], H, W, C }, e);
}

/* Rows [first, first + n) of one image, sharing its memory. */
static struct tensor *rows_of(struct tape *t, const struct tensor *x, int64_t first, int64_t n, struct err *e)
{
    const int64_t row = x->dim[2] * x->dim[3] * (int64_t)dtype_bytes(x->type);

    return tensor_wrap(&t->mem->meta, (char *)x->data + first * row, x->type, 4,
                       (int64_t[]){ 1, n, x->dim[2], x->dim[3] }, e);
}

struct norm_conv {
    struct norm *norm;
    struct weight *conv;
    struct weight *shortcut;    /* 1x1 over `from`, summed in; or NULL */
    struct tensor *from;        /* what the shortcut reads, or, without one, what is added; NULL: nothing */
};

static struct tensor *whole(struct tape *t, const struct vae *v, struct tensor *x, const struct norm_conv *n,
                            struct tensor *y, struct err *e)
{
    const struct op_shortcut shortcut = { n->shortcut, n->from, NULL };
    const struct op_epilogue add = { .residual = n->shortcut ? NULL : n->from };
    struct tensor *h = op_group_norm(t, x, n->norm->gamma, n->norm->beta, v->config.norm_num_groups, norm_eps, true, e);

    if (!h)
        return NULL;
    tape_into(t, y);
    return op_conv(t, h, NULL, n->conv, same, n->shortcut ? &shortcut : NULL, &add, e);
}

/* Rows [r0,r1) of y from rows [r0-1,r1+1) of x; the map's own edges are padded with zeros, as in the whole. */
static int band(struct tape *t, struct tensor *x, const struct norm_conv *n, const struct op_group_stats *stats,
                int64_t r0, int64_t r1, struct tensor *y, struct err *e)
{
    const int64_t first = r0 > 0 ? r0 - 1 : 0, last = r1 < x->dim[1] ? r1 + 1 : r1;
    const struct op_conv_geom g = { 1, first == r0, 1, last == r1, 1 };
    struct op_shortcut shortcut = { n->shortcut, NULL, NULL };
    struct op_epilogue add = { .residual = NULL };
    struct tensor *h = rows_of(t, x, first, last - first, e), *part = h ? rows_of(t, y, r0, r1 - r0, e) : NULL;
    struct tensor *from = part && n->from ? rows_of(t, n->from, r0, r1 - r0, e) : NULL;

    if (!part || (n->from && !from)
        || !(h = op_group_norm_rows(t, h, stats, 0, n->norm->gamma, n->norm->beta, true, e)))
        return e ? e->code : E_NOMEM;
    *(n->shortcut ? &shortcut.x : &add.residual) = from;
    tape_into(t, part);
    return op_conv(t, h, NULL, n->conv, g, n->shortcut ? &shortcut : NULL, &add, e) ? OK : e ? e->code : E_NOMEM;
}

/* y = conv(SiLU(norm(x))) + what n says. y may be n->from where that is added. */
static struct tensor *norm_conv(struct tape *t, const struct vae *v, struct tensor *x, const struct norm_conv *n,
                                struct tensor *y, struct err *e)
{
    const int64_t H = x->dim[1], row = x->dim[2] * x->dim[3] * (int64_t)dtype_bytes(x->type);
    const int64_t fit = BAND_BYTES / (row ? row : 1), rows = fit < BAND_LEAST ? BAND_LEAST : fit;
    struct tape_mark m = tape_mark(t);
    struct op_group_stats stats;

    if (t->recording || x->dim[0] != 1) {
        y = whole(t, v, x, n, y, e);
        tape_release(t, m);
        return y;
    }
    if (op_group_stats(t, &stats, x, v->config.norm_num_groups, norm_eps, e))
        return NULL;
    for (int64_t r = 0; r < H; r += rows) {
        const struct tape_mark each = tape_mark(t);

        if (band(t, x, n, &stats, r, r + rows < H ? r + rows : H, y, e))
            return NULL;
        tape_release(t, each);
    }
    tape_release(t, m);
    return y;
}

/* x (B,H,W,i) -> (B,H,W,o); in place of x where i = o and nothing is recorded */
static struct tensor *block(struct tape *t, const struct vae *v, struct block *b, struct tensor *x, struct err *e)
{
    const struct norm_conv first = { &b->norm1, &b->conv1, NULL, NULL };
    const struct norm_conv second = { &b->norm2, &b->conv2, b->has_shortcut ? &b->conv_shortcut : NULL, x };
    struct tensor *y = b->has_shortcut || t->recording ? map_new(t, x, x->dim[1], x->dim[2], b->conv2.Co, e) : x, *h;
    const struct tape_mark m = tape_mark(t);

    if (!y || !(h = map_new(t, x, x->dim[1], x->dim[2], b->conv1.Co, e))
        || !(h = norm_conv(t, v, x, &first, h, e)) || !(y = norm_conv(t, v, h, &second, y, e)))
        return NULL;
    tape_release(t, m);
    return y;
}

/* Every pixel attends to every other: one head as wide as the map. */
static struct tensor *attention(struct tape *t, const struct vae *v, struct middle *a, struct tensor *x, struct err *e)
{
    const int64_t tokens[] = { x->dim[0], x->dim[1] * x->dim[2], x->dim[3] };
    struct tensor *y = t->recording ? tape_like(t, x, e) : x, *h, *q, *k, *w;
    const struct op_epilogue add = { .residual = x };
    const struct tape_mark m = tape_mark(t);

    if (!y || !(h = op_group_norm(t, x, a->group_norm.gamma, a->group_norm.beta, v->config.norm_num_groups, norm_eps,
                                  false, e))
        || !(h = op_reshape(t, h, 3, tokens, e)) || !(q = op_linear(t, h, &a->to_q, NULL, 0, NULL, e))
        || !(k = op_linear(t, h, &a->to_k, NULL, 0, NULL, e)) || !(w = op_linear(t, h, &a->to_v, NULL, 0, NULL, e))
        || !(h = op_attention(t, q, k, w, 1, 0, false, e)) || !(h = op_reshape(t, h, 4, x->dim, e)))
        return NULL;
    tape_into(t, y);
    y = op_linear(t, h, &a->to_out, NULL, 0, &add, e);
    tape_release(t, m);
    return y;
}

static struct tensor *middle(struct tape *t, const struct vae *v, struct middle *m, struct tensor *x, struct err *e)
{
    return (x = block(t, v, &m->resnet[0], x, e)) && (x = attention(t, v, m, x, e)) ? block(t, v, &m->resnet[1], x, e)
                                                                                     : NULL;
}

static struct tensor *blocks(struct tape *t, const struct vae *v, const struct coder *c, struct stage *s,
                             struct tensor *x, struct err *e)
{
    for (int i = 0; i < c->n_layer && x; i++)
        x = block(t, v, &s->resnet[i], x, e);
    return x;
}

/* The stages of a coder, with the map halved or doubled from each to the next: only that result stays. */
static struct tensor *stages(struct tape *t, struct vae *v, struct coder *c, bool up, struct tensor *x, struct err *e)
{
    const int n = v->config.n_stage;

    for (int s = 0; s < n && x; s++) {
        struct stage *a = &c->stage[s];
        const int64_t H = up ? 2 * x->dim[1] : x->dim[1] / 2, W = up ? 2 * x->dim[2] : x->dim[2] / 2;
        struct tensor *y = a->has_sampler ? map_new(t, x, H, W, v->config.width[up ? n - 1 - s : s], e) : NULL;
        const struct tape_mark m = tape_mark(t);

        if ((a->has_sampler && !y) || !(x = blocks(t, v, c, a, x, e)))
            return NULL;
        if (!a->has_sampler)
            break;
        tape_into(t, y);
        x = up ? op_upsample_conv(t, x, &a->sampler, H, W, e) : op_conv(t, x, NULL, &a->sampler, halve, NULL, NULL, e);
        tape_release(t, m);
    }
    return x;
}

/* image (B,H,W,3) -> (B,h,w,2L) of the VAE's type */
static struct tensor *encode(struct tape *t, struct vae *v, struct tensor *image, struct err *e)
{
    struct coder *c = &v->encoder;
    const struct norm_conv last = { &c->conv_norm_out, &c->conv_out, NULL, NULL };
    struct tensor *x, *h;

    if (!(x = op_conv(t, image, NULL, &c->conv_in, same, NULL, NULL, e)) || !(x = stages(t, v, c, false, x, e))
        || !(x = middle(t, v, &c->mid, x, e)) || !(h = map_new(t, x, x->dim[1], x->dim[2], c->conv_out.Co, e))
        || !(h = norm_conv(t, v, x, &last, h, e)))
        return NULL;
    return op_linear(t, h, &c->quant_conv, NULL, 0, NULL, e);
}

/* z (B,h,w,L) of the VAE's type, not scaled -> (B,H,W,3) */
static struct tensor *decode(struct tape *t, struct vae *v, struct tensor *z, struct err *e)
{
    struct coder *c = &v->decoder;
    const struct norm_conv last = { &c->conv_norm_out, &c->conv_out, NULL, NULL };
    struct tensor *x, *y;

    if (!(x = op_linear(t, z, &c->quant_conv, NULL, 0, NULL, e))
        || !(x = op_conv(t, x, NULL, &c->conv_in, same, NULL, NULL, e)) || !(x = middle(t, v, &c->mid, x, e))
        || !(x = stages(t, v, c, true, x, e)) || !(y = map_new(t, x, x->dim[1], x->dim[2], c->conv_out.Co, e)))
        return NULL;
    return norm_conv(t, v, x, &last, y, e);
}

/* ---- what callers see ---- */

static struct tensor *image_of(struct tape *t, struct tensor *x, int64_t b, struct err *e)
{
    return op_rows(t, x, b, 1, e);
}

/* f over the images of x one by one, cast to f32 into y (B,..); with gradients all at once. */
static struct tensor *one_by_one(struct tape *t, struct vae *v, struct tensor *x, struct tensor *y,
                                 struct tensor *(*f)(struct tape *, struct vae *, struct tensor *, struct err *),
                                 struct err *e)
{
    if (t->recording)
        return (x = f(t, v, x, e)) ? op_cast(t, x, F32, e) : NULL;
    for (int64_t b = 0; b < x->dim[0]; b++) {
        const struct tape_mark m = tape_mark(t);
        struct tensor *h = image_of(t, x, b, e), *to = h ? image_of(t, y, b, e) : NULL;

        if (!to || !(h = f(t, v, h, e)))
            return NULL;
        tape_into(t, to);
        if (!op_cast(t, h, F32, e))
            return NULL;
        tape_release(t, m);
    }
    return y;
}

struct tensor *vae_encode(struct tape *t, struct vae *v, struct tensor *image, struct err *e)
{
    const int64_t f = vae_factor(&v->config), L = 2 * v->config.latent_channels;
    struct tensor *y;
    char have[96];

    if (!(v->half & VAE_ENCODER))
        return op_fail(e, E_BUG, "the VAE's encoder was not loaded");
    if (image->n_dim != 4 || image->dim[3] != v->config.in_channels || image->type != v->type || image->dim[1] % f
        || image->dim[2] % f || image->dim[1] < f || image->dim[2] < f)
        return op_fail(e, E_ARG, "VAE: the image is %s, want %s (B,H,W,%" PRId64 ") with sides that %" PRId64
                       " divides", tensor_text(image, have, sizeof have), dtype_name(v->type), v->config.in_channels,
                       f);
    y = tape_new(t, F32, 4, (int64_t[]){ image->dim[0], image->dim[1] / f, image->dim[2] / f, L }, e);
    return y ? one_by_one(t, v, image, y, encode, e) : NULL;
}

/* x to host memory of meta, or where it is if that is the host's. */
static const float *on_host(struct tape *t, const struct tensor *x, struct err *e)
{
    float *p;

    if (t->dev->place == ARENA_HOST)
        return x->data;
    p = arena_push(&t->mem->meta, tensor_bytes(x), e);
    return !p || device_get(t->dev, p, x->data, tensor_bytes(x), e) ? NULL : p;
}

static void draw(const struct vae_config *c, float *out, const float *m, const float *r, int64_t n)
{
    const int64_t L = c->latent_channels;

    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < L; j++) {
            const float log_var = fminf(fmaxf(m[i * 2 * L + L + j], -30), 20);
            const float x = m[i * 2 * L + j] + (r ? expf(0.5f * log_var) * r[i * L + j] : 0);

            out[i * L + j] = x * c->scaling_factor;
        }
}

/* exp and clamp have no kernel; latents are small, so the host does it. */
struct tensor *vae_latents(struct tape *t, const struct vae_config *c, struct tensor *moments, struct tensor *noise,
                           struct err *e)
{
    const int64_t L = c->latent_channels, n = tensor_count(moments) / (2 * L);
    struct tensor *z = tape_new(t, F32, 4, (int64_t[]){ moments->dim[0], moments->dim[1], moments->dim[2], L }, e);
    const float *m, *r;
    float *out;

    if (!z || (noise && !tensor_same_shape(noise, z)))
        return z ? op_fail(e, E_BUG, "VAE: the noise is not like the latents") : NULL;
    if (!t->dev->kern->computes)
        return z;
    m = on_host(t, moments, e);
    r = m && noise ? on_host(t, noise, e) : NULL;
    out = t->dev->place == ARENA_HOST ? z->data : arena_push(&t->mem->meta, tensor_bytes(z), e);
    if (!m || !out || (noise && !r))
        return NULL;
    draw(c, out, m, r, n);
    return out == z->data || !device_put(t->dev, z->data, out, tensor_bytes(z), e) ? z : NULL;
}

struct tensor *vae_decode(struct tape *t, struct vae *v, struct tensor *z, struct err *e)
{
    const int64_t f = vae_factor(&v->config), C = v->config.out_channels;
    char have[96];
    struct tensor *y;

    if (!(v->half & VAE_DECODER))
        return op_fail(e, E_BUG, "the VAE's decoder was not loaded");
    if (z->n_dim != 4 || z->dim[3] != v->config.latent_channels || z->type != F32 || z->dim[1] < 1 || z->dim[2] < 1)
        return op_fail(e, E_ARG, "VAE: the latents are %s, want f32 (B,h,w,%" PRId64 ")",
                       tensor_text(z, have, sizeof have), v->config.latent_channels);
    y = tape_new(t, F32, 4, (int64_t[]){ z->dim[0], f * z->dim[1], f * z->dim[2], C }, e);
    if (!y || !(z = op_scale(t, 1 / v->config.scaling_factor, z, e)) || !(z = op_cast(t, z, v->type, e)))
        return NULL;
    return one_by_one(t, v, z, y, decode, e);
}
