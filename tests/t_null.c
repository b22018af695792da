/* tests/t_null.c: the null twin counts what is known by hand, touches nothing, and refuses what the CPU twins
 * refuse. */
#include <stddef.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

static struct kern null;
static struct kcount count;
static struct kctx ctx = { .n_threads = 2, .count = &count };

/* Addresses that nobody may read. */
static char *const fake = (char *)0x100;
static float *const floats = (float *)0x200;
static int32_t *const ids = (int32_t *)0x300;

/* Did `status` count exactly this, as one call? */
static bool counted(int status, int64_t flops, int64_t bytes)
{
    const struct kcount c = count;

    memset(&count, 0, sizeof count);
    if (status == K_OK && c.flops == flops && c.bytes == bytes && c.calls == 1)
        return true;
    tap_note("status %d, %lld FLOPs, %lld bytes, %lld calls; want %lld FLOPs, %lld bytes", status, (long long)c.flops,
             (long long)c.bytes, (long long)c.calls, (long long)flops, (long long)bytes);
    return false;
}

static bool nothing(int status, int want)
{
    const struct kcount c = count;

    memset(&count, 0, sizeof count);
    return status == want && !c.flops && !c.bytes && !c.calls;
}

/* ---- members ---- */

static size_t some_pack_bytes(const struct kpack *p) { return (size_t)p->Co; }
static size_t some_attn_bytes(const struct kattn *a, int n_threads) { return (size_t)(a->D * n_threads); }
static size_t some_group_bytes(int64_t B, int64_t HW, int64_t C, int64_t G) { return (size_t)(B + HW + C + G); }
static size_t some_bytes(int64_t rows, int64_t D) { return (size_t)(rows + D); }

static void test_members(void)
{
    const struct kern like = { .isa = "some", .scratch_bytes = 4711, .computes = true, .pack_bytes = some_pack_bytes,
                               .attn_back_bytes = some_attn_bytes, .group_norm_back_bytes = some_group_bytes,
                               .layer_norm_back_bytes = some_bytes, .col_sum_bytes = some_bytes };
    const size_t first = offsetof(struct kern, pack_bytes);
    struct kern k;
    void (*fn)(void);
    bool full = true;

    memset(&k, 0xA5, sizeof k);
    kern_null(&k, &like);
    for (size_t at = first; at < sizeof k; at += sizeof fn) {
        memcpy(&fn, (char *)&k + at, sizeof fn);
        full &= fn != NULL;
    }
    tap_ok(full && (sizeof k - first) % sizeof fn == 0, "every member is filled");
    tap_ok(!strcmp(k.name, "null") && !strcmp(k.isa, "some") && !k.computes && k.scratch_bytes == 4711
           && k.pack_bytes == like.pack_bytes && k.attn_back_bytes == like.attn_back_bytes
           && k.group_norm_back_bytes == like.group_norm_back_bytes
           && k.layer_norm_back_bytes == like.layer_norm_back_bytes && k.col_sum_bytes == like.col_sum_bytes,
           "sizes are those of the twin it stands for");
}

/* ---- products ---- */

static struct kconv conv_of(enum kdir dir, enum kpack_kind kind, struct kgeom g)
{
    struct kconv c = { .dir = dir, .B = 2, .n_part = 1, .alpha = 1, .y = fake, .y_type = F16 };

    c.part[0] = (struct kpart){ .x = fake, .type = F16, .ldx = dir == K_FWD ? g.Ci : g.Co, .pack = fake,
                                .pack_type = BF16, .pack_kind = kind, .g = g };
    c.ldy = dir == K_FWD ? g.Co : g.Ci;
    return c;
}

/* 5x7 pixels of 3 channels to 4, 3x3, stride 2. */
static const struct kgeom small = { 5, 7, 3, 3, 4, 4, 3, 3, 2, 1, 1, 1 };
/* 4x6 of 3 channels doubled to 8x12 of 5. */
static const struct kgeom doubled = { 4, 6, 3, 8, 12, 5, 3, 3, 1, 1, 1, 2 };

static void test_conv(void)
{
    struct kconv c = conv_of(K_FWD, K_PACK_FWD, small);
    const int64_t weights = 4 * 3 * 9, x = 2 * 5 * 7 * 3, y = 2 * 3 * 4 * 4;

    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 12 * weights, 2 * (x + weights + y)), "conv 3x3, stride 2");
    c.bias = floats;
    c.row_add = fake;
    c.row_add_ld = 4;
    c.residual = fake;
    c.residual_ld = 9;
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 12 * weights, 2 * (x + weights + 2 * y) + 4 * 4 + 2 * 2 * 4),
           "conv with bias, row_add and residual");
    c.part[1] = (struct kpart){ .x = fake, .type = F32, .ldx = 6, .pack = fake, .pack_type = F32,
                                .pack_kind = K_PACK_FWD, .g = { 3, 4, 6, 3, 4, 4, 1, 1, 1, 0, 0, 1 } };
    c.n_part = 2;
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 12 * (weights + 24),
                   2 * (x + weights + 2 * y) + 4 * 4 + 2 * 2 * 4 + 4 * (2 * 12 * 6 + 24)), "conv with a 1x1 shortcut");
    c = conv_of(K_DX, K_PACK_DX, small);
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 12 * weights, 2 * (x + weights + y)),
           "its input gradient costs as much");
    c = conv_of(K_FWD, K_PACK_UP, doubled);
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 8 * 12 * 15 * 4, 2 * (2 * 4 * 6 * 3 + 15 * 16 + 2 * 8 * 12 * 5)),
           "up-sampling conv by phases: 4 taps of 9");
    c.part[0].pack_kind = K_PACK_FWD;
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 8 * 12 * 15 * 9, 2 * (2 * 4 * 6 * 3 + 15 * 9 + 2 * 8 * 12 * 5)),
           "up-sampling conv without phases: 9 taps");
    c = conv_of(K_DX, K_PACK_UP_DX, doubled);
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 4 * 6 * 15 * 16, 2 * (2 * 4 * 6 * 3 + 15 * 16 + 2 * 8 * 12 * 5)),
           "its gradient: 4x4 taps per small pixel");
    c = conv_of(K_FWD, K_PACK_FWD, (struct kgeom){ 1, 10, 8, 1, 10, 6, 1, 1, 1, 0, 0, 1 });
    c.act = K_ACT_GEGLU;
    c.part[0].glu = true;
    c.ldy = 3;
    tap_ok(counted(null.conv(&ctx, &c), 2 * 2 * 10 * 48, 2 * (2 * 10 * 8 + 48 + 2 * 10 * 3)),
           "GEGLU halves the output");
}

static void test_other_products(void)
{
    const struct kpack up = { K_PACK_UP, F32, BF16, 5, 3, 3, 3, 0, 3, false };
    const struct kpack part = { K_PACK_FWD, F16, F16, 5, 2, 3, 3, 1, 4, false };
    struct kgemm g = { .M = 3, .N = 5, .K = 7, .n = 11, .a = fake, .b = fake, .c = fake, .a_type = F32, .b_type = BF16,
                       .c_type = F32, .lda = 7, .ldb = 5, .ldc = 5, .stride_a = 21, .stride_b = 35, .stride_c = 15,
                       .alpha = 1 };

    tap_ok(counted(null.pack(&ctx, fake, &up, fake), 0, 4 * 15 * 9 + 2 * 15 * 16)
           && counted(null.pack(&ctx, fake, &part, fake), 0, 2 * 2 * 10 * 9), "packing");
    tap_ok(counted(null.conv_dw(&ctx, floats, 0, &small, 2, fake, F16, 3, fake, F32, 4), 2 * 2 * 12 * 108,
                   4 * 108 + 2 * 2 * 35 * 3 + 4 * 2 * 12 * 4)
           && counted(null.conv_dw(&ctx, floats, 1, &small, 2, fake, F16, 3, fake, F32, 4), 2 * 2 * 12 * 108,
                      2 * 4 * 108 + 2 * 2 * 35 * 3 + 4 * 2 * 12 * 4), "weight gradient, written and accumulated");
    tap_ok(counted(null.gemm(&ctx, &g), 2 * 3 * 5 * 7 * 11, 11 * (4 * 21 + 2 * 35 + 4 * 15)), "gemm");
    g.beta = 0.5f;
    g.stride_b = 0;
    g.trans_b = true;
    g.ldb = 7;
    tap_ok(counted(null.gemm(&ctx, &g), 2 * 3 * 5 * 7 * 11, 11 * (4 * 21 + 2 * 4 * 15) + 2 * 35),
           "gemm that accumulates, one B for all");
}

static const struct kattn cross = { .type = BF16, .B = 2, .N = 3, .Tq = 5, .Tk = 7, .D = 8, .q = (void *)0x100,
                                    .k = (void *)0x100, .v = (void *)0x100, .o = (void *)0x100, .ldq = 24, .ldk = 24,
                                    .ldv = 24, .ldo = 24, .scale = 1 };

static void test_attention(void)
{
    struct kattn a = cross;
    struct kattn_back b = { .f = cross, .d_o = fake, .dq = fake, .dk = fake, .dv = fake, .ldd_o = 24, .lddq = 24,
                            .lddk = 24, .lddv = 24, .work = fake };

    tap_ok(counted(null.attn(&ctx, &a), 4 * 2 * 3 * 8 * 35, 2 * 48 * 24), "attention: q k and p v over 5 x 7 pairs");
    a.lse = floats;
    a.Tk = 5;
    a.causal = true;
    tap_ok(counted(null.attn(&ctx, &a), 4 * 2 * 3 * 8 * 15, 2 * 48 * 20 + 4 * 30), "causal attention: 15 of 25 pairs");
    tap_ok(counted(null.attn_back(&ctx, &b), 10 * 2 * 3 * 8 * 35, 2 * 48 * 48 + 4 * 30), "its gradient: five products");
    b.f = a;
    tap_ok(counted(null.attn_back(&ctx, &b), 10 * 2 * 3 * 8 * 15, 2 * 48 * 40 + 4 * 30), "causal gradient");
}

/* ---- everything else: bytes only ---- */

static void test_norms(void)
{
    tap_ok(counted(null.group_norm(&ctx, fake, 8, floats, floats, fake, 9, F16, floats, floats, 2, 5, 8, 4, 1e-5f,
                                   true), 0, 2 * 2 * 80 + 4 * (16 + 16))
           && counted(null.group_norm(&ctx, NULL, 0, floats, floats, fake, 9, F16, floats, floats, 2, 5, 8, 4, 1e-5f,
                                      true), 0, 2 * 80 + 4 * 16)
           && counted(null.group_norm_apply(&ctx, fake, 8, floats, floats, fake, 9, F16, floats, floats, 2, 5, 8, 4,
                                            true), 0, 2 * 2 * 80 + 4 * (16 + 16))
           && counted(null.group_norm_back(&ctx, fake, floats, floats, fake, 8, fake, 8, floats, floats, F32, floats,
                                           floats, 2, 5, 8, 4, true, fake), 0, 4 * (3 * 80 + 16 + 16 + 32))
           && counted(null.group_norm_back(&ctx, fake, NULL, NULL, fake, 8, fake, 8, floats, floats, F32, floats,
                                           floats, 2, 5, 8, 4, true, fake), 0, 4 * (3 * 80 + 16 + 16)), "group norm");
    tap_ok(counted(null.layer_norm(&ctx, fake, NULL, NULL, fake, BF16, floats, floats, 5, 8, 1e-5f), 0, 160 + 64)
           && counted(null.layer_norm(&ctx, fake, floats, floats, fake, BF16, floats, floats, 5, 8, 1e-5f), 0,
                      160 + 64 + 40)
           && counted(null.layer_norm_back(&ctx, fake, floats, floats, fake, fake, floats, floats, F16, floats, 5, 8,
                                           fake), 0, 240 + 32 + 40 + 128), "layer norm");
}

static void test_elements(void)
{
    const struct kview4 v = { { 2, 3, 4, 5 }, { 60, 0, 5, 1 } };

    tap_ok(counted(null.unary(&ctx, K_SILU, fake, fake, F16, 10), 0, 40)
           && counted(null.unary_back(&ctx, K_RELU, fake, fake, fake, F16, 10), 0, 60)
           && counted(null.geglu(&ctx, fake, fake, F32, 5, 2), 0, 120)
           && counted(null.geglu_back(&ctx, fake, fake, fake, F32, 5, 2), 0, 200)
           && counted(null.softmax(&ctx, fake, fake, F32, 5, 2), 0, 80)
           && counted(null.softmax_back(&ctx, fake, fake, fake, F32, 5, 2), 0, 120), "activations");
    tap_ok(counted(null.fill(&ctx, fake, F16, 7, 1), 0, 14) && counted(null.cast(&ctx, fake, F16, fake, F32, 7), 0, 42)
           && counted(null.axpby(&ctx, fake, 1, fake, 1, NULL, F16, 7), 0, 28)
           && counted(null.axpby(&ctx, fake, 1, fake, 1, fake, F16, 7), 0, 42)
           && counted(null.mul(&ctx, fake, fake, fake, F16, 7), 0, 42)
           && counted(null.row_axpby(&ctx, fake, floats, fake, floats, fake, F16, 2, 7), 0, 84 + 16)
           && counted(null.row_axpby(&ctx, fake, floats, fake, NULL, NULL, F16, 2, 7), 0, 56 + 8)
           && counted(null.lerp_mask(&ctx, fake, floats, fake, fake, F16, 6, 7), 0, 252 + 24), "element by element");
    tap_ok(counted(null.copy_rows(&ctx, fake, 9, fake, 9, F16, 2, 7, false), 0, 56)
           && counted(null.copy_rows(&ctx, fake, 9, fake, 9, F16, 2, 7, true), 0, 84)
           && counted(null.permute(&ctx, fake, fake, F16, &v), 0, 2 * 120 + 2 * 40)
           && counted(null.gather(&ctx, fake, F16, fake, F32, ids, 3, 100, 8), 0, 48 + 96 + 12)
           && counted(null.gather_back(&ctx, floats, fake, F16, ids, 3, 100, 8), 0, 192 + 48 + 12)
           && counted(null.time_embed(&ctx, fake, F16, floats, 3, 8), 0, 48 + 12), "copies");
    tap_ok(counted(null.nearest(&ctx, fake, fake, F16, 2, 3, 4, 5, 6, 7), 0, 2 * 10 * (12 + 42))
           && counted(null.nearest_back(&ctx, fake, fake, F16, 2, 3, 4, 5, 6, 7), 0, 2 * 10 * (12 + 42))
           && counted(null.bilinear(&ctx, fake, fake, F16, 2, 3, 4, 5, 6, 7, true), 0, 2 * 10 * (12 + 42))
           && counted(null.bilinear_back(&ctx, fake, fake, F16, 2, 3, 4, 5, 6, 7, false), 0, 2 * 10 * (12 + 42)),
           "resampling");
}

static void test_reductions(void)
{
    const struct kadamw o = { 0 };
    const struct krng r = { { 0, 0 }, { 0, 0, 0 } };
    int64_t *n = (int64_t *)fake;

    tap_ok(counted(null.sum(&ctx, floats, fake, F16, 10), 0, 24)
           && counted(null.sum_squares(&ctx, floats, fake, F16, 10), 0, 24)
           && counted(null.dot(&ctx, floats, fake, fake, F16, 10), 0, 44)
           && counted(null.count_nonfinite(&ctx, n, fake, F16, 10), 0, 28)
           && counted(null.col_sum(&ctx, floats, false, fake, 9, F16, 5, 8, fake), 0, 80 + 32)
           && counted(null.col_sum(&ctx, floats, true, fake, 9, F16, 5, 8, fake), 0, 80 + 64)
           && counted(null.image_sum(&ctx, fake, fake, 9, F16, 2, 5, 8), 0, 160 + 32)
           && counted(null.mse(&ctx, floats, fake, fake, F16, floats, floats, 2, 5, 8), 0, 320 + 16 + 40)
           && counted(null.mse_back(&ctx, fake, floats, fake, fake, F16, floats, NULL, 2, 5, 8), 0, 480 + 16),
           "reductions");
    tap_ok(counted(null.adamw(&ctx, floats, floats, floats, floats, 10, &o, NULL, F32), 0, 280)
           && counted(null.adamw(&ctx, floats, floats, floats, floats, 10, &o, fake, BF16), 0, 300)
           && counted(null.random_bits(&ctx, (uint32_t *)fake, 10, &r, 0), 0, 40)
           && counted(null.random_uniform(&ctx, floats, 10, &r, 0), 0, 40)
           && counted(null.random_normal(&ctx, fake, F16, 10, &r, 0), 0, 20), "optimizer and random numbers");
}

/* ---- what is refused, here and by every CPU twin that has the member ---- */

enum { MEM = 4096 };
static _Alignas(64) char mem[MEM];

static bool is_refused(int status, const char *twin, const char *member)
{
    if (status != K_ARG)
        tap_note("%s: %s gives %d", twin, member, status);
    return status == K_ARG;
}

#define REFUSED(member, ...) (!k->member || is_refused(k->member(c, __VA_ARGS__), k->name, #member))

static bool refuses_products(const struct kern *k, struct kctx *c)
{
    struct kconv conv = conv_of(K_FWD, K_PACK_FWD, small);
    struct kgemm g = { .M = -1, .N = 1, .K = 1, .n = 1, .a = mem, .b = mem, .c = mem, .lda = 1, .ldb = 1, .ldc = 1 };
    struct kattn a = cross;
    bool ok = true;

    conv.part[0].x = conv.part[0].pack = conv.y = mem;
    conv.n_part = 4;
    ok &= REFUSED(conv, &conv);
    conv.n_part = 0;
    ok &= REFUSED(conv, &conv);
    conv.n_part = 1;
    conv.B = -1;
    ok &= REFUSED(conv, &conv);
    conv.B = 2;
    conv.part[0].pack_kind = K_PACK_DX;
    ok &= REFUSED(conv, &conv);
    conv.part[0].pack_kind = K_PACK_FWD;
    conv.y_type = N_DTYPE;
    ok &= REFUSED(conv, &conv);
    ok &= REFUSED(gemm, &g);
    g.M = 1;
    g.a_type = N_DTYPE;
    ok &= REFUSED(gemm, &g);
    a.q = a.k = a.v = a.o = mem;
    a.causal = true;
    ok &= REFUSED(attn, &a);                /* Tq is not Tk */
    a.causal = false;
    a.Tq = -1;
    ok &= REFUSED(attn, &a);
    return ok;
}

static bool refuses_the_rest(const struct kern *k, struct kctx *c)
{
    const struct krng r = { { 0, 0 }, { 0, 0, 0 } };
    const struct kadamw o = { 0 };
    void *p = mem;

    return REFUSED(group_norm, p, 8, p, p, p, 8, F32, p, p, 1, 1, 8, 3, 1e-5f, false)
        && REFUSED(group_norm_apply, p, 8, p, p, p, 8, F32, p, p, 1, 1, 8, 3, false)
        && REFUSED(group_norm_apply, p, 7, p, p, p, 8, F32, p, p, 1, 1, 8, 4, false)
        && REFUSED(group_norm, p, 8, p, p, p, 8, N_DTYPE, p, p, 1, 1, 8, 4, 1e-5f, false)
        && REFUSED(layer_norm, p, p, p, p, F32, p, p, -1, 8, 1e-5f) && REFUSED(unary, K_SILU, p, p, F32, -1)
        && REFUSED(unary, K_SILU, p, p, N_DTYPE, 1) && REFUSED(unary, K_N_UNARY, p, p, F32, 1)
        && REFUSED(geglu, p, p, F32, 1, -1) && REFUSED(softmax, p, p, F32, -1, 1) && REFUSED(fill, p, F32, -1, 0)
        && REFUSED(cast, p, N_DTYPE, p, F32, 1) && REFUSED(axpby, p, 1, p, 1, p, F32, -1)
        && REFUSED(mul, p, p, p, N_DTYPE, 1) && REFUSED(row_axpby, p, p, p, p, p, F32, -1, 1)
        && REFUSED(lerp_mask, p, p, p, p, F32, 1, -1) && REFUSED(copy_rows, p, 8, p, 8, F32, -1, 8, false)
        && REFUSED(time_embed, p, F32, p, 1, 7) && REFUSED(nearest, p, p, F32, -1, 1, 1, 1, 1, 1)
        && REFUSED(bilinear, p, p, N_DTYPE, 1, 1, 1, 1, 1, 1, false) && REFUSED(sum, p, p, F32, -1)
        && REFUSED(dot, p, p, p, N_DTYPE, 1) && REFUSED(count_nonfinite, p, p, F32, -1)
        && REFUSED(col_sum, p, false, p, 1, F32, 1, 2, p) && REFUSED(image_sum, p, p, 1, F32, 1, 1, 2)
        && REFUSED(mse, p, p, p, F32, p, NULL, -1, 1, 1) && REFUSED(mse_back, p, p, p, p, N_DTYPE, p, NULL, 1, 1, 1)
        && REFUSED(adamw, p, p, p, p, -1, &o, NULL, F32) && REFUSED(random_normal, p, F32, -1, &r, 0)
        && REFUSED(random_bits, p, 1, &r, (uint64_t)1 << 34);
}

static void test_refused(void)
{
    const struct kern *kern;

    tap_ok(refuses_products(&null, &ctx) && refuses_the_rest(&null, &ctx) && nothing(K_OK, K_OK),
           "null: bad arguments are refused and not counted");
    for (int i = 0; (kern = kit_twin(i)); i++) {
        tap_ok(refuses_products(kern, kit_ctx(kern, 1)), "%s: bad products are refused", kern->name);
        tap_ok(refuses_the_rest(kern, kit_ctx(kern, 1)), "%s: bad arguments are refused", kern->name);
    }
}

static void test_empty(void)
{
    struct kconv c = conv_of(K_FWD, K_PACK_FWD, small);
    struct kattn a = cross;
    struct kctx no_count = { .n_threads = 1 };

    c.B = 0;
    a.Tq = 0;
    tap_ok(nothing(null.conv(&ctx, &c), K_OK) && nothing(null.attn(&ctx, &a), K_OK)
           && nothing(null.fill(&ctx, fake, F32, 0, 1), K_OK)
           && nothing(null.layer_norm(&ctx, fake, NULL, NULL, fake, F32, floats, floats, 0, 8, 1e-5f), K_OK),
           "a size of 0 does nothing and counts nothing");
    tap_ok(null.fill(&no_count, fake, F32, 3, 1) == K_OK && nothing(K_OK, K_OK), "counting is optional");
}

int main(void)
{
    kern_null(&null, kern_cpu(NULL));
    test_members();
    test_conv();
    test_other_products();
    test_attention();
    test_norms();
    test_elements();
    test_reductions();
    test_refused();
    test_empty();
    return tap_done();
}
