"""Named tensors in a GGUF file (llama.cpp's format, quantised or not), and its metadata as a config.json."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from lm.models.config import ConfigError
from lm.weights.errors import WeightsError
from lm.weights.sources import Source

ARCHITECTURES = ("llama",)


def open_reader(path: Path):
    """gguf.GGUFReader on the file; WeightsError when it is not a complete GGUF file."""
    import gguf

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{path} is not a GGUF file (it does not begin with 'GGUF'); was the download complete?")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader runs off a damaged header in many ways (ValueError, IndexError, UnicodeDecodeError, ...)
        raise WeightsError(f"{path} is a damaged or truncated GGUF file ({type(error).__name__}: {error}); fetch it again") from error


class Metadata:
    """Fields of a GGUF file by name, with None for what is not there."""

    def __init__(self, reader, path: Path):
        self.reader, self.path = reader, path

    def get(self, name: str) -> Any:
        field = self.reader.get_field(name)
        return None if field is None else field.contents()

    def __getitem__(self, name: str) -> Any:
        found = self.get(name)
        if found is None:
            self.refuse_parts()  # all but the first have no metadata
            raise WeightsError(f"{self.path} has no metadata field {name!r}; was it written by llama.cpp's converter?")
        return found

    def refuse_parts(self) -> None:
        """Raises ConfigError for one of several files that hold a model together."""
        if (self.get("split.count") or 1) > 1:
            raise ConfigError(
                f"{self.path} is part {(self.get('split.no') or 0) + 1} of {self.get('split.count')} (split.count): merge them with "
                "llama-gguf-split --merge FIRST_PART OUTPUT, and give the result"
            )


def read_metadata(path: Path) -> Metadata:
    return Metadata(open_reader(path), path)


def hf_config(fields: Metadata, tensors) -> dict:
    """GGUF metadata and tensor names -> the config.json of the same model. ConfigError for what is not supported."""
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{fields.path}: GGUF architecture {architecture!r} is not supported (supported: {', '.join(ARCHITECTURES)}); "
            "use the model's safetensors directory instead"
        )
    fields.refuse_parts()
    scaling = fields.get("llama.rope.scaling.type") or "none"
    if scaling not in ("none", "linear"):
        raise ConfigError(f"{fields.path}: rope.scaling.type={scaling!r} is not supported in GGUF files; only none and linear are")
    if "rope_freqs.weight" in tensors:
        raise ConfigError(
            f"{fields.path}: per-frequency rotary scaling (rope_freqs.weight) is not supported; use its safetensors directory"
        )
    if fields.get("llama.expert_count"):
        raise ConfigError(f"{fields.path}: experts (llama.expert_count={fields['llama.expert_count']}) are not supported")
    as_written = lambda x: float(str(np.float32(x)))  # 1e-5 is stored as the float32 next to it
    d_model, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    head_dim = fields.get("llama.attention.key_length") or d_model // heads
    rotary = fields.get("llama.rope.dimension_count") or head_dim
    end = [fields.get("tokenizer.ggml.eos_token_id"), fields.get("tokenizer.ggml.eot_token_id")]
    theta = as_written(fields.get("llama.rope.freq_base") or 10_000.0)
    return dict(
        model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=d_model, num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads, num_key_value_heads=fields.get("llama.attention.head_count_kv") or heads, head_dim=head_dim,
        intermediate_size=fields["llama.feed_forward_length"], max_position_embeddings=fields["llama.context_length"],
        vocab_size=tensors["token_embd.weight"][0] if "token_embd.weight" in tensors else len(fields["tokenizer.ggml.tokens"]),
        rms_norm_eps=as_written(fields["llama.attention.layer_norm_rms_epsilon"]), rope_theta=theta,
        rope_scaling={"rope_type": "linear", "factor": fields["llama.rope.scaling.factor"]} if scaling == "linear" else None,
        partial_rotary_factor=rotary / head_dim, tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"), eos_token_id=list(dict.fromkeys(i for i in end if i is not None)),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
    )  # fmt: skip


@contextlib.contextmanager
def open_gguf(path: Path) -> Generator[tuple[dict, Source]]:
    """(config.json as a dict, tensors) of a GGUF file; `read` dequantises one tensor to float32 at a time."""
    import gguf

    reader = open_reader(path)
    tensors = {t.name: t for t in reader.tensors}
    shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
    hf = hf_config(Metadata(reader, path), shapes)

    def read(name: str) -> np.ndarray:
        t = tensors[name]
        try:
            return np.asarray(gguf.dequantize(t.data, t.tensor_type), np.float32).reshape(shapes[name])
        except (NotImplementedError, ValueError) as error:
            raise WeightsError(f"{path}: tensor {name!r} of type {t.tensor_type.name} cannot be dequantised: {error}") from error

    yield hf, Source(str(path), shapes, dict.fromkeys(tensors, "F32"), read)
