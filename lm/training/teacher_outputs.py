"""Write the predictions of a distillation's teacher on the rows of a config (lm.data.outputs)."""

import dataclasses
import functools
import hashlib
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from lm import folders, tasks
from lm.data import batches, outputs
from lm.data.cache import fingerprint
from lm.data.packed import Packed, digest
from lm.data.packing import token_dtype
from lm.distributed import sharding
from lm.distributed.rules import by_path
from lm.losses import chunks, divergence
from lm.losses.tokens import head_of
from lm.models.config import ConfigError
from lm.phases import phase
from lm.tasks.distillation import Distillation
from lm.training import setup
from lm.training.auxiliary import MODELS
from lm.weights.runs.paths import is_remote
from lm.xla_flags import avoid_wrong_fusion

EVERY = 10.0  # seconds between lines of progress
TEACHER = "teacher"  # name of the task's auxiliary model


def write(config, workdir: str, dtype: str = "float32") -> str:
    """Write workdir, or what is missing of it, and return what was written in words.

    Raises ConfigError, DataError, WeightsError.
    """
    avoid_wrong_fusion(config.model.dtype)  # before the checks start JAX
    _check(config, workdir, dtype)
    config.task.outputs = ""
    folder = pathlib.Path(workdir).absolute()
    run = setup.prepare(config, folder)
    rows = setup.training_data(config, run)
    assert isinstance(rows, Packed)
    k, vocab = config.task.top_k, run.model.config.vocab_size
    ids = token_dtype(vocab - 1)
    about = outputs.About(
        teacher=config.task.teacher,
        teacher_digest=_digest(_weights(run)),
        tokenizer=fingerprint(run.tokenizer),
        sequence=digest(rows),
        rows=len(rows),
        length=config.length,
        vocab_size=vocab,
        k=k,
        temperature=config.task.temperature,
        dtype=dtype,
        token_dtype=np.dtype(ids).name,
        shard_rows=outputs.rows_in_shard(config.length, k, dtype, ids),
    )
    writer = outputs.Writer(folder, about)
    with phase("verifying the shards that are there"):
        damaged = writer.damaged()
    if damaged:
        print(f"shards {', '.join(map(str, damaged))} are damaged: written again", file=sys.stderr)
    missing = writer.missing
    said = f"{about.rows:,} rows of {about.length} tokens, {k} tokens of the teacher each"
    if not missing:
        return f"{workdir} is complete: {said}"
    with phase("running the teacher"), sharding.activate(run.mesh, run.activations):
        _fill(writer, missing, config, run, rows)
    return f"wrote {workdir}: {said}"


def _check(config, workdir: str, dtype: str) -> None:
    task = tasks.of(config)
    if not isinstance(task, Distillation):
        raise ConfigError(
            f"task {task.name!r} has no teacher: expected a config whose task is distillation"
        )
    if dtype not in outputs.DTYPES:
        raise ConfigError(f"--dtype={dtype!r}: expected {' or '.join(outputs.DTYPES)}")
    for name, value in (
        ("data.mixture", config.data.mixture),
        ("further_tasks", config.further_tasks),
        ("data.synthetic_rows", config.data.synthetic_rows),
    ):
        if value:
            raise ConfigError(f"{name} is set: give the texts of one source as data.files")
    if not task.top_k:
        raise ConfigError(
            "task.top_k is not set: it says how many tokens to store, such as "
            "--config.task.top_k=64"
        )
    if not task.teacher:
        raise ConfigError("task.teacher is not set: give a run folder, model folder or hub id")
    if task.outputs and pathlib.Path(task.outputs).absolute() != pathlib.Path(workdir).absolute():
        raise ConfigError(
            f"task.outputs={task.outputs} is another folder than --workdir={workdir}, which is "
            "written: leave it empty, or make them the same"
        )
    if is_remote(workdir):
        raise ConfigError(
            f"--workdir={workdir} is in object storage, and outputs are memory-mapped: give a "
            "local folder"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"{jax.process_count()} processes run: outputs are written by one process, on all of "
            "its devices"
        )
    folders.refuse("workdir", workdir)


def _weights(run: setup.Run) -> dict:
    """The teacher's weights on the host: loaded, or those that the run starts from."""
    weights = run.given.get(TEACHER, run.params)
    if weights is None:
        raise ConfigError(
            "task.teacher='same' is the model that the run starts from, and init_from is not set"
        )
    return weights


def _digest(weights: dict) -> str:
    total = hashlib.sha256()
    for name, x in sorted(by_path(weights).items()):
        array = np.ascontiguousarray(np.asarray(x))
        total.update(f"{name} {array.dtype} {array.shape} ".encode())
        total.update(array.view(np.uint8).data)
    return total.hexdigest()


def _fill(writer: outputs.Writer, missing: list[int], config, run: setup.Run, rows: Packed) -> None:
    about, made = writer.about, run.extras.models[TEACHER]
    held = run.abstract.fixed or {}
    like = held["base"] if made.is_base else held[MODELS][TEACHER]
    params = jax.tree.map(
        lambda p, a: jax.device_put(jnp.asarray(p, a.dtype), a.sharding), _weights(run), like
    )
    size = config.batch_size // config.accumulate
    predict = jax.jit(functools.partial(_predictions, made.model, config.task.chunk, about))
    progress = _Progress(sum(end - first for first, end in map(about.span, missing)))
    for shard in missing:
        first, end = about.span(shard)
        shapes = about.arrays(end - first)
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
        pending: list = []  # the batch before, whose results are fetched while the next runs

        def fetch(arrays=arrays, pending=pending) -> None:
            numbers, found = pending.pop()
            at = numbers[numbers >= 0]
            for name, x in zip(outputs.FIELDS, jax.device_get(found), strict=True):
                arrays[name][at] = x[: len(at)]
            progress.add(len(at))

        part = _cut(rows, first, end)
        for numbers, batch in batches.in_order(part, size, run.rows, config=run.model.config):
            found = predict(params, batch)
            if pending:
                fetch()
            pending.append((numbers, found))
        fetch()
        writer.add(shard, arrays)


def _predictions(model, chunk: int, about: outputs.About, params: dict, batch):
    hidden = model.apply({"params": params}, batch, method="hidden").hidden
    logits, head = head_of(model, params)

    def of_chunk(head, hidden):
        return divergence.top(logits(head, hidden) / about.temperature, about.k)

    chunk = chunk or chunks.chunk_length(*batch.tokens.shape, about.vocab_size)
    return chunks.mapped(of_chunk, head, hidden, chunk)


def _cut(rows: Packed, first: int, end: int) -> Packed:
    at = slice(first, end)
    extra = {name: x[at] for name, x in rows.extra.items()}
    return dataclasses.replace(
        rows,
        tokens=rows.tokens[at],
        targets=rows.targets[at],
        segments=rows.segments[at],
        extra=extra,
    )


class _Progress:
    """Prints the rows done, the speed and the time left to standard error, every EVERY seconds."""

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.said = self.start

    def add(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if now - self.said < EVERY and self.done < self.total:
            return
        self.said, speed = now, self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / speed
        print(
            f"teacher: {self.done:,} of {self.total:,} rows, {speed:.1f} rows/s, about "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
