"""Text settings of a sentence-transformers folder, and what a memory records of its encoder.

Pooling is read by `lm.from_hf`. A memory records a path, or a path and the options by which the
encoder differs from the default for that path.
"""

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
# Names of prompts, in order of preference.
QUERY, PASSAGE = ("query",), ("document", "passage", "corpus")
PLAIN = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "processing_kwargs": {},
    "query_length": 0,
    "document_length": 0,
}


def said(path_or_id) -> dict[str, Any]:
    """Return max_length, query_prefix and passage_prefix of a folder or hub id.

    max_length is huge where only the model limits it. A folder with no prompt for queries or
    passages uses its default prompt for both. Raises RetrievalError for unsupported settings and
    WeightsError when there is no such folder.
    """
    folder = resolve(path_or_id, weights=False)
    settings, prompts = _object(folder / LENGTH), _object(folder / PROMPTS)
    for name, plain in PLAIN.items():
        if (settings.get(name) or plain) != plain:
            raise RetrievalError(
                f"{folder / LENGTH}: {name}={settings[name]!r} is not supported; without it "
                "texts are read differently"
            )
    if "message" in (settings.get("modality_config") or ()):
        raise RetrievalError(
            f"{folder / LENGTH}: modality_config puts texts into the chat template (message), "
            "which is not supported"
        )
    longest = settings.get("max_seq_length")
    # sentence-transformers 6 writes the length into the tokenizer's file.
    if longest is None and (folder / MODULES).is_file():
        longest = _object(folder / "tokenizer_config.json").get("model_max_length")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int)):
        raise RetrievalError(
            f"{folder}: the longest text is said to have {longest!r} tokens: expected a whole "
            "number"
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
    """Return the record of an encoder: its path, or JSON if options differ from the default."""
    differ = {
        name: value for name, value in options.items() if value != _of_path_alone(path).get(name)
    }
    return json.dumps({"path": path, **differ}) if differ else path


def recalled(source: str, path: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the path and all the options given to `remembered`.

    path: where the folder is now, if it has moved.
    """
    kept = json.loads(source) if source.startswith("{") else {"path": source}
    path = path or kept["path"]
    return path, _of_path_alone(path) | {
        name: value for name, value in kept.items() if name != "path"
    }


def _of_path_alone(path: str) -> dict[str, Any]:
    """Return the options that a path alone stands for in a memory's record.

    They are without prefixes, with the length of one file.
    """
    longest = _object(Path(path) / LENGTH).get("max_seq_length") or sys.maxsize
    return {"max_length": longest, "query_prefix": "", "passage_prefix": "", "dtype": "float32"}


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RetrievalError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise RetrievalError(f"{path} holds {type(content).__name__}: expected an object")
    return content
