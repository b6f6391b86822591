"""Who trains which window next.  A function of the plan and the round, so everyone can work it out."""

from collections.abc import Sequence

from schemas.plan import PlanManifest
from schemas.state import Convergence
from stages.process import seeds


def sample_devices(seed: int, round_number: int, devices: Sequence[str], count: int | str) -> tuple[str, ...]:
    """The devices of a round, sorted: all of them, or `count` drawn without replacement from SHA-256(seed, round)."""
    names = sorted(devices)
    if count == "all" or int(count) >= len(names):
        return tuple(names)
    random = seeds.generator("sample", seed, round_number)
    drawn = random.choice(len(names), size=int(count), replace=False)
    return tuple(names[index] for index in sorted(drawn.tolist()))


def next_window(
    plan: PlanManifest, window_index: int, convergence: Convergence, train_loss: float
) -> tuple[int, Convergence]:
    """Index of the next round's window, and the convergence counter that goes with it.

    `every-round` slides on and cycles (DLCT).  `on-convergence` stays until the loss has improved by less than
    `min_improvement` for `patience` rounds (the plain chain of §4.1).
    """
    following = (window_index + 1) % len(plan.windows)
    chain = plan.settings.chain
    if chain.advance == "every-round":
        return following, Convergence()
    best = convergence.best_loss
    if best is None or best - train_loss > chain.min_improvement:
        return window_index, Convergence(best_loss=train_loss, stale_rounds=0)
    stale = convergence.stale_rounds + 1
    if stale >= chain.patience:
        return following, Convergence()
    return window_index, Convergence(best_loss=best, stale_rounds=stale)
