/* Grids as expressions of a call's integers: a division by zero or an overflow is noted, not done. */
#ifndef GRISTMILL_GRID_H
#define GRISTMILL_GRID_H

#include "support.h"

GM_FUNCTION int64_t gm_add(int64_t a, int64_t b, int *bad) {
    int64_t result = 0;
    *bad |= __builtin_add_overflow(a, b, &result);
    return result;
}

GM_FUNCTION int64_t gm_sub(int64_t a, int64_t b, int *bad) {
    int64_t result = 0;
    *bad |= __builtin_sub_overflow(a, b, &result);
    return result;
}

GM_FUNCTION int64_t gm_mul(int64_t a, int64_t b, int *bad) {
    int64_t result = 0;
    *bad |= __builtin_mul_overflow(a, b, &result);
    return result;
}

/* Rounded down, as in Python. */
GM_FUNCTION int64_t gm_div(int64_t a, int64_t b, int *bad) {
    if (b == 0 || (a == INT64_MIN && b == -1)) {
        *bad = 1;
        return 0;
    }
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

GM_FUNCTION int64_t gm_mod(int64_t a, int64_t b, int *bad) {
    return gm_sub(a, gm_mul(gm_div(a, b, bad), b, bad), bad);
}

GM_FUNCTION int64_t gm_cdiv(int64_t a, int64_t b, int *bad) {
    return gm_sub(0, gm_div(gm_sub(0, a, bad), b, bad), bad);
}

GM_FUNCTION int64_t gm_min(int64_t a, int64_t b, int *bad) {
    (void)bad;
    return a < b ? a : b;
}

GM_FUNCTION int64_t gm_max(int64_t a, int64_t b, int *bad) {
    (void)bad;
    return a > b ? a : b;
}

#endif
