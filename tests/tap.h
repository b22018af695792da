/* tests/tap.h: Test Anything Protocol for C tests, run under prove.
 *
 *     tap_ok(x == 3, "x is %d", x);
 *     return tap_done();                   prints the plan; 0 if all passed  */
#ifndef UNICON_TESTS_TAP_H
#define UNICON_TESTS_TAP_H

#include <stdbool.h>

bool tap_ok(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void tap_skip(const char *what, const char *why);
void tap_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));     /* "# ..." */
int tap_done(void);

#endif
