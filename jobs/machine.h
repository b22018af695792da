/* jobs/machine.h: what this machine has left. */
#ifndef UNICON_JOBS_MACHINE_H
#define UNICON_JOBS_MACHINE_H

#include <stdint.h>

/* Bytes that a process could still take: what the system says is available, or what is left under this process's
 * control group if that is less. INT64_MAX where neither can be read. */
int64_t machine_free_bytes(void);

/* Bytes of this process in memory now; 0 if that cannot be read. */
int64_t machine_resident_bytes(void);

#endif
