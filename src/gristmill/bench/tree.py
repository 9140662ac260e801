"""The digest of gristmill's own sources, by which a result measured in a copy without git can be
checked against a commit.

    python -m gristmill.bench.tree          # of the files here
    python -m gristmill.bench.tree HEAD     # COMMIT:DIGEST of a commit, for --commit elsewhere

It is the SHA-256 of one line a file, `<SHA-256 of its bytes>  <path below src>`, in the order of
the paths, for every `src/gristmill/**/*.py`.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parents[1]


def digest(files: Mapping[str, bytes]) -> str:
    """The digest of files by path (`gristmill/core/op.py`)."""
    lines = [f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def of_folder(package: Path = PACKAGE) -> str:
    """The digest of the package as it lies here."""
    return digest(
        {
            f"gristmill/{path.relative_to(package).as_posix()}": path.read_bytes()
            for path in package.rglob("*.py")
        }
    )


def of_commit(commit: str, root: Path = ROOT) -> str:
    """The digest of the package in a commit.

    Raises:
        OSError, subprocess.SubprocessError: there is no git, or no such commit.
    """
    command = ["git", "archive", commit, "src/gristmill"]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        files: dict[str, bytes] = {}
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".py") else None
            if content is not None:
                files[member.name.removeprefix("src/")] = content.read()
    return digest(files)


def main() -> int:
    """Print the digest of the files here, or a commit with its digest."""
    if len(sys.argv) < 2:
        sys.stdout.write(f"{of_folder()}\n")
        return 0
    try:
        command = ["git", "rev-parse", "--verify", f"{sys.argv[1]}^{{commit}}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        commit = done.stdout.strip()
        sys.stdout.write(f"{commit}:{of_commit(commit)}\n")
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"no digest of {sys.argv[1]!r}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
