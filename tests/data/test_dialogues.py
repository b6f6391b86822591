"""Instruction data and dialogues are read in the shapes that people have; all but texts is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput
from schemas.settings import PromptSettings, TaskSettings
from stages.data.load import Example, load_examples, load_prompts
from stages.data.split import to_jsonl

SECRET = "Patient-Nr-4711"
CHAT = PromptSettings(format="chat")
ALPACA = PromptSettings(format="alpaca")
PLAIN = PromptSettings()
LANGUAGE = TaskSettings(kind="causal-lm")
ASKED = {"role": "user", "content": "say"}
TURNS = (("user", "say"), ("assistant", "hello"))
CALL = {"id": SECRET, "type": "function", "function": {"name": SECRET, "arguments": SECRET}}
IMAGE = {"type": "image_url", "image_url": {"url": SECRET}}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(path: Path, prompt: PromptSettings) -> list[Example]:
    return load_examples(path, label_column=None, prompt=prompt)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED, {"role": "assistant", "content": "hello"}]},
        {"conversations": [{"from": "human", "value": "say"}, {"from": "gpt", "value": "hello"}]},
        {"conversations": [{"from": "user", "value": "say"}, {"from": "chatgpt", "value": "hello"}]},
        {"conversations": [ASKED, {"role": "assistant", "content": "hello"}], "id": "x"},
        {"messages": [{"from": "human", "value": "say"}, {"from": "gpt", "value": "hello"}]},
        {"messages": [{**ASKED, "content": [{"type": "text", "text": "say"}]}, {"from": "gpt", "value": "hello"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "ay"}]},
                {"role": "assistant", "content": "hello", "tool_calls": None, "name": "any"},
            ]
        },
        {"messages": [ASKED, {"role": "assistant", "content": "hello", "tool_calls": []}]},
    ],
)
def test_a_dialogue_is_read_in_every_shape(record: Any, tmp_path: Path) -> None:
    (found,) = load(write(tmp_path / "d.jsonl", record), CHAT)
    assert found.turns == TURNS
    assert found.where == f"{tmp_path / 'd.jsonl'}, line 1"
    (tmp_path / "e.jsonl").write_bytes(to_jsonl([found]))
    assert load(tmp_path / "e.jsonl", CHAT) == [found]


def test_a_system_message_of_sharegpt_is_one(tmp_path: Path) -> None:
    said = [
        {"from": "system", "value": "be kind"},
        {"from": "human", "value": "say"},
        {"from": "gpt", "value": "hello"},
    ]
    (found,) = load(write(tmp_path / "d.jsonl", {"conversations": said}), CHAT)
    assert found.turns == (("system", "be kind"), *TURNS)


def test_a_system_message_beside_the_messages_is_the_first(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "say"}, {"from": "gpt", "value": "hello"}]
    path = write(tmp_path / "d.jsonl", {"system": "be kind", "tools": "[]", "conversations": said})
    assert load(path, CHAT)[0].turns == (("system", "be kind"), *TURNS)
    with_tools = write(tmp_path / "e.jsonl", {"system": "", "tools": [{"name": "find"}], "conversations": said})
    with pytest.raises(BadInput, match="the dialogue has tools"):
        load(with_tools, CHAT)


def test_a_system_message_may_be_empty(tmp_path: Path) -> None:
    system = {"role": "system", "content": ""}
    path = write(tmp_path / "d.jsonl", {"messages": [system, ASKED, {"role": "assistant", "content": "a"}]})
    assert load(path, CHAT)[0].turns[0] == ("system", "")


def test_parquet_holds_dialogues_of_each_shape(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parts = [{"type": "text", "text": "say", "url": None}]
    chats = {
        "messages": [[ASKED, {"role": "assistant", "content": "hello"}]],
        "conversations": [[{"from": "human", "value": "say"}, {"from": "gpt", "value": "hello"}]],
        "parts": [
            [{"role": "user", "content": parts}, {"role": "assistant", "content": [{**parts[0], "text": "hello"}]}]
        ],
    }
    for name, rows in chats.items():
        column = "messages" if name == "parts" else name
        parquet.write_table(pyarrow.table({column: rows, "source": ["a"]}), tmp_path / f"{name}.parquet")
        assert [one.turns for one in load(tmp_path / f"{name}.parquet", CHAT)] == [TURNS]
    parquet.write_table(pyarrow.table({"instruction": ["i"], "output": ["o"]}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", ALPACA) == [Example("", None, (("instruction", "i"), ("output", "o")))]


@pytest.mark.parametrize(
    ("prompt", "record", "says"),
    [
        (ALPACA, {"instruction": SECRET}, "no column 'output'"),
        (ALPACA, {"instruction": SECRET, "output": " "}, "the text is empty"),
        (ALPACA, {"instruction": SECRET, "input": 3, "output": SECRET}, "not a text"),
        (CHAT, {"text": SECRET}, "no column 'messages'"),
        (CHAT, {"messages": SECRET}, "not a list"),
        (CHAT, {"conversations": SECRET}, "not a list"),
        (CHAT, {"messages": [SECRET]}, "line 1, message 1: not a message"),
        (CHAT, {"messages": [{"role": "user"}]}, "line 1, message 1: not a message"),
        (CHAT, {"messages": [{"role": SECRET, "content": "x"}]}, "the role is not known"),
        (CHAT, {"messages": [{"role": [SECRET], "content": "x"}]}, "the role is not known"),
        (CHAT, {"conversations": [{"from": SECRET, "value": "x"}]}, "the role is not known"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "not a text"),
        (CHAT, {"messages": [{"role": "user", "content": ""}]}, "the text is empty"),
        (CHAT, {"messages": [{"role": "user", "content": []}]}, "the text is empty"),
        (CHAT, {"messages": [{"role": "user", "content": SECRET}]}, "has no answer"),
        (CHAT, {"messages": [{"role": "user", "content": f"{SECRET}\0"}]}, "NUL"),
        (CHAT, {"messages": [{"role": "tool", "content": SECRET}]}, "calls a tool, or is a tool's"),
        (CHAT, {"conversations": [{"from": "function_call", "value": SECRET}]}, "calls a tool, or is a tool's"),
        (CHAT, {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "message 2: the"),
        (CHAT, {"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}]}, "calls a tool"),
        (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "message 1, part 1: not a part of text"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": SECRET, "text": "x"}]}]}, "not a part of text"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "not a text"),
        (CHAT, {"messages": [{"role": "user", "content": [SECRET]}]}, "not a part of text"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused_with_its_place(
    prompt: PromptSettings, record: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        load(write(tmp_path / "d.jsonl", record), prompt)
    assert says in str(caught.value)
    assert "line 1" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_shapes_that_are_accepted_are_named_and_accepted(tmp_path: Path) -> None:
    """As the hints say: a call and its result as text; another column's name; another format."""
    called = [ASKED, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    with pytest.raises(BadInput, match="objects with role") as caught:
        load(write(tmp_path / "d.jsonl", {"messages": called}), CHAT)
    assert "as text of user and assistant" in caught.value.hint
    written = [ASKED, {"role": "assistant", "content": "call"}, {"role": "user", "content": "3"}]
    assert len(load(write(tmp_path / "d.jsonl", {"messages": written}), CHAT)) == 1
    with pytest.raises(BadInput, match="messages or conversations") as caught:
        load(write(tmp_path / "d.jsonl", {"dialogue": written}), CHAT)
    assert "prompt.format of the recipe, says which columns are needed" in caught.value.hint
    assert len(load(write(tmp_path / "d.jsonl", {"conversations": written}), CHAT)) == 1
    assert len(load(write(tmp_path / "d.jsonl", {"instruction": "say", "output": "hello"}), ALPACA)) == 1


def test_a_folder_of_texts_is_no_instruction_data(tmp_path: Path) -> None:
    (tmp_path / "tide").mkdir()
    (tmp_path / "tide" / "1.txt").write_text("x")
    for prompt in (ALPACA, CHAT):
        with pytest.raises(BadInput, match="not data that can be read"):
            load(tmp_path, prompt)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(fields=st.lists(st.tuples(texts, texts, st.none() | texts), min_size=1, max_size=4))
def test_records_survive_being_split_into_files(
    fields: list[tuple[str, str, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    for prompt in (ALPACA, CHAT):
        records: list[dict[str, Any]] = []
        for one, two, three in fields:
            extra = {} if three is None else {"input": three}
            turns = [{"role": "user", "content": one}, {"role": "assistant", "content": two}]
            alpaca = prompt.format == "alpaca"
            records.append({"instruction": one, **extra, "output": two} if alpaca else {"messages": turns})
        examples = load_examples(write(path, *records), label_column=None, prompt=prompt)
        path.write_bytes(to_jsonl(examples))
        assert load_examples(path, label_column=None, prompt=prompt) == examples
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] == records


# Prompts: with or without responses, in every format.


@pytest.mark.parametrize(
    ("prompt", "record", "expected"),
    [
        (ALPACA, {"instruction": "say", "input": ""}, (("instruction", "say"), ("input", ""))),
        (ALPACA, {"instruction": "say"}, (("instruction", "say"),)),
        (ALPACA, {"instruction": "say", "output": ""}, (("instruction", "say"),)),
        (ALPACA, {"instruction": "say", "output": None}, (("instruction", "say"),)),
        (ALPACA, {"instruction": "say", "output": "hello"}, (("instruction", "say"),)),
        (CHAT, {"messages": [ASKED]}, TURNS[:1]),
        (CHAT, {"messages": [ASKED, {"role": "assistant", "content": ""}]}, TURNS[:1]),
        (CHAT, {"messages": [ASKED, {"role": "assistant", "content": "hello"}]}, TURNS[:1]),
        (CHAT, {"messages": [ASKED, {"role": "assistant", "content": "hello"}, ASKED]}, (*TURNS, TURNS[0])),
        (CHAT, {"conversations": [{"from": "human", "value": "say"}, {"from": "gpt", "value": ""}]}, TURNS[:1]),
    ],
)
def test_prompts_need_no_responses(prompt: PromptSettings, record: Any, expected: Any, tmp_path: Path) -> None:
    (found,) = load_prompts(write(tmp_path / "d.jsonl", record), LANGUAGE, prompt)
    assert found.turns == expected


def test_prompts_of_tables_need_no_responses(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "d.csv").write_text("instruction,input\nsay,\n")
    parquet.write_table(pyarrow.table({"instruction": ["say"], "input": [""]}), tmp_path / "d.parquet")
    for name in ("d.csv", "d.parquet"):
        (found,) = load_prompts(tmp_path / name, LANGUAGE, ALPACA)
        assert found.turns == (("instruction", "say"), ("input", ""))
    (tmp_path / "p.csv").write_text("text\nsay\n")
    assert load_prompts(tmp_path / "p.csv", LANGUAGE, PLAIN) == [Example("say", None)]


@pytest.mark.parametrize(
    ("prompt", "record", "says"),
    [
        (ALPACA, {"output": "hello"}, "no column 'instruction'"),
        (ALPACA, {"instruction": " "}, "the text is empty"),
        (CHAT, {"messages": []}, "has no question"),
        (CHAT, {"messages": [{"role": "assistant", "content": SECRET}]}, "has no question"),
        (CHAT, {"messages": [ASKED, {"role": "tool", "content": SECRET}]}, "calls a tool"),
        (PLAIN, {"text": ""}, "the text is empty"),
    ],
)
def test_prompts_need_a_question(prompt: PromptSettings, record: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line 1") as caught:
        load_prompts(write(tmp_path / "d.jsonl", record), LANGUAGE, prompt)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)
