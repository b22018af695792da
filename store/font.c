/* store/font.c: see font.h. */
#include "store/font.h"

/* The path is relative to the repository's root, where the compiler runs. */
__asm__(".pushsection .rodata\n"
        ".globl unicon_font\n"
        ".hidden unicon_font\n"
        "unicon_font: .incbin \"store/builtin/spleen_6x12.bin\"\n"
        ".popsection\n");
extern const unsigned char unicon_font[];

const struct font *font_builtin(void)
{
    static const struct font font = { 6, 12, unicon_font };

    return &font;
}
