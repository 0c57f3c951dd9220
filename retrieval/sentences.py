"""What a sentence-transformers folder says about reading texts, besides how they are pooled, which `lm.from_hf` reads; and what a memory
remembers of its encoder: a path, or a path and the options by which it differs from what the path alone stands for."""

import json
import sys
from pathlib import Path
from typing import Any

from lm.weights import resolve
from retrieval.errors import RetrievalError

MODULES, LENGTH, PROMPTS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
QUERY, PASSAGE = (
    ("query",),
    ("document", "passage", "corpus"),
)  # the names of prompts, the first of those there are
PLAIN = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "processing_kwargs": {},
    "query_length": 0,
    "document_length": 0,
}


def said(path_or_id) -> dict[str, Any]:
    """max_length, query_prefix and passage_prefix of a folder or hub id; max_length is huge where nothing limits texts but the model.

    A folder that gives neither queries nor passages a prompt of their own gives both its default prompt. Raises RetrievalError for
    settings that are not supported, and WeightsError when there is no such folder.
    """
    folder = resolve(path_or_id, weights=False)
    settings, prompts = _object(folder / LENGTH), _object(folder / PROMPTS)
    for name, plain in PLAIN.items():
        if (settings.get(name) or plain) != plain:
            raise RetrievalError(
                f"{folder / LENGTH}: {name}={settings[name]!r} is not supported; without it texts are read differently"
            )
    if "message" in (settings.get("modality_config") or ()):
        raise RetrievalError(
            f"{folder / LENGTH}: modality_config puts texts into the chat template (message), which is not supported"
        )
    longest = settings.get("max_seq_length")
    if (
        longest is None and (folder / MODULES).is_file()
    ):  # version 6 writes the length into the tokenizer's file
        longest = _object(folder / "tokenizer_config.json").get("model_max_length")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int)):
        raise RetrievalError(
            f"{folder}: the longest text is said to have {longest!r} tokens: expected a whole number"
        )
    longest = min(longest or sys.maxsize, sys.maxsize)
    named = prompts.get("prompts") or {}
    if not isinstance(named, dict) or not all(
        isinstance(prompt, str | None) for prompt in named.values()
    ):
        raise RetrievalError(
            f"{folder / PROMPTS}: prompts={named!r}: expected a text for each name"
        )
    query, passage = (
        next((named[name] for name in names if name in named), None) for names in (QUERY, PASSAGE)
    )
    if query is None and passage is None:
        query = passage = named.get(str(prompts.get("default_prompt_name")))
    return {"max_length": longest, "query_prefix": query or "", "passage_prefix": passage or ""}


def remembered(path: str, options: dict[str, Any]) -> str:
    """What a memory keeps to make its encoder again: the path, or JSON where the path alone stands for other options."""
    differ = {
        name: value for name, value in options.items() if value != _of_path_alone(path).get(name)
    }
    return json.dumps({"path": path, **differ}) if differ else path


def recalled(source: str, path: str | None = None) -> tuple[str, dict[str, Any]]:
    """The path and all the options that `remembered` was given; at another `path`, where the folder now lies, if one is given."""
    kept = json.loads(source) if source.startswith("{") else {"path": source}
    path = path or kept["path"]
    return path, _of_path_alone(path) | {
        name: value for name, value in kept.items() if name != "path"
    }


def _of_path_alone(path: str) -> dict[str, Any]:
    """How memories read a folder when they remembered nothing else: without prefixes, up to the length in one file."""
    longest = _object(Path(path) / LENGTH).get("max_seq_length") or sys.maxsize
    return {"max_length": longest, "query_prefix": "", "passage_prefix": "", "dtype": "float32"}


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RetrievalError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise RetrievalError(f"{path} holds {type(content).__name__}: expected an object")
    return content
