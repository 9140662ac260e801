/* A program of a user's: two artifacts in one, one of which has no driver to its name. */
#include "amd.h"
#include "pair.h"

#include <stdio.h>
#include <string.h>

int main(void) {
    const gristmill_pointer x = {NULL, GRISTMILL_FP16};
    if (pair_add(x, x, x, 16, 1.0, 64, 4, 3, 0, 1, 1, NULL)) return 1; /* an empty grid */
    if (pair_preload(-1) != GRISTMILL_NO_DRIVER) return 2;
    if (together(NULL, 4, 3, 1, 1, 1, NULL) != GRISTMILL_NO_DRIVER) return 3;
    if (!strstr(pair_last_error(), "libcuda.so.1")) return 4;
    if (!strstr(amd_last_error(), "libamdhip64.so")) return 5;
    puts(pair_last_error());
    return 0;
}
