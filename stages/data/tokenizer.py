"""A model folder's tokenizer: `tokenizer.json`, its special tokens by name, and the token that ends a text.

Special tokens are named as transformers reads them: by `tokenizer_config.json`, and by `special_tokens_map.json` where
that is older.  What they do not name comes from the model's own values, `generation_config.json` and `config.json`.  A
file that is there and cannot be read is refused: with a default in its place another text would be in the loss.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from stages.data.model_folder import check_model_folder, refuse_broken_links, refuse_pointer
from stages.process.confined import limited_memory
from stages.store.foreign import blamed_on, check_document, read_document

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
OLDER = "special_tokens_map.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Classes, by how their names begin, that have no start token but the one that their files name.
WITHOUT_START = ("PreTrainedTokenizer", "TokenizersBackend", "Qwen")
COPY_AGAIN = "get the model's files again: this one was truncated or altered on its way"


@dataclass(frozen=True)
class ModelTokenizer:
    """`tokenizer`, and what the JSON files beside it say; empty where there is no such file."""

    model_dir: Path
    tokenizer: Any
    config: Mapping[str, Any]
    older: Mapping[str, Any]
    model: Mapping[str, Any]
    generation: Mapping[str, Any]

    @classmethod
    def load(cls, model_dir: Path) -> "ModelTokenizer":
        """Read them all.  Raises `BadInput` where there is no tokenizer, or a file cannot be read."""
        if (model_dir / "config.json").exists():
            check_model_folder(model_dir)
        files = (CONFIG, OLDER, "config.json", "generation_config.json")
        loaded = cls(model_dir, _read_tokenizer(model_dir), *(read_object(model_dir / name) for name in files))
        known = loaded.tokenizer.get_added_tokens_decoder().values()
        # As in transformers: each is one token wherever a text holds it, also where tokenizer.json lists it as a word.
        added = loaded.in_vocabulary - {token.content for token in known}
        loaded.tokenizer.add_special_tokens(sorted(added))
        return loaded

    @cached_property
    def special_tokens(self) -> dict[str, str | list[str]]:
        """What a chat template may use, by name; `additional_special_tokens` is a list.  Raises `BadInput`."""
        found = {name: self._named(name) for name in NAMED}
        found["bos_token"] = found["bos_token"] or self._model_start
        found["eos_token"] = found["eos_token"] or self.end or ""
        found |= {name: special_token(value) for name, value in self.config.items() if _is_own(name)}
        extra = self._setting("extra_special_tokens") or self._setting("additional_special_tokens")
        if isinstance(extra, dict):
            found |= {str(name): special_token(value) for name, value in extra.items()}
        named: dict[str, str | list[str]] = {name: token for name, token in found.items() if token}
        listed = [special_token(value) for value in extra] if isinstance(extra, list) else []
        return {**named, **({"additional_special_tokens": listed} if listed else {})}

    @property
    def _model_start(self) -> str:
        """The model's first token where the tokenizer's class has one that its files need not name."""
        of_class = str(self.config.get("tokenizer_class") or self.model.get("model_type")).lower()
        if "bos_token" in self.config or of_class.startswith(tuple(map(str.lower, WITHOUT_START))):
            return ""
        return next(self._model_tokens("bos_token_id"), "")

    @cached_property
    def end(self) -> str | None:
        """The token that ends a text: the tokenizer's where the vocabulary has it, else the model's first.

        Raises `BadInput` where what names it is not a token.
        """
        named = self._named("eos_token")
        if named and self.tokenizer.token_to_id(named) is not None:
            return named
        return next(self._model_tokens("eos_token_id"), None)

    @property
    def end_ids(self) -> frozenset[int]:
        """Where generated text ends: at the tokenizer's end of a text, and at all that the model's files name."""
        tokens = {*self._model_tokens("eos_token_id"), *([self.end] if self.end is not None else [])}
        return frozenset(int(self.tokenizer.token_to_id(token)) for token in tokens)

    @property
    def in_vocabulary(self) -> set[str]:
        """The special tokens that the vocabulary has."""
        tokens: set[str] = set()
        for token in self.special_tokens.values():
            tokens |= {token} if isinstance(token, str) else set(token)
        return {token for token in tokens if token and self.tokenizer.token_to_id(token) is not None}

    @property
    def pad_id(self) -> int:
        """The model's padding token, else the tokenizer's, else the end-of-text token, as is common for decoders."""
        own = self.model.get("pad_token_id")
        if isinstance(own, int) and own >= 0:  # the first LLaMA says -1 for none
            return int(own)
        token = self._named("pad_token")
        if token and self.tokenizer.token_to_id(token) is not None:
            return int(self.tokenizer.token_to_id(token))
        return next((token for token in self._model_values("eos_token_id") if isinstance(token, int)), 0)

    def _setting(self, name: str) -> object:
        """As in transformers: the older file counts where the newer one does not list the added tokens itself."""
        older = {} if "added_tokens_decoder" in self.config else self.older
        return older.get(name, self.config.get(name))

    def _named(self, name: str) -> str:
        value = self._setting(name)
        token = special_token(value)
        if value is not None and not token:
            file = CONFIG if value == self.config.get(name) else OLDER
            raise BadInput(
                f"{self.model_dir / file}: {name} is not a token",
                values={"expected": 'a text, or an object with "content"', "found": type(value).__name__},
                hint=COPY_AGAIN,
            )
        return token

    def _model_values(self, name: str) -> Iterator[object]:
        """What the model's files say under a name, one after the other; several values may be a list."""
        inner = self.model.get("text_config")
        for file, document in (
            ("generation_config.json", self.generation),
            ("config.json", self.model),
            ("config.json", inner if isinstance(inner, dict) else {}),
        ):
            yield from _values(self.model_dir / file, name, document.get(name))

    def _model_tokens(self, name: str) -> Iterator[str]:
        """The tokens among them, of those that the vocabulary has."""
        for value in self._model_values(name):
            token = self.tokenizer.id_to_token(value) if isinstance(value, int) else special_token(value)
            if token and self.tokenizer.token_to_id(token) is not None:
                yield token


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises `BadInput` where it cannot be read, also for halves of surrogate pairs, which no UTF-8 text can hold.
    """
    if not path.exists():
        return {}
    data = read_document(path)
    try:
        with limited_memory():
            document = json.loads(data)
            json.dumps(document, ensure_ascii=False).encode()
        found = type(document).__name__
    except (ValueError, RecursionError, MemoryError):
        document, found = None, f"{len(data)} bytes that are not JSON"
    if not isinstance(document, dict):
        refuse_pointer(path)
        raise BadInput(f"{path} cannot be read", values={"expected": "a JSON object", "found": found}, hint=COPY_AGAIN)
    return document


def special_token(named: object) -> str:
    """A special token as transformers writes it: a string, or an object with its `content`; empty for all else."""
    content = named.get("content") if isinstance(named, dict) else named
    return content if isinstance(content, str) else ""


def _read_tokenizer(model_dir: Path) -> Any:
    from tokenizers import Tokenizer

    path = model_dir / TOKENIZER
    if not path.exists():
        check_model_folder(model_dir)
        refuse_broken_links(model_dir)
        raise BadInput(
            f"{model_dir} has no tokenizer.json",
            values={"expected": "a fast tokenizer"},
            hint="save it once with AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        )
    check_document(path)
    refuse_pointer(path)
    with blamed_on(path, "cannot be read", hint=COPY_AGAIN):
        return Tokenizer.from_file(str(path))


def _is_own(setting: str) -> bool:
    """Whether it names a token that only this model has, such as `image_token`."""
    return setting.endswith("_token") and setting not in NAMED


def _values(path: Path, name: str, value: object) -> Iterator[object]:
    """Token ids, or tokens by their text; one, several or none.  Raises `BadInput`."""
    several = value if isinstance(value, list) else [value]
    for one in several if value is not None else ():
        token_id = isinstance(one, int) and not isinstance(one, bool) and one >= 0
        if not token_id and not special_token(one):
            raise BadInput(
                f"{path}: {name} is not a token",
                values={"expected": "a token id, a token or a list of them", "found": type(one).__name__},
                hint=COPY_AGAIN,
            )
        yield one
