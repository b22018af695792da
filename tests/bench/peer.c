/* tests/bench/peer.c: OpenBLAS and oneDNN doing the same work, if this build found them. Only their public C interfaces
 * are used, and only here. */
#include "tests/bench/bench.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(HAVE_OPENBLAS) || defined(HAVE_DNNL)
static void *filled(size_t n, enum dtype type)
{
    const size_t bytes = (n * dtype_bytes(type) + 4095) / 4096 * 4096;
    char *p = aligned_alloc(4096, bytes ? bytes : 4096);
    uint32_t s = 12345;

    for (size_t i = 0; p && i < n; i++) {
        s = s * 1664525u + 1013904223u;
        const float x = (float)(int32_t)s * 0x1p-31f;
        uint32_t u;
        memcpy(&u, &x, 4);
        if (type == F32)
            memcpy(p + 4 * i, &x, 4);
        else
            memcpy(p + 2 * i, (char *)&u + 2, 2);       /* bf16; f16 is not asked for */
    }
    return p;
}
#endif

#ifdef HAVE_OPENBLAS
#include <cblas.h>

struct blas {
    int64_t M, N, K;
    float *a, *b, *c;
};

static int blas_run(void *arg)
{
    const struct blas *s = arg;

    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)s->M, (int)s->N, (int)s->K, 1, s->a, (int)s->K, s->b,
                (int)s->K, 0, s->c, (int)s->N);
    return 0;
}

const char *peer_blas_name(void)
{
    return openblas_get_config();
}

double peer_blas(int n_threads, int64_t M, int64_t N, int64_t K)
{
    struct blas s = { M, N, K, filled((size_t)(M * K), F32), filled((size_t)(N * K), F32),
                      filled((size_t)(M * N), F32) };
    double t;

    openblas_set_num_threads(n_threads);
    t = s.a && s.b && s.c ? bench_time(blas_run, &s) : -1;
    free(s.a);
    free(s.b);
    free(s.c);
    return t;
}
#else
const char *peer_blas_name(void)
{
    return NULL;
}

double peer_blas(int n_threads, int64_t M, int64_t N, int64_t K)
{
    (void)n_threads, (void)M, (void)N, (void)K;
    return -1;
}
#endif

#ifdef HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>

#if DNNL_VERSION_MAJOR == 2

enum { SRC, WEI, DST, N_ARG };

struct dnn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t prim;
    dnnl_memory_t mem[N_ARG];
    void *data[N_ARG];
    dnnl_exec_arg_t arg[N_ARG];
};

static int dnn_run(void *arg)
{
    const struct dnn *d = arg;

    return dnnl_primitive_execute(d->prim, d->stream, N_ARG, d->arg) != dnnl_success
           || dnnl_stream_wait(d->stream) != dnnl_success;
}

const char *peer_dnn_name(void)
{
    static char name[64];
    const dnnl_version_t *v = dnnl_version();

    snprintf(name, sizeof name, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    return name;
}

static dnnl_data_type_t data_type(enum dtype t)
{
    return t == F32 ? dnnl_f32 : t == BF16 ? dnnl_bf16 : dnnl_f16;
}

/* Buffers in whatever layout the primitive asks for; their contents do not matter to the time. */
static bool dnn_bind(struct dnn *d, dnnl_primitive_desc_t pd, const dnnl_query_t query[N_ARG], const int id[N_ARG])
{
    for (int i = 0; i < N_ARG; i++) {
        const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, query[i], 0);

        if (!md)
            return false;
        d->data[i] = filled(dnnl_memory_desc_get_size(md) / 4 + 16, F32);
        if (!d->data[i] || dnnl_memory_create(&d->mem[i], md, d->engine, d->data[i]) != dnnl_success)
            return false;
        d->arg[i] = (dnnl_exec_arg_t){ id[i], d->mem[i] };
    }
    return dnnl_primitive_create(&d->prim, pd) == dnnl_success;
}

static double dnn_finish(struct dnn *d, bool ok)
{
    const double t = ok ? bench_time(dnn_run, d) : -1;

    for (int i = 0; i < N_ARG; i++) {
        if (d->mem[i])
            dnnl_memory_destroy(d->mem[i]);
        free(d->data[i]);
    }
    if (d->prim)
        dnnl_primitive_destroy(d->prim);
    if (d->stream)
        dnnl_stream_destroy(d->stream);
    if (d->engine)
        dnnl_engine_destroy(d->engine);
    return t;
}

static bool dnn_start(struct dnn *d, int n_threads)
{
    omp_set_num_threads(n_threads);
    return dnnl_engine_create(&d->engine, dnnl_cpu, 0) == dnnl_success
           && dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags) == dnnl_success;
}

double peer_dnn_conv(int n_threads, enum dtype type, int64_t B, const struct kgeom *g, bool dx)
{
    static const dnnl_query_t query[2][N_ARG] = { { dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md },
                                                  { dnnl_query_diff_src_md, dnnl_query_weights_md,
                                                    dnnl_query_diff_dst_md } };
    static const int id[2][N_ARG] = { { DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST },
                                      { DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST } };
    const dnnl_dims_t x = { B, g->Ci, g->H, g->W }, w = { g->Co, g->Ci, g->KH, g->KW }, y = { B, g->Co, g->Ho, g->Wo };
    const dnnl_dims_t stride = { g->stride, g->stride }, left = { g->pad_t, g->pad_l };
    const dnnl_dims_t right = { (g->Ho - 1) * g->stride + g->KH - g->H - g->pad_t,
                                (g->Wo - 1) * g->stride + g->KW - g->W - g->pad_l };
    dnnl_memory_desc_t md[N_ARG];
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t pd = NULL, hint = NULL;
    struct dnn d = { 0 };
    bool ok = g->up == 1 && dnn_start(&d, n_threads);

    ok = ok && !dnnl_memory_desc_init_by_tag(&md[SRC], 4, x, data_type(type), dnnl_nhwc)
         && !dnnl_memory_desc_init_by_tag(&md[WEI], 4, w, data_type(type), dnnl_format_tag_any)
         && !dnnl_memory_desc_init_by_tag(&md[DST], 4, y, data_type(type), dnnl_nhwc)
         && !dnnl_convolution_forward_desc_init(&desc, dnnl_forward_training, dnnl_convolution_direct, &md[SRC],
                                                &md[WEI], NULL, &md[DST], stride, left, right)
         && !dnnl_primitive_desc_create(dx ? &hint : &pd, &desc, NULL, d.engine, NULL);
    if (ok && dx)
        ok = !dnnl_convolution_backward_data_desc_init(&desc, dnnl_convolution_direct, &md[SRC], &md[WEI], &md[DST],
                                                       stride, left, right)
             && !dnnl_primitive_desc_create(&pd, &desc, NULL, d.engine, hint);
    ok = ok && dnn_bind(&d, pd, query[dx], id[dx]);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (hint)
        dnnl_primitive_desc_destroy(hint);
    return dnn_finish(&d, ok);
}

double peer_dnn_matmul(int n_threads, enum dtype type, int64_t M, int64_t N, int64_t K)
{
    static const dnnl_query_t query[N_ARG] = { dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md };
    static const int id[N_ARG] = { DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST };
    const dnnl_dims_t x = { M, K }, w = { K, N }, y = { M, N };
    dnnl_memory_desc_t md[N_ARG];
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd = NULL;
    struct dnn d = { 0 };
    bool ok = dnn_start(&d, n_threads);

    ok = ok && !dnnl_memory_desc_init_by_tag(&md[SRC], 2, x, data_type(type), dnnl_ab)
         && !dnnl_memory_desc_init_by_tag(&md[WEI], 2, w, data_type(type), dnnl_format_tag_any)
         && !dnnl_memory_desc_init_by_tag(&md[DST], 2, y, data_type(type), dnnl_ab)
         && !dnnl_matmul_desc_init(&desc, &md[SRC], &md[WEI], NULL, &md[DST])
         && !dnnl_primitive_desc_create(&pd, &desc, NULL, d.engine, NULL) && dnn_bind(&d, pd, query, id);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return dnn_finish(&d, ok);
}

#else
#error "tests/bench/peer.c knows oneDNN 2.x; build the bench without HAVE_DNNL"
#endif
#else
const char *peer_dnn_name(void)
{
    return NULL;
}

double peer_dnn_conv(int n_threads, enum dtype type, int64_t B, const struct kgeom *g, bool dx)
{
    (void)n_threads, (void)type, (void)B, (void)g, (void)dx;
    return -1;
}

double peer_dnn_matmul(int n_threads, enum dtype type, int64_t M, int64_t N, int64_t K)
{
    (void)n_threads, (void)type, (void)M, (void)N, (void)K;
    return -1;
}
#endif
