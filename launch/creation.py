"""Creating a queued resource where the answer may be lost: what this run made is known by its label, and nothing else is touched."""

import dataclasses
import re
import shlex
import time
from typing import Any

from launch.gcloud import LABEL, Answer, Pod, Timing, ask, call

REFUSED = re.compile(  # answers that are sure
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|NOT_FOUND|RESOURCE_EXHAUSTED|FAILED_PRECONDITION|OUT_OF_RANGE)\b"
)
EXISTS = re.compile("already.exists", re.IGNORECASE)
NOT_FOUND = re.compile(r"\bNOT_FOUND\b|\bnot found\b")


@dataclasses.dataclass(frozen=True)
class Created:
    """ours: whether the resource is there, or may be, and is this run's to delete; error: why the run cannot go on, '' if it can."""

    ours: bool
    error: str = ""


def create(pod: Pod, wait_hours: float, timing: Timing) -> Created:
    """Asks for the resource and finds out whether it was made, for at most timing.call seconds after an answer that leaves it open.

    A name that an earlier try of this run still holds is waited for, timing.transfer seconds. What has another label is someone else's.
    """
    began = time.monotonic()
    while True:
        answer = call(pod.create(wait_hours), timing.call)
        if not answer.returncode:
            return Created(True)
        exists = bool(EXISTS.search(answer.stderr))
        if not exists and REFUSED.search(answer.stderr):
            return Created(False, f"gcloud could not create {pod.name}: {answer.said}")
        found = _watch(pod, timing, time.monotonic() + timing.call, exists)
        if found == pod.label:
            return Created(
                True,
                ""
                if exists
                else f"gcloud could not create {pod.name} in time ({answer.said}), but it was made",
            )
        if found is None or not exists:
            return _unsure(pod, answer, found, exists)
        if found and found.split("-")[0] != pod.label.split("-")[0]:
            return Created(
                False,
                f"{pod.name} exists already, is not this run's, and is left alone; choose another --name",
            )
        if time.monotonic() - began > (timing.transfer if pod.tried else timing.call):
            return Created(
                False,
                f"the name {pod.name} is still held by one that is being deleted; wait, or choose another --name",
            )
        time.sleep(timing.poll)


def _watch(pod: Pod, timing: Timing, deadline: float, exists: bool) -> str | None:
    """The label of what is there now ('someone else' without one, '' nothing, None not to be found out). What may still appear is
    waited for until the deadline."""
    found = None
    while True:
        described, why = ask(pod.describe(), timing.call)
        if described:
            return _label(described) or "someone else"
        if NOT_FOUND.search(why):
            found = ""
            if exists:
                return found
        if time.monotonic() > deadline:
            return found
        time.sleep(timing.poll)


def _label(described: Any) -> str:
    """The run's label, wherever gcloud shows it: of the resource, or of the nodes it is to have."""
    if isinstance(described, dict):
        labels = described.get("labels")
        own = labels.get(LABEL) if isinstance(labels, dict) else None
        return (
            str(own)
            if own
            else next((label for value in described.values() if (label := _label(value))), "")
        )
    return (
        next((label for value in described if (label := _label(value))), "")
        if isinstance(described, list)
        else ""
    )


def _unsure(pod: Pod, answer: Answer, found: str | None, exists: bool) -> Created:
    if found:
        return Created(
            False,
            f"gcloud could not create {pod.name} ({answer.said}); one that is not this run's is there and left alone",
        )
    seen = (
        "it could not be looked for"
        if found is None
        else "it is not there now, and may still appear"
    )
    asked = (
        "there is one of this name"
        if exists
        else f"gcloud did not say whether {pod.name} was created ({answer.said})"
    )
    return Created(
        False,
        f"{asked}; {seen}. IT MAY COST MONEY. Look with:\n  {shlex.join(pod.describe())}\n"
        f"and where its label {LABEL} is {pod.label}, delete it with:\n  {shlex.join(pod.delete())}",
    )
