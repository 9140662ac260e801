/* Compilers, atomics and messages. The runtime is C11 and C++17 at once; every function is static,
   so that any number of artifacts link into one program. */
#ifndef GRISTMILL_SUPPORT_H
#define GRISTMILL_SUPPORT_H

#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dlfcn.h>
#include <pthread.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "gristmill's runtime points kernels at the low bytes of 64-bit values: little-endian hosts only"
#endif

#ifdef __cplusplus
#define GM_THREAD_LOCAL thread_local
#else
#define GM_THREAD_LOCAL _Thread_local
#endif
#define GM_UNUSED __attribute__((unused))
#define GM_FUNCTION static GM_UNUSED
#define GM_COLD static GM_UNUSED __attribute__((noinline, cold))
#define GM_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define GM_ALIGNED(bytes) __attribute__((aligned(bytes)))

/* C11's <stdatomic.h> does not compile as C++: the builtins below it do. */
#define GM_LOAD(place) __atomic_load_n((place), __ATOMIC_ACQUIRE)
#define GM_STORE(place, value) __atomic_store_n((place), (value), __ATOMIC_RELEASE)

/* Held for whatever changes what calls share: opening the driver, loading, unloading. */
static pthread_mutex_t gm_mutex = PTHREAD_MUTEX_INITIALIZER;

GM_FUNCTION void gm_lock(void) {
    (void)pthread_mutex_lock(&gm_mutex);
}

GM_FUNCTION void gm_unlock(void) {
    (void)pthread_mutex_unlock(&gm_mutex);
}

/* A fork waits for who holds the lock: a child could never get it from a thread that it has not. */
GM_COLD void gm_expect_forks(void) {
    static int expected;
    if (!expected) expected = pthread_atfork(gm_lock, gm_unlock, gm_unlock) == 0;
}

#define GM_MESSAGE_SIZE 1024

/* A message that is built piece by piece and never overflows. */
typedef struct gm_message {
    char *text;
    size_t length;
} gm_message;

__attribute__((format(printf, 2, 3))) GM_COLD void gm_say(gm_message *message,
                                                          const char *format, ...) {
    va_list arguments;
    int wrote;
    va_start(arguments, format);
    wrote = vsnprintf(message->text + message->length, GM_MESSAGE_SIZE - message->length, format,
                      arguments);
    va_end(arguments);
    if (wrote > 0) message->length += (size_t)wrote;
    if (message->length >= GM_MESSAGE_SIZE) message->length = GM_MESSAGE_SIZE - 1;
}

/* The message of this thread's last failure: what `..._last_error()` returns. */
static GM_THREAD_LOCAL char gm_last_message[GM_MESSAGE_SIZE];

/* Starts the message of a failure of `who`. */
GM_COLD gm_message gm_begin(const char *who) {
    gm_message message;
    message.text = gm_last_message;
    message.length = 0;
    gm_last_message[0] = 0;
    gm_say(&message, "%s: ", who);
    return message;
}

/* A failure with its message; returns the status. */
__attribute__((format(printf, 3, 4))) GM_COLD int32_t gm_fail(int32_t status, const char *who,
                                                              const char *format, ...) {
    gm_message message = gm_begin(who);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message.text + message.length, GM_MESSAGE_SIZE - message.length, format,
                    arguments);
    va_end(arguments);
    return status;
}

#endif
