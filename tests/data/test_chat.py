"""Published chat templates render as transformers renders them, and exactly the responses are in the loss."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig
from transformers.utils import chat_template_utils

from schemas.errors import BadInput
from schemas.settings import EncodingSettings, PromptSettings
from stages.data.chat import _compiled
from stages.data.encode import Encoder
from stages.data.load import Example, load_examples
from tests.fleet.chat_templates import (
    CHATML,
    GEMMA,
    PUBLISHED,
    SEPARATED,
    TOKENS,
)

SECRET = "Patient-Nr-4711"
CHAT = PromptSettings(format="chat", date="2025-03-09")
ALPACA_FORCED = PromptSettings(format="chat", template="alpaca")
NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}
SYSTEM, FIRST, MORE = ("system", "Be brief ä."), ("user", "How <deep> is it?"), ("user", " And 'now'? ")
ANSWER, SECOND = ("assistant", "Nine fathoms, <b>captain</b>."), ("assistant", 'Ten.\nAnd "falling" ')
THOUGHT = ("assistant", "<think>\nThe keel is wet.\n</think>\n\nNine fathoms.")
DIALOGUES = {
    "one": (FIRST, ANSWER),
    "two": (FIRST, ANSWER, MORE, SECOND),
    "system": (SYSTEM, FIRST, ANSWER, MORE, SECOND),
    "greeting": (ANSWER, MORE, SECOND),
    "thoughts": (FIRST, THOUGHT, MORE, THOUGHT),
}
REFUSED = {("gemma", "system"), ("gemma", "greeting"), ("mistral", "greeting")}  # by the templates themselves
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "qwen3": "<|im_end|>",
    "deepseek-r1": "<｜end▁of▁sentence｜>",
    "phi": "<|end|>",
    "marked": "<|im_end|>",
    "separated": "[SEP]",
}


def save(folder: Path, template: str, names: dict[str, str] = NAMES) -> Path:
    """A folder with a real tokenizer and configuration, as transformers loads it."""
    folder.mkdir(exist_ok=True)
    LlamaConfig(bos_token_id=0, eos_token_id=1).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the depth of the water is nine fathoms below the keel"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return folder


def example(*turns: tuple[str, str], where: str = "") -> Example:
    return Example("", None, turns, where)


def encoder(folder: Path, prompt: PromptSettings = CHAT) -> Encoder:
    return Encoder.load(folder, EncodingSettings(max_length=512), prompt)


def messages(turns: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(root / name, source) for name, source in PUBLISHED.items()}


@pytest.fixture(autouse=True)
def _the_plans_date_in_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, *_: object, **__: object) -> "Clock":
            return cls(2025, 3, 9)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("dialogue", sorted(DIALOGUES))
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_templates_render_as_in_transformers(name: str, dialogue: str, folders: dict[str, Path]) -> None:
    turns = DIALOGUES[dialogue]
    theirs = AutoTokenizer.from_pretrained(folders[name])
    ours = encoder(folders[name])
    if (name, dialogue) in REFUSED:
        with pytest.raises(TemplateError) as refused:
            theirs.apply_chat_template(messages(turns), tokenize=False)
        with pytest.raises(BadInput, match=str(refused.value)):
            ours.template.text(example(*turns))
        return
    assert ours.template.text(example(*turns)) == theirs.apply_chat_template(messages(turns), tokenize=False)
    asked = theirs.apply_chat_template(messages(turns[:-1]), tokenize=False, add_generation_prompt=True)
    assert ours.template.prompt(example(*turns)) == asked
    (found,) = encoder(folders[name], CHAT.model_copy(update={"learn": "all"})).encode_examples([example(*turns)])
    assert found.ids.tolist() == theirs.apply_chat_template(messages(turns), tokenize=True, return_dict=False)
    assert found.in_loss.all()


@pytest.mark.parametrize("dialogue", sorted(DIALOGUES))
@pytest.mark.parametrize("name", sorted(ENDS))
def test_exactly_the_responses_and_their_ends_are_in_the_loss(
    name: str, dialogue: str, folders: dict[str, Path]
) -> None:
    if (name, dialogue) in REFUSED:
        return
    turns, ours = DIALOGUES[dialogue], encoder(folders[name])
    (found,) = ours.encode_examples([example(*turns)])
    learned = ours.tokenizer.decode(found.ids[found.in_loss].tolist(), skip_special_tokens=False)
    expected = []
    for index, (role, content) in enumerate(turns):
        if role != "assistant":
            continue
        thoughts, _, answer = content.rpartition("</think>")
        if name == "qwen3" and index == len(turns) - 1:
            thoughts = thoughts.removeprefix("<think>").strip("\n")
            content = f"<think>\n{thoughts}\n</think>\n\n" + answer.lstrip("\n")
        elif name == "qwen3":
            content = answer.lstrip("\n")
        elif name == "deepseek-r1":
            content = answer
        elif name in ("gemma", "llama3"):
            content = content.strip()
        end = ENDS[name] + ("\n</s>" if name == "phi" and index == len(turns) - 1 else "")
        expected.append((" " if name == "mistral" else "") + content + end)
    assert learned == "".join(expected)


def test_marks_of_the_template_are_the_mask_of_transformers(folders: dict[str, Path]) -> None:
    turns = DIALOGUES["system"]
    theirs = AutoTokenizer.from_pretrained(folders["marked"]).apply_chat_template(
        messages(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (found,) = encoder(folders["marked"]).encode_examples([example(*turns)])
    assert found.ids.tolist() == theirs["input_ids"]
    assert found.in_loss.astype(int).tolist() == theirs["assistant_masks"]


def test_the_environment_has_all_that_transformers_gives() -> None:
    theirs, ours = chat_template_utils._compile_jinja_template("").environment, _compiled("").environment
    assert set(ours.filters) == set(theirs.filters)
    assert set(ours.tests) == set(theirs.tests)
    assert {*ours.globals, "strftime_now"} == set(theirs.globals)
    assert {tag for one in ours.extensions.values() for tag in one.tags} == {
        tag for one in theirs.extensions.values() for tag in one.tags
    }


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ strftime_now.__self__.__class__.__subclasses__() }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"leave its sandbox|not given"):
        encoder(save(tmp_path, source)).template.text(example(FIRST, ANSWER))


def test_the_clock_stands_on_the_plans_date(tmp_path: Path) -> None:
    folder = save(tmp_path, "{{ strftime_now('%A %d %B %Y %H:%M') }}" + CHATML)
    texts = {
        date: encoder(folder, CHAT.model_copy(update={"date": date})).template.text(example(FIRST, ANSWER))
        for date in ("2025-03-09", "2024-07-26")
    }
    assert texts["2025-03-09"].startswith("Sunday 09 March 2025 00:00")
    assert texts["2024-07-26"].startswith("Friday 26 July 2024 00:00")


# Errors: each names its own cause and its place, holds no text of the dialogue, and its hint is a way out.

ALL = CHAT.model_copy(update={"learn": "all"})
FORGETFUL = (  # only the last answer is shown
    "{% for m in messages %}{{ m['role'] + ': ' + (m['content'] if loop.last or m['role'] == 'user' else '…') + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
MUTE = "{% for m in messages %}{{ m['role'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
SECRETS = (("user", SECRET), ("assistant", SECRET))
FAULTS: dict[str, tuple[str, tuple[tuple[str, str], ...], str, str]] = {
    "system": (GEMMA, (SYSTEM, *SECRETS), "System role not supported", "head of the first question"),
    "order": (GEMMA, (*SECRETS, SECRETS[1]), "Conversation roles must alternate", "take turns"),
    "begins with an answer": (GEMMA, SECRETS[::-1], "Conversation roles must alternate", "take turns"),
    "refused": ("{{ raise_exception('I want  none\nof\x1b this') }}", SECRETS, "I want none of this", "alpaca"),
    "says a text": ("{{ raise_exception('no ' + messages[0].content) }}", SECRETS, "depends on the dialogue", "alpaca"),
    "token": (SEPARATED, SECRETS, "'sep_token' is undefined", 'add "sep_token"'),
    "key": ("{{ messages[0].name.first }}", SECRETS, "has no attribute 'name'", "alpaca"),
    "key by text": ("{{ messages[0][messages[0].content].x }}", SECRETS, "depends on the dialogue", "alpaca"),
    "type": ("{{ messages[0].content + 3 }}", SECRETS, "TypeError: can only concatenate str", "alpaca"),
    "zero": ("{{ 1 / (messages | length - 2) }}", SECRETS, "ZeroDivisionError", "alpaca"),
    "sandbox": ("{{ messages.__class__.__mro__[1] }}", SECRETS, "leave its sandbox", "alpaca"),
    "forgets": (FORGETFUL, (*SECRETS, *SECRETS), "does not show an answer", 'prompt.learn = "all"'),
    "mute": (MUTE, SECRETS, "does not show an answer", "alpaca"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_an_error_of_a_template_names_its_cause_and_its_place(fault: str, tmp_path: Path) -> None:
    source, turns, says, hint = FAULTS[fault]
    names = {name: token for name, token in NAMES.items() if name != "sep_token"}
    ours = encoder(save(tmp_path, source, names))
    with pytest.raises(BadInput) as caught:
        ours.encode_examples([example(*turns, where="d.jsonl, line 2")])
    said = str(caught.value)
    assert caught.value.fact.startswith("d.jsonl, line 2: ")
    assert says in said
    assert hint in caught.value.hint
    assert SECRET not in said
    assert "\x1b" not in said
    assert len(said) < 800


def test_one_bad_dialogue_among_many_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    dialogues = [DIALOGUES["one"]] * 20 + [(SYSTEM, *SECRETS)] + [DIALOGUES["two"]] * 20
    path.write_text("".join(json.dumps({"messages": messages(turns)}) + "\n" for turns in dialogues))
    ours = encoder(save(tmp_path / "model", GEMMA)).remembering()
    examples = load_examples(path, label_column=None, prompt=CHAT)
    for _ in range(2):  # remembered or not
        with pytest.raises(BadInput) as caught:
            ours.encode_examples(examples)
        assert caught.value.fact == f"{path}, line 21: the chat template refuses this dialogue"
    with pytest.raises(BadInput, match="line 21"):
        ours.encode_prompts([examples[20]])
    assert len(ours.encode_examples(examples[:20] + examples[21:])) == 40


def as_hinted(fault: str, folder: Path) -> None:
    """Do what the hint of a fault says."""
    source, turns, _, hint = FAULTS[fault]
    save(folder, source)  # with a sep_token
    if "head of the first question" in hint:
        (_, system), (_, question), *rest = turns
        encoder(folder).encode_examples([example(("user", f"{system}\n\n{question}"), *rest)])
    elif "take turns" in hint:
        encoder(folder).encode_examples([example(*SECRETS, *SECRETS)])
    elif "sep_token" in hint:
        encoder(folder).encode_examples([example(*turns)])
    elif "learn" in hint:
        encoder(folder, ALL).encode_examples([example(*turns)])
        encoder(folder).encode_examples([example(*turns[:2])])
    else:
        encoder(folder, ALPACA_FORCED).encode_examples([example(*turns[:2])])


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_hint_of_an_error_is_a_way_out(fault: str, tmp_path: Path) -> None:
    as_hinted(fault, tmp_path)


def test_what_a_template_says_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        encoder(save(tmp_path, "{{ raise_exception('x' * 100000) }}")).encode_examples([example(*SECRETS * 500)])
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("source", "line"), [("a\n{% for m in messages %}", 2), ("{{ messages | nonsense }}", 1), ("{% if %}", 1)]
)
def test_a_truncated_template_is_refused_with_file_and_line(source: str, line: int, tmp_path: Path) -> None:
    folder = save(tmp_path, source)
    with pytest.raises(BadInput, match=r"chat_template\.jinja: the chat template is not valid Jinja") as caught:
        encoder(folder)
    assert caught.value.values["line"] == line
    assert 'prompt.template = "alpaca"' in caught.value.hint
    encoder(folder, ALPACA_FORCED).encode_examples([example(FIRST, ANSWER)])
    encoder(save(folder, CHATML)).encode_examples([example(FIRST, ANSWER)])


def test_alpacas_template_takes_one_question_as_its_hint_says(tmp_path: Path) -> None:
    turns = DIALOGUES["two"]
    folder = save(tmp_path, CHATML)
    with pytest.raises(BadInput, match="line 7: Alpaca's template needs exactly one question") as caught:
        encoder(folder, ALPACA_FORCED).encode_examples([example(*turns, where="d.jsonl, line 7")])
    assert "one question and one answer, or a model with a chat template" in caught.value.hint
    encoder(folder, ALPACA_FORCED).encode_examples([example(*turns[:2])])
    encoder(folder).encode_examples([example(*turns)])


def test_a_text_that_the_tokenizer_cannot_encode_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, CHATML)
    words = Tokenizer(models.WordLevel({"deep": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    texts = [Example("deep", None, where="d.jsonl, line 1"), Example(SECRET, None, where="d.jsonl, line 2")]
    with pytest.raises(BadInput, match="line 2: the tokenizer cannot encode this text") as caught:
        Encoder.load(folder, EncodingSettings()).encode_examples(texts)
    assert SECRET not in str(caught.value)
    assert len(Encoder.load(folder, EncodingSettings()).encode_examples(texts[:1])) == 1
