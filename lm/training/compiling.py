"""Compile the training step ahead of time, and report its memory and FLOPs."""

import math
import time
from collections.abc import Mapping

import jax

from lm.batch import Batch
from lm.data.batches import TrainBatches
from lm.distributed import rules
from lm.models.attention import backends
from lm.models.config import ConfigError
from lm.training import flops, setup
from lm.training.auxiliary import MODELS, main_of
from lm.training.report import Report, amount
from lm.training.setup import Run
from lm.training.several import MAIN, Together
from lm.training.state import TrainState


def compile_step(config, run: Run, state: TrainState, source, out: Report):
    """Compile the training step and report its cost to `out`.

    source: from `setup.train_source`, which knows the lengths of its rows.
    """
    c, m, lengths = config, run.model.config, source.lengths
    sources = source.sources if isinstance(source, Together) else {MAIN: source}
    out.say("compiling the training step ...")
    begun = time.monotonic()
    every = {name: one.lengths for name, one in sources.items()}
    batch = setup.abstract_batches(run.parts, run.rows, m, every)
    for name, one in sources.items():
        part = batch[name] if isinstance(batch, dict) else batch
        if isinstance(one, TrainBatches):
            _check_rows(run.parts.batches[name].task, one.shapes(), part)
    compiled = run.train_step.lower(state, batch).compile()
    seconds, memory, cost = (
        time.monotonic() - begun,
        compiled.memory_analysis(),
        compiled.cost_analysis() or {},
    )
    held = (
        ""
        if memory is None
        else f"memory a device: {amount(memory.argument_size_in_bytes)} state and batch, "
        f"{amount(memory.temp_size_in_bytes)} temporary"
    )
    tokens = c.batch_size * c.length
    texts, each = texts_of(run.task, lengths)
    others = flops.beside_per_row(run.extras.models.values(), *each)
    model = (flops.train_per_row(m, *each) + others) * c.batch_size * texts
    counted = cost.get("flops", math.nan) * run.mesh.size
    peak = flops.peak()
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    fixed, of_state = run.abstract.fixed or {}, run.abstract.params
    parameters = count(fixed["base"] if run.extras.plan else main_of(of_state))
    trained = count(main_of(rules.split(of_state, c.optimizer.rates)[0]))
    for name, one in run.extras.models.items():
        kind = "trained" if one.trained else "frozen"
        own = fixed["base"] if one.is_base else (of_state if one.trained else fixed)[MODELS][name]
        out.say(f"beside the model: {name}, {count(own):,} parameters of its own, {kind}")
    if trained != parameters:
        out.say(f"{trained:,} parameters are trained")
    shape = " x ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    if lengths[1]:
        out.say("rows of {} tokens to write, {} to read".format(*lengths))
    if set(m.layer_kinds) != {"ssm"} or m.encoder_layers:
        out.say(backends.described(m, each))
    out.say(f"compiled in {seconds:.1f} s; {held}")
    out.say(
        f"{parameters:,} parameters; {model:.3g} FLOPs a step of {tokens:,} tokens "
        f"(XLA counts {counted:.3g}, a loop's body once); "
        f"{run.mesh.size} x {jax.devices()[0].device_kind} as {shape}; "
        + ("peak not known, so no MFU" if peak is None else f"peak {peak / 1e12:.0f} TFLOP/s each")
    )
    return compiled


def _check_rows(task, rows: Mapping[str, tuple[int, ...]], batch: Batch) -> None:
    """Raise ConfigError when rows have other fields than the task declares."""
    declared = {name: x.shape[1:] for name, x in batch.fields().items()}
    for name in sorted(rows.keys() | declared.keys()):
        if rows.get(name) != declared.get(name):
            raise ConfigError(
                f"task {task.name!r}: a row has the field {name!r} of shape "
                f"{_shown(rows.get(name))}, and the task declares {_shown(declared.get(name))}: "
                "its `rows` or `transform` and its `fields` must agree"
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def texts_of(task, lengths: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """(texts of a row that do not attend to each other, the lengths of each)."""
    texts, (own, read) = task.texts, lengths
    return texts, (own // texts, read)
