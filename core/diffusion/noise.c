/* core/diffusion/noise.c: see noise.h. */
#include "core/diffusion/noise.h"

#include "core/op/op.h"

void noise_init(struct noise *n, enum noise_kind kind, enum dtype type, uint64_t seed)
{
    *n = (struct noise){ .kind = kind, .type = type, .seed = seed };
    if (kind == NOISE_TORCH_CPU)
        rng_torch_cpu_seed(&n->torch.cpu, seed);
    else if (kind == NOISE_TORCH_CUDA)
        rng_torch_cuda_seed(&n->torch.cuda, seed);
}

/* The next numbers of the sequence, in torch's order (R,C,HW), to f32 (R,HW,C). */
static int draw_torch(struct noise *n, struct device *dev, struct tensor *x, struct arena *work, struct err *e)
{
    const int64_t count = tensor_count(x), C = x->dim[3], HW = x->dim[1] * x->dim[2];
    void *raw = arena_push(work, (size_t)count * dtype_bytes(n->type), e);
    float *all = raw ? arena_push(work, (size_t)count * sizeof *all, e) : NULL, *turned = all;
    float *plane = all ? arena_push(work, (size_t)count * sizeof *plane, e) : NULL;

    if (!plane)
        return e ? e->code : E_NOMEM;
    if (n->kind == NOISE_TORCH_CPU)
        rng_torch_cpu_normal(&n->torch.cpu, raw, n->type, count);
    else
        rng_torch_cuda_normal(&n->torch.cuda, raw, n->type, count);
    dtype_to_f32(plane, raw, n->type, count);
    for (int64_t r = 0; r < x->dim[0]; r++, plane += C * HW, turned += C * HW)
        for (int64_t i = 0; i < HW; i++)
            for (int64_t c = 0; c < C; c++)
                turned[i * C + c] = plane[c * HW + i];
    return device_put(dev, x->data, all, tensor_bytes(x), e);
}

static int draw_philox(const struct noise *n, struct device *dev, enum rng_purpose purpose, uint32_t step, uint64_t row,
                       struct tensor *x, struct err *e)
{
    const int64_t each = x->dim[1] * x->dim[2] * x->dim[3];
    int rc = OK;

    for (int64_t r = 0; r < x->dim[0] && !rc; r++) {
        const struct krng stream = rng_stream(n->seed, purpose, step, row + (uint64_t)r);

        rc = op_run(e, "noise",
                    dev->kern->random_normal(&dev->ctx, (float *)x->data + r * each, F32, each, &stream, 0));
    }
    return rc;
}

int noise_draw(struct noise *n, struct device *dev, enum rng_purpose purpose, uint32_t step, uint64_t row,
               struct tensor *x, struct arena *work, struct err *e)
{
    const size_t mark = arena_mark(work);
    int rc;

    if (x->n_dim != 4 || x->type != F32)
        return err_set(e, E_BUG, "noise is drawn for images of f32");
    if (n->kind == NOISE_PHILOX)
        return draw_philox(n, dev, purpose, step, row, x, e);
    if (!dev->kern->computes)
        return OK;
    rc = draw_torch(n, dev, x, work, e);
    arena_release(work, mark);
    return rc;
}
