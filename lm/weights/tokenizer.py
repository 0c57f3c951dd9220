"""Load a transformers tokenizer from a directory, hub id or GGUF file, without torch."""

from fnmatch import fnmatch
from pathlib import Path

from lm.weights.errors import WeightsError
from lm.weights.gguf import Metadata, read_metadata
from lm.weights.resolve import resolve

FILES = (
    "*token*",
    "vocab*",
    "merges*",
    "*.model",
    "*.spm",
)  # a directory with a tokenizer has a file that matches one of these
CONTROL = 3  # llama.cpp's token type of control tokens
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> pattern that splits text before byte-pair merges; None = that of GPT-2.
SPLITS = {
    "gpt-2": None,
    "smollm": None,  # after splitting off each digit
    "llama-bpe": CONTRACTIONS + WORDS % "1,3",
    "qwen2": CONTRACTIONS + WORDS % "1",
}


def load_tokenizer(path_or_id):
    """Load the tokenizer of a model, with its special tokens and chat template.

    path_or_id: directory of a model or tokenizer, hub id, or .gguf file. No code of the directory
    is run. Raises WeightsError (a ValueError) when there is none or its kind is not supported.
    """
    path = resolve(path_or_id, weights=False)
    if path.is_file():
        return from_gguf(read_metadata(path))
    import transformers

    present = files(path)
    if not present:  # transformers would invent a tokenizer for some model types
        raise WeightsError(
            f"no tokenizer can be read from {path} (it has no tokenizer.json, vocab, merges or "
            "sentencepiece file)"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(path), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the Rust parser raises plain Exception for a damaged file
        raise WeightsError(
            f"no tokenizer can be read from {path} ({', '.join(present)}: {error})"
        ) from error


def files(directory: Path) -> list[str]:
    """Names of the tokenizer files in a directory."""
    return sorted(
        p.name for p in directory.iterdir() if any(fnmatch(p.name, pattern) for pattern in FILES)
    )


def from_gguf(fields: Metadata):
    """Make a byte-level BPE tokenizer from the metadata of a GGUF file."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors

    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in SPLITS:
        raise WeightsError(
            f"{fields.path}: tokenizer model {kind!r} with pre-tokenizer {pre!r} is not "
            "supported (supported: gpt2 with one of "
            f"{', '.join(SPLITS)}); load the tokenizer from the model's original directory or "
            "hub id instead"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(dict(zip(tokens, range(len(tokens)), strict=True)), merges)
    )
    pattern = SPLITS[pre]
    first = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    if pattern is not None:
        first = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token
        for token, type_ in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if type_ == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in roles.items()}
    named = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    if fields.get("tokenizer.ggml.add_bos_token") and ids["bos"] is not None:
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids["bos"])]
        )
    extra = [token for token in special if token not in named.values()]
    length = fields.get(f"{fields['general.architecture']}.context_length")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=extra,
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=length,
        **named,
    )
