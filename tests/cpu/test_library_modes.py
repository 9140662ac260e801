"""An op in the rarer ways of differentiating and tracing: forward mode, batches of gradients, sizes
that depend on data; the contract in all of them, and declarations that cannot be registered."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.autograd import forward_ad

import gristmill as gm
from gristmill.core.gradient import Gradient
from gristmill.core.op import Op
from gristmill.core.problem import contiguous_strides
from gristmill.core.registry import load
from gristmill.ops._dispatch import dispatcher, registered
from gristmill.ops._generate import refuse_schema

pytestmark = pytest.mark.usefixtures("fresh_store")
REFERENCE = load("rms_norm").reference


def registered_rms_norm(x, weight=None):
    return registered(load("rms_norm"))(x, weight)


def tangent(call, x, weight):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x, x.cos()), weight)).tangent


def jvp(call, x, weight):
    return torch.func.jvp(lambda v: call(v, weight), (x,), (x.cos(),))[1]


@pytest.mark.parametrize("forward", [tangent, jvp])
@pytest.mark.parametrize("call", [gm.rms_norm, registered_rms_norm])
def test_no_tangent_is_lost(x, weight, call, forward):
    torch.testing.assert_close(forward(call, x, weight), forward(REFERENCE, x, weight))


@pytest.mark.parametrize("forward", [tangent, jvp])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_no_tangent_is_lost_under_torch_compile(x, weight, backend, forward):
    compiled = torch.compile(forward, backend=backend)
    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    for call in (gm.rms_norm, bound):
        torch.testing.assert_close(compiled(call, x, weight), forward(REFERENCE, x, weight))


def test_forward_mode_keeps_autocast(weight):
    x = torch.randn(6, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert jvp(gm.rms_norm, x, weight).dtype is torch.bfloat16


@pytest.mark.parametrize("create_graph", [False, True])
def test_batches_of_gradients(create_graph):
    a, b = torch.randn(6, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    upstream = torch.randn(3, 6, 7)
    got, want = (
        torch.autograd.grad(
            product(a, b), (a, b), upstream, is_grads_batched=True, create_graph=create_graph
        )
        for product in (gm.matmul, torch.mm)
    )
    torch.testing.assert_close(got, want)
    if create_graph:
        got, want = (torch.autograd.grad(g[0].square().sum(), b)[0] for g in (got, want))
        torch.testing.assert_close(got, want)


def test_gradients_of_samples_that_are_not_dense(weight):
    x = torch.randn(6, 32, 4)

    def each(call):
        return torch.func.vmap(torch.func.grad(lambda v: call(v, weight).sum()), in_dims=2)(x)

    torch.testing.assert_close(each(gm.rms_norm), each(REFERENCE))


def test_the_contract_holds_where_a_gradient_is_needed(x):
    single = torch.ones(1, requires_grad=True)  # the reference would broadcast it
    for call in (
        gm.rms_norm,
        registered_rms_norm,
        torch.func.grad(lambda v, w: gm.rms_norm(v, w).sum()),
        lambda v, w: jvp(registered_rms_norm, v, w),
    ):
        with pytest.raises(gm.InvalidInputError, match=r"`weight` has shape \(1,\)"):
            call(x, single)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(gm.InvalidInputError, match=r"`weight` has shape \(1,\)"),
    ):
        gm.rms_norm(x, single)
    with pytest.raises(Exception, match=r"`weight` has shape \(1,\)"):
        torch.compile(lambda v: gm.rms_norm(v, single), fullgraph=True, backend="aot_eager")(x)


def test_types_are_checked_in_modes_too(x):
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(gm.InvalidInputError, match="`x` is list"):
            gm.rms_norm([1.0])
        with pytest.raises(gm.InvalidInputError, match="`eps` is str"):
            gm.rms_norm(x, eps="1")


def test_a_plain_call_without_formulas_is_remembered_as_the_reference(x, weight):
    backward = dispatcher("rms_norm_backward")  # its derivatives are torch's, of its reference
    backward(torch.randn_like(x), x, weight.requires_grad_(), 1e-6, True)
    assert list(backward.bound.values()) == [load("rms_norm_backward").reference]


def test_sizes_that_depend_on_data(weight):
    """As of the rows that an expert takes."""

    def experts(x, mask, weight, b):
        return gm.matmul(gm.rms_norm(x[mask], weight), b)

    x, b = torch.randn(6, 32, requires_grad=True), torch.randn(32, 8, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False, False])
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        with torch.no_grad():
            got = compiled(x, mask, weight, b)
        torch.testing.assert_close(got, REFERENCE(x[mask], weight) @ b)
        for upstream in (torch.ones(1, 1).expand(3, 8), torch.randn(3, 8)):
            got, want = (
                torch.autograd.grad(y, (x, b), upstream)
                for y in (compiled(x, mask, weight, b), REFERENCE(x[mask], weight) @ b)
            )
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_strides_of_empty_sizes_are_those_of_torch():
    for shape in ((3, 0, 5), (0,), (2, 3, 4), ()):
        assert contiguous_strides(shape) == torch.empty(shape).stride()


def made(schema, **fields):
    """rms_norm under another schema, in no registry."""
    known = {f.name: getattr(load("rms_norm"), f.name) for f in dataclasses.fields(Op)}
    return Op(**{**known, "schema": schema, **fields})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("odd(Tensor self) -> Tensor", r"names an argument `self`.*Rename it"),
        ("odd(Tensor x, Tensor? lookup=None) -> Tensor", r"names an argument `lookup`"),
        ("odd(Tensor x, *, float eps=1.0) -> Tensor", r"by keyword alone.*Remove the `\*`"),
    ],
)
def test_schemas_that_no_call_can_be_generated_from_are_refused(schema, message):
    with pytest.raises(gm.RegistrationError, match=message):
        refuse_schema(made(schema))


def test_a_gradient_from_what_the_op_does_not_have_is_refused_when_it_is_registered():
    gradient = Gradient("matmul", ("x",), lambda grad_output, x: (grad_output, x.mT))
    op = made("odd_gradient(Tensor x, Tensor weight) -> Tensor", gradients=(gradient,))
    with pytest.raises(gm.RegistrationError, match=r"names `grad_output`.*Did you mean 'grad_out'"):
        registered(op)


def test_an_argument_that_no_declared_gradient_is_of_gets_one_from_the_reference(x, weight):
    gradient = Gradient("matmul", ("x",), lambda grad_out: (grad_out, grad_out.mT))
    op = made("partly(Tensor x, Tensor weight) -> Tensor", gradients=(gradient,))
    weight.requires_grad_()
    got, want = (
        torch.autograd.grad(call(x, weight).square().sum(), weight)[0]
        for call in (registered(op), REFERENCE)
    )
    torch.testing.assert_close(got, want)
