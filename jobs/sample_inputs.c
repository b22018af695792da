/* jobs/sample_inputs.c: see sample_inputs.h. */
#include "jobs/sample_inputs.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/image_file.h"

/* ---- model and adapters ---- */

static int open_base(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    static const int prediction[] = { -1, PREDICT_EPSILON, PREDICT_V };
    const struct base_options o = {
        .variant = spec_text(spec, "variant"), .tokenizer = spec_text(spec, "tokenizer"),
        .vae = spec_text(spec, "vae"), .prediction = prediction[spec_choice(spec, "prediction")],
    };
    const char *path = spec_text(spec, "base");
    struct stat st;
    int rc;

    if (!path)
        return err_set(e, E_ARG, "no base model: say --base PATH, a diffusers directory or a single-file checkpoint");
    if (stat(path, &st) && errno == ENOENT)
        return err_set(e, E_IO, "--base '%.200s': there is no such file or directory, and models are not downloaded",
                       path);
    rc = base_model_open(&in->base, path, &o, e);
    if (rc)
        return rc;
    if (o.prediction >= 0)
        in->base->schedule.prediction = (enum prediction)o.prediction;
    in->pipe = (struct pipeline_base){
        .unet = &in->base->unet, .vae = &in->base->vae, .text = &in->base->text, .schedule = &in->base->schedule,
        .unet_weights = &in->base->unet_weights, .vae_weights = &in->base->vae_weights,
        .text_weights = &in->base->text_weights, .lora = &in->lora,
    };
    return OK;
}

/* A colon in the name of a file that is there parts nothing. */
int sample_split_weight(const char *key, const char *text, char *path, size_t size, double *weight, struct err *e)
{
    const char *colon = strrchr(text, ':');
    char *end;
    FILE *whole = fopen(text, "re");

    *weight = 1;
    if (whole) {
        fclose(whole);
        colon = NULL;
    }
    if (colon && colon[1]) {
        *weight = strtod(colon + 1, &end);
        if (*end || !isfinite(*weight))
            return err_set(e, E_ARG, "--%s '%s': '%s' is not a weight; want PATH or PATH:NUMBER", key, text,
                           colon + 1);
    } else if (colon)
        return err_set(e, E_ARG, "--%s '%s': no weight after the colon; want PATH or PATH:NUMBER", key, text);
    if (snprintf(path, size, "%.*s", colon ? (int)(colon - text) : (int)strlen(text), text) >= (int)size)
        return err_set(e, E_ARG, "--%s: the path is too long: '%.60s..'", key, text);
    return OK;
}

static int open_adapters(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    const int n = spec_count(spec, "lora");
    char path[4096];
    double weight;
    int rc = OK;

    if (n > LORA_MAX_USE)
        return err_set(e, E_ARG, "--lora: %d adapters; at most %d can be added at once", n, LORA_MAX_USE);
    for (int i = 0; i < n && !rc; i++) {
        rc = sample_split_weight("lora", spec_item(spec, "lora", i), path, sizeof path, &weight, e);
        rc = rc ? rc : lora_file_open(&in->file[i], path, &in->base->unet, e);
        if (!rc)
            in->lora.use[in->lora.n++] = (struct lora_use){ &in->file[i]->lora, weight };
    }
    return rc;
}

/* ---- prompts ---- */

static int encode(struct sample_inputs *in, const char *text, const char *key, int32_t *id, const struct job_env *env,
                  struct err *e)
{
    int left_out = 0;
    const int rc = clip_bpe_encode(in->base->bpe, text, id, PIPELINE_TOKENS, in->base->pad_id, &left_out, e);
    char line[160];

    if (rc)
        return err_in(e, "--%s", key);
    if (left_out && env->warn) {
        snprintf(line, sizeof line, "--%s is too long: the last %d of its %d tokens are left out; there is room for %d",
                 key, left_out, left_out + PIPELINE_TOKENS - 2, PIPELINE_TOKENS - 2);
        env->warn(env->ctx, line);
    }
    return OK;
}

/* y's prompt is x's unless it has its own, with the checkpoint's trigger word before it. */
static int encode_prompts(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e)
{
    const char *own = spec_text(spec, "y-prompt"), *text = *own ? own : spec_text(spec, "prompt");
    int rc = encode(in, spec_text(spec, "prompt"), "prompt", in->prompt[0], env, e);

    rc = rc ? rc : encode(in, spec_text(spec, "negative"), "negative", in->negative, env, e);
    for (int k = 1; k <= in->n_unicon && !rc; k++) {
        const char *trigger = in->unicon[k - 1]->trigger;
        char *whole = malloc(strlen(trigger) + strlen(text) + 1);

        if (!whole)
            return err_set(e, E_NOMEM, "out of memory for a prompt");
        memcpy(whole, trigger, strlen(trigger));
        memcpy(whole + strlen(trigger), text, strlen(text) + 1);
        rc = encode(in, whole, *own ? "y-prompt" : "prompt, after y's trigger word,", in->prompt[k], env, e);
        free(whole);
    }
    return rc;
}

/* ---- pictures ---- */

static int load(struct image *out, const struct spec *spec, const char *key, const char *path, struct err *e)
{
    const int rc = image_load(out, path, spec_choice(spec, "exif") == 0, e);

    return rc ? err_in(e, "--%s", key) : OK;
}

/* Resized so that it covers the size asked for, the middle kept. */
int sample_load_picture(struct image *out, int64_t size[2], const struct sample_inputs *in, const struct spec *spec,
                        const char *key, const char *path, enum filter f, struct err *e)
{
    struct image m = { 0 }, rgb = { 0 };
    int rc = load(&m, spec, key, path, e);

    if (size) {
        size[0] = m.H;
        size[1] = m.W;
    }
    rc = rc ? rc : image_convert(&rgb, &m, 3, m.type, e);
    rc = rc ? rc : image_cover(out, &rgb, in->request.height, in->request.width, f, e);
    image_free(&rgb);
    image_free(&m);
    return rc;
}

/* (H,W,3) in [-1,1] */
static int load_picture(struct sample_inputs *in, const struct spec *spec, const char *key, const char *path, int k,
                        struct err *e)
{
    const int64_t H = in->request.height, W = in->request.width;
    struct image fit = { 0 };
    int rc = sample_load_picture(&fit, in->picture_size[k], in, spec, key, path, FILTER_BILINEAR, e);

    if (!rc && !(in->picture[k] = malloc(sizeof *in->picture[k] * (size_t)(H * W * 3))))
        rc = err_set(e, E_NOMEM, "out of memory for a picture of %" PRId64 " x %" PRId64, W, H);
    rc = rc ? rc : image_to_signed(in->picture[k], &fit, e);
    image_free(&fit);
    return rc;
}

/* A mask is resized as its picture is, made gray, and every f-th pixel of every f-th row is taken: soft edges stay
 * soft. */
static int load_mask(struct sample_inputs *in, const struct spec *spec, const char *key, const char *path, int k,
                     struct err *e)
{
    const int64_t f = vae_factor(&in->base->vae), H = in->request.height, W = in->request.width, w = W / f;
    struct image m = { 0 }, plain = { 0 }, fit = { 0 }, gray = { 0 };
    int rc = load(&m, spec, key, path, e);

    rc = rc ? rc : sample_check_mask(in, key, path, k, m.H, m.W, e);
    rc = rc ? rc : image_convert(&plain, &m, m.C < 3 ? 1 : 3, m.type, e);
    rc = rc ? rc : image_cover(&fit, &plain, H, W, FILTER_LANCZOS, e);
    rc = rc ? rc : image_convert(&gray, &fit, 1, PIXEL_U8, e);
    if (!rc && !(in->mask[k] = malloc(sizeof *in->mask[k] * (size_t)(H / f * w))))
        rc = err_set(e, E_NOMEM, "out of memory for a mask");
    for (int64_t i = 0; !rc && i < H / f * w; i++)
        in->mask[k][i] = (float)((unsigned char *)gray.px)[i / w * f * W + i % w * f] / 255;
    image_free(&gray);
    image_free(&fit);
    image_free(&plain);
    image_free(&m);
    return rc;
}

/* Those that are there already are not read again. */
static int load_pictures(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    int rc = OK;

    for (int k = 0; k <= in->n_unicon && !rc; k++) {
        const char *picture = spec_text(spec, "x"), *mask = spec_text(spec, "x-mask");

        if (k) {
            rc = sample_value_of(&picture, in, spec, "y", k, e);
            rc = rc ? rc : sample_value_of(&mask, in, spec, "y-mask", k, e);
        }
        if (!rc && picture && !in->picture[k])
            rc = load_picture(in, spec, k ? "y" : "x", picture, k, e);
        if (!rc && mask && !picture)
            rc = err_set(e, E_ARG, "--%s says what to do with a picture: say which, --%s IMAGE",
                         k ? "y-mask" : "x-mask", k ? "y" : "x");
        if (!rc && mask && !in->mask[k])
            rc = load_mask(in, spec, k ? "y-mask" : "x-mask", mask, k, e);
        in->request.input[k].picture = in->picture[k];
        in->request.input[k].mask = in->mask[k];
    }
    return rc;
}

/* ---- noise from a file: "x", "y", .., f32, (1 or count,C,h,w) ---- */

/* row: the one to take, for a single picture; -1: one for each, or the same for all. */
static int take_noise(struct sample_inputs *in, const struct weights_entry *x, int input, int64_t row, struct err *e)
{
    const int64_t k = vae_factor(&in->base->vae), C = in->base->vae.latent_channels, count = in->request.count;
    const int64_t h = in->request.height / k, w = in->request.width / k, HW = h * w;
    char have[96];
    float *plane;
    int64_t n;
    int rc;

    if (x->n_dim != 4 || x->dim[1] != C || x->dim[2] != h || x->dim[3] != w)
        return err_set(e, E_FORMAT, "'%s' is %s, want rows of (%" PRId64 ",%" PRId64 ",%" PRId64 ")", x->name,
                       weights_text(x, have, sizeof have), C, h, w);
    if (row >= 0 ? count != 1 || row >= x->dim[0] : x->dim[0] != 1 && x->dim[0] != count)
        return err_set(e, row >= 0 ? E_ARG : E_FORMAT,
                       row >= 0 ? "'%s' is %s: there is no row for %" PRId64 " picture%s in --noise-row %" PRId64
                                : "'%s' is %s, want 1 row or one for each of %" PRId64 " picture%s", x->name,
                       weights_text(x, have, sizeof have), count, count > 1 ? "s" : "", row);
    n = row >= 0 ? 1 : x->dim[0];
    plane = malloc(sizeof *plane * (size_t)(n * C * HW));
    in->noise[input] = malloc(sizeof *plane * (size_t)(n * C * HW));
    rc = plane && in->noise[input] ? weights_read_rows(x, row >= 0 ? row : 0, n, plane, F32, e)
                            : err_set(e, E_NOMEM, "out of memory for the noise");
    for (int64_t i = 0; !rc && i < n * HW; i++)
        for (int64_t c = 0; c < C; c++)
            in->noise[input][i * C + c] = plane[(i / HW * C + c) * HW + i % HW];
    free(plane);
    in->request.input[input].noise = in->noise[input];
    in->request.input[input].noise_rows = n;
    return rc;
}

static int load_noise(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    const int64_t row = spec_is_set(spec, "noise-row") ? spec_int(spec, "noise-row") : -1;
    const char *path = spec_text(spec, "noise");
    struct weights_file *f = NULL;
    int rc, n = 0;

    if (!path)
        return OK;
    rc = weights_file_open(&f, path, e);
    if (rc)
        return err_in(e, "--noise");
    for (int k = 0; k <= in->n_unicon && !rc; k++) {
        const struct weights_entry *x = weights_get(&f->table, in->name[k]);

        n += x != NULL;
        rc = x ? take_noise(in, x, k, row, e) : OK;
    }
    if (!rc && !n)
        rc = err_set(e, E_FORMAT, "there is no tensor named 'x' in it");
    if (rc)
        err_in(e, "--noise '%s'", path);
    weights_file_close(f);
    return rc;
}

/* ---- the request ---- */

static int64_t side(const struct spec *spec, const char *key, const struct base_model *b)
{
    const int64_t asked = spec_int(spec, key), own = b->unet.sample_size * vae_factor(&b->vae);

    return asked ? asked : own ? own : 512;
}

/* The multiple of f nearest to n, at least f. */
static int64_t nearest(int64_t n, int64_t f) { return n < f ? f : (n + f / 2) / f * f; }

static int fill_request(struct sample_inputs *in, const struct spec *spec, struct err *e)
{
    static const enum noise_kind rng[] = { NOISE_PHILOX, NOISE_TORCH_CPU, NOISE_TORCH_CPU, NOISE_TORCH_CPU,
                                           NOISE_TORCH_CUDA };
    static const enum dtype type[] = { F32, F32, F16, BF16, F32 };
    const int64_t f = vae_factor(&in->base->vae), W = side(spec, "width", in->base), H = side(spec, "height", in->base);
    const int r = spec_choice(spec, "rng");

    in->request = (struct pipeline_request){
        .n_input = 1 + in->n_unicon, .joint_scale = spec_double(spec, "joint-scale"),
        .official = spec_choice(spec, "compat") == 1,
        .clip_skip = (int)spec_int(spec, "clip-skip"), .width = W,
        .height = H, .sampler = (enum sampler_kind)sampler_kind_of(spec_text(spec, "sampler")),
        .steps = (int)spec_int(spec, "steps"), .eta = spec_double(spec, "eta"), .cfg = spec_double(spec, "cfg"),
        .count = spec_int(spec, "count"), .batch = spec_int(spec, "batch"), .seed = spec_uint64(spec, "seed"),
        .rng = rng[r], .rng_type = type[r], .x_noise = spec_double(spec, "x-noise"),
    };
    if (W % f || H % f)
        return err_set(e, E_ARG, "%" PRId64 " x %" PRId64 " pixels: both sides have to be multiples of %" PRId64
                       "; %" PRId64 " x %" PRId64 " would do", W, H, f, nearest(W, f), nearest(H, f));
    for (int k = 0; k <= in->n_unicon; k++)
        in->request.input[k] = (struct pipeline_input){ .prompt = in->prompt[k], .negative = in->negative,
                                                        .mode = spec_choice(spec, "x-sample") == 1 };
    if (!spec_text(spec, "x") && in->request.x_noise < 1)
        return err_set(e, E_ARG, "--x-noise says what to do with a picture: say which, --x IMAGE");
    if (!in->n_unicon && !(in->request.x_noise > 0) && spec_text(spec, "x-mask"))
        return err_set(e, E_ARG, "--x-mask: x has no noise and stays as it is, so a mask does nothing: say --x-noise");
    if (spec_is_set(spec, "noise-row") && !spec_text(spec, "noise"))
        return err_set(e, E_ARG, "--noise-row is a row of a file: say which, --noise FILE");
    if (spec_is_set(spec, "eta") && in->request.eta > 0 && in->request.sampler != SAMPLER_DDIM)
        return err_set(e, E_ARG, "--eta is for --sampler ddim, not %s", spec_text(spec, "sampler"));
    if (in->request.clip_skip >= in->base->text.num_hidden_layers)
        return err_set(e, E_ARG, "--clip-skip %d: the text encoder has %d layers", in->request.clip_skip,
                       in->base->text.num_hidden_layers);
    return OK;
}

/* All but the files of weights; pictures that are there stay. */
static int set_values(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e)
{
    int rc = fill_request(in, spec, e);

    rc = rc ? rc : encode_prompts(in, spec, env, e);
    rc = rc ? rc : sample_check_names(in, spec, e);
    rc = rc ? rc : load_pictures(in, spec, e);
    rc = rc ? rc : sample_make_pairs(in, spec, e);
    rc = rc ? rc : sample_make_guidance(in, spec, e);
    rc = rc ? rc : sample_make_controls(in, spec, e);
    return rc ? rc : load_noise(in, spec, e);
}

static void free_values(struct sample_inputs *in)
{
    for (int k = 0; k < PAIR_MAX_INPUT; k++) {
        free(in->noise[k]);
        in->noise[k] = NULL;
        in->held[k] = false;
    }
    pair_free(&in->plan);
}

static void free_pictures(struct sample_inputs *in)
{
    for (int k = 0; k < PAIR_MAX_INPUT; k++) {
        free(in->mask[k]);
        free(in->picture[k]);
    }
    for (int i = 0; i < PIPELINE_MAX_CONTROL; i++)
        free(in->control[i].picture);
}

int sample_inputs_open(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e)
{
    int rc;

    memset(in, 0, sizeof *in);
    rc = open_base(in, spec, e);
    rc = rc ? rc : open_adapters(in, spec, e);
    rc = rc ? rc : sample_open_checkpoints(in, spec, e);
    rc = rc ? rc : sample_open_controls(in, spec, e);
    return rc ? rc : set_values(in, spec, env, e);
}

int sample_inputs_again(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e)
{
    free_values(in);
    return set_values(in, spec, env, e);
}

void sample_inputs_close(struct sample_inputs *in)
{
    free_values(in);
    free_pictures(in);
    sample_close_controls(in);
    for (int i = 0; i < JOINT_MAX_PAIR; i++)
        unicon_file_close(in->unicon[i]);
    for (int i = 0; i < LORA_MAX_USE; i++)
        lora_file_close(in->file[i]);
    base_model_close(in->base);
    memset(in, 0, sizeof *in);
}
