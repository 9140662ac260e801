/* 32 threads make the first call of an artifact at once: each binary is loaded once. */
#define _GNU_SOURCE
#include "pair.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 32, CALLS = 50 };
static pthread_barrier_t start;
static void (*use)(int);
static int (*calls)(const char *);
static int (*live)(void);
static int failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("line %d: %s; %s\n", __LINE__, #condition, pair_last_error());                  \
            __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);                                    \
        }                                                                                          \
    } while (0)

static void *run(void *argument) {
    const long number = (long)argument;
    const gristmill_pointer x = {(void *)0x1000, GRISTMILL_FP16};
    int i;
    use((int)(number % 2));
    pthread_barrier_wait(&start);
    for (i = 0; i < CALLS; i++) {
        const int64_t n = i % 3 == 0 ? 1 : 16;
        CHECK(pair_add(x, x, x, n, 1.0, 64, 4, 3, 1, 1, 1, NULL) == GRISTMILL_OK);
        if (i == number) CHECK(pair_preload(-1) == GRISTMILL_OK);
        if (i % 7 == 0) { /* a failure beside them is this thread's own */
            CHECK(pair_add(x, x, x, n, 1.0, 1000 + number, 4, 3, 1, 1, 1, NULL) ==
                  GRISTMILL_NO_SPECIALISATION);
            char expected[32];
            snprintf(expected, sizeof expected, "it is %ld", 1000 + number);
            CHECK(strstr(pair_last_error(), expected) != NULL);
        }
    }
    return NULL;
}

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) abort();
    return found;
}

int main(void) {
    pthread_t threads[THREADS];
    void *fake = dlopen("libcuda.so.1", RTLD_NOW);
    int round;
    long i;
    if (!fake) return puts(dlerror()), 2;
    *(void **)&use = find(fake, "fake_use");
    *(void **)&calls = find(fake, "fake_calls");
    *(void **)&live = find(fake, "fake_live_libraries");
    for (round = 0; round < 2; round++) {
        const int before = calls("cuLibraryLoadData");
        pthread_barrier_init(&start, NULL, THREADS);
        for (i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, run, (void *)i);
        for (i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&start);
        CHECK(calls("cuInit") == 1);
        CHECK(calls("cuLibraryLoadData") - before == 96);
        CHECK(calls("cuKernelGetFunction") == 96 * (round + 1));
        CHECK(pair_unload() == GRISTMILL_OK);
        CHECK(live() == 0);
    }
    return failures != 0;
}
