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

/* The next count numbers of the sequence, in torch's order (C,HW), to f32 (HW,C). */
static int draw_torch(struct noise *n, struct tensor *x, struct arena *work, struct err *e)
{
    const int64_t count = tensor_count(x), C = x->dim[3], HW = count / (C ? C : 1);
    void *raw = arena_push(work, (size_t)count * dtype_bytes(n->type), e);
    float *turned = x->data, *plane = raw ? arena_push(work, (size_t)count * sizeof *plane, e) : NULL;

    if (!plane)
        return e ? e->code : E_NOMEM;
    if (n->kind == NOISE_TORCH_CPU)
        rng_torch_cpu_normal(&n->torch.cpu, raw, n->type, count);
    else
        rng_torch_cuda_normal(&n->torch.cuda, raw, n->type, count);
    dtype_to_f32(plane, raw, n->type, count);
    for (int64_t i = 0; i < HW; i++)
        for (int64_t c = 0; c < C; c++)
            turned[i * C + c] = plane[c * HW + i];
    return OK;
}

int noise_draw(struct noise *n, struct device *dev, enum rng_purpose purpose, uint32_t step, struct tensor *x,
               struct arena *work, struct err *e)
{
    const struct krng stream = rng_stream(n->seed, purpose, step, 0);
    const size_t mark = arena_mark(work);
    int rc;

    if (x->n_dim != 4 || x->dim[0] != 1 || x->type != F32)
        return err_set(e, E_BUG, "noise is drawn for one image of f32");
    if (n->kind == NOISE_PHILOX)
        return op_run(e, "noise", dev->kern->random_normal(&dev->ctx, x->data, F32, tensor_count(x), &stream, 0));
    if (!dev->kern->computes)
        return OK;
    if (dev->place != ARENA_HOST)
        return err_set(e, E_DEVICE, "torch's numbers are drawn on the processor only");
    rc = draw_torch(n, x, work, e);
    arena_release(work, mark);
    return rc;
}
