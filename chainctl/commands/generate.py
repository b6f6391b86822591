"""chainctl generate"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.options import MemoryBudget, ModelDir, Plan, Seed, State, Verify, VerifyWeights, parse_number
from schemas.errors import UsageProblem


@with_console
def generate(
    model: ModelDir,
    plan: Plan,
    state: State,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="The text to continue; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="PATH", help="Data in the plan's format, without its responses."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most texts of --prompts.")] = None,
    before: Annotated[bool, typer.Option("--before", help="Also continue with the base model, side by side.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens per text.")] = 64,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            parser=parse_number("--temperature", "0 or above", lambda number: number >= 0),
            help="0 always takes the likeliest token.",
        ),
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from that many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            parser=parse_number("--top-p", "a probability: above 0, at most 1", lambda number: 0 < number <= 1),
            help="Sample from the likeliest tokens with this total probability.",
        ),
    ] = 1.0,
    seed: Seed = 0,
    memory_budget: MemoryBudget = None,
    verify: VerifyWeights = Verify.ONCE,
    *,
    console: Console,
) -> None:
    """Continue texts with a state of a language model.

    The model is streamed layer by layer.  With --before the base model answers too, side by side.
    """
    if (prompt is None) == (prompts is None):
        raise UsageProblem(
            "there is nothing to continue, or too much", values={"expected": "either --prompt or --prompts"}
        )
    from stages.process.footprint import prepare_process

    prepare_process()
    from schemas.plan import PlanManifest
    from stages.data.load import load_prompts
    from stages.generate import as_prompts, run
    from stages.inference.generate import Sampling
    from stages.session import Machine
    from stages.store.artifact import open_artifact

    chosen = open_artifact(plan, PlanManifest).manifest
    settings = chosen.settings
    examples = load_prompts(prompts, settings.task, settings.prompt) if prompts else as_prompts(prompt or [], chosen)
    with console.progress() as progress:
        answers = run(
            machine=Machine(model, memory_budget_bytes=memory_budget, verify=verify.value),
            plan=plan,
            state=state,
            prompts=examples[:limit],
            sampling=Sampling(max_new_tokens, temperature, top_k, top_p, seed),
            before=before,
            progress=progress,
            say=console.say,
        )
    if prompts:
        console.say_left_out(prompts)
    for number, answer in enumerate(answers, 1):
        truncated = (
            " (the prompt was truncated at its beginning: it is longer than the plan allows)"
            if answer.truncated
            else ""
        )
        console.say(f"[{number}]{truncated}")
        if answer.before is not None:
            console.say_text(answer.before, before="  before  ")
        console.say_text(answer.after, before="  after   " if before else "  ")
    console.result(texts=[{"before": one.before, "after": one.after, "truncated": one.truncated} for one in answers])
