"""Instruct tuning: answer prompts. Records are rendered by a template; the answers are trained."""

import dataclasses
from typing import ClassVar

from lm.data import templates
from lm.data.encode import fitting, instruct
from lm.data.encode.fitting import Limits
from lm.data.packed import Packed
from lm.data.records import reading as records
from lm.data.records.reading import FORMATS, Reading
from lm.data.templates import Template
from lm.data.templates.chat import TURNS
from lm.models import build
from lm.models.config import ConfigError, ModelConfig, nearest
from lm.tasks.task import HELD_OUT, Kept, Start, Tools
from lm.tasks.text import TokenTask

SEEDED = ("self_instruct", "tk_instruct")  # templates with random choices


@dataclasses.dataclass(frozen=True)
class TkInstruct:
    """Options of the template "tk_instruct" (lm/data/templates/tk_instruct.py)."""

    definition: bool = True  # the task's definition
    positive: int = 2  # number of examples
    negative: int = 0  # number of negative examples
    explanations: bool = False  # explanations of the examples
    mixed: bool = False  # instead, draw one of five encodings per record
    max_prompt: int = 1024  # maximum tokens of a prompt


@dataclasses.dataclass(frozen=True)
class Instruct(TokenTask):
    """Predict the answers of prompts with answers, or the assistant's turns of conversations."""

    # Loss weight of a decoder's tokens outside answers, in training; tokens of answers have 1.
    prompt_loss_weight: float = 0.0
    # auto (detected from the first record), alpaca, self_instruct, superni, completion, messages,
    # sharegpt, preference
    format: str = "auto"
    prompt_field: str = "prompt"  # of the format completion: field of the prompt
    completion_field: str = "completion"  # of the format completion: field of the answer
    template: str = ""  # a name in lm/data/templates; "" = that of init_from's run
    turns: str = "all"  # assistant turns of a conversation that are trained: all, last
    # Few-shot examples before each prompt: the record's own, or drawn from its task. tk_instruct
    # has its own option.
    shots: int = 0
    cap: int = 0  # maximum records per task, drawn from the seed; 0 = all
    # Tasks held out of training: names or globs, or a share such as "0.1". eval.data.NAME =
    # "hold_out" evaluates them.
    hold_out: str = ""
    # Policy for an example longer than a row: drop, truncate_prompt (remove its start), raise.
    too_long: str = "drop"
    max_long: float = 0.01  # maximum share of examples that are too long
    # Tokens per row of an encoder-decoder's answers, where length is that of prompts; 0 = length.
    target_length: int = 0
    tk_instruct: TkInstruct = TkInstruct()  # options used if template is "tk_instruct"

    heads: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq_lm")
    renders: ClassVar[bool] = True
    evaluation: ClassVar[str] = "--examples=FILES"

    def check(self, config) -> None:
        super().check(config)
        if not 0 <= self.prompt_loss_weight <= 1:
            raise ConfigError(
                f"task.prompt_loss_weight={self.prompt_loss_weight}: expected a share of the "
                "weight of an answer's tokens, from 0 to 1"
            )
        if self.format != "auto" and self.format not in FORMATS:
            raise ConfigError(
                f"task.format={self.format!r} is unknown{nearest(self.format, FORMATS)}; one of "
                f"auto, {', '.join(FORMATS)}"
            )
        pair = (self.prompt_field, self.completion_field)
        if not all(pair) or len(set(pair)) < 2:
            raise ConfigError(
                f"task.prompt_field={pair[0]!r}, task.completion_field={pair[1]!r}: expected the "
                "names of two fields"
            )
        if pair != records.PAIR and self.format not in ("auto", "completion"):
            raise ConfigError(
                f"task.prompt_field={pair[0]!r}, task.completion_field={pair[1]!r} are of the "
                f"format 'completion', and task.format={self.format!r}"
            )
        self._check_template(config)
        for field, known in (("turns", TURNS), ("too_long", fitting.POLICIES)):
            value = getattr(self, field)
            if value not in known:
                raise ConfigError(
                    f"task.{field}={value!r}{nearest(value, known)}: expected one of "
                    f"{', '.join(known)}"
                )
        for field in ("cap", "target_length"):
            if getattr(self, field) < 0:
                raise ConfigError(f"task.{field}={getattr(self, field)}: expected 0 or more")
        if not 0 <= self.max_long <= 1:
            raise ConfigError(f"task.max_long={self.max_long}: expected a share between 0 and 1")
        if HELD_OUT in config.eval.data.values() and not self.hold_out:
            raise ConfigError(f"eval.data asks for {HELD_OUT!r}, and task.hold_out names no tasks")

    def _check_template(self, config) -> None:
        if self.template:
            templates.check_name(self.template)
            if self.template != "tk_instruct" and (changed := self._changed()):
                raise ConfigError(
                    f"task.tk_instruct.{changed[0]} is for the template 'tk_instruct', and "
                    f"task.template is {self.template!r}"
                )
            if self.turns != TURNS[0] and "turns" not in templates.options_of(self.template):
                raise ConfigError(
                    f"task.turns={self.turns!r}: template {self.template!r} has one turn; use a "
                    "chat template such as 'chatml'"
                )
        elif not config.init_from:
            raise ConfigError(f"task.template is not set: one of {', '.join(templates.TEMPLATES)}")

    def _changed(self) -> list[str]:
        """Options of tk_instruct that differ from their defaults."""
        own, usual = vars(self.tk_instruct), vars(TkInstruct())
        return [name for name, value in own.items() if value != usual[name]]

    def prepare_tokenizer(self, tokenizer):
        """Add the control tokens of the template to the bytes tokenizer."""
        import transformers

        missing = [
            token
            for token in templates.CONTROL.get(self.template, ())
            if templates.special_id(tokenizer, token) is None
        ]
        added = [transformers.AddedToken(token, special=True) for token in missing]
        tokenizer.add_tokens(added, special_tokens=True)
        return tokenizer

    def prepare(self, start: Start, config, sources, kept: Kept) -> Start:
        """Set the template, and end answers at its stop token in generation too."""
        template = self._template(start.tokenizer, config, kept)
        c, stop = start.model.config, templates.stop_id(template, start.tokenizer)
        model = start.model
        if stop not in c.eos_token_ids:
            model = build(c.replace(eos_token_ids=(*c.eos_token_ids, stop)))
        return dataclasses.replace(start, model=model, template=template)

    def _template(self, tokenizer, config, kept: Kept) -> Template:
        """Template named by the config, else that of init_from. Raises ConfigError."""
        if not self.template:
            if kept.base is None:
                raise ConfigError(
                    f"task.template is not set, and {config.init_from} was trained with none: one "
                    f"of {', '.join(templates.TEMPLATES)}"
                )
            if self.turns != TURNS[0] or self.shots or self._changed():
                raise ConfigError(
                    f"task.template is not set, so that it is that of {config.init_from} as it "
                    "was; set it to change its options"
                )
            return kept.base
        options = dict(vars(self.tk_instruct)) if self.template == "tk_instruct" else {}
        if "turns" in templates.options_of(self.template):
            options["turns"] = self.turns
        if self.template in SEEDED:
            options["seed"] = config.seed
        options["shots"] = self.shots
        options |= templates.date_of(kept.there, self.template, tokenizer)
        return templates.get(self.template, tokenizer, **options)

    def reading(self, tools: Tools) -> Reading:
        """Options for reading records."""
        return Reading(
            self.format,
            self.cap,
            self.hold_out,
            tools.max_bad_share,
            tools.seed,
            tools.holdout_share,
            (self.prompt_field, self.completion_field),
        )

    def records(self, files: str, tools: Tools) -> records.Read:
        """Records to ask about, of files or of the held-out tasks. Raises DataError."""
        held_out = files == HELD_OUT
        reading = dataclasses.replace(
            self.reading(tools), hold_out=self.hold_out if held_out else "", holdout=0.0
        )
        return records.read(
            tools.files if held_out else files, reading, "held_out" if held_out else "all"
        )

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        """Pack the examples. Prompts have no weight in evaluation."""
        model = tools.model
        limits, start = self._limits(model, tools.length)
        held_out = files == HELD_OUT
        assert tools.template is not None  # set by `prepare`
        return instruct.pack_examples(
            tools.files if held_out else files,
            tools.template,
            tools.tokenizer,
            limits,
            tools.cache,
            self.reading(tools),
            part="held_out" if held_out else part,
            decoder_start=start,
            prompt_weight=self.prompt_loss_weight if part == "train" else 0.0,
        )

    def _limits(self, model: ModelConfig, length: int) -> tuple[Limits, int | None]:
        """Capacity of a row, and an encoder-decoder's start token."""
        start = model.decoder_start_token_id if model.encoder_layers else None
        written = self.target_length or length
        if self.target_length and start is None:
            raise ConfigError(
                f"task.target_length={self.target_length} is for an encoder-decoder; a decoder's "
                "rows have length"
            )
        if self.prompt_loss_weight and model.encoder_layers:
            raise ConfigError(
                f"task.prompt_loss_weight={self.prompt_loss_weight} is for a decoder: the encoder "
                "of this model reads the prompt, and nothing predicts it; set it to 0"
            )
        if model.encoder_layers and start is None:
            raise ConfigError(
                "model.decoder_start_token_id is not set, and the decoder must start from some "
                "token"
            )
        if written > model.max_length:
            raise ConfigError(
                f"task.target_length={written} is more than model.max_length={model.max_length}; "
                "lower it"
            )
        read = 0 if start is None else length
        return Limits(written, read, self.too_long, self.max_long), start
