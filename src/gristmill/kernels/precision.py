"""Products of full precision, whatever the process has allowed cuBLAS (hipBLAS) to leave out.

Torch keeps the permissions for the whole process: TF32 for float32; for the 16-bit types partial
sums in the output's dtype (allowed by default; seen: 38 times our bound at bf16 1023 x 1000 x 1031
on an H200) and float16 accumulation. `precise` withdraws what the operands' dtype has while a
product is launched, and gives it back. It uses torch's C functions: by attribute a read takes
microseconds and loses the second half of a pair, and one of TF32 raises where the process has used
the newer of two APIs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection
from typing import Any

import torch

Function = Callable[..., Any]
FULL_SUMS = ((False, True), (False, False))


class Permission:
    """What a process allows for one dtype, withdrawn while any thread of ours launches a product.

    Threads nest: the first to enter withdraws it, the last to leave gives it back. A permission
    that somebody else gives meanwhile stays; one taken away meanwhile cannot be told from ours.

    Attributes:
        read: the setting.
        full: the settings that allow nothing.
        epoch: odd while the permission is withdrawn or may be.
    """

    def __init__(
        self, read: Function, full: Collection[Any], withdraw: Function, restore: Function
    ) -> None:
        """`withdraw(setting)` returns what `restore` takes."""
        self.read, self.full, self.epoch = read, full, 0
        self._withdraw, self._restore = withdraw, restore
        self._lock = threading.Lock()
        self._holders = 0
        self._saved: Any = None

    def enter(self) -> None:
        """Withdraw what is allowed, until `leave`."""
        with self._lock:
            self.epoch |= 1
            try:
                setting = self.read()
                if setting not in self.full:
                    self._saved = self._withdraw(setting)
            except BaseException:
                self.epoch += not self._holders
                raise
            self._holders += 1

    def leave(self) -> None:
        """The last to leave puts the user's setting back."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
            if self._saved is not None:
                if self.read() in self.full:
                    self._restore(self._saved)
                self._saved = None
            self.epoch += 1


def precise(product: Function, a: torch.Tensor, b: torch.Tensor) -> Any:
    """`product(a, b)`, summed in float32, of IEEE factors."""
    if not a.is_cuda or a.dtype not in _PERMISSIONS:
        return product(a, b)
    permission = _PERMISSIONS[a.dtype]
    # Nothing to withdraw, and seen so while no other thread of ours had withdrawn it (which it
    # would give back before our product is launched).
    epoch = permission.epoch
    if permission.read() in permission.full and not epoch & 1 and permission.epoch == epoch:
        return product(a, b)
    permission.enter()
    try:
        return product(a, b)
    finally:
        permission.leave()


def _function(name: str, missing: Any) -> Function:
    return getattr(torch._C, name, lambda *_: missing)  # noqa: SLF001


def _partial_sums(kind: str) -> tuple[Function, Function]:
    """Read and write whether partial sums may be in the output's dtype: a pair, (at all, by
    split-K)."""
    read = _function(f"_get_cublas_allow_{kind}_reduced_precision_reduction", (False, True))
    write = _function(f"_set_cublas_allow_{kind}_reduced_precision_reduction", None)
    if isinstance(read(), tuple):
        return read, write
    # A torch that has the first half alone.
    return lambda: (read(), True), lambda reduced, _: write(reduced)


def _bfloat16() -> Permission:
    """Partial sums in bfloat16."""
    read, write = _partial_sums("bf16")

    def withdraw(setting: tuple[bool, bool]) -> tuple[bool, bool]:
        write(False, setting[1])
        return setting

    return Permission(read, FULL_SUMS, withdraw, lambda saved: write(*saved))


def _float16() -> Permission:
    """Partial sums in float16, and whole sums in it."""
    pair, write_pair = _partial_sums("fp16")
    whole = _function("_get_cublas_allow_fp16_accumulation", False)
    write_whole = _function("_set_cublas_allow_fp16_accumulation", None)

    def write(sums: tuple[bool, bool], in_float16: bool) -> None:
        write_pair(*sums)
        if in_float16 != whole():
            write_whole(in_float16)

    def withdraw(setting: Any) -> Any:
        write((False, setting[0][1]), False)
        return setting

    full = tuple((sums, False) for sums in FULL_SUMS)
    return Permission(lambda: (pair(), whole()), full, withdraw, lambda saved: write(*saved))


def _tf32() -> Permission:
    """TF32, by either API. The newer one is what products follow; the older one is kept in step,
    because Dynamo's guards raise where the two differ."""
    get = _function("_get_fp32_precision_getter", "none")
    put = _function("_set_fp32_precision_setter", None)
    ours, mkldnn = ("cuda", "matmul"), ("mkldnn", "matmul")

    def legacy() -> str | None:
        """The older API's word, where it is the one that allows TF32."""
        try:
            if not _function("_get_cublas_allow_tf32", False)():
                return None
            return _function("_get_float32_matmul_precision", "high")()
        except RuntimeError:  # "mix of the legacy and new APIs": set by the newer one
            return None

    def withdraw(setting: str) -> tuple[str | None, str, str]:
        word, other = legacy(), get(*mkldnn)
        put(*ours, "none")  # allowed still? Then by a setting above it, which is left alone.
        own = "none" if get(*ours) == setting else setting
        if word is None:
            put(*ours, "ieee")
        else:
            _function("_set_cublas_allow_tf32", None)(False)
        return word, own, other

    def restore(saved: tuple[str | None, str, str]) -> None:
        word, own, other = saved
        if word == "medium":  # sets mkldnn too
            _function("_set_float32_matmul_precision", None)(word)
            put(*mkldnn, other)
        elif word is not None:
            _function("_set_cublas_allow_tf32", None)(True)
        put(*ours, own)

    return Permission(functools.partial(get, *ours), ("none", "ieee"), withdraw, restore)


_PERMISSIONS = {
    torch.float32: _tf32(),
    torch.bfloat16: _bfloat16(),
    torch.float16: _float16(),
}
