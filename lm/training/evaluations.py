"""Evaluation, samples and answers between the steps of a run."""

import functools
import math
from typing import Any

import jax

from lm import phases
from lm.evaluation import labelled
from lm.evaluation.perplexity import make_evaluator
from lm.objectives import OBJECTIVES
from lm.training import answering, labelling, run_folder, settings, trackers
from lm.training.report import Report
from lm.training.setup import Run
from lm.training.state import TrainState
from lm.training.trackers import Trackers


class Evaluations:
    """Evaluate held-out rows, write samples and answer questions, each at its own interval."""

    def __init__(self, config, run: Run, held_out: dict, out: Report):
        self.config, self.run, self.held_out, self.out = config, run, held_out, out
        self.active = jax.process_index() == 0
        self.asked = answering.questions(config, run)
        if doubt := answering.doubt(config, self.asked):
            self.out.say(f"eval.generation: {doubt}")
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

    def after(self, step: int, state: TrainState, tracked: Trackers) -> None:
        """Run the evaluations that are due after `step`."""
        c = self.config
        if self.held_out and c.eval.every and (step % c.eval.every == 0 or step == c.steps):
            with phases.phase(f"evaluating at step {step}"):
                self._evaluate(step, state, tracked)
        shown = []
        if c.samples.prompts and (
            step == c.steps or (c.samples.every and step % c.samples.every == 0)
        ):
            with phases.phase(f"writing samples at step {step}"):
                shown += self._sample(step, state)
        if self.asked and (
            step == c.steps or (c.eval.generation.every and step % c.eval.generation.every == 0)
        ):
            with phases.phase(f"writing answers at step {step}"):
                shown += self._answer(step, state, tracked)
        if shown and self.active:
            run_folder.write_samples(self.run.workdir, step, shown)

    def _evaluate(self, step: int, state: TrainState, tracked: Trackers) -> None:
        row: dict = {"step": step}
        params = self.run.weights(state)
        for name, packed in self.held_out.items():
            p = self.evaluate(params, packed, self.config.eval.max_rows)
            if isinstance(p, dict):  # an objective with labels
                row |= {f"eval/{name}/{what}": value for what, value in p.items()}
                self.out.say(
                    f"step {step}: {name} "
                    f"{', '.join(f'{what} {value:.4f}' for what, value in p.items())}"
                )
                continue
            row |= {f"eval/{name}/loss": p.loss, f"eval/{name}/perplexity": p.perplexity}
            if math.isnan(p.bits_per_byte):
                # The objective does not predict every token of the text.
                self.out.say(f"step {step}: {name} loss {p.loss:.4f} over {p.tokens:,} tokens")
                continue
            row[f"eval/{name}/bits_per_byte"] = p.bits_per_byte
            row[f"eval/{name}/bits_per_byte_stderr"] = (
                p.bits_per_byte_stderr if math.isfinite(p.bits_per_byte_stderr) else None
            )
            self.out.say(
                f"step {step}: {name} loss {p.loss:.4f}, "
                f"{p.bits_per_byte:.4f} ± {p.bits_per_byte_stderr:.4f} bits per byte"
            )
        tracked.write(row)
        if self.active:
            trackers.plot(self.run.workdir)

    def _answer(self, step: int, state: TrainState, tracked: Trackers) -> list[tuple[str, str]]:
        row, shown = answering.answer(self.config, self.run, self.run.weights(state), self.asked)
        tracked.write({"step": step, **row})
        said = ", ".join(
            f"{name.rpartition('/')[2].replace('_', ' ')} {value:.1f}"
            for name, value in row.items()
        )
        self.out.say(f"step {step}: {len(self.asked)} answers: {said}")
        return shown

    def _sample(self, step: int, state: TrainState) -> list[tuple[str, str]]:
        from lm.generation import Sample, generate

        s, run = self.config.samples, self.run
        new = generate(
            run.model,
            run.weights(state),
            [run.prompt_ids(prompt) for prompt in s.prompts],
            s.tokens,
            Sample(temperature=s.temperature, top_p=s.top_p),
            seed=step,
        )
        texts = [run.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in new]
        return list(zip(s.prompts, texts, strict=True))
