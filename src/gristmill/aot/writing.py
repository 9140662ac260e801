"""Writes artifacts: a folder with binaries, what the writers of C and of the Python module add, and
the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

from gristmill.aot import c_artifact, py_module
from gristmill.aot.manifest import MANIFEST_FILE, Manifest
from gristmill.aot.manifest_json import to_text
from gristmill.errors import ArtifactError


def check_place(out: str | os.PathLike[str]) -> Path:
    """Where an artifact may be written: a new folder, an empty one, or an artifact to replace.

    Raises:
        ArtifactError: it is something else, or cannot be written to.
    """
    place = Path(out).resolve()
    if place.is_dir():
        known = _files_of_ours(place)
        others = (f for f in place.rglob("*") if f.is_file() or f.is_symlink())
        foreign = [f.relative_to(place).as_posix() for f in others]
        foreign = sorted(name for name in foreign if name not in known)
        if foreign:
            raise ArtifactError(
                f"{place} has {foreign[0]!r}, which no build wrote; only a new or empty folder, or "
                "an artifact, is written to. Name another folder, or remove the file."
            )
    elif place.exists():
        raise ArtifactError(f"{place} is a file; an artifact is a folder. Name another one.")
    _remove(_draft(place))
    return place


def _files_of_ours(folder: Path) -> set[str]:
    """What a build wrote in a folder, by the manifest there, of whatever schema."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {MANIFEST_FILE, *files}


def write(manifest: Manifest, binaries: Path, place: Path) -> Manifest:
    """Write an artifact, whole or not at all; one that is there is replaced.

    Args:
        manifest: what it is; `files` is filled in here.
        binaries: the folder with the binaries, by their names in `kernels`.
        place: from `check_place`.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    draft = _draft(place)
    try:
        shutil.copytree(binaries, draft / "kernels")
        c_artifact.write(manifest, draft)
        py_module.write(manifest, draft)
        files = {
            file.relative_to(draft).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(draft.rglob("*"))
            if file.is_file()
        }
        whole = dataclasses.replace(manifest, files=files)  # type: ignore[type-var]
        (draft / MANIFEST_FILE).write_text(to_text(whole), encoding="utf-8")
        _put(draft, place)
    except OSError as error:
        raise _not_writable(place, error) from error
    finally:
        _remove(draft)
    return whole


def _draft(place: Path) -> Path:
    """A new folder beside `place`, with the rights that the user's other folders get."""
    draft = place.parent / f".{place.name}.{uuid.uuid4().hex[:12]}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
    except OSError as error:
        raise _not_writable(place, error) from error
    return draft


def _put(draft: Path, place: Path) -> None:
    """Rename a draft to its place; what was there comes back if that fails."""
    if not place.exists():
        draft.rename(place)
        return
    old = draft.with_name(f"{draft.name}.old")
    place.rename(old)
    try:
        draft.rename(place)
    except OSError:
        old.rename(place)
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _not_writable(place: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"the artifact cannot be written to {place}: {error.strerror or error}. Name a folder that "
        "you may write to."
    )
