"""What a compiled kernel tells before it runs: whether it can be launched, and whether it spills so
much more than the fast ones that timing it is time lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gristmill.compile.executor import Binary
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.target import Target

MAX_THREADS = 1024  # of a program, on every GPU that Triton compiles for
REGISTERS = 65_536  # of a CUDA processor, all of which one program may have
REGISTER_STEP = 256  # a warp's are allocated in such pieces

FAST = 5  # of an implementation: the fastest, beside which a candidate's spills are held
SPILLS = 64  # words a thread that are never held against a candidate
TIMES = 4  # the most that one of the fast spills


def fitting(binaries: Sequence[Binary], target: Target) -> Outcome:
    """The outcome of launches that compile: `ok` with what the heaviest needs, or `compile_error`
    where the target does not have it."""
    shared = max((b.shared_bytes for b in binaries), default=0)
    registers = max((b.registers for b in binaries if b.registers is not None), default=None)
    # bytes, where a loaded kernel counts words
    spills = max((b.spills // 4 for b in binaries if b.spills is not None), default=None)
    found = Outcome("ok", registers=registers, spills=spills, shared_bytes=shared)
    if shared > target.shared_memory_bytes:
        limit = f"{target.name} has {target.shared_memory_bytes} a program"
        return _unfit(found, f"it needs {shared} bytes of shared memory; {limit}")
    for binary in binaries:
        threads = binary.num_warps * target.warp_size
        if threads > MAX_THREADS:
            return _unfit(found, f"it has {threads} threads; a program has {MAX_THREADS} at most")
        pieces = -(-(binary.registers or 0) * target.warp_size // REGISTER_STEP)
        held = pieces * REGISTER_STEP * binary.num_warps
        if target.vendor == "cuda" and held > REGISTERS:
            return _unfit(found, f"its program needs {held} registers; a processor has {REGISTERS}")
    return found


def _unfit(found: Outcome, reason: str) -> Outcome:
    return replace(found, status="compile_error", reason=reason)


def against_peers(
    candidate: Candidate, compiled: Outcome, outcomes: Mapping[Candidate, Outcome]
) -> Outcome:
    """What the compiler said of a candidate, or `slow`, with no time, where it spills heavily.

    Heavily is more than four times what any of the implementation's five fastest so far spills, and
    more than 64 words a thread: where all spill, or fewer were timed, all are timed.
    """
    if not compiled.ok or not compiled.spills:
        return compiled
    timed = [
        o
        for c, o in outcomes.items()
        if c.implementation == candidate.implementation and o.ok and o.spills is not None
    ]
    fast = sorted(timed, key=lambda o: o.time_us("graph"))[:FAST]
    if len(fast) < FAST:
        return compiled
    most = max(o.spills or 0 for o in fast)
    if compiled.spills <= max(SPILLS, TIMES * most):
        return compiled
    reason = (
        f"not timed: it spills {compiled.spills} words a thread, the {FAST} fastest at most {most}"
    )
    return replace(compiled, status="slow", reason=reason)
