/* A process forks while another of its threads loads and unloads: its children load for themselves. */
#define _GNU_SOURCE
#include "pair.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FORKS = 60 };
static void (*use)(int);
static int stop;

static int call(void) {
    const gristmill_pointer x = {(void *)0x1000, GRISTMILL_FP16};
    return pair_add(x, x, x, 17, 1.0, 64, 4, 3, 1, 1, 1, NULL);
}

static void *load(void *unused) {
    (void)unused;
    use(0);
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        if (pair_preload(-1)) return "preload";
        if (pair_unload()) return "unload";
    }
    return NULL;
}

int main(void) {
    void *fake = dlopen("libcuda.so.1", RTLD_NOW), *failed = NULL;
    pthread_t thread;
    int i, status, bad = 0;
    if (!fake) return puts(dlerror()), 2;
    *(void **)&use = dlsym(fake, "fake_use");
    use(0);
    if (pair_preload(-1)) return puts(pair_last_error()), 3;
    pthread_create(&thread, NULL, load, NULL);
    for (i = 0; i < FORKS && !bad; i++) {
        const pid_t pid = fork();
        if (pid == 0) {
            alarm(30); /* a child that waits for a lock that nobody holds is ended by it */
            _exit(call());
        }
        bad = pid < 0 || waitpid(pid, &status, 0) != pid || status != 0;
        if (bad) printf("fork %d: status %d\n", i, status);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    pthread_join(thread, &failed);
    if (failed) puts((const char *)failed);
    return bad || failed;
}
