"""Make the parts of a run from a config: model, data, optimizer and state.

All errors of the config are raised here.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from lm.adaptation import fisher as fishers
from lm.adaptation import plan as plans
from lm.batch import FIELDS, Batch
from lm.data import batches, encoding, packing
from lm.data.mixtures import Mixture
from lm.data.packing import Packed
from lm.data.sources import Tally
from lm.data.templates import Template
from lm.distributed import rules, sharding
from lm.distributed.mesh import make_mesh
from lm.distributed.sharding import Rules
from lm.models import LanguageModel, inputs
from lm.models.config import ConfigError, ModelConfig
from lm.objectives import OBJECTIVES, Transform
from lm.training import checkpoints, instruction, labelling, mixing, optimizer, settings
from lm.training.initial_model import COMPUTE, initial_model
from lm.training.paths import Folder, is_remote
from lm.training.state import Extras, TrainState, abstract_state, average_of, create_state
from lm.training.step import make_train_step

CACHE = pathlib.Path.home() / ".cache" / "openbook" / "rows"  # for runs in object storage


@dataclasses.dataclass(frozen=True)
class Run:
    """Parts of a training run.

    params: those of init_from, or None. abstract: shapes, dtypes and shardings of the state.
    """

    workdir: Folder
    model: LanguageModel
    params: dict | None
    tokenizer: Any
    mesh: Mesh
    parameters: Rules
    activations: Rules
    rows: NamedSharding
    optimizer: optax.GradientTransformation
    train_step: Any  # jitted
    abstract: TrainState
    transform: Transform | None  # the objective's transform of rows
    extras: Extras
    template: Template | None  # renders the records of instruct data
    fisher: dict | None = None  # Fisher information of params, if needed to start the plan

    def fresh_state(self, seed: int) -> TrainState:
        """State at step 0: drawn from the seed, or with the weights of init_from."""
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
        )

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a prompt to sample from, framed as in training."""
        if self.template is not None:
            return instruction.prompt_ids(self.model.config, self.tokenizer, self.template, text)
        return encoding.prompt_ids(
            self.tokenizer, text, encoder=bool(self.model.config.encoder_layers)
        )

    def weights(self, state: TrainState) -> dict:
        """Model params of a state, for evaluation and export: averaged and with adapters merged."""
        params = average_of(state.params, state.ema)
        if self.extras.plan is None or self.extras.plan.lora is None:
            return params
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract.fixed["base"])
        with sharding.activate(self.mesh, self.activations):
            return jax.jit(self.extras.plan.weights, out_shardings=shardings)(params, state.fixed)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Parts of a run that affect its data."""

    workdir: Folder
    model: LanguageModel
    tokenizer: Any
    template: Template | None


def reader(config: settings.Config, workdir: Folder) -> Reader:
    """Make what data preparation needs, without the run's devices.

    Raises ConfigError or WeightsError.
    """
    settings.check(config, math.prod(size for size in config.mesh.values() if size > 0))
    model, _, tokenizer, template = initial_model(config, workdir, resuming=True)
    return Reader(workdir, model, tokenizer, template)


def prepare(config: settings.Config, workdir: Folder) -> Run:
    """Make all parts of a run that need no data.

    Raises ConfigError, CheckpointError or WeightsError before anything is compiled.
    """
    settings.check(config, jax.device_count())
    mesh = make_mesh(**config.mesh.to_dict())
    parameters, activations = (
        config.sharding[table].to_dict() for table in ("parameters", "activations")
    )
    rows = sharding.batch_sharding(mesh, (config.batch_size, config.length), activations)
    model, params, tokenizer, template = initial_model(
        config, workdir, resuming=bool(checkpoints.steps(workdir))
    )
    c = model.config
    for one in (config, *mixing.parts(config).values()):
        settings.check_head(one, c.head)
        settings.check_length(one, c.max_length)
    if tokenizer is not None and (ids := inputs.id_count(tokenizer)) > c.vocab_size:
        raise ConfigError(
            f"the tokenizer has {ids} tokens and the model's vocabulary {c.vocab_size}; they do "
            "not belong together"
        )
    if config.init_from:
        settings.check_ignored(config.model, c, COMPUTE)
    chosen = OBJECTIVES[config.objective.name]
    transform = _transform(config, c, tokenizer)
    plan = plans.of_config(config.adaptation, model.logical_axes())
    plans.check_head(config.adaptation, c.head)
    fisher = None
    if plan is not None and plan.ewc and params is not None:
        fisher = fishers.load(config.adaptation.ewc.fisher, params)
    o, axes = (
        config.optimizer,
        rules.by_path(model.logical_axes() if plan is None else plan.trained_axes()),
    )
    for table in ("rates", "decay"):
        rules.check_used(axes, o[table], f"optimizer.{table}", every_pattern=table == "rates")
    if not any(rules.of(o.rates, name, "optimizer.rates") for name in axes):
        raise ConfigError(
            f"optimizer.rates={o.rates} freezes every parameter: nothing would be learned"
        )
    updates, schedule = optimizer.of_config(o, config.steps, axes)
    extras = Extras(
        ema=o.ema > 0, guard=bool(o.skip_above or o.skip_nonfinite), rates=o.rates, plan=plan
    )
    abstract = abstract_state(model, updates, mesh, parameters, extras)
    objective = functools.partial(chosen.loss, **settings.loss_options(config))
    objective = objective if plan is None else plan.objective(objective)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    train_step = make_train_step(
        model,
        objective,
        updates,
        schedule,
        accumulate=1 if chosen.joint else config.accumulate,
        shardings=shardings.params,
        rates=o.rates,
        ema=o.ema,
        skip_above=o.skip_above,
        noisy=c.dropout > 0 or bool(plan and plan.lora and plan.lora.dropout),
    )
    train_step = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))
    )
    example = abstract_batch(
        rows,
        config.batch_size,
        (config.length, config.length if c.encoder_layers else 0),
        labelling.batch_fields(config, c),
    )
    _check_names(train_step, abstract, example, mesh, activations)
    return Run(
        workdir,
        model,
        params,
        tokenizer,
        mesh,
        parameters,
        activations,
        rows,
        updates,
        train_step,
        abstract,
        transform,
        extras,
        template,
        fisher,
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
    shapes = dict.fromkeys(names, (lengths[0],)) | (more or {})
    if lengths[1]:
        names = ("encoder_tokens", "encoder_segments", "encoder_positions")
        shapes |= dict.fromkeys(names, (lengths[1],))

    def array(name: str, shape: tuple[int, ...]) -> Any:
        placed = sharding.field_sharding(rows, name, 1 + len(shape))
        return jax.ShapeDtypeStruct((batch_size, *shape), FIELDS[name].dtype, sharding=placed)

    return Batch(**{name: array(name, shape) for name, shape in shapes.items()})


def training_data(
    config: settings.Config, run: "Run | Reader", tally: Tally | None = None
) -> Packed | Mixture:
    """Packed training rows, or a mixture of sources. Raises DataError.

    tally: counts what is read of texts.
    """
    if config.data.synthetic_rows:
        return packing.synthetic(
            run.model.config.vocab_size, config.data.synthetic_rows, config.length, config.seed
        )
    if config.data.mixture:
        parts = mixing.parts(config).items()
        transforms = {name: _transform(own, run.model.config, run.tokenizer) for name, own in parts}
        return mixing.mixture(
            config,
            {name: _pack(own, run, own.data.files, True, tally) for name, own in parts},
            transforms,
        )
    return _pack(config, run, config.data.files, True, tally)


def train_batches(
    config: settings.Config, run: Run, packed: Packed | Mixture
) -> batches.TrainBatches:
    """Stream of training batches, from the first step."""
    transform = None if isinstance(packed, Mixture) else run.transform
    return batches.TrainBatches(
        packed,
        config.batch_size,
        config.seed,
        run.rows,
        transform=transform,
        config=run.model.config,
    )


def evaluation_data(config: settings.Config, run: Run) -> dict[str, Packed]:
    """Name -> packed rows for every non-empty entry of eval.data. Raises DataError."""
    return {
        name: evaluation_rows(config, run, files) for name, files in evaluations(config).items()
    }


def evaluations(config: settings.Config) -> dict[str, str]:
    """Name -> files to evaluate: eval.data, and "holdout" if data.holdout_share is set."""
    held_out = {"holdout": instruction.HOLDOUT} if config.data.holdout_share else {}
    return {name: files for name, files in config.eval.data.items() if files} | held_out


def evaluation_rows(
    config: settings.Config, run: "Run | Reader", files: str, tally: Tally | None = None
) -> Packed:
    """Packed rows of one entry of eval.data. Raises DataError."""
    return _pack(config, run, files, False, tally)


def cache_of(config: settings.Config, workdir: Folder) -> pathlib.Path:
    """Folder of a run's packed rows, on a local disk, since they are memory-mapped."""
    return pathlib.Path(config.data.cache or (CACHE if is_remote(workdir) else workdir / "cache"))


def _pack(config, run: "Run | Reader", files: str, training: bool, tally: Tally | None) -> Packed:
    cache = cache_of(config, run.workdir)
    if config.objective.name in instruction.OBJECTIVES:
        assert run.template is not None  # ensured by instruction.template_of
        return instruction.pack(
            config, run.model.config, run.tokenizer, run.template, files, cache, training
        )
    if config.objective.name in labelling.OBJECTIVES:
        return labelling.pack(config, run.model.config, run.tokenizer, files, cache, tally)
    held_out = files == instruction.HOLDOUT and not training
    return packing.pack_files(
        config.data.files if held_out else files,
        run.tokenizer,
        config.length,
        cache,
        field=config.data.field,
        separator=config.data.separator,
        whole=OBJECTIVES[config.objective.name].whole,
        stride=config.data.stride if training else 0,
        max_bad_share=config.data.max_bad_share,
        tally=tally,
        share=config.data.holdout_share if training or held_out else 0.0,
        held_out=held_out,
    )


def _transform(config, model: ModelConfig, tokenizer) -> Transform | None:
    make = OBJECTIVES[config.objective.name].transform
    return None if make is None else make(tokenizer, model, **settings.options(config))


def _check_names(
    train_step, abstract: TrainState, batch: Batch, mesh: Mesh, activations: Rules
) -> None:
    """Trace the step, and raise ConfigError for a logical name of an activation without a rule."""
    try:
        with sharding.activate(mesh, activations):
            jax.eval_shape(train_step, abstract, batch)
    except ValueError as e:
        if "logical" not in str(e).lower():
            raise
        raise ConfigError(
            f"an activation has a logical name that no rule in sharding.activations knows: {e}"
        ) from e
