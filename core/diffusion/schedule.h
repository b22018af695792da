/* core/diffusion/schedule.h: how much noise there is at each of the training's time steps; Ho et al. 2020, sec. 2.
 * The table is rounded where diffusers rounds it (f32 betas, f32 running product). */
#ifndef UNICON_CORE_DIFFUSION_SCHEDULE_H
#define UNICON_CORE_DIFFUSION_SCHEDULE_H

#include <stdbool.h>
#include "core/err.h"

enum { SCHEDULE_MAX_T = 4096 };

enum beta_kind { BETA_LINEAR, BETA_SCALED_LINEAR, BETA_SQUARED_COSINE };
enum prediction { PREDICT_EPSILON, PREDICT_V, PREDICT_SAMPLE };
enum spacing { SPACING_OWN, SPACING_LEADING, SPACING_LINSPACE, SPACING_TRAILING };     /* OWN: the sampler's */

/* What a base model's scheduler_config.json says; schedule_config_sd15() is what SD1.5's does. */
struct schedule_config {
    int n_train;                /* 1000 */
    enum beta_kind beta;
    double beta_start, beta_end;
    enum prediction prediction;
    enum spacing spacing;       /* OWN unless the file names one: then all samplers take it */
    int steps_offset;
    bool set_alpha_to_one;      /* the level before the first step is clean, not that of step 0 */
    bool clip_sample;           /* x0 is clamped to +-clip_range (DDIM, DDPM) */
    double clip_range;
    bool karras;                /* Karras et al. 2022, Eq. 5: noise levels of Euler and DPM-Solver++ */
    bool zero_terminal_snr;     /* Lin et al. 2023, Alg. 1 */
};

struct schedule {
    struct schedule_config config;
    double beta[SCHEDULE_MAX_T];
    double alpha_bar[SCHEDULE_MAX_T];   /* product of 1 - beta up to and with t */
    double alpha_bar_before;            /* in place of step -1 */
};

struct schedule_config schedule_config_sd15(void);

/* E_ARG for counts or betas that make no schedule. */
int schedule_init(struct schedule *s, const struct schedule_config *c, struct err *e);

/* sqrt((1 - alpha_bar)/alpha_bar), rounded to f32 as there. Where alpha_bar is 0 (zero terminal SNR) 2^-24 stands for
 * it. */
double schedule_sigma(const struct schedule *s, int t);

#endif
