/* tests/t_sampler.c: noise schedules and samplers against what diffusers' schedulers compute
 * (tests/reference/samplers.py): tables and plans bit for bit, whole walks, starts in the middle; against numbers
 * printed by hand-fed runs; and the rules that no reference states. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/diffusion/sampler.h"
#include "core/rng.h"
#include "tests/golden.h"
#include "tests/kit.h"
#include "tests/tap.h"

enum { N_LATENT = 240, HEAD = 15, MIB = 1 << 20 };

static const double unit = 0x1p-24;

/* ---- a place to walk ---- */

struct rig {
    struct device dev;
    struct arena meta, data;
    struct schedule schedule;
    struct sampler s;
    struct sampler_state st;
    struct tensor *x, *m, *noise;
    float *fx, *fm, *fn;
    struct err e;
};

/* n numbers; NULL config: that of SD1.5. */
static bool rig_open(struct rig *r, const char *device, const struct schedule_config *c, enum sampler_kind k, int N,
                     double eta, int64_t n)
{
    const struct schedule_config sd15 = schedule_config_sd15();
    bool ok;

    memset(r, 0, sizeof *r);
    ok = device_open(&r->dev, device, 1, &r->e) == OK && arena_init(&r->meta, "meta", ARENA_HOST, MIB, &r->e) == OK
        && arena_init(&r->data, "data", r->dev.place, MIB, &r->e) == OK
        && schedule_init(&r->schedule, c ? c : &sd15, &r->e) == OK
        && sampler_init(&r->s, k, &r->schedule, N, eta, &r->e) == OK;
    r->x = ok ? tensor_new(&r->meta, &r->data, F32, 1, &n, &r->e) : NULL;
    r->m = r->x ? tensor_new(&r->meta, &r->data, F32, 1, &n, &r->e) : NULL;
    r->noise = r->m ? tensor_new(&r->meta, &r->data, F32, 1, &n, &r->e) : NULL;
    ok = r->noise && sampler_state_init(&r->st, &r->s, &r->meta, &r->data, r->x, &r->e) == OK;
    if (!ok)
        tap_note("%s", r->e.text);
    else {
        r->fx = r->x->data;
        r->fm = r->m->data;
        r->fn = r->noise->data;
    }
    return ok;
}

static void rig_close(struct rig *r)
{
    arena_free(&r->data);
    arena_free(&r->meta);
    device_close(&r->dev);
}

static bool step(struct rig *r, int i)
{
    const bool draws = sampler_draws(&r->s, i);
    const bool ok = sampler_step(&r->dev, &r->s, &r->st, i, r->x, r->m, draws ? r->noise : NULL, &r->e) == OK;

    if (!ok)
        tap_note("%s", r->e.text);
    return ok;
}

/* ---- tables and plans ---- */

static uint32_t fnv(uint32_t h, float f)
{
    unsigned char b[4];

    memcpy(b, &f, 4);
    for (int i = 0; i < 4; i++)
        h = (h ^ b[i]) * 0x01000193u;
    return h;
}

static struct schedule_config config_of(int beta)
{
    struct schedule_config c = schedule_config_sd15();

    c.beta = beta == 0 ? BETA_SCALED_LINEAR : beta == 1 ? BETA_LINEAR : BETA_SQUARED_COSINE;
    if (beta) {
        c.beta_start = 0.0001;
        c.beta_end = 0.02;
    }
    return c;
}

static void test_tables(const struct golden *g)
{
    static const struct { int t; double bar, sigma; } printed[] = {
        { 0, .999149978, .029167533 }, { 1, .998296022, .041314479 }, { 2, .997438073, 0 }, { 10, .990431309, 0 },
        { 20, .981314301, .137990952 }, { 100, .894223154, 0 }, { 250, .673792303, 0 },
        { 500, .276332498, 1.618279576 }, { 750, .056169812, 0 }, { 900, .014151135, 0 }, { 980, .005843780, 0 },
        { 981, .005775497, 13.120414734 },
        { 998, .004716696, 0 }, { 999, .004660096, 14.614645004 },
    };
    const struct golden_tensor *bar = golden_get(g, "alpha_bar"), *t = golden_get(g, "tables");
    struct schedule s;
    struct err e = { 0 };
    bool ok = bar && t && t->n % 5 == 0 && t->n >= 35;

    for (int64_t i = 0; ok && i < t->n; i += 5) {
        const int32_t *row = t->i + i;
        struct schedule_config c = config_of(row[0]);
        uint32_t beta = 0x811C9DC5u, alpha = beta;
        c.zero_terminal_snr = row[1];
        c.n_train = row[2];
        ok &= schedule_init(&s, &c, &e) == OK;
        for (int k = 0; k < c.n_train; k++) {
            beta = fnv(beta, (float)s.beta[k]);
            alpha = fnv(alpha, (float)s.alpha_bar[k]);
        }
        tap_ok(ok && beta == (uint32_t)row[3] && alpha == (uint32_t)row[4],
               "betas %d over %d steps%s: the bits of the reference", row[0], c.n_train, row[1] ? ", zero SNR" : "");
    }
    s.config = schedule_config_sd15();
    ok = ok && schedule_init(&s, &s.config, &e) == OK && bar->n == 1000;
    for (int k = 0; ok && k < 1000; k++)
        ok = s.alpha_bar[k] == (double)bar->f[k];
    tap_ok(ok, "the usual schedule, bit by bit");
    for (size_t i = 0; i < LEN(printed); i++)       /* by another build of torch: the last bit or two of f32 */
        ok &= fabs(s.alpha_bar[printed[i].t] / printed[i].bar - 1) < 2.5e-7
            && (printed[i].sigma == 0 || fabs(schedule_sigma(&s, printed[i].t) / printed[i].sigma - 1) < 2.5e-7);
    tap_ok(ok, "the usual schedule as printed");
}

/* Every N, ten to a sum. A plan that is refused is left out of the sum, as the script leaves it out. */
static void test_plans(const struct golden *g, enum sampler_kind k, enum spacing spacing)
{
    static const char *const words[] = { "", "leading", "linspace", "trailing" };
    const struct golden_tensor *want;
    struct schedule_config c = schedule_config_sd15();
    struct schedule schedule;
    struct sampler s;
    struct err e = { 0 };
    uint32_t sum = 0;
    char name[64];
    int refused = 0, wrong = 0;

    snprintf(name, sizeof name, "plans_%s_%s", sampler_name(k), words[spacing]);
    want = golden_get(g, name);
    c.spacing = spacing;
    if (!want || want->n != 100 || schedule_init(&schedule, &c, &e)) {
        tap_ok(false, "%s", name);
        return;
    }
    for (int N = 1; N <= 1000; N++) {
        if (N % 10 == 1)
            sum = 0x811C9DC5u;
        if (sampler_init(&s, k, &schedule, N, 0, &e) == OK) {
            for (int i = 0; i < N; i++)
                sum = fnv(sum, (float)s.time[i]);
            for (int i = 0; i < N && k != SAMPLER_DDIM; i++)
                sum = fnv(sum, (float)s.sigma[i]);
        } else {
            refused++;
        }
        if (N % 10 == 0 && sum != (uint32_t)want->i[N / 10 - 1]) {
            wrong++;
            tap_note("%s: N from %d to %d", name, N - 9, N);
        }
    }
    tap_ok(!wrong && refused < 5, "%s, %s: all plans to 1000 steps, %d refused", sampler_name(k), words[spacing],
           refused);
}

/* ---- walks ---- */

/* The model of the script: u the scaled latent. */
static void model(struct rig *r, int i, int64_t n)
{
    const double scale = sampler_input_scale(&r->s, i), wave = 0.1 * sin(r->s.time[i] / 100);

    for (int64_t j = 0; j < n; j++)
        r->fm[j] = (float)(0.3 * tanh(scale * (double)r->fx[j]) + wave);
}

struct golden_walk {
    struct schedule_config c;
    enum sampler_kind kind;
    int n, N, start;
    double eta, init_scale, noise;
    const float *time, *sigma, *path, *last;
};

static struct golden_walk read_walk(const struct golden_tensor *t)
{
    const float *h = t->f;
    struct golden_walk w = { .c = config_of((int)h[10]), .kind = (enum sampler_kind)h[1], .n = (int)h[0],
                             .N = (int)h[2], .start = (int)h[12], .eta = (double)h[11], .init_scale = (double)h[13],
                             .noise = (double)h[14] };

    w.c.prediction = (enum prediction)h[3];
    w.c.spacing = (enum spacing)h[4];
    w.c.steps_offset = (int)h[5];
    w.c.set_alpha_to_one = h[6] != 0;
    w.c.clip_sample = h[7] != 0;
    w.c.clip_range = (double)h[7];
    w.c.karras = h[8] != 0;
    w.c.zero_terminal_snr = h[9] != 0;
    w.time = h + HEAD;
    w.sigma = w.time + w.n;
    w.path = w.sigma + w.n + 1;
    w.last = w.path + 3 * (w.n - w.start);
    return w;
}

static bool within_ulp(double got, float want)
{
    return (float)got == want || (float)got == nextafterf(want, INFINITY) || (float)got == nextafterf(want, -INFINITY);
}

/* Times of Karras' levels are looked up in logarithms of float32, whose last bit is up to 1e-4 of a time step. */
static bool same_plan(const struct rig *r, const struct golden_walk *w)
{
    const bool looked_up = w->c.karras && w->kind == SAMPLER_EULER;
    bool ok = r->s.n_step == w->n && within_ulp(r->s.init_scale, (float)w->init_scale);

    for (int i = 0; ok && i < w->n; i++)
        ok = looked_up ? fabs(r->s.time[i] - (double)w->time[i]) < 2e-4 : r->s.time[i] == (double)w->time[i];
    for (int i = 0; ok && i <= w->n && w->sigma[0] > 0; i++)
        ok = w->c.karras ? within_ulp(r->s.sigma[i], w->sigma[i]) : r->s.sigma[i] == (double)w->sigma[i];
    return ok;
}

static double distance(const float *got, const float *want, int64_t n)
{
    double d = 0, norm = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(d / norm);
}

/* Walk as the script did; *worst is the largest error of a single number on the path, relative to the latent. x0 of
 * the path is compared where the reference has one; with clipping ours is the one before it. */
static bool walk(struct rig *r, const struct golden_walk *w, const struct golden *g, double *worst)
{
    const struct golden_tensor *x = golden_get(g, "x"), *image = golden_get(g, "image");
    const struct golden_tensor *noise = golden_get(g, "noise");
    double a, b, cx, cm;
    bool ok = x && image && noise && noise->n == 51 * N_LATENT;

    sampler_mix(&r->s, w->start, &a, &b);
    for (int j = 0; ok && j < N_LATENT; j++)
        r->fx[j] = w->start ? (float)(a * (double)image->f[j] + b * (double)noise->f[50 * N_LATENT + j])
            : (float)(r->s.init_scale * (double)x->f[j]);
    *worst = 0;
    for (int i = w->start; ok && i < w->n; i++) {
        const float *p = w->path + 3 * (i - w->start);
        const bool has_x0 = w->kind != SAMPLER_PNDM && !w->c.clip_sample;
        double x0, size, error[3];
        memcpy(r->fn, noise->f + i * N_LATENT, sizeof *r->fn * N_LATENT);
        model(r, i, N_LATENT);
        sampler_x0(&r->s, i, &cx, &cm);
        x0 = cx * (double)r->fx[0] + cm * (double)r->fm[0];
        size = 1 + fabs(cx * (double)r->fx[0]) + fabs(cm * (double)r->fm[0]) + fabs((double)p[0]) + fabs((double)p[1]);
        ok = step(r, i);
        error[0] = fabs((double)r->fx[0] - (double)p[0]);
        error[1] = fabs((double)r->fx[N_LATENT - 1] - (double)p[1]);
        error[2] = has_x0 ? fabs(x0 - (double)p[2]) : 0;
        for (int j = 0; j < 3; j++)
            *worst = fmax(*worst, error[j] / size);
    }
    return ok;
}

/* A step rounds the model's output, one to four coefficients and as many sums, each by up to a unit of 2^-24 at random:
 * about one and a half units, which add up like the square root of the number of steps; two more for the start. That is
 * 13 units or 8e-7 after 50 steps. Single numbers on the way are allowed half as much again. The reference's own
 * float32 is off by `noise` units, mostly as much, up to 170 where it cancels. */
static void test_walk(const struct golden *g, const char *name, const char *device)
{
    const struct golden_tensor *t = golden_get(g, name);
    const struct golden_walk w = read_walk(t);
    const double limit = (2 + 1.6 * sqrt(w.n - w.start)) * unit;
    struct rig r;
    double off = 1, worst = 1;
    bool ok = t->n == HEAD + w.n + w.n + 1 + 3 * (w.n - w.start) + N_LATENT
        && rig_open(&r, device, &w.c, w.kind, w.N, w.eta, N_LATENT);

    if (ok && !same_plan(&r, &w)) {
        ok = false;
        tap_note("the plan differs");
    }
    if (ok && walk(&r, &w, g, &worst))
        off = distance(r.fx, w.last, N_LATENT);
    tap_ok(ok && off <= limit && worst <= 1.5 * limit,
           "%s: %s %d from %d, %s%s%s%s%s: off by %.1f of %.1f, reference %.1f",
           name, sampler_name(w.kind), w.N, w.start,
           w.c.prediction == PREDICT_V ? "v" : w.c.prediction ? "sample" : "epsilon",
           w.c.karras ? ", karras" : "", w.c.clip_sample ? ", clipped" : "", w.c.zero_terminal_snr ? ", zero SNR" : "",
           w.eta > 0 ? ", eta" : "", off / unit, limit / unit, w.noise);
    if (ok)
        rig_close(&r);
}

/* ---- hand-fed runs: the latent is one number, the model says 0.1, 0.2, ...; printed to six digits ---- */

static const struct {
    const char *why;
    enum sampler_kind kind;
    enum prediction prediction;
    int N, start;
    double x;                   /* 0: init_scale */
    double after[21];
} fed[] = {
    { "ddim, 10 steps", SAMPLER_DDIM, PREDICT_EPSILON, 10, 0, 0,
      { 1.553161, 2.223031, 2.978543, 3.766773, 4.522940, 5.183949, 5.700141, 6.038664, 6.110682, 6.101154 } },
    { "pndm, 10 steps", SAMPLER_PNDM, PREDICT_EPSILON, 10, 0, 0,
      { 1.553161, 1.522036, 2.074159, 2.724918, 3.368282, 3.984357, 4.510142, 4.904566, 5.139500, 5.114281,
        5.102504 } },
    { "euler, 10 steps", SAMPLER_EULER, PREDICT_EPSILON, 10, 0, 0,
      { 13.937169, 13.291027, 12.783767, 12.396508, 12.093891, 11.846349, 11.631182, 11.426126, 11.120584,
        11.091417 } },
    { "dpm++2m, 10 steps", SAMPLER_DPMPP_2M, PREDICT_EPSILON, 10, 0, 0,
      { 1.676187, 2.552577, 3.634961, 4.878361, 6.183499, 7.468871, 8.614799, 9.535439, 10.173422, 10.414379 } },
    { "dpm++2m, 20 steps", SAMPLER_DPMPP_2M, PREDICT_EPSILON, 20, 0, 0,
      { 1.303907, 1.630605, 1.990667, 2.384610, 2.809747, 3.261223, 3.732268, 4.214464, 4.698149, 5.163595, 5.618942,
        6.044896, 6.432030, 6.772260, 7.058942, 7.286753, 7.451016, 7.545531, 7.553723, 7.292368 } },
    { "dpm++2m from the middle", SAMPLER_DPMPP_2M, PREDICT_EPSILON, 10, 5, 1,
      { 1.061976, 1.061182, 1.002254, 0.878857, 0.585452 } },
    { "ddim, v", SAMPLER_DDIM, PREDICT_V, 10, 0, 0, { .9899160 } },
    { "pndm, v", SAMPLER_PNDM, PREDICT_V, 10, 0, 0, { .9899160 } },
    { "euler, v", SAMPLER_EULER, PREDICT_V, 10, 0, 0, { 7.8252082 } },
    { "dpm++2m, v", SAMPLER_DPMPP_2M, PREDICT_V, 10, 0, 0, { .9935196 } },
};

static void test_fed(void)
{
    for (size_t f = 0; f < LEN(fed); f++) {
        struct schedule_config c = schedule_config_sd15();
        struct rig r;
        double worst = 0;
        bool ok;
        c.prediction = fed[f].prediction;
        ok = rig_open(&r, "cpu", &c, fed[f].kind, fed[f].N, 0, 1);
        if (ok)
            r.fx[0] = (float)(fed[f].x != 0 ? fed[f].x : r.s.init_scale);
        for (int i = fed[f].start; ok && i < r.s.n_step && fed[f].after[i - fed[f].start] != 0; i++) {
            r.fm[0] = (float)(0.1 * (i + 1));
            r.fn[0] = 0;
            ok = step(&r, i);
            worst = fmax(worst, fabs((double)r.fx[0] / fed[f].after[i - fed[f].start] - 1));
        }
        /* half of the last digit printed, and two roundings a step */
        tap_ok(ok && worst < 1.5e-6, "%s, as printed: off by %.1e", fed[f].why, worst);
        rig_close(&r);
    }
}

/* x, m and noise of one step, alone: its coefficients. */
static double one_step(struct rig *r, int i, double x, double m, double noise)
{
    sampler_state_restart(&r->st);
    r->fx[0] = (float)x;
    r->fm[0] = (float)m;
    r->fn[0] = (float)noise;
    return step(r, i) ? (double)r->fx[0] : (double)NAN;
}

static bool near(double got, double want, double digits)
{
    const bool ok = fabs(got - want) <= 0.51 * digits + 2e-7 * fabs(want);

    if (!ok)
        tap_note("%.9g, want %.9g", got, want);
    return ok;
}

static void test_printed_noise(void)
{
    static const double ancestral[10][3] = {        /* sigma, up, down */
        { 14.614645, 6.616379, 4.205631 }, { 7.839885, 3.728471, 2.709798 }, { 4.609176, 2.258851, 1.847733 },
        { 2.918308, 1.450796, 1.303198 }, { 1.950162, .973921, .927529 }, { 1.344928, .671957, .646348 },
        { .932358, .463779, .418934 }, { .624977, .297690, .217462 }, { .368659, .029076, .002308 }, { .029168, 0, 0 }
    };
    static const double eta1[10][2] = {             /* std, direction */
        { .776332, .600635 }, { .726482, .624746 }, { .667887, .627782 }, { .601188, .602971 }, { .527609, .546578 },
        { .448090, .458690 }, { .361792, .341999 }, { .260957, .197284 }, { .040984, .004926 }, { .020648, .020583 }
    };
    static const double variance[10] = { .6026916, .5277757, .4460737, .3614267, .2783714, .2007847, .1308937,
                                         .06809863, .001679709, 1e-20 };
    struct rig r;
    bool ok = rig_open(&r, "cpu", NULL, SAMPLER_EULER_A, 10, 0, 1);

    for (int i = 0; ok && i < 10; i++)              /* with epsilon x' = x + m (down - sigma) + up noise */
        ok = near(r.s.sigma[i], ancestral[i][0], 1e-6) && near(one_step(&r, i, 0, 0, 1), ancestral[i][1], 1e-6)
            && near(one_step(&r, i, 0, -1, 0), ancestral[i][0] - ancestral[i][2], 2e-6);
    tap_ok(ok, "euler-a: sigma, up and down as printed");
    rig_close(&r);
    ok = rig_open(&r, "cpu", NULL, SAMPLER_DDIM, 10, 1, 1);
    for (int i = 0; ok && i < 10; i++) {
        const double t = r.s.time[i], next = r.schedule.alpha_bar[t > 100 ? (int)t - 100 : 0];
        double a, b;
        sampler_mix(&r.s, i, &a, &b);
        ok = near(one_step(&r, i, 0, 0, 1), eta1[i][0], 1e-6)
            && near(one_step(&r, i, 0, 1, 0) + sqrt(next) * b / a, eta1[i][1], 3e-6);
    }
    tap_ok(ok, "ddim, eta 1: deviation and direction as printed");
    rig_close(&r);
    ok = rig_open(&r, "cpu", NULL, SAMPLER_DDPM, 10, 0, 1);
    for (int i = 0; ok && i < 10; i++) {
        const double std = one_step(&r, i, 0, 0, 1);
        ok = near(std * std / variance[i], 1, 4e-7);
    }
    tap_ok(ok, "ddpm: variance as printed");
    rig_close(&r);
}

static void test_printed_levels(void)
{
    static const double karras[11] = { 14.61465, 9.10294, 5.4784, 3.16861, 1.74942, .91408, .44692, .2014, .08191,
                                       .02917, 0 };
    static const double euler[10] = { 999, 916.284, 815.045, 687.153, 523.199, 327.147, 145.939, 40.857, 6.732, 0 };
    static const double dpm[10] = { 999, 916, 815, 687, 523, 327, 146, 41, 7, 0 };
    static const struct { enum sampler_kind kind; int i; double t, noised; } mix[] = {
        { SAMPLER_DDIM, 49, 1, 1.0817062 }, { SAMPLER_EULER, 49, 0, 1.0583351 },
        { SAMPLER_DPMPP_2M, 49, 20, 1.2640043 }, { SAMPLER_DPMPP_2M, 0, 999, 2.0635993 },
    };
    struct schedule_config c = schedule_config_sd15();
    struct schedule s;
    struct sampler e, d;
    struct err err = { 0 };
    bool ok;

    c.karras = true;
    ok = schedule_init(&s, &c, &err) == OK && sampler_init(&e, SAMPLER_EULER, &s, 10, 0, &err) == OK
        && sampler_init(&d, SAMPLER_DPMPP_2M, &s, 10, 0, &err) == OK;
    for (int i = 0; ok && i <= 10; i++)
        ok = near(e.sigma[i], karras[i], 1e-5) && near(d.sigma[i], karras[i], 1e-5)
            && (i == 10 || (near(e.time[i], euler[i], 1e-3) && d.time[i] == dpm[i]));
    tap_ok(ok, "Karras' levels and their times as printed");
    c.karras = false;
    ok = schedule_init(&s, &c, &err) == OK;
    for (size_t i = 0; ok && i < LEN(mix); i++) {           /* x0 = 1, noise = 2 */
        double a, b;
        ok = sampler_init(&e, mix[i].kind, &s, 50, 0, &err) == OK && e.time[mix[i].i] == mix[i].t;
        sampler_mix(&e, mix[i].i, &a, &b);
        ok = ok && near(a + 2 * b, mix[i].noised, 1e-7);
    }
    tap_ok(ok, "noised as printed");
    ok = sampler_init(&e, SAMPLER_EULER, &s, 50, 0, &err) == OK && near(e.sigma[1], 12.936776, 1e-6)
        && near(e.sigma[2], 11.491649, 1e-6) && near(e.sigma[47], .2011797, 1e-7) && near(e.sigma[48], .1393375, 1e-7)
        && near(e.sigma[49], .0291675, 1e-7) && e.sigma[50] == 0
        && sampler_init(&d, SAMPLER_DPMPP_2M, &s, 50, 0, &err) == OK && near(d.sigma[1], 12.966324, 1e-6)
        && near(d.sigma[47], .2506812, 1e-7) && near(d.sigma[49], .1379910, 1e-7);
    tap_ok(ok, "sigmas of 50 steps as printed");
}

/* ---- what no reference states ---- */

/* With the model that knows the truth: x = a x0 + b n, m = what it would say of it. sampler_x0 gives x0 back, and a
 * step goes to the same x0 and n at the next level (all but the ancestral samplers, which draw new noise). */
static void test_x0(void)
{
    const double x0 = 0.7, n = -0.4;
    bool given = true, next = true;

    for (int k = 0; k < N_SAMPLER; k++)
        for (int p = PREDICT_EPSILON; p <= PREDICT_SAMPLE; p++) {
            struct schedule_config c = schedule_config_sd15();
            struct rig r;
            c.prediction = (enum prediction)p;
            if ((k == SAMPLER_PNDM && p == PREDICT_SAMPLE) || !rig_open(&r, "cpu", &c, (enum sampler_kind)k, 20, 0, 1))
                continue;
            for (int i = 0; i < r.s.n_step; i++) {
                double a, b, a1, b1, cx, cm, size, m, want;
                sampler_mix(&r.s, i, &a, &b);
                sampler_mix(&r.s, i + 1, &a1, &b1);
                sampler_x0(&r.s, i, &cx, &cm);
                size = sqrt(a * a + b * b);
                m = p == PREDICT_EPSILON ? n : p == PREDICT_V ? (a * n - b * x0) / size : x0;
                given &= fabs(cx * (a * x0 + b * n) + cm * m - x0) < 1e-12;
                if (k == SAMPLER_DDPM || k == SAMPLER_EULER_A || k == SAMPLER_PNDM)
                    continue;
                if (i + 1 == 20 && k == SAMPLER_DDIM) {     /* the level before the first is that of time 0 */
                    a1 = sqrt(r.schedule.alpha_bar[0]);
                    b1 = sqrt(1 - r.schedule.alpha_bar[0]);
                }
                want = a1 * x0 + b1 * n;
                /* eight roundings of numbers up to cx x and cm m */
                next &= fabs(one_step(&r, i, a * x0 + b * n, m, 0) - want)
                    <= 4 * unit * (fabs(want) + fabs(cx * (a * x0 + b * n)) + fabs(cm * m));
            }
            rig_close(&r);
        }
    tap_ok(given, "x0 from the model's output, all samplers and predictions");
    tap_ok(next, "a model that knows the truth is followed to the next level");
}

/* Two inputs on one plan, one of them later, step by step in turn; then each alone, one from a restarted state. */
static void test_states(enum sampler_kind k)
{
    struct rig r, alone;
    struct sampler_state late;
    float *end = malloc(sizeof *end * 2 * N_LATENT);
    const int begin = 3;
    uint64_t seed = 7;
    bool ok = end && rig_open(&r, "cpu", NULL, k, 10, k == SAMPLER_DDIM, 2 * N_LATENT)
        && rig_open(&alone, "cpu", NULL, k, 10, k == SAMPLER_DDIM, N_LATENT);
    int64_t n = N_LATENT;
    struct tensor *x[2], *m[2];

    for (int j = 0; ok && j < 2; j++) {
        x[j] = tensor_wrap(&r.meta, r.fx + j * N_LATENT, F32, 1, &n, &r.e);
        m[j] = tensor_wrap(&r.meta, r.fm + j * N_LATENT, F32, 1, &n, &r.e);
        ok = x[j] && m[j];
    }
    ok = ok && sampler_state_init(&late, &r.s, &r.meta, &r.data, x[0], &r.e) == OK
        && sampler_state_init(&r.st, &r.s, &r.meta, &r.data, x[0], &r.e) == OK;
    for (int j = 0; ok && j < 2 * N_LATENT; j++)
        r.fx[j] = (float)kit_normal(&seed);
    for (int j = 0; ok && j < N_LATENT; j++)
        alone.fn[j] = (float)kit_normal(&seed);
    if (ok)
        memcpy(end, r.fx, sizeof *end * 2 * N_LATENT);
    for (int i = 0; ok && i < r.s.n_step; i++) {
        model(&r, i, 2 * N_LATENT);
        ok = sampler_step(&r.dev, &r.s, &r.st, i, x[0], m[0], alone.noise, &r.e) == OK;
        if (i >= begin)
            ok = ok && sampler_step(&r.dev, &r.s, &late, i, x[1], m[1], alone.noise, &r.e) == OK;
    }
    for (int j = 0; ok && j < 2; j++) {
        sampler_state_restart(&alone.st);
        memcpy(alone.fx, end + j * N_LATENT, sizeof *end * N_LATENT);
        for (int i = j ? begin : 0; ok && i < r.s.n_step; i++) {
            model(&alone, i, N_LATENT);
            ok = sampler_step(&alone.dev, &alone.s, &alone.st, i, alone.x, alone.m, alone.noise, &alone.e) == OK;
        }
        ok = ok && !memcmp(alone.fx, r.fx + j * N_LATENT, sizeof *end * N_LATENT);
    }
    tap_ok(ok, "%s: two inputs on one plan do not touch each other, and a state starts again", sampler_name(k));
    free(end);
    rig_close(&alone);
    rig_close(&r);
}

/* The null device: the same steps and memory, and nothing read. The bytes are those of the sums that a step needs. */
static void test_null(enum sampler_kind k, int64_t sums)
{
    struct rig real, null;
    bool ok = rig_open(&real, "cpu", NULL, k, 10, 0, N_LATENT) && rig_open(&null, "null", NULL, k, 10, 0, N_LATENT);

    for (int i = 0; ok && i < real.s.n_step; i++) {
        memset(real.fx, 0, sizeof *real.fx * N_LATENT);
        memset(real.fm, 0, sizeof *real.fm * N_LATENT);
        memset(real.fn, 0, sizeof *real.fn * N_LATENT);
        ok = step(&real, i) && step(&null, i);
    }
    tap_ok(ok && arena_high(&real.data) == arena_high(&null.data) && null.dev.count.calls == sums,
           "%s: a dry run of ten steps is %lld kernel calls and no memory more than told", sampler_name(k),
           (long long)null.dev.count.calls);
    rig_close(&real);
    rig_close(&null);
}

static bool is_err(const struct err *e, int code, const char *text)
{
    return e->code == code && strstr(e->text, text) && !strchr(e->text, '\n');
}

static const struct {
    const char *text;
    int n_train;
    double first, last;
    int offset, kind, pred;
    double clip;
} bad[] = {
    { "1 training steps", 1, .001, .01, 0, 0, 0, 1 },
    { "4097 training steps", 4097, .001, .01, 0, 0, 0, 1 },
    { "betas from 0 to", 1000, 0, .01, 0, 0, 0, 1 },
    { "between 0 and 1", 1000, .001, 1, 0, 0, 0, 1 },
    { "betas from nan", 1000, (double)NAN, .01, 0, 0, 0, 1 },
    { "nothing is left of the signal at step", 1000, .5, .9, 0, 0, 0, 1 },
    { "no noise at step 0", 1000, 1e-12, .01, 0, 0, 0, 1 },
    { "steps_offset -1", 1000, .001, .01, -1, 0, 0, 1 },
    { "steps_offset 1000: want 0 to 999", 1000, .001, .01, 1000, 0, 0, 1 },
    { "unknown kind (beta 3", 1000, .001, .01, 0, 3, 0, 1 },
    { "prediction 9", 1000, .001, .01, 0, 0, 9, 1 },
    { "clip_sample_range 0", 1000, .001, .01, 0, 0, 0, 0 },
};

static void test_bad_schedules(void)
{
    static struct schedule s, before;
    struct err e = { 0 };

    memset(&s, 0x5A, sizeof s);
    before = s;
    for (size_t i = 0; i < LEN(bad); i++) {
        struct schedule_config c = schedule_config_sd15();
        c.n_train = bad[i].n_train;
        c.beta_start = bad[i].first;
        c.beta_end = bad[i].last;
        c.steps_offset = bad[i].offset;
        c.beta = (enum beta_kind)bad[i].kind;
        c.prediction = (enum prediction)bad[i].pred;
        c.clip_sample = true;
        c.clip_range = bad[i].clip;
        tap_ok(schedule_init(&s, &c, &e) == E_ARG && is_err(&e, E_ARG, bad[i].text) && !memcmp(&s, &before, sizeof s),
               "%s", e.text);
    }
}

static const struct {
    const char *text;
    int kind, N;
    double eta;
    int offset, spacing, pred;
    bool zero;
} impossible[] = {
    { "0 steps: want 1 to 1000", SAMPLER_DDIM, 0, 0, 1, 0, 0, false },
    { "-3 steps", SAMPLER_EULER, -3, 0, 1, 0, 0, false },
    { "1001 steps", SAMPLER_DPMPP_2M, 1001, 0, 1, 0, 0, false },
    { "begins at time 1000, but the model knows 0 to 999", SAMPLER_DDIM, 1000, 0, 1, 0, 0, false },
    { "pndm in 1000 steps begins at time 1000", SAMPLER_PNDM, 1000, 0, 1, 0, 0, false },
    { "ddpm in 2 steps begins at time 1000", SAMPLER_DDPM, 2, 0, 500, 0, 0, false },
    { "dpm++2m in 1000 steps: steps", SAMPLER_DPMPP_2M, 1000, 0, 1, 0, 0, false },
    { "fall on the same time", SAMPLER_DPMPP_2M, 1000, 0, 0, SPACING_LEADING, 0, false },
    { "eta 1.5", SAMPLER_DDIM, 10, 1.5, 1, 0, 0, false },
    { "eta nan", SAMPLER_DDIM, 10, (double)NAN, 1, 0, 0, false },
    { "unknown sampler 6", N_SAMPLER, 10, 0, 1, 0, 0, false },
    { "pndm does not work with a model that predicts the sample", SAMPLER_PNDM, 10, 0, 1, 0, PREDICT_SAMPLE, false },
    { "pndm does not work with a zero terminal SNR", SAMPLER_PNDM, 10, 0, 1, 0, PREDICT_V, true },
    { "where the signal is 0", SAMPLER_DDIM, 10, 0, 1, SPACING_TRAILING, 0, true },
    { "where the signal is 0", SAMPLER_DDPM, 10, 0, 1, SPACING_LINSPACE, 0, true },
};

static void test_impossible(void)
{
    static struct schedule schedule;
    static struct sampler s, before;
    struct err e = { 0 };

    memset(&s, 0x5A, sizeof s);
    before = s;
    for (size_t i = 0; i < LEN(impossible); i++) {
        struct schedule_config c = schedule_config_sd15();
        c.steps_offset = impossible[i].offset;
        c.spacing = (enum spacing)impossible[i].spacing;
        c.prediction = (enum prediction)impossible[i].pred;
        c.zero_terminal_snr = impossible[i].zero;
        tap_ok(schedule_init(&schedule, &c, &e) == OK
               && sampler_init(&s, (enum sampler_kind)impossible[i].kind, &schedule, impossible[i].N, impossible[i].eta,
                               &e) == E_ARG
               && is_err(&e, E_ARG, impossible[i].text) && !memcmp(&s, &before, sizeof s), "%s", e.text);
    }
}

static void test_misuse(void)
{
    struct rig r;
    struct arena small;
    struct sampler_state st = { .n_seen = 77 };
    int64_t n = N_LATENT, fewer = N_LATENT - 1;
    struct tensor *half, *other;
    size_t meta;
    bool ok = rig_open(&r, "cpu", NULL, SAMPLER_PNDM, 10, 0, N_LATENT)
        && arena_init(&small, "small", ARENA_HOST, 4096, &r.e) == OK;

    half = tensor_new(&r.meta, &r.data, F16, 1, &n, &r.e);
    other = tensor_new(&r.meta, &r.data, F32, 1, &fewer, &r.e);
    memset(r.fx, 0, sizeof *r.fx * N_LATENT);
    memset(r.fm, 0, sizeof *r.fm * N_LATENT);
    meta = arena_mark(&r.meta);
    ok = ok && arena_push(&small, 2048, &r.e)           /* two of four tensors fit */
        && sampler_state_init(&st, &r.s, &r.meta, &small, r.x, &r.e) == E_NOMEM && is_err(&r.e, E_NOMEM, "'small'");
    tap_ok(ok && st.n_seen == 77 && arena_mark(&small) == 2048 && arena_mark(&r.meta) == meta,
           "no room for a state: %s", r.e.text);
    tap_ok(sampler_state_init(&st, &r.s, &r.meta, &r.data, half, &r.e) == E_ARG && st.n_seen == 77
           && is_err(&r.e, E_ARG, "f16 (240)"), "%s", r.e.text);
    tap_ok(sampler_step(&r.dev, &r.s, &r.st, 11, r.x, r.m, NULL, &r.e) == E_ARG && is_err(&r.e, E_ARG, "step 11 of 11")
           && sampler_step(&r.dev, &r.s, &r.st, -1, r.x, r.m, NULL, &r.e) == E_ARG, "%s", r.e.text);
    tap_ok(sampler_step(&r.dev, &r.s, &r.st, 0, r.x, other, NULL, &r.e) == E_ARG && is_err(&r.e, E_ARG, "f32 (239)")
           && sampler_step(&r.dev, &r.s, &r.st, 0, r.x, half, NULL, &r.e) == E_ARG
           && sampler_step(&r.dev, &r.s, &r.st, 0, r.x, NULL, NULL, &r.e) == E_ARG && is_err(&r.e, E_ARG, "missing")
           && sampler_step(&r.dev, &r.s, &r.st, 0, other, other, NULL, &r.e) == E_ARG
           && is_err(&r.e, E_ARG, "the state"), "%s", r.e.text);
    tap_ok(r.st.n_seen == 0 && step(&r, 2) && sampler_step(&r.dev, &r.s, &r.st, 2, r.x, r.m, NULL, &r.e) == E_ARG
           && is_err(&r.e, E_ARG, "step 2 after step 2") && step(&r, 3), "%s", r.e.text);
    arena_free(&small);
    rig_close(&r);
    ok = rig_open(&r, "cpu", NULL, SAMPLER_DDPM, 10, 0, N_LATENT);
    tap_ok(ok && sampler_step(&r.dev, &r.s, &r.st, 0, r.x, r.m, NULL, &r.e) == E_ARG
           && is_err(&r.e, E_ARG, "step 0 of ddpm needs noise"), "%s", r.e.text);
    rig_close(&r);
}

/* Which steps draw, as the reference does: Euler for nothing, DDPM not at time 0. */
static void test_draws(void)
{
    struct schedule_config c = schedule_config_sd15();
    struct schedule s;
    struct sampler p;
    struct err e = { 0 };
    bool ok = schedule_init(&s, &c, &e) == OK;
    int n[N_SAMPLER + 2] = { 0 };

    for (int k = 0; ok && k < N_SAMPLER; k++) {
        ok = sampler_init(&p, (enum sampler_kind)k, &s, 10, 0, &e) == OK;
        for (int i = 0; ok && i < p.n_step; i++)
            n[k] += sampler_draws(&p, i);
    }
    ok = ok && sampler_init(&p, SAMPLER_DDIM, &s, 10, 0.1, &e) == OK;
    for (int i = 0; ok && i < 10; i++)
        n[N_SAMPLER] += sampler_draws(&p, i);
    c.steps_offset = 0;
    ok = ok && schedule_init(&s, &c, &e) == OK && sampler_init(&p, SAMPLER_DDPM, &s, 10, 0, &e) == OK;
    for (int i = 0; ok && i < 10; i++)
        n[N_SAMPLER + 1] += sampler_draws(&p, i);
    tap_ok(ok && n[SAMPLER_DDIM] == 0 && n[SAMPLER_DDPM] == 10 && n[SAMPLER_EULER] == 10 && n[SAMPLER_EULER_A] == 10
           && n[SAMPLER_DPMPP_2M] == 0 && n[SAMPLER_PNDM] == 0 && n[N_SAMPLER] == 10 && n[N_SAMPLER + 1] == 9,
           "who draws noise");
    for (int k = 0; k < N_SAMPLER; k++)
        ok &= sampler_kind_of(sampler_name((enum sampler_kind)k)) == k;
    tap_ok(ok && sampler_kind_of("heun") == -1 && sampler_kind_of("") == -1, "names");
}

int main(void)
{
    struct golden *g = golden_open("tests/reference/samplers.safetensors");
    char name[16];

    test_tables(g);
    for (int spacing = SPACING_LEADING; spacing <= SPACING_TRAILING; spacing++) {
        test_plans(g, SAMPLER_DDIM, (enum spacing)spacing);
        test_plans(g, SAMPLER_EULER, (enum spacing)spacing);
        test_plans(g, SAMPLER_DPMPP_2M, (enum spacing)spacing);
    }
    for (int i = 0; snprintf(name, sizeof name, "case%03d", i) > 0 && golden_get(g, name); i++) {
        test_walk(g, name, "cpu");
        if (i % 16 == 0)
            test_walk(g, name, "cpu:portable");
    }
    tap_ok(golden_get(g, "case100") && golden_get(g, "case150"), "the walks are there");
    golden_close(g);
    test_fed();
    test_printed_noise();
    test_printed_levels();
    test_x0();
    for (int k = 0; k < N_SAMPLER; k++)
        test_states((enum sampler_kind)k);
    test_null(SAMPLER_DDIM, 10);
    test_null(SAMPLER_DDPM, 20);
    test_null(SAMPLER_EULER, 10);
    test_null(SAMPLER_EULER_A, 19);         /* no noise at the end */
    test_null(SAMPLER_DPMPP_2M, 28);        /* first order at both ends */
    test_null(SAMPLER_PNDM, 11 + 11 + 1 + 24);      /* sums of the new output; copies; again; sums of older ones */
    test_bad_schedules();
    test_impossible();
    test_misuse();
    test_draws();
    return tap_done();
}
