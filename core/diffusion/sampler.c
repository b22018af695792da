/* core/diffusion/sampler.c: plans: at which times the model is asked, how noisy each of them is, and what that makes of
 * the model's output. sampler_steps.c walks them. */
#include "core/diffusion/sampler.h"

#include <math.h>
#include <string.h>

/* spacing: what the reference's class takes where the model's file names none. */
static const struct { const char *name; enum spacing spacing; } kinds[N_SAMPLER] = {
    [SAMPLER_DDIM] = { "ddim", SPACING_LEADING },
    [SAMPLER_DDPM] = { "ddpm", SPACING_LEADING },
    [SAMPLER_EULER] = { "euler", SPACING_LINSPACE },
    [SAMPLER_EULER_A] = { "euler-a", SPACING_LINSPACE },
    [SAMPLER_DPMPP_2M] = { "dpm++2m", SPACING_LINSPACE },
    [SAMPLER_PNDM] = { "pndm", SPACING_LEADING },
};

int sampler_kind_of(const char *name)
{
    for (int k = 0; k < N_SAMPLER; k++)
        if (!strcmp(name, kinds[k].name))
            return k;
    return -1;
}

const char *sampler_name(enum sampler_kind k)
{
    return (unsigned)k < N_SAMPLER ? kinds[k].name : "?";
}

static bool is_euler(const struct sampler *s)
{
    return s->kind == SAMPLER_EULER || s->kind == SAMPLER_EULER_A;
}

static bool by_sigma(const struct sampler *s)
{
    return is_euler(s) || s->kind == SAMPLER_DPMPP_2M;
}

static enum spacing spacing_of(const struct sampler *s)
{
    const enum spacing named = s->schedule->config.spacing;

    return named == SPACING_OWN ? kinds[s->kind].spacing : named;
}

/* ---- times ---- */

/* Time i of N, from noisy to clean: Table 2 of Lin et al. 2023. DPM-Solver++ takes N + 1 points of the first two and
 * leaves out the cleanest. Where N divides badly the reference's trailing spacing has one point more, time -1, by a
 * rounding error in its range; it is not made here. */
static double time_at(const struct sampler *s, int i)
{
    const struct schedule_config *c = &s->schedule->config;
    const int N = s->n_asked, points = s->kind == SAMPLER_DPMPP_2M ? N + 1 : N, k = points - 1 - i;
    const double n = c->n_train, delta = (n - n / N) - n;
    double t;

    switch (spacing_of(s)) {
    case SPACING_LEADING:
        return (double)k * (c->n_train / points) + c->steps_offset;
    case SPACING_TRAILING:
        return rint(n + i * delta) - 1;
    default:
        t = k == 0 ? 0 : k == points - 1 ? n - 1 : k * ((n - 1) / (points - 1));
        return is_euler(s) ? (double)(float)t : rint(t);
    }
}

static int plan_times(struct sampler *s, struct err *e)
{
    const int N = s->n_asked, last = s->schedule->config.n_train - 1;

    s->n_step = N;
    if (s->kind != SAMPLER_PNDM || N == 1) {
        for (int i = 0; i < N; i++)
            s->time[i] = time_at(s, i);
    } else {                            /* the second time twice: that step is taken again with a better slope */
        s->n_step = N + 1;
        for (int i = 0; i <= N; i++)
            s->time[i] = time_at(s, i - (i > 1));
    }
    if (s->time[0] > last)
        return err_set(e, E_ARG, "%s in %d steps begins at time %g, but the model knows 0 to %d: take fewer steps",
                       sampler_name(s->kind), N, s->time[0], last);
    return OK;
}

/* ---- noise levels ---- */

/* sigma at a time between two of the table. */
static double sigma_at(const struct schedule *s, double t)
{
    const int low = (int)t;
    const double here = schedule_sigma(s, low);

    return low + 1 < s->config.n_train ? (schedule_sigma(s, low + 1) - here) * (t - low) + here : here;
}

/* The time at which the table has this sigma, linear in log sigma, in float32 as there. */
static double time_of(const struct schedule *s, double sigma)
{
    const float want = (float)log(sigma);
    float low, high, w;
    int t = s->config.n_train - 2;

    while (t > 0 && want < (float)log(schedule_sigma(s, t)))
        t--;
    low = (float)log(schedule_sigma(s, t));
    high = (float)log(schedule_sigma(s, t + 1));
    w = fminf(fmaxf((low - want) / (low - high), 0), 1);
    return (double)(1 - w) * t + (double)w * (t + 1);
}

/* Karras et al. 2022, Eq. 5, rho 7. Euler goes from the noisiest to the cleanest level of its plan, DPM-Solver++ over
 * the whole table; each then tells the model the time at which the table has that level. */
static void plan_karras(struct sampler *s)
{
    const struct schedule *c = s->schedule;
    const bool whole = s->kind == SAMPLER_DPMPP_2M;
    const int N = s->n_asked;
    const double first = whole ? schedule_sigma(c, c->config.n_train - 1) : sigma_at(c, s->time[0]);
    const double last = whole ? schedule_sigma(c, 0) : sigma_at(c, s->time[N - 1]);
    const double high = pow(first, 1 / 7.0), low = pow(last, 1 / 7.0);

    for (int i = 0; i < N; i++) {
        const double ramp = i == 0 ? 0 : i == N - 1 ? 1 : i * (1.0 / (N - 1));
        const double sigma = pow(high + ramp * (low - high), 7), t = time_of(c, sigma);

        s->sigma[i] = (double)(float)sigma;
        s->time[i] = whole ? rint(t) : (double)(float)t;
    }
}

static int plan_sigmas(struct sampler *s, struct err *e)
{
    const int N = s->n_asked;

    if (s->schedule->config.karras && s->kind != SAMPLER_EULER_A)
        plan_karras(s);
    else
        for (int i = 0; i < N; i++)
            s->sigma[i] = (double)(float)sigma_at(s->schedule, s->time[i]);
    s->sigma[N] = 0;
    if (is_euler(s))
        s->init_scale = spacing_of(s) == SPACING_LEADING ? sqrt(s->sigma[0] * s->sigma[0] + 1) : s->sigma[0];
    for (int i = 1; i < N && !is_euler(s); i++)         /* its second order divides by the distance of two levels */
        if (!(s->sigma[i] < s->sigma[i - 1]))
            return err_set(e, E_ARG, "%s in %d steps: steps %d and %d fall on the same time; take fewer steps",
                           sampler_name(s->kind), N, i - 1, i);
    return OK;
}

/* ---- the plan ---- */

static int check(const struct sampler *s, struct err *e)
{
    const struct schedule_config *c = &s->schedule->config;
    const int most = c->n_train < SAMPLER_MAX_STEP - 1 ? c->n_train : SAMPLER_MAX_STEP - 1;

    if ((unsigned)s->kind >= N_SAMPLER)
        return err_set(e, E_ARG, "unknown sampler %d", (int)s->kind);
    if (s->n_asked < 1 || s->n_asked > most)
        return err_set(e, E_ARG, "%d steps: want 1 to %d", s->n_asked, most);
    if (!(s->eta >= 0 && s->eta <= 1))
        return err_set(e, E_ARG, "eta %g: want 0 to 1", s->eta);
    if (s->kind == SAMPLER_PNDM && c->prediction == PREDICT_SAMPLE)
        return err_set(e, E_ARG, "pndm does not work with a model that predicts the sample itself: use ddim");
    if (s->kind == SAMPLER_PNDM && c->zero_terminal_snr)
        return err_set(e, E_ARG, "pndm does not work with a zero terminal SNR: use ddim");
    return OK;
}

int sampler_init(struct sampler *s, enum sampler_kind k, const struct schedule *schedule, int N, double eta,
                 struct err *e)
{
    struct sampler made = { .kind = k, .schedule = schedule, .eta = eta, .n_asked = N, .init_scale = 1 };
    int rc = check(&made, e);

    if (!rc)
        rc = plan_times(&made, e);
    if (!rc && by_sigma(&made))
        rc = plan_sigmas(&made, e);
    if (!rc && !by_sigma(&made) && schedule->config.prediction == PREDICT_EPSILON
        && !(schedule->alpha_bar[(int)made.time[0]] > 0))
        rc = err_set(e, E_ARG, "%s begins at time %g, where the signal is 0 (zero terminal SNR) and a prediction of the"
                     " noise says nothing of the image: the model has to predict v", sampler_name(k), made.time[0]);
    if (!rc)
        *s = made;
    return rc;
}

/* ---- what a plan says of step i ---- */

double sampler_input_scale(const struct sampler *s, int i)
{
    return is_euler(s) ? 1 / sqrt(s->sigma[i] * s->sigma[i] + 1) : 1;
}

void sampler_mix(const struct sampler *s, int i, double *a, double *b)
{
    double bar, alpha;

    if (i >= s->n_step) {
        *a = 1;
        *b = 0;
    } else if (by_sigma(s)) {
        alpha = is_euler(s) ? 1 : 1 / sqrt(s->sigma[i] * s->sigma[i] + 1);
        *a = alpha;
        *b = s->sigma[i] * alpha;
    } else {
        bar = s->schedule->alpha_bar[(int)s->time[i]];
        *a = sqrt(bar);
        *b = sqrt(1 - bar);
    }
}

/* x = a x0 + b eps. A model of v says v = (a eps - b x0)/r with r^2 = a^2 + b^2: 1, except for Euler, whose x is not
 * scaled to unit variance. */
void sampler_x0(const struct sampler *s, int i, double *cx, double *cm)
{
    double a, b, r2;

    sampler_mix(s, i, &a, &b);
    r2 = a * a + b * b;
    switch (s->schedule->config.prediction) {
    case PREDICT_EPSILON:
        *cx = 1 / a;
        *cm = -b / a;
        break;
    case PREDICT_V:
        *cx = a / r2;
        *cm = -b / sqrt(r2);
        break;
    default:
        *cx = 0;
        *cm = 1;
    }
}

bool sampler_draws(const struct sampler *s, int i)
{
    switch (s->kind) {
    case SAMPLER_DDIM: return s->eta > 0;
    case SAMPLER_DDPM: return s->time[i] > 0;
    case SAMPLER_EULER:                 /* for the churn that nobody asks for */
    case SAMPLER_EULER_A: return true;
    default: return false;
    }
}
