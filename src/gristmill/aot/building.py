"""From kernels with their specifications to an artifact."""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gristmill
from gristmill import settings
from gristmill.aot import grid, tuned, writing
from gristmill.aot.compiler import BINARIES, TASK, Answer, Compiler
from gristmill.aot.expand import Combination, Expansion
from gristmill.aot.functions import OpFunction
from gristmill.aot.manifest import Descriptor, KernelEntry, Manifest, Slot, Usage, Variant
from gristmill.aot.progress import bar
from gristmill.aot.request import request
from gristmill.aot.row_choice import complete
from gristmill.aot.signature import declared
from gristmill.aot.spec import Int
from gristmill.aot.specification import Specification, check_name
from gristmill.core.target import compile_target
from gristmill.errors import CompileError, IncompleteBuildError, InvalidInputError
from gristmill.record import record
from gristmill.tuners.arguments import CannotTravelError
from gristmill.tuners.travel import pack, source_digest
from gristmill.tuning.progress import counted

NAMED = 8  # failures that a message quotes
TIMEOUT_S = 600.0
NAMED_BY = "Pass such a `name=`, or on the command line a `--name`."
MAX_TIMEOUT_S = 1e6  # sockets take no infinite one


@record
class Failure:
    """A specialisation that did not compile, and the compiler's message."""

    kernel: str
    specialisation: str
    reason: str


@record
class BuildReport:
    """What a build made.

    Attributes:
        folder: the artifact.
        manifest: what it holds.
        failures: the specialisations that it lacks.
        compiled: specialisations that were compiled: variants whose signatures are the same count
            once.
        seconds: wall-clock time.
    """

    folder: Path
    manifest: Manifest
    failures: tuple[Failure, ...]
    compiled: int
    seconds: float

    @property
    def variants(self) -> int:
        """Variants that callers can select."""
        return sum(len(kernel.variants) for kernel in self.manifest.kernels)

    @property
    def binaries(self) -> int:
        """Different binaries behind them."""
        return len({v.binary for kernel in self.manifest.kernels for v in kernel.variants})


def build(
    out: str | os.PathLike[str],
    kernels: Specification | Sequence[Specification],
    targets: str | Sequence[str],
    *,
    jobs: int | None = None,
    strict: bool = True,
    timeout_s: float = TIMEOUT_S,
    name: str | None = None,
    functions: Sequence[OpFunction] = (),
) -> BuildReport:
    """Compile kernels for architectures, with no GPU, and write an artifact.

    Args:
        out: the artifact's folder. An artifact that is there is replaced.
        kernels: one or several, with their specifications.
        targets: architectures (`sm_90`, `gfx942`), one or several.
        jobs: processes that compile (default: the processors that this process may use).
        strict: raise where a specialisation does not compile, after the rest is written; else warn.
        timeout_s: seconds after which a compile is ended, at most a million.
        name: the artifact's name (default: its folder's).
        functions: operators whose calls launch these kernels (`op_kernels`).

    Raises:
        InvalidInputError: a specification, a target, a name or a number is not one.
        ArtifactError: the folder cannot be written to, or holds something else.
        IncompleteBuildError: a specialisation does not compile, and `strict`.
        CompileError: none does; nothing is written.
    """
    started = time.monotonic()
    listed = specifications(kernels)
    archs = _architectures(targets)
    _check(listed, archs, jobs, timeout_s)
    expansions = [Expansion(kernel, archs) for kernel in listed]
    name = Path(out).resolve().name if name is None else name
    check_name(name, "the artifact's name", NAMED_BY)
    place = writing.check_place(out)
    with tempfile.TemporaryDirectory(prefix="gristmill-aot-") as scratch:
        made = [
            _Made(Path(scratch, str(index)), expansion)
            for index, expansion in enumerate(expansions)
        ]
        with Compiler(Path(scratch), jobs or settings.cores(), timeout_s) as compiler:
            entries = [one.entry(compiler, archs) for one in made]
        entries = [entry for entry in entries if entry.variants]
        failures = tuple(failure for one in made for failure in one.failures)
        if not entries:
            raise CompileError(f"nothing was written: {_summary(failures)}")
        tools = _versions([one.tools for one in made])
        manifest = Manifest(name, tuple(entries), tools, functions=complete(functions, entries))
        manifest = writing.write(manifest, Path(scratch, BINARIES), place)
    compiled = sum(one.compiled for one in made)
    report = BuildReport(place, manifest, failures, compiled, time.monotonic() - started)
    if failures and strict:
        raise IncompleteBuildError(f"{_summary(failures)}\nThe rest is in {place}.", report)
    if failures:
        warnings.warn(_summary(failures), UserWarning, stacklevel=2)
    return report


def specifications(kernels: Any) -> list[Specification]:
    """One or several kernels as a list, checked: a kernel of Triton's is no specification.

    Raises:
        InvalidInputError: it is, or something else.
    """
    listed = list(kernels) if isinstance(kernels, (list, tuple)) else [kernels]
    for kernel in listed:
        if not isinstance(kernel, Specification):
            raise InvalidInputError(
                f"`kernels` has {type(kernel).__name__}; it takes `aot.Kernel`s. Write "
                "`aot.Kernel(function).spec(...)`."
            )
    return listed


def _architectures(targets: Any) -> list[str]:
    if not isinstance(targets, (str, list, tuple)):
        raise InvalidInputError(
            f"`targets` is {targets!r}; it needs an architecture or a list of them. Pass "
            '`["sm_90"]`, say.'
        )
    return list(dict.fromkeys([targets] if isinstance(targets, str) else targets))


def _check(
    kernels: Sequence[Specification], archs: Sequence[str], jobs: int | None, timeout_s: float
) -> None:
    if not kernels or not archs:
        raise InvalidInputError(
            f"there are {counted(len(kernels), 'kernel')} and {counted(len(archs), 'target')}; a "
            "build needs one of each. Pass them."
        )
    for arch in archs:
        compile_target(arch)
    names = [kernel.name for kernel in kernels]
    for name in {name for name in names if names.count(name) > 1}:
        raise InvalidInputError(
            f"two kernels are named {name!r}; each becomes a C function. Give one a `name=`."
        )
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise InvalidInputError(f"`jobs` is {jobs!r}; it needs a positive whole number. Pass one.")
    if type(timeout_s) not in (int, float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidInputError(
            f"`timeout_s` is {timeout_s!r}; it needs a positive number of seconds, at most "
            f"{MAX_TIMEOUT_S:,.0f}. Pass one."
        )


def _versions(found: Sequence[Mapping[str, set[str]]]) -> dict[str, str]:
    """The versions of the tools; a tool can have several, for different architectures."""
    names = sorted({name for tools in found for name in tools})
    versions = {name: set().union(*(tools.get(name, ()) for tools in found)) for name in names}
    return {"gristmill": gristmill.__version__} | {n: ", ".join(sorted(versions[n])) for n in names}


def _summary(failures: Sequence[Failure]) -> str:
    shown = [f"{f.kernel} [{f.specialisation}]: {f.reason}" for f in failures[:NAMED]]
    more = [f"and {len(failures) - NAMED} more"] if len(failures) > NAMED else []
    does = f"{counted(len(failures), 'specialisation')} did not compile:"
    return "\n".join([does, *shown, *more])


class _Made:
    """A kernel while it is built."""

    def __init__(self, folder: Path, expansion: Expansion) -> None:
        self.folder, self.expansion = folder, expansion
        self.failures: list[Failure] = []
        self.tools: dict[str, set[str]] = {}
        self.compiled = 0
        kernel, parameters = expansion.kernel, expansion.parameters
        integers = [p.name for p in parameters if p.kind in ("integer", "constexpr")]
        integers = [n for n in integers if _is_integer(n, expansion)]
        names = [*integers, "num_warps", "num_stages", "num_ctas"]
        self._grid = tuple(grid.to_c(text, names) for text in kernel.grid_text)
        self._choices = tuned.rows(kernel, parameters, expansion.combinations)
        tuned.warn_of_unused(kernel, expansion.combinations)
        try:
            self._task = {"function": pack(kernel.fn)}
            self._source = source_digest(kernel.fn)
        except CannotTravelError as error:
            raise InvalidInputError(
                f"the kernel {kernel.name} cannot be compiled in another process: {error}. Put it "
                "into a module that can be imported."
            ) from error

    def entry(self, compiler: Compiler, archs: Sequence[str]) -> KernelEntry:
        """Compile, and say what came of it."""
        kernel = self.expansion.kernel
        self.folder.mkdir()
        (self.folder.parent / BINARIES).mkdir(exist_ok=True)
        (self.folder / TASK).write_text(json.dumps({**self._task, "archs": archs}))
        answers = self._answers(compiler)
        variants = []
        for one, answer in zip(self.expansion.combinations, answers, strict=True):
            if answer.data is not None:
                variants.append(_variant(one, answer.data))
                for tool, version in answer.data["tools"].items():
                    self.tools.setdefault(tool, set()).add(version)
            else:
                text = one.text(self.expansion.parameters)
                self.failures.append(Failure(kernel.name, text, answer.reason + self._hint(one)))
        return KernelEntry(
            kernel.name,
            tuple(kernel.variables.items()),
            self.expansion.parameters,
            tuple(variants),
            self._source,
            self._grid,
            self._choices,
        )

    def _answers(self, compiler: Compiler) -> list[Answer]:
        """What came of each combination; those that ask for the same are compiled once."""
        declarations = declared(self.expansion.kernel.fn)
        asked: dict[str, int] = {}
        requests: list[dict[str, Any]] = []
        of = []
        for one in self.expansion.combinations:
            data = request(declarations, self.expansion.parameters, one)
            key = json.dumps(data, sort_keys=True)
            if key not in asked:
                asked[key] = len(requests)
                requests.append(data)
            of.append(asked[key])
        self.compiled = len(requests)
        found: dict[int, Answer] = {}
        with bar(self.expansion.kernel.name, len(requests)) as done:

            def told(index: int, answer: Answer) -> None:
                found[index] = answer
                done(answer.data is not None)

            compiler.compile(self.folder, requests, told)
        return [found[index] for index in of]

    def _hint(self, one: Combination) -> str:
        """What to do where only 64-bit integers are the matter."""
        wide = any(a.type == "i64" for a in one.arguments)
        given = self.expansion.kernel.given.values()
        if wide and any(isinstance(spec, Int) and spec.widths is None for spec in given):
            return " (without 64-bit integers: `aot.Int(..., widths=[32])`)"
        return ""


def _is_integer(name: str, expansion: Expansion) -> bool:
    parameter = next(p for p in expansion.parameters if p.name == name)
    return parameter.type in ("int", "bool")


def _variant(one: Combination, data: Mapping[str, Any]) -> Variant:
    return Variant(
        arch=one.arch,
        types=one.types,
        arguments=one.arguments,
        num_warps=one.num_warps,
        num_stages=one.num_stages,
        options=dict(one.options),
        binary=data["binary"],
        symbol=data["symbol"],
        threads=data["threads"],
        cluster=data["cluster"],
        cooperative=data["cooperative"],
        pdl=data["pdl"],
        scratch_bytes=data["scratch_bytes"],
        scratch_align=data["scratch_align"],
        slots=tuple(Slot(**slot) for slot in data["slots"]),
        usage=Usage(**data["usage"]),
        descriptors=tuple(
            Descriptor(**{**d, "block": tuple(d["block"])}) for d in data["descriptors"]
        ),
    )
