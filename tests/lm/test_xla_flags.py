"""The flag against a wrong CPU fusion of jaxlib 0.10.2: set only where needed, only there."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from configs import distill, tiny
from lm import xla_flags
from lm.training import setup, teacher_outputs
from lm.xla_flags import AFFECTED, RIGHT, WRONG_FUSION, avoid_wrong_fusion

ROOT = pathlib.Path(__file__).parents[2]
REPRODUCER = """
import jax, numpy as np
from lm.xla_flags import avoid_wrong_fusion
avoid_wrong_fusion("float32")
rng = np.random.default_rng(0)
m, rows = rng.normal(size=(3, 3)).astype("float32"), rng.normal(size=(32769, 3)).astype("float32")
sums = jax.jit(jax.vmap(lambda row: ((m @ row) ** 2).sum()))(rows)
np.testing.assert_allclose(sums, np.square(rows.astype("float64") @ m.T.astype("float64")).sum(1), \
rtol=1e-4)
shape, at = (3, 1, 2, 2, 8, 8, 8), jax.random.key(0)
u, v = jax.random.normal(at, shape), jax.random.normal(jax.random.key(1), shape)
sums = jax.jit(lambda u, v: (u * v).sum(3))(u, v)
np.testing.assert_allclose(sums, np.float64(u * v).sum(3), rtol=1e-4, atol=1e-5)
"""


def test_a_sum_of_squares_of_a_product_is_right_in_its_last_row():
    """jax#39103, in a process that imported JAX but has not started its devices; and jax#40412."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", REPRODUCER],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("version", "dtype", "before", "after"),
    [
        ("0.10.2", "float32", "", f"--{WRONG_FUSION}={RIGHT}"),
        ("0.10.2", "float32", "--xla_dump_to=/x", f"--xla_dump_to=/x --{WRONG_FUSION}={RIGHT}"),
        ("0.10.2", "float32", f"--{WRONG_FUSION}=dot", f"--{WRONG_FUSION}=dot"),
        ("0.10.2", "bfloat16", "--xla_dump_to=/x", "--xla_dump_to=/x"),
        ("0.10.1", "float32", "", ""),
        ("0.11.0", "float32", "", ""),
    ],
)
def test_the_flag_is_for_one_jaxlib_and_one_dtype(monkeypatch, version, dtype, before, after):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(xla_flags, "_platform", lambda: "")
    monkeypatch.setenv("XLA_FLAGS", before)
    avoid_wrong_fusion(dtype)
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(
    ("platform", "dtype", "lines"),
    [("cpu", "float32", 1), ("cpu", "bfloat16", 0), ("gpu", "float32", 0)],
)
def test_a_jax_that_has_started_is_given_the_flag_in_silence(
    monkeypatch, caplog, platform, dtype, lines
):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setattr(xla_flags, "_platform", lambda: platform)
    monkeypatch.setattr(xla_flags, "_warned", False)
    monkeypatch.setenv("XLA_FLAGS", "")
    for _ in range(2):
        avoid_wrong_fusion(dtype)
    assert os.environ["XLA_FLAGS"] == "" and len(caplog.records) == lines


FROM_HF = """
import jax, logging, os, sys
logging.basicConfig(format="%(message)s")
if sys.argv[2:]:
    jax.devices()
import lm
lm.from_hf(sys.argv[1])
lm.from_hf(sys.argv[1])
print(os.environ.get("XLA_FLAGS", ""))
"""


@pytest.mark.parametrize("started", [False, True])
def test_a_model_of_a_script_is_computed_with_the_wrong_fusion(started, tmp_path):
    """Without an entry point: the flag is set in time, or else one line says that it was not."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", FROM_HF, str(tmp_path), *["started"] * started],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    affected = importlib.metadata.version("jaxlib") in AFFECTED
    assert done.stdout.strip() == ("" if started or not affected else f"--{WRONG_FUSION}={RIGHT}")
    said = f"set XLA_FLAGS=--{WRONG_FUSION}={RIGHT} before"
    assert done.stderr.count(said) == (started and affected)


@pytest.mark.parametrize("entry", ["prepare", "write"])
def test_a_command_s_devices_start_before_the_flag_is_set(entry, monkeypatch, tmp_path):
    class Started(Exception):
        pass

    def start():
        raise Started

    called, config = [], tiny.get_config()
    module = setup if entry == "prepare" else teacher_outputs
    monkeypatch.setattr(module, "avoid_wrong_fusion", called.append)
    monkeypatch.setattr(jax, "device_count", start)
    monkeypatch.setattr(jax, "process_count", start)
    if entry == "write":
        config = distill.get_config("tiny")
        config.task.top_k = 4
    with pytest.raises(Started):
        getattr(module, entry)(config, str(tmp_path / "run"))
    assert called == ["float32"]
