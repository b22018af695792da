/* kernels/adamw_cpu.c: one AdamW step, Loshchilov & Hutter 2019, algorithm 2 without amsgrad, each product and quotient
 * in torch.optim.AdamW's order so that curves can be laid over each other:
 *
 *   g = grad_scale g            p = p (1 - lr wd)
 *   m = m + (1-beta1)(g - m)    v = beta2 v + ((1-beta2) g) g
 *   p = p - ((lr/bias1) m) / (sqrt(v)/sqrt(bias2) + eps)
 *
 * Four streams in and three or four out: memory decides the speed, so one pass does everything. */
#include "kernels/simd.h"

#include "kernels/isa.h"

enum { CHUNK = 4096 };

/* The scalars of the step, worked out in doubles as Python does. */
struct coef {
    float grad_scale, keep, m_weight, beta2, v_weight, step, root_bias2, eps;
};

static struct coef coef_of(const struct kadamw *o)
{
    return (struct coef){
        .grad_scale = o->grad_scale,
        .keep = (float)(1.0 - o->lr * o->weight_decay),
        .m_weight = (float)(1.0 - o->beta1),
        .beta2 = (float)o->beta2,
        .v_weight = (float)(1.0 - o->beta2),
        .step = (float)(o->lr / o->bias1),
        .root_bias2 = (float)sqrt(o->bias2),
        .eps = (float)o->eps,
    };
}

INLINE void step(vf *p, vf *m, vf *v, vf g, const struct coef *c)
{
    vf denom;

    g = v_set(c->grad_scale) * g;
    *p = *p * v_set(c->keep);
    *m = v_fma(v_set(c->m_weight), g - *m, *m);
    *v = v_fma(v_set(c->v_weight) * g, g, v_set(c->beta2) * *v);
    denom = v_sqrt(*v) / v_set(c->root_bias2) + v_set(c->eps);
    *p = *p - v_set(c->step) * *m / denom;
}

INLINE void run(float *p, float *m, float *v, const float *g, int64_t i, int64_t end, const struct coef *c,
                void *shadow, enum dtype T)
{
    vf a, b, d;

    for (; i + VL <= end; i += VL) {
        a = v_loadf(p + i);
        b = v_loadf(m + i);
        d = v_loadf(v + i);
        step(&a, &b, &d, v_loadf(g + i), c);
        v_storef(p + i, a);
        v_storef(m + i, b);
        v_storef(v + i, d);
        if (shadow)
            v_store(shadow, i, T, a);
    }
    if (i < end) {
        const int64_t n = end - i;
        a = v_load_n(p, i, F32, n);
        b = v_load_n(m, i, F32, n);
        d = v_load_n(v, i, F32, n);
        step(&a, &b, &d, v_load_n(g, i, F32, n), c);
        v_store_n(p, i, F32, a, n);
        v_store_n(m, i, F32, b, n);
        v_store_n(v, i, F32, d, n);
        if (shadow)
            v_store_n(shadow, i, T, a, n);
    }
}

static int chunk(float *p, float *m, float *v, const float *g, int64_t i, int64_t end, const struct coef *c,
                 void *shadow, enum dtype type)
{
    if (!shadow) {
        run(p, m, v, g, i, end, c, NULL, F32);
        return K_OK;
    }
    BY_TYPE(type, run(p, m, v, g, i, end, c, shadow, T));
    return K_OK;
}

static int k_adamw(struct kctx *k, float *p, float *m, float *v, const float *g, int64_t n, const struct kadamw *o,
                   void *shadow, enum dtype shadow_type)
{
    const struct coef c = coef_of(o);

    if (n < 0 || (shadow && shadow_type != F32 && shadow_type != F16 && shadow_type != BF16))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n > 4 * CHUNK)
    for (int64_t i = 0; i < n; i += CHUNK)
        chunk(p, m, v, g, i, n - i < CHUNK ? n : i + CHUNK, &c, shadow, shadow_type);
    return K_OK;
}

void ISA_NAME(fill_adamw)(struct kern *k)
{
    k->adamw = k_adamw;
}
