/* core/banned.h: force-included everywhere below cmd/. Calls that hide errors, overrun buffers, print or end the
 * process do not compile here. */
#ifndef UNICON_CORE_BANNED_H
#define UNICON_CORE_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC poison strcpy strcat sprintf vsprintf gets strtok strncpy strncat atoi atol atof rand srand

#endif
