/* core/err.c: messages are put together in a buffer of their own, so that arguments may point into the record. */
#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Store as much of text as fits. A cut may split a character of several bytes: then its beginning goes too, so that
 * what is stored stays valid UTF-8. Names out of files may hold control characters, which a terminal would obey. */
static void keep(struct err *e, int code, const char *text)
{
    size_t n = strlen(text), at;

    if (n >= sizeof e->text) {
        n = at = sizeof e->text - 1;
        while (at > 0 && n - at < 3 && ((unsigned char)text[at] & 0xC0) == 0x80)
            at--;
        if (((unsigned char)text[n] & 0xC0) == 0x80)
            n = at;
    }
    e->code = code;
    for (size_t i = 0; i < n; i++)
        e->text[i] = (unsigned char)text[i] < ' ' || text[i] == 127 ? '?' : text[i];
    e->text[n] = '\0';
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    char text[sizeof e->text + 4];
    va_list ap;

    if (!e)
        return code;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    keep(e, code, text);
    return code;
}

/* Without a record the code is lost; a failure still has to look like one. */
int err_in(struct err *e, const char *fmt, ...)
{
    char text[2 * sizeof e->text + 4];
    size_t n;
    va_list ap;

    if (!e)
        return E_BUG;
    va_start(ap, fmt);
    vsnprintf(text, sizeof e->text, fmt, ap);
    va_end(ap);
    n = strlen(text);
    snprintf(text + n, sizeof text - n, ": %s", e->text);
    keep(e, e->code, text);
    return e->code;
}

void err_clear(struct err *e)
{
    if (e)
        memset(e, 0, sizeof *e);
}
