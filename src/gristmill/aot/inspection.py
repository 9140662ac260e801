"""What artifacts are made of, whether they are whole, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from gristmill.aot.artifact import damaged_files
from gristmill.aot.binaries import parameter_sizes
from gristmill.aot.loading import digest_of, module_source
from gristmill.aot.manifest import (
    MANIFEST_FILE,
    Argument,
    KernelEntry,
    Manifest,
    Parameter,
    Value,
    Variant,
)
from gristmill.errors import ArtifactError
from gristmill.record import record


class Specialised(Protocol):
    """A variant, compiled or not."""

    @property
    def arch(self) -> str: ...
    @property
    def arguments(self) -> tuple[Argument, ...]: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def options(self) -> Mapping[str, Value]: ...


def described(variant: Specialised, parameters: Sequence[Parameter]) -> str:
    """A specialisation in words: `sm_90 x:*fp16:16 n:i32 BLOCK=64 num_warps=4 num_stages=3`."""
    return f"{variant.arch} {without_arch(variant, parameters)}"


def without_arch(variant: Specialised, parameters: Sequence[Parameter]) -> str:
    """As `described`, for where the architecture stands beside it."""
    words = []
    for parameter, one in zip(parameters, variant.arguments, strict=True):
        if one.type == "constexpr":
            words.append(f"{parameter.name}={one.value!r}")
        else:
            words.append(f"{parameter.name}:{one.type}{':16' * one.divisible}")
    words += [f"num_warps={variant.num_warps}", f"num_stages={variant.num_stages}"]
    return " ".join([*words, *(f"{name}={value!r}" for name, value in variant.options.items())])


def binary_file(variant: Variant) -> str:
    """A variant's binary, relative to the artifact's folder."""
    return f"kernels/{variant.binary}.{'hsaco' if variant.arch.startswith('gfx') else 'cubin'}"


def faults(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with an artifact: files that are missing or changed, a manifest that is not the
    one that was built, kernels that their binaries do not have, and parameters that a binary takes
    in other sizes than it is passed."""
    found = [f"{name} is missing or changed" for name in damaged_files(folder, manifest)]
    found += _faults_of_manifest(folder, manifest)
    checked: dict[tuple[str, str, tuple[int, ...]], None] = {}
    for entry in manifest.kernels:
        for variant in entry.variants:
            sizes = tuple(slot.size for slot in variant.slots)
            checked[binary_file(variant), variant.symbol, sizes] = None
    for name, symbol, sizes in checked:
        if name not in manifest.files:
            found.append(f"{name} is in the manifest's variants, and not among its files")
            continue
        try:
            kernels = parameter_sizes((folder / name).read_bytes())
        except OSError:
            continue  # said above
        except ArtifactError as error:
            found.append(f"{name} is no binary: {error}")
            continue
        if symbol not in kernels:
            found.append(f"{name} has no kernel {symbol}; it has {', '.join(kernels) or 'none'}")
        elif list(sizes) != kernels[symbol]:
            found.append(
                f"{name}: {symbol} takes parameters of {kernels[symbol]} bytes; the manifest "
                f"passes {list(sizes)}"
            )
    return found


def _faults_of_manifest(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The manifest's digest is in the Python module's source, whose own the manifest has."""
    name = module_source(manifest)
    try:
        source = (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        if name not in manifest.files:
            yield f"{MANIFEST_FILE} cannot be held against {name}, which is not among its files"
        return  # else said before
    if f'"{digest_of(manifest)}"' not in source:
        yield f"{MANIFEST_FILE} is not the one that was built: its digest is not that in {name}"


@record
class Change:
    """A difference of two artifacts.

    Attributes:
        kind: `added`, `removed` or `changed`.
        what: `tool`, `kernel`, `operator`, `source`, `grid`, `choices`, `variant` or `binary`.
        name: of what; of a variant, the kernel's.
        detail: the specialisation, or what it was and what it is.
        before, after: bytes of a variant's binary.
    """

    kind: Literal["added", "removed", "changed"]
    what: str
    name: str
    detail: str = ""
    before: int | None = None
    after: int | None = None


def changes(first: Manifest, second: Manifest) -> list[Change]:
    """What is other in the second artifact than in the first."""
    found = list(_of_names("tool", first.tools, second.tools))
    operators = ({f.name: f for f in m.functions} for m in (first, second))
    found += _of_names("operator", *operators, detail=lambda _: "")
    old, new = ({k.name: k for k in m.kernels} for m in (first, second))
    found += (c for c in _of_names("kernel", old, new, detail=_summary) if c.kind != "changed")
    for name in old:
        if name in new:
            found += _of_kernel(old[name], new[name])
    return found


def _of_names(
    what: str, first: Mapping[str, Any], second: Mapping[str, Any], detail: Any = str
) -> Iterator[Change]:
    for name in sorted({*first, *second}):
        if name not in second:
            yield Change("removed", what, name, detail(first[name]))
        elif name not in first:
            yield Change("added", what, name, detail(second[name]))
        elif first[name] != second[name]:
            both = f"{detail(first[name])} -> {detail(second[name])}".strip(" ->")
            yield Change("changed", what, name, both)


def _summary(entry: KernelEntry) -> str:
    return f"{len(entry.variants)} variants"


def _of_kernel(first: KernelEntry, second: KernelEntry) -> Iterator[Change]:
    for what in ("source", "parameters", "grid", "choices"):
        if getattr(first, what) != getattr(second, what):
            yield Change("changed", what, first.name)
    old, new = ({described(v, e.parameters): v for v in e.variants} for e in (first, second))
    for text, variant in old.items():
        after = new.get(text)
        if after is None:
            size = variant.usage.size_bytes
            yield Change("removed", "variant", first.name, text, before=size)
        elif after.binary != variant.binary:
            sizes = variant.usage.size_bytes, after.usage.size_bytes
            detail = f"{text}{_usage_change(variant, after)}"
            yield Change("changed", "variant", first.name, detail, *sizes)
    for text, variant in new.items():
        if text not in old:
            size = variant.usage.size_bytes
            yield Change("added", "variant", first.name, text, after=size)


def _usage_change(first: Variant, second: Variant) -> str:
    pairs = (
        (word, getattr(first.usage, name), getattr(second.usage, name))
        for word, name in (
            ("registers", "registers"),
            ("spilled", "spill_bytes"),
            ("shared", "shared_bytes"),
        )
    )
    told = [f"{word} {before} -> {after}" for word, before, after in pairs if before != after]
    return f" ({', '.join(told)})" if told else ""


def size_bytes(manifest: Manifest) -> dict[str, int]:
    """Bytes of the different binaries of each architecture."""
    sizes: dict[str, dict[str, int]] = {}
    for entry in manifest.kernels:
        for variant in entry.variants:
            sizes.setdefault(variant.arch, {})[variant.binary] = variant.usage.size_bytes
    return {arch: sum(of.values()) for arch, of in sizes.items()}
