"""The dtype that computes: who decides it, what devices report, and what an emulated one is said to cost."""

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.refs import Dtype
from stages import doctor
from stages.federated.profiles import gather
from stages.memory.fits import predictor
from stages.methods.registry import server_method
from stages.model.loading import LoadedModel
from stages.process import arithmetic
from stages.report.explain import explain_plan
from stages.store.artifact import open_artifact
from tests import fleet

SINGLE: tuple[Dtype, ...] = ("float32",)
BOTH: tuple[Dtype, ...] = ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("stored", "native", "asked", "expected"),
    [
        (torch.bfloat16, BOTH, "auto", "bfloat16"),
        (torch.bfloat16, SINGLE, "auto", "float32"),
        (torch.float32, BOTH, "auto", "float32"),  # never rounded unasked
        (torch.float16, BOTH, "auto", "float32"),
        (torch.float32, SINGLE, "bfloat16", "bfloat16"),
    ],
)
def test_what_computes_is_decided_by_the_model_and_by_all_devices(
    stored: torch.dtype, native: Collection[Dtype], asked: str, expected: str, tmp_path: Path
) -> None:
    fleet.save_stored_as(tmp_path, "bert", stored)
    chosen = fleet.settings(numerics={"compute": asked})
    decided, model = fleet.open_model(tmp_path, chosen).deciding_compute(chosen, native=native)
    assert decided.numerics.compute == expected
    assert model.backbone.dtype == getattr(torch, expected)


def device(name: str, native: tuple[Dtype, ...]) -> ProfileManifest:
    return fleet.profile_manifest(name, [0.9, 0.7, 0.6, 0.5, 0.4, 0.3]).model_copy(update={"native_dtypes": native})


def test_a_plan_counts_the_devices_that_emulate() -> None:
    profiles = [device("a", BOTH), device("b", SINGLE), device("c", SINGLE)]
    found = gather(profiles, fleet.decided())
    assert (found.emulating["float32"], found.emulating["bfloat16"], found.emulating["float16"]) == (0, 2, 3)
    single = fleet.plan_manifest(profiles, fleet.decided())
    assert single.emulating_count == 0
    assert "emulate" not in explained(single)
    numerics = fleet.decided().numerics.computing_in("bfloat16")
    half = fleet.plan_manifest(profiles, fleet.decided().model_copy(update={"numerics": numerics}))
    assert half.emulating_count == 2
    assert "2 of 3 devices emulate bfloat16" in explained(half)


def explained(plan: PlanManifest) -> str:
    return "\n".join(explain_plan(plan, server_method(plan.settings.chain.method)))


def test_profiles_agree_whatever_the_recipes_compute_in(tmp_path: Path) -> None:
    """A device profiles with one recipe, the plan is made with another: the profile is the same, and is accepted."""
    fleet.save_stored_as(tmp_path / "model", "bert", torch.bfloat16)
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    digests = set()
    for compute in ("auto", "float32", "bfloat16"):
        chosen = fleet.settings(numerics={"compute": compute})
        out = tmp_path / f"profile-{compute}"
        fleet.run_profile(tmp_path / "model", data, chosen, out)
        digests.add(open_artifact(out, ProfileManifest).digest)
    assert len(digests) == 1
    chosen = fleet.settings(numerics={"compute": "bfloat16"})
    plan, _ = fleet.run_plan(
        [tmp_path / "profile-auto"], tmp_path / "model", chosen, tmp_path / "plan", tmp_path / "state"
    )
    assert plan.manifest.settings.numerics.compute == "bfloat16"


def test_what_the_processor_multiplies_is_measured() -> None:
    speeds = arithmetic.gigaflops()
    assert set(speeds) == {"float32", "bfloat16", "float16"}
    assert min(speeds.values()) > 0
    assert arithmetic.native_dtypes()[0] == "float32"
    assert arithmetic.price("float32") == ""


def test_a_processor_without_the_instructions_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = tmp_path / "cpuinfo"
    flags.write_text("flags : fpu avx2 fma f16c\n")
    monkeypatch.setattr(arithmetic, "CPU_FLAGS", flags)
    monkeypatch.setattr(arithmetic, "product_seconds", lambda dtype: pytest.fail("measured"))
    assert arithmetic.native_dtypes.__wrapped__() == SINGLE


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, BOTH), (1.3, BOTH), (20.0, SINGLE)])
def test_a_dtype_that_is_many_times_slower_than_float32_is_emulated(
    seconds: float, expected: tuple[Dtype, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "cpuinfo"
    flags.write_text("flags : avx2 amx_bf16\n")
    monkeypatch.setattr(arithmetic, "CPU_FLAGS", flags)
    monkeypatch.setattr(arithmetic, "product_seconds", lambda dtype: seconds if dtype == "bfloat16" else 1.0)
    assert arithmetic.native_dtypes.__wrapped__() == expected


@pytest.fixture
def emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies nothing but float32 in hardware, and bfloat16 forty times slower."""
    for name in ("stages.process.arithmetic.native_dtypes", "stages.profile.native_dtypes"):
        monkeypatch.setattr(name, lambda: SINGLE)
    monkeypatch.setattr(arithmetic, "product_seconds", {"float32": 1.0, "bfloat16": 40.0}.__getitem__)


PRICE = "compute in bfloat16, which this processor emulates: products take 40 times as long as in float32"
ADVICE = '(numerics.compute = "auto" avoids it)'
PLANNED = f"{PRICE.replace('compute', 'computes')} {ADVICE.replace('(', '(a new plan with ')}"


@pytest.mark.usefixtures("emulating")
def test_a_recipe_that_insists_on_an_emulated_dtype_is_told_its_price(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "bert")
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings(numerics={"compute": "bfloat16"}))
    base = ["--model", tmp_path / "model"]
    inputs = [*base, "--data", data]
    chosen = [*inputs, "--recipe", recipe]
    profiled = fleet.chainctl("profile", *chosen, "--device", "one", "--out", tmp_path / "profile")
    assert f"a plan of this recipe would {PRICE} {ADVICE}\n" in profiled.stdout
    made = ["--out", tmp_path / "plan", "--state", tmp_path / "state"]
    planned = fleet.chainctl("plan", tmp_path / "profile", *base, "--recipe", recipe, *made)
    assert "1 of 1 devices emulate bfloat16" in planned.stdout
    assert "chose" not in planned.stdout
    agreed = ["--plan", tmp_path / "plan", "--state", tmp_path / "state"]
    trained = fleet.chainctl("train-window", *inputs, "--device", "one", *agreed, "--out", tmp_path / "update")
    judged = fleet.chainctl("eval", *inputs, *agreed, "--out", tmp_path / "evaluation")
    for done in (trained, judged):
        assert done.stdout.count(f"the plan {PLANNED}\n") == 1
    run = ["--devices", "2", "--rounds", "1", "--iid", "--test", data, "--out", tmp_path / "run"]
    simulated = fleet.chainctl("simulate", *chosen, *run)
    assert simulated.stdout.count(PRICE) == 1
    assert simulated.stdout.startswith(f"the devices {PRICE} {ADVICE}\n")


@pytest.mark.usefixtures("emulating")
def test_generating_in_an_emulated_dtype_is_told_its_price(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "llama", factory=AutoModelForCausalLM)
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    chosen = fleet.settings(task={"kind": "causal-lm", "labels": ()}, numerics={"compute": "bfloat16"})
    fleet.begin(tmp_path, tmp_path / "model", data, chosen)
    places = ["--model", tmp_path / "model", "--plan", tmp_path / "plan", "--state", tmp_path / "state"]
    written = fleet.chainctl("generate", *places, "--prompt", "w5", "--max-new-tokens", 1, "--json")
    assert written.stderr.count(f"the plan {PLANNED}\n") == 1


def test_a_plan_says_what_auto_chose(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "bert")
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    chosen = fleet.settings(numerics={"compute": "auto"})
    fleet.run_profile(tmp_path / "model", data, chosen, tmp_path / "profile")
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", chosen)
    base = ["plan", tmp_path / "profile", "--model", tmp_path / "model", "--recipe", recipe]
    planned = fleet.chainctl(*base, "--out", tmp_path / "plan", "--state", tmp_path / "state")
    assert 'numerics.compute = "auto" chose float32\n' in planned.stdout


@pytest.mark.usefixtures("emulating")
def test_the_doctor_says_how_fast_one_thread_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.save_model(tmp_path, "bert")
    seconds = {"float32": arithmetic.FLOPS / 1e9, "bfloat16": arithmetic.FLOPS / 3e9, "float16": arithmetic.FLOPS / 1e9}
    monkeypatch.setattr(arithmetic, "product_seconds", seconds.__getitem__)
    monkeypatch.setattr("stages.doctor.native_dtypes", lambda: BOTH)
    found = doctor.lines(doctor.examine(tmp_path, fleet.settings()))
    assert found[2].endswith("of one thread: float32 1 GFLOP/s, bfloat16 3 GFLOP/s, float16 1 GFLOP/s (emulated)")


def test_the_doctor_predicts_what_a_federation_of_this_device_would_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.save_stored_as(tmp_path, "bert", torch.bfloat16)
    for native, expected in ((BOTH, "bfloat16"), (SINGLE, "float32")):
        monkeypatch.setattr("stages.memory.fits.native_dtypes", lambda native=native: native)
        assert predictor(tmp_path, fleet.settings()).settings.numerics.compute == expected


def test_an_open_model_computes_in_float32_as_long_as_nothing_is_decided(tmp_path: Path) -> None:
    fleet.save_stored_as(tmp_path, "bert", torch.bfloat16)
    assert LoadedModel.open(tmp_path, fleet.settings()).backbone.dtype == torch.float32
