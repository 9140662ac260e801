"""Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), kept to valid and unseen
configs."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

from gristmill.core.config import Config, Value
from gristmill.core.plan import Outcome
from gristmill.errors import MissingExtraError
from gristmill.tuning.strategies._learner import Learner

FIRST = 10  # told, before it is Optuna that proposes
TRIES = 8  # of Optuna's for each config, until one is valid and unseen
FAILED = 1e12  # the goal of a failure: Optuna ranks, so any number beyond all times


class Optuna(Learner):
    """Proposes what Optuna samples.

    Its constraints are soft and it samples what it had before, so a proposal that is not valid, or
    was seen, is drawn again, and after some tries chance takes its place. Every knob is a
    categorical: with ordered ones TPE reaches .66 of the optimum in 50 evaluations where
    categorical ones reach .83.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError(
                "`strategy` is 'optuna', which is not installed. Install `gristmill[tune]`, or ask "
                "for 'portfolio'."
            ) from error
        self._optuna = optuna
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is no news
        try:
            with warnings.catch_warnings():  # constant_liar may change, it says: so may we
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(
                    seed=self.seed,
                    n_startup_trials=0,
                    constant_liar=True,
                    multivariate=True,
                    group=True,
                )
            self._study = optuna.create_study(sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._asked: dict[Config, Any] = {}  # trials of Optuna's, without an outcome
        # Told, and not yet to Optuna: the knobs are the pool's, which a space may have no point for
        # and which takes up to a second, so it is for the first `ask` to make it.
        self._untold: list[Config] = []

    @cached_property
    def _spaces(self) -> dict[str, Any]:
        """Of each knob, its values' numbers."""
        categorical = self._optuna.distributions.CategoricalDistribution
        return {knob.name: categorical(range(len(knob.values))) for knob in self.pool.knobs}

    def ask(self, count: int) -> list[Config]:
        new: list[Config] = []
        if len(self.times) >= FIRST:
            self._tell_rest()
            for _ in range(TRIES * count):
                if len(new) == count:
                    break
                new += self._sampled()
        if len(new) == count:
            return new
        return new + self.any_of(self.unseen(), count - len(new))

    def tell(self, config: Config, outcome: Outcome) -> None:
        super().tell(config, outcome)
        trial = self._asked.pop(config, None)
        if trial is not None:
            self._study.tell(trial, self._goal(config))
        else:
            self._untold.append(config)

    def _goal(self, config: Config) -> float:
        us = self.times[config]
        return us if us < float("inf") else FAILED

    def _tell_rest(self) -> None:
        """Tell Optuna of what it did not ask for."""
        values = {knob.name: knob.values for knob in self.pool.knobs}
        for config in self._untold:
            known = {name: value for name, value in config.knobs.items() if name in values}
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params={n: values[n].index(v) for n, v in known.items()},
                    distributions={n: self._spaces[n] for n in known},
                    value=self._goal(config),
                    state=self._optuna.trial.TrialState.COMPLETE,
                )
            )
        self._untold.clear()

    def _sampled(self) -> list[Config]:
        """A config of Optuna's, marked as seen; or none, where what it drew is of no use."""
        trial = self._study.ask()
        values: dict[str, Value] = {}
        for knob in self.pool.knobs:  # one that is not active is not asked for
            if knob.active is None or knob.active(values, self.problem, self.target):
                values[knob.name] = knob.values[
                    trial.suggest_categorical(knob.name, range(len(knob.values)))
                ]
        config = self.pool.changed(Config(values), {})
        if config is None or config in self.seen:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            return []
        self._asked[config] = trial
        return self.take([config])
