/* tests/emu/emu.h: between the emulator's own files. */
#ifndef UNICON_TESTS_EMU_EMU_H
#define UNICON_TESTS_EMU_EMU_H

#include <functional>

void emu_run_kernel(const char *name, dim3 grid, dim3 block, size_t dynamic, const std::function<void()> &body);
int emu_thread(void);           /* number of the running thread in its block */
extern bool emu_copies_at_once; /* asynchronous copies land when they are issued, not when they are waited for */
void emu_copies_left(void);     /* a thread ends: its asynchronous copies must have been waited for */

#endif
