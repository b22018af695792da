/* jobs/sample_save.h: a sample job while it is under way, and where its results go: pictures, latents, the sheet, each
 * with the spec that makes it again. job_sample.c is the way through it. */
#ifndef UNICON_JOBS_SAMPLE_SAVE_H
#define UNICON_JOBS_SAMPLE_SAVE_H

#include "jobs/sample_inputs.h"
#include "jobs/sample_sheet.h"
#include "jobs/sample_sweep.h"

struct sample_job {
    const struct spec *spec, *shared;
    const struct job_env *env;
    struct sweep sweep;         /* of one point where nothing is swept */
    int64_t point;              /* where it stands; `one` and `in` are of this point */
    struct spec one;
    struct sample_inputs in;
    int64_t *batch;             /* (point): as many as fit, or what was asked for */
    unsigned *held;             /* (point): inputs that stay as they are, a bit each */
    struct device dev;
    enum dtype type;
    struct pipeline_cost cost;  /* of dry runs of all points, each with its batch */
    bool keeps;                 /* models stay in memory from point to point */
    int64_t base_bytes;         /* of the process before the run, the sheet included */
    struct sample_sheet sheet;
    float *latents;             /* (input,point,count,C,h,w) for --save-latents, or NULL */
};

/* Can files be made where they are to be? Said before hours of work, not after. */
int sample_check_outputs(const struct spec *spec, struct err *e);
/* Nothing else may be written where the sheet is to be; j->in is open. */
int sample_check_sheet(const struct sample_job *j, struct err *e);

/* A pipeline_sink's `image`; ctx is the job. */
int sample_take_image(void *ctx, int64_t index, int k, const float *rgb, const float *latents, struct err *e);
int sample_save_latents(struct sample_job *j, struct err *e);
int sample_save_sheet(struct sample_job *j, struct err *e);

#endif
