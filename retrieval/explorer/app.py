"""Pages of the explorer.

GET shows something, at a past version if at=VERSION is given. POST changes something, always at the
newest version. Handlers that are plain functions run in threads, so a slow one does not block
others.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from retrieval.doors.door import Door
from retrieval.doors.knn import KnnLM
from retrieval.errors import RetrievalError
from retrieval.explorer.answers import STEPS, Answers
from retrieval.explorer.atlas import COLOURS, atlas
from retrieval.explorer.guard import Guard, read_form
from retrieval.explorer.words import changes, coloured, marked
from retrieval.filters import EVERY_GROUP
from retrieval.memory import Memory
from retrieval.passages import Commit, Hit
from retrieval.reading.answering import Reader

HERE = Path(__file__).parent
FOUND = 10  # passages on the search page
NEIGHBOURS = 6
SHOWN_COMMITS = 200
AUTHOR = "explorer"
MODES = {"dense": "meaning", "lexical": "words", "hybrid": "both"}

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {
    "when": lambda time: time[:16].replace("T", " ") + " UTC",
    "changes": changes,
    "coloured": coloured,
    "marked": marked,
}


class Explorer:
    """State shared by all pages.

    answers: None without a reader. past(version): the memory at an earlier version; the latest few
    are cached.
    """

    def __init__(
        self,
        memory: Memory,
        reader: Reader | None,
        door: Door | None = None,
        hook: KnnLM | None = None,
    ):
        self.memory, self.answers = memory, Answers(reader, door, hook) if reader else None
        self.past = functools.lru_cache(maxsize=4)(memory.as_of)
        self.changing = threading.Lock()

    def close(self) -> None:
        """Stop answering; the running answer is finished first."""
        if self.answers:
            self.answers.close()

    def newest(self) -> int:
        len(self.memory)  # moves to the newest version
        return self.memory.version


@dataclasses.dataclass(frozen=True)
class Now:
    """The version that a page shows. at: None for the newest."""

    memory: Memory
    at: int | None
    newest: int

    def link(self, path: str, **parameters) -> str:
        """Return a link within the same version, without empty parameters."""
        given = {
            name: value
            for name, value in {"at": self.at, **parameters}.items()
            if value not in (None, "")
        }
        return path + (f"?{urlencode(given)}" if given else "")


def make_app(
    memory: Memory,
    reader: Reader | None,
    token: str,
    door: Door | None = None,
    hook: KnnLM | None = None,
) -> Starlette:
    """Return the explorer as an ASGI application that answers only with the token.

    hook: a kNN-LM of the memory, whose answers are shown token by token with their sources.
    """
    routes = [
        Route("/", ask),
        Route("/progress", progress),
        Route("/search", search),
        Route("/passage", passage),
        Route("/map", show_map),
        Route("/history", history),
        Route("/edit", edit, methods=["POST"]),
        Route("/delete", delete, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    app = Starlette(
        routes=routes, exception_handlers={RetrievalError: refused, HTTPException: refused}
    )
    app.add_middleware(Guard, token=token)
    app.state.explorer = Explorer(memory, reader, door, hook)
    return app


def ask(request: Request) -> Response:
    """Show a question with both answers side by side, or the progress until they are ready."""
    explorer, now, question = _explorer(request), _now(request), _asked(request)
    if not question or explorer.answers is None:
        hits = _found(now, question, 3) if question else []
        return _page(
            request,
            "ask.html",
            now,
            question=question,
            hits=hits,
            reader=explorer.answers is not None,
            job=None,
        )
    job = explorer.answers.ask(question, now.memory)
    error = job.result.exception() if job.finished else None
    if error is not None:
        explorer.answers.forget(job)
    if isinstance(error, RetrievalError):
        raise error
    before = explorer.answers.before(question, job.version)
    return _page(
        request,
        "ask.html",
        now,
        question=question,
        reader=True,
        job=job,
        steps=STEPS,
        error=error,
        before=before,
    )


def progress(request: Request) -> Response:
    """How many of a question's answers are there, as JSON."""
    explorer, question = _explorer(request), _asked(request)
    if not question or explorer.answers is None:
        raise HTTPException(404, "there is no such question")
    job = explorer.answers.ask(question, _now(request).memory)
    return JSONResponse({"done": job.done, "of": STEPS, "finished": job.finished})


def search(request: Request) -> Response:
    now, text, mode = _now(request), _asked(request), request.query_params.get("mode", "dense")
    hits = _found(now, text, FOUND, mode) if text else []
    return _page(request, "search.html", now, question=text, hits=hits, mode=mode, modes=MODES)


def passage(request: Request) -> Response:
    """Show a passage, its history, its nearest neighbours, and forms to change it."""
    now, id = _now(request), request.query_params.get("id", "")
    try:
        past = now.memory.history(id)
    except RetrievalError:
        raise HTTPException(
            404, f"no passage {id!r} up to version {now.at or now.newest}"
        ) from None
    found = past[-1][1]
    near = _found(now, found.searchable, NEIGHBOURS + 1) if found else []
    texts = [shown.text if shown else "" for _, shown in past]
    story = [
        (commit, shown, before) for (commit, shown), before in zip(past, ["", *texts], strict=False)
    ][::-1]
    near = [hit for hit in near if hit.id != id][:NEIGHBOURS]
    return _page(
        request,
        "passage.html",
        now,
        id=id,
        passage=found,
        story=story,
        near=near,
        question=_asked(request),
    )


def show_map(request: Request) -> Response:
    """Show the memory in two dimensions, highlighting a question's hits or one passage."""
    now, question, id = _now(request), _asked(request), request.query_params.get("id", "")
    hits = _found(now, question, 3) if question else []
    marks = {hit.id: number for number, hit in enumerate(hits, start=1)} or ({id: 1} if id else {})
    drawn = atlas(now.memory, marks)
    return _page(
        request, "map.html", now, atlas=drawn, marks=marks, question=question, id=id, others=COLOURS
    )


def history(request: Request) -> Response:
    now = _now(request)
    commits = now.memory.log()
    return _page(
        request, "history.html", now, commits=commits[: -SHOWN_COMMITS - 1 : -1], count=len(commits)
    )


async def edit(request: Request) -> Response:
    def change(memory: Memory, form) -> Commit:
        _unchanged(memory, form)
        return memory.edit(
            form["id"], form["text"], form["title"], author=AUTHOR, reason=form.get("reason", "")
        )

    return await _changed(request, change, "id", "text", "title", "was")


async def delete(request: Request) -> Response:
    def change(memory: Memory, form) -> Commit:
        _unchanged(memory, form)
        return memory.delete([form["id"]], AUTHOR, form.get("reason", ""))

    return await _changed(request, change, "id", "was")


async def undo(request: Request) -> Response:
    def change(memory: Memory, form) -> Commit:
        if form["version"] != str(memory.version):
            raise HTTPException(
                409,
                f"the memory has changed since: it is now at version {memory.version}; look at "
                "its history first",
            )
        return memory.undo(AUTHOR)

    return await _changed(request, change, "version")


async def _changed(
    request: Request, change: Callable[[Memory, Any], Commit], *fields: str
) -> Response:
    """Make a change, then redirect to the page it came from with a note of what was done.

    That page is the question, the passage or the history.
    """
    form = await read_form(request)
    missing = [name for name in fields if name not in form]
    if missing:
        raise HTTPException(400, f"the form lacks {missing[0]!r}")
    explorer = _explorer(request)

    # The lock covers both the check that the form is current and the change.
    def one_at_a_time() -> Commit:
        with explorer.changing:
            explorer.newest()
            return change(explorer.memory, form)

    commit = await run_in_threadpool(one_at_a_time)
    question, id = form.get("q", ""), form.get("id", "")
    place = "/" if question else "/passage" if id else "/history"
    values = {"q": question} if question else {"id": id} if id else {}
    return RedirectResponse(f"{place}?{urlencode({**values, 'did': commit.version})}", 303)


def _found(now: Now, text: str, k: int, mode: str = "dense") -> list[Hit]:
    """Search as the owner of the memory: passages of every access group."""
    return now.memory.search([text], k, mode=mode, groups=EVERY_GROUP)[0]


def _unchanged(memory: Memory, form) -> None:
    if memory.get(form["id"]).content_hash != form["was"]:
        raise HTTPException(
            409,
            f"passage {form['id']!r} has changed since this page was shown: look at it again "
            "before changing it",
        )


def refused(request: Request, error: Exception) -> Response:
    """Show an error on a page of its own."""
    status, message = (
        (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    )
    explorer = _explorer(request)
    return _page(
        request,
        "error.html",
        Now(explorer.memory, None, explorer.memory.version),
        status,
        message=message,
        code=status,
    )


def _page(request: Request, template: str, now: Now, status: int = 200, **values) -> Response:
    did = request.query_params.get("did", "")
    commit = now.memory.log()[-1] if now.at or (did == str(now.newest)) else None
    html = templates.get_template(template).render(
        now=now,
        link=now.link,
        path=request.url.path,
        name=str(now.memory.path).rstrip("/").rpartition("/")[2],
        commit=commit,
        did=bool(did) and not now.at and commit,
        **{"question": "", "id": "", **values},
    )
    return HTMLResponse(html, status)


def _now(request: Request) -> Now:
    explorer, asked = _explorer(request), request.query_params.get("at", "")
    newest = explorer.newest()
    if asked in ("", str(newest)):
        return Now(explorer.memory, None, newest)
    if not asked.isdecimal() or len(asked) > 15 or not 1 <= int(asked) <= newest:
        raise HTTPException(404, f"there is no version {asked!r}: the memory has 1 to {newest}")
    return Now(explorer.past(int(asked)), int(asked), newest)


def _asked(request: Request) -> str:
    return request.query_params.get("q", "").strip()


def _explorer(request: Request) -> Explorer:
    return request.app.state.explorer
