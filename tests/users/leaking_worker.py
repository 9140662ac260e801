"""A worker that keeps 64 MB of every trial."""

from __future__ import annotations

from gristmill.tuning.worker import Session, serve

LEAK_BYTES = 64 << 20
kept: list[bytearray] = []


class Leaking(Session):
    """Answers as the worker does, and leaks."""

    def answer(self, request):
        kept.append(bytearray(b"x") * LEAK_BYTES)
        return super().answer(request)


if __name__ == "__main__":
    serve(Leaking())
