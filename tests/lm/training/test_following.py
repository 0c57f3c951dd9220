"""Whoever follows the config from `train` to the end of the first step meets few files."""

import collections
import itertools
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs import smoke
from lm.training import loop

ROOT = Path(loop.__file__).parents[2]


def visits(config, workdir) -> list[str]:
    """Files whose functions get the config, in the order of the calls, until the run is described.

    A file's calls in a row are one visit.
    """
    found = []

    def follow(frame, event, _):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(f"{ROOT}/lm/"):
            return
        given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = [frame.f_locals.get(name) for name in given]
        if any(isinstance(each, ConfigDict) and "optimizer" in each for each in values):
            found.append(str(Path(code.co_filename).relative_to(ROOT)))

    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        loop.train(config, str(workdir))
    finally:
        sys.setprofile(before)
    until_the_end = itertools.takewhile(lambda file: not file.endswith("/ending.py"), found)
    return [file for file, _ in itertools.groupby(until_the_end)]


def test_the_config_passes_few_files_and_seldom_comes_back(tmp_path):
    config = smoke.get_config("next_token,gpt2")
    config.steps = 1
    count = collections.Counter(visits(config, tmp_path))
    assert "lm/training/compiling.py" in count, "the step was not compiled"
    assert len(count) < 15, count
    assert max(count.values()) - 1 <= 2, count
