#include "store/base_model.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/checkpoint_keys.h"
#include "store/json_conf.h"
#include "store/map.h"
#include "store/model_shapes.h"
#include "store/vocab.h"

enum { MAX_PATH = 4096 };

static const struct base_options no_options = { .prediction = -1 };

/* ---- paths ---- */

static int join(char *out, const char *dir, const char *name, struct err *e)
{
    const int n = snprintf(out, MAX_PATH, "%s/%s", dir, name);

    return n > 0 && n < MAX_PATH ? OK : err_set(e, E_ARG, "the path is too long");
}

static bool is_file(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISREG(st.st_mode);
}

static bool is_directory(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* ---- which weights of a folder: safetensors before pickles, plain ones before variants that nobody asked for ---- */

struct stem {
    const char *safetensors, *pickle;
};

static const struct stem diffusers_stem = { "diffusion_pytorch_model", "diffusion_pytorch_model" };
static const struct stem transformers_stem = { "model", "pytorch_model" };

/* A whole file, or the index of several. */
static bool there(char *out, const char *dir, const char *stem, const char *variant, const char *ending)
{
    const char *dot = *variant ? "." : "";
    int n = snprintf(out, MAX_PATH, "%s/%s%s%s.%s", dir, stem, dot, variant, ending);

    if (n > 0 && n < MAX_PATH && is_file(out))
        return true;
    n = snprintf(out, MAX_PATH, "%s/%s.%s.index%s%s.json", dir, stem, ending, dot, variant);
    return n > 0 && n < MAX_PATH && is_file(out);
}

static bool there_any(char *out, const char *dir, const char *stem, const char *ending)
{
    static const char *const variant[] = { "fp16", "bf16", "fp32", "ema" };

    if (there(out, dir, stem, "", ending))
        return true;
    for (size_t i = 0; i < sizeof variant / sizeof *variant; i++)
        if (there(out, dir, stem, variant[i], ending))
            return true;
    return false;
}

static int weights_path(char *out, const char *dir, struct stem stem, const char *variant, struct err *e)
{
    if (variant && *variant &&
        (there(out, dir, stem.safetensors, variant, "safetensors") || there(out, dir, stem.pickle, variant, "bin")))
        return OK;
    if (there_any(out, dir, stem.safetensors, "safetensors") || there_any(out, dir, stem.pickle, "bin"))
        return OK;
    return err_set(e, E_IO, "there is neither %s.safetensors nor %s.bin in '%s'", stem.safetensors, stem.pickle, dir);
}

int base_weights_path(char *out, const char *dir, const char *variant, struct err *e)
{
    return weights_path(out, dir, diffusers_stem, variant, e);
}

/* The file stays open in b->file. */
static int open_file(struct weights_file **out, struct base_model *b, const char *path, struct err *e)
{
    int i = 0, rc;

    while (b->file[i])
        i++;
    rc = weights_file_open(&b->file[i], path, e);
    *out = b->file[i];
    return rc;
}

static int open_folder(struct weights_file **out, struct base_model *b, const char *dir, struct stem stem,
                       const char *variant, struct err *e)
{
    char path[MAX_PATH];
    const int rc = weights_path(path, dir, stem, variant, e);

    return rc ? rc : open_file(out, b, path, e);
}

/* ---- a folder's configuration ---- */

/* file: a name in dir. parse: one of base_parse_*, through a function of one type. */
static int parse_file(const char *dir, const char *file, int (*parse)(void *, const char *, size_t, struct err *),
                      void *out, struct err *e)
{
    char path[MAX_PATH];
    struct map m = { 0 };
    int rc = join(path, dir, file, e);

    if (rc)
        return rc;
    rc = map_open(&m, path, e);
    if (rc)
        return rc;
    rc = parse(out, (const char *)m.base, m.size, e);
    if (rc)
        err_in(e, "'%s'", path);
    map_close(&m);
    return rc;
}

static int parse_unet(void *out, const char *json, size_t n, struct err *e) { return base_parse_unet(out, json, n, e); }
static int parse_vae(void *out, const char *json, size_t n, struct err *e) { return base_parse_vae(out, json, n, e); }
static int parse_text(void *out, const char *json, size_t n, struct err *e) { return base_parse_text(out, json, n, e); }

static int parse_schedule(void *out, const char *json, size_t n, struct err *e)
{
    return base_parse_schedule(out, json, n, e);
}

/* ---- model_index.json ---- */

struct parts {
    bool unet, vae, text, tokenizer, scheduler;
};

/* Is there such a component? Its entry is [library, class], [null, null] or missing; class or `also` is what we know,
 * NULL stands for any. */
static bool component(struct json_conf *c, const char *key, const char *class, const char *also)
{
    const json_t *pair = json_conf_get(c, key), *what = json_array_get(pair, 1);
    const char *name = json_string_value(what);

    if (!pair || json_is_null(what))
        return false;
    if (!name)
        json_conf_fail(c, "component '%s' is no pair of a library and a class", key);
    else if (class && strcmp(name, class) && !(also && !strcmp(name, also)))
        json_conf_fail(c, "%s is a %.60s: only %s is supported", key, name, class);
    return true;
}

static int parse_index(void *out, const char *json, size_t n, struct err *e)
{
    static const char *const foreign[] = { "transformer", "text_encoder_2", "unet_2", "prior", "image_unet", NULL };
    struct parts *p = out;
    struct json_conf c;

    if (json_conf_open(&c, "model index", json, n, e))
        return json_conf_close(&c);
    for (int i = 0; foreign[i]; i++)
        if (component(&c, foreign[i], NULL, NULL))
            json_conf_fail(&c, "a %.60s has a component '%s'; only Stable Diffusion 1.x and 2.x are supported",
                           json_conf_text(&c, "_class_name", "pipeline"), foreign[i]);
    p->unet = component(&c, "unet", "UNet2DConditionModel", NULL);
    p->vae = component(&c, "vae", "AutoencoderKL", NULL);
    p->text = component(&c, "text_encoder", "CLIPTextModel", "CLIPTextModelWithProjection");
    p->tokenizer = component(&c, "tokenizer", "CLIPTokenizer", "CLIPTokenizerFast");
    p->scheduler = component(&c, "scheduler", NULL, NULL);
    if (!p->unet)
        json_conf_fail(&c, "it has no 'unet'");
    return json_conf_close(&c);
}

/* ---- parts ---- */

static int vae_folder(struct base_model *b, const char *dir, const char *variant, struct err *e)
{
    struct weights_file *f = NULL;
    int rc = parse_file(dir, "config.json", parse_vae, &b->vae, e);

    rc = rc ? rc : open_folder(&f, b, dir, diffusers_stem, variant, e);
    rc = rc ? rc : weights_file_select(&b->vae_weights, f, diffusers_vae_key, NULL, e);
    if (!rc)
        checkpoint_squeeze_vae(&b->vae_weights);
    return rc;
}

/* A VAE in one file: of diffusers, of the original layout, or a part of a whole checkpoint. */
static int vae_file(struct base_model *b, struct weights_file *f, struct err *e)
{
    struct checkpoint_layout l;
    int rc;

    checkpoint_layout(&l, &f->table);
    rc = weights_file_select(&b->vae_weights, f, l.vae_stages ? checkpoint_vae_key : diffusers_vae_key, &l, e);
    if (!rc && !b->vae_weights.n)
        rc = err_set(e, E_FORMAT, "there is no VAE in '%s'", f->path);
    if (rc)
        return rc;
    checkpoint_squeeze_vae(&b->vae_weights);
    return shapes_vae(&b->vae, &b->vae_weights, e);
}

/* A file, a VAE's folder, or a model's directory with one. */
static int other_vae(struct base_model *b, const struct base_options *o, struct err *e)
{
    struct weights_file *f = NULL;
    char dir[MAX_PATH];
    int rc;

    if (is_directory(o->vae)) {
        rc = join(dir, o->vae, "vae", e);
        if (!rc)
            rc = vae_folder(b, is_directory(dir) ? dir : o->vae, o->variant, e);
    } else {
        rc = open_file(&f, b, o->vae, e);
        rc = rc ? rc : vae_file(b, f, e);
    }
    return rc ? err_in(e, "VAE '%s'", o->vae) : OK;
}

/* Without files of its own the model takes CLIP's vocabulary. SD2.x fills prompts with "!", id 0. */
static int open_tokenizer(struct base_model *b, const struct base_options *o, const char *own, struct err *e)
{
    const char *dir = o->tokenizer ? o->tokenizer : own;
    int rc;

    if (dir) {
        rc = vocab_open(&b->bpe, dir, &b->pad_id, e);
        if (rc)
            return err_in(e, "tokenizer '%s'", dir);
    } else {
        rc = vocab_builtin(&b->bpe, e);
        if (rc)
            return rc;
        b->pad_id = clip_bpe_end(b->bpe);
        if (b->text.act == K_ACT_GELU) {                    /* OpenCLIP fills with "!" and cuts it out of prompts */
            b->pad_id = clip_bpe_id(b->bpe, "!");
            rc = clip_bpe_set_special(b->bpe, "!", e);
        }
        if (rc)
            return rc;
    }
    if (clip_bpe_start(b->bpe) >= b->text.vocab_size || clip_bpe_end(b->bpe) >= b->text.vocab_size || b->pad_id < 0
        || b->pad_id >= b->text.vocab_size)
        return err_set(e, E_FORMAT, "the tokenizer has %d words, ends with %" PRId32 " and fills with %" PRId32
                       "; the text encoder knows %" PRId64 ": they are of different models", clip_bpe_n_id(b->bpe),
                       clip_bpe_end(b->bpe), b->pad_id, b->text.vocab_size);
    return OK;
}

/* ---- a directory ---- */

static int open_directory(struct base_model *b, const struct base_options *o, struct err *e)
{
    char unet[MAX_PATH], vae[MAX_PATH], text[MAX_PATH], tokenizer[MAX_PATH], scheduler[MAX_PATH];
    struct weights_file *f = NULL;
    struct parts p = { 0 };
    int rc = parse_file(b->path, "model_index.json", parse_index, &p, e);

    if (rc)
        return rc;
    if (!p.text)
        return err_set(e, E_FORMAT, "the model has no text encoder");
    if (!p.vae && !o->vae)
        return err_set(e, E_FORMAT, "the model has no VAE: name one");
    if (join(unet, b->path, "unet", e) || join(vae, b->path, "vae", e) || join(text, b->path, "text_encoder", e) ||
        join(tokenizer, b->path, "tokenizer", e) || join(scheduler, b->path, "scheduler", e))
        return E_ARG;
    rc = parse_file(unet, "config.json", parse_unet, &b->unet, e);
    rc = rc ? rc : open_folder(&f, b, unet, diffusers_stem, o->variant, e);
    if (rc)
        return rc;
    b->unet_weights = f->table;
    rc = parse_file(text, "config.json", parse_text, &b->text, e);
    rc = rc ? rc : open_folder(&f, b, text, transformers_stem, o->variant, e);
    rc = rc ? rc : weights_file_select(&b->text_weights, f, diffusers_text_key, NULL, e);
    if (!rc)
        rc = o->vae ? other_vae(b, o, e) : vae_folder(b, vae, o->variant, e);
    b->schedule = schedule_config_sd15();
    if (!rc && p.scheduler)
        rc = parse_file(scheduler, "scheduler_config.json", parse_schedule, &b->schedule, e);
    /* What diffusers' StableDiffusionPipeline does to every scheduler that it is given. */
    b->schedule.steps_offset = 1;
    b->schedule.clip_sample = false;
    return rc ? rc : open_tokenizer(b, o, p.tokenizer ? tokenizer : NULL, e);
}

/* ---- one file ---- */

static int text_of_file(struct base_model *b, struct weights_file *f, struct checkpoint_layout *layout, struct err *e)
{
    const bool gelu = layout->openclip_blocks || b->unet.use_linear_projection;
    int rc = weights_file_select(&b->text_weights, f, checkpoint_text_key, layout, e);

    if (!rc && !b->text_weights.n)
        rc = err_set(e, E_FORMAT, "there is no text encoder in the file");
    rc = rc ? rc : checkpoint_split_qkv(&b->text_weights, &f->meta, e);
    return rc ? rc : shapes_text(&b->text, &b->text_weights, gelu ? K_ACT_GELU : K_ACT_QUICK_GELU, e);
}

/* Which of SD2.x's two predictions a file was trained for does not show in its tensors: v unless the caller says. */
static int open_single(struct base_model *b, const struct base_options *o, struct err *e)
{
    struct checkpoint_layout layout;
    struct weights_file *f = NULL;
    const char *kind;
    int rc = open_file(&f, b, b->path, e);

    if (rc)
        return rc;
    kind = model_foreign(&f->table);
    if (kind)
        return err_set(e, E_FORMAT, "it seems to be %s; only Stable Diffusion 1.x and 2.x are supported", kind);
    checkpoint_layout(&layout, &f->table);
    rc = weights_file_select(&b->unet_weights, f, checkpoint_unet_key, &layout, e);
    rc = rc ? rc : shapes_unet(&b->unet, &b->unet_weights, e);
    rc = rc ? rc : text_of_file(b, f, &layout, e);
    if (!rc)
        rc = o->vae ? other_vae(b, o, e) : vae_file(b, f, e);
    if (rc)
        return rc;
    b->schedule = schedule_config_sd15();
    if (b->unet.use_linear_projection) {
        b->schedule.prediction = PREDICT_V;
        b->unet.sample_size = o->prediction == PREDICT_EPSILON ? 64 : 96;
    }
    return open_tokenizer(b, o, NULL, e);
}

/* ---- */

/* Do the parts fit each other? */
static int check(const struct base_model *b, struct err *e)
{
    const char *kind = model_of_channels(b->unet.in_channels);

    if (kind && b->unet.in_channels != b->vae.latent_channels)
        return err_set(e, E_FORMAT, "it seems to be %s (its UNet takes %" PRId64 " channels), which is not supported",
                       kind, b->unet.in_channels);
    if (b->unet.in_channels != b->vae.latent_channels || b->unet.out_channels != b->vae.latent_channels)
        return err_set(e, E_FORMAT, "a UNet from %" PRId64 " to %" PRId64 " channels and a VAE of %" PRId64
                       " do not fit", b->unet.in_channels, b->unet.out_channels, b->vae.latent_channels);
    if (b->text.hidden_size != b->unet.cross_attention_dim)
        return err_set(e, E_FORMAT, "the text encoder gives %" PRId64 " channels, the UNet takes %" PRId64,
                       b->text.hidden_size, b->unet.cross_attention_dim);
    if (b->text.max_position_embeddings < 77)
        return err_set(e, E_FORMAT, "the text encoder has %" PRId64 " positions, not 77",
                       b->text.max_position_embeddings);
    return OK;
}

int base_model_open(struct base_model **out, const char *path, const struct base_options *o, struct err *e)
{
    struct base_model *b = arena_fault_now() ? NULL : calloc(1, sizeof *b);
    struct stat st;
    struct err mine;
    int rc;

    e = e ? e : &mine;
    o = o ? o : &no_options;
    if (!b || !(b->path = arena_fault_now() ? NULL : strdup(path)))
        rc = err_set(e, E_NOMEM, "out of memory");
    else if (stat(path, &st))
        rc = err_set(e, E_IO, "%s", strerror(errno));
    else if (o->prediction < -1 || o->prediction > PREDICT_SAMPLE)
        rc = err_set(e, E_ARG, "there is no prediction %d", o->prediction);
    else {
        b->single_file = !S_ISDIR(st.st_mode);
        rc = b->single_file ? open_single(b, o, e) : open_directory(b, o, e);
        rc = rc ? rc : check(b, e);
    }
    if (rc) {
        base_model_close(b);
        err_in(e, "base model '%s'", path);
        return rc;
    }
    if (o->prediction >= 0)
        b->schedule.prediction = (enum prediction)o->prediction;
    *out = b;
    return OK;
}

void base_model_close(struct base_model *b)
{
    if (!b)
        return;
    clip_bpe_free(b->bpe);
    for (size_t i = 0; i < sizeof b->file / sizeof *b->file; i++)
        weights_file_close(b->file[i]);
    free(b->path);
    free(b);
}
