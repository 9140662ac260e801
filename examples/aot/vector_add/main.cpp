/* Calls the compiled kernel from C++. `--no-results`: there is a driver, and no device behind it that
   computes: only what calls answer is checked. Exit codes: 0 right, 1 wrong, 77 no device. */
#include "add.h"

#include "device.h"

#include <cstdio>
#include <cstring>
#include <vector>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, add_last_error());     \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static int answers(const float *x, const float *y, float *out) {
    CHECK(add_preload(0) == GRISTMILL_OK);
    CHECK(add_kernel(x, y, out, 1024, 128, 4, 3, 8, 1, 1, nullptr) == GRISTMILL_OK);
    CHECK(add_kernel(x + 1, y + 1, out + 1, 1000, 128, 4, 3, 8, 1, 1, nullptr) == GRISTMILL_OK);
    CHECK(add_kernel(x, y, out, 0, 128, 4, 3, 0, 1, 1, nullptr) == GRISTMILL_OK);
    int64_t grid[3] = {0, 0, 0};
    CHECK(add_kernel_grid(x, y, out, 1000, 128, 4, 3, grid) == GRISTMILL_OK);
    CHECK(grid[0] == 8 && grid[1] == 1 && grid[2] == 1);
    CHECK(add_kernel(x, y, out, 1024, 64, 4, 3, 16, 1, 1, nullptr) != GRISTMILL_OK);
    CHECK(std::strstr(add_last_error(), "BLOCK_SIZE") != nullptr);
    return 0;
}

static int results(const device::Driver &driver) {
    const int sizes[] = {1, 127, 128, 1000, 1 << 20};
    for (int n : sizes) {
        const size_t bytes = sizeof(float) * static_cast<size_t>(n);
        std::vector<float> x(static_cast<size_t>(n)), y(x), out(x);
        device::address at[3];
        for (int i = 0; i < n; i++) {
            x[static_cast<size_t>(i)] = static_cast<float>(i) * 0.5f;
            y[static_cast<size_t>(i)] = static_cast<float>(n - i);
        }
        for (device::address &one : at) CHECK(driver.allocate(&one, bytes) == 0);
        CHECK(driver.upload(at[0], x.data(), bytes) == 0);
        CHECK(driver.upload(at[1], y.data(), bytes) == 0);
        CHECK(add_kernel(reinterpret_cast<const float *>(at[0]),
                         reinterpret_cast<const float *>(at[1]), reinterpret_cast<float *>(at[2]), n,
                         128, 4, 3, (n + 127) / 128, 1, 1, nullptr) == GRISTMILL_OK);
        CHECK(driver.wait() == 0);
        CHECK(driver.download(out.data(), at[2], bytes) == 0);
        for (size_t i = 0; i < out.size(); i++) CHECK(out[i] == x[i] + y[i]);
        for (device::address one : at) CHECK(driver.release(one) == 0);
    }
    return 0;
}

int main(int argc, char **argv) {
    alignas(16) static float memory[3][16];  /* addresses, for calls that nobody computes */
    if (argc > 1 && !std::strcmp(argv[1], "--no-results")) {
        return answers(memory[0], memory[1], memory[2]);
    }
    device::Driver driver;
    if (!device::open(&driver)) return 77;
    if (results(driver)) return 1;
    std::puts("the sums are right");
    return 0;
}
