/* core/diffusion/pair.h: noise levels are the interface: from a schedule, which says how noisy each input is from when
 * to when, to the rows of a run: at which step of the sampler each input stands, which of them walk on, what else
 * happens.
 *
 *     struct pair_plan p;
 *     if (pair_parse(&p, "x=1:0 y=0", (const char *const[]){ "x", "y" }, 2, 50, 0, e)) ...      y -> x
 *     for (int i = 0; i < p.n_row; i++)  p.row[i].step[k], p.row[i].walks[k], p.row[i].guide
 *     pair_free(&p);
 *
 * The language: segments between '|'; in each, NAME=FROM:TO or NAME=LEVEL for every input (1 is pure noise, 0 is clean,
 * levels fall), and the words `guide` (gradient guidance in this segment) and `free` (masks put nothing back in it).
 * A text that begins with '[' is the official list form: [(0,1),(1,1),0] per segment, there 0 is noise and 1 is clean,
 * the last number (or True, False) is the guidance flag; commas between segments, and one more pair of brackets around
 * all of them if you like. Names of tasks stand for schedules of two inputs: see pair_task.
 *
 * Steps: noise A is step index int((1 - A)(N - 1)), of the list form int(l (N - 1)), in doubles. In a segment an input
 * that goes from step L to R has n = R - L + 1 of them; with S the largest n, the segment takes S rows, and in row i
 * the input stands at L + int(n i / S). The first row of a later segment is the last of the one before and not
 * repeated. Where the index is the same in the next row the input pauses; elsewhere, and behind the last row, it takes
 * a step.
 *
 * Held and finished inputs: an input whose level is 0 from end to end of the schedule is held (PAIR_HELD in every row):
 * its latent stays as given, at time 0, and is never stepped. An input that comes down to 0 in an earlier segment stops
 * at step N - 1 without taking it, waits there with the little noise of that step through all later segments, and takes
 * it behind the last row, together with everybody else.
 * So each input that is not held takes every step from its first to N - 1 exactly once and ends clean, for which its
 * last segment has to end at 0. If all are held there is nothing to do: no rows.
 *
 * PAIR_OFFICIAL does what the published code does: nothing is held, clean is step N - 1 and stepped once at the end, a
 * schedule may end anywhere (then an input is stepped once from there and stays noisy), and segments fit together if
 * their steps do, which hangs on N; without it their levels have to be equal. */
#ifndef UNICON_CORE_DIFFUSION_PAIR_H
#define UNICON_CORE_DIFFUSION_PAIR_H

#include <stdbool.h>
#include <stddef.h>
#include "core/err.h"

enum { PAIR_MAX_INPUT = 8, PAIR_MAX_SEGMENT = 64, PAIR_HELD = -1 };
enum pair_flags { PAIR_OFFICIAL = 1 };

struct pair_row {
    int step[PAIR_MAX_INPUT];       /* of the sampler, 0 .. N-1, or PAIR_HELD */
    bool walks[PAIR_MAX_INPUT];     /* takes a step after this row */
    bool guide, free;
};

struct pair_plan {
    struct pair_row *row;           /* malloc'ed */
    int n_row, n_input, n_step;
    int start[PAIR_MAX_INPUT];      /* the step at which each begins: row[0].step */
};

/* N: the sampler's n_step, 1 to SAMPLER_MAX_STEP. E_ARG says which segment, which input, what is wrong: a level outside
 * [0,1], one that rises, a gap between segments, an end above 0, an input without a level or unknown, bad numbers. *out
 * is untouched on failure. */
int pair_parse(struct pair_plan *out, const char *schedule, const char *const *names, int n_input, int N, int flags,
               struct err *e);
void pair_free(struct pair_plan *p);        /* takes a zeroed one */

/* --x-noise A --y-noise B ..: every input from its level to 0. */
int pair_from_levels(struct pair_plan *out, const double *level, int n_input, int N, int flags, struct err *e);

/* "y2x", "x2y", "joint", "coarse-y", ...: a schedule of x and y; NULL for an unknown name. pair_task_names lists
 * them. */
const char *pair_task(const char *name);
const char *const *pair_task_names(void);   /* NULL-terminated */

/* For --show-schedule: one line per row, "  12  x 12 t=741 walks   y held"; `waits` where an input pauses. time: the
 * sampler's times, N of them, or NULL. Returns the length that the whole text has; buf gets as much as fits and a 0. */
size_t pair_text(char *buf, size_t size, const struct pair_plan *p, const char *const *names, const double *time);

#endif
