"""Mixtures of sources in a config: check the fields, and make one config per source."""

import ml_collections

from lm.data import mixtures
from lm.data.mixtures import Mixture
from lm.data.packing import Packed
from lm.models.config import ConfigError, nearest
from lm.objectives import OBJECTIVES, Transform
from lm.training import instruction, unused

OWN = (
    "field",
    "separator",
    "format",
    "cap",
    "hold_out",
    "max_bad_share",
)  # fields of config.data that a source may override
KINDS: dict[str, type] = {
    "files": str,
    "weight": float,
    "limit": int,
    "objective": str,
}  # types of a source's other fields
FIELDS = (*KINDS, *OWN)
WORDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number"}


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ConfigError, naming the field, when data.mixture or a related field is invalid."""
    data = config.data
    if not data.mixture:
        if data.temperature != 1.0:
            raise ConfigError(
                f"data.temperature={data.temperature} is of data.mixture, which names no source; "
                "leave it as it is"
            )
        return
    if data.files or data.synthetic_rows:
        raise ConfigError(
            "set data.files, data.mixture or data.synthetic_rows, and only one of them"
        )
    for name, part in data.mixture.items():
        if not isinstance(part, ml_collections.ConfigDict):
            raise ConfigError(
                f"data.mixture.{name}={part!r}: expected fields: files, and weight, limit, "
                f"{', '.join(OWN)} as needed"
            )
        for field, value in part.items():
            if field not in FIELDS:
                raise ConfigError(
                    f"data.mixture.{name}.{field} is unknown{nearest(field, FIELDS)}; one of "
                    f"{', '.join(FIELDS)}"
                )
            kind = KINDS.get(field) or type(data[field])
            if not isinstance(value, (float, int) if kind is float else kind):
                raise ConfigError(f"data.mixture.{name}.{field}={value!r}: expected {WORDS[kind]}")
        if not part.get("files"):
            raise ConfigError(f"data.mixture.{name}.files is not set: give paths or globs")
        _check_objective(config.objective.name, name, part.get("objective", config.objective.name))
    mixtures.check_weights(data.mixture.to_dict(), data.temperature)
    if instruction.HELD_OUT in config.eval.data.values():
        raise ConfigError(
            f"eval.data asks for {instruction.HELD_OUT!r}, the tasks held out of data.files; "
            "with data.mixture, name files"
        )


def _check_objective(main: str, name: str, own: str) -> None:
    where = f"data.mixture.{name}.objective={own!r}"
    if own not in OBJECTIVES:
        raise ConfigError(
            f"{where} is unknown{nearest(own, OBJECTIVES)}; one of {', '.join(OBJECTIVES)}"
        )
    if own != main and (
        own in instruction.OBJECTIVES or OBJECTIVES[own].loss is not OBJECTIVES[main].loss
    ):
        alike = [
            n
            for n, o in OBJECTIVES.items()
            if n not in instruction.OBJECTIVES and o.loss is OBJECTIVES[main].loss
        ]
        raise ConfigError(
            f"{where} does not go with objective.name={main!r}; one of "
            f"{', '.join(dict.fromkeys([main, *alike]))}"
        )


def parts(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Source -> config of a run on it alone; {} without a mixture.

    A source may have its own objective, such as text beside instruct data against forgetting
    (PPO-ptx, Ouyang et al. 2022, section 3.5). Settings of the other objective are then reset.
    """
    found = {}
    for name, part in config.data.mixture.items():
        own = ml_collections.ConfigDict(config.to_dict())
        if part.get("objective", config.objective.name) != config.objective.name:
            own.objective.name, own.samples.prompts = part.objective, ()
        unused.reset(own)
        own.data.update({field: part[field] for field in ("files", *OWN) if field in part})
        own.data.mixture, own.data.temperature = ml_collections.ConfigDict(), 1.0
        found[name] = own
    return found


def mixture(
    config: ml_collections.ConfigDict,
    packed: dict[str, Packed],
    transforms: dict[str, Transform | None],
) -> Mixture:
    """Mixture of the packed sources, with their transforms. Raises ConfigError and DataError."""
    given = config.data.mixture.items()
    return Mixture(
        [
            mixtures.Part(
                name, packed[name], part.get("weight"), part.get("limit") or 0, transforms[name]
            )
            for name, part in given
        ],
        config.data.temperature,
        config.seed,
    )
