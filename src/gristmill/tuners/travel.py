"""How a kernel gets into another process: by name where it can be imported there, else by source;
and what identifies it in the store."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import triton.language as tl

from gristmill.errors import GristmillError
from gristmill.tuners.arguments import PLAIN_VALUES, CannotTravelError

JITTED = ("JITFunction", "InterpretedFunction", "GluonJITFunction")
CONSTEXPR = "ConstexprFunction"  # what `@triton.constexpr_function` makes: a callee, no kernel
SETTINGS = ("do_not_specialize", "do_not_specialize_on_alignment", "debug", "noinline")
MODULE = "_gristmill_kernel_"


def base_kernel(kernel: Any) -> Any:
    """The `@triton.jit` function under `@triton.heuristics`, `@triton.autotune` and ours."""
    while not is_jitted(kernel) and hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


def is_jitted(value: Any) -> bool:
    """Whether a value is a function of Triton's language, compiled or interpreted."""
    # By name: importing the interpreter takes 4 ms.
    return any(cls.__name__ in JITTED for cls in type(value).__mro__)


def is_callee(value: Any) -> bool:
    """Whether a value can be called by a kernel and has a source."""
    return is_jitted(value) or type(value).__name__ == CONSTEXPR


def name_of(function: Any) -> str:
    """The `module:qualname` of a function or kernel."""
    python = function.fn if is_callee(function) else function
    while isinstance(python, functools.partial):
        python = python.func
    if not hasattr(python, "__qualname__"):  # an object that can be called
        python = type(python)
    return f"{python.__module__}:{python.__qualname__}"


@dataclass(frozen=True)
class Function:
    """One function of Triton's language: its source without decorators, what its global names
    stand for, and what it takes out of modules (`helpers.SCALE`)."""

    kernel: Any
    source: str
    names: Mapping[str, Any]
    members: Mapping[str, Any]

    @classmethod
    def of(cls, kernel: Any) -> Function:
        """Read a kernel.

        Raises:
            CannotTravelError: its source is not to be had.
        """
        try:
            source = getattr(kernel, "src", None) or _definition(inspect.getsource(kernel.fn))
        except (OSError, AttributeError, TypeError) as error:
            raise CannotTravelError(f"the source of {name_of(kernel)} is not there") from error
        source = source.rstrip()
        scope = {**kernel.fn.__globals__, **inspect.getclosurevars(kernel.fn).nonlocals}
        used = _names(source) - {kernel.fn.__name__}
        names = {name: scope[name] for name in sorted(used) if name in scope}
        return cls(kernel, source, names, _members(source, names))


def _names(source: str) -> set[str]:
    """The names that a function reads and does not bind itself."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [n for n in nodes if isinstance(n, ast.Name)]
    bound = {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
    return {n.id for n in names if isinstance(n.ctx, ast.Load)} - bound


def _members(source: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a function reads out of modules that are not Triton's, by its dotted name."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(source)):
        path, base = [], node
        while isinstance(base, ast.Attribute):
            path.insert(0, base.attr)
            base = base.value
        if not path or not isinstance(base, ast.Name):
            continue
        value: Any = names.get(base.id)
        for part in path:
            known = isinstance(value, ModuleType) and value.__name__.partition(".")[0] != "triton"
            value = getattr(value, part, None) if known else None
        if value is not None and not isinstance(value, ModuleType):
            found[".".join((base.id, *path))] = value
    return dict(sorted(found.items()))


def _definition(source: str) -> str:
    """The source from `def` on."""
    text = textwrap.dedent(source)
    found = re.search(r"^def\s+\w+\s*\(", text, re.MULTILINE)
    return text[found.start() :] if found else text


def functions_of(kernel: Any, members: bool = False) -> list[Function]:
    """A kernel and every function of Triton's language that it calls, callees first; `members`:
    those too that it takes out of modules."""
    found: dict[int, Function] = {}
    order: list[Function] = []

    def visit(one: Any) -> None:
        if id(one) in found or _is_tritons(one):
            return
        function = found[id(one)] = Function.of(one)
        for value in (*function.names.values(), *(function.members.values() if members else ())):
            if is_callee(value):
                visit(value)
        order.append(function)

    visit(kernel)
    return order


def _is_tritons(kernel: Any) -> bool:
    """Whether a function is of Triton's own library: its version is in a plan's provenance."""
    return kernel.fn.__module__.partition(".")[0] == "triton"


def source_hash(kernel: Any) -> str:
    """What identifies a kernel in the store: the start of its `source_digest`."""
    return source_digest(kernel)[:16]


def source_digest(kernel: Any) -> str:
    """The SHA-256 of a kernel's source, of the functions that it calls, and of the constants that
    they use."""
    digest = hashlib.sha256()
    for function in functions_of(kernel, members=True):
        digest.update(f"{function.source}\0{_settings(function.kernel)}\0".encode())
        for name, value in (*function.names.items(), *function.members.items()):
            constant = value.value if isinstance(value, tl.constexpr) else value
            if type(constant) in (*PLAIN_VALUES, tuple) or isinstance(constant, tl.dtype):
                digest.update(f"{name}={constant!r}\0".encode())
    return digest.hexdigest()


def function_hash(function: Callable[..., Any]) -> str:
    """A hash of the file that a Python function is in, else of its own source, else nothing."""
    if isinstance(function, functools.partial):
        given = f"{function_hash(function.func)},{function.args!r},{function.keywords!r}"
        return hashlib.sha256(given.encode()).hexdigest()[:16]
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    try:
        text = Path(file).read_bytes() if file else inspect.getsource(function).encode()
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(text).hexdigest()[:16]


def text_hash(function: Callable[..., Any]) -> str:
    """A hash of a function's own source and the scalars that it uses, or nothing where there is no
    source."""
    try:
        text = inspect.getsource(function)
        used = inspect.getclosurevars(function)
    except (OSError, TypeError, ValueError):
        return ""
    defaults = dict(enumerate(getattr(function, "__defaults__", None) or ()))
    names = {**used.globals, **used.nonlocals, **{f"default {i}": v for i, v in defaults.items()}}
    plain = {name: value for name, value in sorted(names.items()) if _is_literal(value)}
    return hashlib.sha256(f"{text}{plain!r}".encode()).hexdigest()[:16]


def pack(function: Any) -> dict[str, str]:
    """A kernel or a Python function for another process: its name or its source, and its hash.

    Raises:
        CannotTravelError: it can go neither way; the message says why.
    """
    if not is_jitted(function):
        if not _importable(function, function):
            raise CannotTravelError(
                f"{name_of(function)} is a Python function that cannot be imported by its name"
            )
        return {"name": name_of(function), "hash": function_hash(function)}
    packed = {"hash": source_hash(function)}
    named = _importable(function.fn, function)
    if named:
        packed["name"] = name_of(function)
    try:
        packed.update(source=module_source(function), kernel=function.fn.__name__)
    except CannotTravelError:
        if not named:
            raise
    return packed


def unpack(data: Mapping[str, str], folder: Path) -> Any:
    """The kernel or function that `pack` described, in this process: by its name where that is the
    same one here (a constant may have been changed in the other process since it was imported, a
    file since this worker started), else by its source.

    Raises:
        GristmillError: it is neither.
    """
    found = None
    if "name" in data:
        try:
            found = _by_name(data["name"], data["hash"], fresh=False)
        except Exception:  # a module that does not like to be imported here
            if "source" not in data:
                raise
    if found is None and "source" in data:
        found = _by_source(data, folder)
        found = found if source_hash(found) == data["hash"] else None  # of a module it imports
    elif found is None:
        found = _by_name(data["name"], data["hash"], fresh=True)
    if found is None:
        raise GristmillError(
            f"{data.get('name', data.get('kernel'))} has another source in the worker than in your "
            "process. Save what it imports, or pass `isolate=False`"
        )
    return found


def _by_name(name: str, digest: str, fresh: bool) -> Any:
    """The kernel or function of this name, if it is the one of this hash."""
    module_name, _, qualname = name.partition(":")
    module = importlib.import_module(module_name)
    found = _attribute(importlib.reload(module) if fresh else module, qualname)
    kernel = base_kernel(found)
    function = kernel if is_jitted(kernel) else found
    known = source_hash(function) if is_jitted(function) else function_hash(function)
    return function if known == digest else None


def _by_source(data: Mapping[str, str], folder: Path) -> Any:
    name = MODULE + data["hash"]
    file = folder / f"{name}.py"
    draft = folder / f"{name}.{os.getpid()}"  # worker and compile server share the folder
    draft.write_text(data["source"])
    draft.rename(file)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return base_kernel(getattr(module, data["kernel"]))


def _attribute(module: Any, qualname: str) -> Any:
    value = module
    for part in qualname.split("."):
        value = getattr(value, part, None)
    return value


def _importable(function: Any, wanted: Any) -> bool:
    """Whether another process can import a function by its name, and gets the same one."""
    name, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    module = sys.modules.get(name or "")
    if module is None or name == "__main__" or getattr(module, "__spec__", None) is None:
        return False
    found = _attribute(module, qualname)
    return found is wanted or (is_jitted(wanted) and base_kernel(found) is wanted)


def module_source(kernel: Any) -> str:
    """A module that holds a kernel, the functions that it calls, and the constants that they use.

    Raises:
        CannotTravelError: one of its names stands for something that has no source.
    """
    lines = ["import triton", "import triton.language"]
    if _has_text_annotations(kernel):
        lines.insert(0, "from __future__ import annotations")
    written: dict[str, Any] = {}
    for function in functions_of(kernel):
        own = function.kernel.fn.__name__
        for name, value in {**function.names, own: function.kernel}.items():
            if name in written and written[name] is not value:
                raise CannotTravelError(f"`{name}` means different things in its functions")
            if name not in written and name != own:
                lines += _written(name, value)
            written[name] = value
        lines += ["", "", _decorator(function.kernel), function.source]
    return "\n".join(lines) + "\n"


def _has_text_annotations(kernel: Any) -> bool:
    return any(isinstance(a, str) for a in kernel.fn.__annotations__.values())


def _decorator(kernel: Any) -> str:
    if type(kernel).__name__ == CONSTEXPR:
        return "@triton.constexpr_function"
    if type(kernel).__name__ == "GluonJITFunction":
        raise CannotTravelError(f"{name_of(kernel)} is a Gluon kernel without a name to import")
    return f"@triton.jit({_settings(kernel)})"


def _settings(kernel: Any) -> str:
    """What `@triton.jit` was told, as keywords (what only names a kernel is left out)."""
    given = {name: getattr(kernel, name, None) for name in SETTINGS}
    given.update({n: v for n, v in getattr(kernel, "kwargs", {}).items() if n in SETTINGS})
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if value)


def _written(name: str, value: Any) -> Iterator[str]:
    """The lines that give `name` its value in a module of its own."""
    if isinstance(value, ModuleType):
        if value.__name__ == "__main__":
            raise CannotTravelError(f"`{name}` is the running script as a module")
        yield f"import {value.__name__} as {name}"
    elif is_callee(value) and not _is_tritons(value):  # it is in the module already
        if name != value.fn.__name__:
            yield f"{name} = {value.fn.__name__}"
    elif _is_literal(value):
        yield f"{name} = {_literal(value)}"
    elif _importable(value, value) or _importable(getattr(value, "fn", None), value):
        module, _, qualname = name_of(value).partition(":")
        if "." in qualname:
            raise CannotTravelError(f"`{name}` is {module}.{qualname}, no name of a module")
        yield f"from {module} import {qualname} as {name}"
    else:
        raise CannotTravelError(f"`{name}`, which it uses, is a {type(value).__name__}")


def _is_literal(value: Any) -> bool:
    """Whether a value can be written as source."""
    if isinstance(value, tl.constexpr):
        return _is_literal(value.value)
    if type(value) is tuple:
        return all(_is_literal(part) for part in value)
    return type(value) in PLAIN_VALUES or isinstance(value, tl.dtype)


def _literal(value: Any) -> str:
    """A constant as source; floats that have no literal included."""
    if isinstance(value, tl.constexpr):
        return f"triton.language.constexpr({_literal(value.value)})"
    if isinstance(value, tl.dtype):
        return f"triton.language.dtype({value.name!r})"
    if type(value) is tuple:
        return f"({''.join(f'{_literal(part)}, ' for part in value)})"
    return f"float({str(value)!r})" if isinstance(value, float) else repr(value)
