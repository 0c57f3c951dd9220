"""Rows of a decoding batch on the devices: prompts enter free slots while other rows decode.

The state is a dict of arrays with n rows:

* cache: its write index is shared, and its slots are a ring.
* logits [n, V], taps {name: [n, D]}: of the latest forward pass of rows that are `fresh` (no token
  chosen yet) and, with host hooks, of every row.
* last, prompt, count, budget, number, segment, group int32 [n]: the latest token; the prompt's
  length; tokens chosen; their limit; the request's key; its segment id; the first slot of its
  group of members.
* before, leave int32 [n]: tokens that the request got earlier, in another slot; tokens after which
  it leaves this one if others wait (its `finish` is then 0).
* log_weight float32 [n]: of a member.
* running, fresh bool [n]; finish int32 [n]: an index of FINISH.
* tokens int32, log_probs, behaviour float32 [n, length]: what was chosen.
* seen bool [n, V]: only for a sampler with a repetition penalty.
* inputs {batch field: [n, ...]}; steps int32: forward passes.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.generation import hooks
from lm.generation.decode import force, read_prompts, read_tokens
from lm.generation.samplers import log_probability
from lm.models import LanguageModel, init_cache
from lm.models.cache import put_rows

FINISH = ("", "stop", "length")


class Plan(NamedTuple):
    """What the compiled functions depend on beside the shapes of their arguments."""

    model: LanguageModel
    sampler: Any
    hooks: tuple
    taps: tuple[str, ...]
    grouped: bool  # some requests have members

    @property
    def remembers(self) -> bool:
        return getattr(self.sampler, "repetition_penalty", 1.0) != 1.0


@functools.partial(jax.jit, static_argnames=("plan", "rows", "length", "encoder_length"))
def empty(plan: Plan, rows: int, length: int, encoder_length: int, inputs: dict) -> dict:
    """Return the state with every slot free. inputs: {batch field: example [...]}."""
    c = plan.model.config
    cache = init_cache(c, rows, length, encoder_length)
    zeros = lambda *shape: jnp.zeros((rows, *shape), jnp.int32)
    names = ("last", "prompt", "count", "budget", "number", "segment", "finish", "before", "leave")
    state = {name: zeros() for name in names} | {
        # one whole round of the ring lies before the first token
        "cache": cache | {"length": jnp.int32(length)},
        "logits": zeros(c.vocab_size).astype(jnp.float32),
        "taps": {name: zeros(c.d_model).astype(c.dtype) for name in plan.taps},
        "group": jnp.arange(rows, dtype=jnp.int32),
        "log_weight": zeros().astype(jnp.float32),
        "running": zeros() > 0,
        "fresh": zeros() > 0,
        "tokens": zeros(length),
        "log_probs": zeros(length).astype(jnp.float32),
        "behaviour": zeros(length).astype(jnp.float32),
        "inputs": {name: jnp.zeros((rows, *x.shape), x.dtype) for name, x in inputs.items()},
        "steps": jnp.int32(0),
    }
    if plan.remembers:
        state["seen"] = zeros(c.vocab_size) > 0
    return placed(plan, state)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def insert(plan: Plan, params: dict, state: dict, arrays: dict, rows_R) -> dict:
    """Read prompts into the slots `rows_R` (those beyond the last slot are dropped).

    arrays: tokens, segments [R, T], padded on the left, and in an encoder-decoder encoder_tokens,
    encoder_segments and perhaps encoder_owners [R, S]; the segments (owners) of a row's tokens are
    its segment id. Then the values [R] of the state, and inputs {batch field: [R, ...]}.
    """
    arrays = dict(arrays)
    given = arrays.pop("inputs")
    put = lambda name, new: state[name].at[rows_R].set(new, mode="drop")
    tokens, segments = arrays.pop("tokens"), arrays.pop("segments")
    read = {name: arrays.pop(name) for name in [*arrays] if name.startswith("encoder_")}
    read |= given
    logits, cache, taps = read_prompts(
        plan.model, params, tokens, segments, tokens.shape[1], read, plan.taps
    )
    new = {name: put(name, value) for name, value in arrays.items()} | {
        "cache": put_rows(plan.model.config, state["cache"], cache, rows_R),
        "logits": put("logits", logits),
        "taps": {
            name: x.at[rows_R].set(taps[name], mode="drop") for name, x in state["taps"].items()
        },
        "inputs": {
            name: x.at[rows_R].set(given[name], mode="drop") for name, x in state["inputs"].items()
        },
        "count": put("count", 0),
        "finish": put("finish", 0),
        "running": put("running", True),
        "fresh": put("fresh", True),
    }
    if plan.remembers:
        at = jnp.arange(len(tokens))[:, None], tokens
        seen = jnp.zeros((len(tokens), state["seen"].shape[1]), bool).at[at].max(segments > 0)
        new["seen"] = put("seen", seen)
    return placed(plan, state | new)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def advance(
    plan: Plan, params: dict, state: dict, stop_K, key, halt_B, hook_params, wait, need, until
) -> dict:
    """Decode until at least `need` slots are free, none is running, or `steps` is `until`.

    Rows in `halt_B` end first. All hooks are pure. hook_params: the params of each hook. wait:
    bool, whether requests wait.
    """
    state = state | {"running": state["running"] & ~halt_B}
    state = choose(plan, state, state["running"] & state["fresh"], stop_K, key, hook_params, wait)
    kept = {name: state.pop(name) for name in ("logits", "taps", "fresh", "inputs")}

    def go_on(s):
        free = jnp.sum(~s["running"])
        return (free < need) & s["running"].any() & (s["steps"] < until)

    def step(s):
        logits, cache, taps = forward(plan, params, s | {"inputs": kept["inputs"]})
        s = s | {"cache": cache, "steps": s["steps"] + 1, "logits": logits, "taps": taps}
        s = choose(plan, s, s["running"], stop_K, key, hook_params, wait)
        return {name: x for name, x in s.items() if name not in ("logits", "taps")}

    state = jax.lax.while_loop(go_on, step, state)
    return placed(plan, state | kept | {"fresh": jnp.zeros_like(kept["fresh"])})


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def step(
    plan: Plan, params: dict, state: dict, stop_K, key, halt_B, hook_params, found, inputs
) -> dict:
    """Choose one token for every running row and read it.

    hook_params: the params of each hook. found: for each host hook {name: [n, ...]} and the rows
    that have any, bool [n]. inputs: batch fields [n, ...] that replace those of the rows
    `inputs["rows"]`.
    """
    state = state | {"running": state["running"] & ~halt_B}
    if inputs:
        state["inputs"] = changed_inputs(state, inputs)
    state = choose(plan, state, state["running"], stop_K, key, hook_params, False, found)
    logits, cache, taps = forward(plan, params, state)
    new = {"cache": cache, "logits": logits, "taps": taps, "steps": state["steps"] + 1}
    return placed(plan, state | new)


def changed_inputs(state: dict, inputs: dict) -> dict:
    """Replace the inputs of the rows `inputs["rows"]`; segments above 0 become the row's id."""
    new = dict(inputs)
    if "neighbour_segments" in new:
        new["neighbour_segments"] = (new["neighbour_segments"] > 0) * state["segment"][
            :, None, None
        ]
    each = lambda x: new["rows"].reshape(-1, *(1,) * (x.ndim - 1))
    return {
        name: jnp.where(each(x), new[name].astype(x.dtype), x) if name in new else x
        for name, x in state["inputs"].items()
    }


def forward(plan: Plan, params, state) -> tuple[jax.Array, dict, dict]:
    """Read every row's latest token: logits, cache and taps."""
    position = state["prompt"] + state["count"] - 1
    return read_tokens(
        plan.model,
        params,
        state["last"],
        position,
        state["segment"],
        state["cache"],
        state["inputs"],
        plan.taps,
    )


def choose(plan: Plan, state, active_B, stop_K, key, hook_params, wait, found=()) -> dict:
    """Append a token to every active row, drawn from `state["logits"]`.

    It depends on the key, the request's number and the count of its tokens alone.
    """
    c, logits, count = plan.model.config, state["logits"], state["count"]
    row = jnp.arange(len(count))
    if plan.grouped:
        weight = jnp.where(active_B, state["log_weight"], -jnp.inf)
        logits = mixture(logits, weight, state["group"])
    changed, given = logits, iter(found)
    for hook, own in zip(plan.hooks, hook_params, strict=True):
        if hooks.pure(hook):
            taps = {name: state["taps"][name] for name in hook.taps}
            changed = hooks.mixed(hook, changed, taps, own)
            continue
        arrays, has_B = next(given)
        if arrays:
            changed = jnp.where(has_B[:, None], hooks.mixed(hook, changed, arrays, own), changed)
    changed = force(c, changed, state["prompt"] + count, state["budget"] - count)
    keys = jax.vmap(lambda number, at: jax.random.fold_in(jax.random.fold_in(key, number), at))(
        state["number"], state["before"] + count
    )
    seen = (state["seen"],) if plan.remembers else ()
    if hasattr(plan.sampler, "choose"):
        token, behaviour = plan.sampler.choose(changed, keys, *seen)
    else:
        token = plan.sampler(changed, keys, *seen)
        behaviour = jnp.full(token.shape, jnp.nan, jnp.float32)
    if plan.grouped:
        token, behaviour = token[state["group"]], behaviour[state["group"]]
    at = jnp.where(active_B, count, state["tokens"].shape[1])  # past the end: not written
    put = lambda name, new: state[name].at[row, at].set(new, mode="drop")
    stopped, count = jnp.isin(token, stop_K), count + active_B
    spent = count >= state["budget"]
    ended = active_B & (stopped | spent | (wait & (count >= state["leave"])))
    state = state | {
        "last": jnp.where(active_B, token, state["last"]),
        "count": count,
        "running": state["running"] & ~ended,
        "finish": jnp.where(ended, jnp.where(stopped, 1, 2 * spent), state["finish"]),
        "tokens": put("tokens", token),
        "log_probs": put("log_probs", log_probability(logits, token)),
        "behaviour": put("behaviour", behaviour),
    }
    if plan.remembers:
        state["seen"] = state["seen"].at[row, token].max(active_B)
    return state


def mixture(logits_BV, log_weight_B, group_B) -> jax.Array:
    """log sum of exp(log_weight + log p) over the members of every row's group, float32 [B, V]."""
    each = jax.nn.log_softmax(logits_BV) + log_weight_B[:, None]
    n = len(group_B)
    most = jax.ops.segment_max(each, group_B, n)[group_B]
    most = jnp.where(jnp.isfinite(most), most, 0.0)
    total = jax.ops.segment_sum(jnp.exp(each - most), group_B, n)[group_B]
    return jnp.log(total) + most


def placed(plan: Plan, state: dict) -> dict:
    """Constrain the rows of the state to the data axes of the active mesh, if there is one.

    What the host reads is on every device, so of every process: so are the taps of host hooks.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return state
    layer = () if plan.model.config.layers == "separate" else (None,)
    split = {"cache", "logits", "inputs", "seen"}
    split |= {"taps"} if all(map(hooks.pure, plan.hooks)) else set()

    def constrained(path, x):
        name = path[-1].key
        if path[0].key in split and x.ndim:
            axes = ("batch", *(None,) * (x.ndim - 1))
            if path[0].key == "cache" and path[1].key == "layers":
                rest = x.ndim - len(layer) - 1
                heads = name in ("key", "value", "cross_key", "cross_value")
                axes = (*layer, "batch", *(("kv_heads", None, None) if heads else (None,) * rest))
        else:
            axes = (None,) * x.ndim
        return nn.with_logical_constraint(x, axes, fallback=nn.spmd.RulesFallback.RAISE_ERROR)

    return jax.tree_util.tree_map_with_path(constrained, state)
