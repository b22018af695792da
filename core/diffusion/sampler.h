/* core/diffusion/sampler.h: the samplers as one table of step functions. A sampler is the plan of N steps and never
 * changes; what an input remembers from step to step is its own state, so that several inputs walk the same plan at
 * different places (x and y of a pair).
 *
 *     struct sampler s;
 *     if (sampler_init(&s, SAMPLER_DDIM, &schedule, 50, 0, e)) ...
 *     struct sampler_state *st = sampler_state_new(..);
 *     for (int i = 0; i < s.n_step; i++) {
 *         eps = model(sampler_input_scale(&s, i) * x, s.time[i]);
 *         if (sampler_step(&s, st, i, x, eps, sampler_draws(&s, i) ? noise : NULL, e)) ...      x changes in place
 *     }
 *
 * Facts and numbers: diffusers 0.27.2's schedulers, spacing and offset rules included. Coefficients are computed in
 * doubles from the f32 tables; a step is then a linear combination of f32 tensors. */
#ifndef UNICON_CORE_DIFFUSION_SAMPLER_H
#define UNICON_CORE_DIFFUSION_SAMPLER_H

#include <stdbool.h>
#include "core/diffusion/schedule.h"
#include "core/tape.h"

enum sampler_kind {
    SAMPLER_DDIM, SAMPLER_DDPM, SAMPLER_EULER, SAMPLER_EULER_A, SAMPLER_DPMPP_2M, SAMPLER_PNDM, N_SAMPLER
};

enum { SAMPLER_MAX_STEP = 1001, SAMPLER_HISTORY = 4 };

struct sampler {
    enum sampler_kind kind;
    const struct schedule *schedule;    /* borrowed */
    double eta;                         /* DDIM: 0 deterministic, 1 as noisy as DDPM; Song et al. 2021, Eq. 16 */
    int n_asked;                        /* the N that was asked for */
    int n_step;                         /* model calls: N, for PNDM N + 1 */
    double time[SAMPLER_MAX_STEP];      /* what the model is told; fractions for Euler */
    double sigma[SAMPLER_MAX_STEP + 1]; /* Euler, Euler-a, DPM++: noise over signal; a 0 at the end */
    double init_scale;                  /* pure noise at step 0 is this times N(0,1) */
};

/* "ddim", "ddpm", "euler", "euler-a", "dpm++2m", "pndm"; -1 for another name. */
int sampler_kind_of(const char *name);
const char *sampler_name(enum sampler_kind k);

/* N from 1 to n_train, at most 1000; E_ARG says why a plan is impossible: it would begin at a time that the model does
 * not know, or DPM++ would take two steps at one time. With trailing spacing and some N (61, 103, ..) the reference
 * makes one step too many by a rounding error; here N is N. A walk may begin at any step: its first step is then taken
 * without history, and PNDM's second call repeats its first. */
int sampler_init(struct sampler *s, enum sampler_kind k, const struct schedule *schedule, int N, double eta,
                 struct err *e);

/* Multiplies x on its way into the model at step i (Euler: 1/sqrt(sigma^2 + 1)). */
double sampler_input_scale(const struct sampler *s, int i);

/* Noised at the level of step i: a x0 + b n. i = n_step is clean: a = 1, b = 0. */
void sampler_mix(const struct sampler *s, int i, double *a, double *b);

/* The model's output m at step i to x0 = cx x + cm m, where x is the latent as sampler_step takes it (not scaled). */
void sampler_x0(const struct sampler *s, int i, double *cx, double *cm);

/* Does the reference draw noise at step i? (Even where its coefficient is 0, for its draws are a sequence.) */
bool sampler_draws(const struct sampler *s, int i);

/* Memory of one input: f32 tensors like x, from the arenas given. */
struct sampler_state {
    int n_seen;                 /* steps taken */
    int last;                   /* step index taken last, -1 before */
    struct tensor *history[SAMPLER_HISTORY];    /* PNDM: earlier outputs, DPM++: x0s, latest first; else room for x0 */
    struct tensor *kept;        /* PNDM: x before its first step */
    double history_lambda;      /* DPM++: log SNR level of history[0] */
};

/* All tensors that the kind needs, like x (B,H,W,C) f32, are made at once. */
int sampler_state_init(struct sampler_state *st, const struct sampler *s, struct arena *meta, struct arena *data,
                       const struct tensor *x, struct err *e);
void sampler_state_restart(struct sampler_state *st);   /* forgets, keeps the memory */

/* One step at index i, x in place. m: the model's output at x, like x, f32; it may be overwritten. noise: N(0,1) like
 * x, or NULL where sampler_draws is false or its coefficient is 0 (Euler). An input takes each step once, in order; it
 * may leave some out. On failure the state is as before, but x is lost if a kernel failed. On the null device nothing
 * is computed. */
int sampler_step(struct device *dev, const struct sampler *s, struct sampler_state *st, int i, struct tensor *x,
                 struct tensor *m, const struct tensor *noise, struct err *e);

#endif
