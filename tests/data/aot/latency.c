/* What a call costs beside the driver: the median over batches of calls, in nanoseconds. */
#define _GNU_SOURCE
#include "pair.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BATCHES = 101, CALLS = 20000 };

static int ordered(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return left < right ? -1 : left > right;
}

int main(void) {
    const gristmill_pointer x = {(void *)0x1000, GRISTMILL_FP16};
    void *fake = dlopen("libcuda.so.1", RTLD_NOW);
    void (*use)(int), (*quiet)(int);
    double taken[BATCHES];
    int i, j, status;
    if (!fake) return puts(dlerror()), 2;
    *(void **)&use = dlsym(fake, "fake_use");
    *(void **)&quiet = dlsym(fake, "fake_quiet");
    use(0);
    status = pair_add(x, x, x, 1024, 1.5, 64, 4, 3, 8, 1, 1, NULL);
    status |= pair_add(x, x, x, 17, 1.5, 64, 4, 3, 8, 1, 1, NULL);
    quiet(1);
    for (i = 0; i < BATCHES; i++) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        for (j = 0; j < CALLS; j++) {
            status |= pair_add(x, x, x, j & 1 ? 17 : 1024, 1.5, 64, 4, 3, 8, 1, 1, NULL);
        }
        clock_gettime(CLOCK_MONOTONIC, &after);
        taken[i] = (double)(after.tv_sec - before.tv_sec) * 1e9 / CALLS +
                   (double)(after.tv_nsec - before.tv_nsec) / CALLS;
    }
    qsort(taken, BATCHES, sizeof taken[0], ordered);
    printf("%.1f\n", taken[BATCHES / 2]);
    return status;
}
