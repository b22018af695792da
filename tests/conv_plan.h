/* tests/conv_plan.h: convolutions described, drawn, computed in doubles, run on every twin and compared; shared by the
 * t_conv*.c; t_gemm.c takes types and fences from here.
 *
 *     struct plan p = plan_of(&shape, K_PACK_FWD, &types);
 *     p.bias = true;
 *     ok &= plan_check(&p, "3x3 with bias");          each twin's y against the loops in doubles
 *
 * or, to run the same operands in other ways:
 *
 *     struct data d = data_make(&p);                  operands, what must come out, how far off it may be
 *     struct buf y = plan_y(&p, &d);
 *     ok &= plan_run(kern, 2, &p, &d, &y) && buf_same(&y, ...);                                            */
#ifndef UNICON_TESTS_CONV_PLAN_H
#define UNICON_TESTS_CONV_PLAN_H

#include "tests/kit.h"

#define U 0x1p-24                       /* unit roundoff of f32 */

/* Strides beyond the channels: of row_add, of a residual that is not y. */
enum { ROW_GAP = 3, RES_GAP = 5, N_USUAL = 6, N_EPILOGUES = 12 };

struct types {
    enum dtype x, src, pack, y;
};

extern const char *const type_name[N_DTYPE];
extern const struct types usual[N_USUAL];       /* all equal; f32 over bf16 weights; 16 bits over f32 weights */

struct shape {
    const char *why;
    int64_t B;
    struct kgeom g;
};

struct part_plan {
    struct kgeom g;
    enum dtype x, src, pack;
    int64_t gap;                        /* ldx - channels */
    int64_t ci_first, ci_after;         /* channels of the raw weights that are not this part's */
};

struct plan {
    enum kpack_kind kind;               /* of all parts; says forward or backward */
    int64_t B;
    int n_part;
    struct part_plan part[3];
    enum dtype y;
    int64_t gap;                        /* ldy - channels */
    float alpha;
    enum kact act;
    bool bias, row_add, residual, in_place;
};

struct data {
    struct buf x[3], w[3], bias, row_add, residual;
    double *want, *tol;                 /* (pixels, channels) of y */
};

struct epilogue_case {
    const char *why;
    float alpha;
    enum kact act;
    bool bias, row_add, residual, in_place;
};

extern const struct epilogue_case epilogues[N_EPILOGUES];
enum { EPILOGUE_ALL = 9, EPILOGUE_ALL_IN_PLACE = 10 };

struct shape shape_linear(int64_t rows, int64_t Ci, int64_t Co);
bool shape_has_up_pack(const struct kgeom *g);

/* One part, no epilogue; gaps between pixels follow from the numbers of channels, or are none. */
struct plan plan_of(const struct shape *s, enum kpack_kind kind, const struct types *t, bool dense);
void plan_take_epilogue(struct plan *p, const struct epilogue_case *e);

bool plan_is_dx(const struct plan *p);
int64_t plan_depth(const struct plan *p, int part);     /* channels of x, which are summed over */
int64_t plan_width(const struct plan *p);               /* columns of the product: twice the channels of y with GEGLU */
int64_t plan_channels(const struct plan *p);            /* of y */
int64_t plan_image_px(const struct plan *p);            /* pixels of an image of y */
int64_t plan_x_px(const struct plan *p, int part);      /* pixels of an image of x */

struct data data_make(const struct plan *p);
void data_free(struct data *d);

/* An output for the plan: poisoned, or the residual where it is in place. */
struct buf plan_y(const struct plan *p, const struct data *d);

/* Pack and multiply. False, with a note, where a call fails or a guard byte was written. */
bool plan_run(const struct kern *kern, int n_threads, const struct plan *p, const struct data *d, struct buf *y);

/* Run on every twin and compare, with given operands or with fresh ones. */
bool plan_check_data(const struct plan *p, const struct data *d, const char *why);
bool plan_check(const struct plan *p, const char *why);

/* The gradient of the weights: x and dy as dw_x(), dw_dy() make them, with gaps or `dense`. */
struct buf dw_x(const struct shape *s, enum dtype t, bool dense);
struct buf dw_dy(const struct shape *s, enum dtype t, bool dense);
bool dw_run(const struct kern *kern, int n_threads, const struct shape *s, bool dense, float beta, const struct buf *x,
            const struct buf *dy, struct buf *dw);
bool dw_check(const struct shape *s, bool dense, enum dtype x_type, enum dtype dy_type);

/* Pixels of an input and an output image. */
int64_t in_px(const struct kgeom *g);
int64_t out_px(const struct kgeom *g);

/* Elements of a map of pixels whose last gap is not there. */
int64_t strided(int64_t pixels, int64_t n, int64_t gap);

/* The pixel of the input that out(i,j) reads through tap (a,b), or -1: the equation at struct kgeom. */
int64_t tap_pixel(const struct kgeom *g, int64_t i, int64_t j, int a, int b);

double activation(enum kact act, double z);

/* How far an f32 activation of z may be off when z is off by dz. */
double activation_error(enum kact act, double z, double dz);

/* The buffer's elements once more, with NaN before them and a page behind that cannot be read; valid until the next use
 * of the slot (0..8). Big buffers stay where they are. */
const void *fenced(int slot, const struct buf *b);

/* Elements [first, first+n) of a buffer; owns nothing. */
struct buf buf_view(const struct buf *b, int64_t first, int64_t n);

#endif
