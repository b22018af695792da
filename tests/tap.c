#include "tests/tap.h"

#include <stdarg.h>
#include <stdio.h>

static int n_run, n_failed;

bool tap_ok(bool ok, const char *fmt, ...)
{
    va_list ap;

    n_run++;
    n_failed += !ok;
    printf("%sok %d - ", ok ? "" : "not ", n_run);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
    return ok;
}

void tap_skip(const char *what, const char *why)
{
    printf("ok %d - %s # SKIP %s\n", ++n_run, what, why);
}

void tap_note(const char *fmt, ...)
{
    va_list ap;

    printf("# ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

int tap_done(void)
{
    printf("1..%d\n", n_run);
    return n_run == 0 || n_failed > 0;
}
