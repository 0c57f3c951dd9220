"""A user's evaluator: how often the model repeats the last token of a prompt."""

import dataclasses

from lm.evaluation.evaluators import Evaluator, Result
from lm.generation import Greedy, generate
from lm.models.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Repeats(Evaluator):
    prompts: tuple[str, ...] = ()
    tokens: int = 4  # new tokens per prompt

    def check(self, config):
        if not self.prompts:
            raise ConfigError("prompts is not set: give texts")

    def prepare(self, tools):
        ids = [tools.prompt_ids(prompt) for prompt in self.prompts]

        def evaluate(params, step):
            new = generate(tools.model, params, ids, self.tokens, sampler=Greedy())
            counts = [
                sum(token == given[-1] for token in n) for n, given in zip(new, ids, strict=True)
            ]
            share = sum(counts) / (len(ids) * self.tokens)
            return Result({"repeats": share}, f"repeats {share:.2f}")

        return evaluate
