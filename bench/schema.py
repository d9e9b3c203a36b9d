"""JSON against annotated dataclasses: what does not fit is named."""

import dataclasses
import types
import typing
from typing import Any


def parse(expected: Any, data: Any, where: str, given: dict[str, Any] | None = None) -> Any:
    """Return parsed JSON as the annotated type.

    Args:
        expected: a dataclass, list, tuple of fixed length, dict of strings, optional or plain type.
        data: what `json.loads` gave.
        where: how an error calls it.
        given: fields of a dataclass that are known already and not in the data.

    Returns:
        The value.

    Raises:
        ValueError: the data are not of the type; names the field.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _parse_dataclass(expected, data, where, given or {})
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        (present,) = (argument for argument in arguments if argument is not type(None))
        return parse(present, data, where)
    if origin in (list, tuple):
        if not isinstance(data, list) or (origin is tuple and len(data) != len(arguments)):
            raise ValueError(f"{where}: expected {expected}, got {data!r}")
        each = arguments if origin is tuple else arguments * len(data)
        values = zip(each, data, strict=True)
        return origin(
            parse(type_, value, f"{where}[{index}]") for index, (type_, value) in enumerate(values)
        )
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected an object, got {data!r}")
        return {key: parse(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    # JSON has one kind of number, and Python counts a bool among the integers.
    accepted = (int, float) if expected is float else expected
    if not isinstance(data, accepted) or (isinstance(data, bool) and expected is not bool):
        raise ValueError(f"{where}: expected {expected.__name__}, got {data!r}")
    return data


def _parse_dataclass(expected: Any, data: Any, where: str, given: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(expected)} - given.keys()
    if not isinstance(data, dict) or data.keys() != names:
        found = sorted(data) if isinstance(data, dict) else data
        raise ValueError(f"{where}: expected the fields {sorted(names)}, got {found!r}")
    annotations = typing.get_type_hints(expected)
    values = {name: parse(annotations[name], data[name], f"{where}.{name}") for name in names}
    return expected(**values, **given)
