/* jobs/job_sample.c: see job_sample.h. The order: open and check all that is named; a dry run on the null device says
 * what it will take; then the pipeline, and each picture to disk as it comes. */
#include "jobs/job_sample.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/machine.h"
#include "jobs/sample_inputs.h"
#include "store/image_file.h"
#include "store/safetensors.h"

enum { MAX_PATH = 4096, MAX_BATCH = 1024 };

struct job {
    const struct spec *spec, *shared;
    const struct job_env *env;
    struct sample_inputs in;
    struct device dev;
    enum dtype type;
    struct pipeline_cost cost;  /* of a dry run with the batch that was chosen */
    int64_t base_bytes;         /* of the process before the run */
    float *latents;             /* (input,count,C,h,w) for --save-latents, or NULL */
};

/* ---- where results go ---- */

/* "out.png", or of several "out-007.png"; of y "out_y.png" */
static int out_path(const struct job *j, int64_t index, int k, char *path, size_t size, struct err *e)
{
    const char *out = spec_text(j->spec, "out"), *slash = strrchr(out, '/'), *dot = strrchr(out, '.');
    const int64_t count = j->in.request.count;
    const int stem = dot && (!slash || dot > slash) ? (int)(dot - out) : (int)strlen(out);
    char number[32] = "";
    int digits = 1, n;

    for (int64_t last = count - 1; last > 9; last /= 10)
        digits++;
    if (count > 1)
        snprintf(number, sizeof number, "-%0*" PRId64, digits, index);
    n = snprintf(path, size, "%.*s%s%s%s%s", stem, out, number, k ? "_" : "", k ? j->in.name[k] : "", out + stem);
    return n < 0 || n >= (int)size ? err_set(e, E_ARG, "the path is too long: '%.60s..'", out) : OK;
}

/* Can files be made where this one is to be? Said before hours of work, not after. */
static int check_place(const char *key, const char *path, struct err *e)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    char directory[MAX_PATH];
    struct stat st;

    if (!path)
        return OK;
    if (snprintf(directory, sizeof directory, "%.*s", slash ? slash == path ? 1 : (int)(slash - path) : 1,
                 slash ? path : ".") >= (int)sizeof directory)
        return err_set(e, E_ARG, "--%s: the path is too long: '%.60s..'", key, path);
    if (stat(directory, &st) || (!S_ISDIR(st.st_mode) && (errno = ENOTDIR)) || access(directory, W_OK | X_OK))
        return err_set(e, E_IO, "--%s '%s': cannot write in '%.200s': %s", key, path, directory, strerror(errno));
    if ((slash && !slash[1]) || (!stat(path, &st) && S_ISDIR(st.st_mode)))
        return err_set(e, E_ARG, "--%s '%s': this is a directory; say which file in it", key, path);
    return OK;
}

/* Latents under a picture's name would take the place of the picture, or the other way round. */
static int check_latents(const char *path, struct err *e)
{
    if (path && !image_can_save(path, PIXEL_U8, NULL))
        return err_set(e, E_ARG, "--save-latents '%s': this is the name of a picture; say one in .safetensors", path);
    return check_place("save-latents", path, e);
}

/* What made this one picture: the spec with everything that was chosen for it written out, and nothing about where it
 * went. --replay begins with it. */
static int picture_spec(const struct job *j, int64_t index, char **json, struct err *e)
{
    struct spec one = spec_new("sample");
    char text[32];
    bool many = false;
    int rc = spec_overlay(&one, j->spec, e);

    snprintf(text, sizeof text, "%" PRIu64, j->in.request.seed + (uint64_t)index);
    rc = rc ? rc : spec_set(&one, "seed", text, e);
    snprintf(text, sizeof text, "%" PRId64, j->in.request.width);
    rc = rc ? rc : spec_set(&one, "width", text, e);
    snprintf(text, sizeof text, "%" PRId64, j->in.request.height);
    rc = rc ? rc : spec_set(&one, "height", text, e);
    rc = rc ? rc : spec_set(&one, "dtype", dtype_name(j->type), e);
    snprintf(text, sizeof text, "%" PRId64, index);
    for (int k = 0; k < j->in.request.n_input; k++)
        many |= j->in.request.input[k].noise_rows > 1;
    if (many)
        rc = rc ? rc : spec_set(&one, "noise-row", text, e);
    rc = rc ? rc : spec_set(&one, "count", "1", e);
    rc = rc ? rc : spec_set(&one, "batch", "1", e);
    rc = rc ? rc : spec_set(&one, "out", "out.png", e);
    spec_unset(&one, "save-latents");
    rc = rc ? rc : spec_to_json(json, &one, e);
    spec_free(&one);
    return rc;
}

static void keep_latents(struct job *j, int64_t index, int k, const float *z)
{
    const struct pipeline_request *q = &j->in.request;
    const int64_t f = vae_factor(&j->in.base->vae), C = j->in.base->vae.latent_channels;
    const int64_t HW = q->height / f * (q->width / f);
    float *to = j->latents + (k * q->count + index) * C * HW;

    for (int64_t i = 0; i < HW; i++)
        for (int64_t c = 0; c < C; c++)
            to[c * HW + i] = z[i * C + c];
}

/* A quote, a backslash or a control character in the path is escaped in JSON, so a line stays a line. */
static int say_picture(const struct job *j, const char *path, uint64_t seed, struct err *e)
{
    json_t *name;
    char *quoted, line[6 * MAX_PATH + 64];

    if (!j->env->json) {
        j->env->say(j->env->ctx, path);
        return OK;
    }
    name = json_string(path);
    quoted = json_dumps(name, JSON_ENCODE_ANY);
    json_decref(name);
    if (!quoted)
        return err_set(e, E_NOMEM, "out of memory for a line of results");
    snprintf(line, sizeof line, "{\"image\":%s,\"seed\":%" PRIu64 "}", quoted, seed);
    free(quoted);
    j->env->say(j->env->ctx, line);
    return OK;
}

static int take_image(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e)
{
    struct job *j = ctx;
    const struct pipeline_request *q = &j->in.request;
    struct image m = { 0 };
    char path[MAX_PATH], *json = NULL;
    int rc = OK;

    if (j->latents)
        keep_latents(j, index, k, latents);
    if (!rgb)
        return OK;
    rc = out_path(j, index, k, path, sizeof path, e);
    rc = rc ? rc : image_from_signed(&m, rgb, q->height, q->width, 3, PIXEL_U8, e);
    rc = rc ? rc : picture_spec(j, index, &json, e);
    rc = rc ? rc : image_save(path, &m, json, (int)spec_int(j->shared, "quality"), e);
    rc = rc ? rc : say_picture(j, path, q->seed + (uint64_t)index, e);
    free(json);
    image_free(&m);
    return rc;
}

static int save_latents(struct job *j, struct err *e)
{
    const struct pipeline_request *q = &j->in.request;
    const int64_t f = vae_factor(&j->in.base->vae), C = j->in.base->vae.latent_channels;
    struct safetensors_item item[PAIR_MAX_INPUT];
    char *json = NULL;
    int rc = picture_spec(j, 0, &json, e);

    for (int k = 0; k < q->n_input; k++)
        item[k] = (struct safetensors_item){ .name = j->in.name[k], .type = STORED_F32, .n_dim = 4,
                                             .dim = { q->count, C, q->height / f, q->width / f },
                                             .data = j->latents + k * q->count * C * (q->height / f) * (q->width / f) };
    rc = rc ? rc : safetensors_write(spec_text(j->spec, "save-latents"), item, q->n_input,
                                     (const char *const[]){ "unicon", json, NULL }, e);
    free(json);
    return rc;
}

/* ---- device, type, batch ---- */

static int open_device(struct job *j, struct err *e)
{
    const char *name = spec_text(j->shared, "device"), *type = spec_text(j->spec, "dtype");
    const int n = (int)spec_int(j->shared, "threads");
    const bool chosen = strcmp(name, "auto") != 0;
    int rc;

    if (chosen && strncmp(name, "cpu", 3) && strncmp(name, "cuda", 4))
        return err_set(e, E_ARG, "--device '%.60s': want auto, cpu, cpu:ISA, cuda or cuda:N", name);
    rc = device_open(&j->dev, chosen ? name : kern_cuda() ? "cuda" : "cpu", n, e);
    if (rc)
        return err_in(e, "--device");
    if (!strcmp(type, "auto"))              /* bf16 where there are dot products of it */
        j->type = !strcmp(j->dev.kern->name, "avx512bf16") || j->dev.place == ARENA_CUDA ? BF16 : F32;
    else
        j->type = !strcmp(type, "f32") ? F32 : !strcmp(type, "f16") ? F16 : BF16;
    return OK;
}

/* What `batch` images at a time would take, on the null device. */
static int plan(struct job *j, int64_t batch, struct pipeline_cost *cost, struct err *e)
{
    const struct pipeline_sink none = { .image = NULL };
    struct pipeline_request q = j->in.request;
    struct device null;
    char name[64];
    int rc;

    snprintf(name, sizeof name, "null:%s", j->dev.kern->name);
    rc = device_open(&null, name, j->dev.ctx.n_threads, e);
    q.batch = batch;
    rc = rc ? rc : pipeline_run(&null, j->type, &j->in.pipe, &q, &none, cost, e);
    device_close(&null);
    return rc;
}

static void text_of_bytes(char *buf, size_t size, int64_t bytes)
{
    if (bytes < (int64_t)1 << 20)
        snprintf(buf, size, "%" PRId64 " bytes", bytes);
    else if (bytes < (int64_t)1 << 30)
        snprintf(buf, size, "%.1f MiB", (double)bytes / 0x1p20);
    else
        snprintf(buf, size, bytes < (int64_t)10 << 30 ? "%.2f GiB" : "%.1f GiB", (double)bytes / 0x1p30);
}

/* The batch asked for, if it fits; the largest that does for 0. */
static int choose_batch(struct job *j, struct err *e)
{
    const int64_t given = (int64_t)spec_uint64(j->shared, "memory");
    const int64_t room = (given ? given : machine_free_bytes() + j->base_bytes) - j->base_bytes;
    int64_t low = 1, high = j->in.request.batch ? j->in.request.batch : MAX_BATCH;
    struct pipeline_cost cost;
    char need[32], have[32];
    int rc;

    if (high > j->in.request.count)
        high = j->in.request.count;
    if (j->in.request.batch)
        low = high;
    rc = plan(j, low, &j->cost, e);
    if (rc)
        return rc;
    if ((int64_t)j->cost.peak_bytes > room && (given || !j->env->plan)) {
        text_of_bytes(need, sizeof need, (int64_t)j->cost.peak_bytes + j->base_bytes);
        text_of_bytes(have, sizeof have, room + j->base_bytes);
        return err_set(e, E_NOMEM, "%" PRId64 " picture%s at a time would take %s of memory, and %s is %s: try a "
                       "smaller size%s%s", low, low > 1 ? "s" : "", need, have, given ? "allowed" : "free",
                       low > 1 ? ", a smaller --batch" : "", j->type == F32 ? " or --dtype bf16" : "");
    }
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;

        rc = plan(j, middle, &cost, e);
        if (rc)
            return rc;
        if ((int64_t)cost.peak_bytes > room) {
            high = middle - 1;
            continue;
        }
        low = middle;
        j->cost = cost;
    }
    j->in.request.batch = low;
    return OK;
}

/* ---- --plan ---- */

static void say_plan(const struct job *j)
{
    const struct pipeline_request *q = &j->in.request;
    const struct pipeline_cost *c = &j->cost;
    const int64_t peak = (int64_t)c->peak_bytes + j->base_bytes;
    char line[256], size[32];
    int64_t flops = 0;

    for (int i = 0; i < N_STAGE; i++) {
        if (!c->stage[i].used)
            continue;
        flops += c->stage[i].flops;
        text_of_bytes(size, sizeof size, (int64_t)c->stage[i].bytes + j->base_bytes);
        if (j->env->json)
            snprintf(line, sizeof line, "{\"stage\":\"%s\",\"bytes\":%" PRId64 ",\"flops\":%" PRId64 "}",
                     pipeline_stage_name((enum pipeline_stage)i), (int64_t)c->stage[i].bytes + j->base_bytes,
                     c->stage[i].flops);
        else
            snprintf(line, sizeof line, "%-14s %12s %14.1f GFLOP", pipeline_stage_name((enum pipeline_stage)i), size,
                     (double)c->stage[i].flops * 1e-9);
        j->env->say(j->env->ctx, line);
    }
    text_of_bytes(size, sizeof size, peak);
    if (j->env->json)
        snprintf(line, sizeof line, "{\"peak_bytes\":%" PRId64 ",\"flops\":%" PRId64 ",\"width\":%" PRId64
                 ",\"height\":%" PRId64 ",\"count\":%" PRId64 ",\"batch\":%" PRId64
                 ",\"dtype\":\"%s\",\"device\":\"%s\"}",
                 peak, flops, q->width, q->height, q->count, q->batch, dtype_name(j->type), j->dev.kern->name);
    else
        snprintf(line, sizeof line, "%-14s %12s %14.1f GFLOP for %" PRId64 " x %" PRId64 ", %" PRId64
                 " picture%s, %" PRId64 " at a time, %s on %s", "in all", size, (double)flops * 1e-9, q->width,
                 q->height, q->count, q->count > 1 ? "s" : "", q->batch, dtype_name(j->type), j->dev.kern->name);
    j->env->say(j->env->ctx, line);
}

/* ---- --show-schedule ---- */

static int say_schedule(const struct job *j, struct err *e)
{
    const char *name[PAIR_MAX_INPUT];
    const struct pipeline_request *q = &j->in.request;
    struct schedule schedule;
    struct sampler sampler;
    char *text;
    size_t n;
    int rc;

    if (!q->plan)
        return err_set(e, E_ARG, "--show-schedule is about pairs: say of which checkpoint, --unicon PATH");
    rc = schedule_init(&schedule, &j->in.base->schedule, e);
    rc = rc ? rc : sampler_init(&sampler, q->sampler, &schedule, q->steps, q->eta, e);
    if (rc)
        return rc;
    for (int k = 0; k < q->n_input; k++)
        name[k] = j->in.name[k];
    n = pair_text(NULL, 0, q->plan, name, sampler.time);
    text = malloc(n + 1);
    if (!text)
        return err_set(e, E_NOMEM, "out of memory for %d rows", q->plan->n_row);
    pair_text(text, n + 1, q->plan, name, sampler.time);
    for (char *line = text, *end; *line; line = end) {
        end = line + strcspn(line, "\n");
        if (*end)
            *end++ = '\0';
        j->env->say(j->env->ctx, line);
    }
    free(text);
    return OK;
}

/* ---- the job ---- */

static int run(struct job *j, struct err *e)
{
    const struct pipeline_request *q = &j->in.request;
    const struct pipeline_sink sink = { take_image, j, j->env->progress };
    const int64_t f = vae_factor(&j->in.base->vae);
    const int64_t row = j->in.base->vae.latent_channels * (q->height / f) * (q->width / f);
    int rc;

    if (spec_text(j->spec, "save-latents")) {
        j->latents = calloc((size_t)(q->n_input * q->count * row), sizeof *j->latents);
        if (!j->latents)
            return err_set(e, E_NOMEM, "out of memory for the latents of %" PRId64 " pictures", q->count);
    }
    rc = pipeline_run(&j->dev, j->type, &j->in.pipe, q, &sink, NULL, e);
    return rc || !j->latents ? rc : save_latents(j, e);
}

int job_sample(const struct spec *spec, const struct spec *shared, const struct job_env *env, struct err *e)
{
    struct job j = { .spec = spec, .shared = shared, .env = env };
    int rc = image_can_save(spec_text(spec, "out"), PIXEL_U8, e);

    if (rc)
        err_in(e, "--out");
    rc = rc ? rc : check_place("out", spec_text(spec, "out"), e);
    rc = rc ? rc : check_latents(spec_text(spec, "save-latents"), e);
    rc = rc ? rc : open_device(&j, e);
    rc = rc ? rc : sample_inputs_open(&j.in, spec, env, e);
    j.base_bytes = machine_resident_bytes();
    if (!rc && env->show_schedule) {
        rc = say_schedule(&j, e);
        goto out;
    }
    rc = rc ? rc : choose_batch(&j, e);
    if (!rc && env->plan)
        say_plan(&j);
    else if (!rc && !env->dry_run)
        rc = run(&j, e);
out:
    free(j.latents);
    sample_inputs_close(&j.in);
    device_close(&j.dev);
    return rc;
}
