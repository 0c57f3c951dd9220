"""What tasks share that learn a policy from rewards: prompts, drawing, rewards, metrics."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm import rewards as rules
from lm.batch import TEXT, Batch, Field
from lm.data import templates
from lm.data.packed import Packed
from lm.data.source import Source, SourceTools
from lm.losses import Term, policy
from lm.models.config import ConfigError, ModelConfig
from lm.tasks import prompts
from lm.tasks.instruct import Instruct
from lm.tasks.models import Aux
from lm.tasks.rollouts import Rollouts, finite, token_log_probs
from lm.tasks.task import Kept, Start, Task, Tools

EACH = Field(("batch",), np.float32)  # a number for each answer
OF_TOKENS = Field(TEXT, np.float32)


@dataclasses.dataclass(frozen=True)
class Policy(Task):
    """Learn from rewards of answers that the model itself draws."""

    prompt_field: str = "prompt"  # field of a record that holds the prompt
    template: str = "plain"  # a name in lm/data/templates; "" = that of init_from's run
    # {NAME: {"type": ..., "weight": 1.0, OPTION: ...}}; docs/reinforcement.md
    rewards: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_bad_rewards: float = 0.0  # share of answers for which a reward may fail; without weight
    max_constant: int = 0  # stop after so many rollouts in a row with equal rewards; 0 = never
    max_long: float = 0.0  # maximum share of prompts that are too long, which are left out
    group: int = 8  # answers to each prompt
    new_tokens: int = 64  # most tokens of an answer, its end included
    temperature: float = 1.0  # of drawing, and of the probabilities that are learned
    top_k: int = 0  # drawing alone, as top_p and min_p; 0 = all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    slots: int = 0  # answers drawn at a time; 0 = all of a rollout
    minibatches: int = 1  # updates in which a rollout is used once: batch_size prompts each
    epochs: int = 1  # times that a rollout is used
    # Rounds of drawing in which groups with equal rewards are replaced (DAPO, section 3.2); 1 = no.
    rounds: int = 1
    mask_truncated: bool = False  # answers that did not end have no weight (DAPO, section 3.4)
    clip_low: float = 0.2  # the ratio is held above 1 - clip_low
    clip_high: float = 0.2  # and below 1 + clip_high
    entropy: float = 0.0  # weight of the entropy, which is raised
    kl: float = 0.0  # weight of the divergence from the reference
    # Keep the model that the run starts from as the reference; without it no divergence is logged.
    reference: bool = True
    chunk: int = 0  # positions whose logits are in memory at once; 0 = as many as fit 256 MB

    heads: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq_lm")
    renders: ClassVar[bool] = True
    new_fields: ClassVar[Mapping[str, Field]] = {
        "old_log_probs": OF_TOKENS,
        "reference_log_probs": OF_TOKENS,
        "advantages": OF_TOKENS,
        "rewards": EACH,
        "lengths": EACH,
        "ended": EACH,
        "mismatch": EACH,
        "draws": EACH,
    }

    @property
    def reward_functions(self) -> list[rules.Reward]:
        return rules.of(self.rewards, rules.REWARDS)

    @property
    def sampler(self) -> Any:
        from lm.generation.samplers import Sample

        return Sample(self.temperature, self.top_k, self.top_p, self.min_p)

    def check(self, config) -> None:
        _ = self.reward_functions
        if self.template:
            templates.check_name(self.template)
        for name, least in (
            ("group", 1),
            ("new_tokens", 1),
            ("minibatches", 1),
            ("epochs", 1),
            ("rounds", 1),
            ("slots", 0),
            ("max_constant", 0),
            ("chunk", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"task.{name}={getattr(self, name)}: expected at least {least}")
        for name, most in (("max_bad_rewards", 1.0), ("max_long", 1.0), ("clip_low", 1.0)):
            finite(name, getattr(self, name), 0.0, most)
        for name in ("clip_high", "entropy", "kl"):
            finite(name, getattr(self, name), 0.0)
        try:
            _ = self.sampler
        except ValueError as error:
            raise ConfigError(f"task.{error}") from None
        if self.kl and not self.reference:
            raise ConfigError(
                f"task.kl={self.kl} is a divergence from the reference: set task.reference=True"
            )
        if files := [files for files in config.eval.data.values() if files]:
            raise ConfigError(
                f"eval.data={files[0]!r}: prompts have no text to predict; measure their rewards "
                "with evals={NAME: {'type': 'rewards', 'files': ...}}"
            )
        if config.data.mixture:
            raise ConfigError("data.mixture: a policy reads prompts of data.files alone")
        for name, value in (
            ("model.dropout", config.model.dropout),
            ("adaptation.lora.dropout", config.adaptation.lora.dropout),
        ):
            if value:
                raise ConfigError(
                    f"{name}={value}: answers are drawn without dropout, and the ratio compares "
                    "one model with itself; set it to 0"
                )
        if config.adaptation.kl.strength:
            raise ConfigError(
                f"adaptation.kl.strength={config.adaptation.kl.strength}: use task.kl, which is "
                "taken on the answers"
            )

    def prepare_tokenizer(self, tokenizer):
        """Add the control tokens of the template to the bytes tokenizer."""
        return Instruct(template=self.template).prepare_tokenizer(tokenizer)

    def prepare(self, start: Start, config, sources, kept: Kept) -> Start:
        """Set the template, whose stop token ends answers."""
        return Instruct(template=self.template).prepare(start, config, sources, kept)

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        return {"reference": Aux()} if self.reference else {}

    def row_length(self, length: int, model: ModelConfig) -> int:
        """Tokens of a row: prompt and answer, or an encoder-decoder's answer."""
        return self.new_tokens if model.encoder_layers else length

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        tokens, group = (self.group, self.row_length(length, model)), (self.group,)
        names = ["tokens", "targets", "weights", "segments", "positions"]
        names += ["old_log_probs", "advantages"]
        names += ["reference_log_probs"] if self.reference else []
        found: dict[str, tuple[int, ...]] = dict.fromkeys(names, tokens)
        found |= dict.fromkeys(("rewards", "lengths", "ended", "mismatch", "draws"), group)
        if model.encoder_layers:
            read = ("encoder_tokens", "encoder_segments", "encoder_positions")
            found |= dict.fromkeys(read, (self.group, length))
        return found

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        most = self.longest_prompt(tools)
        return prompts.read(files, part, tools, self.prompt_field, most, self.max_long)

    def longest_prompt(self, tools: Tools) -> int:
        """Most tokens of a prompt. Raises ConfigError if there is room for none."""
        most = tools.length
        if not tools.model.encoder_layers:
            most -= self.new_tokens
        elif tools.model.decoder_start_token_id is None:
            raise ConfigError("model.decoder_start_token_id is not set: answers start from it")
        if most < 1:
            raise ConfigError(
                f"task.new_tokens={self.new_tokens} leaves no room for a prompt in "
                f"length={tools.length}; raise length"
            )
        return most

    def source(self, rows: Any, tools: SourceTools) -> Source:
        return Rollouts(self, prompts.checked(rows), tools)

    @abc.abstractmethod
    def finished(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the advantages to the arrays [P, G, T] of a rollout."""

    def measured(
        self, batch: Batch, log_probs: jax.Array, entropy: jax.Array, ratio: jax.Array
    ) -> dict[str, Term]:
        """Metrics of a batch [B, G, T]. The other arguments are [B * G, T]."""
        given: Any = batch.more
        flat: Any = batch.ungrouped()
        weights = flat.weights
        tokens, rows = jnp.sum(weights), jnp.float32(len(weights))
        over = lambda x: Term(jnp.sum(x * weights), tokens)
        each = lambda name: Term(jnp.sum(flat.more[name]), rows)
        low, high = 1 - self.clip_low, 1 + self.clip_high
        found = {
            "reward": each("rewards"),
            "answer_length": each("lengths"),
            "ended": each("ended"),
            "draws": each("draws"),
            "rollout_difference": each("mismatch"),
            "entropy": over(entropy),
            "ratio": over(ratio),
            "clipped": over(((ratio < low) | (ratio > high)).astype(jnp.float32)),
        }
        if self.group > 1:
            spread = jnp.std(given["rewards"], axis=1)
            groups = jnp.float32(len(spread))
            found["reward_spread"] = Term(jnp.sum(spread), groups)
            found["no_signal"] = Term(jnp.sum(spread == 0).astype(jnp.float32), groups)
        if self.reference:
            found["kl"] = over(policy.k3(log_probs, flat.more["reference_log_probs"]))
        return found

    def log_probs(self, model, params: dict, flat: Batch) -> tuple[jax.Array, jax.Array]:
        return token_log_probs(model, params, flat, self.temperature, self.chunk)
