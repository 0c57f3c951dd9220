"""Real weights against transformers on torch, from the quickstart's samples.

Skipped when a sample is neither cached nor downloadable.
"""

import numpy as np
import pytest

import lm
from lm.batch import Batch
from lm.data import samples
from lm.data.read.sources import DataError
from lm.generation.engine import Engine
from lm.generation.requests import Request


def sample(name: str):
    try:
        return samples.fetch(name)
    except DataError as error:
        if not str(error).startswith("could not download"):
            raise  # a wrong checksum must fail
        pytest.skip(str(error).splitlines()[0])


def smollm2():
    """(torch, transformers, the GGUF file, the model that transformers reads from it)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    gguf = sample("smollm2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()
    return torch, transformers, gguf, theirs


def test_smollm2_continues_greedily_with_the_same_64_tokens_as_transformers():
    torch, transformers, gguf, theirs = smollm2()
    tokenizer, original = (
        lm.load_tokenizer(gguf),
        transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name),
    )
    text = (
        "In 1998, the 3 largest cities of Lithuania were Vilnius, Kaunas and Klaipėda; 東京 is\n\n"
        "  not<|im_end|> one of them."
    )
    assert tokenizer.encode(text) == original.encode(text)

    prompt = tokenizer.encode("The history of printing begins")
    model, params = lm.from_hf(gguf)
    [answer] = lm.generate(model, params, [prompt], 64, stop_tokens=())
    with torch.no_grad():  # the token that is most likely after every prefix
        likeliest = theirs(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    assert len(answer) == 64 and answer == likeliest.argmax(-1).tolist()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True
    )["input_ids"]
    logits = np.asarray(lm.forward(model, params, Batch.of([ids])).logits[0])
    with torch.no_grad():
        reference = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits, reference, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_smollm2_s_log_probabilities_in_padded_slots_equal_torchs():
    torch, _, gguf, theirs = smollm2()
    tokenizer, (model, params) = lm.load_tokenizer(gguf), lm.from_hf(gguf)
    texts = ("The history of printing begins", "A", "Gallium melts in the hand, since its", "One")
    prompts = [tokenizer.encode(text) for text in texts]
    requests = [Request(p, n) for p, n in zip(prompts, (16, 40, 9, 30), strict=True)]
    for sampler in (lm.Greedy(), lm.Sample(1.0)):
        engine = Engine(model, rows=2, length=64, sampler=sampler, stop_tokens=[])
        for one in engine.run(params, requests):
            prompt = prompts[one.number]
            whole = torch.tensor([prompt + one.tokens])
            with torch.no_grad():
                logits = theirs(whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            expected = logits.gather(1, whole[0, len(prompt) :, None])[:, 0].numpy()
            np.testing.assert_allclose(one.log_probs, expected, atol=1e-4, rtol=0)
            if sampler == lm.Greedy():
                assert one.tokens == logits.argmax(-1).tolist()


def test_minilm_sentence_vectors_equal_torchs():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    minilm = sample("minilm")
    texts = [
        "Vilnius is the capital of Lithuania.",
        "short",
        "A sentence of a different length, about the boiling point of gallium.",
    ]
    inputs = lm.load_tokenizer(minilm)(texts, padding=True, return_tensors="np")
    mask = inputs["attention_mask"]
    out = lm.forward(*lm.from_hf(minilm), Batch.of(inputs["input_ids"], segments=mask))
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(minilm)(
            **{k: torch.tensor(v) for k, v in inputs.items()}
        ).last_hidden_state.numpy()

    def sentence(hidden):
        mean = (np.asarray(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    np.testing.assert_allclose(sentence(out.hidden), sentence(theirs), atol=1e-4, rtol=0)
