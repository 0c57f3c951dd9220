"""A chat with a loaded model: the turns so far, and a memory that can be switched on and off."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import lm
from lm.data.records.turns import without_reasoning
from lm.data.templates import Template
from lm.data.templates.jinja import reads_reasoning
from lm.generation import stream_text
from lm.generation_flags import messages_of, spelled
from lm.interrupts import Interrupts
from lm.weights.loading import load, load_template, model_config
from retrieval.doors.door import KINDS, WRITERS, Asked, Door, Find, check, kind_of
from retrieval.doors.in_context import IN_CONTEXT, build_prompt, close_to_the_best
from retrieval.doors.running import answers
from retrieval.errors import RetrievalError
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.reading.answering import (
    FLOOR,
    citations,
    is_known,
    of_one_version,
    supporting_sentence,
)
from retrieval.reading.extracting import Extractor
from retrieval.reading.reader import Reader, load_reader
from retrieval.sanitising import shown

SEARCHED = 2  # earlier turns of the user that are searched with a question
WORDS = 32  # words of such a turn that are searched, its last ones


@dataclasses.dataclass
class Conversation:
    """A chat.

    open: answer from the memory, as `retrieval.answer` does, after the earlier turns; otherwise
    answer from the conversation alone.
    door: how passages reach the reader. Answers by another than in_context, and of an
    encoder-decoder or an encoder, come whole, and their prompts hold the question without the
    turns before it.
    shown: the passages given to the reader for the latest answer. label: whether that is a class.
    turns: {"role", "content"} each, the system message first if any.
    """

    reader: Any
    template: Template | None
    memory: Memory | None
    k: int
    max_new_tokens: int
    sampler: object
    seed: int
    turns: list[dict[str, str]]
    open: bool
    shown: tuple[Hit, ...] = ()
    door: Door = IN_CONTEXT
    label: bool = False

    @classmethod
    def of(
        cls,
        path_or_id: str,
        memory: Memory | None,
        k: int,
        max_new_tokens: int,
        sampler,
        system: str,
        seed: int,
        door: Door = IN_CONTEXT,
    ) -> "Conversation":
        """Start a chat with the model that `path_or_id` names.

        Raises RetrievalError, or ValueError, for a model that cannot chat.
        """
        check(door, model_config(path_or_id), path_or_id)
        kind = kind_of(model_config(path_or_id))
        if system and kind != "decoder":
            raise RetrievalError(f"{path_or_id} is {KINDS[kind]}, which reads no system message")
        if not isinstance(sampler, lm.Greedy) and (door != IN_CONTEXT or kind != "decoder"):
            raise RetrievalError(
                f"a temperature draws tokens one by one, and {KINDS[kind]} with --door={door.name} "
                "gives the most probable answer: leave the temperature out"
            )
        if kind == "decoder":
            model, params, tokenizer = load(path_or_id)
            template = load_template(path_or_id, tokenizer)
            if system and template is None and not tokenizer.chat_template:
                raise RetrievalError(
                    f"the tokenizer of {path_or_id} has no chat template, which a system message "
                    "needs: leave it out"
                )
            reader = Reader(model, params, tokenizer)
        else:
            reader, template = load_reader(path_or_id, door), None
        if kind not in WRITERS and memory is None:
            raise RetrievalError(
                f"{path_or_id} is {KINDS[kind]}, which answers from passages: give a memory"
            )
        if kind in WRITERS:
            reader.prompt_tokens(max_new_tokens)
        turns = [{"role": "system", "content": system}] if system else []
        return cls(
            reader,
            template,
            memory,
            k,
            max_new_tokens,
            sampler,
            seed,
            turns,
            memory is not None,
            door=door,
        )

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer piece by piece.

        The turn is kept as far as it was answered, even if the caller stops early.
        """
        self.label = False
        if self.reader.kind != "decoder" or (self.open and self.door != IN_CONTEXT):
            yield self._whole(question)
            return
        tokens = self._from_memory(question) if self.open else self._from_turns(question)
        stops = () if self.template is None or self.open else (self.template.stop,)
        turn = {"role": "assistant", "content": ""}
        self.turns += [{"role": "user", "content": question}, turn]
        stop_tokens = self.reader.stop_tokens if self.open else None
        for piece in stream_text(
            self.reader.model,
            self.reader.params,
            self.reader.tokenizer,
            tokens,
            self.max_new_tokens,
            self.sampler,
            stop_strings=stops,
            stop_tokens=stop_tokens,
            seed=self.seed,
        ):
            turn["content"] += piece
            yield piece

    def _whole(self, question: str) -> str:
        """The answer by the door of the conversation."""
        find = of_one_version(self.memory, self.k) if self.open and self.memory else None
        asked = Asked(question, tuple(self._found(question, find)) if find else ())
        if isinstance(self.reader, Extractor):
            if find is None:
                raise RetrievalError(
                    f"{KINDS[self.reader.kind]} answers from passages: /open the memory first"
                )
            read = self.reader.read([asked])[0]
        else:
            search = find or (lambda texts: [[] for _ in texts])
            read = answers(self.door, self.reader, [asked], search, self.max_new_tokens)[0]
        self.shown, self.label = read.shown, read.label
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": read.text},
        ]
        return read.text

    def sources(self) -> Iterator[str]:
        """Yield a line for each passage that supports the latest answer."""
        if not self.shown:
            return
        question, answer = self._latest()
        for hit in self.shown if self.label else citations(answer, self.shown):
            yield (
                f"[{hit.id}] {hit.title + ': ' if hit.title else ''}"
                f"{supporting_sentence(hit.text, question, answer)}  ({hit.score:.3f})"
            )

    def is_known(self) -> bool:
        """Whether the memory supports the latest answer; True if the memory was not used."""
        if not self.open or len(self.turns) < 2:
            return True
        question, answer = self._latest()
        if self.label:
            return any(hit.score >= FLOOR for hit in self.shown)
        return is_known(question, answer, self.shown)

    def _latest(self) -> tuple[str, str]:
        """(the latest question, its answer without reasoning)."""
        question, answer = (turn["content"] for turn in self.turns[-2:])
        _, opened = reads_reasoning(self.reader.tokenizer)
        return question, without_reasoning(answer, opened)[1]

    def forget(self) -> None:
        self.turns, self.shown = [turn for turn in self.turns if turn["role"] == "system"], ()

    def _from_memory(self, question: str) -> list[int]:
        """Return the prompt of the conversation, the passages and the question.

        The chat template renders the earlier turns; a base model gets none. The oldest turns are
        dropped before any passage.
        """
        hits = self._found(question)
        tokenizer, room = self.reader.tokenizer, self.reader.prompt_tokens(self.max_new_tokens)
        build = functools.partial(build_prompt, tokenizer, question, hits, room)
        prompt = build()
        self.shown = prompt.shown
        system, past = self._earlier()
        while tokenizer.chat_template and (turns := [*system, *past]):
            try:
                longer = build(messages_of(tokenizer, turns))
            except RetrievalError:  # too long, also without passages
                longer = None
            if longer is not None and len(longer.shown) == len(prompt.shown):
                return longer.tokens
            if not past:
                break
            past = past[2:]
        return prompt.tokens

    def _found(self, question: str, find: Find | None = None) -> list[Hit]:
        """Return at most k passages for the question, found in two searches and taken in turn.

        The first search is for the question with the ends of the user's last two turns, which it
        may refer to ("and where is she buried?"). The second is for the question alone, since a
        long turn about something else can outweigh it.
        """
        assert self.memory is not None
        said = [turn["content"].split() for turn in self.turns if turn["role"] == "user"]
        ends = [" ".join(words[-WORDS:]) for words in reversed(said[-SEARCHED:])]
        queries = dict.fromkeys([" ".join([question, *ends]), question])
        hits = find(list(queries)) if find else self.memory.search(list(queries), self.k)
        found = map(close_to_the_best, hits)
        ranked = itertools.chain.from_iterable(itertools.zip_longest(*found))
        return list({hit.id: hit for hit in ranked if hit}.values())[: self.k]

    def _from_turns(self, question: str) -> list[int]:
        """Return the prompt of the whole conversation, dropping its oldest turns if too long.

        A base model gets the question alone.
        """
        self.shown = ()
        system, past = self._earlier()
        chats = self.template is not None or bool(self.reader.tokenizer.chat_template)
        room = self.reader.prompt_tokens(self.max_new_tokens)
        while True:
            turns = [*system, *past, {"role": "user", "content": question}]
            tokens = spelled(self.reader.model, self.reader.tokenizer, self.template, turns, chats)
            if len(tokens) <= room:
                return tokens
            if not past or not chats:
                raise RetrievalError(
                    f"the question makes a prompt of {len(tokens):,} tokens; the model can take "
                    f"{room:,}: ask a shorter one"
                )
            past = past[2:]

    def _earlier(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """(the system message if any, the turns after it)."""
        system = [turn for turn in self.turns if turn["role"] == "system"]
        return system, self.turns[len(system) :]


def converse(conversation: Conversation, commands: str) -> None:
    """Read questions and commands from standard input until its end or /quit; print answers."""
    asks = sys.stdin.isatty()
    if asks:
        import readline  # noqa: F401 (input() then edits lines)

        print(commands)
    while True:
        try:
            with Interrupts():
                line = input(
                    f"{'open' if conversation.open else 'closed'}> " if asks else ""
                ).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends the chat", flush=True)
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            print(_command(conversation, line, commands), flush=True)
        elif line:
            _answer(conversation, line)


def _answer(conversation: Conversation, question: str) -> None:
    try:
        with Interrupts():
            for piece in conversation.ask(question):
                print("\n".join(_printable(part) for part in piece.split("\n")), end="", flush=True)
            print()
            if not conversation.is_known():
                print("(the memory does not support this answer)")
    except KeyboardInterrupt:
        print(" [stopped]")
    except (ValueError, lm.ConfigError) as error:  # the chat goes on after a failed question
        print(f"error: {shown(error)}", file=sys.stderr)
    sys.stdout.flush()


def _printable(text: str) -> str:
    """Return `shown(text)` with the spaces at both ends of a piece kept."""
    return (
        text[: len(text) - len(text.lstrip(" "))]
        + shown(text)
        + (text[len(text.rstrip(" ")) :] if text.strip() else "")
    )


def _command(conversation: Conversation, line: str, commands: str) -> str:
    if line == "/open":
        if conversation.memory is None:
            return "there is no memory: start the chat with --memory=DIR"
        conversation.open = True
        return f"open-book: answers come from {shown(conversation.memory.path)}"
    if line == "/closed":
        conversation.open = False
        return "closed-book: answers come from the weights"
    if line == "/new":
        conversation.forget()
        return "the conversation begins anew"
    if line == "/sources":
        return (
            "\n".join(map(shown, conversation.sources()))
            or "the latest answer was not given any passages"
        )
    return f"unknown command {shown(line)}\n{commands}"
