"""The loop around the step: it never waits for the step it has just started, and loses nothing when it is stopped, killed or fails."""

import collections
import functools
import math
import pathlib
import signal
import time
from typing import Any

import jax

from lm import folders, phases
from lm.data import packing
from lm.data.mixtures import Mixture
from lm.distributed import rules, sharding
from lm.evaluation import labelled
from lm.evaluation.perplexity import make_evaluator
from lm.interrupts import Stopped
from lm.loading import keep_generation
from lm.objectives import OBJECTIVES
from lm.training import (
    answering,
    checkpoints,
    ending,
    flops,
    labelling,
    narrow,
    paths,
    run_folder,
    settings,
    setup,
    trackers,
)
from lm.training import steps as step_folders
from lm.training.checkpoints import Checkpoints, Restored
from lm.training.guard import Spike, advice
from lm.training.report import Report, Stopwatch, amount
from lm.training.sequence import Facts, facts, resumed
from lm.training.setup import Run
from lm.training.signals import Signals
from lm.training.state import TrainState

SPEED_OVER = 20  # rows of metrics over which the time left is estimated


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step, why, and what is saved."""


def train(config: settings.Config, workdir: str | paths.Folder) -> int:
    """Trains as `config` says, or continues the run in `workdir`. Returns 0 when it is done, 128 + n when signal n stopped it (all saved).

    Raises ConfigError, DataError, WeightsError or CheckpointError before the first step, and Stopped on a signal there; TrainingError or
    CheckpointError after it.
    """
    if jax.process_index() != 0:
        phases.silence()
    workdir = paths.resolve(workdir)
    folders.refuse("workdir", workdir, ("a run", "a tokenizer"))
    if config.compilation_cache:
        jax.config.update(
            "jax_compilation_cache_dir", str(pathlib.Path(config.compilation_cache).expanduser())
        )
    out = Report()
    with Signals() as signals:
        with phases.phase("preparing the run"):
            run = setup.prepare(config, workdir)
        out.say(narrow.described(run.abstract, run.model.config.dtype))
        checkpoints.check_model(workdir, run.model.config)
        checkpoints.check_template(workdir, run.template)
        with phases.phase("reading the data"):
            packed, held_out = setup.training_data(config, run), setup.evaluation_data(config, run)
        stats = packed.stats()
        out.say(
            f"data: {stats['documents']:,} documents, {stats['predictions']:,} tokens to predict in {stats['rows']:,} rows of "
            f"{stats['length']}, {stats['filled']:.1%} filled, {stats['split_documents']:,} documents in several windows"
        )
        for line in packed.described() if isinstance(packed, Mixture) else ():
            out.say(f"mixture: {line}")
        if run.template is None and packed.counts:
            out.say(
                f"data: {', '.join(f'{count:,} {packing.named(name)}' for name, count in packed.counts.items())}"
            )
        if run.template is not None:
            counted = ", ".join(
                f"{packed.stats()[name]:,} {packing.named(name)}"
                for name in ("trained_tokens", *packed.counts)
            )
            out.say(f"template {run.template.name} {run.template.fingerprint}: {counted}")
        if shortened := settings.shortened(config):
            out.say(shortened)
        now, restored = facts(config, packed), checkpoints.restore(workdir, run.abstract)
        for line in (
            resumed(config, workdir, now, restored)
            if restored is not None and restored.step < config.steps
            else ()
        ):
            out.say(f"the rows from here on are others, as resume.allow says: {line}")
        _write_folder(config, run, out)
        try:
            loop = _Loop(config, run, packed, held_out, out, signals, now, restored)
            del restored
            try:
                with phases.phase("training", after=phases.EVERY):
                    step = loop.run()
            finally:
                loop.close()
        except Stopped:
            _status(run, config, "stopped", None)
            raise
        except BaseException as e:
            _status(
                run,
                config,
                "failed",
                None,
                error=str(e).splitlines()[0] if str(e) else type(e).__name__,
            )
            raise
    return 0 if step == config.steps else 128 + signals.received


class _Loop:
    """One call of `train`, with what it holds while it runs."""

    def __init__(
        self,
        config,
        run: Run,
        packed,
        held_out: dict,
        out: Report,
        signals: Signals,
        sequence: Facts,
        restored: Restored | None,
    ):
        self.config, self.workdir, self.model, self.out, self.signals = (
            config,
            run.workdir,
            run.model,
            out,
            signals,
        )
        self.parts, self.held_out, self.sequence = run, held_out, sequence
        self.batches = setup.train_batches(config, run, packed)
        self.asked = answering.questions(config, run)
        if doubt := answering.doubt(config, self.asked):
            self.out.say(f"eval.generation: {doubt}")
        self.state, self.start = self._restore(run, restored)
        self.rows = self.batches.state()["rows"]  # read before this process began
        self.active = jax.process_index() == 0
        self.trackers = trackers.Trackers(
            run.workdir,
            self.start,
            config.log.tensorboard,
            self.active,
            config.log.wandb,
            config.to_dict(),
        )
        self.checkpoints = Checkpoints(run.workdir, config.checkpoint.keep)
        self.evaluate: Any = make_evaluator(
            run.model,
            run.mesh,
            config.batch_size,
            activations=run.activations,
            transform=run.transform,
        )
        if config.objective.name in labelling.OBJECTIVES:
            loss = functools.partial(
                OBJECTIVES[config.objective.name].loss, **settings.loss_options(config)
            )
            self.evaluate = labelled.make_evaluator(
                run.model, run.mesh, config.batch_size, loss, activations=run.activations
            )
        self.recent: collections.deque = collections.deque(maxlen=SPEED_OVER)
        self.watch, self.spike = Stopwatch(), Spike()

    def run(self) -> int:
        """Steps until the end or a signal; returns the number of updates done."""
        c, run, step = self.config, self.parts, self.start
        if step >= c.steps:
            self.out.say(f"{self.workdir} is already at step {step} of {c.steps}: nothing to train")
            self._finish(step)
            return c.steps
        with (
            sharding.activate(run.mesh, run.activations),
            phases.named("compiling the training step"),
        ):
            compiled = self._compile(run)
        self.out.start(step, c.steps)
        _status(run, c, "running", step)
        self.watch = Stopwatch()
        self.recent.append((step, 0.0))
        pending = None
        self.signals.waits = True
        try:
            while step < c.steps and not self.signals.stop(step):
                with sharding.activate(run.mesh, run.activations):
                    self.state, metrics = compiled(self.state, next(self.batches))
                step += 1
                if pending is not None:
                    self._record(*pending)
                pending = (step, metrics)
                if self._due(step):
                    self._record(
                        *pending
                    )  # waits for the step: what follows needs its result anyway
                    pending = None
                    self._rest(step)
            if pending is not None:
                self._record(*pending)
        finally:
            self.out.stop()
        self._finish(step)
        return step

    def _restore(self, run: Run, restored: Restored | None) -> tuple[TrainState, int]:
        if restored is None:
            return run.fresh_state(self.config.seed), 0
        self.batches.restore(restored.data)
        self.out.say(f"continuing {run.workdir} after step {restored.step}")
        return restored.state, restored.step

    def _compile(self, run: Run):
        """Compiles the step ahead of time, and says what it will cost."""
        c, m = self.config, self.model.config
        self.out.say("compiling the training step ...")
        begun = time.monotonic()
        batch = setup.abstract_batch(
            run.rows, c.batch_size, self.batches.lengths, labelling.batch_fields(c, m)
        )
        compiled = run.train_step.lower(self.state, batch).compile()
        seconds, memory, cost = (
            time.monotonic() - begun,
            compiled.memory_analysis(),
            compiled.cost_analysis() or {},
        )
        held = "" if memory is None else (
            f"memory a device: {amount(memory.argument_size_in_bytes)} state and batch, {amount(memory.temp_size_in_bytes)} temporary"
        )  # fmt: skip
        tokens = c.batch_size * c.length
        texts, lengths = self._seen_at_once()
        model = flops.train_per_row(m, *lengths) * c.batch_size * texts
        counted = cost.get("flops", math.nan) * run.mesh.size
        peak = flops.peak()
        whole = run.abstract.params if run.abstract.fixed is None else run.abstract.fixed["base"]
        parameters = sum(x.size for x in jax.tree.leaves(whole))
        trained = sum(
            x.size for x in jax.tree.leaves(rules.split(run.abstract.params, c.optimizer.rates)[0])
        )
        if trained != parameters:
            self.out.say(f"{trained:,} parameters are trained")
        shape = " x ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
        if self.batches.lengths[1]:
            self.out.say("rows of {} tokens to write, {} to read".format(*self.batches.lengths))
        self.out.say(f"compiled in {seconds:.1f} s; {held}")
        self.out.say(
            f"{parameters:,} parameters; {model:.3g} FLOPs a step of {tokens:,} tokens (XLA counts {counted:.3g}, a loop's body once); "
            f"{run.mesh.size} x {jax.devices()[0].device_kind} as {shape}; "
            + (
                "peak not known, so no MFU"
                if peak is None
                else f"peak {peak / 1e12:.0f} TFLOP/s each"
            )
        )
        return compiled

    def _seen_at_once(self) -> tuple[int, tuple[int, int]]:
        """(texts in a row that do not see each other, the lengths of each)."""
        texts, (own, read) = settings.texts(self.config), self.batches.lengths
        return texts, (own // texts, read)

    def _due(self, step: int) -> bool:
        c = self.config
        intervals = (c.checkpoint.every, c.eval.every, c.samples.every, c.eval.generation.every)
        return step == c.steps or any(every and step % every == 0 for every in intervals)

    def _record(self, step: int, metrics: dict) -> None:
        """Reads a step's metrics from the device (the step after it is already running), checks them, and writes them if they are due."""
        c = self.config
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.spike.see(step, values["loss"], values["gradient_norm"])
        for name in ("loss", "gradient_norm"):
            if (
                not math.isfinite(values[name])
                and values.get("nonfinite_in_a_row", 1) > c.optimizer.skip_nonfinite
            ):
                raise TrainingError(
                    f"{name} is {values[name]} at step {step}: stopped. {self._before(self.spike.since or step)}"
                )
        if step != 1 and step % c.log.every and step != c.steps:
            return
        seconds, (last, then) = self.watch(), self.recent[-1]
        tokens, read = c.batch_size * c.length, self.rows + (step - self.start) * c.batch_size
        # The first step of a process also fills the pipeline; a speed is only given from the second on.
        speed = (
            tokens * (step - last) / (seconds - then)
            if seconds > then and step > self.start + 1
            else None
        )
        texts, lengths = self._seen_at_once()
        rate = None if speed is None else speed / c.length * texts
        used = (
            None
            if rate is None
            else flops.utilisation(self.model.config, lengths, rate, jax.device_count())
        )
        self.recent.append((step, seconds))
        first, since = self.recent[0]
        left = (seconds - since) / (step - first) * (c.steps - step) if step > first else None
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        row = {
            "step": step,
            **values,
            "tokens": read * c.length,
            "tokens_per_second": speed,
            "mfu": used,
            "seconds": round(seconds, 3),
        }
        self.trackers.write(row)
        self.out.update(step, c.steps, row, left)
        self.checkpoints.check()
        _status(self.parts, c, "running", step, left)

    def _before(self, since: int) -> str:
        """Sets aside the checkpoints whose weights were off, of which the loss of step `since` is the first, and says what is left."""
        self.checkpoints.wait()
        off = [step for step in checkpoints.steps(self.workdir) if step >= since - 1]
        step_folders.set_aside(
            [step_folders.folder_of(self.workdir) / str(step) for step in off], "diverged"
        )
        left = checkpoints.steps(self.workdir)
        kept = (
            f"The last checkpoint is step {left[-1]}, from before it"
            if left
            else "No checkpoint is from before it"
        )
        aside = "".join(
            f"; step {step}, which led to it, is kept as {step}.diverged" for step in off
        )
        return f"{kept}{aside}; try {advice(self.config)}"

    def _rest(self, step: int) -> None:
        """What is done between steps: evaluation, samples, a checkpoint; the checkpoint last, so that it stands for all rows before it."""
        c, begun = self.config, time.monotonic()
        if self.held_out and c.eval.every and (step % c.eval.every == 0 or step == c.steps):
            with phases.phase(f"evaluating at step {step}"):
                self._evaluate(step)
        shown = []
        if c.samples.prompts and (
            step == c.steps or (c.samples.every and step % c.samples.every == 0)
        ):
            with phases.phase(f"writing samples at step {step}"):
                shown += self._sample(step)
        if self.asked and (
            step == c.steps or (c.eval.generation.every and step % c.eval.generation.every == 0)
        ):
            with phases.phase(f"writing answers at step {step}"):
                shown += self._answer(step)
        if shown and self.active:
            run_folder.write_samples(self.workdir, step, shown)
        if step == c.steps or (step % c.checkpoint.every == 0 and self.spike.since is None):
            with phases.phase(f"saving step {step}"):
                self.trackers.sync()
                self.checkpoints.save(
                    step, self.state, self.batches.state() | {"sequence": self.sequence}
                )
        self.watch.paused(time.monotonic() - begun)

    def _evaluate(self, step: int) -> None:
        row: dict = {"step": step}
        params = self.parts.weights(self.state)
        for name, packed in self.held_out.items():
            p = self.evaluate(params, packed, self.config.eval.max_rows)
            if isinstance(p, dict):  # of an objective with labels
                row |= {f"eval/{name}/{what}": value for what, value in p.items()}
                self.out.say(
                    f"step {step}: {name} {', '.join(f'{what} {value:.4f}' for what, value in p.items())}"
                )
                continue
            row |= {f"eval/{name}/loss": p.loss, f"eval/{name}/perplexity": p.perplexity}
            if math.isnan(
                p.bits_per_byte
            ):  # the objective does not predict every token of the text
                self.out.say(f"step {step}: {name} loss {p.loss:.4f} over {p.tokens:,} tokens")
                continue
            row[f"eval/{name}/bits_per_byte"] = p.bits_per_byte
            row[f"eval/{name}/bits_per_byte_stderr"] = (
                p.bits_per_byte_stderr if math.isfinite(p.bits_per_byte_stderr) else None
            )
            self.out.say(
                f"step {step}: {name} loss {p.loss:.4f}, {p.bits_per_byte:.4f} ± {p.bits_per_byte_stderr:.4f} bits per byte"
            )
        self.trackers.write(row)
        if self.active:
            trackers.plot(self.workdir)

    def _answer(self, step: int) -> list[tuple[str, str]]:
        row, shown = answering.answer(
            self.config, self.parts, self.parts.weights(self.state), self.asked
        )
        self.trackers.write({"step": step, **row})
        said = ", ".join(
            f"{name.rpartition('/')[2].replace('_', ' ')} {value:.1f}"
            for name, value in row.items()
        )
        self.out.say(f"step {step}: {len(self.asked)} answers: {said}")
        return shown

    def _sample(self, step: int) -> list[tuple[str, str]]:
        from lm.generation import Sample, generate

        s, run = self.config.samples, self.parts
        prompts = [run.prompt_ids(prompt) for prompt in s.prompts]
        new = generate(
            self.model,
            run.weights(self.state),
            prompts,
            s.tokens,
            Sample(temperature=s.temperature, top_p=s.top_p),
            seed=step,
        )
        texts = [run.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in new]
        return list(zip(s.prompts, texts, strict=True))

    def _finish(self, step: int) -> None:
        """Saves, and leaves the folder in order."""
        done = step >= self.config.steps
        with phases.phase(f"saving step {step}"):
            if step > 0:
                self.checkpoints.save(
                    step, self.state, self.batches.state() | {"sequence": self.sequence}
                )
                self.checkpoints.verify(self.state)
            self.close()
        if self.active and step > 0:
            trackers.plot(self.workdir)
        _status(self.parts, self.config, "done" if done else "stopped", step, 0.0 if done else None)
        name = None if done else signal.Signals(self.signals.received).name
        if not done:
            self.out.say(f"stopped by {name} at step {step}; the same command continues from there")
        elif self.active:
            rows = trackers.read(self.workdir)
            for line in ending.lines(
                self.config, self.model.config, self.workdir, self.parts.tokenizer, rows
            ):
                self.out.say(line)

    def close(self) -> None:
        """Waits for a checkpoint in flight and closes the files; does nothing the second time."""
        self.trackers.close()
        self.checkpoints.close()


def _write_folder(config, run: Run, out: Report) -> None:
    """Says what this run is, in its folder and on the terminal."""
    if jax.process_index() == 0:
        run.workdir.mkdir(parents=True, exist_ok=True)
        resumed = bool(checkpoints.steps(run.workdir))
        for line in run_folder.write_config(run.workdir, config.to_dict()):
            if resumed:
                out.say(f"changed since this run was last started: {line}")
        run_folder.write_environment(run.workdir)
        checkpoints.save_model(run.workdir, run.model.config, run.tokenizer, run.template)
        keep_generation(run.workdir, config.init_from)


def _status(
    run: Run, config, state: str, step: int | None, eta_s: float | None = None, error: str = ""
) -> None:
    if jax.process_index() == 0:
        step = max(checkpoints.steps(run.workdir), default=0) if step is None else step
        run_folder.write_status(run.workdir, state, step, config.steps, eta_s, error)
