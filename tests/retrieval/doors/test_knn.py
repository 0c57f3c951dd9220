"""kNN-LM: the formula, generation with its sources, edits, and versions under a generation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.generation import GenerationError
from lm.generation.engine import Engine
from lm.generation.requests import Request
from lm.models.taps import tapped
from retrieval.datastore import rows
from retrieval.doors.knn import KnnLM, named
from retrieval.doors.knn_perplexity import score, tuned
from retrieval.doors.knn_share import Share
from retrieval.errors import RetrievalError
from retrieval.passages import Passage
from tests.retrieval.datastore.stores import TEXTS, brute, built, everything, memory, observer

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "mamba")]
K, SHARE, TEMPERATURE = 12, 0.4, 3.0

pytestmark = pytest.mark.usefixtures("compiled_once")


@functools.cache
def observed(family):
    return observer(family)


@pytest.fixture
def gpt2(tmp_path):
    """(observer, memory, store)."""
    one, made = observed("gpt2"), memory(tmp_path / "memory")
    return one, made, built(tmp_path / "store", made, one, index="exact")


def packed_of(one, texts):
    passages = [Passage(str(i), text) for i, text in enumerate(texts)]
    return rows.of_passages(passages, one.tokenizer, one.model.config, one.length).packed


def formula(own, knn, share):
    return np.log((1 - share) * np.exp(own) + share * knn)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert", *SLOW])
def test_the_mixture_is_the_formula_over_all_entries(tmp_path, family):
    one = observed(family)
    store = built(tmp_path / "store", memory(tmp_path / "memory"), one, index="exact")
    packed = packed_of(one, ["the cat ran to the mat", "snow fell on the log"])
    snapshot = store.snapshot()
    found = score(one, packed, snapshot, K, vectors=True)
    mixed = found.mixed(SHARE, TEMPERATURE)
    targets = np.asarray(packed.targets)[found.rows, found.places]
    rows_ = built(tmp_path / "rows", packed, one, index="exact")  # of the same rows, with sources
    assert sorted(everything(rows_.snapshot())[1]) == sorted(targets)
    size = one.model.config.vocab_size
    knn = brute(snapshot, found.vectors, K, TEMPERATURE, size)[np.arange(len(targets)), targets]
    assert 0 < (knn > 0).sum() < len(knn)
    np.testing.assert_allclose(mixed, formula(found.log_probs, knn, SHARE), atol=2e-5)
    # what the model says, from a forward pass of its own
    tokens, segments = np.array(packed.tokens), np.array(packed.segments)
    given = {name: np.array(value) for name, value in packed.extra.items()}
    if family == "bert":
        some = np.array([7])
        tokens = np.array(packed.targets)
        tokens[found.rows[some], found.places[some]] = one.tokenizer.mask_token_id
    else:
        some = np.arange(len(targets))
    logits = lm.forward(one.model, one.params, lm.Batch.of(tokens, segments, **given)).logits
    logits = np.float64(logits)[found.rows[some], found.places[some]]
    own = logits[np.arange(len(some)), targets[some]] - np.logaddexp.reduce(logits, axis=1)
    np.testing.assert_allclose(found.log_probs[some], own, atol=2e-5)
    expected = -np.mean(mixed)
    assert found.perplexity(SHARE, TEMPERATURE).loss == pytest.approx(expected, abs=1e-9)
    assert found.perplexity().loss == pytest.approx(-found.log_probs.mean(), abs=1e-9)


def answered(one, hook, prompts, answers):
    """(greedy tokens, their log-probabilities) after every prefix of the answers, in float64."""
    c = one.model.config
    rows_, segments, asked = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = [c.decoder_start_token_id] if c.encoder_layers else prompt
        read = [*start, *answer[:-1]]
        rows_.append(read + [0] * (24 - len(read)))
        segments.append([1] * len(read) + [0] * (24 - len(read)))
        asked.append(len(start) - 1 + np.arange(len(answer)))
    batch = lm.Batch.of(rows_, segments)
    if c.encoder_layers:
        read = [prompt + [0] * (8 - len(prompt)) for prompt in prompts]
        of = [[1] * len(prompt) + [0] * (8 - len(prompt)) for prompt in prompts]
        batch = lm.Batch.of(rows_, segments, encoder_tokens=read, encoder_segments=of)

    @jax.jit
    def run(params, batch):
        out, taps = tapped(one.model, params, batch, taps=(one.tap,))
        logits = one.model.apply({"params": params}, out.hidden, method="logits")
        return logits, taps[one.tap]

    for logits, vectors, at in zip(*run(one.params, batch), asked, strict=True):
        logits = np.float64(logits)[at]
        own = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        vectors = np.asarray(vectors)[at]
        knn = brute(hook.newest(), vectors, hook.k, hook.temperature, own.shape[1])
        mixed = formula(own, knn, hook.share)
        yield mixed.argmax(axis=1).tolist(), mixed.max(axis=1)


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "mamba"))]
)
def test_greedy_answers_are_those_of_a_plain_loop_and_name_their_sources(tmp_path, family):
    one = observed(family)
    store = built(tmp_path / "store", memory(tmp_path / "memory"), one, index="exact")
    hook = KnnLM(store, K, 0.7, TEMPERATURE)
    prompts = [[4, 30, 7], [90, 12, 5, 77, 8]]
    asked = [Request([0], 8, p) if family == "t5" else Request(p, 8) for p in prompts]
    engine = Engine(one.model, rows=2, length=64, encoder_length=32, stop_tokens=[])
    found = sorted(engine.run(one.params, asked, [hook]), key=lambda each: each.number)
    _, values, places = everything(store.snapshot())
    value_of = dict(zip(places, values.tolist(), strict=True))
    expected = answered(one, hook, prompts, [each.tokens for each in found])
    for each, (tokens, said) in zip(found, expected, strict=True):
        assert each.tokens == tokens
        np.testing.assert_allclose(each.behaviour_log_probs, said, atol=2e-4)
        for token, own, total, sources in zip(
            tokens, each.log_probs, said, each.sources, strict=True
        ):
            assert sum(source.weight for source in sources) == pytest.approx(0.7, abs=1e-5)
            assert all(value_of[s.passage, s.offset] == s.token for s in sources)
            memory_part = np.exp(total) - 0.3 * np.exp(own)
            heaviest = named(sources, token)
            assert sum(s.weight for s in heaviest) == pytest.approx(memory_part, abs=1e-4)
            assert all(s.token == token for s in heaviest)


def after(one, store, prompt, **options):
    """The token that follows, by the memory alone."""
    hook = KnnLM(store, 1, 1.0, **options)
    text = one.tokenizer(prompt)["input_ids"]
    start = [one.tokenizer.eos_token_id]
    [answer] = lm.generate(one.model, one.params, [start + text], 1, hooks=[hook], stop_tokens=[])
    return one.tokenizer.decode(answer)


def test_one_edit_changes_the_next_answer_and_undo_restores_the_old(gpt2):
    one, made, store = gpt2
    prompt = TEXTS["d"][:5]  # "rain "
    assert after(one, store, prompt) == "f"
    made.edit("d", text="rain was on the old town all day")
    assert after(one, store, prompt) == "f"  # of the version it was built from
    store.update(made, one)
    assert after(one, store, prompt) == "w"
    made.undo()
    assert after(one, store, prompt, memory=made) != "w"  # what was undone is gone at once
    store.update(made, one)
    assert after(one, store, prompt, memory=made) == "f"
    made.delete(["d"])
    assert after(one, store, prompt, memory=made) != "f"  # and what was deleted


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "mamba", "t5"])
def test_one_edit_changes_the_next_token_of_every_architecture(tmp_path, family):
    one, made = observed(family), memory(tmp_path / "memory")
    store = built(tmp_path / "store", made, one, index="exact")
    tokenizer, c = one.tokenizer, one.model.config
    text, end = tokenizer("rain ", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    apart = bool(c.encoder_layers)
    start = c.decoder_start_token_id if apart else end
    asked = Request([start, *text], 1, [end] if apart else ())

    def following():
        engine = Engine(one.model, rows=1, length=32, encoder_length=32, stop_tokens=[])
        [found] = engine.run(one.params, [asked], [KnnLM(store, 1, 1.0, memory=made)])
        return tokenizer.decode(found.tokens), {s.passage for s in found.sources[0]}

    assert following() == ("f", {"d"})
    made.edit("d", text="rain was on the old town all day")
    store.update(made, one)
    assert following() == ("w", {"d"})
    made.undo()
    store.update(made, one)
    assert following() == ("f", {"d"})


def test_one_edit_changes_what_a_masked_model_fills_in(tmp_path):
    one, made = observed("bert"), memory(tmp_path / "memory")
    store = built(tmp_path / "store", made, one, index="exact")

    def chance(vowel):
        """Of the letter in "f?ll", by the nearest entry alone."""
        packed = packed_of(one, [f"rain f{vowel}ll on the old town all day"])
        found = score(one, packed, store.snapshot(made), 1)
        targets = np.asarray(packed.targets)[found.rows, found.places]
        after_f = 1 + list(targets).index(one.tokenizer.convert_tokens_to_ids("f"))
        return np.exp(found.mixed(1.0, 1.0)[after_f])

    assert (chance("e"), chance("i")) == (1, 0)
    made.edit("d", text="rain fill on the old town all day")
    store.update(made, one)
    assert (chance("e"), chance("i")) == (0, 1)
    made.undo()
    store.update(made, one)
    assert (chance("e"), chance("i")) == (1, 0)


@dataclasses.dataclass(frozen=True)
class Deleting(KnnLM):
    """Deletes a passage, and updates the store, after two tokens of an answer."""

    change: object = dataclasses.field(default=None, compare=False)
    seen: list = dataclasses.field(default_factory=list, compare=False)

    def find(self, taps, slots):
        found = super().find(taps, slots)
        self.seen.append({source.passage for sources in found["sources"] for source in sources})
        if len(self.seen) == 2:
            self.change()
        return found


@pytest.mark.parametrize("pin", ["answer", "token"])
def test_an_answer_sees_one_version_or_every_token_the_newest(gpt2, pin):
    one, made, store = gpt2
    size = len(store)

    def change():
        made.delete(["a"])
        made.add([Passage("new", TEXTS["a"] + " again")])
        store.update(made, one)

    hook = Deleting(store, size, 0.5, memory=made, pin=pin, change=change)
    generate = lambda: lm.generate(one.model, one.params, [[5]], 4, hooks=[hook], stop_tokens=[])
    generate()
    old, new = {"a", "b", "c", "d"}, {"b", "c", "d", "new"}
    later = old if pin == "answer" else new
    expected = [old, old, later, later]
    # with a temperature of 1, far entries may have no weight
    assert all(seen <= one for seen, one in zip(hook.seen, expected, strict=True))
    assert [("a" in seen, "new" in seen) for seen in hook.seen[2:]] != [(True, True)] * 2
    generate()
    assert all(seen <= new for seen in hook.seen[4:])


def test_wrong_numbers_are_refused_before_anything_compiles(gpt2):
    _, _, store = gpt2
    for wrong, said in (
        (dict(k=0), "k=0: expected"),
        (dict(k=10_000), "k=10000: the datastore holds"),
        (dict(k=1, share=1.1), r"share=1.1: expected .* from 0 to 1"),
        (dict(k=1, share=-0.1), r"share=-0.1: expected"),
        (dict(k=1, share=float("nan")), "share=nan"),
        (dict(k=1, temperature=0), "temperature=0: expected a number above 0"),
        (dict(k=1, temperature=float("inf")), "temperature=inf"),
        (dict(k=1, pin="none"), "pin='none': expected answer or token"),
        (dict(k=1, skip=2), "skip=2"),
    ):
        with pytest.raises(RetrievalError, match=said):
            KnnLM(store, **wrong)


def test_a_hook_of_feed_forward_inputs_is_refused_by_a_model_without(gpt2):
    one, (_, _, store) = observed("mamba"), gpt2
    with pytest.raises(GenerationError, match="have no feed-forward"):
        lm.generate(one.model, one.params, [[5]], 1, hooks=[KnnLM(store, 1)])


def test_the_tuned_mixture_is_the_best_of_a_grid_and_never_worse_than_the_model(gpt2):
    one, _, store = gpt2
    near = packed_of(one, ["the cat sat on the log", "a dog ran to the door"])
    far = packed_of(one, ["0101 9999 XQZJ"])
    for packed in (near, far):
        found = score(one, packed, store.snapshot(), K)
        share, temperature = tuned(found)
        best = found.perplexity(share, temperature).loss
        assert best <= found.perplexity().loss
        grid = [
            found.perplexity(s, t).loss
            for s in np.linspace(0, 0.95, 20)
            for t in temperature * 2.0 ** np.arange(-4, 5)
        ]
        assert best <= min(grid) + 1e-4
    assert tuned(score(one, far, store.snapshot(), 2))[0] < 0.2


def test_a_predicted_share_beats_a_constant_and_skips_searches(gpt2, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(800, 16))
    own, knn = np.full(800, -3.0), np.where(vectors[:, 0] > 0, -0.5, -9.0)
    share = Share.fit(vectors, own, knn, 0.5)
    predicted = share(vectors)
    loss = lambda s: -np.log((1 - s) * np.exp(own) + s * np.exp(knn)).mean()
    assert loss(predicted) < min(loss(s) for s in np.linspace(0, 1, 21)) - 0.3
    share.save(tmp_path / "share.npz")
    np.testing.assert_array_equal(Share.load(tmp_path / "share.npz")(vectors), predicted)

    one, _, store = gpt2
    low = Share(
        {"mean": 0.0, "scale": 1.0, "w1": np.zeros((16, 1)), "b1": np.zeros(1)}
        | {"w2": np.zeros(1), "b2": -8.0}
    )
    plain = lm.generate(one.model, one.params, [[5]], 4, stop_tokens=[])
    hook = KnnLM(store, 4, adaptive=low, skip=0.01)
    snapshot = dataclasses.replace(hook.newest(), parts=())  # a search would raise
    object.__setattr__(hook, "_snapshot", lambda slot: snapshot)
    assert lm.generate(one.model, one.params, [[5]], 4, hooks=[hook], stop_tokens=[]) == plain


def test_a_mixture_of_certain_parts_has_no_nan(gpt2):
    hook = KnnLM(gpt2[2], 1, 0.0)
    logits = jnp.array([[0.0, 1.0, -jnp.inf]] * 2)
    found = {
        "tokens": jnp.array([[0], [2]]),
        "weights": jnp.ones((2, 1)),
        "share": jnp.array([0.0, 1.0]),
    }
    mixed = np.asarray(hook.mix(logits, found))
    np.testing.assert_allclose(mixed[0], jax.nn.log_softmax(logits[0]))
    assert mixed[1].tolist() == [-np.inf, -np.inf, 0.0]
