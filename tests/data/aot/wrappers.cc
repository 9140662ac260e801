// The C++ face: types are deduced, and C's functions stay callable by the same names.
#include "many.h"
#include "pair.h"

#include <cstdio>
#include <dlfcn.h>

static_assert(gristmill::element<const float>::value == GRISTMILL_FP32, "const adds nothing");

struct half { // a type of the caller's own
    uint16_t bits;
};
template <> struct gristmill::element<half> {
    static constexpr int32_t value = GRISTMILL_FP16;
};

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != GRISTMILL_OK) {                                                              \
            std::printf("%s: %s%s\n", #call, many_last_error(), pair_last_error());                \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

int main() {
    void *fake = dlopen("libcuda.so.1", RTLD_NOW);
    if (!fake) return 2;
    reinterpret_cast<void (*)(int)>(dlsym(fake, "fake_use"))(0);
    alignas(16) float x[4] = {}, out[4] = {};
    alignas(16) half h[4] = {};
    const float *y = x;
    int64_t grid[3];
    CHECK(many_add_grid(x, y, out, 1000, 1.0, 64, 4, 3, grid));
    CHECK(grid[0] != 16);
    CHECK(many_add(x, y, out, 1000, 1.0, 64, 4, 3, grid[0], grid[1], grid[2], nullptr));
    CHECK(many_add(h, h, h, 1000, 1.0, 64, 4, 3, 1, 1, 1, nullptr));
    CHECK(many_add_tuned(h, h, h, 1000, 1.0, nullptr));
    CHECK(pair_add(gristmill::pointer(x), gristmill::pointer(y), gristmill::pointer(out), 1000, 1.0,
                   64, 4, 3, 1, 1, 1, nullptr));
    CHECK(scalars(1.0, 1.0, 1.0, 1.0, 2.0f, 1, 2, 3, 4, 3, 1, 1, 1, nullptr));
    CHECK(scalars(1.0, 1.0, 1.0, 1.0, 2.0, 1, 2, 3, 4, 3, 1, 1, 1, nullptr));
    const int64_t shape[2] = {64, 32}, strides[2] = {32, 1};
    CHECK(tensors(gristmill::descriptor(h, shape, strides), 3, 4, 3, 1, 1, 1, nullptr));
    CHECK(many_unload());
    CHECK(pair_unload());
    return 0;
}
