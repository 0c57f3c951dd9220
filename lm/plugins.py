"""Classes that a config names: short names of this package, or module:Class of a user's file."""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lm.errors import ConfigError, nearest


def find(field: str, name: str, known: Mapping[str, type], base: type) -> Any:
    """Class of that name, a dataclass that derives from `base`.

    field: of the config, for messages. Raises ConfigError for an unknown name, and for a module or
    class that cannot be used, with the reason.
    """
    if ":" not in name:
        if name not in known:
            raise ConfigError(
                f"{field}={name!r} is unknown{nearest(name, known)}; one of "
                f"{', '.join(known)}, or module:Class of your own"
            )
        return known[name]
    found = attribute(field, name, "class")
    if not (
        isinstance(found, type) and issubclass(found, base) and dataclasses.is_dataclass(found)
    ):
        raise ConfigError(
            f"{field}={name!r} is {found!r}: expected a frozen dataclass that derives from "
            f"{base.__module__}.{base.__name__}"
        )
    if inspect.isabstract(found):
        missing: Any = found
        raise ConfigError(
            f"{field}={name!r} does not define {', '.join(sorted(missing.__abstractmethods__))}"
        )
    return found


def attribute(field: str, name: str, what: str) -> Any:
    """Object `module:attribute` of a user's file, also of one in the working directory.

    what: "class" or "function", for messages. Raises ConfigError, with the reason.
    """
    module, _, wanted = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # installed commands do not look in the working directory
    try:
        return getattr(importlib.import_module(module), wanted)
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(
            f"{field}={name!r}: the {what} {wanted!r} of the module {module!r}, looked for from "
            f"{os.getcwd()}, cannot be used ({type(error).__name__}: {error})"
        ) from error


def name_of(kind: type, known: Mapping[str, type]) -> str:
    """Name of a class in a config."""
    for name, found in known.items():
        if found is kind:
            return name
    return f"{kind.__module__}:{kind.__qualname__}"


def made(kind: Any, fields: Mapping[str, Any]) -> Any:
    """Instance of a dataclass with these fields; sections become its nested dataclasses."""
    usual = kind()
    given = {
        name: type(getattr(usual, name))(**value)
        if dataclasses.is_dataclass(getattr(usual, name))
        and isinstance(value, Mapping | ConfigDict)
        else tuple(value)
        if isinstance(getattr(usual, name), tuple)
        else value.to_dict()
        if isinstance(value, ConfigDict)
        else value
        for name, value in fields.items()
    }
    return kind(**given)
