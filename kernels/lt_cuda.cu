/* kernels/lt_cuda.cu: cuBLASLt, asked once per shape. What it chooses is kept with the queue, so that a call costs a
 * look-up, allocates nothing, and gives the same bits whenever it is repeated: the first choice is taken, and sums that
 * are split over K are added up by a kernel of their own in a fixed order.
 *
 * cuBLASLt is column-major: a row-major matrix is its own transpose there, and C' = op(B)' op(A)'.               */
#include "kernels/cuda.cuh"

#include <string.h>

#include <new>

extern "C" {
#include "kernels/cuda_gemm.h"
}

enum { N_SET = 256, N_WAY = 4, MOST_ALIGNED = 256, MOST_SIZE = 0x7fffffff };

/* What is left of the workspace when it begins at a multiple of 256 bytes, which cuBLASLt's kernels want. */
static const uint64_t workspace_bytes = CUDA_WORKSPACE - MOST_ALIGNED;

/* All that a choice depends on. */
struct lt_key {
    int64_t M, N, K, n, lda, ldb, ldc, ld_old, stride_a, stride_b, stride_c;
    int32_t type, c_type, trans_a, trans_b, bias, old;
    uint32_t align[4];                  /* cuBLASLt's A, B, C, D */
};

struct lt_plan {
    struct lt_key key;
    bool used, works;
    uint64_t when;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout[4];
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
};

struct cuda_plans {
    struct lt_plan plan[N_SET][N_WAY];
    cublasLtMatmulPreference_t preference;
    uint64_t now;
};

/* ---- life ---- */

bool cuda_plans_open(struct dev_queue *q)
{
    q->plans = new (std::nothrow) cuda_plans();
    return q->plans && cublasLtMatmulPreferenceCreate(&q->plans->preference) == CUBLAS_STATUS_SUCCESS;
}

static void forget(struct lt_plan *p)
{
    for (int i = 0; i < 4; i++)
        if (p->layout[i])
            (void)cublasLtMatrixLayoutDestroy(p->layout[i]);
    if (p->desc)
        (void)cublasLtMatmulDescDestroy(p->desc);
    *p = lt_plan();
}

void cuda_plans_close(struct dev_queue *q)
{
    for (int i = 0; i < N_SET * N_WAY; i++)
        forget(&q->plans->plan[i / N_WAY][i % N_WAY]);
    if (q->plans->preference)
        (void)cublasLtMatmulPreferenceDestroy(q->plans->preference);
    delete q->plans;
    q->plans = NULL;
}

/* ---- keys ---- */

/* Bytes that an address, and the next ones of a batch, are a multiple of. */
static uint32_t alignment(const void *p, int64_t stride, int64_t n, enum dtype type)
{
    const uint64_t bits = (uint64_t)(uintptr_t)p | (n > 1 ? (uint64_t)stride * dtype_bytes(type) : 0) | MOST_ALIGNED;
    const uint64_t lowest = bits & (~bits + 1);

    return (uint32_t)(lowest > 16 && lowest < MOST_ALIGNED ? 16 : lowest);
}

static const void *old_of(const struct cuda_product *p)
{
    return p->old && p->g.beta != 0 ? p->old : p->g.c;
}

static struct lt_key key_of(const struct cuda_product *p)
{
    const struct kgemm *g = &p->g;
    struct lt_key key;

    memset(&key, 0, sizeof key);        /* keys are compared as bytes */
    key.M = g->M, key.N = g->N, key.K = g->K, key.n = g->n;
    key.lda = g->lda, key.ldb = g->ldb, key.ldc = g->ldc;
    key.old = g->beta != 0;
    key.ld_old = old_of(p) == g->c ? g->ldc : p->ld_old;
    if (g->n > 1)
        key.stride_a = g->stride_a, key.stride_b = g->stride_b, key.stride_c = g->stride_c;
    key.type = g->a_type, key.c_type = g->c_type;
    key.trans_a = g->trans_a, key.trans_b = g->trans_b;
    key.bias = p->bias != NULL;
    key.align[0] = alignment(g->b, g->stride_b, g->n, g->b_type);
    key.align[1] = alignment(g->a, g->stride_a, g->n, g->a_type);
    key.align[2] = alignment(old_of(p), g->stride_c, g->n, g->c_type);
    key.align[3] = alignment(g->c, g->stride_c, g->n, g->c_type);
    return key;
}

/* FNV-1a, by words. */
static unsigned set_of(const struct lt_key *key)
{
    uint32_t word[sizeof *key / 4];
    uint64_t h = 14695981039346656037u;

    memcpy(word, key, sizeof word);
    for (size_t i = 0; i < sizeof word / sizeof *word; i++)
        h = (h ^ word[i]) * 1099511628211u;
    return (unsigned)(h >> 32) % N_SET;
}

/* ---- a new plan ---- */

static cudaDataType_t type_in_cuda(int32_t type)
{
    return type == F32 ? CUDA_R_32F : type == F16 ? CUDA_R_16F : CUDA_R_16BF;
}

/* A row-major (rows,columns) matrix. */
static bool lay(cublasLtMatrixLayout_t *out, int32_t type, int64_t rows, int64_t columns, int64_t ld, int64_t n,
                int64_t stride)
{
    const int32_t count = (int32_t)n;

    if (cublasLtMatrixLayoutCreate(out, type_in_cuda(type), (uint64_t)columns, (uint64_t)rows, ld)
        != CUBLAS_STATUS_SUCCESS)
        return false;
    return n == 1 || (cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count)
                          == CUBLAS_STATUS_SUCCESS
                      && cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                          sizeof stride) == CUBLAS_STATUS_SUCCESS);
}

static bool describe(struct lt_plan *p)
{
    const struct lt_key *key = &p->key;
    const int32_t trans_a = key->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t trans_b = key->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t epilogue = key->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT, bias_type = CUDA_R_32F;

    return cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &trans_a, sizeof trans_a)
            == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &trans_b, sizeof trans_b)
            == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue)
            == CUBLAS_STATUS_SUCCESS
        && (!key->bias
            || cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                                              sizeof bias_type) == CUBLAS_STATUS_SUCCESS)
        && lay(&p->layout[0], key->type, key->trans_b ? key->N : key->K, key->trans_b ? key->K : key->N, key->ldb,
               key->n, key->stride_b)
        && lay(&p->layout[1], key->type, key->trans_a ? key->K : key->M, key->trans_a ? key->M : key->K, key->lda,
               key->n, key->stride_a)
        && lay(&p->layout[2], key->c_type, key->M, key->N, key->ld_old, key->n, key->stride_c)
        && lay(&p->layout[3], key->c_type, key->M, key->N, key->ldc, key->n, key->stride_c);
}

static bool prefer(cublasLtMatmulPreference_t to, const struct lt_key *key)
{
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    bool ok = cublasLtMatmulPreferenceSetAttribute(to, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                                   sizeof workspace_bytes) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulPreferenceSetAttribute(to, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                                sizeof reduction) == CUBLAS_STATUS_SUCCESS;

    for (int i = 0; i < 4; i++)
        ok = ok && cublasLtMatmulPreferenceSetAttribute(to, aligned[i], &key->align[i], sizeof key->align[i])
            == CUBLAS_STATUS_SUCCESS;
    return ok;
}

/* The address is there when cuBLASLt is asked, as one that is aligned to 16 bytes. */
static bool set_bias(cublasLtMatmulDesc_t desc, const float *bias)
{
    return !bias || cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias)
        == CUBLAS_STATUS_SUCCESS;
}

/* A shape that cuBLASLt cannot do is remembered as well. */
static void choose(struct dev_queue *q, struct lt_plan *p, const float *bias)
{
    cublasLtMatmulHeuristicResult_t result;
    int n = 0;

    p->used = true;
    p->works = describe(p) && set_bias(p->desc, bias) && prefer(q->plans->preference, &p->key)
        && cublasLtMatmulAlgoGetHeuristic(q->lt, p->desc, p->layout[0], p->layout[1], p->layout[2], p->layout[3],
                                          q->plans->preference, 1, &result, &n) == CUBLAS_STATUS_SUCCESS
        && n == 1 && result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_bytes;
    if (p->works) {
        p->algo = result.algo;
        p->workspace = result.workspaceSize;
    }
}

/* The plan of a key; the one that was not asked for the longest makes room. */
static struct lt_plan *plan_of(struct dev_queue *q, const struct lt_key *key, const float *bias)
{
    struct lt_plan *set = q->plans->plan[set_of(key)], *oldest = set;

    for (int i = 0; i < N_WAY; i++) {
        if (set[i].used && !memcmp(&set[i].key, key, sizeof *key)) {
            set[i].when = ++q->plans->now;
            return &set[i];
        }
        if (set[i].when < oldest->when)
            oldest = &set[i];
    }
    forget(oldest);
    oldest->key = *key;
    oldest->when = ++q->plans->now;
    choose(q, oldest, bias);
    return oldest;
}

/* ---- multiplying ---- */

static void *workspace(const struct kctx *k)
{
    const uintptr_t at = (uintptr_t)k->scratch + k->scratch_bytes - CUDA_WORKSPACE;

    return (void *)((at + MOST_ALIGNED - 1) / MOST_ALIGNED * MOST_ALIGNED);
}

static bool takes(const struct cuda_product *p)
{
    const struct kgemm *g = &p->g;

    return g->a_type == g->b_type && (g->c_type == g->a_type || g->c_type == F32)
        && (!p->bias || (g->c_type == F32 && (uintptr_t)p->bias % 16 == 0)) && g->K > 0 && g->M <= MOST_SIZE
        && g->N <= MOST_SIZE && g->K <= MOST_SIZE;
}

extern "C" bool lt_multiply(struct kctx *k, const struct cuda_product *p)
{
    struct dev_queue *q = cuda_queue(k);
    const struct kgemm *g = &p->g;
    struct lt_key key;
    struct lt_plan *plan;
    cublasStatus_t rc;

    if (!takes(p))
        return false;
    key = key_of(p);
    plan = plan_of(q, &key, p->bias);
    if (!plan->works || !set_bias(plan->desc, p->bias))
        return false;
    q->n_launch++;
    rc = cublasLtMatmul(q->lt, plan->desc, &g->alpha, g->b, plan->layout[0], g->a, plan->layout[1], &g->beta, old_of(p),
                        plan->layout[2], g->c, plan->layout[3], &plan->algo,
                        plan->workspace ? workspace(k) : NULL, plan->workspace, q->stream);
    if (rc != CUBLAS_STATUS_SUCCESS)
        cuda_fail(q, "cublasLtMatmul", cublasLtGetStatusString(rc));
    return true;
}
