"""Artifacts in C and the driver: loading once a place, failures of every call of it, launch
attributes, scratch memory, contexts and devices. In a process over the fake driver."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest

import aot_c_cases as cases
from aot_c_process import Library, at

pytestmark = pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")

INVALID, NO_SPECIALISATION, NO_ARCHITECTURE, _, DRIVER, MEMORY = range(1, 7)
P = ctypes.c_void_p


def failures(path, hungry, functions):
    """Each call of the driver fails once: a code and a message, no launch, and then all is well."""
    for function, status in functions.items():
        for code in (999, 2):
            lib = Library(path, "many")
            lib.fail(function, code)
            expected = MEMORY if code == 2 else status
            assert lib.call(hungry, P(256)) == expected, function
            call = function.removesuffix("_v2")
            assert f"{hungry}: {call} failed with error {code} CUDA_ERROR_" in lib.error
            assert lib.error.endswith("said by the fake driver") or "shared memory" in lib.error
            assert (lib.calls("cuLaunchKernelEx") > 0) == (
                function.startswith(("cuLaunch", "cuMemF"))
            )
            alive = lib.fake.fake_live_allocations()
            assert alive == (1 if function == "cuMemFreeAsync" else 0)  # it could not be freed
            if alive:
                lib.fake.cuMemFreeAsync(ctypes.c_uint64(0x7F0000000100), None)
            lib.ok(hungry, P(256))
            assert lib.unload() == 0
            assert lib.loaded == 0
            assert lib.fake.fake_live_allocations() == 0


LOADING = (
    "cuCtxGetId",
    "cuCtxGetDevice",
    "cuDeviceGetAttribute",
    "cuLibraryLoadData",
    "cuLibraryGetKernel",
)
LOADING += ("cuKernelGetFunction", "cuFuncLoad", "cuLaunchKernelEx")


def test_a_failure_of_the_driver_is_a_code_and_the_next_call_works(child, library):
    child.run(failures, library, "hungry", dict.fromkeys((*LOADING, "cuMemAllocAsync"), DRIVER))
    child.run(failures, library, "hungry", {"cuMemFreeAsync": DRIVER})
    child.run(failures, library, "clustered", {"cuFuncSetAttribute": DRIVER})


def failures_without_a_context(path):
    for function in ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"):
        lib = Library(path, "many", device=-1)
        lib.fail(function)
        assert lib.call("many_add", *lib.add_arguments()) == DRIVER
        assert f"many_add: {function} failed with error 999" in lib.error
        assert lib.fake.fake_current() == -1
        assert lib.add().device == 0
        assert lib.unload() == 0
        assert lib.retained == [0, 0]


def test_failures_where_a_thread_has_no_context(child, library):
    child.run(failures_without_a_context, library)


def failures_of_preload_and_unload(path):
    for function in (
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        *LOADING[:-1],
    ):
        lib = Library(path, "many")
        # Whose context is current is asked first, and not knowing is no failure.
        lib.fail(function, skip=function == "cuCtxGetDevice")
        assert lib.preload(1) == DRIVER, function
        assert lib.error.startswith(f"many_preload: {function.removesuffix('_v2')} failed")
        assert lib.fake.fake_current() == 0  # whatever happens, the caller's context stays
        assert lib.preload(1) == 0, lib.error
        assert lib.unload() == 0
        assert lib.retained == [0, 0]
        assert lib.loaded == 0
    lib = Library(path, "many")
    lib.add()
    lib.ok("together", P(16))
    lib.fail("cuLibraryUnload")
    assert lib.unload() == DRIVER
    assert "cuLibraryUnload failed" in lib.error
    assert lib.calls("cuLibraryUnload") == 2  # it went on


def test_failures_of_preload_and_unload(child, library):
    child.run(failures_of_preload_and_unload, library)


def preloading(path):
    lib = Library(path, "many")
    assert lib.preload(7) == DRIVER
    assert "cuDeviceGet failed with error 101" in lib.error
    assert lib.preload(-2) == INVALID
    assert "`device` is -2" in lib.error
    # One kernel asks for more shared memory than there is: preload says so, and which.
    assert lib.preload() == DRIVER
    assert "asked for 300000 bytes of shared memory" in lib.error


def test_preload_says_what_cannot_run(child, library):
    child.run(preloading, library)


def preload_then_call(path):
    lib = Library(path, "pair", device=0)
    assert lib.preload(0) == 0, lib.error
    assert lib.preload(1) == 0, lib.error
    loads = lib.calls("cuLibraryLoadData")
    gets = lib.calls("cuKernelGetFunction")
    assert loads == gets == 2 * 48  # architectures; types, blocks, warps and six classes
    assert lib.retained[1] == 1
    for device in (0, 1):
        lib.fake.fake_use(device)
        for n in (1, 16, 17, 2**31):
            lib.add(n=n)
    assert lib.calls("cuKernelGetFunction") == gets
    assert lib.calls("cuLibraryLoadData") == loads
    assert lib.preload() == 0
    assert lib.calls("cuKernelGetFunction") == gets
    assert lib.unload() == 0
    assert lib.loaded == 0
    assert lib.retained[1] == 0
    lib.fake.fake_use(0)
    lib.add()  # it loads again


def test_after_a_preload_no_call_loads(child, pair_library):
    child.run(preload_then_call, pair_library)


def places(path):
    lib = Library(path, "many")
    assert lib.add().device == 0
    lib.fake.fake_use(1)  # of another architecture: other binaries
    assert lib.add().device == 1
    assert lib.calls("cuLibraryLoadData") == 2
    lib.fake.fake_new_context(1)  # the same device: the same library, functions of its own
    assert lib.add().device == 1
    assert (lib.calls("cuLibraryLoadData"), lib.calls("cuKernelGetFunction")) == (2, 3)
    lib.fake.fake_use(0)
    assert lib.add().device == 0
    assert lib.calls("cuKernelGetFunction") == 3
    found = []
    thread = threading.Thread(target=lambda: found.append(lib.add().device))
    thread.start()  # it has no context: device 0's primary one, as from CUDA's runtime
    thread.join()
    assert found == [0]
    assert lib.retained[0] == 1
    assert lib.unload() == 0
    assert lib.retained[0] == 0


def test_the_calling_threads_context_decides(child, library):
    child.run(places, library)


def architectures(path):
    lib = Library(path, "many", device=1)
    try:
        for capability, runs in ((80, True), (86, True), (89, True), (90, True), (70, False)):
            check_architecture(lib, capability, runs)
        for capability in (75, 87, 100, 103, 120):
            check_architecture(lib, capability, capability == 87)
    finally:
        lib.fake.fake_device(1, 80, b"gfx1100")


def check_architecture(lib, capability, runs):
    assert lib.unload() == 0
    lib.fake.fake_device(1, capability, b"")
    if runs:
        lib.add()
        return
    assert lib.call("many_add", *lib.add_arguments()) == NO_ARCHITECTURE
    assert lib.error == (
        f"many_add: device 1 is sm_{capability}; the artifact has binaries for sm_80, sm_90. "
        f"Build it for sm_{capability}."
    )
    assert lib.preload() == NO_ARCHITECTURE


def test_architectures_exact_from_90_on_and_lower_minors_below(child, library):
    child.run(architectures, library)


def elsewhere(path):
    lib = Library(path, "many", device=1)
    assert lib.call("together", P(16)) == NO_SPECIALISATION
    assert lib.error == (
        "together: no specialisation for this call. The nearest (sm_90, num_warps=4, num_stages=3) "
        "needs a device of architecture sm_90; the current one is sm_80"
    )


def test_a_kernel_of_another_architecture_is_named(child, library):
    child.run(elsewhere, library)


def attributes(path):
    lib = Library(path, "many")
    launch = lib.ok("clustered", P(0x11), grid=(5, 6, 7))
    assert list(launch.grid) == [80, 6, 7]
    assert list(launch.block) == [384, 1, 1]
    assert launch.shared == 100_000
    assert launch.attributes == {6: (1, 0, 0), 4: (16, 1, 1), 5: (1, 0, 0)}
    assert lib.calls("cuFuncSetAttribute") == 2
    assert lib.ok("together", P(16)).attributes == {2: (1, 0, 0)}
    assert lib.call("greedy", P(16)) == DRIVER
    assert "asked for 300000 bytes of shared memory" in lib.error


def test_clusters_pdl_cooperation_and_shared_memory(child, library):
    child.run(attributes, library)


def scratch(path):
    lib = Library(path, "many")
    launch = lib.ok("hungry", P(16), grid=(2, 3, 4))
    assert lib.fake.fake_last_size() == 2 * 3 * 4 * 2 * 96
    assert launch.parameters[1:] == [struct.pack("<Q", 0x7F0000000100), b"\0" * 8]
    launch = lib.ok("aligned", P(16), grid=(1, 1, 1))
    assert lib.fake.fake_last_size() == 100 + 4096
    assert launch.parameters[1] == struct.pack("<Q", 0x7F0000001000)
    assert (lib.calls("cuMemAllocAsync"), lib.calls("cuMemFreeAsync")) == (2, 2)
    assert lib.call("hungry", P(16), grid=(2**29, 65535, 65535)) == INVALID
    assert "more scratch memory" in lib.error

    asked = []
    allocate_type = ctypes.CFUNCTYPE(P, ctypes.c_size_t, ctypes.c_size_t, P, P)
    release_type = ctypes.CFUNCTYPE(None, P, P, P)
    give = [0x8000]

    @allocate_type
    def allocate(size, alignment, stream, user):
        asked.append((size, alignment, stream, user))
        return give[0]

    @release_type
    def release(memory, stream, user):
        asked.append((memory, stream, user))

    null = release_type(), allocate_type()
    assert lib.c.many_set_allocator(allocate, null[0], P(7)) == INVALID
    assert lib.c.many_set_allocator(null[1], release, P(7)) == INVALID
    assert lib.c.many_set_allocator(allocate, release, P(7)) == 0
    try:
        launch = lib.ok("hungry", P(16), grid=(1, 1, 1))
        assert asked == [(192, 128, 0x5151, 7), (0x8000, 0x5151, 7)]
        assert launch.parameters[1] == struct.pack("<Q", 0x8000)
        lib.fail("cuLaunchKernelEx")
        assert lib.call("hungry", P(16)) == DRIVER
        assert "cuLaunchKernelEx failed" in lib.error
        assert asked[-1] == (0x8000, 0x5151, 7)  # given back all the same
        give[0] = 0x8001
        assert lib.call("hungry", P(16)) == INVALID
        assert "at 0x8001; asked for was a multiple of 128" in lib.error
        assert asked[-1] == (0x8001, 0x5151, 7)
        give[0] = None
        assert lib.call("hungry", P(16)) == MEMORY
    finally:
        assert lib.c.many_set_allocator(null[1], null[0], None) == 0
    lib.ok("hungry", P(16))
    assert lib.calls("cuMemAllocAsync") == 3


def test_scratch_memory_is_stream_ordered_or_the_callers(child, library):
    child.run(scratch, library)


def errors_are_a_threads_own(path):
    lib = Library(path, "many")
    assert lib.call("many_add", *lib.add_arguments(block=1)) == NO_SPECIALISATION
    said = lib.error
    found = []
    thread = threading.Thread(target=lambda: found.append(lib.error))
    thread.start()
    thread.join()
    assert found == [""]
    lib.add()
    assert lib.error == said  # of the last failure, not of the last call


def test_messages_are_a_threads_own(child, library):
    child.run(errors_are_a_threads_own, library)


def on_amd(path):
    lib = Library(path, "amd", driver="libamdhip64.so")
    assert lib.add(n=32).device == 0
    lib.fake.fake_use(1)
    assert lib.add(n=32).device == 1
    assert (lib.calls("hipModuleLoadData"), lib.loaded) == (2, 2)
    lib.fake.fake_use(0)
    launch = lib.ok("hungry", P(16), grid=(2, 1, 1))
    assert lib.fake.fake_last_size() == 128
    assert list(launch.block) == [128, 1, 1]
    assert launch.parameters[1] == struct.pack("<Q", 0x7F0000000100)
    assert lib.ok("together", P(16)).attribute_count == 1  # the cooperative call
    assert lib.call("amd_add", at(16), at(16), at(16), 16, 1.0, 1) == NO_SPECIALISATION
    assert "nearest (gfx942, T=fp16" in lib.error
    functions = ["hipGetDevicePropertiesR0600", "hipModuleLoadData", "hipModuleGetFunction"]
    for function in [*functions, "hipMallocAsync", "hipModuleLaunchKernel", "hipFreeAsync"]:
        assert lib.unload() == 0
        assert lib.loaded == 0
        lib.fail(function)
        assert lib.call("hungry", P(16)) == DRIVER
        assert f"{function.removesuffix('R0600')} failed with error 999: said by" in lib.error
        lib.ok("hungry", P(16))
    assert lib.unload() == 0
    assert lib.preload(0) == 0, lib.error
    loads = lib.calls("hipModuleLoadData")
    lib.add(n=17)
    assert lib.calls("hipModuleLoadData") == loads
    assert lib.preload(9) == DRIVER
    lib.fake.fake_device(0, 90, b"gfx90a:xnack-")
    assert lib.unload() == 0
    assert lib.call("together", P(16)) == NO_ARCHITECTURE
    assert "device 0 is gfx90a; the artifact has binaries for gfx942, gfx1100" in lib.error
    lib.fake.fake_device(0, 90, b"gfx942:sramecc+:xnack-")


def test_hip_loads_a_module_a_device(child, amd_library):
    child.run(on_amd, amd_library)
