"""A field that the chosen objective does not read is refused, for every objective and field."""

import pytest

from configs import smoke
from configs.defaults import defaults
from lm.data import labelled
from lm.models.config import ConfigError
from lm.objectives import OBJECTIVES, next_token
from lm.training import command_line, mixing, settings, unused

EVERYBODYS = {
    "data.files",
    "data.mixture",
    "data.temperature",
    "data.max_bad_share",
    "data.cache",
    "objective.name",
}
FAMILY = {"masked": "bert", "span_corruption": "t5", "ul2": "t5", "denoising": "bart"}
OTHER = {str: "x", int: 7, float: 0.25, tuple: ("a", "b")}


def field(config, path):
    for name in path.split("."):
        config = config[name]
    return config


def test_a_field_has_no_reader_or_another_default():
    c = defaults()
    given = {
        f"{s}.{path}" for s in ("objective", "data") for path in command_line._dotted(c[s])
    } | {"data.mixture"}
    assert given - EVERYBODYS == set(unused.READ)
    assert {path: field(c, path) for path in unused.READ} == {
        path: default for path, (default, _) in unused.READ.items()
    }
    readers = {name for _, names in unused.READ.values() for name in names}
    assert readers == set(OBJECTIVES)
    assert {name for name, o in OBJECTIVES.items() if o.loss is next_token} == set(
        unused.TOKEN_LOSS
    )
    assert {name for name in OBJECTIVES if name in labelled.TASKS} == set(OBJECTIVES) - set(
        unused.TOKEN_LOSS
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_field_that_an_objective_ignores_is_accepted(objective):
    config = smoke.get_config(
        f"{objective},{FAMILY.get(objective, 'bert' if objective in labelled.TASKS else 'llama')}"
    )
    settings.check(config, 8)
    for path, (default, readers) in unused.READ.items():
        if objective in readers:
            continue
        section, _, name = path.rpartition(".")
        field(config, section)[name] = (
            not default if isinstance(default, bool) else OTHER[type(default)]
        )
        with pytest.raises(
            ConfigError,
            match=rf"^{path}=.* is not used by objective '{objective}', but by .*leave it at",
        ):
            settings.check(config, 8)
        field(config, section)[name] = default
    settings.check(config, 8)


def test_settings_of_a_source_with_its_own_objective_are_checked():
    config = smoke.get_config("instruct,t5")
    source = {"files": config.data.files, "weight": 1.0}
    config.data.files, config.data.mixture = (
        "",
        {"new": source, "old": {**source, "objective": "span_corruption"}},
    )
    config.objective.span_corruption.rate = 0.3
    settings.check(config, 8)
    new, old = mixing.parts(config).values()
    assert (new.data.template, old.data.template) == (
        "plain",
        "",
    ) and new.objective.span_corruption.rate == 0.15
    assert old.objective.span_corruption.rate == 0.3 and config.data.template == "plain"
    config.data.mixture.old.cap = 3
    with pytest.raises(
        ConfigError, match=r"data\.cap=3 is not used by objective 'span_corruption'"
    ):
        settings.check(config, 8)
    del config.data.mixture.old["cap"]
    config.objective.masked.rate = 0.3
    with pytest.raises(
        ConfigError, match=r"objective\.masked\.rate=0\.3 is not used by objective 'instruct'"
    ):
        settings.check(config, 8)
