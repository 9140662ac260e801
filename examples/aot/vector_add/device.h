/* Device memory for programs that link against no CUDA: the driver, opened at run time. */
#ifndef DEVICE_H
#define DEVICE_H

#include <dlfcn.h>

#include <cstddef>
#include <cstdio>

namespace device {

typedef unsigned long long address;

struct Driver {
    int (*init)(unsigned);
    int (*retain)(void **, int);
    int (*use)(void *);
    int (*allocate)(address *, std::size_t);
    int (*release)(address);
    int (*upload)(address, const void *, std::size_t);
    int (*download)(void *, address, std::size_t);
    int (*wait)(void);
};

template <class F> bool find(void *library, const char *name, F *function) {
    *reinterpret_cast<void **>(function) = dlsym(library, name);
    if (!*function) std::fprintf(stderr, "the driver has no function %s\n", name);
    return *function != nullptr;
}

/* Opens the driver and makes device 0 current; false (and a message) where there is none. */
inline bool open(Driver *d) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    void *context = nullptr;
    if (!library) {
        std::fprintf(stderr, "there is no driver: %s\n", dlerror());
        return false;
    }
    if (!find(library, "cuInit", &d->init) ||
        !find(library, "cuDevicePrimaryCtxRetain", &d->retain) ||
        !find(library, "cuCtxSetCurrent", &d->use) ||
        !find(library, "cuMemAlloc_v2", &d->allocate) ||
        !find(library, "cuMemFree_v2", &d->release) ||
        !find(library, "cuMemcpyHtoD_v2", &d->upload) ||
        !find(library, "cuMemcpyDtoH_v2", &d->download) ||
        !find(library, "cuCtxSynchronize", &d->wait)) {
        return false;
    }
    if (d->init(0) || d->retain(&context, 0) || d->use(context)) {
        std::fprintf(stderr, "device 0 cannot be used\n");
        return false;
    }
    return true;
}

}  // namespace device

#endif
