"""Meshes and rules that do not fit are refused with clear errors before anything compiles."""

import contextlib

import jax
import numpy as np
import pytest

from lm.distributed import mesh, sharding
from lm.distributed.mesh import make_mesh, resolve
from lm.models import build, shards
from lm.models.config import ConfigError
from lm.training.state import abstract_state, create_state
from tests.lm.training import small


def test_the_rest_of_the_devices_is_not_filled_in():
    assert resolve({"data": -1, "fsdp": 2, "tensor": 2}, 8) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "covers 3 devices and there are 8"),
        ({"data": -1, "fsdp": 3, "tensor": 1}, "multiple of 3 devices and there are 8"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "only one axis can be -1"),
        ({"data": 0, "fsdp": 1, "tensor": 1}, "mesh.data=0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_accepted(sizes, said):
    with pytest.raises(ConfigError, match=said):
        make_mesh(**sizes)


@pytest.mark.parametrize(
    ("sizes", "axis"),
    [
        ({"data": 4, "tensor": 2}, "data"),
        ({"data": 2, "fsdp": 2, "sequence": 2}, "data"),
        ({"data": 1, "fsdp": 4, "tensor": 2}, "fsdp"),
    ],
)
def test_a_slice_is_spread_over_an_axis_that_communicates_much(sizes, axis, monkeypatch):
    monkeypatch.setattr(mesh, "_slice_of", lambda device: device.id % 2)  # in no order of theirs
    made = make_mesh(**sizes)
    assert made.shape == {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1} | sizes
    assert sorted(device.id for device in made.devices.flat) == [*range(8)]
    halves = np.split(made.devices, 2, axis=mesh.AXES.index(axis))
    assert [{device.id % 2 for device in half.flat} for half in halves] == [{0}, {1}]


def test_nothing_is_said_when_slices_divide_no_axis(monkeypatch, caplog):
    monkeypatch.setattr(mesh, "_slice_of", lambda device: device.id // 4)
    assert make_mesh(data=1, tensor=8).shape["tensor"] == 8
    assert "2 slices of devices divide neither data nor fsdp" in caplog.text


def test_mesh_axes_are_explicit():
    assert set(make_mesh().axis_types) == {jax.sharding.AxisType.Auto}


def shapes_and_names(config=small.MODEL):
    model = build(config)
    return jax.eval_shape(
        lambda: model.init(jax.random.key(0), _batch())["params"]
    ), model.logical_axes()


def _batch():
    from lm.batch import Batch

    return Batch.of([[0, 0]])


def test_a_misspelled_logical_axis_is_silently_replicated():
    shapes, names = shapes_and_names()
    names["layers"]["mlp"]["up"] = ("layers", "embed", "mpl")
    with pytest.raises(
        ConfigError,
        match=(
            r"parameter layers/mlp/up: dimension 2 \(size 64\) is called 'mpl'.*did you mean 'mlp'"
        ),
    ):
        sharding.parameter_shardings(make_mesh(1, 8, 1), names, shapes)


def test_a_size_that_does_not_divide_reaches_the_compiler(monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("something was compiled"))
    model, adamw, _ = small.parts()  # 2 key/value heads
    with pytest.raises(
        ConfigError,
        match=(
            r"parameter layers/attention/key: dimension 2 \('kv_heads', size 2\) .* mesh.tensor = "
            r"4"
        ),
    ):
        abstract_state(model, adamw, make_mesh(2, 1, 4))


def test_a_batch_that_does_not_divide_reaches_the_compiler():
    with pytest.raises(
        ConfigError,
        match=(
            r"the batch: dimension 0 \('batch', size 12\) does not divide by mesh.data x "
            r"mesh.fsdp = 8"
        ),
    ):
        sharding.batch_sharding(make_mesh(4, 2, 1), (12, 16))


def test_one_mesh_axis_shards_two_dimensions():
    rules = dict(sharding.PARAMETERS) | {"table_embed": ("tensor",)}
    with pytest.raises(ConfigError, match="'tensor' would shard two dimensions"):
        sharding.parameter_shardings(
            make_mesh(4, 1, 2), shapes_and_names()[1], shapes_and_names()[0], rules
        )


def test_a_rule_for_a_mesh_axis_that_does_not_exist_is_accepted():
    for wrong in (None, 5, "fsdp", {"fsdp": 1}, (1,), (None,), (("fsdp",),)):
        with pytest.raises(
            ConfigError,
            match=(
                r"sharding.parameters.embed=.*: expected a tuple of mesh axes, such as \('fsdp',\)"
            ),
        ):
            sharding.check_rules(make_mesh(), {"embed": wrong}, "parameters")
    with pytest.raises(
        ConfigError,
        match=r"sharding.parameters.embed names the mesh axis 'fsdpp' \(did you mean 'fsdp'",
    ):
        sharding.check_rules(make_mesh(), {"embed": ("fsdpp",)}, "parameters")


def test_a_misspelled_activation_name_is_silently_replicated():
    model, _, _ = small.parts()
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), _batch())["params"])
    rules = {name: axes for name, axes in sharding.ACTIVATIONS.items() if name != "mlp"}
    with sharding.activate(make_mesh(), rules), pytest.raises(ValueError, match="mlp"):
        jax.eval_shape(lambda p: model.apply({"params": p}, _batch(), method="hidden"), params)


def test_a_rule_for_an_unknown_logical_name_is_ignored():
    for table, name, near in (
        ("activations", "residual_lenght", "residual_length"),
        ("parameters", "mpl", "mlp"),
    ):
        with pytest.raises(
            ConfigError, match=rf"sharding.{table}.{name} is no logical .*mean '{near}'"
        ):
            sharding.check_rules(make_mesh(), {name: ()}, table)


def test_an_activation_that_the_rules_do_not_fit_reaches_the_compiler():
    model, _, _ = small.parts()
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), _batch())["params"])
    for changes, said in (
        ({"residual_length": ("tensor",), "batch": ()}, None),  # two tokens on two devices
        ({"batch": ("data",)}, r"\[batch, residual_length, residual\] .* size 1\) does not divide"),
        ({"attention_length": ("tensor",), "batch": ()}, "'tensor' would shard two dimensions"),
    ):
        rules = {**sharding.ACTIVATIONS, **changes}
        fits = contextlib.nullcontext() if said is None else pytest.raises(ConfigError, match=said)
        with fits, sharding.checked(make_mesh(4, 1, 2), rules):
            # a new function: JAX remembers what it has traced
            jax.eval_shape(lambda p: model.apply({"params": p}, _batch(), method="hidden"), params)


def test_fresh_parameters_depend_on_the_mesh():
    model, adamw, _ = small.parts()
    one, eight = (
        create_state(model, adamw, small.mesh_of(*shape), 7).params
        for shape in ((1, 1, 1), (2, 2, 2))
    )
    same = jax.tree.map(
        lambda a, b: bool((jax.device_get(a) == jax.device_get(b)).all()), one, eight
    )
    assert all(jax.tree.leaves(same))


def test_rows_have_other_keys_on_a_mesh_or_share_one():
    key, axes = jax.random.key(0), ("data", "fsdp")
    data = lambda rows: jax.random.key_data(shards.row_keys(key, len(rows)))
    one = data(np.zeros(8))
    with sharding.activate(make_mesh(2, 2, 2)):
        on_mesh = shards.mapped(data, shards.spec(axes), shards.spec(axes), axes)(np.zeros(8))
    np.testing.assert_array_equal(on_mesh, one)
    assert len(np.unique(one, axis=0)) == 8
