"""Stands for the process that tunes: answers as the problem's text says."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gristmill.measure.isolation import connect


def main():
    """Answer until the parent goes away."""
    lines = connect()
    lines.send({"ready": True})
    while (request := lines.receive(None)) is not None:
        said = {
            "tuned": request["problem"] in ("tuned", "hangs"),
            "spent_s": request.get("spends_s", 0.5),
        }
        if request["problem"] == "dies":
            os._exit(3)
        if request["problem"] == "hangs" and not Path(request["unless"]).exists():
            time.sleep(3600)
        said |= {"nice": os.nice(0), "policy": os.sched_getscheduler(0), "pid": os.getpid()}
        lines.send({**said, "budget_s": request["budget_s"], "id": request["id"]})


if __name__ == "__main__":
    main()
