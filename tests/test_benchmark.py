"""The benchmark stage against transformers' resident model with the same adapters, question by question."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention

from schemas.benchmark import BenchmarkManifest
from schemas.errors import DoesNotFit, UsageProblem
from stages.benchmark import run
from stages.data.encode import Encoder
from stages.data.prompts import PromptEncoder
from stages.process import intent
from stages.session import Session
from stages.store.artifact import Artifact, verify_artifact
from stages.store.trust import open_trusted
from stages.suites.questions import Choice, OpenQuestion, cut_at
from stages.suites.scores import exact_match, rouge_l
from stages.suites.suite import read_questions
from tests import fleet
from tests.fleet.benchmark_files import save_bbh, save_crass, save_drop, save_many, save_mmlu
from tests.fleet.speaker import CHARACTERS, WINDOW, Speaker, make_speaker
from tests.fleet.stages import machine_of

SECRET = "Zinnowitz"
CLEAR = 1e-4  # nats; two kernels differ by a hundredth of it


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return make_speaker(tmp_path_factory.mktemp("speaker"), scale=4.0)


def ask(speaker: Speaker, name: Any, data: Path, out: Path, **options: Any) -> Artifact[BenchmarkManifest]:
    machine, rest = machine_of(speaker.folder / "model", options)
    return run(**speaker.places | {"machine": machine}, benchmark=name, data=data, out=out, **rest)


def ids(text: str) -> list[int]:
    return [1, *(4 + CHARACTERS.index(one) if one in CHARACTERS else 3 for one in text)]


def chosen(model: Any, question: Choice) -> int:
    """The likeliest choice, each scored alone, and likelier than the next by more than a kernel rounds."""
    values = []
    for choice in question.choices:
        context, whole = ids(question.prompt), ids(question.prompt + choice)
        whole, start = whole[-WINDOW - 1 :], len(whole) - len(context)
        logits = F.log_softmax(model(input_ids=torch.tensor([whole[:-1]])).logits[0].double(), -1)
        values.append(float(logits[-start:].gather(1, torch.tensor(whole[-start:])[:, None]).sum()))
    best, second = sorted(values)[:-3:-1]
    assert best - second > CLEAR
    return values.index(best)


def written(model: Any, question: OpenQuestion) -> str:
    """What the model writes; every token of it is likelier than the next by more than a kernel rounds."""
    prompt = torch.tensor([ids(question.prompt)[-(WINDOW - question.most_tokens) :]])
    answer = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=question.most_tokens,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best, second = torch.cat(answer.logits).topk(2).values.T
    assert float((best - second).min()) > CLEAR
    tokens = answer.sequences[0, prompt.shape[1] :].tolist()
    text = "".join(CHARACTERS[token - 4] for token in tokens if token > 3)
    return cut_at(text, question.stop)


def test_choices_are_those_of_the_resident_model(speaker: Speaker, tmp_path: Path) -> None:
    found = ask(speaker, "mmlu", save_many(tmp_path / "mmlu"), tmp_path / "out", shots=0).manifest
    questions = [one for one in read_questions("mmlu", tmp_path / "mmlu", shots=0) if isinstance(one, Choice)]
    with speaker.adapted() as model:
        right = [chosen(model, one) == one.answer_index for one in questions]
    (score,) = found.scores
    assert 0 < sum(right) < 24
    assert score.overall.value == sum(right) / 24
    assert [group.value for group in score.groups] == [sum(right[:12]) / 12, sum(right[12:]) / 12]
    assert (found.example_count, found.truncated_count, found.shots) == (24, 0, 0)


def test_a_long_prompt_loses_its_beginning_and_is_counted(speaker: Speaker, tmp_path: Path) -> None:
    dev = save_mmlu(tmp_path / "mmlu") / "dev" / "algebra_dev.csv"
    dev.write_text(dev.read_text().replace("Why?", "Why? " * 50))
    found = ask(speaker, "mmlu", tmp_path / "mmlu", tmp_path / "out").manifest
    questions = [one for one in read_questions("mmlu", tmp_path / "mmlu") if isinstance(one, Choice)]
    longer = [len(ids(one.prompt)) > WINDOW - 1 for one in questions]
    assert found.truncated_count == sum(longer) == 2
    with speaker.adapted() as model:
        right = [chosen(model, one) == one.answer_index for one in questions]
    assert found.scores[0].overall.value == sum(right) / len(right)


def test_crass_is_asked_as_well(speaker: Speaker, tmp_path: Path) -> None:
    found = ask(speaker, "crass", save_crass(tmp_path / "c.csv"), tmp_path / "out").manifest
    questions = [one for one in read_questions("crass", tmp_path / "c.csv") if isinstance(one, Choice)]
    with speaker.adapted() as model:
        right = [chosen(model, one) == one.answer_index for one in questions]
    assert found.scores[0].overall.value == sum(right) / 2
    assert found.shots == 0


def test_written_answers_are_those_of_the_resident_model(speaker: Speaker, tmp_path: Path) -> None:
    """References are what the resident model writes, or a part of it, so that the scores are not all zero."""
    prompts = ["Say a.", "Say it again, gull", "What is the tide?", "Wet sand "]
    with speaker.adapted() as model:
        said = [written(model, OpenQuestion(prompt, (), "rouge", (), 128)) for prompt in prompts]
    references = [said[0], f"{said[1]} tide", "none", said[3][::-1]]
    rows = [{"prompt": one, "reference": other} for one, other in zip(prompts, references, strict=True)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ask(speaker, "rouge", tmp_path / "own.jsonl", tmp_path / "out").manifest
    expected = [rouge_l(one, ((other,),)) for one, other in zip(said, references, strict=True)]
    assert found.scores[0].metric == "rouge-l"
    assert found.scores[0].overall.value == pytest.approx(sum(expected) / 4, abs=1e-12)
    assert len(set(expected)) > 2


def test_an_answer_ends_at_its_stop(speaker: Speaker, tmp_path: Path) -> None:
    save_bbh(tmp_path / "bbh", reasoning=False)
    questions = [one for one in read_questions("bbh", tmp_path / "bbh") if isinstance(one, OpenQuestion)]
    with speaker.adapted() as model:
        said = [written(model, one) for one in questions]
    document = json.loads((tmp_path / "bbh" / "bbh" / "navigate.json").read_text())
    for example, answer in zip(document["examples"], [said[0], "no", said[2]], strict=True):
        example["target"] = answer
    (tmp_path / "bbh" / "bbh" / "navigate.json").write_text(json.dumps(document))
    found = ask(speaker, "bbh", tmp_path / "bbh", tmp_path / "out").manifest
    expected = [exact_match(one, ((other,),)) for one, other in zip(said, [said[0], "no", said[2]], strict=True)]
    assert found.scores[0].overall.value == pytest.approx(sum(expected) / 3)
    assert found.shots is None


def test_no_pass_is_made_behind_a_stop(speaker: Speaker, tmp_path: Path) -> None:
    plan, state = open_trusted(speaker.places["plan"], speaker.places["state"])
    passes: list[int] = []
    with Session.open(
        speaker.places["machine"],
        plan.manifest.settings,
        expected=plan.manifest.model,
        beside=tmp_path,
        progress=lambda phase, done, total: passes.append(done),
    ) as session:
        chain = session.chain(plan.manifest, state)
        prompts = [chain.encoder.prompt(text) for text in ("Wet sand ", "grey", "Who?", "7+8=")]
        whole = chain.write(prompts, most_tokens=40, stop=())
        text, prompt = max(zip(whole, prompts, strict=True), key=lambda pair: len(pair[0]))
        assert len(passes) >= len(text) > 5
        passes.clear()
        (cut,) = chain.write([prompt], most_tokens=40, stop=(text[4],))
    assert text.startswith(cut)
    assert len(passes) == len(cut) <= 5


def test_a_model_without_keys_is_asked_as_well(tmp_path: Path) -> None:
    speaker = make_speaker(tmp_path / "speaker", family="mamba")
    found = ask(speaker, "drop", save_drop(tmp_path / "d.json"), tmp_path / "out", limit=1).manifest
    assert found.example_count == 4


def test_drop_has_two_metrics_and_four_kinds(speaker: Speaker, tmp_path: Path) -> None:
    found = ask(speaker, "drop", save_drop(tmp_path / "d.json"), tmp_path / "out").manifest
    assert [score.metric for score in found.scores] == ["exact-match", "f1"]
    assert [group.name for group in found.scores[0].groups] == ["date", "number", "span", "spans"]


def test_the_same_again_is_left_alone_and_other_questions_are_not(speaker: Speaker, tmp_path: Path) -> None:
    data, out = save_many(tmp_path / "mmlu"), tmp_path / "out"
    first = ask(speaker, "mmlu", data, out, shots=0, limit=2)
    changed = out.stat().st_mtime_ns
    assert ask(speaker, "mmlu", data, out, shots=0, limit=2).digest == first.digest
    assert out.stat().st_mtime_ns == changed
    with pytest.raises(UsageProblem, match="made from other inputs"):
        ask(speaker, "mmlu", data, out, shots=0, limit=3)
    assert ask(speaker, "mmlu", data, out, shots=0, limit=3, force=True).manifest.example_count == 6


def test_no_text_is_kept(speaker: Speaker, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": f"{SECRET}?", "reference": SECRET}) + "\n")
    out = ask(speaker, "rouge", tmp_path / "own.jsonl", tmp_path / "out").path
    verify_artifact(out)
    for file in out.iterdir():
        assert SECRET.encode() not in file.read_bytes()


def test_a_budget_that_is_too_small_is_refused(speaker: Speaker, tmp_path: Path) -> None:
    for name, data in (("mmlu", save_many(tmp_path / "mmlu")), ("bbh", save_bbh(tmp_path / "bbh", reasoning=True))):
        with pytest.raises(DoesNotFit):
            ask(speaker, name, data, tmp_path / "out", memory_budget_bytes=2**20, shots=0)
    assert not (tmp_path / "out").exists()


def test_a_model_that_classifies_is_not_asked(tmp_path: Path, tiny_bert: Path) -> None:
    data = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(8))
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings())
    with pytest.raises(UsageProblem, match="no language head"):
        run(
            **fleet.places(tmp_path, tiny_bert),
            benchmark="mmlu",
            data=save_many(tmp_path / "mmlu"),
            out=tmp_path / "out",
        )


def test_a_continuation_is_what_stands_behind_its_context(speaker: Speaker) -> None:
    encoder = PromptEncoder.of(Encoder.load(speaker.folder / "model", fleet.settings().encoding))
    ((context, letter), (_, word)) = encoder.pairs("Answer: ", ["A", "no"])
    assert encoder.decode(context) == "Answer:"
    assert (encoder.decode(letter), encoder.decode(word)) == (" A", " no")
    assert context[0] == 1
    assert encoder.prompt("x" * 300, special=False).tolist() == [ids("x")[1]] * 300
    assert encoder.prompt("").tolist() == [1]


def test_what_a_tokenizer_puts_behind_a_text_is_taken_off(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    fleet.save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    marks = [("[CLS]", 1), ("[UNK]", 2)]
    tokenizer.add_special_tokens(["[CLS]", "[UNK]"])
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [UNK]", special_tokens=marks)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = PromptEncoder.of(Encoder.load(tmp_path, fleet.settings().encoding))
    assert encoder.prompt("the grey")[0] == 1
    assert 2 not in encoder.prompt("the grey")
    assert [len(part) for part in encoder.pairs("the", [" grey"])[0]] == [2, 1]


def test_a_dry_run_predicts_the_memory_and_answers_nothing(speaker: Speaker, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "out"
    for name, data in (("mmlu", save_many(tmp_path / "mmlu")), ("bbh", save_bbh(tmp_path / "bbh", reasoning=True))):
        with intent.rehearsing() as noted:
            ask(speaker, name, data, out, shots=0)
        assert noted.reads[data] == "benchmark"
        assert noted.writes == {out: None}
        assert noted.predicted["peak_bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bbh", "mmlu"]
