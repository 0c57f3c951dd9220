"""The training loop.

It reads the metrics of a step while the next step runs. After a signal, the state is saved at the
current step. After a kill or an error, the run resumes from the last checkpoint.
"""

import collections
import math
import pathlib
import signal
import time

import jax

from lm import folders, phases
from lm.data.mixtures import Mixture
from lm.data.packed import named
from lm.distributed import sharding
from lm.interrupts import Stopped
from lm.training import checkpoints, ending, flops, narrow, settings, setup, trackers
from lm.training.checkpoints import Checkpoints, Restored
from lm.training.compiling import compile_step, texts_of
from lm.training.evaluations import Evaluations
from lm.training.guard import Spike, advice
from lm.training.report import Report, Stopwatch
from lm.training.sequence import Facts, facts, resumed
from lm.training.setup import Run
from lm.training.signals import Signals
from lm.training.state import TrainState
from lm.weights.loading import keep_generation
from lm.weights.runs import model_files, paths, run_folder
from lm.weights.runs import steps as step_folders

SPEED_OVER = 20  # rows of metrics over which the time left is estimated


class TrainingError(RuntimeError):
    """Error after the first step. The message names the step, the reason and what is saved."""


def train(config: settings.Config, workdir: str | paths.Folder) -> int:
    """Train as `config` says, or resume the run in `workdir`.

    Returns 0 when it is complete, and 128 + n when signal n stopped it (with everything saved).
    Before the first step it raises ConfigError, DataError, WeightsError or CheckpointError, and
    Stopped on a signal. Later it raises TrainingError or CheckpointError.
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
        model_files.check_model(workdir, run.model.config)
        model_files.check_template(workdir, run.template)
        with phases.phase("reading the data"):
            packed = setup.training_data(config, run)
            others = {name: setup.packed(part, run) for name, part in run.parts.further.items()}
            evaluations = Evaluations(config, run, out)
        stats = packed.stats()
        out.say(
            f"data: {stats['documents']:,} documents, {stats['predictions']:,} tokens to predict "
            f"in {stats['rows']:,} rows of "
            f"{stats['length']}, {stats['filled']:.1%} filled, {stats['split_documents']:,} "
            "documents in several windows"
        )
        for name, rows in others.items():
            of = rows.stats()
            out.say(f"{name}: {of['documents']:,} documents, {of['rows']:,} rows")
        for line in packed.described() if isinstance(packed, Mixture) else ():
            out.say(f"mixture: {line}")
        if run.template is None and packed.counts:
            counted = (f"{count:,} {named(name)}" for name, count in packed.counts.items())
            out.say(f"data: {', '.join(counted)}")
        if run.template is not None:
            counted = ", ".join(
                f"{stats[name]:,} {named(name)}"
                for name in ("trained_tokens", *packed.counts)
                if name in stats
            )
            of = f"template {run.template.name} {run.template.fingerprint}"
            out.say(f"{of}: {counted}" if counted else of)
        if shortened := settings.shortened(config):
            out.say(shortened)
        now, restored = facts(config, packed, others), checkpoints.restore(workdir, run.abstract)
        for line in (
            resumed(config, workdir, now, restored)
            if restored is not None and restored.step < config.steps
            else ()
        ):
            out.say(f"the rows from here on are others, as resume.allow says: {line}")
        _write_folder(config, run, out)
        try:
            loop = _Loop(config, run, packed, others, evaluations, out, signals, now, restored)
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
    """State of one call of `train`."""

    def __init__(
        self,
        config,
        run: Run,
        packed,
        others: dict,
        evaluations: Evaluations,
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
        self.parts, self.sequence = run, sequence
        self.source = setup.train_source(config, run, packed, others)
        self.evaluations = evaluations
        self.state, self.start = self._restore(run, restored)
        # rows read before this process started
        self.rows = self.source.position().get("rows", self.start * config.batch_size)
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
        self.recent: collections.deque = collections.deque(maxlen=SPEED_OVER)
        self.watch, self.spike = Stopwatch(), Spike()

    def run(self) -> int:
        """Run steps until the end or a signal; return the number of updates done."""
        c, run, step = self.config, self.parts, self.start
        if step >= c.steps:
            self.out.say(f"{self.workdir} is already at step {step} of {c.steps}: nothing to train")
            self._finish(step)
            return c.steps
        with (
            sharding.activate(run.mesh, run.activations),
            phases.named("compiling the training step"),
        ):
            compiled = compile_step(c, run, self.state, self.source, self.out)
        self.out.start(step, c.steps)
        _status(run, c, "running", step)
        self.watch = Stopwatch()
        self.recent.append((step, 0.0))
        pending = None
        self.signals.waits = True
        try:
            while step < c.steps and not self.signals.stop(step):
                with sharding.activate(run.mesh, run.activations):
                    self.state, metrics = compiled(self.state, self.source.next(self.state))
                step += 1
                if pending is not None:
                    self._record(*pending)
                pending = (step, metrics)
                if self._due(step):
                    self._record(*pending)  # waits for the step, whose result is needed next anyway
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
        self.source.restore(restored.data, restored.carry)
        self.out.say(f"continuing {run.workdir} after step {restored.step}")
        return restored.state, restored.step

    def _due(self, step: int) -> bool:
        c = self.config
        last, saved = step == c.steps, step % c.checkpoint.every == 0
        return last or saved or bool(self.evaluations.due(step))

    def _record(self, step: int, metrics: dict) -> None:
        """Read a step's metrics while the next step runs, check them, and write them if due."""
        c = self.config
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.spike.see(step, values["loss"], values["gradient_norm"])
        for name in ("loss", "gradient_norm"):
            if (
                not math.isfinite(values[name])
                and values.get("nonfinite_in_a_row", 1) > c.optimizer.skip_nonfinite
            ):
                raise TrainingError(
                    f"{name} is {values[name]} at step {step}: stopped. "
                    f"{self._before(self.spike.since or step)}"
                )
        if step != 1 and step % c.log.every and step != c.steps:
            return
        seconds, (last, then) = self.watch(), self.recent[-1]
        tokens, read = c.batch_size * c.length, self.rows + (step - self.start) * c.batch_size
        # The first step of a process also fills the pipeline, so a speed is given from the second.
        speed = (
            tokens * (step - last) / (seconds - then)
            if seconds > then and step > self.start + 1
            else None
        )
        texts, lengths = texts_of(self.parts.task, self.source.lengths)
        rate = None if speed is None else speed / c.length * texts
        used = (
            None
            if rate is None
            else flops.utilisation(
                self.model.config,
                lengths,
                rate,
                jax.device_count(),
                self.parts.extras.models.values(),
            )
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
        """Rename checkpoints saved since the spike began at step `since`; describe what is left."""
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
        """Evaluate, sample and save when due, in this order: a checkpoint includes all that."""
        c, begun = self.config, time.monotonic()
        self.evaluations.after(step, self.state, self.trackers)
        if step == c.steps or (step % c.checkpoint.every == 0 and self.spike.since is None):
            with phases.phase(f"saving step {step}"):
                self.trackers.sync()
                self._save(step)
        self.watch.paused(time.monotonic() - begun)

    def _save(self, step: int) -> None:
        position = self.source.position() | {"sequence": self.sequence}
        self.checkpoints.save(step, self.state, position, self.source.carry())

    def _finish(self, step: int) -> None:
        """Save, plot and write the final status."""
        done = step >= self.config.steps
        with phases.phase(f"saving step {step}"):
            if step > 0:
                self._save(step)
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
        """Wait for a checkpoint in flight and close the files. Idempotent."""
        self.trackers.close()
        self.checkpoints.close()


def _write_folder(config, run: Run, out: Report) -> None:
    """Write the config, environment and model files of the run, and print changed settings."""
    if jax.process_index() == 0:
        run.workdir.mkdir(parents=True, exist_ok=True)
        resumed = bool(checkpoints.steps(run.workdir))
        for line in run_folder.write_config(run.workdir, config.to_dict()):
            if resumed:
                out.say(f"changed since this run was last started: {line}")
        run_folder.write_environment(run.workdir)
        others = {**run.extras.models, **run.stored.models}
        beside = {name: one.kept for name, one in others.items()}
        run.stored.save(run.workdir)
        model_files.save_model(run.workdir, run.model.config, run.tokenizer, run.template, beside)
        keep_generation(run.workdir, config.init_from)


def _status(
    run: Run, config, state: str, step: int | None, eta_s: float | None = None, error: str = ""
) -> None:
    if jax.process_index() == 0:
        step = max(checkpoints.steps(run.workdir), default=0) if step is None else step
        run_folder.write_status(run.workdir, state, step, config.steps, eta_s, error)
