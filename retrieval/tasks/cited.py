"""Reinforcement learning with an open book: passages in the prompt, rewards for citing them.

The policy reads the prompt that `retrieval.ask` shows a reader with the door in_context. The record
of an answer, which the rewards see, has the texts of the passages in `passages`, by their numbers.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.models.config import ConfigError
from lm.rewards import Answer
from lm.rewards.citations import CITATION
from lm.rewards.exact_match import exact_match, normalised
from lm.tasks import prompts
from lm.tasks.grpo import GRPO
from lm.tasks.task import Tools
from retrieval.doors.in_context import close_to_the_best
from retrieval.doors.prompt import build_prompt
from retrieval.encoders.encoding import encoder_like
from retrieval.errors import RetrievalError
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.tasks import searchable

PASSAGES = "passages"  # field of a record with the texts that were shown
INSTRUCTION = "Answer the question in a few words, and cite the fact that says so, as in [1]."


@dataclasses.dataclass(frozen=True)
class CitedGRPO(GRPO):
    """Learn by GRPO to answer questions from the passages that a memory finds, and to cite them."""

    prompt_field: str = "question"  # field of a record that holds the question
    memory: str = ""  # folder of the memory
    k: int = 4  # passages that are searched for a question
    instruction: str = INSTRUCTION  # first line of the prompt

    def check(self, config) -> None:
        super().check(config)
        if not self.memory:
            raise ConfigError("task.memory is not set: give the folder of a memory")
        if self.k < 1:
            raise ConfigError(f"task.k={self.k}: expected at least 1 passage")
        if not self.instruction.strip():
            raise ConfigError("task.instruction is empty: say what to do with the passages")
        searchable.store(self.memory)

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        most = self.longest_prompt(tools)
        rows = [
            (where, record)
            for where, record in prompts.records(files, part, tools)
            if prompts.text_of(where, record, self.prompt_field)
        ]
        memory = Memory.open(self.memory, encoder_like(searchable.store(self.memory)))
        hits = memory.search([record[self.prompt_field] for _, record in rows], self.k)
        found, without = [], 0
        for (where, record), of in zip(rows, hits, strict=True):
            ids, shown = self._prompt(record[self.prompt_field], of, most, where, tools)
            without += not shown
            record = {**record, PASSAGES: [hit.text for hit in shown]}
            content = json.dumps([record, ids], sort_keys=True, default=str)
            found.append((record, record[self.prompt_field], ids, content))
        if not found:
            raise DataError(f"{files} holds no question{'' if part == 'all' else f' for {part}'}")
        counts = {"questions_without_passages": without} if without else {}
        return prompts.packed(found, tools.length, counts)

    def _prompt(
        self, question: str, hits: list[Hit], most: int, where: str, tools: Tools
    ) -> tuple[tuple[int, ...], tuple[Hit, ...]]:
        try:
            built = build_prompt(
                tools.tokenizer,
                question,
                close_to_the_best(hits),
                most,
                encoder=bool(tools.model.encoder_layers),
                instruction=self.instruction,
            )
        except RetrievalError as error:
            raise DataError(f"{where}: {error}; raise length, or lower task.new_tokens") from None
        return tuple(built.tokens), built.shown


def right(answer: Answer, *, field: str = "answer") -> float:
    """1.0 if the answer without its citations is one of the references in `field`."""
    return exact_match(dataclasses.replace(answer, text=_uncited(answer)), field=field)


def supports(answer: Answer) -> float:
    """Share of the passages cited that contain the answer given; 0.0 without a citation."""
    passages: list[str] = answer.record[PASSAGES]
    cited = {int(number) for number in CITATION.findall(answer.text)}
    said = f" {normalised(_uncited(answer))} "
    if not cited or not said.strip():
        return 0.0
    hold = {n for n, text in enumerate(passages, 1) if said in f" {normalised(text)} "}
    return len(cited & hold) / len(cited)


def _uncited(answer: Answer) -> str:
    return CITATION.sub("", answer.text)


REWARDS: Mapping[str, Any] = {
    "right": {"type": "retrieval.tasks.cited:right"},
    "supports": {"type": "retrieval.tasks.cited:supports", "weight": 0.5},
}
