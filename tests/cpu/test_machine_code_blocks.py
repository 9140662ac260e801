"""The machine code on Hopper of rows that are held in two blocks."""

from __future__ import annotations

import re

from compiling import compiled
from gristmill.core import registry
from gristmill.core.target import named_target

HOPPER = named_target("sm_90")


def memory_operations(binary, name):
    """The machine code's instructions of this name, with their widths."""
    return re.findall(rf"\b{name}\b[.\w]*", binary.sass)


def resident(binary, config):
    """How many programs of this kernel a processor holds."""
    threads = config["num_warps"] * HOPPER.warp_size
    registers = -(-binary.registers // 8) * 8 * threads
    return min(65_536 // registers, HOPPER.shared_memory_bytes // (binary.shared_bytes + 1024))


def test_the_middle_of_rows_off_16_bytes_is_read_16_bytes_at_a_time():
    """Ahead of time too; of both edges a thread reads one value a tensor. The weight (`.EL`) is
    read once a program."""
    implementation = registry.implementation("rms_norm_backward", "persistent")
    problem = implementation.op.workload("odd-1023x4097").problem
    config = implementation.config(None, problem, HOPPER)
    binary = compiled(implementation, problem, HOPPER)[0]
    copies = memory_operations(binary, "LDGSTS")
    in_flight = 2 * (config["STAGES"] - 1)  # tiles before the loop, and two in it
    assert len(copies) == (in_flight + 2) * config["VALUES"] * 2 // 16
    assert all(".128" in copy for copy in copies)
    loads = [load for load in memory_operations(binary, "LDG") if ".EL" not in load]
    assert loads == ["LDG.E.U16"] * 2
    stores = [op for op in memory_operations(binary, "STG") if op != "STG.E"]  # the share: float32
    assert sorted(stores) == ["STG.E.128"] * (config["VALUES"] * 2 // 16) + ["STG.E.U16"]
    assert resident(binary, config) == config["PROGRAMS_PER_SM"] == 2
    whole = compiled(implementation, problem, HOPPER, whole_rows(config))[0]
    assert not memory_operations(whole, "LDGSTS")  # 2 bytes at a time, nothing ahead
    assert not any(".128" in op for op in memory_operations(whole, "STG"))


def whole_rows(config):
    """The same with one block a row, the weight not held."""
    without = {k: v for k, v in config.knobs.items() if k != "FIT"}
    return {**without, "EDGES": False, "PRELOAD": False, "STAGES": 1, "num_warps": 16}


def test_a_tail_leaves_room_for_a_second_program():
    implementation = registry.implementation("rms_norm_backward", "persistent")
    problem = implementation.op.workload("llama2-13b-m16384").problem
    config = implementation.config(None, problem, HOPPER)
    assert config["BLOCK_N"] == 5120
    binary = compiled(implementation, problem, HOPPER)[0]
    assert binary.spills == 0
    assert resident(binary, config) == config["PROGRAMS_PER_SM"] == 2
    copies = memory_operations(binary, "LDGSTS")
    assert copies
    assert sum(".128" in copy for copy in copies) * 2 == len(copies)  # the other half: the tail
