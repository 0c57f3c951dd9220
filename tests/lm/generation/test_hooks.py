"""Hooks: mixtures equal their formula, pure and from the host; mistakes name the hook's file."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.generation import GenerationError, slots
from lm.generation.hooks import Hook, named
from lm.generation.requests import Request
from lm.models.layers import Norm
from tests.lm.generation.test_engine import asked, load, served
from tests.lm.models import test_neighbours
from tests.test_documents import example

PROMPTS, BUDGETS = [[5, 9, 2], [7, 7, 30, 11, 60, 3, 3], [8]], (5, 9, 7)
GIVEN = np.random.default_rng(0).dirichlet(np.full(97, 0.1)).astype(np.float32)
SHARE = 0.6


@dataclasses.dataclass(frozen=True)
class Pure(Hook):
    def mix(self, logits, found):
        return jnp.log((1 - SHARE) * jax.nn.softmax(logits) + SHARE * GIVEN)


@dataclasses.dataclass(frozen=True)
class Host(Hook):
    """Mix in `GIVEN`, found at every second token, and keep what was seen."""

    seen: list = dataclasses.field(default_factory=list, compare=False)
    taps = ("ffn_input", "hidden")
    every = 2

    def find(self, taps, slots):
        self.seen.extend(
            (slot.number, len(slot.tokens), {name: x[row] for name, x in taps.items()})
            for row, slot in enumerate(slots)
        )
        given = np.broadcast_to(GIVEN, (len(slots), 97))
        return {"given": given, "sources": [[slot.number, len(slot.tokens)] for slot in slots]}

    def mix(self, logits, found):
        return jnp.log((1 - SHARE) * jax.nn.softmax(logits) + SHARE * found["given"])


@dataclasses.dataclass(frozen=True)
class HostOfHidden(Host):
    taps = ("hidden",)


def whole(model, params, prompt, tokens, **fields):
    """Log-probabilities [N, V] and hidden states that predict the tokens, without a cache."""
    c = model.config
    read = ([1] if c.encoder_layers else prompt) + list(tokens[:-1])
    row, of = np.zeros((1, 24), np.int32), np.zeros((1, 24), np.int32)
    row[0, : len(read)], of[0, : len(read)] = read, 1
    if c.encoder_layers:
        fields |= dict(encoder_tokens=[prompt + [0] * (8 - len(prompt))])
        fields |= dict(encoder_segments=[[1] * len(prompt) + [0] * (8 - len(prompt))])
    out = lm.forward(model, params, lm.Batch.of(row, of, **fields))
    inside = slice(len(read) - len(tokens), len(read))
    logits = np.asarray(out.logits)[0, inside]
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return log_probs, np.asarray(out.hidden)[0, inside]


def at(log_probs, tokens):
    return log_probs[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize(("name", "rows"), [("gpt2", 2), ("t5", 1), ("mamba", 1)])
def test_a_given_distribution_is_mixed_in_by_the_formula(name, rows):
    model, params = load(name)
    host = HostOfHidden() if name == "mamba" else Host()
    requests = asked(model, PROMPTS, BUDGETS)
    for hook in (Pure(), host):
        found, _ = served(model, params, requests, rows=rows, hooks=[hook], stop_tokens=[])
        for one, prompt in zip(found, PROMPTS, strict=True):
            own, out = whole(model, params, prompt, one.tokens)
            mixture = np.log((1 - SHARE) * np.exp(own) + SHARE * GIVEN)
            assert one.tokens == mixture.argmax(axis=-1).tolist() != own.argmax(axis=-1).tolist()
            np.testing.assert_allclose(one.log_probs, at(own, one.tokens), atol=1e-5)
            expected = at(mixture, one.tokens)
            np.testing.assert_allclose(one.behaviour_log_probs, expected, atol=1e-5)
            for number, count, taps in host.seen:
                if number == one.number:
                    np.testing.assert_allclose(taps["hidden"], out[count], atol=2e-5)
    assert found[1].sources == tuple((1, i // 2 * 2) for i in range(9))
    assert len(host.seen) == sum(-(-n // 2) for n in BUDGETS)


def test_the_tap_before_the_last_feed_forward_is_its_input():
    model, params = load("gpt2")
    host = Host()
    found, _ = served(model, params, asked(model, PROMPTS, BUDGETS), hooks=[host], stop_tokens=[])
    model, params = lm.separate(model, params)
    tokens = PROMPTS[1] + found[1].tokens[:-1]
    norms = lambda module, method: isinstance(module, Norm)
    apply = lambda params, batch: model.apply(
        {"params": params}, batch, method="hidden", capture_intermediates=norms
    )
    kept = jax.jit(apply)(params, lm.Batch.of([tokens]))[1]["intermediates"]
    expected = kept[f"layers_{model.config.n_layers - 1}"]["mlp_norm"]["__call__"][0][0]
    for number, count, taps in host.seen:
        if number == 1:
            place = len(PROMPTS[1]) - 1 + count
            np.testing.assert_allclose(taps["ffn_input"], expected[place], atol=2e-5)


def test_taps_cost_a_training_step_nothing(monkeypatch):
    model, _ = load("gemma2")
    loss = lambda params: jnp.sum(model.apply({"params": params}, lm.Batch.of([[1, 2]])).logits)
    program = lambda: jax.jit(jax.grad(loss)).lower(model.shapes()).as_text()
    with_taps = program()
    monkeypatch.setattr(nn.Module, "sow", lambda *args, **options: False)
    assert program() == with_taps


def test_a_hook_that_adds_nothing_changes_nothing_and_compiles_nothing_after_warm_up():
    model, params = load("gpt2")
    plain = lm.generate(model, params, PROMPTS, 9, stop_tokens=[], batch_size=1)
    hook = dict(hooks=[Hook()], stop_tokens=[], batch_size=1)
    assert lm.generate(model, params, PROMPTS, 9, **hook) == plain
    before = slots.insert._cache_size(), slots.advance._cache_size()
    lm.generate(model, params, [[3] * n for n in (30, 1, 7, 2)], 12, **hook)
    assert (slots.insert._cache_size(), slots.advance._cache_size()) == before


@dataclasses.dataclass(frozen=True)
class Gate(Hook):
    """Mix in `GIVEN` by a share that a small network predicts from the hidden state."""

    taps = ("hidden",)

    def mix(self, logits, found):
        assert self.params is None, "the arrays would be constants of the program"
        own = found["params"]
        share = jax.nn.sigmoid(found["hidden"] @ own["weight"] + own["bias"])[:, None]
        return jnp.log((1 - share) * jax.nn.softmax(logits) + share * own["given"])


@dataclasses.dataclass(frozen=True)
class HostGate(Gate):
    taps = ("hidden",)

    def find(self, taps, slots):
        assert self.params is not None
        return {"hidden": taps["hidden"]}


def test_arrays_of_a_hook_are_constants_of_the_program():
    model, params = load("gpt2")
    counts = []
    for seed, kind in ((0, Gate), (1, Gate), (0, HostGate), (1, HostGate)):
        own = {
            "weight": np.random.default_rng(seed).standard_normal(model.config.d_model),
            "bias": np.float32(seed),
            "given": np.roll(GIVEN, seed),
        }
        hook = kind(params=own)
        options = dict(hooks=[hook], stop_tokens=[], rows=1)
        found, _ = served(model, params, asked(model, PROMPTS[:1], (7,)), **options)
        logits, out = whole(model, params, PROMPTS[0], found[0].tokens)
        share = 1 / (1 + np.exp(-(out @ own["weight"] + own["bias"])))[:, None]
        mixture = np.log((1 - share) * np.exp(logits) + share * own["given"])
        assert found[0].tokens == mixture.argmax(axis=-1).tolist()
        np.testing.assert_allclose(
            found[0].behaviour_log_probs, at(mixture, found[0].tokens), atol=2e-5
        )
        counts.append((slots.advance._cache_size(), slots.step._cache_size()))
    assert counts[0] == counts[1] and counts[2] == counts[3], "other arrays were compiled for"
    with pytest.raises(GenerationError, match=r"params\['x'\] is str, expected arrays of numbers"):
        served(model, params, [Request([5], 4)], hooks=[Gate(params={"x": "y"})])


@pytest.mark.parametrize("name", ["gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_members_mix_their_probabilities_and_read_the_same_token(name):
    model, params = load(name)
    members, weights = [[40, 41], [50], [60, 2, 9]], np.log([0.5, 0.2, 0.3])
    alone = asked(model, PROMPTS, BUDGETS)
    group = dataclasses.replace(alone[1], members=members, log_weights=tuple(weights))
    requests = [alone[0], group, alone[2], group]
    found, engine = served(model, params, requests, rows=4, stop_tokens=[])
    plain = lm.generate(model, params, PROMPTS, list(BUDGETS), stop_tokens=[])
    assert [found[0].tokens, found[2].tokens] == [plain[0], plain[2]]
    assert found[1].tokens == found[3].tokens and engine.tokens == 5 + 9 + 7 + 9
    each = [
        whole(model, params, member + PROMPTS[1], found[1].tokens)[0] + weight
        for member, weight in zip(members, weights, strict=True)
    ]
    mixture = np.logaddexp.reduce(each, axis=0)
    assert found[1].tokens == mixture.argmax(axis=-1).tolist() != plain[1]
    np.testing.assert_allclose(found[1].log_probs, at(mixture, found[1].tokens), atol=1e-5)


VECTORS = np.random.default_rng(1).standard_normal((6, 3, test_neighbours.WIDTH)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Neighbours(Hook):
    def find(self, taps, slots):
        of = np.ones((len(slots), 6, 3), np.int32)
        vectors = np.broadcast_to(VECTORS, (len(slots), *VECTORS.shape))
        return {"inputs": {"neighbours": vectors, "neighbour_segments": of}}


def test_neighbours_come_with_a_request_or_from_a_hook():
    model, params = test_neighbours.make("llama")
    given = {"neighbours": VECTORS, "neighbour_segments": np.ones((6, 3), np.int32)}
    requests = [Request(p, 9, inputs=given) for p in PROMPTS]
    found, _ = served(model, params, requests, rows=1, stop_tokens=[])
    for one, prompt in zip(found, PROMPTS, strict=True):
        own, _ = whole(model, params, prompt, one.tokens, neighbours=VECTORS[None])
        assert one.tokens == own.argmax(axis=-1).tolist()
        np.testing.assert_allclose(one.log_probs, at(own, one.tokens), atol=2e-5)
    # Inputs may differ in chunks and length; a request without any sees nothing.
    part = {"neighbours": VECTORS[:3, :2], "neighbour_segments": np.ones((3, 2), np.int32)}
    mixed = [Request(PROMPTS[1], 9, inputs=part), Request(PROMPTS[0], 9), requests[2]]
    found_mixed, _ = served(model, params, mixed, rows=1, stop_tokens=[])
    of = np.zeros((1, 6, 3), np.int32)
    for one, prompt, seen in zip(found_mixed, (PROMPTS[1], PROMPTS[0]), (1, 0), strict=False):
        of[:, :3, :2] = seen
        fields = dict(neighbours=VECTORS[None], neighbour_segments=of)
        own, _ = whole(model, params, prompt, one.tokens, **fields)
        assert one.tokens == own.argmax(axis=-1).tolist()
        np.testing.assert_allclose(one.log_probs, at(own, one.tokens), atol=2e-5)
    assert found_mixed[2].tokens == found[2].tokens
    # Prompts of fewer than 4 tokens see no neighbours, which are for chunks of 4.
    nothing = {name: np.zeros_like(x) for name, x in given.items()}
    later = [Request(p, 9, inputs=nothing) for p in (PROMPTS[0], PROMPTS[2])]
    changed, _ = served(model, params, later, rows=1, hooks=[Neighbours()], stop_tokens=[])
    assert [one.tokens for one in changed] == [found[0].tokens, found[2].tokens]


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("mix", lambda self, logits, found: 1 / 0, "mix raised ZeroDivisionError: division"),
        (
            "mix",
            lambda self, logits, found: logits[:, 1:],
            r"float32\[2, 96\], expected float32\[2, 97",
        ),
        (
            "mix",
            lambda self, logits, found: logits.argmax(-1),
            r"int32\[2\], expected float32\[2, 97",
        ),
        ("find", lambda self, taps, slots: {}["x"], "find raised KeyError"),
        ("find", lambda self, taps, slots: [1], "returned list for its result, expected a dict"),
        ("find", lambda self, taps, slots: {"q": np.zeros(3)}, r"float64\[3\] for 'q', expected"),
        (
            "find",
            lambda self, taps, slots: {"q": np.zeros((1, len(slots[0].tokens)))},
            "first time",
        ),
        ("find", lambda self, taps, slots: {"inputs": {"x": np.zeros(1)}}, "they have none"),
        ("find", lambda self, taps, slots: {"params": np.zeros(1)}, "'params', expected another"),
        ("taps", ("hiden",), "taps names 'hiden', expected hidden or ffn_input"),
        ("every", 0, "every=0, expected at least 1"),
    ],
)
def test_a_hook_that_fails_is_named_with_its_file(method, result, message):
    model, params = load("gpt2")
    hook = type("Broken", (Hook,), {method: result, "__module__": __name__})()
    with pytest.raises(GenerationError, match=message) as error:
        served(model, params, [Request([5, 9, 2], 4)], hooks=[hook])
    assert re.search(r"hook Broken \(tests/lm/generation/test_hooks.py\)", str(error.value))


def test_taps_inputs_and_searches_that_a_model_does_not_have_are_refused():
    model, params = load("mamba")
    with pytest.raises(GenerationError, match="have no feed-forward: use 'hidden'"):
        served(model, params, [Request([5], 4)], hooks=[Host()])
    with pytest.raises(GenerationError, match="attends to no neighbours"):
        inputs = {"neighbours": VECTORS, "neighbour_segments": np.ones((6, 3), np.int32)}
        served(model, params, [Request([5], 4, inputs=inputs)])
    with pytest.raises(GenerationError, match=r"'neighbours': \(6, 3, \d\)}: expected neighbours"):
        served(model, params, [Request([5], 4, inputs={"neighbours": VECTORS})])
    with pytest.raises(GenerationError, match="does not work in a beam search"):
        lm.generate(model, params, [[5]], 4, lm.Beams(2), hooks=[Pure()])


def test_the_hook_of_the_page_recalls_and_is_named_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name, text = example("write_a_hook.md")
    assert len(text.splitlines()) <= 40
    (tmp_path / name).write_text(text)
    hook, off = named("recall:Recall,share=0.9,k=2"), named("recall:Recall,share=0.0")
    assert (hook.share, hook.k) == (0.9, 2)
    model, params = load("gpt2")
    plain, still, recalled = (
        lm.generate(model, params, [[5, 9, 2]], 20, stop_tokens=[], hooks=hooks)[0]
        for hooks in ([], [off], [hook])
    )
    assert plain == still and len(set(recalled)) < len(set(plain))
    with pytest.raises(lm.ConfigError, match="unexpected keyword argument 'size'"):
        named("recall:Recall,size=3")
    with pytest.raises(lm.ConfigError, match="module:Class of your own"):
        named("recall")
