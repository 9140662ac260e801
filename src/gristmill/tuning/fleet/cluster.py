"""The devices of a Ray cluster as the sites of a fleet (extra `ray`).

The driver keeps the store, the strategies and the queue. A machine gets an actor for each device,
which hosts the usual worker, and one for its compilers: a binary is made where it is loaded. Its
versions and sources have to be the driver's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from gristmill.errors import TuningError
from gristmill.tuning.describe import unlike
from gristmill.tuning.fleet.actors import CompileHost, WorkerHost
from gristmill.tuning.fleet.joining import joined
from gristmill.tuning.fleet.remote import RemoteChild, RemoteSite
from gristmill.tuning.progress import counted

COMPILES = 256  # requests that a machine's compile actor takes at once; its server queues them

Say = Callable[[str], None]


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its id and name, and how many devices it offers."""

    identifier: str
    name: str
    devices: int


class RayFleet:
    """The sites of a cluster. Use as a context manager, which gives the sites."""

    def __init__(
        self,
        address: str,
        ops: Sequence[str],
        kind: str | None = None,
        say: Say = lambda text: None,
    ) -> None:
        """`address`: `HOST:PORT` of the cluster's head, `auto`, or `local`. `ops`: what will be
        tuned. `kind`: `cuda` or `cpu`; `None`: GPUs where the cluster has some. `say` is told why
        a machine is left out."""
        self.address, self._ops, self._kind, self._say = address, ops, kind, say
        self._stack = ExitStack()

    def __enter__(self) -> list[RemoteSite]:
        """Join the cluster and start a worker for each device.

        Raises:
            MissingExtraError, InvalidInputError, TuningError: as `joined`; no machine can be used.
        """
        with ExitStack() as stack:
            ray = stack.enter_context(joined(self.address))
            sites = self._sites(ray, stack)
            self._stack = stack.pop_all()
        return sites

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _sites(self, ray: Any, stack: ExitStack) -> list[RemoteSite]:
        nodes, kind = _nodes(ray, self._kind, self.address)
        waiters = ThreadPoolExecutor(sum(n.devices for n in nodes))
        stack.callback(waiters.shutdown, wait=False)
        asked: list[tuple[Node, RemoteSite, Future[dict[str, Any]]]] = []
        for node in nodes:
            compilers = Compilers(ray, node)
            stack.callback(compilers.stop)
            for index in range(node.devices):
                site = _site(ray, node, index, kind, compilers)
                stack.callback(site.close)  # ends the waiting too
                asked.append((node, site, waiters.submit(site.describe, self._ops)))
        return self._fitting(asked, len(nodes))

    def _fitting(
        self, asked: Sequence[tuple[Node, RemoteSite, Future[dict[str, Any]]]], nodes: int
    ) -> list[RemoteSite]:
        """The sites that can work for this process; why others of a machine cannot is said once."""
        sites: list[RemoteSite] = []
        refused: dict[tuple[str, str], str] = {}
        for node, site, future in asked:
            who = site.name
            try:
                facts = future.result()
                why = unlike(facts, self._ops)
                if why:
                    who, why = node.name, f"{why}. Install the same there"
            except TuningError as error:
                facts, why = {}, str(error)
            if not why:
                site.know(facts, node.devices)
                sites.append(site)
                continue
            site.close()
            if (node.identifier, why) not in refused:
                refused[node.identifier, why] = f"{who} is left out: {why}"
                self._say(refused[node.identifier, why])
        if not sites:
            raise TuningError(
                f"`ray` is {self.address!r}; of its {counted(nodes, 'machine')} none can be used "
                f"({'; '.join(refused.values())}). Mend one, or tune on this machine."
            )
        return sites


def _nodes(ray: Any, kind: str | None, address: str) -> tuple[list[Node], str]:
    """The machines with devices of the kind that is asked for, and the kind.

    Raises:
        TuningError: there are none.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in alive}
    kind = kind or ("cuda" if any(gpus.values()) else "cpu")
    nodes: list[Node] = []
    for node in alive:
        name, count = node["NodeManagerHostname"], gpus[node["NodeID"]] if kind == "cuda" else 1
        if any(n.name == name for n in nodes):
            name = f"{name}-{node['NodeID'][:6]}"
        if count:
            nodes.append(Node(node["NodeID"], name, count))
    if not nodes:
        raise TuningError(
            f"`ray` is {address!r}; of its {counted(len(alive), 'machine')} none offers a GPU. "
            "Start Ray where GPUs are (`ray start --num-gpus N`), or tune for CPUs with `--device "
            "cpu`."
        )
    return nodes, kind


def _options(ray: Any, node: Node, **options: Any) -> dict[str, Any]:
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        node_id=node.identifier, soft=False
    )
    return {"num_cpus": 0, "scheduling_strategy": there, **options}


class Compilers:
    """The compile actor of a machine, placed when it is first asked (on CPUs nothing compiles). Ray
    starts it again if it dies, and asks it again."""

    def __init__(self, ray: Any, node: Node) -> None:
        restarts = {"max_restarts": -1, "max_task_retries": -1}
        options = _options(ray, node, max_concurrency=COMPILES, **restarts)
        self._ray, self._placed = ray, ray.remote(CompileHost).options(**options)
        self._lock = threading.Lock()
        self._actor: Any = None

    def submit(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Start a compile there."""
        with self._lock:
            if self._actor is None:
                self._actor = self._placed.remote()
            return self._actor.compile.remote(dict(request)).future()

    def stop(self) -> None:
        """End the actor, and its server with it."""
        with self._lock:
            if self._actor is not None:
                self._ray.kill(self._actor)


def _site(ray: Any, node: Node, index: int, kind: str, compilers: Compilers) -> RemoteSite:
    """A device of a machine. Its actor is placed anew by `RemoteChild`, which then has to hold the
    device again; Ray restarts it never."""
    gpu = kind == "cuda"
    actor = ray.remote(WorkerHost).options(**_options(ray, node, num_gpus=int(gpu)))
    name = f"{node.name}/cuda:{index}" if gpu else f"{node.name}/cpu"
    # Ray shows an actor the one GPU that it gives it
    device = "cuda:0" if gpu else "cpu"
    return RemoteSite(RemoteChild(ray, name, actor.remote), name, device, compilers.submit)
