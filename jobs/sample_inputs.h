/* jobs/sample_inputs.h: what a sample job is made from, opened and checked: model, adapters, prompts, pictures, noise.
 *
 *     struct sample_inputs in;
 *     if (sample_inputs_open(&in, spec, warn, e)) ...
 *     pipeline_run(.., &in.pipe, &in.request, ..);
 *     sample_inputs_close(&in);                                                                               */
#ifndef UNICON_JOBS_SAMPLE_INPUTS_H
#define UNICON_JOBS_SAMPLE_INPUTS_H

#include "core/diffusion/pipeline.h"
#include "jobs/job_sample.h"
#include "store/base_model.h"
#include "store/lora_file.h"

struct sample_inputs {
    struct base_model *base;
    struct lora_file *file[LORA_MAX_USE];
    struct lora_set lora;
    struct pipeline_base pipe;          /* of base and lora */
    struct pipeline_request request;    /* batch and what lies below included */
    int32_t prompt[PIPELINE_TOKENS], negative[PIPELINE_TOKENS];
    float *x, *mask, *noise;            /* malloc'ed or NULL */
};

/* *in is zeroed first and may be closed whether or not this succeeds. */
int sample_inputs_open(struct sample_inputs *in, const struct spec *spec, const struct job_env *env, struct err *e);
void sample_inputs_close(struct sample_inputs *in);

#endif
