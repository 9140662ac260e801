"""Compile kernels ahead of time, with no GPU: to C, and to wheels that need no Triton.

gristmill aot build spec.py --target sm_80 --target sm_90 --out out/add
gristmill aot inspect out/add
gristmill aot verify out/add
gristmill aot diff out/before out/after
gristmill aot wheel rms_norm silu_and_mul --target sm_90 --out wheels/norms --name norms
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from gristmill import aot
from gristmill.aot.inspection import binary_file, changes, faults, size_bytes, without_arch
from gristmill.cli.options import Json
from gristmill.cli.output import console, print_json, table
from gristmill.errors import GristmillError, IncompleteBuildError, InvalidInputError

app = typer.Typer(no_args_is_help=True, add_completion=False)

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", "-t", metavar="ARCH", help="An architecture (sm_90, gfx942); may be repeated."
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="PATH", help="An artifact's folder.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", min=1, help="Processes that compile.", show_default="one a processor"
    ),
]


@app.command(
    help="Compile what a specification file has: a Python file whose variables are aot.Kernel "
    "values, names of operators (OPS = [...]), and TARGETS where --target is not given. Exit code "
    "1 where a specialisation does not compile; the rest is written."
)
def build(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The specification file.")],
    target: Targets = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="The artifact's folder.",
            show_default="out/<the specification's folder>",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="The artifact's name, which C's functions and files begin with.",
            show_default="its folder's",
        ),
    ] = None,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    named = _run(spec)
    kernels = [v for v in named.values() if isinstance(v, aot.Kernel)]
    kernels += (
        k for v in named.values() if isinstance(v, (list, tuple)) for k in v if _is_kernel(k)
    )
    kernels = list({id(kernel): kernel for kernel in kernels}.values())
    ops = _listed(named.get("OPS", ()))
    targets = target or _listed(named.get("TARGETS", ()))
    if not targets:
        raise InvalidInputError(
            f"no architecture is named: there is no `--target`, and {spec} has no TARGETS. Add "
            "`--target sm_90`."
        )
    if not kernels and not ops:
        raise InvalidInputError(
            f"{spec} has no kernel: none of its variables is an `aot.Kernel`, and it has no OPS. "
            "Assign one."
        )
    folder = Path("out", spec.resolve().parent.name) if out is None else out
    failed = None
    try:
        if ops:
            report = aot.build_ops(folder, ops, targets, kernels=kernels, jobs=jobs, name=name)
        else:
            report = aot.build(folder, kernels, targets, jobs=jobs, name=name)
    except IncompleteBuildError as error:
        if not as_json:
            raise
        report = failed = error.report
    if as_json:
        print_json(_report(report))
    else:
        _print_report(report)
    if failed is not None:
        raise typer.Exit(1)


@app.command("inspect", help="Show each specialisation: registers, spilled and shared bytes, size.")
def inspect_(
    path: Artifact,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="ARCH", help="Only this architecture's.")
    ] = None,
    as_json: Json = False,
) -> None:
    manifest = aot.read_manifest(path)
    rows = list(_rows(manifest, arch))
    if not rows:
        known = ", ".join(size_bytes(manifest))
        raise InvalidInputError(f"`--arch` is {arch!r}; {path} has {known}. Choose one.")
    if as_json:
        operators = {f.name: sum(len(form.rows) for form in f.forms) for f in manifest.functions}
        data = {"name": manifest.name, "tools": manifest.tools, "variants": rows}
        print_json({**data, "operators": operators, "size_bytes": size_bytes(manifest)})
        return
    right = ("registers", "spilled", "shared", "bytes")
    shown = table("kernel", "arch", *right, "specialisation", right=right)
    for row in rows:
        cells = (row["registers"], row["spill_bytes"], row["shared_bytes"], row["size_bytes"])
        numbers = ("" if n is None else f"{n:,}" for n in cells)
        shown.add_row(row["kernel"], row["arch"], *numbers, escape(row["specialisation"]))
    out = console()
    out.print(shown)
    for function in manifest.functions:
        count = sum(len(form.rows) for form in function.forms)
        out.print(f"operator {function.name}: {count} rows of sizes and architectures")
    out.print(f"{escape(str(path))}: {_sizes(manifest)}", soft_wrap=True)


@app.command(
    help="Check an artifact: its files' checksums, the kernels in its binaries, and the sizes of "
    "their parameters. Exit code 1 where something is wrong."
)
def verify(path: Artifact, as_json: Json = False) -> None:
    manifest = aot.read_manifest(path)
    found = faults(path if path.is_dir() else path.parent, manifest)
    if as_json:
        print_json({"ok": not found, "faults": found, "files": len(manifest.files)})
    else:
        out = console()
        for fault in found:
            out.print(f"[red]{escape(fault)}[/]", soft_wrap=True)
        variants = sum(len(entry.variants) for entry in manifest.kernels)
        if not found:
            out.print(f"{len(manifest.files)} files and {variants} variants are as they were built")
    if found:
        raise typer.Exit(1)


@app.command(help="Show how two artifacts differ; exit code 1 where they do.")
def diff(first: Artifact, second: Artifact, as_json: Json = False) -> None:
    one, other = aot.read_manifest(first), aot.read_manifest(second)
    found = changes(one, other)
    if as_json:
        names = ("kind", "what", "name", "detail", "before", "after")
        listed = [{name: getattr(change, name) for name in names} for change in found]
        sizes = [size_bytes(one), size_bytes(other)]
        print_json({"differ": bool(found), "changes": listed, "size_bytes": sizes})
    elif not found:
        console().print("the same kernels")
    else:
        rows = table("", "what", "name", "bytes", "bytes ", "detail", right=("bytes", "bytes "))
        for c in found:
            sizes_ = ("" if n is None else f"{n:,}" for n in (c.before, c.after))
            rows.add_row(c.kind, c.what, escape(c.name), *sizes_, escape(c.detail))
        out = console()
        out.print(rows)
        out.print(f"first: {_sizes(one)}; second: {_sizes(other)}", soft_wrap=True)
    if found:
        raise typer.Exit(1)


@app.command(
    help="Write a project that installs operators as torch.ops.<namespace>.<operator>, with no "
    "Triton. A source is an operator's name, or an artifact's folder."
)
def wheel(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Operators, or artifacts' folders.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The project's folder.")],
    name: Annotated[str, typer.Option("--name", help="The project's and the package's name.")],
    target: Targets = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="In torch.ops.", show_default="the name")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="The project's.")] = "0.1.0",
    plans: Annotated[
        Path | None,
        typer.Option(
            "--plans",
            metavar="FILE",
            help="A pack or a lock file to take the operators' plans from.",
            show_default="the plan store, and the shipped packs",
        ),
    ] = None,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    made = aot.wheel(
        sources,
        out,
        name=name,
        namespace=namespace,
        version=version,
        targets=target or (),
        jobs=jobs,
        plans=plans,
    )
    files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    if as_json:
        print_json({"folder": str(made), "name": name, "files": files})
    else:
        console().print(
            f"{escape(str(made))}: {len(files)} files; `pip install {escape(str(made))}` builds it",
            soft_wrap=True,
        )


def _run(spec: Path) -> dict[str, Any]:
    """A specification file's variables; it imports what lies beside it."""
    if not spec.is_file():
        raise InvalidInputError(
            f"there is no file {str(spec)!r}. Name a Python file that specifies kernels with "
            "`gristmill.aot`."
        )
    folder = str(spec.resolve().parent)
    sys.path.insert(0, folder)
    try:
        found = runpy.run_path(str(spec), run_name=spec.stem)
    except GristmillError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"running {str(spec)!r} raised {type(error).__name__}: {error}. Mend the file."
        ) from error
    finally:
        sys.path.remove(folder)
    return {name: value for name, value in found.items() if not name.startswith("_")}


def _listed(value: Any) -> list[Any]:
    """One value or several."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_kernel(value: Any) -> bool:
    return isinstance(value, aot.Kernel)


def _report(report: Any) -> dict[str, Any]:
    return {
        "folder": str(report.folder),
        "name": report.manifest.name,
        "kernels": [entry.name for entry in report.manifest.kernels],
        "operators": [function.name for function in report.manifest.functions],
        "variants": report.variants,
        "binaries": report.binaries,
        "compiled": report.compiled,
        "seconds": report.seconds,
        "size_bytes": size_bytes(report.manifest),
        "failures": [
            {"kernel": f.kernel, "specialisation": f.specialisation, "reason": f.reason}
            for f in report.failures
        ],
    }


def _print_report(report: Any) -> None:
    console().print(
        f"{escape(str(report.folder))}: {report.variants} variants, {report.binaries} binaries "
        f"({_sizes(report.manifest)}) in {report.seconds:.1f} s",
        soft_wrap=True,
    )


def _sizes(manifest: aot.Manifest) -> str:
    return ", ".join(
        f"{arch} {size / 1024:,.0f} KiB" for arch, size in size_bytes(manifest).items()
    )


def _rows(manifest: aot.Manifest, arch: str | None) -> Iterator[dict[str, Any]]:
    for entry in manifest.kernels:
        for variant in entry.variants:
            if arch in (None, variant.arch):
                usage = variant.usage
                yield {
                    "kernel": entry.name,
                    "arch": variant.arch,
                    "specialisation": without_arch(variant, entry.parameters),
                    "registers": usage.registers,
                    "spill_bytes": usage.spill_bytes,
                    "shared_bytes": usage.shared_bytes,
                    "size_bytes": usage.size_bytes,
                    "file": binary_file(variant),
                }
