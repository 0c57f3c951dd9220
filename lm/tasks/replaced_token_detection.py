"""Replaced-token detection: tell which tokens a generator replaced (ELECTRA, Clark et al. 2020).

A small masked language model, the generator, fills in hidden tokens; the run's model, the
discriminator, tells for every token whether it is the text's own (sections 2 and 3). Both are
trained together, and share token and position embeddings (section 3.2).
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lm import families
from lm.batch import Batch
from lm.heads import with_head
from lm.losses import Loss, Term, chunks, cross_entropy
from lm.losses.tokens import head_of
from lm.models import build, shards
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.masked import Masked
from lm.tasks.models import Aux, Models
from lm.tasks.task import Start, share

HEAD, GENERATOR, DISCRIMINATOR = "replaced_token_detection", "generator", "discriminator"


@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(Masked):
    """Tell the tokens of a text from those that a generator put in their place."""

    mask: float = 1.0  # share of the selected tokens that the generator reads as the mask token
    random: float = 0.0  # share of these that it reads as a random token
    # Width, heads and d_ff of the generator as a share of the model's.
    generator_size: float = 0.25
    # Run folder, model folder or hub id of a masked language model to start the generator from;
    # "" = random weights of generator_size.
    generator: str = ""
    discriminator_weight: float = 50.0  # factor of the discriminator's loss beside the generator's

    heads: ClassVar[tuple[str, ...]] = (HEAD,)
    makes_head: ClassVar[bool] = True
    terms: ClassVar[tuple[str, ...]] = (GENERATOR, DISCRIMINATOR)
    noisy: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    evaluator: ClassVar[str] = "means"
    evaluation: ClassVar[str] = ""

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {DISCRIMINATOR: self.discriminator_weight}

    def check(self, config) -> None:
        super().check(config)
        share("generator_size", self.generator_size)
        if not 0 < self.discriminator_weight < math.inf:
            raise ConfigError(
                f"task.discriminator_weight={self.discriminator_weight}: expected a finite number "
                "above 0"
            )

    def prepare(self, start: Start, config, sources, kept) -> Start:
        """Give the model the discriminator's head, drawn from the seed unless it has one.

        Raises ConfigError when low-rank adapters would leave a new head frozen.
        """
        start = super().prepare(start, config, sources, kept)
        c = start.model.config
        if c.head == HEAD:
            return start
        lora = config.adaptation.lora
        if lora.rank and not re.search(lora.pattern, "head/classifier"):
            raise ConfigError(
                f"adaptation.lora.pattern={lora.pattern!r} leaves head/classifier frozen, and it "
                "is drawn at random: add head, as in '(attention|mlp|head)/'"
            )
        headed = _with_head(c, HEAD, head_dense=c.activation)
        if start.params is None:
            return dataclasses.replace(start, model=build(headed))
        model, key = build(_padded(c)), jax.random.key(config.seed)
        params = with_head(model, start.params, HEAD, key, head_dense=c.activation)[1]
        return dataclasses.replace(start, model=build(headed), params=params)

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        tied = {"embeddings/token": "embeddings/token"}
        if model.positions == "learned":
            tied["embeddings/position"] = "embeddings/position"
        if self.generator:
            own: Aux = Aux(self.generator, trained=True, tied=tied, heads=("masked_lm",))
        else:
            own = Aux(self._smaller(model), "random", trained=True, tied=tied)
        return {GENERATOR: own}

    def _smaller(self, model: ModelConfig) -> ModelConfig:
        """Config of a new generator, with embeddings of the discriminator's width."""
        heads = max(1, round(model.n_heads * self.generator_size))
        width = model.d_model * heads // model.n_heads
        table = model.embedding_width or model.d_model
        return _with_head(
            model,
            "masked_lm",
            d_model=width,
            embedding_width=0 if table == width else table,
            n_heads=heads,
            n_kv_heads=heads if model.n_kv_heads == model.n_heads else 1,
            d_ff=max(1, round(model.d_ff * self.generator_size)),
            tie_embeddings=True,
        )

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {GENERATOR: jnp.sum(batch.weights), DISCRIMINATOR: jnp.sum(_real(batch))}

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        """Losses of both models. Without `rng` the generator's draws are always the same."""
        generator = models[GENERATOR]
        key, *of_dropout = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        rngs: list[Any] = [None if rng is None else {"dropout": one} for one in of_dropout]
        found: Any = generator.model.apply(
            {"params": generator.params}, batch, method="hidden", rngs=rngs[0]
        )
        logits, head = head_of(generator.model, generator.params)
        chunk = self.chunk or chunks.chunk_length(*batch.tokens.shape, model.config.vocab_size)
        extra = cross_entropy.Extra(self.label_smoothing, self.z_loss)
        filled, plain = cross_entropy.summed(
            logits, head, found.hidden, batch.targets, batch.weights, chunk, extra, sparse=True
        )
        # No gradient flows through the draws (section 2).
        head, hidden = jax.lax.stop_gradient((head, found.hidden))
        hidden_tokens, real = batch.weights > 0, _real(batch)
        tokens = jnp.where(hidden_tokens, drawn(logits, head, hidden, key, chunk), batch.targets)
        replaced = (tokens != batch.targets).astype(jnp.float32)
        corrupt = dataclasses.replace(batch, tokens=tokens)
        scores = model.apply({"params": params}, corrupt, rngs=rngs[1]).logits
        told = jnp.sum((jax.nn.softplus(scores) - replaced * scores) * real)
        weight, of_all = jnp.sum(batch.weights), jnp.sum(real)
        right = jnp.sum(((scores > 0) == (replaced > 0)) * real)
        return Loss(
            {GENERATOR: Term(filled, weight), DISCRIMINATOR: Term(told, of_all)},
            {
                "accuracy": Term(right, of_all),
                "replaced": Term(jnp.sum(replaced * real), of_all),
                **({"cross_entropy": Term(plain, weight)} if extra else {}),
            },
        )


def drawn(logits, head: Any, hidden: jax.Array, key: jax.Array, chunk: int) -> jax.Array:
    """Tokens drawn from the predictions by Gumbel noise, int32 [B, T]; see `chunks.Logits`.

    The noise of a position does not depend on `chunk`, nor on the mesh.
    """
    rows, length, _ = hidden.shape
    keys = shards.row_keys(key, rows)

    def body(_, xs):
        hidden, at = xs
        scores = logits(head, hidden)
        noise = lambda key, at: jax.random.gumbel(jax.random.fold_in(key, at), scores.shape[-1:])
        return None, jnp.argmax(scores + jax.vmap(jax.vmap(noise, (None, 0)))(keys, at), axis=-1)

    at = jnp.broadcast_to(jnp.arange(length), (rows, length))
    _, found = jax.lax.scan(body, None, chunks.split((hidden, at), chunk))
    return chunks.join(found, length).astype(jnp.int32)


def _real(batch: Batch) -> jax.Array:
    return (batch.segments > 0).astype(jnp.float32)


def _padded(c: ModelConfig) -> ModelConfig:
    """Position ids of some families start after the padding id, so they need one."""
    return c if c.pad_token_id is not None else c.replace(pad_token_id=0)


def _with_head(c: ModelConfig, head: str, **fields: Any) -> ModelConfig:
    found = families.other_head(_padded(c), head, **fields)
    return found.replace(pad_token_id=c.pad_token_id)
