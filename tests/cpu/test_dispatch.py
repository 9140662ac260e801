"""Calls on a CPU: the call key, the reference path for what needs more than values, bound
operators, errors."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pickle
import weakref

import pytest
import torch

import gristmill as gm
from gristmill.compile.bound import bind
from gristmill.core.registry import implementation, load, op_names
from gristmill.core.target import device_target
from gristmill.ops._dispatch import dispatcher, forget
from gristmill.ops._generate import key_function, values_key_function
from gristmill.ops._key import is_plain

pytestmark = pytest.mark.usefixtures("fresh_store")


@pytest.mark.parametrize("name", ["matmul", "rms_norm", "silu_and_mul"])
def test_a_public_function_has_its_schemas_signature(name):
    function = inspect.signature(getattr(gm, name)).parameters
    schema = load(name).signature.parameters
    assert [(p.name, p.default) for p in function.values()] == [
        (p.name, p.default) for p in schema.values()
    ]


def test_every_op_is_public_that_is_no_backward_pass():
    ops = set(op_names()) - {"twice"}
    backward = {gradient.op for name in ops for gradient in load(name).gradients}
    assert {name for name in ops if name not in backward} <= set(gm.__all__)


class Tagged(torch.Tensor):
    """A subclass that says nothing."""


def test_the_call_key_tells_apart_what_a_launch_depends_on(x, weight):
    key = key_function(load("rms_norm"), native=False)
    same = key(x, weight, 1e-6)
    assert same == key(torch.randn(6, 32), torch.randn(32), 1e-6)
    wide = torch.randn(6, 33)
    others = [
        key(x[:5], weight, 1e-6),
        key(x.double(), weight, 1e-6),
        key(wide[:, :32], weight, 1e-6),
        key(wide.flatten()[1:193].view(6, 32), weight, 1e-6),
        key(x, None, 1e-6),
        key(x, weight, 1e-5),
        key(x.clone().requires_grad_(), weight, 1e-6),
        key(x.as_subclass(Tagged), weight, 1e-6),
    ]
    assert all(other != same for other in others)
    assert key(torch.nn.Parameter(x, requires_grad=False), weight, 1e-6) == same
    freed = torch.randn(6, 32)
    freed.untyped_storage().resize_(0)
    assert key(freed, weight, 1e-6) != same
    with torch.no_grad():
        assert key(x.clone().requires_grad_(), weight, 1e-6) == same
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain()


def test_direct_calls_are_right_and_remembered(x, weight):
    expected = load("rms_norm").reference(x, weight)
    for _ in range(2):
        torch.testing.assert_close(gm.rms_norm(x, weight), expected)
    assert len(dispatcher("rms_norm").bound) == 1


def test_only_the_oldest_calls_are_forgotten(monkeypatch):
    from gristmill.ops import _dispatch

    monkeypatch.setattr(_dispatch, "MAX_BOUND", 16)
    dispatch = dispatcher("rms_norm")
    for rows in range(1, 40):
        gm.rms_norm(torch.randn(rows, 8))
        assert len(dispatch.bound) <= 16
    kept = {key[0] for key in dispatch.bound}
    assert {torch.Size([rows, 8]) for rows in range(28, 40)} <= kept


def test_a_bound_operator_takes_keywords_defaults_and_other_problems(x, weight):
    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    reference = load("rms_norm").reference
    torch.testing.assert_close(bound(x, weight), reference(x, weight))
    torch.testing.assert_close(bound(x, weight=weight, eps=0.5), reference(x, weight, 0.5))
    torch.testing.assert_close(bound(x=x), reference(x))
    torch.testing.assert_close(bound(x[:3, :16]), reference(x[:3, :16]))
    assert bound.preload() is bound
    torch.testing.assert_close(bound(x, weight), reference(x, weight))
    assert "rms_norm" in repr(bound)


def test_gradients_flow_through_direct_and_bound_calls(x, weight):
    bound = gm.get_op("rms_norm", (x, weight.requires_grad_()), tune="never")
    upstream = torch.randn(6, 32)
    want = torch.autograd.grad(load("rms_norm").reference(x, weight), weight, upstream)
    for call in (bound, gm.rms_norm, bound):
        got = torch.autograd.grad(call(x, weight), weight, upstream)
        torch.testing.assert_close(got, want)
        with torch.no_grad():
            assert not call(x, weight).requires_grad


def test_torch_compile_autocast_subclasses_and_modes_take_the_reference(x, weight):
    from torch._subclasses import FakeTensorMode

    expected = load("rms_norm").reference(x, weight)
    compiled = torch.compile(lambda x, w: gm.rms_norm(x, w) + 1, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, weight), expected + 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert gm.matmul(x, x.t()).dtype is torch.bfloat16
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert gm.rms_norm(mode.from_tensor(x), mode.from_tensor(weight)).shape == x.shape
    mapped = torch.func.vmap(lambda row: gm.rms_norm(row, weight))(x)
    torch.testing.assert_close(mapped, expected)


def test_inference_mode(x, weight):
    with torch.inference_mode():
        assert gm.rms_norm(x, weight).is_inference()
    assert not gm.rms_norm(x, weight).is_inference()


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (
            lambda x, w: gm.rms_norm(x[:, ::2]),
            gm.InvalidInputError,
            ("`x`", "stride 2", "contiguous()"),
        ),
        (lambda x, w: gm.rms_norm(x, w[:3]), gm.InvalidInputError, ("`weight`", "(3,)", "32")),
        (
            lambda x, w: gm.rms_norm(x, w.half()),
            gm.InvalidInputError,
            ("`weight`", "float16", "float32"),
        ),
        (
            lambda x, w: gm.rms_norm(x, w.to("meta")),
            gm.InvalidInputError,
            ("`weight`", "meta", ".to("),
        ),
        (lambda x, w: gm.rms_norm(x.int()), gm.InvalidInputError, ("`x`", "int32", "float16")),
        (lambda x, w: gm.rms_norm(x, eps="1"), gm.InvalidInputError, ("`eps`", "str", "float")),
        (lambda x, w: gm.rms_norm([1.0]), gm.InvalidInputError, ("`x`", "list", "tensor")),
        (gm.matmul, gm.InvalidInputError, ("`b`", "(32,)", "2-D")),
        (lambda x, w: gm.matmul(x, x), gm.InvalidInputError, ("`b`", "(6, 32)", "b.t()")),
        (
            lambda x, w: gm.matmul(x.to_sparse(), x.t()),
            gm.InvalidInputError,
            ("`a`", "sparse", "to_dense"),
        ),
        (
            lambda x, w: gm.get_op("rmsnorm", (x,)),
            gm.UnknownOpError,
            ("'rmsnorm'", "rms_norm", "Did you mean"),
        ),
        (lambda x, w: gm.get_op("matmul", x), gm.InvalidInputError, ("`args`", "tuple")),
        (lambda x, w: gm.get_op(3, (x,)), gm.InvalidInputError, ("`op`", "int", "string")),
        (lambda x, w: gm.tune("rms_norm", (x,), trials="3"), gm.InvalidInputError, ("`trials`",)),
        (lambda x, w: gm.tune("rms_norm", (x,), budget_s="9"), gm.InvalidInputError, ("'9'",)),
        (
            lambda x, w: gm.tune("rms_norm", (x,), strategy="radnom"),
            gm.InvalidInputError,
            ("`strategy`", "'radnom'", "Did you mean 'random'"),
        ),
        (lambda x, w: gm.get_op("matmul", (x,)), gm.InvalidInputError, ("`matmul`", "'b'")),
        (
            lambda x, w: gm.get_op("rms_norm", (x,), {"ep": 1}),
            gm.InvalidInputError,
            ("'ep'", "Did you mean"),
        ),
        (
            lambda x, w: gm.get_op("rms_norm", (x,), tune="later"),
            gm.InvalidInputError,
            ("`tune`", "'later'"),
        ),
        (
            lambda x, w: gm.get_op("rms_norm", (x,), objective="speed"),
            gm.InvalidInputError,
            ("`objective`",),
        ),
        (
            lambda x, w: gm.tune("rms_norm", (x,), budget_s=0),
            gm.InvalidInputError,
            ("`budget`", "0"),
        ),
        (lambda x, w: gm.tune("rms_norm", (x,), trials=0), gm.InvalidInputError, ("`trials`", "0")),
    ],
)
def test_bad_input_names_the_argument_what_it_was_and_what_to_do(x, weight, call, error, parts):
    with pytest.raises(error) as raised:
        call(x, weight)
    assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_bad_input_after_good_is_refused_too(x, weight):
    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    bound(x, weight)
    for call in (bound, gm.rms_norm):
        with pytest.raises(gm.InvalidInputError, match="`weight`"):
            call(x, weight[:3])
        with pytest.raises(gm.InvalidInputError, match="`x`"):
            call(3, weight)


def test_lazily_negated_views_are_refused_also_after_a_plain_call(x):
    gm.rms_norm(x)
    with pytest.raises(gm.InvalidInputError, match=r"`x` is a lazily negated .*resolve_neg"):
        gm.rms_norm(torch._neg_view(x))
    key = dispatcher("rms_norm").key
    assert key(x, None, 1e-6) != key(torch._neg_view(x), None, 1e-6)
    bound = gm.get_op("rms_norm", (x,), tune="never")  # torch's own, which knows such views
    torch.testing.assert_close(bound(torch._neg_view(x)), -bound(x))


def test_a_subclass_stays_one_however_often_it_is_passed(x, weight):
    tagged = x.as_subclass(Tagged)
    bound = gm.get_op("rms_norm", (tagged, weight), tune="never")
    for _ in range(3):
        for call in (gm.rms_norm, bound):
            assert type(call(tagged, weight)) is Tagged  # not what its values were bound to
            assert type(call(x, weight)) is torch.Tensor


def test_what_is_bound_for_tensors_is_for_parameters_too(x, weight):
    gm.rms_norm(x, weight)
    with torch.no_grad():
        gm.rms_norm(x, torch.nn.Parameter(weight))
    gm.rms_norm(x, torch.nn.Parameter(weight, requires_grad=False))
    assert len(dispatcher("rms_norm").bound) == 1


def without_memory():
    """Tensors with elements and a null address."""
    freed = torch.randn(6, 32)
    freed.untyped_storage().resize_(0)
    return freed, torch._efficientzerotensor((6, 32))


@pytest.mark.parametrize("tensor", without_memory(), ids=["freed", "zeros"])
def test_tensors_without_memory_are_refused_also_after_a_plain_call(x, tensor):
    gm.rms_norm(x)
    assert tensor.stride() == x.stride()
    with pytest.raises(gm.InvalidInputError, match="`x` has 192 elements and no memory"):
        gm.rms_norm(tensor)
    empty = x[:0]
    assert empty.data_ptr() == 0
    for _ in range(2):
        assert gm.rms_norm(empty).shape == (0, 32)
    torch.testing.assert_close(gm.rms_norm(x), load("rms_norm").reference(x))


def test_a_conjugate_has_a_key_of_its_own_where_an_op_takes_complex_tensors(x):
    z = torch.randn(6, 32, dtype=torch.complex64)
    op = dataclasses.replace(load("rms_norm"), dtypes=(torch.float32, torch.complex64))
    for make in (functools.partial(key_function, native=False), values_key_function):
        key = make(op)
        assert key(z, None, 1e-6) == key(torch.randn(6, 32, dtype=z.dtype), None, 1e-6)
        assert key(z, None, 1e-6) != key(z.conj(), None, 1e-6)


def test_forward_mode_tangents_are_kept(x, weight):
    from torch.autograd import forward_ad

    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    bound(x, weight), gm.rms_norm(x, weight)
    tangent = torch.randn_like(x)
    want = torch.func.jvp(lambda v: load("rms_norm").reference(v, weight), (x,), (tangent,))[1]
    for call in (gm.rms_norm, bound):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent)
            got = forward_ad.unpack_dual(call(dual, weight)).tangent
        torch.testing.assert_close(got, want)


def test_a_bound_call_of_torchs_own_is_right_in_every_mode(x, weight):
    bound = gm.get_op("rms_norm", (x, weight), tune="never").preload()
    assert implementation("rms_norm", bound.implementation).native
    expected = load("rms_norm").reference(x, weight)
    calls = []
    call = bound._native_call
    bound._native_call = lambda *values: calls.append(1) or call(*values)
    upstream = torch.randn_like(x)
    parameter = torch.nn.Parameter(weight)
    (got,) = torch.autograd.grad(bound(x, parameter), parameter, upstream)
    (want,) = torch.autograd.grad(load("rms_norm").reference(x, parameter), parameter, upstream)
    torch.testing.assert_close(got, want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bound(x, weight), expected)
    shifted = torch.cat((torch.zeros(1), x.flatten()))[1:].view(6, 32)
    torch.testing.assert_close(bound(shifted, weight), expected)
    assert len(calls) == 3
    with pytest.raises(gm.InvalidInputError, match="`weight` has dtype"):
        bound(x, weight.double())


def test_a_default_device_is_no_reason_for_the_reference(x, weight):
    with torch.device("cpu"):
        gm.rms_norm(x, weight)
    assert len(dispatcher("rms_norm").bound) == 1


def test_an_int_for_a_float_is_the_same_problem(x):
    op = load("rms_norm")
    (one, other) = (op.problem(op.bind((x,), {"eps": eps})) for eps in (1, 1.0))
    assert op.bucket(one) == op.bucket(other)


def test_a_compiled_plan_compiles_once_whatever_the_mode(x, weight):
    from torch._dynamo.utils import counters

    op = load("rms_norm")
    impl = implementation("rms_norm", "inductor")
    call = bind(
        impl,
        impl.config(None, op.problem((x, weight, 1e-6)), device_target(x.device)),
        (x, weight, 1e-6),
    )
    call(x, weight, 1e-6)
    before = counters["stats"]["unique_graphs"]
    parameter = torch.nn.Parameter(weight)
    call(x, parameter, 1e-6)
    with torch.no_grad():
        call(x, parameter, 1e-6)
    with torch.inference_mode():
        call(x, weight, 1e-6)
    assert counters["stats"]["unique_graphs"] == before


def test_a_bound_operator_is_copied_and_pickled_as_a_question(x, weight):
    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    assert copy.deepcopy(bound) is bound
    assert weakref.ref(bound)() is bound
    restored = pickle.loads(pickle.dumps(bound))
    assert (restored.problem, restored.plan) == (bound.problem, bound.plan)
    torch.testing.assert_close(restored(x, weight), bound(x, weight))


def test_a_kernel_by_hand_refuses_what_it_would_drop(x, weight, monkeypatch):
    row = implementation("rms_norm", "row")
    monkeypatch.setattr(type(row), "why_not", lambda *a: None)

    for values in ((x.clone().requires_grad_(), weight), (x.as_subclass(Tagged), weight)):
        with pytest.raises(gm.UnsupportedProblemError, match=r"`x` .*values only.*torch.no_grad"):
            row(*values)
    with pytest.raises(gm.UnsupportedProblemError, match="stands for more than its values"):
        torch.func.vmap(lambda v: row(v, weight))(x)
    with pytest.raises(gm.UnknownOpError, match=r"'acme\.fast'"):
        implementation("rms_norm", "acme.fast")


def test_forgetting_drops_bound_calls(x):
    gm.rms_norm(x)
    forget("rms_norm")
    assert not dispatcher("rms_norm").bound
