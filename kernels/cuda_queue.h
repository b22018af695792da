/* kernels/cuda_queue.h: what stands behind kctx.stream of the CUDA twin. Private to kernels/. */
#ifndef UNICON_KERNELS_CUDA_QUEUE_H
#define UNICON_KERNELS_CUDA_QUEUE_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

enum { CUDA_N_DEVICE = 64, CUDA_N_STAGE = 4, CUDA_N_GRAPH = 8, CUDA_RUN_AHEAD = 2 };

struct cuda_graph {
    uint64_t key;
    cudaGraphExec_t exec;               /* NULL: none made yet */
    int64_t used;                       /* when last begun, counted from 1; 0: the place is free */
};

struct dev_queue {
    int device, n_sm, cc;               /* cc: 90 for capability 9.0 */
    cudaStream_t stream;
    cublasLtHandle_t lt;
    struct cuda_plans *plans;           /* cuBLASLt's choices, by shape; owned by the file that fills them */
    /* pinned memory for copies, in turns */
    unsigned char *stage[CUDA_N_STAGE];
    cudaEvent_t stage_free[CUDA_N_STAGE];
    int next_stage;
    /* graphs */
    bool capturing;
    struct cuda_graph *capture;         /* while capturing: whose */
    struct cuda_graph graph[CUDA_N_GRAPH];
    int64_t n_begun, n_graph_launch, n_graph_made;
    /* how far the host runs ahead */
    cudaEvent_t step[CUDA_RUN_AHEAD];
    int64_t n_step;
    int64_t n_launch;                   /* kernels queued so far */
    int status;                         /* K_OK, or K_LAUNCH until it is taken */
};

/* Note a failure: *what* failed and why goes to dev_cuda_why(). True if rc is cudaSuccess. */
bool cuda_check_call(struct dev_queue *q, cudaError_t rc, const char *what);
void cuda_check_launch(struct dev_queue *q, const char *kernel);
/* The same for a failure that is not one of the runtime's. */
void cuda_fail(struct dev_queue *q, const char *what, const char *why);
int cuda_take_failure(struct dev_queue *q);

/* Made with the queue, and freed with it: by the file that asks cuBLASLt (lt_cuda.cu). */
bool cuda_plans_open(struct dev_queue *q);
void cuda_plans_close(struct dev_queue *q);

#endif
