"""`@gristmill.autotune`: a drop-in for `@triton.autotune` that tunes in a worker, on copies, checks
what it measures and keeps it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime.autotuner import Autotuner as TritonAutotuner

from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Plan
from gristmill.core.space import Space
from gristmill.errors import InvalidInputError, UnsupportedProblemError
from gristmill.tuners import launching
from gristmill.tuners.answer import ALWAYS_S, Answer, answer
from gristmill.tuners.arguments import Arguments, describe
from gristmill.tuners.choices import Choices, keywords, told_apart, triton_config
from gristmill.tuners.task import KernelTask
from gristmill.tuners.travel import base_kernel, text_hash
from gristmill.tuners.trial import Hooks, Terms
from gristmill.tuners.truth import Reference, truth_of
from gristmill.tuning.timed import Effort

NO_DTYPE = frozenset({int, float, bool, str, type(None)})
LAUNCH_ONLY = ("grid", "warmup")  # what Triton adds to a call's keywords
US_PER_MS = 1e3


class Autotuner(TritonAutotuner):
    """A kernel with configs to choose from; made by `gristmill.autotune`.

    Called as `kernel[grid](...)`. It is a `triton.runtime.Autotuner`, so that torch.compile and
    `torch.library.wrap_triton` take it: under them Inductor chooses, among `configs`.

    Attributes:
        fn, base_fn, arg_names, keys, configs, cache: as in Triton. Of a declared space, `configs`
            has what was chosen in this process so far.
        best_config: the config of the last call.
        best_plan: why it was chosen; `None` where there was nothing to choose.
    """

    def __init__(
        self,
        fn: Any,
        configs: Sequence[triton.Config],
        key: Sequence[str],
        space: Space | None,
        terms: Terms,
        reference: Reference | None,
        effort: Effort,
        limits: Mapping[str, Any],
        **of_triton: Any,
    ) -> None:
        names = list(fn.arg_names)
        self.space: Space | None = None  # for `configs`, which Triton's constructor sets
        super().__init__(
            fn, names, configs, list(key), terms.reset_to_zero, terms.restore_value, **of_triton
        )
        if space is not None:
            self.configs = []
        self.space, self.terms, self.reference = space, terms, reference
        self._plans: dict[Any, Plan | None] = {}
        self._last: Any = None  # the key of the last call
        self.configs_timings: dict[triton.Config, list[float]] = {}
        self._effort, self._limits = effort, dict(limits)
        self._hooked = any(of_triton.get(name) for name in ("pre_hook", "post_hook", "do_bench"))
        self._slots = [(names.index(name), name) for name in self.keys]
        self._parameters = frozenset(names)
        self._dtypes: dict[Any, str] = {}
        self._keywords: dict[int, tuple[triton.Config, dict[str, Any]]] = {}
        self._waiting: dict[Any, tuple[float, triton.Config]] = {}
        self._lock = threading.RLock()
        self._per_device: bool | None = None

    @property
    def configs(self) -> list[triton.Config]:
        """The configs to choose from; of a declared space, those chosen so far.

        Raises:
            UnsupportedProblemError: nothing was chosen from the space yet (torch.compile asks).
        """
        if self.space is not None and not self._configs:
            raise UnsupportedProblemError(
                f"`{self.base_fn.__name__}` chooses from a `space`, and has not chosen yet; "
                "torch.compile needs configs. Call it once before, or give `configs`."
            )
        return self._configs

    @configs.setter
    def configs(self, configs: list[triton.Config]) -> None:
        self._configs = configs

    @property
    def best_plan(self) -> Plan | None:
        """Why the config of the last call was chosen, with its times."""
        return self._plans.get(self._last)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Launch with the config for these arguments; the first time that a key is seen, find it.

        Raises:
            TuningError: no config runs, or none gives right outputs.
        """
        key = self._call_key(args, kwargs)
        config = self.cache.get(key)
        if config is None:
            config = self._find(key, args, kwargs)
        self.best_config, self._last = config, key
        known = self._keywords.get(id(config))
        if known is None:
            known = self._keywords[id(config)] = (config, config.all_kwargs())
        added = known[1]
        if config.pre_hook is not None:
            config.pre_hook({**dict(zip(self.arg_names, args, strict=False)), **kwargs, **added})
        return self.fn.run(*args, **kwargs, **added)

    def warmup(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Compile every config that there would be to choose from (of a space: those chosen so far)
        without a launch; returns the compiled kernels."""
        return super().warmup(*args, **kwargs)

    def _call_key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """As in Triton: the values of `key`, and the dtype of every argument that has one; where
        there are several devices, the device."""
        count, dtypes, parameters = len(args), self._dtypes, self._parameters
        key = [
            args[i] if i < count else kwargs[name]
            for i, name in self._slots
            if i < count or name in kwargs
        ]
        for value in args:
            if type(value) not in NO_DTYPE:
                dtype = getattr(value, "dtype", None)
                if dtype is not None:
                    key.append(dtypes.get(dtype) or self._name(dtype))
        for name, value in kwargs.items():
            if name in parameters and type(value) not in NO_DTYPE:
                dtype = getattr(value, "dtype", None)
                if dtype is not None:
                    key.append(dtypes.get(dtype) or self._name(dtype))
        if self._per_device is not False:
            key += self._device_key(args, kwargs)
        return tuple(key)

    def _name(self, dtype: Any) -> str:
        return self._dtypes.setdefault(dtype, str(dtype))

    def _device_key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
        if self._per_device is None:
            self._per_device = torch.cuda.is_available() and torch.cuda.device_count() > 1
        return [str(launching.device_of((*args, *kwargs.values())))] if self._per_device else []

    def _find(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> triton.Config:
        """The config of a key that is not in the cache: kept or measured."""
        if kwargs.get("warmup"):  # nothing is launched: what it is compiled for has no memory
            return self.configs[0]
        with self._lock:
            if key in self.cache:
                return self.cache[key]
            until, waiting = self._waiting.get(key, (0.0, None))
            if waiting is not None and time.monotonic() < until:
                return waiting
            self.nargs = dict(zip(self.arg_names, args, strict=False))
            try:
                config, keep_s = self._chosen(key, args, kwargs)
            finally:
                self.nargs = None
            if keep_s == ALWAYS_S:
                self.cache[key] = config
                self._waiting.pop(key, None)
            else:
                self._waiting[key] = (time.monotonic() + keep_s, config)
            return config

    def _chosen(
        self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[triton.Config, float]:
        """The config of a key, and for how long to use it unasked."""
        listed = self._listed(kwargs)
        self._refuse_conflicts(kwargs, listed)
        if self.space is None and len(listed) == 1:
            return listed[0], ALWAYS_S
        by_label = told_apart(listed)
        space = self.space
        if space is None:
            space = Choices(map(keywords, by_label.values()), by_label)
        given = {name: v for name, v in kwargs.items() if name not in LAUNCH_ONLY}
        task = self._task(args, given, kwargs["grid"], space, by_label)
        start = time.time()
        found = answer(task, launching.device_of((*args, *given.values())), **self._limits)
        self.bench_time = time.time() - start
        self._plans[key] = found.plan
        self.configs_timings = {
            by_label[c.config]: [math.inf if o.device_us is None else o.device_us / US_PER_MS]
            for c, o in found.outcomes.items()
            if c.config in by_label
        }
        config = self._as_triton(found, space, by_label)
        self._tell_listener(key, config, measured=bool(found.outcomes))
        return config, found.keep_s

    def _tell_listener(self, key: Any, config: triton.Config, measured: bool) -> None:
        """Triton 3.9's `knobs.autotuning.listener`."""
        listener = getattr(knobs.autotuning, "listener", None)
        if listener is not None:
            listener(
                fn=base_kernel(self.fn),
                key=key,
                best_config=config,
                configs_timings=self.configs_timings,
                duration=self.bench_time if measured else None,
                cache_hit=not measured,
            )

    def _listed(self, kwargs: dict[str, Any]) -> list[triton.Config]:
        """The configs that are left to choose from, at least one; of a space, none."""
        if self.space is not None:
            return []
        if len(self._configs) == 1:  # as in Triton: not pruned
            return self._configs
        return list(self.prune_configs(kwargs)) or self._configs[:1]

    def _as_triton(
        self, found: Answer, space: Space, by_label: Mapping[Config, triton.Config]
    ) -> triton.Config:
        if self.space is None:
            return by_label[found.config]
        config = triton_config(self._added(space, found.config))
        if config in self._configs:
            return self._configs[self._configs.index(config)]
        self._configs.append(config)
        return config

    def _added(self, space: Space, config: Config) -> Mapping[str, Any]:
        """What a config adds to a launch; of a declared space, with the defaults of `triton.Config`
        (a backend's own may be others), as the call will have them."""
        values = launching.values_of(space, config, self.arg_names)
        return values if self.space is None else triton_config(values).all_kwargs()

    def _refuse_conflicts(self, kwargs: Mapping[str, Any], listed: Sequence[triton.Config]) -> None:
        """A value that a config sets cannot be given as well."""
        tuned = {name for config in listed for name in config.kwargs}
        if self.space is not None:
            tuned = {knob.name for knob in self.space.knobs}
        for name in sorted(tuned & kwargs.keys()):
            raise InvalidInputError(
                f"`{name}` is given in the call, and is what `{self.base_fn.__name__}` chooses. "
                "Leave it out of the call, or out of the configs."
            )

    def _task(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        grid: Any,
        space: Space,
        by_label: Mapping[Config, triton.Config],
    ) -> KernelTask:
        """This call as something to tune."""
        kernel, terms, reference = base_kernel(self.fn), self.terms, self.reference
        named = launching.named_arguments(kernel, args, kwargs)
        texts = [f"{name}={describe(named[name])}" for name in self.keys if name in named]
        dtypes = [f"{n}:{v.dtype}" for n, v in named.items() if hasattr(v, "dtype")]
        checked = f"check={terms.check},{terms.rtol},{terms.atol}"
        checked += f",{terms.outputs},{terms.reset_to_zero},{terms.restore_value}"
        checked += f",{launching.rules_hash(self.fn)}"
        checked += f",{text_hash(reference)}" if reference is not None else ""
        how = "interpreted" if type(kernel).__name__ == "InterpretedFunction" else "compiled"

        def truth() -> Mapping[str, torch.Tensor]:
            assert reference is not None
            return truth_of(reference, named, terms.outputs)

        return KernelTask(
            name=launching.store_name(kernel),
            key=",".join([*texts, *dtypes, checked, how]),
            function=kernel,
            arguments=Arguments.of(args, kwargs),
            problem=launching.problem_of(launching.store_name(kernel), named),
            space=space,
            resolve=launching.Launches(
                self.fn,
                args,
                kwargs,
                grid,
                lambda config: self._added(space, config),
            ),
            source_hash=launching.identity(kernel),
            terms=terms,
            effort=self._effort,
            hooks=self._hooks(by_label),
            make_truth=None if reference is None else truth,
        )

    def _hooks(self, by_label: Mapping[Config, triton.Config]) -> Hooks:
        """The user's functions around a launch; `reset_to_zero` and `restore_value` are none."""
        own = self.user_defined_pre_hook
        if not self._hooked and not any(c.pre_hook for c in by_label.values()):
            return Hooks()

        def before(candidate: Candidate, named: dict[str, Any]) -> None:
            config = by_label.get(candidate.config)
            if config is not None and config.pre_hook is not None:
                config.pre_hook(named)
            if own:
                self.pre_hook(named)

        def after(named: dict[str, Any], error: Exception | None) -> None:
            if self.user_defined_post_hook:
                self.post_hook(named, exception=error)

        return Hooks(before, after, self._do_bench)
