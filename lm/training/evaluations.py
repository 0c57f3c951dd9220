"""Evaluation, samples and answers between the steps of a run, and afterwards in lm.evaluate."""

from collections.abc import Callable

import jax

from lm import phases
from lm.evaluation import evaluators
from lm.evaluation.evaluators import Scheduled, Tools
from lm.models.config import ConfigError, nearest
from lm.training import checkpoints, setup, trackers
from lm.training.checkpoints import CheckpointError
from lm.training.report import Report
from lm.training.scheduled import scheduled
from lm.training.setup import Run, evaluation_rows
from lm.training.state import TrainState
from lm.training.trackers import Trackers
from lm.weights.runs import paths, run_folder


def tools(config, run: Run, state: Callable[[], TrainState], say=print) -> Tools:
    """What the evaluators of a run measure with. state: () -> the one that is measured."""
    return Tools(
        run.model,
        run.tokenizer,
        run.template,
        run.task,
        run.transform,
        run.mesh,
        run.activations,
        config.batch_size,
        config.accumulate,
        lambda files: evaluation_rows(config, run, files),
        lambda files: run.task.records(files, run.tools(config)),
        run.prompt_ids,
        say,
        (lambda: run.beside(state())) if run.extras.models else None,
    )


class Evaluations:
    """Run each evaluator at its own interval, and write what it finds."""

    def __init__(self, config, run: Run, out: Report):
        self.config, self.run, self.out = config, run, out
        self.active = jax.process_index() == 0
        self.state: TrainState | None = None  # while it is measured
        self.every, of_run = scheduled(config), tools(config, run, self._measured, out.say)
        self.prepared = {one.name: evaluators.prepared(one, of_run) for one in self.every}

    def _measured(self) -> TrainState:
        assert self.state is not None
        return self.state

    def due(self, step: int) -> list[Scheduled]:
        """The evaluators that run after `step`."""
        return [one for one in self.every if one.due(step, self.config.steps)]

    def after(self, step: int, state: TrainState, tracked: Trackers) -> None:
        """Run the evaluators that are due after `step`."""
        due = self.due(step)
        if not due:
            return
        self.state = state
        params, shown = self.run.weights(state), []
        row: dict[str, float | None] = {"step": step}
        for one in due:
            with phases.phase(f"evaluating {one.name} at step {step}"):
                result = evaluators.measured(one, self.prepared[one.name], params, step)
            row |= {f"eval/{one.name}/{name}": value for name, value in result.values.items()}
            shown += result.samples
            if result.said:
                self.out.say(f"step {step}: {one.name} {result.said}")
        self.state = None
        if len(row) > 1:
            tracked.write(row)
            if self.active:
                trackers.plot(self.run.workdir)
        if shown and self.active:
            run_folder.write_samples(self.run.workdir, step, shown)


def of_run(args) -> tuple[dict, str]:
    """Run the evaluators of a run on its newest checkpoint: return (numbers, report).

    args.model: the run folder. args.evals: names of evaluators, comma-separated, or "all". Raises
    ConfigError, CheckpointError and DataError.
    """
    workdir, names = args.model, "" if args.evals == "all" else args.evals
    folder = paths.resolve(workdir)
    config = run_folder.config_of(folder)
    run = setup.prepare(config, folder)
    every = {one.name: one for one in scheduled(config)}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(every)
    for name in wanted:
        if name not in every:
            raise ConfigError(
                f"--evals={name!r}: the run has no such evaluation{nearest(name, every)}; it has "
                f"{', '.join(every) or 'none'}"
            )
    restored = checkpoints.restore(folder, run.abstract)
    if restored is None:
        raise CheckpointError(f"{workdir} has no checkpoint to evaluate")
    state = restored.state
    params, of_tools = run.weights(state), tools(config, run, lambda: state)
    numbers: dict = {"model": workdir, "step": restored.step}
    lines = []
    for name in wanted:
        measure = evaluators.prepared(every[name], of_tools)
        with phases.phase(f"evaluating {name}"):
            result = evaluators.measured(every[name], measure, params, restored.step)
        numbers[name] = dict(result.values)
        lines.append(f"{name}: {result.said}" if result.said else f"{name}:")
        lines += [f"  {prompt}{text}" for prompt, text in result.samples]
    return numbers, "\n".join(lines)
