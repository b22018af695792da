/* core/diffusion/sampler_steps.c: the steps of sampler.h. Those without memory are one linear combination of the
 * latent, the model's output and noise; DPM-Solver++ remembers the last x0, PNDM the last outputs and one latent. Sums
 * are put together in doubles as far as they go, so that a step costs two or three roundings. */
#include "core/diffusion/sampler.h"

#include <math.h>

#include "core/op/op.h"

/* Everything that a step works on. */
struct walk {
    struct device *dev;
    const struct sampler *s;
    struct sampler_state *st;
    int i;
    struct tensor *x, *m;
    const struct tensor *noise;
    struct err *e;
};

/* y = a x + b z; z NULL: a x + b. */
static int combine(struct walk *w, struct tensor *y, double a, const struct tensor *x, double b, const struct tensor *z)
{
    return op_run(w->e, sampler_name(w->s->kind),
                  w->dev->kern->axpby(&w->dev->ctx, y->data, (float)a, x->data, (float)b, z ? z->data : NULL, F32,
                                      tensor_count(y)));
}

static int copy(struct walk *w, struct tensor *y, const struct tensor *x)
{
    const int64_t n = tensor_count(y);

    return op_run(w->e, sampler_name(w->s->kind),
                  w->dev->kern->copy_rows(&w->dev->ctx, y->data, n, x->data, n, F32, 1, n, false));
}

static int relu(struct walk *w, struct tensor *y)
{
    return op_run(w->e, sampler_name(w->s->kind),
                  w->dev->kern->unary(&w->dev->ctx, K_RELU, y->data, y->data, F32, tensor_count(y)));
}

/* y to [-r, r], by u = relu(r - y), y = relu(2r - u) - r: exactly +-r outside, however far. */
static int clamp(struct walk *w, struct tensor *y, double r)
{
    int rc = combine(w, y, -1, y, r, NULL);

    if (!rc)
        rc = relu(w, y);
    if (!rc)
        rc = combine(w, y, -1, y, 2 * r, NULL);
    if (!rc)
        rc = relu(w, y);
    return rc ? rc : combine(w, y, 1, y, -r, NULL);
}

/* ---- DDIM, DDPM, Euler: x' = x0 x0(x, m) + x x + m m + noise noise ---- */

struct coefs {
    double x0, x, m, noise;
};

/* alpha_bar one step further, which the reference takes to be n_train / N times earlier whatever the spacing. */
static double alpha_next(const struct sampler *s, int i, double clean)
{
    const int t = (int)s->time[i] - s->schedule->config.n_train / s->n_asked;

    return t >= 0 ? s->schedule->alpha_bar[t] : clean;
}

/* The model's output at a level to eps = ex x + em m. */
static void eps_of(enum prediction p, double alpha_bar, double *ex, double *em)
{
    const double a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar);

    *ex = p == PREDICT_EPSILON ? 0 : p == PREDICT_V ? b : 1 / b;
    *em = p == PREDICT_EPSILON ? 1 : p == PREDICT_V ? a : -a / b;
}

/* Song et al. 2021, Eq. 12 and 16. eps is the model's, also where x0 is clamped. */
static struct coefs ddim(const struct sampler *s, int i)
{
    const double bar = s->schedule->alpha_bar[(int)s->time[i]];
    const double next = alpha_next(s, i, s->schedule->alpha_bar_before);
    const double std = s->eta * sqrt((1 - next) / (1 - bar) * (1 - bar / next));
    const double direction = sqrt(fmax(1 - next - std * std, 0));
    double ex, em;

    eps_of(s->schedule->config.prediction, bar, &ex, &em);
    return (struct coefs){ sqrt(next), direction * ex, direction * em, std };
}

/* Ho et al. 2020, Eq. 7, with the smaller of its two variances; the last level is clean whatever the schedule says. */
static struct coefs ddpm(const struct sampler *s, int i)
{
    const double bar = s->schedule->alpha_bar[(int)s->time[i]], next = alpha_next(s, i, 1);
    const double alpha = bar / next, beta = 1 - alpha;
    const double var = fmax((1 - next) / (1 - bar) * beta, 1e-20);

    return (struct coefs){ sqrt(next) * beta / (1 - bar), sqrt(alpha) * (1 - next) / (1 - bar), 0,
                           s->time[i] > 0 ? sqrt(var) : 0 };
}

/* Karras et al. 2022, Alg. 2 without churn: along (x - x0)/sigma to the next sigma. */
static struct coefs euler(const struct sampler *s, int i)
{
    const double to = s->sigma[i + 1] / s->sigma[i];

    return (struct coefs){ 1 - to, to, 0, 0 };
}

/* The same to a level below, and noise up to the next one. */
static struct coefs euler_a(const struct sampler *s, int i)
{
    const double from = s->sigma[i], next = s->sigma[i + 1];
    const double up2 = next * next * (from * from - next * next) / (from * from);
    const double down = sqrt(fmax(next * next - up2, 0)) / from;

    return (struct coefs){ 1 - down, down, 0, sqrt(fmax(up2, 0)) };
}

static struct coefs coefs_of(const struct sampler *s, int i)
{
    switch (s->kind) {
    case SAMPLER_DDIM: return ddim(s, i);
    case SAMPLER_DDPM: return ddpm(s, i);
    case SAMPLER_EULER: return euler(s, i);
    default: return euler_a(s, i);
    }
}

static bool clips(const struct sampler *s)
{
    return s->schedule->config.clip_sample && (s->kind == SAMPLER_DDIM || s->kind == SAMPLER_DDPM);
}

static int step_plain(struct walk *w)
{
    struct coefs c = coefs_of(w->s, w->i);
    struct tensor *x = w->x, *x0 = w->st->history[0];
    double cx, cm;
    int rc;

    if (c.noise != 0 && !w->noise)
        return err_set(w->e, E_ARG, "step %d of %s needs noise", w->i, sampler_name(w->s->kind));
    sampler_x0(w->s, w->i, &cx, &cm);
    if (clips(w->s)) {
        rc = combine(w, x0, cx, x, cm, w->m);
        if (!rc)
            rc = clamp(w, x0, w->s->schedule->config.clip_range);
        if (!rc)
            rc = combine(w, x, c.x, x, c.x0, x0);
        if (!rc && c.m != 0)
            rc = combine(w, x, 1, x, c.m, w->m);
    } else
        rc = combine(w, x, c.x + c.x0 * cx, x, c.m + c.x0 * cm, w->m);
    if (!rc && c.noise != 0)
        rc = combine(w, x, 1, x, c.noise, w->noise);
    return rc;
}

/* ---- DPM-Solver++ (2M, midpoint); Lu et al. 2022, Alg. 2 ----
 * history: x0 of the last step, and a place for this one's. The first step, and the last, where the next log SNR is
 * infinite, are of first order. */
static int step_dpmpp(struct walk *w)
{
    const struct sampler *s = w->s;
    struct sampler_state *st = w->st;
    const double sigma = s->sigma[w->i], next = s->sigma[w->i + 1], lambda = -log(sigma);
    const double alpha = 1 / sqrt(sigma * sigma + 1), alpha_next = 1 / sqrt(next * next + 1);
    const double back = lambda - st->history_lambda;            /* log SNR gained by the step before */
    const bool second = st->n_seen > 0 && next > 0 && back > 0;
    const double share = second ? 0.5 * (-log(next) - lambda) / back : 0;       /* 1/(2r) */
    const double towards = alpha_next * (1 - next / sigma);     /* -alpha (e^-h - 1) */
    struct tensor *was = st->history[0], *x0 = st->history[1];
    double cx, cm;
    int rc;

    sampler_x0(s, w->i, &cx, &cm);
    rc = combine(w, x0, cx, w->x, cm, w->m);
    if (!rc)
        rc = combine(w, w->x, next * alpha_next / (sigma * alpha), w->x, towards * (1 + share), x0);
    if (!rc && second)
        rc = combine(w, w->x, 1, w->x, -towards * share, was);
    if (rc)
        return rc;
    st->history[0] = x0;
    st->history[1] = was;
    st->history_lambda = lambda;
    return OK;
}

/* ---- PNDM by linear multistep (PLMS); Liu et al. 2022, Eq. 9 and 12 ----
 * history: the last three outputs as the model gave them. The second call repeats the first step from the latent kept,
 * with the mean of both outputs; its own output is not remembered. What is the second call is counted, not looked up:
 * a walk that starts later than step 0 repeats its first step too, as the reference does. */
enum { PNDM_HISTORY = 3 };

static const double plms[PNDM_HISTORY + 1][PNDM_HISTORY + 1] = {    /* latest output first */
    { 1 },
    { 3.0 / 2, -1.0 / 2 },
    { 23.0 / 12, -16.0 / 12, 5.0 / 12 },
    { 55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24 },
};

/* The transfer of Eq. 9 from one time to another: x' = cx x + cm m. */
static void transfer(const struct schedule *s, int from, int to, double *cx, double *cm)
{
    const double bar = s->alpha_bar[from], next = to >= 0 ? s->alpha_bar[to] : s->alpha_bar_before;
    const double ce = (bar - next) / (bar * sqrt(1 - next) + sqrt(bar * (1 - bar) * next));
    double ex, em;

    eps_of(s->config.prediction, bar, &ex, &em);
    *cx = sqrt(next / bar) + ce * ex;
    *cm = ce * em;
}

static int pndm_again(struct walk *w, int t, int stride)
{
    double cx, cm;
    int rc;

    if (t + stride >= w->s->schedule->config.n_train)
        return err_set(w->e, E_ARG, "pndm: the second step of a walk is at time %d, too early to repeat the first", t);
    transfer(w->s->schedule, t + stride, t, &cx, &cm);
    rc = combine(w, w->x, cx, w->st->kept, cm / 2, w->m);
    return rc ? rc : combine(w, w->x, 1, w->x, cm / 2, w->st->history[0]);
}

static int step_pndm(struct walk *w)
{
    struct sampler_state *st = w->st;
    const int t = (int)w->s->time[w->i], stride = w->s->schedule->config.n_train / w->s->n_asked;
    const int known = st->n_seen > PNDM_HISTORY ? PNDM_HISTORY : st->n_seen > 1 ? st->n_seen - 1 : 0;
    struct tensor *oldest = st->history[PNDM_HISTORY - 1];
    double cx, cm;
    int rc = OK;

    if (st->n_seen == 1)
        return pndm_again(w, t, stride);
    if (st->n_seen == 0)
        rc = copy(w, st->kept, w->x);
    transfer(w->s->schedule, t, t - stride, &cx, &cm);
    if (!rc)
        rc = combine(w, w->x, cx, w->x, cm * plms[known][0], w->m);
    for (int j = 0; j < known && !rc; j++)
        rc = combine(w, w->x, 1, w->x, cm * plms[known][j + 1], st->history[j]);
    if (!rc)
        rc = copy(w, oldest, w->m);
    if (rc)
        return rc;
    for (int j = PNDM_HISTORY - 1; j > 0; j--)
        st->history[j] = st->history[j - 1];
    st->history[0] = oldest;
    return OK;
}

/* ---- state ---- */

static int (*const steps[N_SAMPLER])(struct walk *w) = {
    [SAMPLER_DDIM] = step_plain,        [SAMPLER_DDPM] = step_plain,        [SAMPLER_EULER] = step_plain,
    [SAMPLER_EULER_A] = step_plain,     [SAMPLER_DPMPP_2M] = step_dpmpp,    [SAMPLER_PNDM] = step_pndm,
};

static int n_history(const struct sampler *s)
{
    return s->kind == SAMPLER_PNDM ? PNDM_HISTORY : s->kind == SAMPLER_DPMPP_2M ? 2 : clips(s);
}

static int check_like(const struct sampler *s, const char *what, const struct tensor *a, const struct tensor *x,
                      struct err *e)
{
    char text[2][96];

    if (a && a->type == F32 && x->type == F32 && tensor_same_shape(a, x))
        return OK;
    return err_set(e, E_ARG, "%s: %s is %s, the latent %s; both have to be f32 and of one shape", sampler_name(s->kind),
                   what, a ? tensor_text(a, text[0], sizeof text[0]) : "missing",
                   tensor_text(x, text[1], sizeof text[1]));
}

int sampler_state_init(struct sampler_state *st, const struct sampler *s, struct arena *meta, struct arena *data,
                       const struct tensor *x, struct err *e)
{
    struct sampler_state made = { .last = -1 };
    const size_t meta_mark = arena_mark(meta), data_mark = arena_mark(data);
    char text[96];
    bool ok = true;

    if (x->type != F32)
        return err_set(e, E_ARG, "%s: the latent is %s, want f32", sampler_name(s->kind),
                       tensor_text(x, text, sizeof text));
    for (int j = 0; j < n_history(s) && ok; j++) {
        made.history[j] = tensor_new(meta, data, F32, x->n_dim, x->dim, e);
        ok = made.history[j];
    }
    if (ok && s->kind == SAMPLER_PNDM) {
        made.kept = tensor_new(meta, data, F32, x->n_dim, x->dim, e);
        ok = made.kept;
    }
    if (!ok) {
        arena_release(data, data_mark);
        arena_release(meta, meta_mark);
        return e && e->code ? e->code : E_NOMEM;
    }
    *st = made;
    return OK;
}

void sampler_state_restart(struct sampler_state *st)
{
    st->n_seen = 0;
    st->last = -1;
    st->history_lambda = 0;
}

int sampler_step(struct device *dev, const struct sampler *s, struct sampler_state *st, int i, struct tensor *x,
                 struct tensor *m, const struct tensor *noise, struct err *e)
{
    struct walk w = { dev, s, st, i, x, m, noise, e };
    int rc;

    if (i < 0 || i >= s->n_step)
        return err_set(e, E_ARG, "%s: step %d of %d", sampler_name(s->kind), i, s->n_step);
    if (i <= st->last)
        return err_set(e, E_ARG, "%s: step %d after step %d; start again to go back", sampler_name(s->kind), i,
                       st->last);
    rc = check_like(s, "the model's output", m, x, e);
    if (!rc && noise)
        rc = check_like(s, "the noise", noise, x, e);
    for (int j = 0; j < n_history(s) && !rc; j++)
        rc = check_like(s, "the state", st->history[j], x, e);
    if (!rc && s->kind == SAMPLER_PNDM)
        rc = check_like(s, "the state", st->kept, x, e);
    if (!rc)
        rc = steps[s->kind](&w);
    if (!rc) {
        st->n_seen++;
        st->last = i;
    }
    return rc;
}
