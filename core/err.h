/* core/err.h: the error record. Functions return 0 or a negative status and fill one of these; context is
 * added in front on the way up, so that the message reads from the outside in.
 *
 *     if (!ok)
 *         return err_set(e, E_FORMAT, "tensor '%s' ends at %zu, file at %zu", name, end, size);
 *     ...
 *     return err_in(e, "reading weights '%s'", path);     reading weights 'a': tensor 'b' ends at ... */
#ifndef UNICON_CORE_ERR_H
#define UNICON_CORE_ERR_H

enum status {
    OK = 0,
    E_NOMEM = -1,       /* out of memory, on whichever device */
    E_ARG = -2,         /* the caller's sizes, types or values do not fit */
    E_IO = -3,
    E_FORMAT = -4,      /* bytes from outside that do not make sense */
    E_DEVICE = -5,      /* missing, busy or failed */
    E_BUG = -6,         /* ours */
    E_CANCEL = -7,
    E_NONE = -8,        /* nothing there, and that is fine */
    E_BUSY = -9,
    E_DB = -10
};

struct err {
    int code;           /* an enum status */
    char text[512];
};

/* Set code and sentence; returns code. e may be NULL. A message that is too long is cut, control
 * characters become '?'. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "<fmt>: " before the sentence; returns e->code. */
int err_in(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void err_clear(struct err *e);

#endif
