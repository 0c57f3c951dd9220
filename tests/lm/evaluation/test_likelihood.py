"""Log-likelihoods and the lm-evaluation-harness adapter, against one forward pass per sequence."""

import dataclasses
import importlib.util
import json
from typing import Any

import numpy as np
import pytest
import scipy.special

import lm
from lm.data import tokenizers
from lm.evaluation import likelihood
from lm.evaluation.harness import Harness, adapter
from tests.lm.models.test_model import make

FAMILIES = ("gpt2", "t5", "mamba")
TOKENIZER = tokenizers.bytes_only()
LENGTH = 24


@dataclasses.dataclass
class Request:
    args: tuple


@pytest.fixture(scope="module")
def models():
    found = {}
    for name in FAMILIES:
        start = {"decoder_start_token_id": 1} if name == "t5" else {}
        found[name] = make(
            name,
            vocab_size=257,
            max_length=LENGTH,
            initializer_range=0.3,
            eos_token_ids=(0,),
            **start,
        )
    return found


def brute_force(model, params, context, continuation):
    """(sum, greedy) from one forward pass over exactly these tokens.

    The logits at position t predict the token at t + 1.
    """
    if model.config.encoder_layers:
        tokens = [model.config.decoder_start_token_id, *continuation]
        batch = lm.Batch.of([tokens], encoder_tokens=[list(context)])
        first = 0
    else:
        batch = lm.Batch.of([[*context, *continuation][:-1]])  # the last token predicts nothing
        first = len(context) - 1
    logits = np.asarray(lm.forward(model, params, batch).logits[0], np.float64)
    total, greedy = 0.0, True
    for i, token in enumerate(continuation):
        total += scipy.special.log_softmax(logits[first + i])[token]
        greedy &= int(logits[first + i].argmax()) == token
    return total, greedy


@pytest.mark.parametrize("name", FAMILIES)
def test_a_likelihood_is_off_by_one_or_sees_its_padding(models, name):
    model, params = models[name]
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(1, 257, n).tolist(), rng.integers(1, 257, m).tolist())
        for n, m in ((3, 2), (1, 1), (9, 5), (14, 9), (2, 1))
    ]
    best = lm.generate(model, params, [pairs[0][0]], 4, stop_tokens=[])[0]
    pairs.append((pairs[0][0], best))
    found = likelihood.log_likelihoods(model, params, pairs, batch_size=4)
    for (value, greedy), pair in zip(found, pairs, strict=True):
        expected, best = brute_force(model, params, *pair)
        assert value == pytest.approx(expected, abs=2e-4) and greedy == best
    assert [greedy for _, greedy in found][-1] and not all(greedy for _, greedy in found)


def test_a_long_context_loses_its_end_instead_of_its_beginning(models):
    model, params = models["gpt2"]
    context = list(range(1, 60))
    found = likelihood.log_likelihoods(model, params, [(context, [7, 8])])[0]
    assert found[0] == pytest.approx(
        brute_force(model, params, context[-(LENGTH - 1) :], [7, 8])[0], abs=2e-4
    )
    with pytest.raises(
        ValueError, match="pair 0: a continuation of 25 tokens is longer than the 24"
    ):
        likelihood.log_likelihoods(model, params, [([1], [2] * 25)])
    with pytest.raises(ValueError, match="pair 0: the context has no tokens"):
        likelihood.log_likelihoods(model, params, [([], [2])])


def test_windows_predict_a_token_twice_or_not_at_all():
    for size in (1, 3, 4, 5, 8, 10, 11):
        tokens = list(range(size))
        pieces = list(likelihood.windows(tokens, 99, 4))
        assert [token for _, continuation in pieces for token in continuation] == tokens
        assert all(
            len(context) >= 1 and len(context) + len(continuation) <= 5
            for context, continuation in pieces
        )
        assert pieces[0][0] == [99]
        for context, continuation in pieces[1:]:
            assert context == tokens[continuation[0] - len(context) : continuation[0]]
    assert list(likelihood.windows(list(range(10)), 99, 4)) == [
        ([99], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_harness_asks_for_other_tokens(models, name):
    model, params = models[name]
    harness = Harness(model, params, TOKENIZER, batch_size=4)
    encode = lambda text: TOKENIZER.encode(text, add_special_tokens=False)
    asked = [("ab", " cd"), ("ab ", "cd"), ("", "cd"), ("a  ", "b")]
    # Spaces at the end of a context move to the continuation.
    pairs = [
        ("ab", " cd"),
        ("ab", " cd"),
        (None, "cd"),
        ("a", "  b"),
    ]
    found = harness.loglikelihood([Request(pair) for pair in asked], disable_tqdm=True)
    for (value, greedy), (context, continuation) in zip(found, pairs, strict=True):
        ids = [TOKENIZER.bos_token_id] if context is None else encode(context)
        assert (value, greedy) == pytest.approx(
            brute_force(model, params, ids, encode(continuation)), abs=2e-4
        )
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_texts_likelihood_is_not_the_sum_of_its_pieces(models, name):
    model, params = models[name]
    harness = Harness(model, params, TOKENIZER)
    short, long = "a short text", "a text that is longer than the model can read, by far: so"
    whole = harness.loglikelihood([Request(("", short))], disable_tqdm=True)[0][0]
    rolled = harness.loglikelihood_rolling([Request((short,)), Request((long,))], disable_tqdm=True)
    assert rolled[0] == pytest.approx(whole, abs=2e-4)
    ids = TOKENIZER.encode(long, add_special_tokens=False)
    assert len(ids) == 57
    pieces = [([0], ids[:24]), ([ids[23]], ids[24:48]), (ids[32:48], ids[48:])]
    assert rolled[1] == pytest.approx(
        sum(brute_force(model, params, *piece)[0] for piece in pieces), abs=1e-3
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_does_not_stop_where_the_task_says(models, name):
    model, params = models[name]
    harness = Harness(model, params, TOKENIZER, max_gen_toks=6)
    free, cut = harness.generate_until(
        [Request(("ab", {})), Request(("ab", {"until": [], "max_gen_toks": 3}))], disable_tqdm=True
    )
    start = [] if model.config.encoder_layers else TOKENIZER.encode("ab")
    expected = lm.generate(model, params, [start or TOKENIZER.encode("ab")], 6, stop_tokens=[0])[0]
    assert free == TOKENIZER.decode(expected, clean_up_tokenization_spaces=False)
    assert cut == TOKENIZER.decode(expected[:3], clean_up_tokenization_spaces=False)
    stop = free[1:2]
    (stopped,) = harness.generate_until(
        [Request(("ab", {"until": [stop, ""], "do_sample": False, "temperature": 0.7}))],
        disable_tqdm=True,
    )
    assert stopped == free.split(stop)[0]
    with pytest.raises(ValueError, match="'num_beams' are not supported"):
        harness.generate_until([Request(("ab", {"num_beams": 3}))])


def test_a_context_gets_two_start_tokens(models):
    import transformers

    class Starts(transformers.PreTrainedTokenizerFast):
        def encode(self, text, add_special_tokens=True, **options):
            ids = super().encode(text, add_special_tokens=False, **options)
            return [self.bos_token_id, *ids] if add_special_tokens else ids

    tokenizer = Starts(
        tokenizer_object=TOKENIZER.backend_tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    model, params = models["gpt2"]
    assert Harness(model, params, tokenizer).tok_encode("a") == [0, *TOKENIZER.encode("a")]
    assert Harness(model, params, tokenizer).tok_encode("<|endoftext|>a") == [
        0,
        *TOKENIZER.encode("a"),
    ]
    assert Harness(model, params, tokenizer, add_bos_token=False).tok_encode(
        "a"
    ) == TOKENIZER.encode("a")
    assert Harness(model, params, TOKENIZER, add_bos_token=True).tok_encode("a") == [
        0,
        *TOKENIZER.encode("a"),
    ]
    text = Request(("abc",))
    assert Harness(model, params, tokenizer).loglikelihood_rolling([text]) == Harness(
        model, params, TOKENIZER
    ).loglikelihood_rolling([text])


def test_a_model_that_cannot_be_asked_is_scored_all_the_same():
    model, params = make("bert")
    with pytest.raises(lm.ConfigError, match="head='masked_lm' cannot be asked what follows"):
        Harness(model, params, TOKENIZER)


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed"
)
@pytest.mark.parametrize("name", FAMILIES)
def test_lm_eval_gets_other_numbers_from_the_adapter(models, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lm_eval = importlib.import_module("lm_eval")
    model, params = models[name]
    rows: list[dict[str, Any]] = [
        {
            "q": f"{n} is",
            "choices": [" odd", " even"],
            "label": n % 2,
            "text": f"{n} is not {n + 1}, nor is it any other",
        }
        for n in range(6)
    ]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
    }
    tasks = [
        common
        | {
            "task": "choice",
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
        },
        common
        | {
            "task": "rolling",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        common
        | {
            "task": "answer",
            "output_type": "generate_until",
            "doc_to_text": "{{q}}",
            "doc_to_target": "x",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    ]
    harness = adapter(model, params, TOKENIZER)
    results = lm_eval.simple_evaluate(
        model=harness, tasks=tasks, log_samples=True, bootstrap_iters=0
    )["results"]
    pick = [
        int(
            np.argmax(
                [
                    harness.loglikelihood([Request((row["q"], choice))], disable_tqdm=True)[0][0]
                    for choice in row["choices"]
                ]
            )
        )
        for row in rows
    ]
    assert results["choice"]["acc,none"] == pytest.approx(
        np.mean([found == row["label"] for found, row in zip(pick, rows, strict=True)])
    )
    nats = -sum(
        harness.loglikelihood_rolling([Request((row["text"],)) for row in rows], disable_tqdm=True)
    )
    size = sum(len(row["text"].encode()) for row in rows)
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(
        nats / size / np.log(2), rel=1e-5
    )
    assert results["answer"]["exact_match,none"] == 0.0
    windows = importlib.import_module("lm_eval.utils")
    ids = list(range(57))
    theirs = [
        windows.make_disjoint_window(pair)
        for pair in windows.get_rolling_token_windows(ids, 99, 24, 1)
    ]
    assert list(likelihood.windows(ids, 99, 24)) == [(list(a), list(b)) for a, b in theirs]
