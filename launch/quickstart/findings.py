"""Results of a quickstart run, read from its files for both reports."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.quickstart.world import BINS, bin_label
from lm.evaluation.accuracy import wilson

Share = tuple[float, float, float]  # (share, low, high) with a 95 % interval


@dataclasses.dataclass(frozen=True)
class Findings:
    """Results of a run.

    closed, open: accuracy per popularity bin, least populous first. curve: (step, loss in nats per
    token). bits: (period, bits per byte, standard error).
    stages: (name, description, seconds, bytes) of finished stages, in order.
    """

    bins: list[str]
    closed: list[Share]
    open: list[Share]
    closed_all: Share
    open_all: Share
    answers: list[dict[str, Any]]
    curve: list[tuple[float, float]]
    bits: list[tuple[str, float, float]]
    story: list[dict[str, Any]]
    log: list[dict[str, Any]]
    stages: list[tuple[str, str, float, int]]
    hardware: str


def read(workdir: Path) -> Findings:
    """Read the files of a finished run. Raises LaunchError, naming a missing or invalid file."""
    answers = _read(workdir / "answers.jsonl")
    metrics = _read(workdir / "pretrain" / "metrics.jsonl")
    edits = _read(workdir / "edits.json")
    periods = {path.stem: _read(path) for path in sorted((workdir / "bits").glob("*.json"))}
    study = _read(workdir / "study.json") if (workdir / "study.json").exists() else {"stages": []}
    try:
        by_bin = [[row for row in answers if row["bin"] == i] for i in range(len(BINS))]
        kept = [i for i, rows in enumerate(by_bin) if rows]
        return Findings(
            bins=[bin_label(i) for i in kept],
            closed=[_share(by_bin[i], "closed_correct") for i in kept],
            open=[_share(by_bin[i], "open_correct") for i in kept],
            closed_all=_share(answers, "closed_correct"),
            open_all=_share(answers, "open_correct"),
            answers=answers,
            curve=[(row["step"], row["loss"]) for row in metrics if "loss" in row],
            bits=[
                (_period(name), row["bits_per_byte"], row["bits_per_byte_stderr"] or 0.0)
                for name, row in periods.items()
            ],
            story=edits["story"],
            log=edits["log"],
            stages=[
                (s["name"], s["about"], s["seconds"], s["bytes"])
                for s in study["stages"]
                if s["status"] == "done" and s["name"] != "report"
            ],
            hardware=f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        )
    except (KeyError, TypeError) as error:
        raise LaunchError(
            f"{workdir} has a file of another version ({type(error).__name__}: {error}); run the "
            "study again"
        ) from error


def examples(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One question per bin, if possible correct open-book and wrong closed-book."""
    shown = {}
    for row in answers:
        rank = (row["open_correct"], not row["closed_correct"])
        if row["bin"] not in shown or rank > shown[row["bin"]][0]:
            shown[row["bin"]] = (rank, row)
    return [shown[i][1] for i in sorted(shown)]


def mistakes(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All questions with a wrong open-book answer."""
    return [row for row in answers if not row["open_correct"]]


def _period(name: str) -> str:
    return name if "-" in name else f"{name} on"


def _share(rows: Sequence[dict[str, Any]], field: str) -> Share:
    right = sum(bool(row[field]) for row in rows)
    return (right / len(rows), *wilson(right, len(rows)))


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except FileNotFoundError:
        raise LaunchError(
            f"{path} does not exist: run the study's earlier stages first (launch.study "
            "--config=...)"
        ) from None
    except ValueError as error:
        raise LaunchError(
            f"{path} is not JSON ({error}): run the stage that makes it again"
        ) from error
