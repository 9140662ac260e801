"""A compile server whose compiles do what compilers do on a bad day: abort, swallow memory, or take
long; and one that leaks itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gristmill.core.plan import Outcome
from gristmill.measure.isolation import connect
from gristmill.tuning.compiler import Server

kept: list[bytearray] = []


class Failing(Server):
    """Compiles by the candidate's name."""

    def warm(self, request):
        if request["candidate"]["implementation"] == "leaks":
            kept.append(bytearray(b"x") * (200 << 20))

    def compile(self, request):
        name = request["candidate"]["implementation"]
        if name == "aborts":
            os.abort()
        while name == "waits" and not Path(os.environ["MAY_GO_ON"]).exists():
            time.sleep(0.01)
        if name == "swallows":
            swallowed = []
            while True:
                swallowed.append(bytearray(b"x") * (16 << 20))
                time.sleep(0.01)
        return Outcome("ok", registers=os.getppid())  # who served it


if __name__ == "__main__":
    Failing(connect()).run()
