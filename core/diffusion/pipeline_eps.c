/* core/diffusion/pipeline_eps.c: what the model says of the latents at a row of the schedule: which rows the UNet gets,
 * classifier-free guidance, condition guidance.
 *
 * Rows of the UNet lie input by input, with guidance those of the negative prompt before the prompt's. A pass has only
 * the inputs whose output is wanted and those that they attend to, directly or through others. */
#include "core/diffusion/pipeline_batch.h"

/* One pass of the UNet. */
struct pass {
    int n_input, input[PAIR_MAX_INPUT];     /* which are in it */
    int slot[PAIR_MAX_INPUT];               /* and where; -1: not */
    int halves, first_half;                 /* how many of the halves, from which on */
    struct joint_run pairs;
    struct unet_text text;
};

/* Weights of the pairs in a pass. */
struct weights_of_pairs {
    float wx[JOINT_MAX_PAIR], wy[JOINT_MAX_PAIR];
};

static int all_halves(const struct batch *b) { return b->r->guided ? 2 : 1; }

/* Inputs that are wanted, and whom they attend to, and whom those attend to. */
static void choose(struct pass *p, const struct batch *b, const bool *want, const struct weights_of_pairs *w)
{
    const struct pipeline_request *q = b->r->q;
    bool in[PAIR_MAX_INPUT] = { false };

    for (int k = 0; k < b->K; k++)
        in[k] = want[k];
    for (int round = 0; round < b->K; round++)
        for (int i = 0; i < q->n_pair; i++) {
            const int x = q->pair[i].x, y = q->pair[i].y;

            in[y] |= in[x] && w->wx[i] != 0;
            in[x] |= in[y] && w->wy[i] != 0;
        }
    for (int k = 0; k < b->K; k++) {
        p->slot[k] = in[k] ? p->n_input : -1;
        if (in[k])
            p->input[p->n_input++] = k;
    }
}

/* A pair without its x still says which LoRA its y has. */
static void join_pairs(struct pass *p, const struct batch *b, const bool *want, const struct weights_of_pairs *w)
{
    const struct run *r = b->r;

    p->pairs = (struct joint_run){ .n_input = p->n_input, .scale = (float)r->q->joint_scale };
    for (int s = 0; s < p->n_input; s++)
        p->pairs.unread[s] = !want[p->input[s]];
    for (int i = 0; i < r->q->n_pair; i++) {
        const int x = p->slot[r->q->pair[i].x], y = p->slot[r->q->pair[i].y];
        const bool apart = x < 0 || y < 0;

        if (y >= 0 || x >= 0)
            p->pairs.pair[p->pairs.n_pair++] = (struct joint_pair){ x, y, apart ? 0 : w->wx[i], apart ? 0 : w->wy[i],
                                                                    r->joint[i] };
    }
}

static void group_text(struct pass *p, const struct batch *b)
{
    p->text = b->r->text;
    p->text.n_group = p->n_input * p->halves;
    for (int s = 0; s < p->n_input; s++)
        for (int half = 0; half < p->halves; half++)
            p->text.prompt[s * p->halves + half] = p->input[s] * all_halves(b) + p->first_half + half;
}

static bool held(const struct pair_row *row, int k) { return row->step[k] == PAIR_HELD; }

/* The UNet's input: each input at its own level, once for each half. */
static struct tensor *rows_in(struct batch *b, const struct pass *p, const struct pair_row *row, struct tensor *z,
                              struct err *e)
{
    const struct sampler *s = &b->r->sampler;
    struct tensor *all = NULL, *part = NULL;

    if (!b->t->recording && !(all = batch_latents(b, p->n_input * p->halves * b->n, e)))
        return NULL;
    for (int i = 0; i < p->n_input * p->halves; i++) {
        const int k = p->input[i / p->halves];
        const float scale = held(row, k) ? 1 : (float)sampler_input_scale(s, row->step[k]);
        struct tensor *own = batch_input(b, z, k, e);

        if (!own || (!b->t->recording && !(part = op_rows(b->t, all, i * b->n, b->n, e))))
            return NULL;
        tape_into(b->t, b->t->recording ? NULL : part);
        if (!(part = op_scale(b->t, scale, own, e)))
            return NULL;
        if (b->t->recording && !(all = all ? op_join_rows(b->t, all, part, e) : part))
            return NULL;
    }
    return op_cast(b->t, all, b->r->type, e);
}

static struct tensor *times(struct batch *b, const struct pass *p, const struct pair_row *row, struct err *e)
{
    const int64_t each = p->halves * b->n, rows = p->n_input * each;
    struct tensor *t = tape_new(b->t, F32, 1, &rows, e);

    for (int s = 0; s < p->n_input && t; s++) {
        const int k = p->input[s];
        const float time = held(row, k) ? 0 : (float)b->r->sampler.time[row->step[k]];

        if (op_run(e, "time", batch_kern(b)->fill(batch_ctx(b), (float *)t->data + s * each, F32, each, time)))
            return NULL;
    }
    return t;
}

/* What the UNet says, f32: rows of p. */
static struct tensor *ask(struct batch *b, struct pass *p, const struct pair_row *row, struct tensor *z,
                          const bool *want, const struct weights_of_pairs *w, struct err *e)
{
    struct unet_call call = { .pairs = &p->pairs, .segments = b->t->recording };
    struct unet_added added = { .n = 0 };
    struct tensor *in, *time, *y;

    choose(p, b, want, w);
    join_pairs(p, b, want, w);
    group_text(p, b);
    if (!(in = rows_in(b, p, row, z, e)) || !(time = times(b, p, row, e)))
        return NULL;
    if (p->slot[0] >= 0 && pipeline_control_acts(b->r, row)) {
        call.added = &added;
        if (pipeline_control_add(b, in, time, p->slot[0] * p->halves * b->n, p->first_half, p->halves, &added, e))
            return NULL;
    }
    if (!(y = unet_forward(b->t, b->r->unet, in, time, &p->text, &call, e)))
        return NULL;
    return op_cast(b->t, y, F32, e);
}

/* The rows of input k and one half in what a pass said. */
static struct tensor *half_of(struct batch *b, const struct pass *p, struct tensor *y, int k, int half, struct err *e)
{
    return op_rows(b->t, y, (p->slot[k] * p->halves + half - p->first_half) * b->n, b->n, e);
}

/* u + cfg (c - u) */
static struct tensor *classifier_free(struct batch *b, const struct pass *p, struct tensor *y, int k, struct err *e)
{
    const int meant = all_halves(b) - 1;
    struct tensor *own = half_of(b, p, y, k, meant, e), *other, *d;

    if (!own || !meant)
        return own;
    if (!(other = half_of(b, p, y, k, 0, e)) || !(d = op_axpby(b->t, 1, own, -1, other, e)))
        return NULL;
    return op_axpby(b->t, 1, other, (float)b->r->q->cfg, d, e);
}

/* Paper, appendix C: + scale (c - c with other weights), c being what comes with the prompt that is meant. */
static int contrast(struct batch *b, const struct pass *p, struct tensor *y, const struct pair_row *row,
                    struct tensor *z, const bool *want, const struct pipeline_contrast *c, struct tensor **eps,
                    struct err *e)
{
    const int meant = all_halves(b) - 1;
    struct pass apart = { .halves = 1, .first_half = meant };
    struct weights_of_pairs w;
    struct tensor *with, *without, *d;

    for (int i = 0; i < b->r->q->n_pair; i++) {
        w.wx[i] = c->wx[i];
        w.wy[i] = c->wy[i];
    }
    without = ask(b, &apart, row, z, want, &w, e);
    for (int k = 0; k < b->K && without; k++) {
        if (!want[k])
            continue;
        if (!(with = half_of(b, p, y, k, meant, e)) || !(d = half_of(b, &apart, without, k, meant, e))
            || !(d = op_axpby(b->t, 1, with, -1, d, e)) || !(eps[k] = op_axpby(b->t, 1, eps[k], c->scale, d, e)))
            return e->code;
    }
    return without ? OK : e->code;
}

int batch_eps(struct batch *b, const struct pair_row *row, struct tensor *z, const bool *want, struct tensor **eps,
              struct err *e)
{
    const struct pipeline_request *q = b->r->q;
    struct pass p = { .halves = all_halves(b) };
    struct weights_of_pairs w;
    struct tensor *y;
    int rc = OK;

    for (int i = 0; i < q->n_pair; i++) {
        w.wx[i] = q->joint_scale == 0 ? 0 : q->pair[i].wx;
        w.wy[i] = q->joint_scale == 0 ? 0 : q->pair[i].wy;
    }
    y = ask(b, &p, row, z, want, &w, e);
    for (int k = 0; k < b->K && y; k++) {
        eps[k] = want[k] ? classifier_free(b, &p, y, k, e) : NULL;
        if (want[k] && !eps[k])
            return e->code;
    }
    for (int i = 0; i < q->n_contrast && y && !rc; i++)
        rc = contrast(b, &p, y, row, z, want, &q->contrast[i], eps, e);
    return y ? rc : e->code;
}
