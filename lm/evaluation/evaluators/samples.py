"""Continuations of prompts, for samples.md."""

import dataclasses

from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.models.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Samples(Evaluator):
    """Texts that the model draws after prompts. The seed is the step."""

    prompts: tuple[str, ...] = ()
    tokens: int = 48  # new tokens per sample
    temperature: float = 0.8
    top_p: float = 0.95  # nucleus sampling

    def check(self, config) -> None:
        if not self.prompts:
            raise ConfigError("prompts is not set: give texts to continue")
        if self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens}: expected a number of at least 1")

    def prepare(self, tools: Tools) -> Prepared:
        from lm.generation import Sample, generate

        ids = [tools.prompt_ids(prompt) for prompt in self.prompts]

        def evaluate(params: dict, step: int) -> Result:
            sampler = Sample(temperature=self.temperature, top_p=self.top_p)
            new = generate(tools.model, params, ids, self.tokens, sampler, seed=step)
            texts = [tools.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in new]
            return Result(samples=list(zip(self.prompts, texts, strict=True)))

        return evaluate
