"""Manifests as text: the same bytes for the same manifest, and every fault of a text by its place
in it."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sized
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gristmill.aot.manifest import SCHEMA_VERSION, Manifest
from gristmill.errors import ArtifactError


def to_text(manifest: Manifest) -> str:
    """A manifest as JSON: keys sorted, a newline at the end."""
    data = dataclasses.asdict(manifest)  # type: ignore[arg-type] - a record is a dataclass
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"


def from_text(text: str, where: str) -> Manifest:
    """The manifest that a text holds.

    Raises:
        ArtifactError: it is no manifest, one of another schema, or damaged; `where` names the file.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{where} is damaged: it is no JSON ({error}). Build the artifact again."
        ) from None
    if not isinstance(data, dict) or type(data.get("schema")) is not int:
        raise ArtifactError(
            f"{where} is no manifest: it names no schema version. Pass an artifact's folder."
        )
    if data["schema"] != SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} is of schema version {data['schema']}; this gristmill reads "
            f"{SCHEMA_VERSION}. Build the artifact again, or use the gristmill that built it."
        )
    try:
        manifest = _decode(Manifest, data, "the manifest")
        _check_lengths(manifest)
    except _DamagedError as error:
        raise ArtifactError(f"{where} is damaged: {error}. Build the artifact again.") from None
    return manifest


class _DamagedError(Exception):
    pass


def _check_lengths(manifest: Manifest) -> None:
    """Lists that others are read beside have their lengths."""
    for entry in manifest.kernels:
        for i, variant in enumerate(entry.variants):
            place = f"variant {i} of the kernel {entry.name!r}"
            _check_length(f"{place}: arguments", variant.arguments, entry.parameters)
            _check_length(f"{place}: types", variant.types, entry.variables)
        for i, choice in enumerate(entry.choices):
            if choice.types:
                place = f"choice {i} of the kernel {entry.name!r}"
                _check_length(f"{place}: types", choice.types, entry.variables)
    parameters = {entry.name: entry.parameters for entry in manifest.kernels}
    for function in manifest.functions:
        for row in (row for form in function.forms for row in form.rows):
            for launch in row.launches:
                place = f"a launch of the operator {function.name!r}"
                if launch.kernel not in parameters:
                    raise _DamagedError(f"{place} is of {launch.kernel!r}, which is no kernel here")
                _check_length(f"{place}: arguments", launch.arguments, parameters[launch.kernel])


def _check_length(place: str, found: Sized, beside: Sized) -> None:
    if len(found) != len(beside):
        raise _DamagedError(f"{place} are {len(found)} in place of {len(beside)}")


def _decode(type_: Any, data: Any, place: str) -> Any:
    """A value of a type, from JSON."""
    origin, args = get_origin(type_), get_args(type_)
    if dataclasses.is_dataclass(type_):
        return _record(type_, data, place)
    if origin is tuple:
        return _tuple(args, data, place)
    if origin is dict:
        if not isinstance(data, dict):
            raise _DamagedError(f"{place} is no object")
        return {key: _decode(args[1], value, f"{place}.{key}") for key, value in data.items()}
    if origin is Literal:
        if data not in args:
            raise _DamagedError(f"{place} is {data!r}, none of {', '.join(map(str, args))}")
        return data
    if origin in (Union, types.UnionType):
        if type(data) not in args:
            raise _DamagedError(f"{place} is {data!r}, of no type that it may have")
        return data
    if type(data) is not type_:
        raise _DamagedError(f"{place} is {data!r}, no {type_.__name__}")
    return data


def _record(type_: Any, data: Any, place: str) -> Any:
    hints = get_type_hints(type_)
    if not isinstance(data, Mapping) or set(data) != set(hints):
        keys = sorted(set(data) ^ set(hints)) if isinstance(data, Mapping) else []
        raise _DamagedError(f"{place} has not the fields that it should ({', '.join(keys)})")
    return type_(**{n: _decode(hint, data[n], f"{place}.{n}") for n, hint in hints.items()})


def _tuple(args: tuple[Any, ...], data: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _DamagedError(f"{place} is no list")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(data)
    if len(args) != len(data):
        raise _DamagedError(f"{place} has {len(data)} values in place of {len(args)}")
    pairs = enumerate(zip(args, data, strict=True))
    return tuple(_decode(arg, value, f"{place}[{i}]") for i, (arg, value) in pairs)
