"""Dialogues become the text that transformers makes of them, and exactly the responses are in the loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from schemas.errors import NotTrusted
from schemas.settings import EncodingSettings, PromptSettings
from stages.data.encode import Encoder
from stages.data.load import Example
from stages.data.template import AlpacaTemplate, ChatTemplate, Template, choose_template, question
from stages.data.tokenizer import ModelTokenizer
from tests.fleet.chat_templates import CHATML

SECRET = "Patient-Nr-4711"
CHAT = PromptSettings(format="chat")
ALPACA = PromptSettings(format="alpaca")
# As published with Zephyr and Llama 2 (shortened to their form).
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "zephyr": ZEPHYR, "llama2": LLAMA2}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
DIALOGUES = [
    Example("", None, (("user", "How deep is it?"), ("assistant", "Nine fathoms, captain."))),
    Example("", None, (("user", "ä 你好 🙂"), ("assistant", "one\ntwo"), ("user", "more?"), ("assistant", "three "))),
]


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), TEMPLATES[request.param])


def save(folder: Path, template: str | None, **config: Any) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the depth of the water is nine fathoms below the keel"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def theirs(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    path = folder / "chat_template.jinja"
    tokenizer.chat_template = path.read_text() if path.exists() else None
    return tokenizer


def choose(model_dir: Path, prompt: PromptSettings) -> tuple[Template, PromptSettings]:
    return choose_template(ModelTokenizer.load(model_dir), prompt)


def as_chat(example: Example) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in example.turns]


@pytest.mark.parametrize("example", DIALOGUES, ids=["short", "long"])
def test_a_dialogue_reads_as_transformers_renders_it(model_dir: Path, example: Example) -> None:
    template, _ = choose(model_dir, CHAT)
    expected = theirs(model_dir)
    assert template.render(example).text == expected.apply_chat_template(as_chat(example), tokenize=False)
    asked = as_chat(example)[:-1]
    assert template.prompt(example) == expected.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("example", DIALOGUES, ids=["short", "long"])
def test_token_ids_are_those_of_transformers(model_dir: Path, example: Example) -> None:
    encoder = Encoder.load(model_dir, EncodingSettings(max_length=512), CHAT)
    expected = theirs(model_dir).apply_chat_template(as_chat(example), tokenize=True, return_dict=False)
    (found,) = encoder.encode_examples([example])
    assert found.ids.tolist() == expected
    assert not found.truncated


@pytest.mark.parametrize("example", DIALOGUES, ids=["short", "long"])
def test_exactly_the_responses_and_what_ends_them_are_in_the_loss(model_dir: Path, example: Example) -> None:
    encoder = Encoder.load(model_dir, EncodingSettings(max_length=512), CHAT)
    (found,) = encoder.encode_examples([example])
    learned = encoder.tokenizer.decode(found.ids[found.in_loss].tolist(), skip_special_tokens=True)
    answers = [content for role, content in example.turns if role == "assistant"]
    assert "".join(learned.split()) == "".join("".join(answers).split())
    ends = found.ids[np.flatnonzero(found.in_loss)[-1]]
    assert encoder.tokenizer.id_to_token(int(ends)) in ("</s>", "<|im_end|>")
    (whole,) = Encoder.load(
        model_dir, EncodingSettings(max_length=512), PromptSettings(format="chat", learn="all")
    ).encode_examples([example])
    assert whole.in_loss.all()


def test_an_alpaca_record_reads_as_published(tmp_path: Path) -> None:
    encoder = Encoder.load(save(tmp_path, None), EncodingSettings(max_length=512), ALPACA)
    assert encoder.prompt.template == "alpaca"
    example = Example("", None, (("instruction", "Name it."), ("input", "A fish."), ("output", "Cod.")))
    text = encoder.template.render(example).text
    assert text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nName it.\n\n### Input:\nA fish."
        "\n\n### Response:\nCod.</s>"
    )
    (found,) = encoder.encode_examples([example])
    assert encoder.tokenizer.decode(found.ids[found.in_loss].tolist(), skip_special_tokens=False) == "Cod.</s>"
    without = encoder.template.render(Example("", None, (("instruction", "{input}"), ("input", " "), ("output", "x"))))
    assert "### Input" not in without.text
    assert "### Instruction:\n{input}\n" in without.text


def test_alpaca_records_go_through_a_chat_template_too(tmp_path: Path) -> None:
    template, _ = choose(save(tmp_path, CHATML), ALPACA)
    example = Example("", None, (("instruction", "Name it."), ("input", "A fish."), ("output", "Cod.")))
    same = Example("", None, (("user", "Name it.\n\nA fish."), ("assistant", "Cod.")))
    assert template.render(example) == template.render(same)
    assert template.prompt(question("Name it.\n\nA fish.")) == template.prompt(example)


def test_what_is_longer_is_truncated_and_counted(tmp_path: Path) -> None:
    encoder = Encoder.load(save(tmp_path, CHATML), EncodingSettings(max_length=60), CHAT)
    short = Example("", None, (("user", "a"), ("assistant", "b")))
    long_answer = Example("", None, (("user", "a"), ("assistant", "b" * 200)))
    long_question = Example("", None, (("user", "a" * 200), ("assistant", "b")))
    found = encoder.encode_examples([short, long_answer, long_question])
    assert [one.truncated for one in found] == [False, True, True]
    assert [len(one.ids) for one in found][1:] == [60, 60]
    assert found[1].in_loss.any()
    assert not found[2].in_loss.any()
    ((ids, truncated),) = encoder.encode_prompts([long_question])
    assert truncated
    assert encoder.tokenizer.decode(ids.tolist()).endswith("assistant\n")  # a prompt keeps its end


def test_a_plan_fixes_the_template(tmp_path: Path) -> None:
    model = save(tmp_path, CHATML)
    template, decided = choose(model, CHAT)
    assert isinstance(template, ChatTemplate)
    assert decided.template == template.digest
    assert choose(model, decided)[1] == decided
    for change in (
        lambda: (model / "chat_template.jinja").write_text(CHATML + " "),
        lambda: save(model, CHATML, eos_token="<|im_end|>"),
        lambda: (model / "chat_template.jinja").unlink(),
    ):
        save(model, CHATML)
        change()
        with pytest.raises(NotTrusted, match="chat template") as caught:
            choose(model, decided)
        assert decided.template in str(caught.value)
    save(model, CHATML)
    forced, alpaca = choose(model, PromptSettings(format="chat", template="alpaca"))
    assert isinstance(forced, AlpacaTemplate)
    assert alpaca.template == "alpaca"


def test_a_template_may_stand_in_the_tokenizer_config_alone_or_among_others(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    digests = set()
    for number, named in enumerate((CHATML, several)):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.add(choose(save(folder, None, chat_template=named), CHAT)[1].template)
    assert len(digests) == 1
