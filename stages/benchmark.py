"""Benchmark stage: how well does a state answer the questions of a published benchmark?

Chain:  profile -> plan -> train-window -> aggregate -> [eval --benchmark]
Reads:  plan and state artifacts of a causal-lm task, the base model, the benchmark's files.
Writes: a benchmark artifact: each metric overall, as the mean over groups, and group by group.

Multiple choice is answered by the likeliest continuation, all questions in one pass over the layers; open questions
by greedy text, one pass per token.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schemas.benchmark import BenchmarkManifest
from stages.data.encode import Encoder
from stages.inference.full_chain import FullChain, require_causal_lm
from stages.process import intent
from stages.process.progress import Progress, Say, silent, unsaid
from stages.session import Machine, Session
from stages.store.artifact import Artifact, check_place, existing, new_artifact
from stages.store.signing import Signer
from stages.store.trust import open_trusted
from stages.suites.questions import Choice, OpenQuestion, Question, questions_digest
from stages.suites.rouge import ALPACA
from stages.suites.suite import (
    DEFAULT_SHOTS,
    BenchmarkName,
    Marked,
    mark_answer,
    mark_choice,
    read_questions,
    summarise,
)


def run(
    *,
    machine: Machine,
    plan: Path,
    state: Path,
    benchmark: BenchmarkName,
    data: Path,
    out: Path,
    shots: int | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    signer: Signer | None = None,
    say: Say = unsaid,
) -> Artifact[BenchmarkManifest]:
    """Ask one state the first `limit` questions of each group (None: all) of a benchmark in `data`.

    `shots` None: the published number; `say` is told what an emulated dtype costs here.  Raises `BadInput`,
    `NotTrusted`, `DoesNotFit` and, for a task without a language head, `UsageProblem`.
    """
    planned, current = open_trusted(plan, state)
    settings = require_causal_lm(planned.manifest)
    check_place(out, BenchmarkManifest, machine.model_dir, plan, state, data, force=force, signer=signer)
    encoder = Encoder.load(machine.model_dir, settings.encoding, settings.prompt)
    template = ALPACA if settings.prompt.format == "plain" else encoder.template
    intent.will_read(data, "benchmark")
    questions = read_questions(benchmark, data, shots=shots, limit=limit, template=template)
    asked: dict[str, Any] = {
        "plan": planned.digest,
        "state": current.digest,
        "round": current.manifest.round,
        "data": questions_digest(benchmark, questions),
        "benchmark": benchmark,
        "shots": DEFAULT_SHOTS[benchmark] if shots is None else shots,
        "limit": limit,
    }
    found = existing(out, BenchmarkManifest, same=is_of(asked), force=force, signer=signer)
    if found is not None:
        return found
    expected = planned.manifest.model
    opened = Session.open(machine, settings, expected=expected, beside=out.parent, progress=progress, say=say)
    with opened as session:
        chain = session.chain(planned.manifest, current)
        marked = answer(chain, benchmark, questions)
    manifest = BenchmarkManifest(
        **asked, example_count=len(questions), truncated_count=chain.truncated_count, scores=summarise(marked)
    )
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.finish(manifest, session.measured(predicted=chain.predicted_peak_bytes))
    return Artifact(out, manifest, manifest.digest)


def is_of(asked: dict[str, Any]) -> Callable[[BenchmarkManifest], bool]:
    """A check whether an existing manifest was made from the same inputs."""
    return lambda there: all(getattr(there, name) == value for name, value in asked.items())


def answer(chain: FullChain, benchmark: BenchmarkName, questions: Sequence[Question]) -> list[Marked]:
    """Answer and mark each question, in order."""
    choices = [question for question in questions if isinstance(question, Choice)]
    opens = [question for question in questions if isinstance(question, OpenQuestion)]
    likelihoods, texts = iter(_choose(chain, choices)), iter(_write(chain, opens))
    return [
        mark_choice(question, next(likelihoods))
        if isinstance(question, Choice)
        else mark_answer(benchmark, question, next(texts))
        for question in questions
    ]


def _choose(chain: FullChain, questions: Sequence[Choice]) -> list[list[float]]:
    """The log-probability in nats of each choice of each question, all in one pass."""
    requests = [chain.encoder.pairs(question.prompt, question.choices) for question in questions]
    found = iter(chain.likelihoods([request for pairs in requests for request in pairs]))
    return [[next(found)[0] for _ in pairs] for pairs in requests]


def _write(chain: FullChain, questions: Sequence[OpenQuestion]) -> list[str]:
    """A text for each question; questions with the same stops and limit are generated together."""
    alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for number, question in enumerate(questions):
        alike.setdefault((question.stop, question.most_tokens), []).append(number)
    written: dict[int, str] = {}
    for (stop, most), numbers in alike.items():
        prompts = [
            chain.encoder.prompt(questions[number].prompt, special=questions[number].adds_special_tokens)
            for number in numbers
        ]
        most = min(most, chain.window // 2)  # leaves half of a small window for the question
        written |= zip(numbers, chain.write(prompts, most_tokens=most, stop=stop), strict=True)
    return [written[number] for number in range(len(questions))]
