"""Make the parts of a run from a config: model, data, optimizer and state.

All errors of the config are raised here.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from lm import tasks
from lm.adaptation import fisher as fishers
from lm.adaptation import plan as plans
from lm.batch import FIELDS, Batch
from lm.data import batches, mixtures
from lm.data.encode import encoding
from lm.data.mixtures import Mixture
from lm.data.packed import Packed, synthetic
from lm.data.read.sources import Tally
from lm.data.records.examples import Record
from lm.data.source import SourceTools
from lm.data.templates import Template
from lm.distributed import rules, sharding
from lm.distributed.mesh import make_mesh
from lm.distributed.rules import average_of
from lm.distributed.sharding import Rules
from lm.models import LanguageModel
from lm.models.config import ConfigError, ModelConfig
from lm.tasks import Tools, Transform
from lm.tasks.models import Beside
from lm.training import auxiliary, checkpoints, optimizer, settings, stored
from lm.training.initial_model import COMPUTE, initial_model
from lm.training.parts import Part, Parts
from lm.training.scheduled import held_out
from lm.training.several import MAIN, Several, Together
from lm.training.source import TaskSource, of_task
from lm.training.state import Extras, TrainState, abstract_state, create_state
from lm.training.step import REDUCE, make_train_step
from lm.training.stored import Stored
from lm.weights.runs import model_files
from lm.weights.runs.paths import Folder, is_remote
from lm.weights.runs.steps import CheckpointError
from lm.xla_flags import avoid_wrong_fusion

CACHE = pathlib.Path.home() / ".cache" / "openbook" / "rows"  # for runs in object storage


@dataclasses.dataclass(frozen=True)
class Reader:
    """Parts of a run that affect its data."""

    workdir: Folder
    model: LanguageModel
    tokenizer: Any
    template: Template | None  # renders the records of instruct data
    parts: Parts

    @property
    def task(self) -> Any:
        """The run's own task (lm.tasks.Task)."""
        return self.parts.main.task

    def cache(self, config: settings.Config) -> pathlib.Path:
        """Folder of packed rows, on a local disk, since they are memory-mapped."""
        own = CACHE if is_remote(self.workdir) else self.workdir / "cache"
        return pathlib.Path(config.data.cache or own)

    def tools(self, config: settings.Config, tally: Tally | None = None) -> Tools:
        """What a task makes the rows of this config with."""
        data = config.data
        return Tools(
            self.model.config,
            self.tokenizer,
            self.template,
            data.files,
            config.length,
            config.seed,
            self.cache(config),
            data.max_bad_share,
            data.holdout_share,
            tally,
        )


@dataclasses.dataclass(frozen=True)
class Run(Reader):
    """Parts of a training run.

    params: those of init_from, or None. abstract: shapes, dtypes and shardings of the state.
    given: loaded weights of auxiliary models. stored: models whose outputs are computed once.
    """

    params: dict | None
    mesh: Mesh
    parameters: Rules
    activations: Rules
    rows: NamedSharding
    optimizer: optax.GradientTransformation
    train_step: Any  # jitted
    abstract: TrainState
    transform: Transform | None  # the task's transform of rows
    extras: Extras
    fisher: dict | None = None  # Fisher information of params, if needed to start the plan
    given: Mapping[str, dict] = dataclasses.field(default_factory=dict)
    stored: Stored = dataclasses.field(default_factory=Stored)

    def fresh_state(self, seed: int) -> TrainState:
        """State at step 0: drawn from the seed, or with the weights of init_from."""
        for name, one in self.extras.models.items():
            if one.loads and name not in self.given:
                raise CheckpointError(
                    f"{self.workdir}: the weights of the auxiliary model {name!r} are in the "
                    "checkpoints of the run, and none of them is restored"
                )
        return create_state(
            self.model,
            self.optimizer,
            self.mesh,
            seed,
            params=self.params,
            rules=self.parameters,
            activations=self.activations,
            extras=self.extras,
            fisher=self.fisher,
            given=self.given,
        )

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a prompt to sample from, framed as in training."""
        if self.template is not None:
            c = self.model.config
            start = c.decoder_start_token_id if c.encoder_layers else None
            prompt = self.template.prompt(Record(instruction=text))
            return encoding.Encoder(self.tokenizer, start).prompt(prompt)
        return encoding.prompt_ids(
            self.tokenizer, text, encoder=bool(self.model.config.encoder_layers)
        )

    def weights(self, state: TrainState) -> dict:
        """Model params of a state, for evaluation and export: averaged and with adapters merged."""
        return self._merged(average_of(state.params, state.ema), state)

    def current(self, state: TrainState) -> dict:
        """Model params that the next step starts from, with adapters merged."""
        return self._merged(state.params, state)

    def _merged(self, params: dict, state: TrainState) -> dict:
        params = auxiliary.main_of(params)
        if self.extras.plan is None or self.extras.plan.lora is None:
            return params
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract.fixed["base"])
        with sharding.activate(self.mesh, self.activations):
            return jax.jit(self.extras.plan.weights, out_shardings=shardings)(params, state.fixed)

    def current_beside(self, state: TrainState) -> dict[str, Beside]:
        """Auxiliary models that the next step starts from."""
        main = self.current(state)
        return auxiliary.beside(self.extras.models, main, state.params, state.fixed)

    def beside(self, state: TrainState) -> dict[str, Beside]:
        """Auxiliary models of a state, for evaluation: averaged if they are trained."""
        params = average_of(state.params, state.ema)
        return auxiliary.beside(self.extras.models, self.weights(state), params, state.fixed)


def reader(config: settings.Config, workdir: Folder) -> Reader:
    """Make what data preparation needs, without the run's devices.

    Raises ConfigError or WeightsError.
    """
    parts = settings.check(config, math.prod(s for s in config.mesh.values() if s > 0))
    model, _, tokenizer, template = initial_model(parts, workdir, resuming=True)
    return Reader(workdir, model, tokenizer, template, parts)


def prepare(config: settings.Config, workdir: Folder) -> Run:
    """Make all parts of a run that need no data.

    Raises ConfigError, CheckpointError or WeightsError before anything is compiled.
    """
    avoid_wrong_fusion(config.model.dtype)  # before the devices are counted, which starts JAX
    parts = settings.check(config, jax.device_count())
    mesh = make_mesh(**config.mesh.to_dict())
    # the config of an older run may lack rules
    parameters = {**sharding.PARAMETERS, **config.sharding.parameters}
    activations = {**sharding.ACTIVATIONS, **config.sharding.activations}
    rows = sharding.batch_sharding(mesh, (config.batch_size, config.length), activations)
    resuming = bool(checkpoints.steps(workdir))
    model, params, tokenizer, template = initial_model(parts, workdir, resuming)
    c = model.config
    settings.check_model(parts, c, tokenizer, COMPUTE)
    task = parts.main.task
    transform = task.transform(tokenizer, c)
    plan = plans.of_config(config.adaptation, model.logical_axes())
    plans.check_head(config.adaptation, c.head)
    fisher = None
    if plan is not None and plan.ewc and params is not None:
        fisher = fishers.load(config.adaptation.ewc.fisher, params)
    kept = model_files.kept_auxiliary(workdir) if resuming else {}
    models, given = auxiliary.of_run(parts, model, tokenizer, kept)
    models, given, frozen = stored.of_run(models, given, workdir, resuming)
    o = config.optimizer
    extras = Extras(
        ema=o.ema > 0,
        guard=bool(o.skip_above or o.skip_nonfinite),
        rates=o.rates,
        plan=plan,
        models=models,
    )
    axes = rules.by_path(extras.axes(model)[0])
    for table in ("rates", "decay"):
        rules.check_used(axes, o[table], f"optimizer.{table}", every_pattern=table == "rates")
    if not any(rules.of(o.rates, name, "optimizer.rates") for name in axes):
        raise ConfigError(f"optimizer.rates={o.rates} freezes every parameter: nothing is learned")
    updates, schedule = optimizer.of_config(o, config.steps, axes)
    abstract = abstract_state(model, updates, mesh, parameters, extras)
    several = parts.several()
    loss = functools.partial(task.loss, parts=config.accumulate) if task.joint else task.loss
    loss = several.loss if isinstance(several, Several) else loss
    loss = auxiliary.wrapped(loss, models, plan, task.noisy)
    noisy = task.noisy or any(one.model.config.dropout > 0 for one in models.values())
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    train_step = make_train_step(
        model,
        loss,
        updates,
        schedule,
        accumulate=1 if task.joint else config.accumulate,
        by_row=parts.by_row,
        reduce=config.sharding.get("reduce", REDUCE[0]),  # the config of an older run has none
        weights=None if several is None else several.weights,
        coefficients=None if several is None else several.coefficients,
        shardings=shardings.params,
        rates=o.rates,
        ema=o.ema,
        skip_above=o.skip_above,
        noisy=noisy or c.dropout > 0 or bool(plan and plan.lora and plan.lora.dropout),
    )
    train_step = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))
    )
    lengths = (config.length, config.length if c.encoder_layers else 0)
    example = abstract_batches(parts, rows, c, dict.fromkeys(parts.batches, lengths))
    _check_names(train_step, abstract, example, mesh, activations)
    return Run(
        workdir,
        model,
        tokenizer,
        template,
        parts,
        params,
        mesh,
        parameters,
        activations,
        rows,
        updates,
        train_step,
        abstract,
        transform,
        extras,
        fisher,
        given,
        frozen,
    )


def abstract_batch(
    rows: NamedSharding,
    batch_size: int,
    lengths: tuple[int, int],
    more: dict[str, tuple[int, ...]] | None = None,
) -> Batch:
    """Shapes and shardings of a batch, to compile for.

    lengths: (tokens of a row, tokens of its encoder row; 0 without an encoder).
    more: additional fields, name -> shape of one row.
    """
    names = ("tokens", "targets", "weights", "segments", "positions")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (lengths[0],))
    if lengths[1]:
        names = ("encoder_tokens", "encoder_segments", "encoder_positions")
        shapes |= dict.fromkeys(names, (lengths[1],))
    shapes |= more or {}

    def array(name: str, shape: tuple[int, ...]) -> Any:
        placed = sharding.checked_field(rows, name, (batch_size, *shape))
        return jax.ShapeDtypeStruct((batch_size, *shape), FIELDS[name].dtype, sharding=placed)

    return Batch.made({name: array(name, shape) for name, shape in shapes.items()})


def abstract_batches(
    parts: Parts, rows: NamedSharding, model: ModelConfig, lengths: dict[str, tuple[int, int]]
) -> Batch | dict[str, Batch]:
    """Abstract batch of the run, or of each of its tasks if there are several.

    lengths: of the rows of every task; the run's own is several.MAIN.
    """
    found = {
        name: abstract_batch(
            rows,
            part.config.batch_size,
            lengths[name],
            part.task.fields(part.config.length, model),
        )
        for name, part in parts.batches.items()
    }
    return found if parts.further else found[MAIN]


def training_data(
    config: settings.Config, run: Reader, tally: Tally | None = None
) -> Packed | Mixture:
    """Packed training rows, or a mixture of sources. Raises DataError.

    tally: counts what is read of texts.
    """
    if config.data.synthetic_rows:
        return synthetic(
            run.model.config.vocab_size, config.data.synthetic_rows, config.length, config.seed
        )
    if not run.parts.sources:
        return packed(run.parts.main, run, tally)
    made = []
    for name, part in run.parts.sources.items():
        given = config.data.mixture[name]
        transform = part.task.transform(run.tokenizer, run.model.config)
        weight, limit = given.get("weight"), given.get("limit") or 0
        made.append(mixtures.Part(name, packed(part, run, tally), weight, limit, transform))
    return Mixture(made, config.data.temperature, config.seed)


def packed(part: Part, run: Reader, tally: Tally | None = None) -> Packed:
    """Packed training rows of one part. Raises DataError."""
    rows = part.task.rows(part.config.data.files, "train", run.tools(part.config, tally))
    return stored.attached(run, part.config, part.task, rows)


def train_source(
    config: settings.Config,
    run: Run,
    rows: Packed | Mixture,
    others: Mapping[str, Packed] | None = None,
) -> batches.TrainBatches | TaskSource | Together:
    """Source of training batches, from the first step.

    rows: from `training_data`. others: packed rows of every further task, from `packed`.
    """
    model = run.model.config

    def source(part: Part, rows) -> batches.TrainBatches | TaskSource:
        own, task = part.config, part.task
        given = (run.model, run.tokenizer, run.template, run.current)
        mine = batches.local_rows(run.rows, (own.batch_size, own.length)).tolist()
        sizes = (own.batch_size, own.length, own.seed)
        tools = SourceTools(*given, *sizes, mine, run.current_beside)
        lengths = (own.length, own.length if model.encoder_layers else 0)
        fields = task.fields(own.length, model)
        abstract = abstract_batch(run.rows, own.batch_size, lengths, fields)
        if found := of_task(task, rows, tools, abstract, lengths):
            return found
        mixed = isinstance(rows, Mixture)  # whose rows are transformed already
        transform = None if mixed else task.transform(run.tokenizer, model)
        return batches.TrainBatches(rows, own.batch_size, own.seed, run.rows, transform, model)

    main = source(run.parts.main, rows)
    if not others:
        return main
    further = {name: source(part, others[name]) for name, part in run.parts.further.items()}
    return Together({MAIN: main, **further})


def evaluation_data(config: settings.Config, run: Run) -> dict[str, Packed]:
    """Name -> packed rows for every non-empty entry of eval.data. Raises DataError."""
    return {name: evaluation_rows(config, run, files) for name, files in held_out(config).items()}


def evaluation_rows(
    config: settings.Config, run: Reader, files: str, tally: Tally | None = None
) -> Packed:
    """Packed rows of one entry of eval.data. Raises DataError."""
    own = files == tasks.HOLDOUT
    given, part = (config.data.files, "holdout") if own else (files, "all")
    rows = run.task.rows(given, part, run.tools(config, tally))
    return stored.attached(run, config, run.task, rows)


def _check_names(
    train_step, abstract: TrainState, batch: Any, mesh: Mesh, activations: Rules
) -> None:
    """Trace the step, and raise ConfigError for an activation that the rules do not fit."""
    with sharding.checked(mesh, activations):
        jax.eval_shape(train_step, abstract, batch)
