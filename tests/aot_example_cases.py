"""The examples of ahead-of-time compilation, built by the command line; and copies of artifacts
whose binaries the fake driver takes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from aot_cases import EXAMPLES
from gristmill.aot import writing
from gristmill.aot.artifact import read_manifest
from gristmill.aot.inspection import binary_file

SOURCE = Path(__file__).parents[1] / "src"


def built(example, out, *targets):
    """What `gristmill aot build` says of an example."""
    command = [sys.executable, "-m", "gristmill", "aot", "build", EXAMPLES / example / "spec.py"]
    command += [word for target in targets for word in ("--target", target)]
    done = subprocess.run(
        [*map(str, command), "--out", str(out), "--json"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def for_fake_driver(artifact, folder):
    """A copy of an artifact, with a text in place of each binary that has its symbol and the sizes
    of its parameters; returns the manifest."""
    manifest = read_manifest(artifact)
    entries = []
    laid_out = folder.parent / f"{folder.name}-laid-out"
    (laid_out / "kernels").mkdir(parents=True)
    for entry in manifest.kernels:
        variants = []
        for variant in entry.variants:
            sizes = " ".join(str(slot.size) for slot in variant.slots)
            data = f"FAKE {variant.symbol} {sizes}\n# {variant.binary}\n\0".encode()
            name = hashlib.sha256(data).hexdigest()
            variants.append(dataclasses.replace(variant, binary=name))
            (laid_out / binary_file(variants[-1])).write_bytes(data)
        entries.append(dataclasses.replace(entry, variants=tuple(variants)))
    faked = dataclasses.replace(manifest, kernels=tuple(entries))
    return writing.write(faked, laid_out / "kernels", writing.check_place(folder))
