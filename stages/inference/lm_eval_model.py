"""A state's full chain as a model of lm-evaluation-harness.  Imported only where the extra `[eval]` is installed.

What the harness asks goes to `FullChain` unchanged: likelihoods in one pass over the layers, texts in a pass a token.
Tokens, windows and stops are those of the harness' own Hugging Face backend (`HFLM`): `just lm-eval` compares.
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

MOST_TOKENS = 256  # of an answer, where a task does not say: HFLM's


class StreamedLM(TemplateLM):  # type: ignore[misc]
    """Answers the harness' requests; `special_tokens`: the tokenizer's own begin a prompt, as they do by default."""

    def __init__(self, chain: FullChain, *, special_tokens: bool = True) -> None:
        super().__init__()
        self.chain = chain
        self.special_tokens = special_tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; the padding token where the model names none."""
        return min(self.chain.stop_ids, default=self.chain.encoder.pad_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the token that begins texts, else the one that ends them."""
        begin = getattr(self.chain.backbone.skeleton.config, "bos_token_id", None)
        return begin if isinstance(begin, int) else self.eot_token_id

    @property
    def max_length(self) -> int:
        """The model's window."""
        return self.chain.window

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; special tokens as asked, else as the model was made, but not twice."""
        special = self.special_tokens if add_special_tokens is None else add_special_tokens
        begin = self._special_text(self.prefix_token_id)
        twice = add_special_tokens is None and bool(begin) and string.startswith(begin)
        if not string:
            return []
        ids: list[int] = self.chain.encoder.prompt(string, special=special and not twice).tolist()
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Likelihood]:
        """Of (texts, context, continuation), in order."""
        found = self.chain.likelihoods([(context, continuation) for _, context, continuation in requests])
        for request, answer in zip(requests, found, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Log-probability of whole texts, each window with as much context as fits; all windows in one pass."""
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
        """Greedy texts up to their stops; requests with the same settings are written together."""
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
                "a task asks for texts that are drawn; here they are greedy",
                values={"do_sample": True, "expected": False},
                hint="set do_sample: false in generation_kwargs of the task",
            )
        stop = handle_stop_sequences(wanted.get("until"), eos=self._special_text(self.eot_token_id) or None)
        ids = [self.tok_encode(prompt) or [self.prefix_token_id] for prompt in prompts]
        texts = self.chain.write(ids, most_tokens=wanted["max_gen_toks"], stop=stop)
        return [self._cut(text, stop) for text in texts]

    @staticmethod
    def _cut(text: str, stop: Sequence[str]) -> str:
        """As HFLM cuts: by one mark after the other."""
        for mark in filter(None, stop):
            text = text.split(mark)[0]
        return text

    def _special_text(self, token: int) -> str:
        text: str = self.chain.encoder.tokenizer.decode([token], skip_special_tokens=False)
        return text
