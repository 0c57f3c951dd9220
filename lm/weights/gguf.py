"""Tensors and metadata of a GGUF file (llama.cpp's format, quantised or not).

Tensors are read by name. The metadata is converted to a config.json.
"""

import contextlib
import dataclasses
import math
import mmap
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from lm.models.config import ConfigError
from lm.weights.errors import WeightsError
from lm.weights.sources import Source

ARCHITECTURES = ("llama",)
# dtypes of the numeric metadata types
NUMBERS = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))) | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
VALUES_AT_ONCE = 1 << 16  # dequantised in one call: these fit in a core's cache


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Stored tensor.

    kind: a gguf.GGMLQuantizationType. data: uint8, the stored bytes in the file's mapped pages.
    """

    kind: Any
    shape: tuple[int, ...]
    data: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reader:
    """Metadata and tensors of a GGUF file, by name."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]


def open_reader(path: Path) -> Reader:
    """Read the header of a file. Raise WeightsError if it is not a complete GGUF file."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(
                f"{path} is not a GGUF file (it does not begin with 'GGUF'); "
                "was the download complete?"
            )
        try:
            return _parsed(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        # a damaged header raises struct.error, UnicodeDecodeError, MemoryError, ...
        except Exception as error:
            raise WeightsError(
                f"{path} is a damaged or truncated GGUF file "
                f"({type(error).__name__}: {error}); fetch it again"
            ) from error


def _parsed(file: mmap.mmap) -> Reader:
    """Parse GGUF versions 2 and 3, little-endian.

    The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    gguf.GGUFReader is not used: it makes several numpy arrays per token of the vocabulary, which
    takes seconds.
    """
    import gguf

    version, count, n_fields = struct.unpack_from("<IQQ", file, 4)
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3, little-endian, are read")
    at, fields = 24, {}
    for _ in range(n_fields):
        (name,), at = _strings(file, at, 1)
        (kind,) = struct.unpack_from("<I", file, at)
        fields[name], at = _value(file, at + 4, kind)
    described = []
    for _ in range(count):
        (name,), at = _strings(file, at, 1)
        (n,) = struct.unpack_from("<I", file, at)
        *dims, kind, offset = struct.unpack_from(f"<{n}QIQ", file, at + 4)
        described.append((name, dims, gguf.GGMLQuantizationType(kind), offset))
        at += 16 + 8 * n
    alignment = fields.get("general.alignment") or 32
    start, whole, tensors = -(-at // alignment) * alignment, np.frombuffer(file, np.uint8), {}
    for name, dims, kind, offset in described:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        first, length = start + offset, math.prod(dims) // block * size
        if name in tensors or first + length > len(whole):
            raise ValueError(
                f"tensor {name!r} is there twice"
                if name in tensors
                else f"tensor {name!r} ends beyond the file"
            )
        tensors[name] = Tensor(kind, tuple(reversed(dims)), whole[first : first + length])
    return Reader(fields, tensors)


def _strings(file: mmap.mmap, at: int, count: int) -> tuple[list[str], int]:
    """Read `count` strings from offset `at`. Return them and the offset after them."""
    found, length_at = [], struct.Struct("<Q").unpack_from
    for _ in range(count):
        end = at + 8 + length_at(file, at)[0]
        found.append(file[at + 8 : end].decode())
        at = end
    if at > len(file):
        raise ValueError("a text ends beyond the file")
    return found, at


def _value(file: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """Read a metadata value of type `kind`. Return it and the offset after it."""
    if kind == STRING:
        (text,), at = _strings(file, at, 1)
        return text, at
    if kind != ARRAY:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(file, dtype, 1, at)[0].item(), at + dtype.itemsize
    kind, count = struct.unpack_from("<IQ", file, at)
    at += 12
    if kind == STRING:
        return _strings(file, at, count)
    if kind != ARRAY:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(file, dtype, count, at).tolist(), at + count * dtype.itemsize
    found = []
    for _ in range(count):
        one, at = _value(file, at, ARRAY)
        found.append(one)
    return found, at


class Metadata:
    """Metadata fields of a GGUF file by name.

    `get` returns None for an absent field; indexing raises WeightsError.
    """

    def __init__(self, reader: Reader, path: Path):
        self.get, self.path = reader.fields.get, path

    def __getitem__(self, name: str) -> Any:
        found = self.get(name)
        if found is None:
            self.refuse_parts()  # only the first part has the metadata
            raise WeightsError(
                f"{self.path} has no metadata field {name!r}; "
                "was it written by llama.cpp's converter?"
            )
        return found

    def refuse_parts(self) -> None:
        """Raise ConfigError if the model is split over several files."""
        if (self.get("split.count") or 1) > 1:
            raise ConfigError(
                f"{self.path} is part {(self.get('split.no') or 0) + 1} of "
                f"{self.get('split.count')} (split.count): merge them with "
                "llama-gguf-split --merge FIRST_PART OUTPUT, and give the result"
            )


def read_metadata(path: Path) -> Metadata:
    return Metadata(open_reader(path), path)


def hf_config(fields: Metadata, tensors) -> dict:
    """Convert GGUF metadata and tensor names to the model's config.json.

    Raise ConfigError for an unsupported architecture or option.
    """
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{fields.path}: GGUF architecture {architecture!r} is not supported "
            f"(supported: {', '.join(ARCHITECTURES)}); "
            "use the model's safetensors directory instead"
        )
    fields.refuse_parts()
    scaling = fields.get("llama.rope.scaling.type") or "none"
    if scaling not in ("none", "linear"):
        raise ConfigError(
            f"{fields.path}: rope.scaling.type={scaling!r} is not supported in GGUF files; "
            "only none and linear are"
        )
    if "rope_freqs.weight" in tensors:
        raise ConfigError(
            f"{fields.path}: per-frequency rotary scaling (rope_freqs.weight) is not supported; "
            "use its safetensors directory"
        )
    if fields.get("llama.expert_count"):
        raise ConfigError(
            f"{fields.path}: experts (llama.expert_count={fields['llama.expert_count']}) "
            "are not supported"
        )
    # 1e-5 is stored as the nearest float32
    as_written = lambda x: float(str(np.float32(x)))
    d_model, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    head_dim = fields.get("llama.attention.key_length") or d_model // heads
    rotary = fields.get("llama.rope.dimension_count") or head_dim
    end = [fields.get("tokenizer.ggml.eos_token_id"), fields.get("tokenizer.ggml.eot_token_id")]
    theta = as_written(fields.get("llama.rope.freq_base") or 10_000.0)
    return dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        hidden_size=d_model,
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv") or heads,
        head_dim=head_dim,
        intermediate_size=fields["llama.feed_forward_length"],
        max_position_embeddings=fields["llama.context_length"],
        vocab_size=tensors["token_embd.weight"][0]
        if "token_embd.weight" in tensors
        else len(fields["tokenizer.ggml.tokens"]),
        rms_norm_eps=as_written(fields["llama.attention.layer_norm_rms_epsilon"]),
        rope_theta=theta,
        rope_scaling={"rope_type": "linear", "factor": fields["llama.rope.scaling.factor"]}
        if scaling == "linear"
        else None,
        partial_rotary_factor=rotary / head_dim,
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=list(dict.fromkeys(i for i in end if i is not None)),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
    )


@contextlib.contextmanager
def open_gguf(path: Path) -> Generator[tuple[dict, Source]]:
    """Open a GGUF file: (config.json as a dict, tensors).

    `read` dequantises one tensor to float32, into memory that the next `read` uses again.
    """
    reader = open_reader(path)
    shapes = {name: t.shape for name, t in reader.tensors.items()}
    room = np.empty(max(map(math.prod, shapes.values()), default=0), np.float32)
    hf = hf_config(Metadata(reader, path), shapes)

    def read(name: str) -> np.ndarray:
        t = reader.tensors[name]
        try:
            return dequantized(t, room).reshape(t.shape)
        except (NotImplementedError, ValueError) as error:
            raise WeightsError(
                f"{path}: tensor {name!r} of type {t.kind.name} cannot be dequantised: {error}"
            ) from error

    yield hf, Source(str(path), shapes, dict.fromkeys(shapes, "F32"), read)


def dequantized(t: Tensor, room: np.ndarray) -> np.ndarray:
    """Dequantise a tensor to float32 [n], the start of `room`, VALUES_AT_ONCE values per call.

    gguf by itself takes 16 rows at a time, which is too few to be fast.
    """
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[t.kind]
    out = room[: math.prod(t.shape)]
    step = max(1, VALUES_AT_ONCE // block)
    for first in range(0, len(t.data) // size, step):
        some = t.data[first * size : (first + step) * size]
        out[first * block : (first + step) * block] = gguf.dequantize(some[None], t.kind)[0]
    return out
