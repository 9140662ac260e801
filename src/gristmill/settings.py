"""Every setting of the library, in one frozen value; the only reader of the process environment."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gristmill.errors import InvalidInputError
from gristmill.record import record

TunePolicy = Literal["never", "now", "idle"]
StorePolicy = Literal["auto", "database", "shards"]
L2State = Literal["cold", "warm"]
PREFIX = "GRISTMILL_"
PACKS = Path(__file__).parent / "packs"


@record
class Settings:
    """What a user can set, and the environment variable that sets it.

    Attributes:
        cache_dir: folder of the plan store (`GRISTMILL_CACHE_DIR`; default: the platform's user
            cache).
        pack_dir: folder of the packs that stand below the plan store, a file a device
            (`GRISTMILL_PACK_DIR`; default: the packs that gristmill ships).
        lock_file: the lock file whose plans this process is frozen to (`GRISTMILL_LOCK_FILE`;
            default: none).
        tune: `get_op` tunes a problem that it has no plan for (`now`), nothing is tuned unasked
            (`never`), or whatever is called is tuned in the background while this process has
            nothing to do (`idle`; `GRISTMILL_TUNE=now|never|idle`).
        idle_budget_s: seconds that a process may tune in the background in all
            (`GRISTMILL_IDLE_BUDGET_S`).
        budget_s: seconds that one tuning run may take (`GRISTMILL_BUDGET_S`).
        candidate_timeout_s: seconds after which a candidate that does not answer is killed
            (`GRISTMILL_CANDIDATE_TIMEOUT_S`).
        growth_gb: gigabytes of host or of device memory by which a process that measures or
            compiles may grow before it is replaced (`GRISTMILL_GROWTH_GB`).
        compile_jobs: processes that compile candidates (`GRISTMILL_COMPILE_JOBS`; default: the
            cores, at most 16).
        progress: show a progress bar while tuning (`GRISTMILL_PROGRESS=0|1`; default: when stderr
            is a terminal).
        lock_dir: folder of the locks that keep two tuners from measuring on one device at once
            (`GRISTMILL_LOCK_DIR`; default: one of the user's in the temporary folder).
        store: whether the plan store is one SQLite file (`database`) or a folder of immutable
            shards (`shards`), which needs neither locks nor shared memory
            (`GRISTMILL_STORE=auto|database|shards`; default: `shards` on network file systems).
        native: whether calls go through a C module, which is compiled at its first use where there
            is a compiler (`GRISTMILL_NATIVE=0|1`).
        l2: what calls find in the device's L2 cache: nothing of theirs (`cold`: weights are larger
            than L2, or others run in between), or what the same call has just left there (`warm`).
            Each is measured for itself and has plans of its own (`GRISTMILL_L2=cold|warm`).
        interpret: Triton kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), so on CPU
            tensors too.
    """

    cache_dir: Path
    lock_dir: Path
    pack_dir: Path = PACKS
    lock_file: Path | None = None
    tune: TunePolicy = "now"
    budget_s: float = 60.0
    idle_budget_s: float = 600.0
    candidate_timeout_s: float = 30.0
    growth_gb: float = 4.0
    compile_jobs: int = 1
    progress: bool | None = None
    store: StorePolicy = "auto"
    native: bool = True
    l2: L2State = "cold"
    interpret: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        env = os.environ
        cache_dir = env.get("GRISTMILL_CACHE_DIR") or _user_cache_dir()
        progress = env.get("GRISTMILL_PROGRESS")
        lock_file = env.get("GRISTMILL_LOCK_FILE")
        return cls(
            cache_dir=Path(cache_dir).expanduser(),
            lock_dir=Path(env.get("GRISTMILL_LOCK_DIR") or _lock_dir()),
            pack_dir=Path(env.get("GRISTMILL_PACK_DIR") or PACKS).expanduser(),
            lock_file=Path(lock_file).expanduser() if lock_file else None,
            tune=_one_of(env, "GRISTMILL_TUNE", "now", TunePolicy),
            budget_s=_number(env, "GRISTMILL_BUDGET_S", 60.0),
            idle_budget_s=_number(env, "GRISTMILL_IDLE_BUDGET_S", 600.0),
            candidate_timeout_s=_number(env, "GRISTMILL_CANDIDATE_TIMEOUT_S", 30.0),
            growth_gb=_number(env, "GRISTMILL_GROWTH_GB", 4.0),
            compile_jobs=_count(env, "GRISTMILL_COMPILE_JOBS", min(16, cores())),
            progress=_switch("GRISTMILL_PROGRESS", progress),
            store=_one_of(env, "GRISTMILL_STORE", "auto", StorePolicy),
            native=_switch("GRISTMILL_NATIVE", env.get("GRISTMILL_NATIVE")) is not False,
            l2=_one_of(env, "GRISTMILL_L2", "cold", L2State),
            interpret=env.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"),
        )


def _one_of(env: os._Environ[str], name: str, default: str, allowed: Any) -> Any:
    value = env.get(name, default)
    if value not in get_args(allowed):
        choices = " or ".join(map(repr, get_args(allowed)))
        raise InvalidInputError(f"{name} is {value!r}; it can be {choices}. Set one of them.")
    return value


def _switch(name: str, text: str | None) -> bool | None:
    if text not in (None, "", "0", "1"):
        raise InvalidInputError(f"{name} is {text!r}; it can be 0 or 1. Set one, or unset it.")
    return None if not text else text == "1"


def _user_cache_dir() -> str:
    import platformdirs  # 2 ms that only the default costs

    return platformdirs.user_cache_dir("gristmill")


def _lock_dir() -> str:
    user = os.getuid() if hasattr(os, "getuid") else ""
    return str(Path(tempfile.gettempdir(), f"gristmill-{user}"))


def _number(env: os._Environ[str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise InvalidInputError(
            f"{name} is {text!r}; it needs a positive number. Set one, or unset it."
        )
    return value


def _count(env: os._Environ[str], name: str, default: int) -> int:
    value = _number(env, name, default)
    if value != int(value):
        raise InvalidInputError(f"{name} is {env[name]!r}; it needs a whole number. Round it.")
    return int(value)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_current: Settings | None = None


def unknown_variables() -> dict[str, str]:
    """Variables named like ours that nothing reads, each with the one that it resembles."""
    known = [
        f"{PREFIX}{field.name.upper()}" for field in fields(Settings) if field.name != "interpret"
    ]
    ours = (name for name in os.environ if name.startswith(PREFIX) and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), "") for name in ours}


def current() -> Settings:
    """The settings in force, read from the environment at the first use."""
    global _current
    if _current is None:
        _current = Settings.from_environment()
    return _current


@contextlib.contextmanager
def override(**changes: Any) -> Iterator[Settings]:
    """Run a block under changed settings (process-wide: for start-up code, tests and
    benchmarks)."""
    global _current
    before = current()
    _current = replace(before, **changes)
    try:
        yield _current
    finally:
        _current = before


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process of ours: this one's, with `changes`."""
    return {**os.environ, **changes}


def default_environment(**values: str) -> None:
    """Set variables that other libraries read from this process's environment, those that the user
    has not set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
