"""Records behave like frozen dataclasses, and cost a start nothing that is not used."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from functools import cached_property

import pytest
import torch

from gristmill import settings
from gristmill.bench.kept_plan import kept_plan
from gristmill.core.registry import load
from gristmill.record import record


class Fields:
    """What both kinds of class are made from."""

    a: int
    b: tuple[int, ...]
    c: str = "c"
    d: dict[str, int] = dataclasses.field(default_factory=dict)

    def total(self):
        return self.a + sum(self.b)


def body():
    return {k: v for k, v in vars(Fields).items() if k not in ("__dict__", "__weakref__")}


@record
class Point:
    """A record that pickle finds by its name."""

    x: int
    y: float = 0.5


@record(eq=False, slots=False)
class Loose:
    """A record with a `__dict__`, whose construction ends with a check."""

    x: int

    def __post_init__(self):
        if self.x < 0:
            raise ValueError(f"x is {self.x}")

    @cached_property
    def twice(self):
        return 2 * self.x


KINDS = {
    "record": record,
    "dataclass": dataclasses.dataclass(frozen=True, slots=True),
}


@pytest.fixture(params=KINDS)
def made(request):
    """The same class of either kind: what is said of records holds of dataclasses too."""
    return KINDS[request.param](type("Made", (), body()))


def test_arguments_and_defaults(made):
    one, two = made(1, (2,)), made(b=(2,), a=1, d={"k": 1})
    assert (one.a, one.b, one.c, one.d, one.total()) == (1, (2,), "c", {}, 3)
    assert two.d == {"k": 1}
    assert made(1, (2,)).d is not one.d
    assert list(inspect.signature(made).parameters) == ["a", "b", "c", "d"]
    for wrong in ((), (1,), (1, (), "c", {}, 5)):
        with pytest.raises(TypeError, match=r"Made\.__init__\(\)"):
            made(*wrong)
    with pytest.raises(TypeError, match="unexpected keyword"):
        made(1, (), e=1)


def test_equality_hash_and_text(made):
    other = KINDS["record"](type("Made", (), body()))
    assert made(1, (2,)) == made(1, (2,))
    assert made(1, (2,)) != made(1, (3,))
    assert made(1, (2,)) != other(1, (2,))
    assert made(1, (2,)) != (1, (2,), "c", {})
    assert repr(made(1, (2,))) == "Made(a=1, b=(2,), c='c', d={})"
    with pytest.raises(TypeError, match="unhashable"):
        hash(made(1, (2,)))  # because of the dictionary in it
    assert len({Point(1), Point(1, 0.5), Point(2)}) == 2
    assert hash(Point(1)) == hash((1, 0.5))


def test_it_is_frozen_and_has_slots(made):
    one = made(1, (2,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.a = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.a
    assert one.a == 1
    assert not hasattr(one, "__dict__")


def test_functions_of_dataclasses_take_it(made):
    one = made(1, (2,))
    assert dataclasses.is_dataclass(made)
    assert [f.name for f in dataclasses.fields(one)] == ["a", "b", "c", "d"]
    assert dataclasses.asdict(one) == {"a": 1, "b": (2,), "c": "c", "d": {}}
    assert dataclasses.replace(one, a=5, c="x") == made(5, (2,), "x")
    with pytest.raises(TypeError):
        dataclasses.replace(one, e=1)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies_and_pickles_are_equal(again):
    assert again(Point(3)) == Point(3)
    assert again(Loose(3)).twice == 6


def test_without_slots_what_is_cached_stays_and_without_eq_each_is_itself():
    one = Loose(2)
    assert one.twice == 4
    assert one.__dict__ == {"x": 2, "twice": 4}
    assert one != Loose(2)
    assert len({one, Loose(2)}) == 2
    with pytest.raises(ValueError, match="x is -1"):
        dataclasses.replace(one, x=-1)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"`Loose\.x`.*replace"):
        one.x = 3


def test_a_tensor_in_it_is_compared_by_identity_first():
    values = record(type("Values", (), {"__annotations__": {"tensor": "object"}}))
    tensor = torch.ones(2)
    assert values(tensor) == values(tensor)


@pytest.mark.parametrize(
    "option",
    [
        {"compare": False},
        {"repr": False},
        {"init": False},
        {"kw_only": True},
        {"hash": True},
        {"default": []},
        {"annotation": "ClassVar[int]"},
        {"annotation": "dataclasses.InitVar[int]"},
        {"annotation": "KW_ONLY"},
    ],
)
def test_options_that_records_do_not_have_are_refused(option):
    kind = option.pop("annotation", "int")
    field = dataclasses.field(**{"default": 1, **option})
    with pytest.raises(TypeError, match=r"field 'x' of the record Odd.*Make the class a dataclass"):
        record(type("Odd", (), {"__annotations__": {"x": kind}, "x": field}))


def test_what_dataclasses_asks_is_made_when_it_asks():
    made = record(type("Made", (), body()))
    made(1, ()).total()
    assert "_LateFields" in repr(vars(made)["__dataclass_fields__"])
    fields = dataclasses.fields(made)
    assert [(f.name, f.type) for f in fields] == list(Fields.__annotations__.items())
    assert vars(made)["__dataclass_fields__"] == {f.name: f for f in fields}
    assert made.__match_args__ == ("a", "b", "c", "d")


def test_methods_are_generated_when_they_are_looked_up():
    made = record(type("Made", (), body()))
    late = {
        name
        for name in ("__init__", "__eq__", "__hash__")
        if not inspect.isfunction(vars(made)[name])
    }
    assert late == {"__init__", "__eq__", "__hash__"}
    made(1, ())
    assert inspect.isfunction(vars(made)["__init__"])
    assert not inspect.isfunction(vars(made)["__eq__"])


# For whom `dataclasses` compiles methods while a cached `get_op` starts, whatever kernel it names.
_WATCHED_START = """
import dataclasses, json, sys, torch, triton
x, weight = torch.ones(4, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16)
modules = []
def watch(event, args):
    if event != "exec":
        return
    caller = frame = sys._getframe(1)
    while frame.f_globals["__name__"] == "dataclasses":
        frame = frame.f_back
    if frame is not caller:
        modules.append(frame.f_globals["__name__"])
sys.addaudithook(watch)
import gristmill as gm
from gristmill.core.registry import implementations, op_names
op = gm.get_op("rms_norm", (x, weight), tune="never")
for name in op_names():
    implementations(name)
dataclasses.dataclass(type("Seen", (), {"__annotations__": {"x": "int"}}))  # the watch works
print(json.dumps([op.plan.origin, sorted(set(modules))]))
"""


def test_a_cached_get_op_meets_no_dataclass_of_ours(tmp_path):
    """A frozen dataclass in a file that every start imports costs each of them 0.4 ms. Make it a
    `record`, or import the file where it is used."""
    problem = load("rms_norm").sized({"rows": 4, "N": 64}, "bfloat16")
    with kept_plan(problem, "aten", torch.device("cpu")):
        environment = settings.child_environment(
            GRISTMILL_CACHE_DIR=str(settings.current().cache_dir)
        )
        done = subprocess.run(
            [sys.executable, "-c", _WATCHED_START],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    origin, modules = json.loads(done.stdout.splitlines()[-1])
    assert origin == "tuned"
    assert "__main__" in modules
    assert [name for name in modules if name.startswith("gristmill")] == []
