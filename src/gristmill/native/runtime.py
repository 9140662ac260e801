"""The C runtime of artifacts: headers of static functions, so that any number of artifacts link
into one program, with no header or library of a driver needed to build them.

`types.h` is what callers see; `launch.h` includes all the rest.
"""

from __future__ import annotations

import re
from importlib import resources

PUBLIC = "types.h"
HEADERS = (
    PUBLIC,
    "support.h",
    "tables.h",
    "cuda_types.h",
    "driver.h",
    "place.h",
    "load.h",
    "pack.h",
    "select.h",
    "grid.h",
    "launch.h",
)


def header(name: str) -> str:
    """The text of a header of the runtime."""
    return resources.files("gristmill.native").joinpath(name).read_text(encoding="utf-8")


def _elements() -> dict[str, int]:
    (block,) = re.findall(
        r"^enum gristmill_element \{(.*?)^\};", header(PUBLIC), re.MULTILINE | re.DOTALL
    )
    return {name.lower(): int(code) for name, code in re.findall(r"GRISTMILL_(\w+) = (\d+)", block)}


ELEMENTS = _elements()
"""Codes of element types by Triton's names; `none` is 0."""
