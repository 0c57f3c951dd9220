"""Templates by name. A template is code, so it states which text is trained."""

import datetime
import inspect
from collections.abc import Mapping
from typing import Any

from lm.data.templates.alpaca import alpaca, alpaca_nl
from lm.data.templates.chat import chatml, llama2, llama3, tulu
from lm.data.templates.few_shot import few_shot, with_examples
from lm.data.templates.jinja import jinja
from lm.data.templates.plain import plain
from lm.data.templates.self_instruct import self_instruct
from lm.data.templates.template import Template
from lm.data.templates.tk_instruct import tk_instruct
from lm.models.config import ConfigError, nearest

TEMPLATES = {
    "alpaca": alpaca,
    "alpaca_nl": alpaca_nl,
    "tk_instruct": tk_instruct,
    "self_instruct": self_instruct,
    "chatml": chatml,
    "tulu": tulu,
    "llama2": llama2,
    "llama3": llama3,
    "jinja": jinja,
    "plain": plain,
}
DAYS = 1_100  # how many past days to try when a remembered template lacks its date
CONTROL = {  # control tokens that a template needs besides the tokenizer's end-of-text token
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}

__all__ = [
    "CONTROL",
    "TEMPLATES",
    "Template",
    "check_name",
    "date_of",
    "get",
    "options_of",
    "recall",
    "remember",
    "stop_id",
    "with_examples",
]


def get(name: str, tokenizer, **options) -> Template:
    """Template of that name for a tokenizer. The option `shots` is that of `few_shot`.

    Raises ConfigError for an unknown name or option, and for a tokenizer without the control tokens
    that the template needs.
    """
    check_name(name)
    known = options_of(name) | {"shots": 0}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(
                f"template {name!r} has no option {option!r}{nearest(option, known)}; it has "
                f"{', '.join(known)}"
            )
        if type(value) is not type(known[option]):
            raise ConfigError(
                f"template {name!r}: {option}={value!r}: expected "
                f"{type(known[option]).__name__}, as {known[option]!r} is"
            )
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"template {name!r}: the tokenizer has no end-of-text token (eos_token); set one and "
            "save it again"
        )
    missing = [token for token in CONTROL.get(name, ()) if special_id(tokenizer, token) is None]
    if missing:
        raise ConfigError(
            f"template {name!r} needs the control tokens {', '.join(missing)}, which the "
            "tokenizer does not have; add them to it as "
            "special tokens, or use a template without any, such as 'tulu'"
        )
    shots = options.pop("shots", 0)
    return few_shot(TEMPLATES[name](tokenizer, **options), shots)


def check_name(name: str) -> None:
    """Raise ConfigError unless there is a template of that name."""
    if name not in TEMPLATES:
        raise ConfigError(
            f"task.template={name!r} is unknown{nearest(name, TEMPLATES)}; one of "
            f"{', '.join(TEMPLATES)}"
        )


def options_of(name: str) -> dict[str, Any]:
    """Options of a template with their defaults."""
    parameters = inspect.signature(TEMPLATES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("tokenizer", "name", "end")}


def stop_id(template: Template, tokenizer) -> int:
    """Id of the token that ends an answer."""
    found = special_id(tokenizer, template.stop)
    if found is None:
        raise ConfigError(
            f"template {template.name!r}: {template.stop!r} is no control token of the tokenizer"
        )
    return found


def special_id(tokenizer, token: str) -> int | None:
    """Id of a control token; None if the tokenizer does not have it as one."""
    for number, added in tokenizer.added_tokens_decoder.items():
        if str(added) == token and added.special:
            return number
    return tokenizer.convert_tokens_to_ids(token) if token in tokenizer.all_special_tokens else None


def remember(template: Template) -> dict:
    """JSON description of a template, for a run folder."""
    return {
        "name": template.name,
        "options": dict(template.options),
        "stop": template.stop,
        "fingerprint": template.fingerprint,
    }


def recall(kept: Mapping, tokenizer) -> Template:
    """Template that `remember` described. Raises ConfigError if it now renders differently."""
    template = get(kept["name"], tokenizer, **kept["options"])
    if (
        template.fingerprint != kept["fingerprint"]
        and "date" in template.options
        and "date" not in kept["options"]
    ):
        template = _of_some_day(kept, tokenizer) or template
    if template.fingerprint != kept["fingerprint"]:
        raise ConfigError(
            f"template {template.name!r} spells records differently from when the model was "
            f"trained (fingerprint {template.fingerprint}, "
            f"then {kept['fingerprint']}): the tokenizer or the code has changed; use those of "
            "the training, or name a template explicitly"
        )
    return template


def date_of(kept: Mapping | None, name: str, tokenizer) -> dict[str, str]:
    """Option `date` with which a template renders as the remembered one; {} if it has no date."""
    if kept is None or kept.get("name") != name:
        return {}
    try:
        date = kept["options"].get("date") or recall(kept, tokenizer).options.get("date")
    except ConfigError:  # it differs in more than the date
        date = None
    return {"date": date} if date else {}


def _of_some_day(kept: Mapping, tokenizer) -> Template | None:
    """Template with the date that gives the remembered fingerprint, or None."""
    today = datetime.date.today()
    days = ((today - datetime.timedelta(days=n)).isoformat() for n in range(DAYS))
    every = (get(kept["name"], tokenizer, **kept["options"], date=day) for day in days)
    return next(
        (template for template in every if template.fingerprint == kept["fingerprint"]), None
    )
