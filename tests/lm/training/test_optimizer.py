"""Optimizers against torch, transformers or the paper's formula, on stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import families
from lm.distributed import rules
from lm.models import build
from lm.models.config import ConfigError
from lm.models.matrices import Matrix, matrix
from lm.training import muon, optimizer

torch = pytest.importorskip("torch")
STEPS, RATE, DECAY = 4, 0.03, 0.1
AXES = {
    "layers/attention/query": ("layers", "embed", "heads", "head_dim"),
    "layers/attention/out": ("layers", "heads", "head_dim", "embed"),
    "layers/mlp/up": ("layers", "embed", "mlp"),
    "layers/norm/scale": ("layers", "norm"),
    "embeddings/token": ("vocab", "table_embed"),
}
SHAPES = {
    "layers/attention/query": (2, 6, 2, 4),
    "layers/attention/out": (2, 2, 4, 6),
    "layers/mlp/up": (2, 6, 5),
    "layers/norm/scale": (2, 6),
    "embeddings/token": (7, 6),
}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()
    }


def nested(flat):
    import flax.traverse_util

    return flax.traverse_util.unflatten_dict(flat, sep="/")


def ours(name, **options):
    """Parameters after STEPS updates, by path."""
    return with_(
        optimizer.build(name, lambda _: RATE, AXES, weight_decay=DECAY, clip=0.0, **options)
    )


def with_(transformation):
    params = jax.tree.map(jnp.asarray, nested(tree(0)))
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for n in range(STEPS):
        updates, state = update(nested(tree(n + 1, 0.1 * (n + 1))), state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(x) for name, x in rules.by_path(params).items()}


def as_matrices(name, x):
    """Copies of a parameter's layers, each as a matrix [inputs, outputs]."""
    m = matrix(name, AXES[name])
    if m is None:
        return [x.copy()] if "layers" not in AXES[name] else [layer.copy() for layer in x]
    rows = int(np.prod([x.shape[d] for d in m.inputs]))
    return [layer.reshape(rows, -1).copy() for layer in x]


def theirs(make, names=tuple(SHAPES)):
    """The same updates by a torch optimizer `make(parameters, weight_decay)`, matrix by matrix."""
    found = {}
    for name in names:
        layers = []
        for i, start in enumerate(as_matrices(name, tree(0)[name])):
            p = torch.nn.Parameter(torch.tensor(start))
            opt = make([p], 0.0 if "norm" in name else DECAY)
            for n in range(STEPS):
                p.grad = torch.tensor(as_matrices(name, tree(n + 1, 0.1 * (n + 1))[name])[i])
                opt.step()
            layers.append(p.detach().numpy())
        found[name] = np.stack(layers).reshape(SHAPES[name])
    return found


def assert_close(a, b, **tolerance):
    for name in b:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **tolerance)


def test_adamw_is_not_torch_s():
    make = lambda ps, decay: torch.optim.AdamW(ps, RATE, (0.9, 0.95), 1e-8, decay)
    assert_close(ours("adamw"), theirs(make), rtol=2e-5, atol=2e-6)


def test_adafactor_is_not_transformers_layer_by_layer():
    transformers = pytest.importorskip("transformers.optimization")
    make = lambda ps, decay: transformers.Adafactor(
        ps, RATE, scale_parameter=True, relative_step=False, weight_decay=0.0
    )
    one = optimizer._adafactor(AXES, {}, factored=2)
    plain = optax.chain(one, optax.scale_by_learning_rate(RATE))
    # transformers also factors a table by its last two dimensions. Neither factors a vector.
    assert_close(with_(plain), theirs(make), rtol=5e-5, atol=1e-6)


def test_adafactor_keeps_whole_second_moments_of_large_matrices():
    axes = {"layers/mlp/up": ("layers", "embed", "mlp")}
    state = optimizer.build("adafactor", lambda _: 1.0, axes).init(
        nested({"layers/mlp/up": jnp.zeros((3, 128, 256))})
    )
    assert sum(x.size for x in jax.tree.leaves(state)) < 3 * (128 + 256 + 3)


def test_lion_is_not_its_algorithm():
    p, m = tree(0), {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for n in range(STEPS):  # Chen et al. 2023, algorithm 2
        for name, g in tree(n + 1, 0.1 * (n + 1)).items():
            step = np.sign(0.9 * m[name] + 0.1 * g) + (0.0 if "norm" in name else DECAY) * p[name]
            p[name], m[name] = p[name] - RATE * step, 0.99 * m[name] + 0.01 * g
    assert_close(ours("lion", b1=0.9, b2=0.99), p, rtol=1e-5, atol=1e-6)


MATRICES = [name for name in SHAPES if name.startswith("layers/") and "norm" not in name]


def newton_schulz(g):
    x = g / np.linalg.norm(g)
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_muon_is_not_its_formula_on_every_matrix_of_every_layer():
    found = ours("muon")
    for name in MATRICES:
        layers = as_matrices(name, tree(0)[name].astype(np.float64))
        for i, p in enumerate(layers):
            m = np.zeros_like(p)
            for n in range(STEPS):
                g = as_matrices(name, tree(n + 1, 0.1 * (n + 1))[name])[i].astype(np.float64)
                m = 0.95 * m + 0.05 * g
                look_ahead = 0.95 * m / (1 - 0.95 ** (n + 2)) + 0.05 * g / (1 - 0.95 ** (n + 1))
                p -= RATE * (0.2 * np.sqrt(max(p.shape)) * newton_schulz(look_ahead) + DECAY * p)
        np.testing.assert_allclose(
            found[name], np.stack(layers).reshape(SHAPES[name]), rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_muon_is_not_torch_s_up_to_its_bfloat16():
    make = lambda ps, decay: torch.optim.Muon(
        ps, RATE, decay, 0.95, nesterov=False, adjust_lr_fn="match_rms_adamw"
    )
    chain = optax.chain(
        muon.grouped(
            lambda path: "muon" if path in MATRICES else "rest",
            {"muon": muon.scale_by_muon(AXES, 0.95, nesterov=False), "rest": optax.identity()},
        ),
        optimizer._decayed(DECAY, rules.DECAY, rules.RATES),
        optax.scale_by_learning_rate(RATE),
    )
    assert_close(with_(chain), theirs(make, MATRICES), rtol=0, atol=6e-3)


def test_muon_does_not_leave_the_rest_to_adamw():
    found, adamw = ours("muon"), ours("adamw")
    for name in SHAPES:
        assert np.array_equal(found[name], adamw[name]) == (name not in MATRICES), name


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_kernel_of_a_family_is_no_matrix_or_a_table_is_one(family):
    sizes = families.get(family).presets
    axes = rules.by_path(
        build(
            families.preset(family, "tiny" if "tiny" in sizes else next(iter(sizes)))
        ).logical_axes()
    )
    last = lambda name: name.rsplit("/", 1)[-1]
    inner = {
        "query",
        "key",
        "value",
        "out",
        "up",
        "gate",
        "down",
        "input",
        "bc",
        "dt_in",
        "dt_down",
        "dt_up",
    }
    assert {name for name in axes if matrix(name, axes[name])} == {
        name for name in axes if last(name) in inner | {"dense", "kernel", "projection"}
    }
    assert {name for name in axes if muon.muon_matrix(name, axes)} == {
        name for name in axes if last(name) in inner
    }


def test_the_dimensions_of_a_kernel_are_not_its_inputs_and_outputs():
    assert matrix("layers/attention/query", AXES["layers/attention/query"]) == Matrix(
        (0,), (1,), (2, 3)
    )
    assert matrix("layers/attention/out", AXES["layers/attention/out"]) == Matrix(
        (0,), (1, 2), (3,)
    )
    assert matrix("layers_0/mlp/up", ("embed", "mlp")) == Matrix((), (0,), (1,))


def test_clipping_is_not_by_the_global_norm():
    gradients = nested(tree(1))
    adamw = optimizer.adamw(lambda _: 1.0, clip=0.25)
    _, state = adamw.update(gradients, adamw.init(nested(tree(0))), nested(tree(0)))
    assert float(optax.tree.norm(state[1].mu)) == pytest.approx(0.25 * (1 - 0.9), rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "adamv", "did you mean 'adamw'"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("momentum", 0.9, "optimizer.momentum=0.9 would be ignored: adamw has none"),
        ("cooldown", 5, "optimizer.cooldown=5: the schedule 'wsd' ends in so many"),
        ({"schedule": "wsd"}, None, "optimizer.cooldown=0: the schedule 'wsd'"),
        ({"schedule": "wsd", "warmup": 60, "cooldown": 60}, None, "together more than steps=100"),
        ({"schedule": "constant", "final": 0.0}, None, "has no end; leave it at 0.1"),
        ({"name": "lion", "eps": 1e-6}, None, "lion has none; leave it at 1e-08"),
        ("skip_above", 0.5, "would skip every second update"),
        ("ema", 1.0, r"optimizer.ema=1.0: expected a number in \[0, 1\)"),
        ("rates", (("(", 1.0),), "not a regular expression"),
        ("skip_nonfinite", -1, "expected 0 or more"),
    ],
)
def test_a_setting_that_cannot_work_or_would_be_ignored_is_accepted(field, value, said):
    from configs.defaults import defaults

    o = defaults().optimizer
    optimizer.check(o, 100)
    o.update(field if isinstance(field, dict) else {field: value})
    with pytest.raises(ConfigError, match=said):
        optimizer.check(o, 100)
