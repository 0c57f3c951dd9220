"""Create a queued resource when the answer of gcloud may be lost.

A label identifies the resources of this run. Resources with another label are never touched.
"""

import dataclasses
import re
import shlex
import time
from typing import Any

from launch.gcloud import LABEL, Answer, Pod, Timing, ask, call

REFUSED = re.compile(  # definite refusals
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|NOT_FOUND|RESOURCE_EXHAUSTED"
    r"|FAILED_PRECONDITION|OUT_OF_RANGE)\b"
)
EXISTS = re.compile("already.exists", re.IGNORECASE)
NOT_FOUND = re.compile(r"\bNOT_FOUND\b|\bnot found\b")


@dataclasses.dataclass(frozen=True)
class Created:
    """Result of `create`.

    ours: the resource exists or may exist, and this run must delete it. error: reason to stop, ''
    for success.
    """

    ours: bool
    error: str = ""


def create(pod: Pod, wait_hours: float, timing: Timing) -> Created:
    """Request the resource, and find out whether it was created.

    After an inconclusive answer it is polled for at most timing.call seconds. If an earlier try of
    this run still holds the name, wait up to timing.transfer seconds. A resource with another label
    belongs to someone else.
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
                f"{pod.name} exists already, is not this run's, and is left alone; choose "
                "another --name",
            )
        if time.monotonic() - began > (timing.transfer if pod.tried else timing.call):
            return Created(
                False,
                f"the name {pod.name} is still held by one that is being deleted; wait, or "
                "choose another --name",
            )
        time.sleep(timing.poll)


def _watch(pod: Pod, timing: Timing, deadline: float, exists: bool) -> str | None:
    """Label of the existing resource: 'someone else' without one, '' if there is none.

    None if it cannot be found out. A resource that may still appear is polled until the deadline.
    """
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
    """The run's label, anywhere in gcloud's output: of the resource or of its nodes."""
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
            f"gcloud could not create {pod.name} ({answer.said}); one that is not this run's is "
            "there and left alone",
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
        f"and where its label {LABEL} is {pod.label}, delete it with:\n  "
        f"{shlex.join(pod.delete())}",
    )
