/* tests/emu/cublaslt.cc: see cublasLt.h. */
#include <cublasLt.h>

#include <vector>

#include "kernels/cuda_ptx.cuh"

struct emu_lt { int unused; };
struct emu_desc {
    cublasComputeType_t compute;
    int32_t trans_a, trans_b, epilogue, bias_type;
    const void *bias;
};
struct emu_layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t n;
};
struct emu_preference {
    uint64_t workspace;
    uint32_t align[4], reduction;
};

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    *h = new emu_lt();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t s) { return s ? "an error of cuBLASLt" : "success"; }
size_t cublasLtGetVersion(void) { return 130000; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t c, cudaDataType_t scale)
{
    *d = new emu_desc{ c, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, -1, NULL };
    return scale == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t take(void *to, size_t want, const void *value, size_t bytes)
{
    if (bytes != want)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a,
                                              const void *value, size_t bytes)
{
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return take(&d->trans_a, 4, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return take(&d->trans_b, 4, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return take(&d->epilogue, 4, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(&d->bias, sizeof d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return take(&d->bias_type, 4, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows, uint64_t cols,
                                          int64_t ld)
{
    *l = new emu_layout{ type, rows, cols, ld, 0, 1 };
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a,
                                                const void *value, size_t bytes)
{
    return a == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? take(&l->n, 4, value, bytes) : take(&l->stride, 8, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = new emu_preference{ 0, { 256, 256, 256, 256 }, 0xffffffffu };
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t a, const void *value,
                                                    size_t bytes)
{
    if (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return take(&p->workspace, 8, value, bytes);
    if (a == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        return take(&p->reduction, 4, value, bytes);
    return take(&p->align[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], 4, value, bytes);
}

static size_t size_of(cudaDataType_t t) { return t == CUDA_R_32F ? 4 : 2; }

/* Leading dimensions hold their columns; shapes fit. */
static bool fits(const emu_desc *d, const emu_layout *a, const emu_layout *b, const emu_layout *c, const emu_layout *o)
{
    const uint64_t M = d->trans_a ? a->cols : a->rows, K = d->trans_a ? a->rows : a->cols;
    const uint64_t N = d->trans_b ? b->rows : b->cols, K2 = d->trans_b ? b->cols : b->rows;

    return K == K2 && o->rows == M && o->cols == N && c->rows == M && c->cols == N && a->type == b->type
        && c->type == o->type && (o->type == a->type || o->type == CUDA_R_32F) && a->ld >= (int64_t)a->rows
        && b->ld >= (int64_t)b->rows && c->ld >= (int64_t)M && o->ld >= (int64_t)M && a->n == b->n && b->n == o->n
        && c->n == o->n && M && N && K;
}

/* The alignments that were promised are kept in `algo`, and held against the addresses. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t out, cublasLtMatmulPreference_t p, int,
                                              cublasLtMatmulHeuristicResult_t result[], int *got)
{
    *got = 0;
    if (!fits(d, a, b, c, out))
        return CUBLAS_STATUS_INVALID_VALUE;
    *got = 1;
    memset(&result[0], 0, sizeof result[0]);
    for (int i = 0; i < 4; i++)
        result[0].algo.data[i] = p->align[i];
    result[0].algo.data[4] = 0x1234;
    result[0].workspaceSize = p->workspace < 1024 ? p->workspace : 1024;
    return CUBLAS_STATUS_SUCCESS;
}

static float get(const void *p, cudaDataType_t t, int64_t i)
{
    uint32_t u;
    float f;

    if (t == CUDA_R_32F)
        return ((const float *)p)[i];
    u = ((const uint16_t *)p)[i];
    if (t == CUDA_R_16F)
        return ptx_f16_to_f32(u);
    u <<= 16;
    memcpy(&f, &u, 4);
    return f;
}

static void put(void *p, cudaDataType_t t, int64_t i, float x)
{
    uint32_t u;

    memcpy(&u, &x, 4);
    if (t == CUDA_R_32F)
        ((float *)p)[i] = x;
    else if (t == CUDA_R_16F)
        ((uint16_t *)p)[i] = (uint16_t)ptx_f32_to_f16(x);
    else
        ((uint16_t *)p)[i] = (uint16_t)(x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

struct job {
    emu_desc d;
    emu_layout a, b, c, o;
    const void *A, *B, *C;
    void *D;
    float alpha, beta;
};

/* a (K,M), b (N,K): matrix q of the batch in f32. */
static void read_operands(const struct job *j, int64_t q, float *a, float *b, int64_t M, int64_t N, int64_t K)
{
    for (int64_t k = 0; k < K; k++)
        for (int64_t i = 0; i < M; i++)
            a[k * M + i] = get(j->A, j->a.type, q * j->a.stride + (j->d.trans_a ? i * j->a.ld + k : k * j->a.ld + i));
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++)
            b[n * K + k] = get(j->B, j->b.type, q * j->b.stride + (j->d.trans_b ? k * j->b.ld + n : n * j->b.ld + k));
}

__attribute__((optimize("O3"))) static void add_column(float *sum, const float *a, const float *b, int64_t M, int64_t K)
{
    for (int64_t i = 0; i < M; i++)
        sum[i] = 0;
    for (int64_t k = 0; k < K; k++)
        for (int64_t i = 0; i < M; i++)
            sum[i] += a[k * M + i] * b[k];
}

static void multiply(const struct job *j)
{
    const int64_t M = (int64_t)j->o.rows, N = (int64_t)j->o.cols;
    const int64_t K = (int64_t)(j->d.trans_a ? j->a.rows : j->a.cols);
    const cudaDataType_t bias_type = j->d.bias_type < 0 ? j->o.type : (cudaDataType_t)j->d.bias_type;
    std::vector<float> a((size_t)(M * K)), b((size_t)(K * N)), sum((size_t)M);

    for (int64_t q = 0; q < j->o.n; q++) {
        read_operands(j, q, a.data(), b.data(), M, N, K);
        for (int64_t n = 0; n < N; n++) {
            add_column(sum.data(), a.data(), &b[(size_t)(n * K)], M, K);
            for (int64_t i = 0; i < M; i++) {
                float x = j->alpha * sum[(size_t)i];

                if (j->beta != 0)
                    x += j->beta * get(j->C, j->c.type, q * j->c.stride + n * j->c.ld + i);
                if (j->d.epilogue & CUBLASLT_EPILOGUE_BIAS)
                    x += get(j->d.bias, bias_type, i);
                if ((j->d.epilogue & CUBLASLT_EPILOGUE_RELU) && x < 0)
                    x = 0;
                put(j->D, j->o.type, q * j->o.stride + n * j->o.ld + i, x);
            }
        }
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t out,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes, cudaStream_t s)
{
    const struct job j = { *d, *a, *b, *c, *out, A, B, C, D, *(const float *)alpha, *(const float *)beta };
    const void *at[4] = { A, B, C, D };

    if (!fits(d, a, b, c, out) || !algo || algo->data[4] != 0x1234)
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((d->epilogue & CUBLASLT_EPILOGUE_BIAS) && d->bias_type >= 0 && d->bias_type != (int32_t)out->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;         /* a bias has the type of the result */
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)at[i] % algo->data[i])
            emu_die("a matrix lies at an address that was promised to be better aligned");
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)at[i] % size_of(i < 2 ? a->type : out->type))
            emu_die("a matrix is not aligned to its type");
    if (workspace)
        emu_queue_work(s, "workspace", [=] { memset(workspace, 0xff, bytes); });
    emu_queue_work(s, "cublasLtMatmul", [=] { multiply(&j); });
    return CUBLAS_STATUS_SUCCESS;
}
