"""A state's full chain as a model of lm-evaluation-harness.  Imported only if the extra `[eval]` is installed.

Requests go to `FullChain` unchanged: likelihoods in one pass over the layers, text in one pass per token.  Tokens,
windows and stops match the harness' own Hugging Face backend (`HFLM`): `just lm-eval` compares the two.
"""

import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from schemas.errors import BadInput
from stages.inference.full_chain import FullChain
from stages.inference.likelihood import Likelihood

MOST_TOKENS = 256  # per answer, if the task sets no limit: HFLM's default


class StreamedLM(TemplateLM):  # type: ignore[misc]
    """Answers the harness' requests.  `special_tokens`: whether prompts begin with the tokenizer's special tokens."""

    def __init__(self, chain: FullChain, *, special_tokens: bool = True) -> None:
        super().__init__()
        self.chain = chain
        self.special_tokens = special_tokens

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token; the padding token if the model names none."""
        return min(self.chain.stop_ids, default=self.chain.encoder.pad_id)

    @property
    def prefix_token_id(self) -> int:
        """The context of a text that has none: the beginning-of-text token, else the end-of-text token."""
        begin = getattr(self.chain.backbone.skeleton.config, "bos_token_id", None)
        return begin if isinstance(begin, int) else self.eot_token_id

    @property
    def max_length(self) -> int:
        """The model's context window, in tokens."""
        return self.chain.window

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids.  Special tokens as `add_special_tokens` says (None: as `self.special_tokens`), but never twice."""
        special = self.special_tokens if add_special_tokens is None else add_special_tokens
        begin = self._special_text(self.prefix_token_id)
        twice = add_special_tokens is None and bool(begin) and string.startswith(begin)
        if not string:
            return []
        ids: list[int] = self.chain.encoder.prompt(string, special=special and not twice).tolist()
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Likelihood]:
        """Likelihoods of (texts, context, continuation) requests, in order."""
        found = self.chain.likelihoods([(context, continuation) for _, context, continuation in requests])
        for request, answer in zip(requests, found, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Log-probability in nats of whole texts, each window with as much context as fits; all windows in one pass."""
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        found = iter(self._loglikelihood_tokens([(None, *window) for of_text in windows for window in of_text]))
        return [float(sum(next(found)[0] for _ in of_text)) for of_text in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Greedy text up to a stop string; requests with the same settings are generated together."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        written: dict[int, str] = {}
        for numbers in alike.values():
            settings = requests[numbers[0]].args[1]
            texts = self._write([requests[number].args[0] for number in numbers], settings)
            written |= zip(numbers, texts, strict=True)
            for number in numbers:
                self.cache_hook.add_partial("generate_until", requests[number].args, written[number])
        return [written[number] for number in range(len(requests))]

    def _write(self, prompts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        wanted = normalize_gen_kwargs(settings, MOST_TOKENS)
        if wanted.get("do_sample"):
            raise BadInput(
                "a task asks for sampled text; only greedy decoding is supported",
                values={"do_sample": True, "expected": False},
                hint="set do_sample: false in the task's generation_kwargs",
            )
        stop = handle_stop_sequences(wanted.get("until"), eos=self._special_text(self.eot_token_id) or None)
        ids = [self.tok_encode(prompt) or [self.prefix_token_id] for prompt in prompts]
        texts = self.chain.write(ids, most_tokens=wanted["max_gen_toks"], stop=stop)
        return [self._up_to(text, stop) for text in texts]

    @staticmethod
    def _up_to(text: str, stop: Sequence[str]) -> str:
        """The text before any of the stop strings, applied one after the other as in HFLM."""
        for mark in filter(None, stop):
            text = text.split(mark)[0]
        return text

    def _special_text(self, token: int) -> str:
        text: str = self.chain.encoder.tokenizer.decode([token], skip_special_tokens=False)
        return text
