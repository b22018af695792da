/* store/font.h: the font that is part of the program, for core/sheet.h. Origin and licence: store/builtin/README.md. */
#ifndef UNICON_STORE_FONT_H
#define UNICON_STORE_FONT_H

#include "core/sheet.h"

const struct font *font_builtin(void);

#endif
