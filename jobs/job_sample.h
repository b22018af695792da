/* jobs/job_sample.h: the body of a "sample" job: spec -> base model -> pipeline -> pictures on disk.
 *
 *     struct job_env env = { .say = print_line, .progress = bar_progress(&bar) };
 *     if (job_sample(&spec, &shared, &env, e)) ...                                                            */
#ifndef UNICON_JOBS_JOB_SAMPLE_H
#define UNICON_JOBS_JOB_SAMPLE_H

#include "core/progress.h"
#include "jobs/spec.h"

/* What a body has from its surroundings. */
struct job_env {
    void (*say)(void *ctx, const char *line);   /* a result: one line for stdout */
    void (*warn)(void *ctx, const char *line);  /* chatter: one line for stderr */
    void *ctx;
    struct progress progress;
    bool plan, dry_run, json;                   /* say what it would cost; or only check; results as JSON */
    bool show_schedule;                         /* say the rows of a pair's schedule */
};

/* shared: the keys that do not change what is made (device, threads, memory, quality). Everything that the spec names
 * is opened and checked before anything is computed. Pictures appear whole, one by one; a job that is stopped leaves
 * those that were finished. */
int job_sample(const struct spec *spec, const struct spec *shared, const struct job_env *env, struct err *e);

#endif
