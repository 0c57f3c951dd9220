"""Train parameters stored in bfloat16, with float32 moments and without losing small updates."""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from lm.distributed.rules import by_path

ROUNDINGS = ("master", "stochastic")


def widened(chain: optax.GradientTransformation, rounding: str) -> optax.GradientTransformation:
    """Wrap `chain` so that it gets float32 parameters of any dtype and keeps float32 state.

    rounding: for parameters narrower than float32. With "master" they are rounded copies of float32
    parameters in the state {"inner": of the chain, "master": dict like params}. With "stochastic"
    (bfloat16 only) updates are rounded stochastically; state {"inner", "count": int32, updates
    done}. Without such parameters the state is the chain's. Use `optax.apply_updates`.
    """

    def init(params):
        narrow, inner = _narrow(params), chain.init(jax.tree.map(_wide, params))
        if not narrow:
            return inner
        return (
            {"inner": inner, "master": _nested(narrow)}
            if rounding == "master"
            else {"inner": inner, "count": jnp.int32(0)}
        )

    def update(updates, state, params=None):
        narrow = _narrow(params)
        if not narrow:
            return chain.update(updates, state, params)
        stored = by_path(params)
        before = {name: _wide(p) for name, p in stored.items()} | by_path(state.get("master", {}))
        updates, inner = chain.update(updates, state["inner"], _nested(before))
        flat = by_path(updates)
        after = {name: before[name] + flat[name] for name in narrow}
        kept: dict[str, Any] = {"master": _nested(after)}
        if rounding == "stochastic":
            keys = jax.random.split(
                jax.random.fold_in(jax.random.key(0), state["count"]), len(after)
            )
            after = {
                name: rounded(x, key)
                for (name, x), key in zip(sorted(after.items()), keys, strict=True)
            }
            kept = {"count": state["count"] + 1}
        flat |= {name: x - _wide(stored[name]) for name, x in after.items()}
        return _nested(flat), {"inner": inner, **kept}

    return optax.GradientTransformation(init, update)


def exact(params: dict, opt_state: Any) -> dict:
    """Return `params` with the float32 masters of `opt_state`, if it has any."""
    if not isinstance(opt_state, dict) or "master" not in opt_state:
        return params
    return _nested(by_path(params) | by_path(opt_state["master"]))


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round float32 x to bfloat16 stochastically, with mean x; the result is still float32."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(
        key, x.shape, jnp.uint16
    ).astype(jnp.uint32)
    return jnp.where(
        jnp.isfinite(x), jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32), x
    )


def described(state: Any, compute: str) -> str:
    """Dtypes of a TrainState in words.

    For example "bfloat16 parameters, copies of float32 ones; float32 moments; computed in
    bfloat16".
    """
    names = lambda tree: " and ".join(
        sorted(
            {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}
        )
    )
    opt_state, how = (
        state.opt_state,
        f" beside a base in {names(state.fixed['base'])}" if "base" in (state.fixed or {}) else "",
    )
    if isinstance(opt_state, dict) and "inner" in opt_state:
        how += ", copies of float32 ones" if "master" in opt_state else ", rounded stochastically"
        opt_state = opt_state["inner"]
    return (
        f"{names(state.params)} parameters{how}; {names(opt_state)} moments; computed in {compute}"
    )


def _narrow(params) -> dict[str, jax.Array]:
    """Path -> float32 copy of every parameter narrower than float32."""
    return {name: _wide(p) for name, p in by_path(params).items() if p.dtype.itemsize < 4}


def _wide(x) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def _nested(flat: dict) -> dict:
    return flax.traverse_util.unflatten_dict(flat, sep="/")
