"""`config.task` has the fields of the chosen task: any other is refused, for every task."""

import dataclasses
import itertools

import pytest
from ml_collections import ConfigDict

from configs import smoke
from configs.defaults import defaults
from lm import tasks
from lm.models.config import ConfigError
from lm.tasks import TASKS
from lm.tasks.labels import LabelTask
from lm.tasks.policy import Policy
from lm.tasks.preference import Pairs
from lm.tasks.text import TextTask, TokenTask
from lm.training import parts, settings

FAMILY = {
    "masked": "bert",
    "replaced_token_detection": "electra",
    "span_corruption": "t5",
    "ul2": "t5",
    "denoising": "bart",
}
FIELDS = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in TASKS.items()}
EVERY = sorted(set().union(*FIELDS.values()))
TEXT = {"next_token", "prefix_lm", "masked", "span_corruption", "ul2", "denoising", "distillation"}
TEXT |= {"replaced_token_detection"}


def small(task):
    if issubclass(TASKS[task], Pairs):
        c = smoke.get_config("next_token,llama")
        c.data.files = "configs/examples/preferences.jsonl"
        c.task = tasks.defaults(task, template="plain")
        return c
    if issubclass(TASKS[task], Policy):
        c = smoke.get_config("next_token,llama")
        c.task = tasks.defaults(task, rewards={"ended": {}})
        return c
    return smoke.get_config(
        f"{task},{FAMILY.get(task, 'bert' if task in smoke.LABELLED else 'llama')}"
    )


def test_a_section_lacks_a_field_or_has_another_default():
    for name, kind in TASKS.items():
        section = tasks.defaults(name)
        assert {*section.keys()} == {"name", *FIELDS[name]} and section.name == name
        assert tasks.of({"task": section}) == kind() and section.is_locked
    assert defaults().task == tasks.defaults("next_token")
    assert {name for name, kind in TASKS.items() if issubclass(kind, TextTask)} == TEXT
    of_tokens = {name for name, kind in TASKS.items() if issubclass(kind, TokenTask)}
    assert of_tokens == TEXT | {"instruct"}
    of_labels = {name for name, kind in TASKS.items() if issubclass(kind, LabelTask)}
    apart = {name for name, kind in TASKS.items() if issubclass(kind, (Pairs, Policy))}
    assert of_labels == {*TASKS} - of_tokens - apart == {*smoke.LABELLED}


@pytest.mark.parametrize("task", TASKS)
def test_a_field_that_a_task_does_not_have_is_accepted(task):
    config = small(task)
    settings.check(config, 8)
    section = config.task.to_dict()
    others = [field for field in EVERY if field not in FIELDS[task]]
    assert others
    for field in others:
        having = ", ".join(name for name in TASKS if field in FIELDS[name])
        config.task = ConfigDict({**section, field: 1})
        with pytest.raises(ConfigError) as error:
            settings.check(config, 8)
        said = str(error.value)
        assert said.startswith(f"task.{field}: the task {task!r} has no such field")
        assert f"; it is a field of the tasks {having}. Its fields are " in said
        with pytest.raises(ConfigError, match=rf"^task\.{field}: the task '{task}' has no such"):
            tasks.defaults(task, **{field: 1})
    config.task = ConfigDict(section)
    settings.check(config, 8)


@pytest.mark.parametrize("task", TASKS)
def test_a_misspelled_or_missing_field_is_not_named(task):
    section = tasks.defaults(task).to_dict()
    for field in FIELDS[task]:
        if len(field) > 3 and f"{field}x" not in FIELDS[task]:
            with pytest.raises(ConfigError, match=rf"task\.{field}x: .*did you mean '{field}'\?"):
                tasks.of({"task": {**section, f"{field}x": 1}})
        without = {name: value for name, value in section.items() if name != field}
        with pytest.raises(
            ConfigError,
            match=rf"^task\.{field} is missing in the section of task '{task}': make it with "
            rf"c\.task = tasks\.defaults\('{task}', \.\.\.\)",
        ):
            tasks.of({"task": without})


def test_a_name_without_its_section_is_accepted():
    for task, name in itertools.permutations(TASKS, 2):
        config = defaults()
        config.task = tasks.defaults(task)
        config.task.name = name
        with pytest.raises(
            ConfigError, match=rf"^task\.\w+(: the task| is missing .*task) '{name}'.* tasks\.def"
        ):
            settings.check(config, 8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maskd", r"task\.name='maskd' is unknown \(did you mean 'masked'\?\); one of next_token"),
        ("instrct", r"did you mean 'instruct'"),
        ("zzz", r"task\.name='zzz' is unknown; one of .*, or module:Class"),
    ],
)
def test_an_unknown_task_is_not_explained(name, said):
    with pytest.raises(ConfigError, match=said):
        tasks.defaults(name)
    config = defaults()
    config.task.name = name
    with pytest.raises(ConfigError, match=said):
        settings.check(config, 8)


@pytest.mark.parametrize("task", TASKS)
def test_random_tokens_take_the_place_of_labels_or_answers(task):
    config = small(task)
    config.data.files, config.data.synthetic_rows, config.samples.prompts = "", 8, ()
    if task in TEXT:
        settings.check(config, 8)
        return
    with pytest.raises(
        ConfigError,
        match=rf"^data\.synthetic_rows=8: the task '{task}' does not learn from random tokens",
    ):
        settings.check(config, 8)


def test_fields_of_a_source_with_its_own_task_are_not_checked():
    config = smoke.get_config("instruct,t5")
    source = {"files": config.data.files, "weight": 1.0}
    text = tasks.defaults("span_corruption", rate=0.3)
    config.data.files, config.data.mixture = "", {"new": source, "old": {**source, "task": text}}
    settings.check(config, 8)
    new, old = (part.config for part in parts.of(config).sources.values())
    assert new.task.template == "plain" and "rate" not in new.task
    assert "template" not in old.task
    assert old.task.rate == 0.3 and config.task.template == "plain"
    for name, task, said in (
        ("old", {**text.to_dict(), "cap": 3}, r"task\.cap: the task 'span_corruption' has no such"),
        ("old", {"name": "span_corruption"}, r"task\.\w+ is missing in the section of task 'span_"),
        ("old", {**text.to_dict(), "z_loss": -1.0}, r"task\.z_loss=-1\.0: expected"),
        ("new", {"rate": 0.3}, r"task\.rate: the task 'instruct' has no such field"),
    ):
        kept = config.data.mixture[name].to_dict()
        config.data.mixture[name].task = ConfigDict(task)
        with pytest.raises(ConfigError, match=said):
            settings.check(config, 8)
        config.data.mixture[name] = kept
    settings.check(config, 8)
