/* core/rng.c: names to places in the Philox sequence, and single words of it. */
#include "core/rng.h"

struct krng rng_stream(uint64_t seed, enum rng_purpose purpose, uint32_t step, uint64_t row)
{
    const uint32_t row_high = (uint32_t)(row >> 32) << 8;

    return (struct krng){ { (uint32_t)seed, (uint32_t)(seed >> 32) }, { (uint32_t)row, step, row_high + purpose } };
}

/* One round of the bijection; Salmon et al. 2011, sec. 3.3. */
static void philox_round(uint32_t c[4], uint32_t key0, uint32_t key1)
{
    const uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
    const uint32_t c1 = c[1], c3 = c[3];

    c[0] = (uint32_t)(b >> 32) ^ c1 ^ key0;
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c3 ^ key1;
    c[3] = (uint32_t)a;
}

uint32_t rng_u32(const struct krng *r, uint64_t i)
{
    uint32_t c[4] = { (uint32_t)(i / 4), r->ctr[0], r->ctr[1], r->ctr[2] };

    for (uint32_t round = 0; round < 10; round++)
        philox_round(c, r->key[0] + round * 0x9E3779B9u, r->key[1] + round * 0xBB67AE85u);
    return c[i % 4];
}

double rng_uniform(const struct krng *r, uint64_t i)
{
    return (double)(rng_u32(r, i) >> 8) * 0x1p-24;
}

/* floor(u n / 2^64). The upper half of u is element i; the lower half comes from the twin stream with the last bit of
 * the counter turned, which no row below 2^55 has. */
uint64_t rng_below(const struct krng *r, uint64_t i, uint64_t n)
{
    const struct krng twin = { { r->key[0], r->key[1] }, { r->ctr[0], r->ctr[1], r->ctr[2] ^ 0x80000000u } };
    const uint64_t high = rng_u32(r, i), low = rng_u32(&twin, i), n_high = n >> 32, n_low = n & 0xffffffffu;
    const uint64_t a = low * n_low, b = high * n_low + (a >> 32), c = low * n_high + (b & 0xffffffffu);

    return high * n_high + (b >> 32) + (c >> 32);
}
