"""Models beside the one that is trained: made, checked, placed in the state, given to the loss.

Trained ones are in `TrainState.params`, under MODELS, so the optimizer, the moving average and the
rules of sharding treat them like the run's own model. Frozen ones are in `TrainState.fixed`, and
those that are the initial model share the array `fixed["base"]` with adaptation.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lm import families
from lm.adaptation.plan import Plan
from lm.batch import Batch
from lm.distributed.rules import by_path
from lm.losses import Loss
from lm.models import LanguageModel, build
from lm.models.config import ConfigError, ModelConfig, nearest
from lm.models.model import laid_out
from lm.tasks.models import Aux, Beside
from lm.training.parts import Parts
from lm.weights.runs.model_files import MODELS, Kept

NONE: Mapping = types.MappingProxyType({})
HEAD = "head/"  # prefix of the parameters of a head
DRAWN = ("random", "body")  # values of Aux.start that draw parameters
COMPUTE = ("dtype", "param_dtype", "remat", "layers")  # fields that are those of the run's model


@dataclasses.dataclass(frozen=True)
class Made:
    """An auxiliary model. from_base: it begins as the model that the run starts from.

    source: (model, start) of its declaration, "" for a config. own_rows, stored: as declared.
    """

    model: LanguageModel
    trained: bool
    from_base: bool
    tied: Mapping[str, str]
    source: tuple[str, str]
    own_rows: bool = False
    stored: bool = False

    @property
    def loads(self) -> bool:
        """Whether a new run reads its weights from files."""
        model, start = self.source
        return start not in DRAWN and not (model == "same" and start == "base")

    @property
    def kept(self) -> Kept:
        """What a run folder says of it."""
        return Kept(*self.source, self.model.config, self.trained, dict(self.tied), self.own_rows)

    @property
    def is_base(self) -> bool:
        """Whether it stays the model that the run starts from."""
        return self.from_base and not self.trained

    def own(self, tree: dict) -> dict:
        """The part of a tree like its params that is not tied."""
        return _nested({name: x for name, x in by_path(tree).items() if name not in self.tied})

    def whole(self, own: dict, main: dict) -> dict:
        """Its params: its own, and those of the run's model that are tied to it."""
        if not self.tied:
            return own
        theirs = by_path(main)
        return _nested(by_path(own) | {name: theirs[path] for name, path in self.tied.items()})


# ---------------------------------------------------------------------- made from a declaration


def of_run(
    parts: Parts, model: LanguageModel, tokenizer: Any, kept: Mapping[str, Kept] = NONE
) -> tuple[dict[str, Made], dict[str, dict]]:
    """`made` for what the run's task declares. Further tasks can declare nothing."""
    for name, part in parts.further.items():
        if part.task.aux(model.config):
            raise ConfigError(
                f"further_tasks.{name}.task.name={part.task.name!r} needs models beside the run's, "
                "which only the run's own task can have: make it config.task"
            )
    task, config = parts.main.task, parts.main.config
    declared = task.aux(model.config)
    return made(declared, model, tokenizer, task.longest(config.length), kept)


def made(
    declared: Mapping[str, Aux],
    main: LanguageModel,
    tokenizer: Any,
    longest: int,
    kept: Mapping[str, Kept] = NONE,
) -> tuple[dict[str, Made], dict[str, dict]]:
    """(models, loaded weights) by name. longest: tokens of a document.

    kept: models of a run that resumes: their weights are in its checkpoint, so no file is read.
    Raises ConfigError, naming the model, for one that does not fit, and WeightsError.
    """
    models: dict[str, Made] = {}
    weights: dict[str, dict] = {}
    for name, aux in declared.items():
        where = f"auxiliary model {name!r}"
        from_base = aux.model == "same" and aux.start == "base"
        source = "" if isinstance(aux.model, ModelConfig) else aux.model, aux.start
        if name in kept:
            config, loaded, its_tokenizer = _kept(where, aux, source, kept[name], main.config)
        else:
            config, loaded, its_tokenizer = _declared(where, aux, main.config)
        config = config.replace(
            **{field: getattr(main.config, field) for field in COMPUTE},
            dropout=config.dropout if aux.trained else 0.0,
        )
        if aux.heads and config.head not in aux.heads:
            raise ConfigError(
                f"{where} has head={config.head!r}: expected {' or '.join(map(repr, aux.heads))}"
            )
        if not aux.own_rows:
            _check_fit(where, config, main.config, longest)
        if not aux.own_rows and tokenizer is not None and its_tokenizer is not None:
            _check_tokenizer(where, its_tokenizer, tokenizer)
        flags = aux.own_rows, aux.stored
        one = Made(build(config), aux.trained, from_base, dict(aux.tied), source, *flags)
        _check_tied(where, one, main)
        if aux.start == "body":
            _check_body(where, one.model, main)
        if loaded is not None:
            loaded = laid_out(config, loaded)
            _check_shapes(where, aux.start, loaded, one.model)
            weights[name] = one.own(loaded)
        models[name] = one
    return models, weights


def _declared(where: str, aux: Aux, main: ModelConfig) -> tuple[ModelConfig, dict | None, Any]:
    """(config, weights or None, tokenizer or None); None: the run's own, or drawn from the seed."""
    from lm.weights import WeightsError
    from lm.weights.loading import load
    from lm.weights.runs.steps import CheckpointError

    def loaded_from(path: str):
        try:
            return load(path)
        except (ConfigError, WeightsError, CheckpointError) as error:
            raise type(error)(f"{where}: {error}") from error

    if not isinstance(aux.model, ModelConfig) and not aux.model:
        raise ConfigError(f"{where}: no model is named; give a run folder, model folder or hub id")
    loaded, tokenizer = None, None
    if isinstance(aux.model, ModelConfig):
        config = aux.model
        if aux.start == "base":
            raise ConfigError(
                f"{where} is made from a config, which has no weights: expected start='random', "
                "'body' or a path"
            )
    elif aux.model == "same":
        config = main
    else:
        model, loaded, tokenizer = loaded_from(aux.model)
        config = model.config
        scores = (config.head, config.n_labels) == ("sequence_classification", 1)
        if aux.heads == ("value",) and scores and config.pooling == "last":
            config = families.other_head(config, "value")  # a reward model
    if aux.start in DRAWN:
        loaded = None
    elif aux.start != "base":
        _, loaded, tokenizer = loaded_from(aux.start)
    return config, loaded, tokenizer


def _kept(
    where: str, aux: Aux, source: tuple[str, str], kept: Kept, main: ModelConfig
) -> tuple[ModelConfig, None, None]:
    """As `_declared`, for a model that is in the checkpoint."""
    if source != (there := (kept.model, kept.start)):
        shown = lambda pair: f"model={pair[0]!r} with start={pair[1]!r}"
        raise ConfigError(
            f"{where} of this run is {shown(there)}, and the config asks for {shown(source)}: its "
            "weights are in the checkpoint and are not read again, so name the same (it need not "
            "exist any more), or give another --workdir"
        )
    config = aux.model if isinstance(aux.model, ModelConfig) else kept.config
    return main if aux.model == "same" else config, None, None


def _check_fit(where: str, own: ModelConfig, main: ModelConfig, longest: int) -> None:
    if own.vocab_size != main.vocab_size:
        raise ConfigError(
            f"{where} has a vocabulary of {own.vocab_size} tokens, and the run's model one of "
            f"{main.vocab_size}: they must be equal; set model.vocab_size={own.vocab_size} if they "
            "share a tokenizer"
        )
    if bool(own.encoder_layers) != bool(main.encoder_layers):
        kinds = {True: "an encoder-decoder", False: "no encoder-decoder"}
        raise ConfigError(
            f"{where} is {kinds[bool(own.encoder_layers)]}, and the run's model is "
            f"{kinds[bool(main.encoder_layers)]}: they must read the same rows"
        )
    if longest > own.max_length:
        raise ConfigError(
            f"{where} reads at most {own.max_length} tokens, and a document may have {longest}; "
            "lower length"
        )


def _check_tokenizer(where: str, own: Any, main: Any) -> None:
    """Raise ConfigError when a token of the run's tokenizer has another id or none."""
    theirs, ours = own.get_vocab(), main.get_vocab()
    for token, number in sorted(ours.items(), key=lambda pair: pair[1]):
        if theirs.get(token) != number:
            raise ConfigError(
                f"{where} has another tokenizer: {token!r} is {theirs.get(token, 'no token')} "
                f"there, and {number} in the run's; they must be the same"
            )


def _check_tied(where: str, one: Made, main: LanguageModel) -> None:
    own, theirs = by_path(one.model.shapes()), by_path(main.shapes())
    for name, path in one.tied.items():
        for of, known, at in ((where, own, name), ("the run's model", theirs, path)):
            if at not in known:
                raise ConfigError(
                    f"{where} ties {name!r} to {path!r}: {of} has no parameter {at!r}"
                    f"{nearest(at, known)}"
                )
        if own[name].shape != theirs[path].shape:
            raise ConfigError(
                f"{where} ties {name!r} {list(own[name].shape)} to {path!r} "
                f"{list(theirs[path].shape)} of the run's model: their shapes must be equal"
            )


def _check_shapes(where: str, start: str, loaded: dict, model: LanguageModel) -> None:
    found, wanted = by_path(loaded), by_path(model.shapes())
    for name in sorted(found.keys() | wanted.keys()):
        given, expected = (getattr(x.get(name), "shape", None) for x in (found, wanted))
        if given != expected:
            show = lambda shape: "none" if shape is None else str(list(shape))
            raise ConfigError(
                f"{where}: the weights of {start} have {name} {show(given)}, expected "
                f"{show(expected)}"
            )


def _check_body(where: str, own: LanguageModel, main: LanguageModel) -> None:
    theirs = by_path(main.shapes())
    for name, x in by_path(own.shapes()).items():
        there = theirs.get(name)
        if not name.startswith(HEAD) and (there is None or there.shape != x.shape):
            raise ConfigError(
                f"{where} starts from the run's model (start='body'), which has {name} "
                f"{list(there.shape) if there is not None else 'none'}: expected {list(x.shape)}"
            )


# ----------------------------------------------------------------------------------- in the state


def start(
    models: Mapping[str, Made], base: dict, given: Mapping[str, dict], key: jax.Array, rows: int
) -> tuple[dict, dict]:
    """(trained, fixed) params as entries of a state, which may be empty; pure.

    base: params that the run starts from. given: weights that were loaded, without tied ones.
    rows: of the example batch, a multiple of the mesh's size.
    """
    trained: dict = {}
    fixed: dict = {}
    for number, (name, one) in enumerate(models.items()):
        if one.is_base:
            fixed["base"] = base
            continue
        if name in given:
            params = given[name]
        elif one.from_base:
            params = jax.tree.map(lambda p: jnp.array(p, copy=True), one.own(base))
        else:
            batch = Batch.of(np.zeros((rows, 2), np.int32))
            params = one.model.init(jax.random.fold_in(key, number), batch)["params"]
            if one.source[1] == "body":
                params = _with_body(params, base)
            params = one.own(params)
        place = trained if one.trained else fixed
        place.setdefault(MODELS, {})[name] = params
    return trained, fixed


def _with_body(drawn: dict, base: dict) -> dict:
    """The drawn head, and copies of all other parameters of `base`."""
    theirs = by_path(base)
    return _nested(
        {
            name: x if name.startswith(HEAD) else jnp.array(theirs[name], copy=True)
            for name, x in by_path(drawn).items()
        }
    )


def axes(models: Mapping[str, Made], base: dict) -> tuple[dict, dict]:
    """Logical axis names of what `start` returns. base: those of the run's model."""
    trained: dict = {}
    fixed: dict = {}
    for name, one in models.items():
        if one.is_base:
            fixed["base"] = base
        else:
            place = trained if one.trained else fixed
            place.setdefault(MODELS, {})[name] = one.own(one.model.logical_axes())
    return trained, fixed


def main_of(params: dict) -> dict:
    """The params of the run's own model, or its adapters, among those of a state."""
    return {name: x for name, x in params.items() if name != MODELS}


def beside(
    models: Mapping[str, Made], main: dict, trained: dict, fixed: dict | None
) -> dict[str, Beside]:
    """The auxiliary models of a state. main: params of the run's model, adapted.

    trained: `TrainState.params`. No gradient flows to frozen models.
    """
    found = {}
    for name, one in models.items():
        if one.trained:
            params = one.whole(trained[MODELS][name], main)
        else:
            held = jax.lax.stop_gradient(fixed or {})
            own = held["base"] if one.is_base else held[MODELS][name]
            params = one.whole(own, jax.lax.stop_gradient(main))
        found[name] = Beside(one.model, params)
    return found


def wrapped(
    loss_function: Callable[..., Loss], models: Mapping[str, Made], plan: Plan | None, noisy: bool
) -> Callable[..., Loss]:
    """Wrap a task's loss as (model, params of a state, batch, rng, *, fixed) -> Loss.

    The run's model is adapted by `plan`; auxiliary models, the loss's `models`, are not. noisy: the
    loss itself draws from `rng`.
    """
    if not models and not (plan and noisy):
        return loss_function if plan is None else plan.loss(loss_function)

    def loss(model, params: dict, batch, rng=None, *, fixed: dict | None = None) -> Loss:
        def inner(model, weights: dict, batch, own_rng=None) -> Loss:
            own_rng = rng if noisy else own_rng
            options = {"models": beside(models, weights, params, fixed)} if models else {}
            return loss_function(model, weights, batch, own_rng, **options)

        if plan is None:
            return inner(model, main_of(params), batch, rng)
        return plan.loss(inner)(model, main_of(params), batch, rng, fixed=fixed)

    return loss


def _nested(flat: dict) -> dict:
    return flax.traverse_util.unflatten_dict(flat, sep="/")
