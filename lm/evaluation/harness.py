"""Adapter for lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    import lm_eval
    from lm.evaluation.harness import adapter
    lm_eval.simple_evaluate(
        model=adapter(model, params, tokenizer), tasks=["lambada_openai", "hellaswag"]
    )

It serves every generative family. The three methods that tasks call are implemented here; lm_eval
itself (pip install lm_eval) is only needed for its tasks.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from lm.data.encode.encoding import affixes
from lm.data.templates.jinja import rendered
from lm.evaluation import likelihood
from lm.evaluation.progress import bar
from lm.generation import Greedy, Sample, generate_text
from lm.models import LanguageModel
from lm.models.config import ConfigError
from lm.weights.errors import WeightsError

# names of the budget in tasks; the first one present is used
BUDGET_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def adapter(model: LanguageModel, params: dict, tokenizer, **options) -> "Harness":
    """Build a `Harness` that lm_eval accepts as a model.

    Raises ValueError if lm_eval is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").TemplateLM
    except ImportError as error:
        raise ValueError("lm-evaluation-harness is not installed: pip install lm_eval") from error
    return type("Openbook", (Harness, base), {})(model, params, tokenizer, **options)


class Harness:
    """The model interface of lm-evaluation-harness. A request is any object with `args`.

    * batch_size: number of requests run together.
    * max_gen_toks: number of new tokens if a task gives none.
    * add_bos_token: whether contexts begin with the tokenizer's start token; None = as the
      tokenizer does by default. The first token of a text is always predicted after one start
      token.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: dict,
        tokenizer,
        *,
        batch_size: int = 16,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
    ):
        super().__init__()
        c = model.config
        if c.head not in ("causal_lm", "seq2seq_lm"):
            raise ConfigError(
                f"a {c.family} model with head={c.head!r} cannot be asked what follows: "
                "expected causal_lm or seq2seq_lm"
            )
        if tokenizer.eos_token_id is None:
            raise WeightsError(
                "the tokenizer has no end-of-text token (eos_token): set one and save it again"
            )
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.batch_size, self.max_gen_toks = batch_size, max_gen_toks
        own = affixes(tokenizer)[0]
        self._start = own if add_bos_token is None else [self.prefix_token_id] * add_bos_token
        self._encoder = bool(c.encoder_layers)

    backend = property(lambda self: "seq2seq" if self._encoder else "causal")
    max_length = property(lambda self: self.model.config.max_length)
    eot_token_id = property(lambda self: self.tokenizer.eos_token_id)
    tokenizer_name = property(lambda self: self.tokenizer.name_or_path.replace("/", "__"))

    @property
    def prefix_token_id(self) -> int:
        """Token before the first token of a text: the start token, else the end-of-text token."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Encode a text.

        With special tokens (None: for a context) it gets what the tokenizer adds, in a decoder the
        start token, once.
        """
        if self._encoder:
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)
        ids = self.tokenizer.encode(string, add_special_tokens=False)
        return (
            ids
            if add_special_tokens is False or ids[: len(self._start)] == self._start
            else self._start + ids
        )

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score requests with args (context, continuation).

        Returns the continuation's log-probability in nats, and whether greedy decoding gives it.
        """
        pairs = [self._pair(*request.args) for request in requests]
        return self._loglikelihood_tokens([("", *pair) for pair in pairs], disable_tqdm)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode context and continuation.

        Spaces at the end of the context go to the continuation, because tokenizers join them with
        it.
        """
        if context == "":
            ids = self.tok_encode(continuation, add_special_tokens=False)
            return (
                ([self.prefix_token_id], ids)
                if ids[:1] != [self.prefix_token_id]
                else (ids[:1], ids[1:])
            )
        end = len(context.rstrip())
        context, continuation = context[:end], context[end:] + continuation
        if self._encoder:
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        before = self.tok_encode(context)
        return before or [self.prefix_token_id], self.tok_encode(context + continuation)[
            len(before) :
        ]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        with bar(len(pairs), "log-likelihoods", disable_tqdm) as done:
            return likelihood.log_likelihoods(
                self.model,
                self.params,
                pairs,
                batch_size=self.batch_size,
                on_batch=done,
                tokenizer=self.tokenizer,
            )

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score requests with args (text,): the text's log-probability in nats.

        Each token is predicted once, the first after the start token.
        """
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        pieces = [
            (i, *pair)
            for i, ids in enumerate(texts)
            for pair in likelihood.windows(ids, self.prefix_token_id, self.max_length)
        ]
        totals = [0.0] * len(texts)
        for (i, *_), (value, _) in zip(
            pieces, self._loglikelihood_tokens(pieces, disable_tqdm), strict=True
        ):
            totals[i] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer requests with args (context, {"until": [...], "max_gen_toks": n, ...}).

        Returns the text before the first of `until`. A context that leaves no room loses its
        beginning. Raises ValueError for an unknown generation option.
        """
        answers = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._options(dict(request.args[1])), []).append(i)
        with bar(len(requests), "answers", disable_tqdm) as done:
            for (budget, until, sampler), members in groups.items():
                room = self.max_length if self._encoder else self.max_length - budget
                if room < 1:
                    raise ValueError(
                        f"max_gen_toks={budget} leaves no context in the model's {self.max_length} "
                        "tokens: lower it"
                    )
                prompts = [
                    self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id]
                    for i in members
                ]
                found = generate_text(
                    self.model,
                    self.params,
                    self.tokenizer,
                    prompts,
                    budget,
                    sampler,
                    stop_strings=until,
                    stop_tokens=self._stop_tokens(),
                    batch_size=self.batch_size,
                    on_batch=done,
                )
                for i, text in zip(members, found, strict=True):
                    answers[i] = text
        return answers

    def _stop_tokens(self) -> list[int]:
        return sorted({*self.model.config.eos_token_ids, self.eot_token_id})

    def _options(self, given: dict[str, Any]) -> tuple[int, tuple[str, ...], Greedy | Sample]:
        """Read (new tokens, stop strings, sampler) from a task's generation_kwargs."""
        budgets = [given.pop(name) for name in BUDGET_NAMES if name in given]
        until = given.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(text for text in until if text)
        sampled = given.pop("do_sample", None)
        temperature = float(given.pop("temperature", 0.0))
        given = {name: value for name, value in given.items() if value is not None}
        options = {
            name: given.pop(name)
            for name in ("top_k", "top_p", "min_p", "repetition_penalty")
            if name in given
        }
        if given:
            raise ValueError(
                f"generation_kwargs {', '.join(map(repr, given))} are not supported: "
                "take them out of the task"
            )
        sample = temperature > 0 if sampled is None else sampled and temperature > 0
        sampler = (
            Sample(temperature, **options)
            if sample
            else Greedy(options.get("repetition_penalty", 1.0))
        )
        return int(budgets[0]) if budgets else self.max_gen_toks, until, sampler

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's chat template, for lm_eval's record of a run.

        Raises ValueError if there is none.
        """
        if not chat_template:
            return None
        if not self.tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: leave out apply_chat_template")
        return self.tokenizer.get_chat_template()

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Format a conversation with the model's chat template."""
        return rendered(
            self.tokenizer,
            chat_history,
            prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
