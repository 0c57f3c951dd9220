"""Work to time, for Openbook and for its peers: training steps, decoding and prefill.

Every function sets up one side and returns a function that does the work once. The weights are
random. Both sides have the same shapes, batch, optimizer, clipping and precision. In bfloat16 both
train float32 parameters with bfloat16 products; transformers does so by autocast.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lm.families import class_of, config_to_hf, preset
from lm.host_memory import keep_freed
from lm.models.config import ModelConfig

MODELS = {  # name -> (family, preset)
    "gpt2-124m": ("gpt2", "124m"),
    "llama-135m": ("llama", "smollm2_135m"),
    "bert-base": ("bert", "base"),
    "bart-base": ("bart", "base"),
    "t5-base": ("t5", "base"),
    "mamba-130m": ("mamba", "130m"),
    "mamba2-130m": ("mamba2", "130m"),
}
MASKED_SHARE = 0.15  # of the tokens of a masked language model have a target
RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shape of the work. new: tokens to decode; 0 in training.

    dtype: float32, bfloat16, or int8 for its weights alone.
    """

    model: str
    batch: int
    length: int
    new: int = 0
    dtype: str = "float32"
    size: str = ""  # preset in place of the model's own

    @property
    def tokens(self) -> int:
        """Tokens of one repetition: trained (of the decoder, if there are two), or decoded."""
        return self.batch * (self.new or self.length)

    @property
    def activations(self) -> str:
        return "bfloat16" if self.dtype == "int8" else self.dtype

    def config(self) -> ModelConfig:
        family, own = MODELS[self.model]
        c = preset(family, self.size or own, dtype=self.activations)
        return c.replace(max_length=max(c.max_length, self.length + self.new))

    def arrays(self) -> dict[str, np.ndarray]:
        """Random tokens and targets, int32 [B, T]; `chosen`: positions with a target."""
        rng = np.random.default_rng(0)
        draw = lambda: rng.integers(5, self.config().vocab_size, (self.batch, self.length))
        chosen = rng.random((self.batch, self.length)) < MASKED_SHARE
        return {"tokens": draw(), "targets": draw(), "encoder_tokens": draw(), "chosen": chosen}


def our_model(sizes: Sizes, **changes):
    """(model, params) with random weights in float32 on one device."""
    import jax

    import lm
    from lm.training.state import drawn

    model = lm.build(sizes.config().replace(**changes))
    return model, jax.jit(lambda: drawn(model, 0))()


def our_batch(sizes: Sizes):
    """Batch of `sizes.arrays`, with the targets of the model's kind."""
    import lm

    arrays, c = sizes.arrays(), sizes.config()
    if c.head == "masked_lm":
        chosen = arrays["chosen"]
        return lm.Batch.of(arrays["tokens"], targets=arrays["targets"], weights=chosen)
    if c.encoder_layers:
        ones = np.ones_like(arrays["tokens"])
        return lm.Batch.of(
            arrays["tokens"],
            targets=arrays["targets"],
            weights=ones,
            encoder_tokens=arrays["encoder_tokens"],
        )
    return lm.Batch.of(arrays["tokens"])


def compile_step(model, batch):
    """(compiled training step, function that makes its state), as `openbook train` has them."""
    import jax

    from lm.distributed import mesh, sharding
    from lm.losses.tokens import token_loss
    from lm.training import optimizer, schedules, state, step

    one = mesh.make_mesh(devices=jax.devices()[:1])
    schedule = schedules.schedule("cosine", RATE, 10, 1000, 0.1)
    adamw = optimizer.adamw(schedule)
    sparse = model.config.head == "masked_lm"

    def loss(model, params, batch, rng=None):
        return token_loss(model, params, batch, rng, sparse=sparse)

    with sharding.activate(one):
        shapes = state.abstract_state(model, adamw, one)
        made = jax.jit(step.make_train_step(model, loss, adamw, schedule), donate_argnums=0)
        compiled = made.lower(shapes, batch).compile()
    return compiled, lambda: state.create_state(model, adamw, one, 0)


def our_step(sizes: Sizes, **changes):
    """(compiled training step, state, batch)."""
    import lm

    batch = our_batch(sizes)
    compiled, start = compile_step(lm.build(sizes.config().replace(**changes)), batch)
    return compiled, start(), batch


def our_training(sizes: Sizes, **changes) -> Callable[[], Any]:
    keep_freed()  # as `openbook train` does
    compiled, current, batch = our_step(sizes, **changes)

    def run():
        nonlocal current
        current, metrics = compiled(current, batch)
        return {"loss": float(metrics["loss"])}

    return run


def our_decoding(sizes: Sizes) -> Callable[[], Any]:
    import lm
    from lm.models.quantised import quantise

    model, params = our_model(sizes, param_dtype=sizes.activations)
    if sizes.dtype == "int8":
        params = quantise(model, params)
    model, params = lm.for_decoding(model, params, sizes.batch)
    prompts = sizes.arrays()["tokens"].tolist()

    def run():
        found = lm.generate(model, params, prompts, sizes.new, stop_tokens=[])
        assert [len(x) for x in found] == [sizes.new] * sizes.batch

    return run


def torch_model(sizes: Sizes):
    """Model of transformers with random weights, without dropout."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    c = sizes.config()
    kind = getattr(transformers, class_of(c))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_to_hf(c)))
        config = kind.config_class.from_pretrained(folder)
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    return kind(config)


def torch_training(sizes: Sizes) -> Callable[[], Any]:
    import torch

    model = torch_model(sizes).train()
    adamw = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    arrays = {name: torch.from_numpy(x) for name, x in sizes.arrays().items()}
    tokens, c = arrays["tokens"], sizes.config()
    given = {"input_ids": tokens, "labels": tokens}
    if c.head == "masked_lm":
        given["labels"] = torch.where(arrays["chosen"], arrays["targets"], -100)
    elif c.encoder_layers:
        given = {
            "input_ids": arrays["encoder_tokens"],
            "decoder_input_ids": tokens,
            "labels": arrays["targets"],
        }

    def run():
        adamw.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=sizes.dtype == "bfloat16"):
            loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        return {"loss": loss.item()}

    return run


def torch_decoding(sizes: Sizes) -> Callable[[], Any]:
    import torch

    model = torch_model(sizes).eval().to(getattr(torch, sizes.dtype))
    tokens = torch.from_numpy(sizes.arrays()["tokens"])
    options = dict(max_new_tokens=sizes.new, min_new_tokens=sizes.new, do_sample=False)

    @torch.no_grad()
    def run():
        found = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        assert found.shape[1] >= sizes.new

    return run
