"""Open-book conditions of probes: passages before the prompt, or kNN-LM at the output.

c.evals = {"facts": {"type": "facts", "files": "facts.jsonl", "condition":
           {"type": "retrieval.doors.conditions:Passages", "memory": "runs/memory"}}}
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.encode.encoding import affixes
from lm.data.encode.plain_text import start_token
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.read.sources import DataError
from lm.evaluation.evaluators.condition import BATCH, Book, Condition, Question
from lm.evaluation.evaluators.evaluator import Tools
from lm.evaluation.likelihood import token_log_likelihoods
from lm.models.config import ConfigError
from retrieval.datastore import rows
from retrieval.datastore.building import Settings
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.observer import Observer, observed
from retrieval.datastore.segment import INDEXES
from retrieval.doors.knn import checked
from retrieval.doors.knn_mixture import MIXTURE, Mixture, tune
from retrieval.doors.knn_perplexity import Scored, score
from retrieval.doors.prompt import before_text
from retrieval.memory import Memory
from retrieval.passages import Passage
from retrieval.search.ranking import MODES


@dataclasses.dataclass(frozen=True)
class Passages(Condition):
    """The best passages of a memory before the prompt (In-Context RALM, Ram et al. 2023)."""

    memory: str = ""  # folder of the memory
    k: int = 1  # passages
    mode: str = "lexical"  # of the search; "dense" and "hybrid" use the memory's encoder
    tokens: int = 96  # of the passages, at most

    def check(self) -> None:
        if not self.memory:
            raise ConfigError("memory is not set: give the folder of a memory")
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r}: expected one of {', '.join(MODES)}")
        for name in ("k", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")

    def prepare(self, tools: Tools) -> Callable[[dict], Book]:
        memory = Memory.open(self.memory)
        return lambda params: WithPassages(tools, params, self, memory)


class WithPassages(Book):
    """A model that reads passages before every prompt."""

    def __init__(self, tools: Tools, params: dict, condition: Passages, memory: Memory):
        super().__init__(tools, params)
        self.condition, self.memory = condition, memory
        self.bytes = size(memory.path)

    def contexts(self, questions: Sequence[Question]) -> list[list[int]]:
        tokenizer, c = self.tools.tokenizer, self.condition
        queries = [question.query or question.prompt for question in questions]
        distinct = list(dict.fromkeys(queries))
        hits = dict(zip(distinct, self.memory.search(distinct, c.k, mode=c.mode), strict=True))
        starts = affixes(tokenizer)[0] or [start_token(tokenizer)]
        found = []
        for question, query in zip(questions, queries, strict=True):
            own = self.ids(question)
            begin = len(starts) if own[: len(starts)] == starts else 0
            read, _, _ = before_text(tokenizer, hits[query], c.tokens)
            found.append([*own[:begin], *read, *own[begin:]])
        return found


@dataclasses.dataclass(frozen=True)
class Neighbours(Condition):
    """kNN-LM over a datastore of texts (Khandelwal et al. 2020), built with the measured params.

    `store` and `dev` are JSONL files of prompt and completion. A decoder stores every token of
    both; in an encoder-decoder the encoder reads the prompt, and tokens of the completion are
    stored.
    """

    store: str = ""
    dev: str = ""  # what share and temperature are tuned on; "" = use the two below
    folder: str = ""  # keeps the datastore of each checkpoint for other probes; "" = a temporary
    share: float = 0.25  # the memory's part
    temperature: float = 1.0  # of the squared distances
    adaptive: bool = False  # fit the network that predicts the share of a token; needs dev
    k: int = 32  # neighbours
    pca: int = 0  # numbers of a key; 0 = as many as the hidden state
    index: str = ""  # exact, scann, or "" to choose

    def check(self) -> None:
        if not self.store:
            raise ConfigError("store is not set: give paths or globs of JSONL files")
        if self.adaptive and not self.dev:
            raise ConfigError("dev is not set: a predicted share is fitted on it")
        if self.index and self.index not in INDEXES:
            raise ConfigError(f"index={self.index!r}: expected {' or '.join(INDEXES)}, or ''")
        if self.pca < 0:
            raise ConfigError(f"pca={self.pca}: expected 0 or more")
        try:
            checked(self.k, self.share, self.temperature)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def prepare(self, tools: Tools) -> Callable[[dict], Book]:
        store = _packed(self.store, tools)
        dev = _packed(self.dev, tools) if self.dev else None
        return lambda params: WithNeighbours(tools, params, self, store, dev)


class WithNeighbours(Book):
    """A model whose distribution is mixed with that of a datastore."""

    def __init__(
        self, tools: Tools, params: dict, condition: Neighbours, store: Packed, dev: Packed | None
    ):
        super().__init__(tools, params)
        self.observer = Observer(tools.model, params, tools.tokenizer, "", BATCH)
        if condition.folder:
            self.folder = Path(condition.folder) / self.observer.identity.model
        else:
            self.temporary = tempfile.TemporaryDirectory()  # as long as the book
            self.folder = Path(self.temporary.name) / "store"
        if self.folder.exists():
            self.store = Datastore(self.folder)
            self.store.check(self.observer.identity)
        else:
            settings = Settings(condition.pca, condition.index)
            self.store, _ = Datastore.build(self.folder, store, self.observer, settings)
        self.snapshot = self.store.snapshot()
        c = condition
        if dev is None:
            self.mixture = Mixture(c.k, c.share, c.temperature)
        elif (self.folder / MIXTURE).exists():
            self.mixture = Mixture.load(self.folder)
        else:
            seen = score(self.observer, dev, self.snapshot, c.k, vectors=c.adaptive)
            self.mixture = tune(seen, c.adaptive)
            self.mixture.save(self.folder)
        self.snapshot.check(self.mixture.k)
        self.bytes = size(self.folder)

    def hooks(self) -> tuple:
        return (self.mixture.hook(self.store),)

    def log_probs(self, asked: Sequence[tuple[Question, str]]) -> list[np.ndarray]:
        pairs = self.pairs(asked)
        found = token_log_likelihoods(
            self.tools.model,
            self.params,
            pairs,
            batch_size=BATCH,
            tokenizer=self.tools.tokenizer,
            observe=functools.partial(_losses, tap=self.observer.tap),
        )
        own = np.concatenate([each for each, _ in found]).astype(np.float64)
        vectors = np.concatenate([each for _, each in found])
        targets = np.concatenate([np.asarray(after) for _, after in pairs])
        near = self.snapshot.search(vectors, self.mixture.k)
        rows_of, nothing = np.zeros(len(own), np.int64), _nothing()
        seen = Scored(
            nothing,
            own,
            near.distances,
            near.values == targets[:, None],
            rows_of,
            rows_of,
            vectors,
        )
        mixed = seen.mixed(self.mixture.shares(seen), self.mixture.temperature)
        ends = np.cumsum([len(each) for each, _ in found])[:-1]
        return [each.astype(np.float32) for each in np.split(mixed, ends)]


def _losses(model: Any, params: dict, batch, tap: str):
    vectors, losses = observed(model, params, batch, tap)
    return losses, vectors


def _nothing() -> Any:
    """Predictions that are mixed need no packed rows."""
    return None


def _packed(files: str, tools: Tools) -> Packed:
    """Rows of prompts and completions. Raises DataError where a field is missing."""
    passages = []
    encoder = bool(tools.model.config.encoder_layers)
    for file in sources.find_files(files):
        for row in sources.rows(file):
            value = row.value if isinstance(row.value, dict) else {}
            prompt, completion = value.get("prompt", ""), value.get("completion", "")
            if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
                raise DataError(
                    f"{row.where}: {row.problem or 'no completion'}; expected an object with "
                    "prompt and completion"
                )
            text = completion.strip() if encoder else f"{prompt} {completion.strip()}".strip()
            passages.append(Passage(row.where, text, title=prompt if encoder else ""))
    chunk = rows.of_passages(passages, tools.tokenizer, tools.model.config)
    if chunk is None:
        raise DataError(f"{files}: no text to predict")
    return chunk.packed


def size(folder: Path | str) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
