"""The house rules, as lints: sizes, imports, the environment, docstrings, what README promises.

A definition may be larger than its limit if its docstring has a line `Size: <the reason>`.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "gristmill"
FILES = sorted(p for folder in ("src", "tests", "tools") for p in (ROOT / folder).rglob("*.py"))
SOURCES = [p for p in FILES if p.is_relative_to(PACKAGE)]
MAX_FILE, MAX_FUNCTION, MAX_KERNEL, MAX_KERNEL_PARAMETERS = 400, 60, 120, 25

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def lines(node: Definition) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def excused(node: Definition | ast.Module) -> bool:
    return re.search(r"^\s*Size: \S", ast.get_docstring(node) or "", re.MULTILINE) is not None


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = function.args
    return len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs)


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that sees no GPU."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_small(path):
    found = []
    if len(path.read_text().splitlines()) >= MAX_FILE and not excused(tree(path)):
        found.append(f"the file has {len(path.read_text().splitlines())} lines")
    for function in functions(tree(path)):
        limit = MAX_KERNEL if is_kernel(function) else MAX_FUNCTION
        if lines(function) >= limit and not excused(function):
            found.append(f"{function.name} has {lines(function)} lines; the limit is {limit}")
        if is_kernel(function) and parameters(function) >= MAX_KERNEL_PARAMETERS:
            found.append(f"{function.name} has {parameters(function)} parameters")
    assert not found


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "settings.py"], ids=name)
def test_only_settings_reads_the_environment(path):
    found = [
        f"line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
        if ast.unparse(node.value) == "os"
    ]
    found += [
        f"line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        if any(alias.name in ("environ", "getenv") for alias in node.names)
    ]
    assert not found


def own_imports(node: ast.AST) -> Iterator[str]:
    for n in ast.walk(node):
        if isinstance(n, ast.Import):
            yield from (f"line {n.lineno}" for a in n.names if a.name.startswith("gristmill"))
        elif isinstance(n, ast.ImportFrom) and (
            n.level or (n.module or "").startswith("gristmill")
        ):
            yield f"line {n.lineno}"


def is_import_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")


# The face is lazy, commands load when they are called, and a worker or plug-in names its module.
FACES = {f"{room}__init__.py" for room in ("", "aot/", "bench/", "cache/", "tuning/")}
NAMED = {"tuners/travel.py"}  # a user's kernel, by its name
DYNAMIC = {*FACES, *NAMED, "core/registry.py", "cli/app.py"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_function_level_import_of_our_own_package(path):
    found = [line for function in functions(tree(path)) for line in own_imports(function)]
    if str(path.relative_to(PACKAGE)) not in DYNAMIC:
        calls = (n for n in ast.walk(tree(path)) if is_import_call(n))
        found += [f"import_module, line {call.lineno}" for call in calls]
    assert not found


# What these mean is said once, at `Op` and `Implementation`.
ROLES = {"check", "inputs", "outputs", "axes", "cost", "bounds", "supports"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_modules_and_public_names_have_docstrings(path):
    """Every module, public class and public function; of a few lines, the name may say it all."""
    module = tree(path)
    found = ["the module"] if module.body and ast.get_docstring(module) is None else []
    for node in module.body:
        if not isinstance(node, Definition) or node.name.startswith("_") or node.name in ROLES:
            continue
        if not documented(node) and (isinstance(node, ast.ClassDef) or lines(node) > 8):
            found.append(f"{node.name}, line {node.lineno}")
    assert not found


def documented(node: Definition) -> bool:
    """A docstring; or of a command, the help that its decorator or its module gives."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    return ast.get_docstring(node) is not None or any("app." in d for d in decorators)


def test_everything_in_all_exists_and_is_explained():
    code = """
import gristmill, inspect
for name in gristmill.__all__:
    value = getattr(gristmill, name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    for method, function in vars(value).items() if inspect.isclass(value) else ():
        callable_ = inspect.isfunction(function) or type(function) is property
        if callable_ and not method.startswith("_"):
            assert inspect.getdoc(function), f"{name}.{method} has no docstring"
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_importing_gristmill_loads_nothing_heavy():
    code = """
import sys, gristmill
heavy = {"triton", "sklearn", "optuna", "rich", "typer", "matplotlib", "pandas", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""
    alone = python("import sys, torch\n" + code.replace("gristmill", "sys"))
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout)) <= set(ast.literal_eval(alone.stdout))


def snippets(file: str = "README.md") -> list[str]:
    path = ROOT / file
    if not path.exists():
        return []
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_readme_exists_and_has_snippets():
    assert (ROOT / "README.md").exists()
    assert snippets()


@pytest.mark.parametrize("code", snippets(), ids=lambda code: code.strip().splitlines()[0])
def test_readme_snippets_run(code, tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("GRISTMILL_BUDGET_S", "20")
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_kernel_of_contributing_conforms(tmp_path, monkeypatch):
    """The file that CONTRIBUTING.md shows, outside the repository, in Triton's interpreter."""
    (kernel,) = snippets("CONTRIBUTING.md")
    (tmp_path / "short.py").write_text(kernel)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = """
import torch, short
from gristmill.core.registry import implementation
assert implementation("rms_norm", "short") is short.rms_norm
for x in (torch.randn(3, 5, 300), torch.randn(0, 8), torch.randn(2, 1)):
    for weight in (None, torch.randn(x.shape[-1])):
        expected = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)
        torch.testing.assert_close(short.rms_norm(x, weight), expected)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_version_is_one():
    text = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"$', text, re.MULTILINE)
    assert version is not None
    assert f'__version__ = "{version[1]}"' in (PACKAGE / "__init__.py").read_text()
    assert version[1] in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_the_readmes_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
