/* cmd/bar.h: how far the work is, for people. On a terminal one line is redrawn; elsewhere a line a minute is written.
 * The tick asks the work to stop once SIGINT or SIGTERM came (cli_catch_signals).
 *
 *     struct bar bar;
 *     bar_init(&bar, stderr, quiet, verbose);
 *     env.progress = bar_progress(&bar);
 *     ...
 *     bar_end(&bar);                           the line is gone; so it is while something else is written: bar_clear
 *
 *     sampling  12/50 [=======>                      ] 0:14 elapsed, 0:44 left                                  */
#ifndef UNICON_CMD_BAR_H
#define UNICON_CMD_BAR_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "core/progress.h"

enum bar_style { BAR_NONE, BAR_LINE, BAR_LOG };

struct bar {
    FILE *to;
    enum bar_style style;
    bool verbose;               /* BAR_LOG: also a line at the end of each stage */
    int width;                  /* columns; 0: ask the terminal each time */
    int64_t (*now_ms)(void *ctx);       /* NULL: the system's monotonic clock */
    void *ctx;

    char what[32];              /* the stage: what is being done */
    int64_t first, done, total; /* first: done when the stage began */
    int64_t began_ms, shown_ms; /* shown_ms: last line, -1 before */
    bool drawn;                 /* a line stands on the terminal */
    bool ended;                 /* the end of the stage has been logged */
};

/* BAR_LINE if `to` is a terminal with a cursor (TERM) and this process in its foreground, else BAR_LOG; BAR_NONE if
 * quiet. Fields may then be changed. */
void bar_init(struct bar *b, FILE *to, bool quiet, bool verbose);

struct progress bar_progress(struct bar *b);    /* b must outlive it */
int bar_tick(void *b, const char *what, int64_t done, int64_t total);
void bar_clear(struct bar *b);
void bar_end(struct bar *b);

#endif
