"""Values per parameter: a table of (regex, value), of which the first match in the path is used.

Used for weight decay, learning rates and frozen parameters (rate 0), after big_vision's optax.py.
"""

import itertools
import math
import re
from collections.abc import Collection

import flax.traverse_util
import jax

from lm.distributed.sharding import path_name
from lm.models.config import ConfigError

Table = tuple[tuple[str, float], ...]

DECAY: Table = (
    (r"norm[/_]|bias$|a_log$|skip$", 0.0),
    (r".", 1.0),
)  # no decay for norms, biases, and a state space's A, D and time-step bias
RATES: Table = ((r".", 1.0),)


def check(table: Table, field: str) -> None:
    """Raise ConfigError, calling the table `field`, unless it has (regex, finite number >= 0)."""
    for entry in table:
        pair = tuple(entry) if isinstance(entry, tuple | list) else ()
        if (
            len(pair) != 2
            or not isinstance(pair[0], str)
            or isinstance(pair[1], bool)
            or not isinstance(pair[1], int | float)
        ):
            raise ConfigError(
                f"{field} holds {entry!r}; expected pairs (regex, number), such as ((r'norm', "
                "0.0), (r'.', 1.0))"
            )
        if not math.isfinite(pair[1]) or pair[1] < 0:
            raise ConfigError(
                f"{field} gives {pair[0]!r} the value {pair[1]}; expected a finite number, 0 or "
                "more"
            )
        try:
            re.compile(pair[0])
        except re.error as e:
            raise ConfigError(f"{field}: {pair[0]!r} is not a regular expression: {e}") from e


def by_path(tree) -> dict:
    """Flatten a nested dict to {path: leaf}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def check_used(
    names: Collection[str], table: Table, field: str, every_pattern: bool = True
) -> None:
    """Raise ConfigError for a parameter that no pattern matches, or a pattern without a match."""
    for name in names:
        of(table, name, field)
    for pattern, _ in table:
        if every_pattern and not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"{field}: {pattern!r} is in no parameter's path; there are "
                f"{', '.join(sorted(names))}"
            )
        if every_pattern and (idle := idle_parts(pattern, names)):
            raise ConfigError(
                f"{field}: {idle[0]!r} of {pattern!r} is in no parameter's path; there are "
                f"{', '.join(sorted(names))}"
            )


def idle_parts(pattern: str, names: Collection[str]) -> list[str]:
    """Alternatives of a pattern (a|b, x(a|b)y) that match no name.

    Patterns with [ or \\( are not analysed.
    """
    if re.search(r"\[|\\[(|)]", pattern):
        return []
    depth, cuts = 0, [-1]
    for place, char in enumerate(pattern):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "|" and depth == 0:
            cuts.append(place)
    whole = [pattern[i + 1 : j] for i, j in itertools.pairwise([*cuts, len(pattern)])]
    tried = [(part, part) for part in whole if len(whole) > 1]
    for group in re.finditer(r"\((?:\?:)?([^()?]*\|[^()]*)\)", pattern):
        tried += [
            (part, f"{pattern[: group.start()]}(?:{part}){pattern[group.end() :]}")
            for part in group[1].split("|")
        ]
    return [
        part
        for part, its in tried
        if _valid(its) and not any(re.search(its, name) for name in names)
    ]


def _valid(pattern: str) -> bool:
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def of(table: Table, name: str, field: str) -> float:
    """Value for the parameter `name`. Raises ConfigError when no pattern matches."""
    for pattern, value in table:
        if re.search(pattern, name):
            return float(value)
    raise ConfigError(
        f"{field} has no pattern for parameter {name}; end the list with ('.', value)"
    )


def values(params, table: Table, field: str):
    """Tree of floats like params. Raises ConfigError when no pattern matches a parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: of(table, path_name(path), field), params
    )


def split(params: dict, rates: Table = RATES) -> tuple[dict, dict]:
    """(trained, frozen) nested dicts; frozen parameters have the rate 0. `join` is the inverse."""
    flat = by_path(params)
    frozen = {name for name in flat if of(rates, name, "optimizer.rates") == 0.0}
    if not frozen:
        return params, {}
    unflatten = lambda keep: flax.traverse_util.unflatten_dict(
        {n: x for n, x in flat.items() if (n in frozen) != keep}, sep="/"
    )
    return unflatten(True), unflatten(False)


def join(trained: dict, frozen: dict) -> dict:
    """Merge what `split` separated."""
    if not frozen:
        return trained
    return flax.traverse_util.unflatten_dict(by_path(trained) | by_path(frozen), sep="/")


def average_of(params: dict, average: dict | None) -> dict:
    """Replace params that have a moving average by it, in their own dtypes."""
    if average is None:
        return params
    flat, new = by_path(params), by_path(average)
    return flax.traverse_util.unflatten_dict(
        {n: x if n not in new else new[n].astype(x.dtype) for n, x in flat.items()}, sep="/"
    )
