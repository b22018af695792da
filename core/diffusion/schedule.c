/* core/diffusion/schedule.c: betas and their products, each operation rounded where the reference rounds it, because a
 * bit of beta at the clean end is a bit of every sigma after it. */
#include "core/diffusion/schedule.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

struct schedule_config schedule_config_sd15(void)
{
    return (struct schedule_config){
        .n_train = 1000,
        .beta = BETA_SCALED_LINEAR,
        .beta_start = 0.00085,
        .beta_end = 0.012,
        .prediction = PREDICT_EPSILON,
        .spacing = SPACING_OWN,
        .steps_offset = 1,
        .clip_range = 1,
    };
}

/* Written so that a NaN is refused too. */
static int check(const struct schedule_config *c, struct err *e)
{
    if (c->n_train < 2 || c->n_train > SCHEDULE_MAX_T)
        return err_set(e, E_ARG, "a schedule of %d training steps: want 2 to %d", c->n_train, SCHEDULE_MAX_T);
    if ((unsigned)c->beta > BETA_SQUARED_COSINE || (unsigned)c->prediction > PREDICT_SAMPLE
        || (unsigned)c->spacing > SPACING_TRAILING)
        return err_set(e, E_ARG, "a schedule of an unknown kind (beta %d, prediction %d, spacing %d)", (int)c->beta,
                       (int)c->prediction, (int)c->spacing);
    if (c->beta != BETA_SQUARED_COSINE
        && !(c->beta_start > 0 && c->beta_start < 1 && c->beta_end > 0 && c->beta_end < 1))
        return err_set(e, E_ARG, "betas from %g to %g: want numbers between 0 and 1", c->beta_start, c->beta_end);
    if (c->steps_offset < 0 || c->steps_offset >= c->n_train)
        return err_set(e, E_ARG, "steps_offset %d: want 0 to %d", c->steps_offset, c->n_train - 1);
    if (c->clip_sample && !(c->clip_range > 0 && c->clip_range < INFINITY))
        return err_set(e, E_ARG, "clip_sample_range %g: want a number above 0", c->clip_range);
    return OK;
}

/* torch.linspace in float32 as processors with fused multiply-add compute it (every one with AVX2 does): from both
 * ends to the middle. Without them half of its numbers end in another bit. */
static float linspace(float first, float last, int n, int i)
{
    const float step = (last - first) / (float)(n - 1);

    return i < n / 2 ? fmaf(step, (float)i, first) : fmaf(-step, (float)(n - i - 1), last);
}

/* Nichol & Dhariwal 2021, Eq. 17: alpha_bar at t in [0,1]. */
static double cosine(double t)
{
    const double c = cos((t + 0.008) / 1.008 * pi / 2);

    return c * c;
}

static float beta_at(const struct schedule_config *c, int t)
{
    const double n = c->n_train;
    float root;

    switch (c->beta) {
    case BETA_LINEAR: return linspace((float)c->beta_start, (float)c->beta_end, c->n_train, t);
    case BETA_SCALED_LINEAR:
        root = linspace((float)sqrt(c->beta_start), (float)sqrt(c->beta_end), c->n_train, t);
        return root * root;
    default: return (float)fmin(1 - cosine((t + 1) / n) / cosine(t / n), 0.999);
    }
}

/* alpha_bar from beta. torch.cumprod multiplies float32 in double and rounds each product. */
static void multiply(struct schedule *s)
{
    double product = 1;

    for (int t = 0; t < s->config.n_train; t++) {
        product *= (double)(1.0f - (float)s->beta[t]);
        s->alpha_bar[t] = (double)(float)product;
    }
}

/* Lin et al. 2023, Alg. 1: sqrt(alpha_bar) is shifted and scaled so that its last is 0 and its first stays; then betas
 * are taken back from it. All in float32. */
static void zero_terminal_snr(struct schedule *s)
{
    const int n = s->config.n_train;
    const float first = sqrtf((float)s->alpha_bar[0]), last = sqrtf((float)s->alpha_bar[n - 1]);
    const float scale = first / (first - last);
    float before = 1;

    for (int t = 0; t < n; t++) {
        const float root = (sqrtf((float)s->alpha_bar[t]) - last) * scale, bar = root * root;

        s->beta[t] = (double)(1.0f - bar / before);
        before = bar;
    }
    multiply(s);
}

int schedule_init(struct schedule *s, const struct schedule_config *c, struct err *e)
{
    struct schedule made = { .config = *c };
    const int n = c->n_train;
    int rc = check(c, e);

    if (rc)
        return rc;
    for (int t = 0; t < n; t++)
        made.beta[t] = (double)beta_at(c, t);
    multiply(&made);
    if (c->zero_terminal_snr && made.alpha_bar[0] > made.alpha_bar[n - 1])
        zero_terminal_snr(&made);
    if (!(made.alpha_bar[0] < 1))
        return err_set(e, E_ARG, "betas from %g: there is no noise at step 0", c->beta_start);
    for (int t = 0; t < n - c->zero_terminal_snr; t++)
        if (!(made.alpha_bar[t] > 0))
            return err_set(e, E_ARG, "betas to %g over %d steps: nothing is left of the signal at step %d", c->beta_end,
                           n, t);
    made.alpha_bar_before = c->set_alpha_to_one ? 1 : made.alpha_bar[0];
    *s = made;
    return OK;
}

double schedule_sigma(const struct schedule *s, int t)
{
    const float bar = s->alpha_bar[t] > 0 ? (float)s->alpha_bar[t] : 0x1p-24f;

    return (double)sqrtf((1.0f - bar) / bar);
}
