/* jobs/job_sample.c: see job_sample.h. The order: open and check all that is named, at every point of a sweep; dry runs
 * on the null device say what it will take; then the pipeline, point by point, and each picture to disk as it comes. */
#include "jobs/job_sample.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/machine.h"
#include "jobs/sample_save.h"
#include "kernels/dev.h"

enum { MAX_BATCH = 1024 };

/* ---- points ---- */

/* What goes wrong at a point of a sweep is said with its values, but for a base that cannot be opened at all. */
static int at_point(const struct sample_job *j, int rc, struct err *e)
{
    char text[SWEEP_TEXT];

    if (!rc || rc == E_CANCEL || !j->sweep.n_key || !j->in.base)
        return rc;
    sweep_text(text, &j->sweep, j->point);
    return err_in(e, "--sweep, point %" PRId64 " (%s)", j->point, text);
}

/* From here on this point's values. */
static int go_to(struct sample_job *j, int64_t point, struct err *e)
{
    const struct job_env quiet = { .warn = NULL };
    int rc;

    spec_free(&j->one);
    j->point = point;
    rc = sweep_spec(&j->one, &j->sweep, j->spec, point, e);
    if (!rc && j->in.base)
        rc = sample_inputs_again(&j->in, &j->one, &quiet, e);       /* what there is to warn of has been said */
    else if (!rc)
        rc = sample_inputs_open(&j->in, &j->one, j->env, e);
    return at_point(j, rc, e);
}

/* ---- device, type, batch ---- */

static int open_device(struct sample_job *j, struct err *e)
{
    const char *name = spec_text(j->shared, "device"), *type = spec_text(j->spec, "dtype");
    const int n = (int)spec_int(j->shared, "threads");
    const bool chosen = strcmp(name, "auto") != 0;
    int rc;

    if (chosen && strncmp(name, "cpu", 3) && strncmp(name, "cuda", 4))
        return err_set(e, E_ARG, "--device '%.60s': want auto, cpu, cpu:ISA, cuda or cuda:N", name);
    rc = device_open(&j->dev, chosen ? name : dev_cuda_probe(NULL, 0, NULL) > 0 ? "cuda" : "cpu", n, e);
    if (rc)
        return err_in(e, "--device");
    if (!strcmp(type, "auto"))              /* bf16 where there are dot products of it */
        j->type = !strcmp(j->dev.kern->name, "avx512bf16") || j->dev.place == ARENA_CUDA ? BF16 : F32;
    else
        j->type = !strcmp(type, "f32") ? F32 : !strcmp(type, "f16") ? F16 : BF16;
    return OK;
}

/* The device that stands for the job's own. */
static int open_null(const struct sample_job *j, struct device *null, struct err *e)
{
    char name[64];

    snprintf(name, sizeof name, "null:%s", j->dev.kern->name);
    return device_open(null, name, j->dev.n_threads, e);
}

/* Bytes that the run may take, beside what the process has: of the device's memory where it has its own. */
static int64_t room(const struct sample_job *j)
{
    const int64_t given = (int64_t)spec_uint64(j->shared, "memory");

    if (j->dev.apart)
        return given ? given : device_free_bytes(&j->dev);
    return (given ? given : machine_free_bytes() + j->base_bytes) - j->base_bytes;
}

/* What `batch` images at a time would take, on the null device. */
static int plan(struct sample_job *j, int64_t batch, struct pipeline_cost *cost, struct err *e)
{
    const struct pipeline_sink none = { .image = NULL };
    struct pipeline_request q = j->in.request;
    struct device null;
    int rc = open_null(j, &null, e);

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
static int choose_batch(struct sample_job *j, struct pipeline_cost *best, struct err *e)
{
    const int64_t given = (int64_t)spec_uint64(j->shared, "memory"), most = room(j);
    int64_t low = 1, high = j->in.request.batch ? j->in.request.batch : MAX_BATCH;
    struct pipeline_cost cost;
    char need[32], have[32];
    int rc;

    if (high > j->in.request.count)
        high = j->in.request.count;
    if (j->in.request.batch)
        low = high;
    rc = plan(j, low, best, e);
    if (rc)
        return rc;
    if ((int64_t)best->peak_bytes > most && (given || !j->env->plan)) {
        text_of_bytes(need, sizeof need, (int64_t)best->peak_bytes + j->base_bytes);
        text_of_bytes(have, sizeof have, most + j->base_bytes);
        return err_set(e, E_NOMEM, "%" PRId64 " picture%s at a time would take %s of memory, and %s is %s: try a "
                       "smaller size%s%s", low, low > 1 ? "s" : "", need, have, given ? "allowed" : "free",
                       low > 1 ? ", a smaller --batch" : "", j->type == F32 ? " or --dtype bf16" : "");
    }
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;

        rc = plan(j, middle, &cost, e);
        if (rc)
            return rc;
        if ((int64_t)cost.peak_bytes > most) {
            high = middle - 1;
            continue;
        }
        low = middle;
        *best = cost;
    }
    j->batch[j->point] = low;
    return OK;
}

/* Points come one after another: of memory the most counts, of work the sum. */
static void add_cost(struct pipeline_cost *all, const struct pipeline_cost *one)
{
    for (int i = 0; i < N_STAGE; i++) {
        all->stage[i].used |= one->stage[i].used;
        all->stage[i].flops += one->stage[i].flops;
        all->stage[i].calls += one->stage[i].calls;
        if (one->stage[i].bytes > all->stage[i].bytes)
            all->stage[i].bytes = one->stage[i].bytes;
    }
    if (one->peak_bytes > all->peak_bytes)
        all->peak_bytes = one->peak_bytes;
}

/* The points of a sweep with the models kept from one to the next, on a device that is null or not. */
static int all_points(struct sample_job *j, struct device *dev, const struct pipeline_sink *sink,
                      struct pipeline_cost *all, struct err *e)
{
    struct pipeline *p = NULL;
    int rc = pipeline_open(&p, dev, j->type, &j->in.pipe, e);

    for (int64_t i = 0; i < j->sweep.n && !rc; i++) {
        const bool more = j->keeps && i + 1 < j->sweep.n;
        struct pipeline_cost cost = { 0 };

        rc = j->sweep.n > 1 ? go_to(j, i, e) : OK;
        j->in.request.batch = j->batch[i];
        j->in.request.same_pictures = i > 0;        /* a sweep is of numbers alone */
        rc = rc ? rc : at_point(j, pipeline_next(p, &j->in.request, more, sink, &cost, e), e);
        add_cost(all, &cost);
    }
    pipeline_close(p);
    return rc;
}

/* Models stay from point to point if there is room for all that is then in memory at once. */
static int plan_kept(struct sample_job *j, struct err *e)
{
    const struct pipeline_sink none = { .image = NULL };
    struct pipeline_cost cost = { 0 };
    struct device null;
    int rc = open_null(j, &null, e);

    j->keeps = true;
    rc = rc ? rc : all_points(j, &null, &none, &cost, e);
    device_close(&null);
    if (!rc && (int64_t)cost.peak_bytes > room(j))
        j->keeps = false;
    else if (!rc)
        j->cost = cost;
    return rc;
}

static int plan_points(struct sample_job *j, struct err *e)
{
    int rc = OK;

    for (int64_t i = 0; i < j->sweep.n && !rc; i++) {
        struct pipeline_cost cost = { 0 };

        rc = j->sweep.n > 1 ? go_to(j, i, e) : OK;
        rc = rc ? rc : at_point(j, choose_batch(j, &cost, e), e);
        add_cost(&j->cost, &cost);
    }
    return rc || j->sweep.n < 2 ? rc : plan_kept(j, e);
}

/* ---- --plan ---- */

static void say_plan(const struct sample_job *j)
{
    const struct pipeline_request *q = &j->in.request;
    const struct pipeline_cost *c = &j->cost;
    const int64_t peak = (int64_t)c->peak_bytes + j->base_bytes;
    char line[256], size[32], points[64] = "";
    int64_t flops = 0, batch = 0;

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
    for (int64_t i = 0; i < j->sweep.n; i++)
        batch = j->batch[i] > batch ? j->batch[i] : batch;
    text_of_bytes(size, sizeof size, peak);
    if (j->sweep.n_key)
        snprintf(points, sizeof points, j->env->json ? ",\"points\":%" PRId64 : " at each of %" PRId64 " points",
                 j->sweep.n);
    if (j->env->json)
        snprintf(line, sizeof line, "{\"peak_bytes\":%" PRId64 ",\"flops\":%" PRId64 ",\"width\":%" PRId64
                 ",\"height\":%" PRId64 ",\"count\":%" PRId64 ",\"batch\":%" PRId64
                 "%s,\"dtype\":\"%s\",\"device\":\"%s\"}",
                 peak, flops, q->width, q->height, q->count, batch, points, dtype_name(j->type), j->dev.kern->name);
    else
        snprintf(line, sizeof line, "%-14s %12s %14.1f GFLOP for %" PRId64 " x %" PRId64 ", %" PRId64
                 " picture%s%s, %" PRId64 " at a time, %s on %s", "in all", size, (double)flops * 1e-9, q->width,
                 q->height, q->count, q->count > 1 ? "s" : "", points, batch, dtype_name(j->type), j->dev.kern->name);
    j->env->say(j->env->ctx, line);
}

/* ---- --show-schedule ---- */

static int say_schedule(const struct sample_job *j, struct err *e)
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

/* The rows of each point, below a line that names it. */
static int say_schedules(struct sample_job *j, struct err *e)
{
    char text[SWEEP_TEXT], line[SWEEP_TEXT + 40];
    int rc = OK;

    for (int64_t i = 0; i < j->sweep.n && !rc; i++) {
        rc = j->sweep.n > 1 ? go_to(j, i, e) : OK;
        if (!rc && j->sweep.n_key) {
            sweep_text(text, &j->sweep, i);
            snprintf(line, sizeof line, "point %" PRId64 ": %s", i, text);
            j->env->say(j->env->ctx, line);
        }
        rc = rc ? rc : say_schedule(j, e);
    }
    return rc;
}

/* ---- the job ---- */

/* Every point, before anything is made of one. */
static int check_points(struct sample_job *j, struct err *e)
{
    int rc = sweep_open(&j->sweep, j->spec, e);

    if (!rc) {
        j->batch = calloc((size_t)j->sweep.n, sizeof *j->batch);
        j->held = calloc((size_t)j->sweep.n, sizeof *j->held);
        rc = j->batch && j->held ? OK : err_set(e, E_NOMEM, "out of memory for %" PRId64 " points", j->sweep.n);
    }
    for (int64_t i = 0; i < j->sweep.n && !rc; i++) {
        rc = go_to(j, i, e);
        for (int k = 0; k < j->in.request.n_input; k++)
            j->held[i] |= (unsigned)j->in.held[k] << k;
    }
    return rc;
}

static int open_sheet(struct sample_job *j, struct err *e)
{
    int rc;

    if (!spec_text(j->spec, "sheet"))
        return OK;
    rc = sample_sheet_open(&j->sheet, &j->in, j->spec, &j->sweep, j->held, e);
    return rc ? rc : sample_check_sheet(j, e);
}

/* Of a sweep it is said at which point the work is. */
static int tick(void *ctx, const char *what, int64_t done, int64_t total)
{
    const struct sample_job *j = ctx;
    char text[64];

    snprintf(text, sizeof text, "point %" PRId64 "/%" PRId64 ": %s", j->point + 1, j->sweep.n, what);
    return progress_tick(&j->env->progress, j->sweep.n_key ? text : what, done, total);
}

static int run(struct sample_job *j, struct err *e)
{
    const struct pipeline_request *q = &j->in.request;
    const struct pipeline_sink sink = { sample_take_image, j, { tick, j } };
    const int64_t f = vae_factor(&j->in.base->vae);
    const int64_t row = j->in.base->vae.latent_channels * (q->height / f) * (q->width / f);
    struct pipeline_cost done = { 0 };
    int rc;

    if (spec_text(j->spec, "save-latents")) {
        j->latents = calloc((size_t)(q->n_input * j->sweep.n * q->count * row), sizeof *j->latents);
        if (!j->latents)
            return err_set(e, E_NOMEM, "out of memory for the latents of %" PRId64 " pictures", j->sweep.n * q->count);
    }
    rc = all_points(j, &j->dev, &sink, &done, e);
    rc = rc || !j->latents ? rc : sample_save_latents(j, e);
    return rc || !j->sheet.sheet.image.px ? rc : sample_save_sheet(j, e);
}

int job_sample(const struct spec *spec, const struct spec *shared, const struct job_env *env, struct err *e)
{
    struct sample_job j = { .spec = spec, .shared = shared, .env = env };
    int rc = sample_check_outputs(spec, e);

    rc = rc ? rc : open_device(&j, e);
    rc = rc ? rc : check_points(&j, e);
    if (!rc && env->show_schedule) {
        rc = say_schedules(&j, e);
        goto out;
    }
    rc = rc ? rc : open_sheet(&j, e);
    j.base_bytes = j.dev.apart ? 0 : machine_resident_bytes();
    rc = rc ? rc : plan_points(&j, e);
    if (!rc && env->plan)
        say_plan(&j);
    else if (!rc && !env->dry_run)
        rc = run(&j, e);
out:
    free(j.latents);
    free(j.batch);
    free(j.held);
    sample_sheet_close(&j.sheet);
    sample_inputs_close(&j.in);
    spec_free(&j.one);
    sweep_close(&j.sweep);
    device_close(&j.dev);
    return rc;
}
