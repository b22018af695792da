/* tests/fuzz/f_unicon_config.c: any bytes as the JSON configuration of a UniCon model. What is taken is text that ends
 * where its field does, without control characters; what is refused leaves the output as it was. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/unicon_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void check_text(const char *text, size_t size)
{
    must(memchr(text, 0, size) != NULL);
    for (; *text; text++)
        must((unsigned char)*text >= 0x20 && *text != 0x7F);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct unicon_config u;
    struct err e = { 0 };
    int rc;

    memset(&u, 0xA5, sizeof u);
    rc = unicon_config_parse(&u, (const char *)data, size, &e);
    if (rc) {
        must(rc == E_FORMAT && e.code == rc && e.text[0] && strlen(e.text) < sizeof e.text);
        for (size_t i = 0; i < sizeof u; i++)
            must(((unsigned char *)&u)[i] == 0xA5);
        return 0;
    }
    check_text(u.name, sizeof u.name);
    check_text(u.trigger, sizeof u.trigger);
    check_text(u.path, sizeof u.path);
    must(u.kind >= -1 && u.kind <= JOINT_CONV_FUSE && u.y >= -1 && u.y <= 1);
    must(u.has_trigger || !u.trigger[0]);
    return 0;
}
