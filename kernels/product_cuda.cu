/* kernels/product_cuda.cu: a product by cuBLASLt. The pixels that each output pixel reads are laid out as a row of a
 * matrix (im2col), as many rows at a time as the scratch holds, and multiplied with the pack into sums in f32, one part
 * after the other; a last kernel makes y of the sums. Where a part's pixels are such a matrix already they are read in
 * place, and where there is nothing to add to a product but a residual, cuBLASLt writes y itself. */
#include "kernels/cuda.cuh"

#include "kernels/cuda_act.cuh"
#include "kernels/cuda_gemm.h"
#include "kernels/cuda_product.h"
#include "kernels/cuda_vec.cuh"

/* ---- im2col ----
 * Pixels are counted in 32 bits, in which a division is a few instructions: conv() refuses more. */

/* Pixel of x that output pixel (b,i,j) reads through tap (a,b), or -1 for one outside. */
static __device__ __forceinline__ int64_t source(const struct product_part &s, int64_t b, int64_t i, int64_t j, int tap,
                                                 int64_t Ho, int64_t Wo)
{
    const int64_t y = i * s.stride - s.pad_t + tap / s.KW, x = j * s.stride - s.pad_l + tap % s.KW;

    if (y < 0 || x < 0 || y >= (s.up == 2 ? Ho : s.H) || x >= (s.up == 2 ? Wo : s.W))
        return -1;
    return s.up == 2 ? (b * s.H + (y >> 1)) * s.W + (x >> 1) : (b * s.H + y) * s.W + x;
}

/* Rows [row0, row0 + rows) of the matrix, N elements each thread; there are fewer than 2^31 elements. N > 1: whole
 * vectors of 16 bytes, Ci = Cp. */
template <typename T, int N> static __global__ void im2col_kernel(T *out, struct product_part s, unsigned Ho,
                                                                  unsigned Wo, unsigned row0, unsigned rows)
{
    const unsigned groups = (unsigned)(s.Cp / N), per_row = (unsigned)(s.KH * s.KW) * groups, all = rows * per_row;

    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < all; v += gridDim.x * blockDim.x) {
        const unsigned r = v / per_row, in_row = v - r * per_row;
        const unsigned tap = in_row / groups, c = (in_row - tap * groups) * N;
        const unsigned m = row0 + r, line = m / Wo, b = line / Ho;
        const int64_t px = source(s, b, line - b * Ho, m - line * Wo, (int)tap, Ho, Wo);
        const T *from = (const T *)s.x + px * s.ldx + c;

        if constexpr (N == 1) {
            store(&out[v], px >= 0 && c < s.Ci ? load(from) : 0);
        } else {
            *(uint4 *)(out + (int64_t)v * N) = px >= 0 ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
        }
    }
}

static bool aligned(const void *p, int64_t ld, enum dtype type)
{
    return (uintptr_t)p % 16 == 0 && ld * (int64_t)dtype_bytes(type) % 16 == 0;
}

template <typename T> static void lay_out(struct kctx *k, void *out, const struct product *p, int part, int64_t row0,
                                          int64_t rows)
{
    constexpr int N = cuda_vec<T>;
    const struct product_part *s = &p->part[part];
    const int64_t all = rows * product_depth(s);

    if (all == 0)
        return;
    if (s->Ci == s->Cp && aligned(s->x, s->ldx, s->x_type))
        LAUNCH(k, (im2col_kernel<T, N>), cuda_blocks(all / N, 256), 256, 0, (T *)out, *s, (unsigned)p->Ho,
               (unsigned)p->Wo, (unsigned)row0, (unsigned)rows);
    else
        LAUNCH(k, (im2col_kernel<T, 1>), cuda_blocks(all, 256), 256, 0, (T *)out, *s, (unsigned)p->Ho,
               (unsigned)p->Wo, (unsigned)row0, (unsigned)rows);
}

/* ---- epilogue ---- */

/* What the kernel gets. */
struct finish {
    const float *sums;                  /* (rows,Co), from row0 on */
    int64_t row0, rows;
    int64_t Ho, Wo, Co;
    float alpha;
    const float *bias;
    const void *row_add, *residual;
    void *y;
    int64_t row_add_ld, residual_ld, ldy, Hy, Wy;
    int y_step, y_i, y_j;
    bool dense;
    enum kact act;
};

static __device__ __forceinline__ float activate(float x, enum kact act)
{
    switch (act) {
    case K_ACT_SILU: return act_silu(x);
    case K_ACT_GEGLU:
    case K_ACT_GELU: return act_gelu(x);
    case K_ACT_QUICK_GELU: return act_quick_gelu(x);
    case K_ACT_RELU: return act_relu(x);
    default: return x;
    }
}

/* N sums; two are a value and its gate. */
template <int N> static __device__ __forceinline__ void take(float *out, const float *from)
{
    if constexpr (N == 2) {
        out[0] = from[0];
        out[1] = from[1];
    } else {
        load_vec<N>(out, from);
    }
}

/* Pixel of y that row m of the product is. */
static __device__ __forceinline__ int64_t y_pixel(const struct finish &f, unsigned m)
{
    const unsigned line = m / (unsigned)f.Wo, b = line / (unsigned)f.Ho;

    return f.dense ? m
        : (b * f.Hy + (line - b * f.Ho) * f.y_step + f.y_i) * f.Wy + (m - line * f.Wo) * f.y_step + f.y_j;
}

/* v = alpha * v + bias + row_add for channel c. */
template <typename T> static __device__ __forceinline__ float shifted(const struct finish &f, float v, int64_t b,
                                                                      int64_t c)
{
    v *= f.alpha;
    if (f.bias)
        v += f.bias[c];
    if (f.row_add)
        v += load((const T *)f.row_add + b * f.row_add_ld + c);
    return v;
}

/* N channels of a pixel of y each thread; GLU: from 2N sums, value and gate side by side. */
template <typename T, int N, bool GLU> static __global__ void finish_kernel(struct finish f)
{
    const int64_t width = GLU ? f.Co / 2 : f.Co;
    const unsigned groups = (unsigned)(width / N), all = (unsigned)f.rows * groups;

    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < all; v += gridDim.x * blockDim.x) {
        const unsigned r = v / groups;
        const unsigned m = (unsigned)f.row0 + r;
        const int64_t c = (int64_t)(v - r * groups) * N, px = y_pixel(f, m);
        const int64_t b = f.row_add ? m / (unsigned)(f.Ho * f.Wo) : 0;
        float sum[GLU ? 2 * N : N], out[N], old[N];

        take<GLU ? 2 * N : N>(sum, f.sums + r * f.Co + (GLU ? 2 * c : c));
        for (int i = 0; i < N; i++)
            if (GLU)
                out[i] = shifted<T>(f, sum[2 * i], b, c + i)
                    * activate(shifted<T>(f, sum[2 * i + 1], b, width + c + i), K_ACT_GEGLU);
            else
                out[i] = activate(shifted<T>(f, sum[i], b, c + i), f.act);
        if (f.residual) {
            load_vec<N>(old, (const T *)f.residual + px * f.residual_ld + c);
            for (int i = 0; i < N; i++)
                out[i] += old[i];
        }
        store_vec<N>((T *)f.y + px * f.ldy + c, out);
    }
}

template <typename T> static void finish(struct kctx *k, const struct product *p, const struct finish *f)
{
    constexpr int N = cuda_vec<T>;
    const bool glu = p->act == K_ACT_GEGLU;
    const int64_t width = glu ? p->Co / 2 : p->Co, all = f->rows * width;
    const bool whole = width % N == 0 && aligned(p->y, p->ldy, p->y_type)
        && (!p->residual || aligned(p->residual, p->residual_ld, p->y_type));

    if (glu && whole)
        LAUNCH(k, (finish_kernel<T, N, true>), cuda_blocks(all / N, 256), 256, 0, *f);
    else if (glu)
        LAUNCH(k, (finish_kernel<T, 1, true>), cuda_blocks(all, 256), 256, 0, *f);
    else if (whole)
        LAUNCH(k, (finish_kernel<T, N, false>), cuda_blocks(all / N, 256), 256, 0, *f);
    else
        LAUNCH(k, (finish_kernel<T, 1, false>), cuda_blocks(all, 256), 256, 0, *f);
}

/* ---- the product ---- */

/* sums (+)= rows of a part times its pack; or y at once. */
static int multiply(struct kctx *k, const struct product *p, const struct product_plan *plan, int part, int64_t row0,
                    int64_t rows, float *sums)
{
    const struct product_part *s = &p->part[part];
    const int64_t y_bytes = (int64_t)dtype_bytes(p->y_type);
    struct cuda_product m = { .g = { .M = rows, .N = p->Co, .K = product_depth(s), .n = 1, .a = k->scratch, .b = s->w,
                                     .c = sums, .a_type = s->x_type, .b_type = s->w_type, .c_type = F32,
                                     .lda = product_depth(s), .ldb = product_depth(s), .ldc = p->Co, .stride_a = 0,
                                     .stride_b = 0, .stride_c = 0, .trans_a = false, .trans_b = true, .alpha = 1,
                                     .beta = part ? 1.0f : 0.0f },
                              .old = NULL, .ld_old = 0, .bias = NULL };

    if (product_part_in_place(p, part)) {
        m.g.K = s->Ci;
        m.g.a = (const char *)s->x + row0 * s->ldx * (int64_t)dtype_bytes(s->x_type);
        m.g.lda = s->ldx;
    } else {
        CUDA_BY_TYPE(s->x_type, T, lay_out<T>(k, k->scratch, p, part, row0, rows));
    }
    if (plan->direct) {
        m.g.c = (char *)p->y + row0 * p->ldy * y_bytes;
        m.g.ldc = p->ldy;
        m.g.c_type = p->y_type;
        m.g.alpha = p->alpha;
        m.bias = p->bias;
        if (p->residual) {
            m.g.beta = 1;
            m.old = (const char *)p->residual + row0 * p->residual_ld * y_bytes;
            m.ld_old = p->residual_ld;
        }
    }
    return cuda_multiply(k, &m);
}

static int some_rows(struct kctx *k, const struct product *p, const struct product_plan *plan, int64_t row0,
                     int64_t rows)
{
    float *sums = (float *)((char *)k->scratch + product_columns_bytes(p, plan->rows));
    const struct finish f = { sums, row0, rows, p->Ho, p->Wo, p->Co, p->alpha, p->bias, p->row_add, p->residual, p->y,
                              p->row_add_ld, p->residual_ld, p->ldy, p->Hy, p->Wy, p->y_step, p->y_i, p->y_j,
                              product_dense(p), p->act };

    for (int i = 0; i < p->n_part; i++) {
        const int rc = multiply(k, p, plan, i, row0, rows, sums);

        if (rc)
            return rc;
    }
    if (!plan->direct)
        CUDA_BY_TYPE(p->y_type, T, finish<T>(k, p, &f));
    return cuda_launched(k);
}

int product_lt(struct kctx *k, const struct product *p, const struct product_plan *plan)
{
    const int64_t all = product_rows(p);
    int rc = plan->rows > 0 ? K_OK : K_SCRATCH;

    for (int64_t row = 0; row < all && !rc; row += plan->rows)
        rc = some_rows(k, p, plan, row, all - row < plan->rows ? all - row : plan->rows);
    return rc;
}
