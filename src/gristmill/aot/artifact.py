"""Artifacts that are there: their manifests, and whether their files are those that were built."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gristmill.aot.manifest import MANIFEST_FILE, Manifest
from gristmill.aot.manifest_json import from_text
from gristmill.errors import ArtifactError


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of an artifact.

    Args:
        path: the artifact's folder, or its `manifest.json`.

    Raises:
        ArtifactError: it is missing, damaged, or of another schema version.
    """
    file = Path(path)
    file = file / MANIFEST_FILE if file.is_dir() else file
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ArtifactError(
            f"{file} cannot be read: {reason}. Pass the folder that `build` wrote."
        ) from None
    return from_text(text, str(file))


def damaged_files(folder: str | os.PathLike[str], manifest: Manifest) -> list[str]:
    """The files of an artifact that are missing, or are not those that were built."""
    found = []
    for name, digest in sorted(manifest.files.items()):
        try:
            data = Path(folder, name).read_bytes()
        except OSError:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            found.append(name)
    return found
