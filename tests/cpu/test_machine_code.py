"""The machine code of the kernels on Hopper: which instructions, how wide, and how far ahead."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from compiling import compiled
from gristmill.compile.executor import EXECUTOR
from gristmill.core import registry
from gristmill.core.target import named_target
from gristmill.errors import InvalidConfigError
from gristmill.specs.matmul import problem_of
from gristmill.testing.cases import layouts

HOPPER = named_target("sm_90")


@pytest.mark.parametrize("name", ["tiled", "persistent_tma"])
@pytest.mark.parametrize(
    "workload",
    [
        *("square-4096", "square-4096-row-major", "square-4096-fp16", "square-4096-tf32"),
        *("llama3-8b-o-dw-m4096", "llama3-8b-o-m512"),
    ],
)
def test_hopper_products_run_on_warpgroups(name, workload):
    """And are on their way together: ptxas serialises some (a wait after each) and says so to
    nobody."""
    implementation = registry.implementation("matmul", name)
    (binary,) = compiled(implementation, implementation.op.workload(workload).problem, HOPPER)
    order = memory_operations(binary, "HGMMA", r"WARPGROUP\.ARRIVE")
    products = sum(op.startswith("HGMMA") for op in order)
    assert products >= 4 * (len(order) - products) > 0
    if name == "persistent_tma":
        assert "UTMALDG" in binary.sass
        assert "UTMASTG" in binary.sass


def matmul_binaries(name, problem, **knobs):
    implementation = registry.implementation("matmul", name)
    config = {**implementation.config(None, problem, HOPPER).knobs, **knobs}
    return compiled(implementation, problem, HOPPER, config)


def memory_operations(binary, *names):
    """The machine code's instructions of these names, with their widths."""
    return re.findall(rf"\b(?:{'|'.join(names)})\b[.\w]*", binary.sass)


def workload(name):
    return registry.load("matmul").workload(name).problem


@pytest.mark.parametrize(("m", "shape"), [(16, "64x16x16"), (64, "64x128x16")])
def test_few_rows_are_the_short_side_of_a_product(m, shape):
    for layer in ("qkv", "gate_up"):
        binary, *_ = matmul_binaries("split_k", workload(f"llama3-8b-{layer}-m{m}"))
        assert f"HGMMA.{shape}" in binary.sass
        loads = memory_operations(binary, "LDGSTS")
        assert loads
        assert all(".128" in load for load in loads)
        assert all(".128" in store for store in memory_operations(binary, "STG"))


def test_parts_are_added_16_bytes_at_a_time():
    _, add = matmul_binaries("split_k", workload("llama3-8b-down-m16"), SPLIT_K=4)
    assert all(".128" in op for op in memory_operations(add, "LDG", "STG"))


@pytest.mark.parametrize(
    ("name", "size", "first"),
    [
        ("split_k", "llama3-8b-down-m16", "LDGSTS"),
        ("split_k", "llama3-8b-qkv-m64", "LDGSTS"),
        ("padded", "odd-1023x1000x1031", "LDG"),
    ],
)
def test_a_second_launch_is_set_up_under_the_first_one(name, size, first):
    """By the prior. It is let go before the first one's loads, and touches no memory before its
    wait; the first one waits for what runs before it, as every launch does: it cannot write into
    a workspace that the last call still reads."""
    before, after = matmul_binaries(name, workload(size))
    assert memory_operations(before, "PREEXIT", first)[0] == "PREEXIT"
    assert "ACQBULK" not in before.sass
    assert not before.kernel.metadata.launch_pdl
    assert after.kernel.metadata.launch_pdl
    order = memory_operations(after, "ACQBULK", "LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG")
    assert order[0] == "ACQBULK"
    assert "PREEXIT" not in after.sass  # nor is the next call's first launch let go early


def test_an_evicted_weight_is_read_by_plain_loads():
    problem = workload("llama3-8b-qkv-m16")
    binary, *_ = matmul_binaries("split_k", problem, num_stages=1, EVICT="evict_first")
    loads = memory_operations(binary, "LDG")
    assert sum(".EF.128" in load for load in loads) == 8  # a 64 x 128 block among 128 threads


@pytest.mark.parametrize("layer", ["qkv", "o", "gate_up", "down"])
def test_a_row_reads_the_weight_in_eight_loads_of_16_bytes_a_thread(layer):
    (binary,) = matmul_binaries("gemv", workload(f"llama3-8b-{layer}-m1"))
    loads = [load for load in memory_operations(binary, "LDG") if ".EL" not in load]
    assert len(loads) == 8
    assert all(".EF.128" in load for load in loads)
    # No sum waits for the first load before the last one is on its way.
    order = memory_operations(binary, "LDG", "FFMA")
    assert all(op.startswith("FFMA") for op in order[order.index("FFMA") :])
    (folded,) = matmul_binaries("gemv", workload(f"llama3-8b-{layer}-m1"), FOLD=8)
    assert folded.registers <= binary.registers // 2 + 8
    assert folded.spills == 0
    assert all(".128" in load for load in memory_operations(folded, "LDG"))


@pytest.mark.parametrize("name", ["tiled", "split_k"])
@pytest.mark.parametrize(
    "problem",
    [
        problem_of(520, 1000, 1032),  # rows of an odd number of eights
        problem_of(520, 1000, 1032, weight=False),
        problem_of(520, 1000, 1032, weight=False, along_m=True),
        problem_of(260, 516, 1028, "float32", tf32=True),
    ],
    ids=str,
)
def test_rows_on_16_bytes_are_read_16_bytes_at_a_time(name, problem):
    binary, *_ = matmul_binaries(name, problem)
    loads = memory_operations(binary, "LDGSTS", "LDG")
    assert loads
    assert all(".128" in load for load in loads), loads


@pytest.mark.parametrize("weight", ["", "-row-major"])
def test_odd_rows_are_copied_in_order_and_multiplied_by_tma(weight):
    pad, product = matmul_binaries("padded", workload(f"odd-1023x1000x1031{weight}"), PDL=True)
    assert set(memory_operations(pad, "LDG")) == {"LDG.E.U16"}
    assert all(".128" in store for store in memory_operations(pad, "STG"))
    # A warp's lanes read 32 elements in a row.
    assert "threadsPerWarp = [1, 1, 32]" in pad.kernel.asm["ttgir"]
    assert "UTMALDG" in product.sass
    assert "UTMASTG" in product.sass
    assert "PREEXIT" in pad.sass
    assert "ACQBULK" in product.sass
    assert product.kernel.metadata.launch_pdl


def test_a_result_off_16_bytes_is_stored_by_pointers():
    (binary,) = matmul_binaries("persistent_tma", problem_of(1024, 1031, 1024))
    assert "UTMALDG" in binary.sass
    assert "UTMASTG" not in binary.sass


@pytest.mark.parametrize("name", ["heads-32x128x4096x128", "heads-32x128x128x4096"])
def test_tiles_of_a_batch_go_from_tma_to_the_product_as_they_are(name):
    (binary,) = matmul_binaries("persistent_tma", workload(name))
    assert set(memory_operations(binary, "UTMALDG", "UTMASTG")) == {"UTMALDG.3D", "UTMASTG.3D"}
    assert "HGMMA" in binary.sass
    assert not memory_operations(binary, "LDSM")  # nothing comes back into registers


@pytest.mark.parametrize("name", ["tiled", "persistent_tma"])
def test_tf32_runs_on_warpgroups(name):
    (binary,) = matmul_binaries(name, workload("square-4096-tf32"))
    assert ".TF32" in binary.sass


@pytest.mark.parametrize(
    ("op", "name", "workload"),
    [
        ("rms_norm", "row", "16384x4096"),
        ("rms_norm", "row", "8192x8192"),
        ("rms_norm", "row", "16384x4096-fp32"),
        ("rms_norm", "row", "wide-64x65536"),
        ("rms_norm", "multi_row", "qk-norm-4096x40x128"),
        ("rms_norm", "multi_row", "32768x1024"),
        ("rms_norm_backward", "persistent", "16384x4096"),
        ("rms_norm_backward", "persistent", "8192x8192"),
        ("rms_norm_backward", "persistent", "32768x1024"),
        ("rms_norm_backward", "persistent", "2048x16384"),
        ("rms_norm_backward", "persistent", "16384x4096-fp32"),
        *(("silu_and_mul", "tiles", f"8192x14336{which}") for which in ("", "-two-tensors")),
        ("silu_and_mul", "tiles", "8192x8192-fp32"),
        *(("silu_and_mul_backward", "tiles", f"8192x14336{w}") for w in ("", "-two-tensors")),
        ("silu_and_mul_backward", "tiles", "qwen3-30b-expert-4096x768"),
        ("gelu", "tiles", "8192x14336"),
        ("gelu_backward", "tiles", "8192x8192-tanh"),
        ("gelu_and_mul", "tiles", "gemma2-9b-m4096"),
        ("gelu_and_mul_backward", "tiles", "8192x14336"),
        ("relu2_and_mul_backward", "tiles", "bitnet-2b-m4096"),
        ("apply_rotary_pos_emb", "heads", "llama3-8b-4x4096"),
        ("apply_rotary_pos_emb", "heads", "llama3-8b-4x4096-heads-first"),
        ("apply_rotary_pos_emb", "heads", "llama3-8b-4x4096-interleaved"),
        ("apply_rotary_pos_emb", "heads", "llama3-8b-4x4096-fp32"),
        ("apply_rotary_pos_emb", "heads", "glm4-9b-1x8192"),
        ("apply_rotary_pos_emb", "heads", "phi2-2x2048"),
        ("apply_rotary_pos_emb_backward", "heads", "llama3-8b-4x4096"),
        ("apply_rotary_pos_emb_backward", "heads", "llama3-8b-4x4096-interleaved"),
    ],
)
def test_rows_are_read_and_written_16_bytes_at_a_time(op, name, workload):
    """By loads into registers, or copies into shared memory (`LDGSTS`). The weight (evict_last,
    `.EL`) comes from L2 and may be narrower."""
    implementation = registry.implementation(op, name)
    binary = compiled(implementation, implementation.op.workload(workload).problem, HOPPER)[0]
    lines = [line for line in binary.sass.splitlines() if ".EL" not in line]
    loads = [line for line in lines if re.search(r"LDG(STS)?\.E", line)]
    stores = [line for line in lines if "STG" in line]
    assert loads
    assert all(".128" in line for line in loads)
    assert stores
    assert all(".128" in line for line in stores)


@pytest.mark.parametrize(("op", "most"), [("gelu", 25), ("gelu_backward", 34)])
@pytest.mark.parametrize("workload", ["8192x8192", "8192x8192-tanh"])
def test_an_element_takes_fewer_instructions_than_the_copy_rate_leaves(op, workload, most):
    """28 and 41 of them (docs/performance/activations.md); libdevice's `erf` alone is more."""
    implementation = registry.implementation(op, "tiles")
    problem = implementation.op.workload(workload).problem
    (binary,) = compiled(implementation, problem, HOPPER)
    values = implementation.config(None, problem, HOPPER)["VALUES"]
    code = [line for line in binary.sass.splitlines() if ";" in line and "NOP" not in line]
    # The body is there twice, the second time for the last tile.
    assert len(code) / 2 / values <= most


@pytest.mark.parametrize("op", ["silu_and_mul", "silu_and_mul_backward"])
def test_one_long_row_of_any_length_is_read_16_bytes_at_a_time(op):
    """All of it but the tile that it ends in."""
    implementation = registry.implementation(op, "tiles")
    problem = implementation.op.workload("odd-1023x4097-two-tensors").problem
    config = implementation.config(None, problem, HOPPER)
    (binary,) = compiled(implementation, problem, HOPPER)
    bytes_of_thread = config["VALUES"] * problem["x"].itemsize
    streams = implementation.op.cost(problem).size_bytes // problem["x"].size_bytes
    wide = re.findall(r"(?:LDG|STG)\.E\S*\.128", binary.sass)
    assert len(wide) == streams * bytes_of_thread // 16


TARGETS = ("16384x4096", "8192x8192", "32768x1024", "2048x16384", "16384x4096-fp32")


@pytest.mark.parametrize("workload", TARGETS)
def test_the_next_rows_are_on_their_way_while_one_is_computed(workload):
    implementation = registry.implementation("rms_norm_backward", "persistent")
    problem = implementation.op.workload(workload).problem
    config = implementation.config(None, problem, HOPPER)
    binary = compiled(implementation, problem, HOPPER)[0]
    tile = config["BLOCK_M"] * config["BLOCK_N"] * problem["x"].itemsize
    assert "LDGSTS" in binary.sass
    assert binary.shared_bytes >= 2 * (config["STAGES"] - 1) * tile  # of `x` and of `grad_out`
    # What a round does not wait for is in flight while it computes: more than the 23 KB a
    # processor that hide 700 ns at the copy rate.
    waits = re.findall(r"ttg.async_wait %.*\{num = (\d+)", binary.kernel.asm["ttgir"])
    copies = max(map(int, waits))  # the last wait, behind the loop, is for everything
    assert copies == 2 * (config["STAGES"] - 2)
    assert config["PROGRAMS_PER_SM"] * copies * tile >= 32_768
    # As many programs as the prior asks for are on a processor at a time.
    threads = config["num_warps"] * HOPPER.warp_size
    registers = -(-binary.registers // 8) * 8 * threads
    assert config["PROGRAMS_PER_SM"] * registers <= 65_536
    assert config["PROGRAMS_PER_SM"] * (binary.shared_bytes + 1024) <= HOPPER.shared_memory_bytes


def test_two_stages_are_refused_where_they_overlap_nothing():
    """Forced, the copies of the next tile end a round, and the next one waits for them all."""
    implementation = registry.implementation("rms_norm_backward", "persistent")
    problem = implementation.op.workload("16384x4096").problem
    config = implementation.config(None, problem, HOPPER)
    with pytest.raises(InvalidConfigError, match="copy nothing while"):
        implementation.config({**config.knobs, "STAGES": 2}, problem, HOPPER)
    values = problem.meta()
    launch = implementation.launches(values, *implementation.allocate(values, config), config)[0]
    forced = replace(launch, constexprs={**launch.constexprs, "STAGES": 2})
    ttgir = EXECUTOR.compile(forced, HOPPER).kernel.asm["ttgir"]
    waits = re.findall(r"ttg.async_wait %.*\{num = (\d+)", ttgir)
    assert waits
    assert set(waits) == {"0"}


def test_the_sum_of_shares_is_set_up_while_the_kernel_before_it_ends():
    implementation = registry.implementation("rms_norm_backward", "persistent")
    problem = implementation.op.workload("16384x4096").problem
    main, shares = compiled(implementation, problem, HOPPER)
    assert shares.kernel.metadata.launch_pdl
    assert not main.kernel.metadata.launch_pdl
    # The signal comes after the last read; nothing is read before the other kernel has ended.
    assert main.sass.rindex("LDG") < main.sass.index("PREEXIT")
    assert shares.sass.index("ACQBULK") < re.search("LDG", shares.sass).start()
    assert shares.sass.index("ACQBULK") < re.search("STG", shares.sass).start()
    for arch in ("sm_80", "gfx942"):
        config = implementation.config(None, problem, named_target(arch))
        assert "OVERLAP" not in config
    for binary in compiled(implementation, problem, named_target("sm_80")):
        assert "PREEXIT" not in binary.sass
        assert "ACQBULK" not in binary.sass
    frozen = implementation.op.forms(problem)["frozen"]
    assert all("PREEXIT" not in b.sass for b in compiled(implementation, frozen, HOPPER))


@pytest.mark.parametrize(
    ("op", "name", "size"),
    [
        ("rms_norm_backward", "persistent", "n_rows"),
        ("silu_and_mul", "tiles", "N"),
        ("silu_and_mul_backward", "tiles", "N"),
        ("gelu", "tiles", "N"),
    ],
)
def test_sizes_just_below_32_bits_are_not_added_to(op, name, size):
    """`tl.cdiv` adds before it divides: of 2**31 - 1024, it makes a negative number of tiles."""
    implementation = registry.implementation(op, name)
    base = implementation.op.sized({"rows": 4096, "N": 1024}, "bfloat16")
    sliced = [p for label, p in layouts(implementation.op, base) if label.endswith("sliced")]
    assert sliced
    for problem in (base, *implementation.op.forms(base).values(), *sliced):
        if implementation.why_not(problem, HOPPER) is None:
            ttir = compiled(implementation, problem, HOPPER)[0].kernel.asm["ttir"]
            narrow = [
                line
                for line in ttir.splitlines()
                if re.search(rf"arith.addi .*%{size}\b.* : i32", line)
                and not re.search(rf"%{size}, %c-1_i32", line)
            ]
            assert not narrow, problem


def test_a_new_token_count_compiles_nothing():
    """Row and token counts are neither constants nor specialised: one binary serves them all."""
    for op, name, sizes in (
        ("rms_norm", "row", [{"rows": r, "N": 4096} for r in (1, 2, 17, 64)]),
        ("rms_norm", "multi_row", [{"rows": r, "N": 128} for r in (64, 1000, 4097)]),
        ("rms_norm_backward", "persistent", [{"rows": r, "N": 4096} for r in (1, 16, 17, 4096)]),
        ("rms_norm_backward", "strips", [{"rows": r, "N": 4096} for r in (64, 1000, 4097)]),
        ("silu_and_mul", "tiles", [{"rows": r, "N": 14336} for r in (1, 16, 17, 4096)]),
        ("silu_and_mul_backward", "tiles", [{"rows": r, "N": 768} for r in (16, 1000, 4097)]),
        ("gelu_and_mul", "tiles", [{"rows": r, "N": 14336} for r in (1, 16, 17)]),
        ("apply_rotary_pos_emb", "heads", [{"tokens": t, "pairs": 64} for t in (16, 17, 4096)]),
        ("partial_rotary_emb", "tiles", [{"tokens": t} for t in (16, 17, 4096)]),
        ("partial_rotary_emb_backward", "tokens", [{"tokens": t} for t in (16, 17, 4096)]),
        ("matmul", "tiled", [{"M": m, "N": 4096, "K": 4096} for m in (512, 1000, 1001)]),
        ("matmul", "persistent_tma", [{"M": m, "N": 4096, "K": 4096} for m in (512, 1000, 1001)]),
        ("matmul", "split_k", [{"M": m, "N": 4096, "K": 4096} for m in (17, 32, 31)]),
        ("matmul", "padded", [{"M": m, "N": 4096, "K": 4095} for m in (512, 1000, 1001)]),
    ):
        implementation = registry.implementation(op, name)
        problems = [implementation.op.sized(s, "bfloat16") for s in sizes]
        config = implementation.config(None, problems[-1], HOPPER).knobs
        binaries = [compiled(implementation, p, HOPPER, config) for p in problems]
        assert len({tuple(b.kernel.hash for b in each) for each in binaries}) == 1, name


@pytest.mark.parametrize(("label", "stride"), [("a-far-columns", "ak"), ("b-far-rows", "bk")])
def test_a_block_of_k_may_step_past_32_bits(label, stride):
    tiled = registry.implementation("matmul", "tiled")
    base = tiled.op.sized({"M": 72, "N": 256, "K": 256}, "bfloat16")
    problem = dict(layouts(tiled.op, base, far=True))[label]
    step = max(problem[label[0]].strides)
    block = tiled.config(None, problem, HOPPER)["BLOCK_K"]
    assert block < 256  # there is a second block
    assert block * step >= 2**31
    (binary,) = compiled(tiled, problem, HOPPER)
    ttir = binary.kernel.asm["ttir"]
    # What is computed from the stride: scalars, until one is multiplied by a block's columns.
    derived, products = {f"%stride_{stride}"}, []
    for line in ttir.splitlines():
        made = re.match(r"\s*(%[\w#]+)(?::\d+)? = ", line)
        if made and any(re.search(rf"{name}\b", line[made.end() :]) for name in derived):
            if re.search(r"= (arith\.(extsi|divsi|muli)|tt\.splat) ", line):
                derived.add(made[1])
            if "arith.muli" in line:
                products.append(line)
    # Rounded to a known multiple it is as it was, and no product of its own.
    products = [line for line in products if not re.search(r"arith\.muli %\w+, %c8_i32 ", line)]
    assert products
    assert all("i64" in line for line in products), products


def test_what_32_bit_counts_do_not_reach_is_refused():
    bad = [
        ("rms_norm", "row", {"rows": 2**31, "N": 1}),
        ("rms_norm", "multi_row", {"rows": 2**31, "N": 1}),
        ("rms_norm", "multi_row", {"rows": 2**31 - 1, "N": 1}),
        ("rms_norm_backward", "persistent", {"rows": 2**31, "N": 1}),
        ("silu_and_mul", "tiles", {"rows": 2**31, "N": 1}),
        ("silu_and_mul_backward", "tiles", {"rows": 2**31, "N": 1}),
        ("gelu_and_mul", "tiles", {"rows": 2**31, "N": 1}),
        ("apply_rotary_pos_emb", "heads", {"tokens": 2**31, "pairs": 1}),
        ("partial_rotary_emb", "tiles", {"tokens": 2**31, "pairs": 1}),
        ("matmul", "tiled", {"M": 2**31 - 1, "N": 1, "K": 1}),
        ("matmul", "gemv", {"M": 1, "N": 1, "K": 2**31 - 1}),
    ]
    for op, name, sizes in bad:
        implementation = registry.implementation(op, name)
        reason = implementation.why_not(implementation.op.sized(sizes, "bfloat16"), HOPPER)
        assert reason is not None, name
        assert str(2**31)[:5] in reason
