/* cmd/bar.c: see bar.h. */
#include "cmd/bar.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cmd/cli.h"

enum { REDRAW_MS = 500, LOG_MS = 60000, MAX_WIDTH = 400, MIN_BAR = 8, MAX_BAR = 60 };

static int64_t monotonic_ms(void *ctx)
{
    struct timespec t;

    (void)ctx;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t now(struct bar *b)
{
    return (b->now_ms ? b->now_ms : monotonic_ms)(b->ctx);
}

static bool in_foreground(int fd)
{
    const pid_t group = tcgetpgrp(fd);

    return group < 0 || group == getpgrp();
}

void bar_init(struct bar *b, FILE *to, bool quiet, bool verbose)
{
    const char *term = getenv("TERM");
    const bool line = isatty(fileno(to)) && term && *term && strcmp(term, "dumb") && in_foreground(fileno(to));

    *b = (struct bar){ .to = to, .style = quiet ? BAR_NONE : line ? BAR_LINE : BAR_LOG, .verbose = verbose,
                       .shown_ms = -1 };
}

struct progress bar_progress(struct bar *b)
{
    return (struct progress){ .tick = bar_tick, .ctx = b };
}

static int columns(const struct bar *b)
{
    struct winsize size;
    int n = b->width;

    if (!n)
        n = ioctl(fileno(b->to), TIOCGWINSZ, &size) || !size.ws_col ? 80 : size.ws_col;
    return n < MAX_WIDTH ? n : MAX_WIDTH;
}

/* "0:07", "12:34", "3:02:01" */
static const char *clock_text(int64_t ms, char buf[32])
{
    const int64_t s = ms > 0 ? ms / 1000 : 0;

    if (s < 3600)
        snprintf(buf, 32, "%" PRId64 ":%02" PRId64, s / 60, s % 60);
    else
        snprintf(buf, 32, "%" PRId64 ":%02" PRId64 ":%02" PRId64, s / 3600, s / 60 % 60, s % 60);
    return buf;
}

/* "sampling  12/50" and "0:14 elapsed, 0:44 left". What is left goes by the pace since the stage began. */
static void texts(const struct bar *b, int64_t at_ms, char head[96], char tail[96])
{
    const int64_t elapsed = at_ms - b->began_ms, made = b->done - b->first, left = b->total - b->done;
    char total[24], spent[32], rest[32];
    int digits;

    if (b->total > 0) {
        digits = snprintf(total, sizeof total, "%" PRId64, b->total);
        snprintf(head, 96, "%s %*" PRId64 "/%s", b->what, digits, b->done, total);
    } else
        snprintf(head, 96, "%s %" PRId64, b->what, b->done);
    clock_text(elapsed, spent);
    if (b->total > 0 && made > 0 && left > 0)
        snprintf(tail, 96, "%s elapsed, %s left", spent,
                 clock_text((int64_t)((double)elapsed / (double)made * (double)left), rest));
    else
        snprintf(tail, 96, "%s elapsed", spent);
}

/* One line of at most `width` - 1 columns: a full last column would make some terminals scroll. */
static void draw(struct bar *b, int64_t at_ms)
{
    char head[96], tail[96], line[MAX_WIDTH + 200], bar[MAX_BAR + 1];
    const int width = columns(b) - 1;
    int room, full;

    texts(b, at_ms, head, tail);
    room = width - (int)strlen(head) - (int)strlen(tail) - 4;       /* two spaces, two brackets */
    room = room < MAX_BAR ? room : MAX_BAR;
    if (b->total > 0 && room >= MIN_BAR) {
        full = (int)((double)room * (double)b->done / (double)b->total);
        full = full < 0 ? 0 : full > room ? room : full;
        memset(bar, '=', (size_t)full);
        memset(bar + full, ' ', (size_t)(room - full));
        if (full && full < room)
            bar[full - 1] = '>';
        bar[room] = '\0';
        snprintf(line, sizeof line, "%s [%s] %s", head, bar, tail);
    } else
        snprintf(line, sizeof line, "%s %s", head, tail);
    fprintf(b->to, "\r%.*s\033[K", width > 0 ? width : 0, line);
    fflush(b->to);
    b->drawn = true;
    b->shown_ms = at_ms;
}

static void log_line(struct bar *b, int64_t at_ms)
{
    char head[96], tail[96];

    texts(b, at_ms, head, tail);
    fprintf(b->to, "%s, %s\n", head, tail);
    fflush(b->to);
    b->shown_ms = at_ms;
}

/* A stage begins where the word changes or the count goes back. */
static void follow(struct bar *b, const char *what, int64_t done, int64_t total, int64_t at_ms)
{
    if (strncmp(b->what, what, sizeof b->what - 1) || done < b->done || total != b->total) {
        snprintf(b->what, sizeof b->what, "%s", what);
        b->first = done;
        b->began_ms = at_ms;
        b->ended = false;
    }
    b->done = done;
    b->total = total;
}

int bar_tick(void *ctx, const char *what, int64_t done, int64_t total)
{
    struct bar *b = ctx;
    const int64_t at_ms = b->style == BAR_NONE ? 0 : now(b);
    const int64_t pause = b->style == BAR_LINE ? REDRAW_MS : LOG_MS;

    if (b->style != BAR_NONE) {
        follow(b, what, done, total, at_ms);
        if (b->shown_ms < 0 && b->style == BAR_LOG)
            b->shown_ms = at_ms;                /* the first line after a minute */
        if (b->style == BAR_LOG && b->verbose && !b->ended && total > 0 && done >= total) {
            log_line(b, at_ms);
            b->ended = true;
        } else if (b->shown_ms < 0 || at_ms - b->shown_ms >= pause) {
            if (b->style == BAR_LINE)
                draw(b, at_ms);
            else
                log_line(b, at_ms);
        }
    }
    return cli_signal() != 0;
}

void bar_clear(struct bar *b)
{
    if (b->drawn) {
        fprintf(b->to, "\r\033[K");
        fflush(b->to);
    }
    b->drawn = false;
}

void bar_end(struct bar *b)
{
    bar_clear(b);
    b->style = BAR_NONE;
}
