/* jobs/sample_sweep.h: --sweep: options that walk together along straight lines from corner to corner.
 *
 *     struct sweep w;
 *     if (sweep_open(&w, spec, e)) ...                 'x-noise,y-noise=1,0:1,1:0,1' in --sweep-steps 9
 *     for (int64_t i = 0; i < w.n; i++)
 *         if (sweep_spec(&one, &w, spec, i, e)) ...    the spec of point i: values set, --sweep unset
 *     sweep_close(&w);                                                                                        */
#ifndef UNICON_JOBS_SAMPLE_SWEEP_H
#define UNICON_JOBS_SAMPLE_SWEEP_H

#include "jobs/spec.h"

enum { SWEEP_MAX_KEY = 8, SWEEP_MAX_CORNER = 64, SWEEP_TEXT = 40 * SWEEP_MAX_KEY };

struct sweep {
    int64_t n;                          /* points; 1 without --sweep */
    int n_key;                          /* 0 without --sweep */
    struct sweep_key {
        const struct spec_key *key;
        char name[64];                  /* as it was said: "depth.y-noise" */
        char whose[64];                 /* "depth", or empty */
    } key[SWEEP_MAX_KEY];
    double *value;                      /* (n,n_key) */
};

/* From a spec's `sweep` and `sweep-steps`. Point i of n lies at (i S)/(n - 1) along S lines, each as long as any other;
 * where that is whole the values are those that were given, elsewhere they are rounded to six digits, and to whole
 * numbers for options that take those. E_ARG says which option or corner is wrong: options that take no number or that
 * all pictures of a run share (size, count, ..), a corner with too few values, values that the option refuses. */
int sweep_open(struct sweep *w, const struct spec *spec, struct err *e);
void sweep_close(struct sweep *w);          /* takes a zeroed one */

/* *out is new and to be freed, also on failure. Without a sweep it is a copy. */
int sweep_spec(struct spec *out, const struct sweep *w, const struct spec *spec, int64_t point, struct err *e);

/* "x-noise 1, y-noise 0.25", or empty. */
void sweep_text(char buf[SWEEP_TEXT], const struct sweep *w, int64_t point);

#endif
