"""The compilation cache: its place, how to disable it, and reuse by a second process."""

import os
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lm import compiled
from lm.compiled import keep_compiled


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Clear the cache's environment variables, and restore JAX's settings afterwards."""
    names = [
        compiled.DIR,
        "JAX_COMPILATION_CACHE_MAX_SIZE",
        "JAX_ENABLE_COMPILATION_CACHE",
        *compiled.SETTINGS,
    ]
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what the test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name.lower()) for name in names}
    jax.config.update(compiled.DIR.lower(), None)
    yield tmp_path / "openbook" / "compiled"
    for name, value in before.items():
        jax.config.update(name.lower(), value)
    compilation_cache.reset_cache()


def test_what_was_compiled_is_kept_and_found_by_the_next_program(settings):
    keep_compiled()
    compilation_cache.reset_cache()
    given = np.arange(5)
    right = np.asarray(jax.jit(lambda x: x * 2 + 1)(given))
    kept = sorted(path.name for path in settings.glob("*-cache"))
    assert kept and jax.config.jax_compilation_cache_max_size == compiled.MAX_BYTES
    jax.clear_caches()
    np.testing.assert_array_equal(jax.jit(lambda x: x * 2 + 1)(given), right)
    assert sorted(path.name for path in settings.glob("*-cache")) == kept


@pytest.mark.parametrize(
    "name, value",
    [
        ("JAX_ENABLE_COMPILATION_CACHE", "0"),
        ("JAX_ENABLE_COMPILATION_CACHE", "False"),
        ("JAX_COMPILATION_CACHE_DIR", ""),
    ],
)
def test_the_environment_turns_it_off(settings, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    keep_compiled()
    assert not settings.exists() and not jax.config.jax_compilation_cache_dir


def test_a_folder_that_the_environment_names_is_used_and_not_bounded(
    settings, monkeypatch, tmp_path
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    keep_compiled()
    assert not settings.exists() and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] == "-1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_where_nothing_can_be_written_nothing_is_kept(settings, tmp_path):
    tmp_path.chmod(0o500)
    keep_compiled()
    tmp_path.chmod(0o700)
    assert compiled.DIR not in os.environ


def test_a_file_in_the_folder_s_place_is_no_cache(settings):
    settings.parent.mkdir()
    settings.write_text("")
    keep_compiled()
    assert compiled.DIR not in os.environ


def test_an_entry_that_was_cut_off_is_removed_and_one_being_written_is_not(settings):
    settings.mkdir(parents=True)
    for name in ("old-cache", "whole-cache", "whole-atime", "new-cache"):
        (settings / name).write_text("")
        os.utime(settings / name, (time.time() - 3600 * (name != "new-cache"),) * 2)
    keep_compiled()
    assert sorted(path.name for path in settings.iterdir()) == [
        "new-cache",
        "whole-atime",
        "whole-cache",
    ]


def test_where_jax_is_not_imported_it_is_left_so(settings, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    keep_compiled()
    assert "jax" not in sys.modules and os.environ[compiled.DIR] == str(settings)
