"""Rows of the benchmarks: what runs, at which shape, and beside which peers."""

import dataclasses
from collections.abc import Callable, Mapping

from tests.benchmarks import models, peers, reports, starting
from tests.benchmarks.models import MODELS, Sizes

OURS, PEER = "Openbook", "transformers"  # the peer that every pair has


@dataclasses.dataclass(frozen=True)
class Pair:
    """Openbook and its peers do the same work in turns."""

    name: str
    group: str  # heading in the documentation
    what: str
    sizes: Sizes
    sides: Mapping[str, Callable]

    def settings(self, quick: bool) -> dict:
        return dataclasses.asdict(self.at(quick))

    def at(self, quick: bool) -> Sizes:
        if not quick:
            return self.sizes
        return dataclasses.replace(
            self.sizes, size="tiny", batch=2, length=8, new=4 if self.sizes.new else 0
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """A table of Openbook's own figures."""

    name: str
    what: str
    run: Callable[[bool], dict]

    def settings(self, quick: bool) -> dict:
        return {"quick": quick}


TRAINED = (  # model, batch, length
    ("gpt2-124m", 2, 256),
    ("llama-135m", 2, 256),
    ("bert-base", 4, 128),
    ("bart-base", 2, 256),
    ("t5-base", 2, 256),
    ("mamba-130m", 2, 64),  # the peer's time grows with the square of the length
    ("mamba2-130m", 2, 256),
)
SEPARATE = "gpt2-124m", "bert-base"  # trained with model.layers="separate" too, in float32
DECODED = (  # model, batch, prompt, new
    ("gpt2-124m", 1, 16, 64),
    ("gpt2-124m", 8, 16, 64),
    ("llama-135m", 1, 16, 64),
    ("llama-135m", 8, 16, 64),
    ("t5-base", 1, 16, 64),
    ("mamba-130m", 1, 16, 64),
    ("mamba2-130m", 1, 16, 64),
)
SHORT = {"float32": "f32", "bfloat16": "bf16"}
ROUNDED = ("gpt2-124m", 1, 16, 64), ("gpt2-124m", 8, 16, 64), ("llama-135m", 1, 16, 64)


def _training(model: str, batch: int, length: int, dtype: str) -> Pair:
    sides = {OURS: models.our_training, PEER: models.torch_training}
    if model in SEPARATE and dtype == "float32":
        sides[f"{OURS}, separate layers"] = _separate
    return Pair(
        f"train-{model}-{SHORT[dtype]}",
        "Training step",
        f"{model}, {batch} × {length}",
        Sizes(model, batch, length, dtype=dtype),
        sides,
    )


def _separate(sizes: Sizes) -> Callable:
    return models.our_training(sizes, layers="separate")


def _decoding(model: str, batch: int, length: int, new: int, dtype: str) -> Pair:
    sides = {OURS: models.our_decoding, PEER: models.torch_decoding}
    if model == "gpt2-124m" and dtype == "float32":
        sides["CTranslate2"] = peers.ctranslate2_decoding
    if model == "llama-135m" and batch == 1:
        sides["llama.cpp"] = peers.llama_cpp_decoding
    return Pair(
        f"decode-{model}-b{batch}-{SHORT[dtype]}",
        "Greedy decoding",
        f"{model}, batch {batch}, {new} tokens after {length}",
        Sizes(model, batch, length, new, dtype),
        sides,
    )


def _in(dtype: str) -> Callable:
    """Our decoding in another precision than that of the row."""
    return lambda sizes: models.our_decoding(dataclasses.replace(sizes, dtype=dtype))


def _rounded(model: str, batch: int, length: int, new: int) -> Pair:
    sides = {OURS: models.our_decoding}
    sides |= {f"{OURS} in {dtype}": _in(dtype) for dtype in SHORT}
    if model == "gpt2-124m":
        sides["CTranslate2"] = peers.ctranslate2_decoding
    if model == "llama-135m":
        sides["llama.cpp"] = peers.llama_cpp_decoding
    return Pair(
        f"decode-{model}-b{batch}-int8",
        "Greedy decoding with int8 weights",
        f"{model}, batch {batch}, {new} tokens after {length}",
        Sizes(model, batch, length, new, "int8"),
        sides,
    )


def _prefill(model: str, length: int, dtype: str) -> Pair:
    return Pair(
        f"prefill-{model}-{SHORT[dtype]}",
        "Prefill",
        f"{model}, {length} tokens read, one written",
        Sizes(model, 1, length, 1, dtype),
        {OURS: models.our_decoding, PEER: models.torch_decoding},
    )


_ALL = [
    *(_training(*row, dtype) for dtype in SHORT for row in TRAINED),
    *(_decoding(*row, dtype) for dtype in SHORT for row in DECODED),
    *(_rounded(*row) for row in ROUNDED),
    *(_prefill(model, 512, dtype) for dtype in SHORT for model in ("gpt2-124m", "llama-135m")),
    Report("growth", "Growth", reports.growth),
    Report("compile", "Compile time", reports.compile_time),
    Report("input", "Input pipeline", reports.reading),
    Report("save", "Checkpoints", reports.saving),
    Report("start", "Start-up", starting.starting),
]
ROWS: dict[str, Pair | Report] = {row.name: row for row in _ALL}
assert {row[0] for row in (*TRAINED, *DECODED)} <= MODELS.keys()
