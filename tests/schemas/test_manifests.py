"""Manifests are closed and canonical: golden documents keep their bytes and names, and nothing else is let in.

The golden files are small documents that form one chain: the plan names the profile, the update the plan, the state
the update.  Their digests are pinned, so a change of the format cannot pass unseen.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from schemas.base import Manifest, Record, canonical_json
from schemas.errors import BadInput
from schemas.kinds import DOCUMENTS, LINES, document_model
from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.refs import DeviceName, Digest, FileName, Window
from schemas.settings import Settings
from stages.process.measure import peak_bytes, reset_peak, resident_bytes
from tests import fleet
from tests.fleet.golden import DIGESTS

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = {kind: cast("type[Manifest]", document_model(kind)) for kind in DOCUMENTS if kind not in (*LINES, "recipe")}
OPEN = ("versions", "values", "extra", "numbers", "refused")  # objects whose keys are free
SECRET = "Patient-Nr-4711"
Path_ = tuple[str | int, ...]

every_kind = pytest.mark.parametrize("kind", sorted(CLASSES))


def golden(kind: str) -> bytes:
    return (GOLDEN / f"v{CLASSES[kind].VERSION}" / f"{kind}.json").read_bytes()


def document(kind: str) -> Any:
    return json.loads(golden(kind))


def lines(file: str) -> list[Any]:
    return [json.loads(line) for line in (GOLDEN / "v1" / file).read_bytes().splitlines()]


def places(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value of a document with its path, the document itself included."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


# Settings that are a word or a number: there, one may stand for the other.
EITHER = ("start", "max_window", "devices_per_round", "round_passes", "round_bytes")


def refusal(kind: str, data: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        CLASSES[kind].from_bytes(data, source="manifest.json")
    return caught.value


def record_classes(base: type[Record] = Record) -> Iterator[type[Record]]:
    """Those of the contract: tests make up some of their own."""
    for found in base.__subclasses__():
        if found.__module__.startswith("schemas."):
            yield found
        yield from record_classes(found)


# Golden documents.


@every_kind
def test_a_golden_document_reads_back_to_its_own_bytes(kind: str) -> None:
    manifest = CLASSES[kind].from_bytes(golden(kind), source="golden")
    assert manifest.canonical_bytes() == golden(kind)
    assert CLASSES[kind].from_bytes(manifest.canonical_bytes(), source="again") == manifest


@every_kind
def test_a_golden_document_keeps_its_name(kind: str) -> None:
    assert hashlib.sha256(golden(kind)).hexdigest() == DIGESTS[kind]
    assert CLASSES[kind].from_bytes(golden(kind), source="golden").digest == f"sha256:{DIGESTS[kind]}"


@every_kind
def test_canonical_bytes_are_plain_sorted_json(kind: str) -> None:
    text = json.dumps(document(kind), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert golden(kind) == text.encode("utf-8")


def test_there_is_one_golden_document_of_each_kind() -> None:
    current = {(kind, cls.VERSION) for kind, cls in CLASSES.items()}
    found = {(path.stem, int(path.parent.name[1:])) for path in GOLDEN.glob("v*/*.json")}
    assert found == current
    assert {cls for cls in record_classes() if issubclass(cls, Manifest) and cls is not Manifest} == set(
        CLASSES.values()
    )


def test_nothing_was_released_so_everything_is_version_1() -> None:
    assert {(cls.VERSION, *cls.OLDER) for cls in CLASSES.values()} == {(1,)}


def test_golden_documents_name_one_another() -> None:
    name = {kind: f"sha256:{digest}" for kind, digest in DIGESTS.items()}
    assert lines("devices.jsonl")[0]["profile"] == name["profile"]
    assert document("update")["plan"] == document("state")["plan"] == name["plan"]
    assert lines("accepted.jsonl")[0]["update"] == document("measured")["artifact"] == name["update"]
    assert document("evaluation")["state"] == name["state"]


# Classes.


@pytest.mark.parametrize("cls", sorted(set(record_classes()), key=repr))
def test_every_record_is_frozen_strict_and_closed(cls: type[Record]) -> None:
    config = cls.model_config
    assert config.get("frozen") is True
    assert config.get("strict") is True
    assert config.get("extra") == "forbid"
    assert config.get("allow_inf_nan") is False


@every_kind
def test_a_manifest_cannot_be_changed(kind: str) -> None:
    manifest = CLASSES[kind].from_bytes(golden(kind), source="golden")
    for field in CLASSES[kind].model_fields:
        with pytest.raises(ValidationError):
            setattr(manifest, field, getattr(manifest, field))
    assert manifest.canonical_bytes() == golden(kind)


@every_kind
def test_no_number_is_made_of_a_text_and_no_text_of_a_number(kind: str) -> None:
    for path, value in places(document(kind)):
        if isinstance(value, dict | list) or value is None or path in (("kind",), ("version",)):
            continue
        if path[:1] == ("settings",) and path[-1] in EITHER:
            continue
        changed = document(kind)
        at(changed, path[:-1])[path[-1]] = str(value) if not isinstance(value, str) else 5
        refusal(kind, canonical_json(changed))


# Kind and version come first.


@every_kind
def test_a_newer_version_says_upgrade_whatever_else_it_holds(kind: str) -> None:
    version = CLASSES[kind].VERSION
    error = refusal(kind, canonical_json({"kind": kind, "version": version + 1, "surprise": SECRET}))
    assert "upgrade" in error.hint
    assert error.values == {"expected": f"{kind} v{version}", "found": f"{kind} v{version + 1}"}
    assert SECRET not in str(error)
    whole = refusal(kind, canonical_json({**document(kind), "version": version + 1, "surprise": 1}))
    assert (whole.fact, whole.values, whole.hint) == (error.fact, error.values, error.hint)


@pytest.mark.parametrize("given_kind", sorted(CLASSES))
@every_kind
def test_a_document_of_another_kind_is_refused_by_both_names(kind: str, given_kind: str) -> None:
    if kind == given_kind:
        return
    error = refusal(kind, golden(given_kind))
    versions = CLASSES[kind].VERSION, CLASSES[given_kind].VERSION
    assert error.values == {"expected": f"{kind} v{versions[0]}", "found": f"{given_kind} v{versions[1]}"}
    assert "upgrade" not in error.hint


@pytest.mark.parametrize("version", [0, -1, None, "1", "2", 1.5, [1], {}, True, 1.0])
def test_what_is_no_newer_version_never_says_upgrade(version: object) -> None:
    assert "upgrade" not in refusal("plan", canonical_json({**document("plan"), "version": version})).hint


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b'"plan"', b"7", b"\xff\xfe", b"[" * 100_000, b'{"kind": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "null", "list", "text", "number", "no-utf8", "deep", "digits"],
)
@every_kind
def test_what_is_no_json_object_is_refused(kind: str, data: bytes) -> None:
    refusal(kind, data)


@every_kind
def test_a_document_cut_short_anywhere_is_refused(kind: str) -> None:
    data = golden(kind)
    for length in range(len(data)):
        refusal(kind, data[:length])


# One meaning has one name.


@st.composite
def shuffled(draw: st.DrawFn, value: Any) -> Any:
    """The same document with the keys of every object in another order."""
    if isinstance(value, dict):
        return {key: draw(shuffled(value[key])) for key in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [draw(shuffled(item)) for item in value]
    return value


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(CLASSES)))
def test_another_order_of_keys_is_refused(data: st.DataObject, kind: str) -> None:
    other = json.dumps(data.draw(shuffled(document(kind))), indent=2, ensure_ascii=False).encode() + b"\n"
    if other == golden(kind):
        return
    error = refusal(kind, other)
    assert "canonical" in error.fact
    assert error.values == {
        "expected": f"sha256:{DIGESTS[kind]}",
        "found": f"sha256:{hashlib.sha256(other).hexdigest()}",
    }


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(CLASSES)),
    indent=st.sampled_from([None, 0, 1, 2, 3, 4, "\t"]),
    comma=st.sampled_from([",", ", ", " ,"]),
    colon=st.sampled_from([":", ": ", " : "]),
    end=st.sampled_from(["", "\n", "\n\n", "\r\n", " \n"]),
    start=st.sampled_from(["", " ", "\n"]),
)
def test_other_spacing_is_refused(
    kind: str, indent: int | str | None, comma: str, colon: str, end: str, start: str
) -> None:
    text = json.dumps(document(kind), sort_keys=True, indent=indent, separators=(comma, colon), ensure_ascii=False)
    other = (start + text + end).encode()
    if other == golden(kind):
        assert CLASSES[kind].from_bytes(other, source="the same").canonical_bytes() == other
    else:
        assert "canonical" in refusal(kind, other).fact


@every_kind
def test_a_member_listed_twice_is_refused(kind: str) -> None:
    lines = golden(kind).decode().splitlines(keepends=True)
    members = [number for number, line in enumerate(lines) if re.match(r' +"[^"]+": [^\[{\n]+,\n$', line)]
    assert members
    for number in members:
        refusal(kind, "".join([*lines[: number + 1], *lines[number:]]).encode())


def respelled(token: str) -> list[str]:
    """Other ways to write the same JSON number."""
    if "." in token:
        return [token + "0", token + "e0", f"{float(token) * 10!r}e-1", token.rstrip("0") + "000"]
    return [token + ".0", token + "e0", token + ".00", "-0" if token == "0" else token + "E0"]


@every_kind
def test_a_number_written_in_another_way_is_refused(kind: str) -> None:
    text = golden(kind).decode()
    numbers = list(re.finditer(r"(?m)(?<=[ ])-?\d+(\.\d+)?(?=,?$)", text))
    assert numbers
    for number in numbers:
        for other in respelled(number[0]):
            refusal(kind, (text[: number.start()] + other + text[number.end() :]).encode())


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
@every_kind
def test_a_number_that_is_not_finite_is_refused(kind: str, token: str) -> None:
    text = golden(kind).decode()
    for number in re.finditer(r"(?m)(?<=[ ])-?\d+(\.\d+)?(?=,?$)", text):
        refusal(kind, (text[: number.start()] + token + text[number.end() :]).encode())


def test_canonical_json_writes_no_number_that_is_not_finite() -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"value": value})


@pytest.mark.parametrize("kind", ["plan", "evaluation"])
def test_an_escaped_letter_is_refused(kind: str) -> None:
    assert "é".encode() in golden(kind)
    assert "canonical" in refusal(kind, golden(kind).replace("é".encode(), b"\\u00e9")).fact


@every_kind
def test_another_encoding_is_refused(kind: str) -> None:
    text = golden(kind).decode()
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        refusal(kind, text.encode(encoding))


# Closed.


@every_kind
def test_an_unknown_field_is_refused_at_every_depth_without_its_value(kind: str) -> None:
    for path, value in places(document(kind)):
        if not isinstance(value, dict) or (path and path[-1] in OPEN):
            continue
        changed = document(kind)
        at(changed, path)["surprise"] = SECRET
        error = refusal(kind, canonical_json(changed))
        assert "surprise" in str(error)
        assert SECRET not in str(error)


@every_kind
def test_a_missing_field_is_refused_at_every_depth(kind: str) -> None:
    for path, _ in places(document(kind)):
        if not path or not isinstance(path[-1], str) or (len(path) > 1 and path[-2] in OPEN):
            continue
        changed = document(kind)
        del at(changed, path[:-1])[path[-1]]
        refusal(kind, canonical_json(changed))


@every_kind
def test_a_wrong_value_is_refused_at_every_depth_without_its_value(kind: str) -> None:
    for path, _ in places(document(kind)):
        if not path or path in (("kind",), ("version",)):
            continue
        changed = document(kind)
        at(changed, path[:-1])[path[-1]] = [[SECRET]]
        error = refusal(kind, canonical_json(changed))
        assert SECRET not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__


# What documents promise.


def edited(kind: str, edit: Callable[[Any], object]) -> bytes:
    changed = document(kind)
    edit(changed)
    return canonical_json(changed)


def plan_with_windows(windows: list[tuple[int, int]], start: int | None = None) -> bytes:
    def edit(plan: Any) -> None:
        decisions = plan["decisions"]
        decisions["windows"] = [{"start": first, "stop": stop} for first, stop in windows]
        trained = [{"layers": list(range(first, stop)), "extra": {}} for first, stop in windows]
        plan["memory"] = [{"assignment": assignment, "predicted_peak_bytes": 1} for assignment in trained]
        decisions["first_layer"] = min((first for first, _ in windows), default=0) if start is None else start

    return edited("plan", edit)


@pytest.mark.parametrize(
    "windows",
    [
        *([(2, 3), (3, 4)], [(0, 2), (1, 3), (2, 4)], [(2, 4)], [(0, 4)], [(4, 4)], [(0, 1), (1, 4)]),
        *([(3, 4), (2, 3)], [(2, 4), (0, 2)], [(1, 3), (2, 4), (1, 4)]),  # downwards, and in any order
    ],
)
def test_windows_that_hold_the_tail_are_accepted(windows: list[tuple[int, int]]) -> None:
    plan = PlanManifest.from_bytes(plan_with_windows(windows), source="plan")
    assert [(window.start, window.stop) for window in fleet.windows_of(plan)] == windows


@pytest.mark.parametrize(
    ("windows", "start", "says"),
    [
        ([], None, "every layer"),
        ([(4, 4)], 3, "every layer"),
        ([(2, 3)], None, "every layer"),
        ([(2, 3), (3, 5)], None, "the last layer"),
        ([(2, 3), (3, 4)], 1, "every layer"),
        ([(2, 3), (3, 4)], 3, "the start layer"),
        ([(0, 1), (2, 4)], None, "every layer"),
        ([(0, 1), (1, 2), (3, 4)], None, "every layer"),
        ([(1, 3), (2, 4), (1, 3)], None, "twice"),
        ([(3, 2), (2, 4)], 3, "before its stop"),
    ],
)
def test_windows_that_do_not_hold_the_tail_are_refused(
    windows: list[tuple[int, int]], start: int | None, says: str
) -> None:
    assert says in str(refusal("plan", plan_with_windows(windows, start)))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda plan: plan["memory"].pop(), "one predicted peak"),
        (lambda plan: plan["memory"].reverse(), "one predicted peak"),
        (lambda plan: plan["memory"].append(plan["memory"][-1]), "one predicted peak"),
        (lambda plan: plan["settings"]["similarity"].update(scale="auto"), "not auto"),
        (lambda plan: plan["settings"]["adapter"].update(activation="auto"), "not auto"),
        (lambda plan: plan["settings"]["chain"].update(window_size="auto"), "not auto"),
        (lambda plan: plan["settings"]["task"].update(labels=[]), "label set"),
        (lambda plan: plan["settings"]["task"].update(labels=["a", "a"]), "listed twice"),
        (lambda plan: plan["model"]["layers"].pop(), "one digest for each layer"),
        (lambda plan: plan["curve"][0].update(low=0.99), "does not hold the value"),
        (lambda plan: plan["decisions"]["start_range"].pop(), "start_range"),
        (lambda plan: plan["decisions"].update(start_reason="because"), "start_reason"),
        (lambda plan: plan["decisions"].update(limited_by="../x"), "limited_by"),
        (lambda plan: plan["decisions"].update(method="no-ft"), "decisions"),
        (lambda plan: plan["decisions"].update(method="surprise"), "method is one of"),
        (lambda plan: plan["settings"].update(chain={"method": "no-ft"}), "those of the method"),
        (lambda plan: plan.update(device_count=0), "device_count"),
        (lambda plan: plan.update(device_count=100_001), "device_count"),
        (lambda plan: plan.update(emulating_count=plan["device_count"] + 1), "more devices emulate than there are"),
        (lambda plan: plan["smallest_budget"].update(device="CON:"), "smallest_budget.device"),
        (lambda plan: plan["files"].clear(), "lists devices.jsonl once"),
        (lambda plan: plan["files"].append(plan["files"][0]), "lists devices.jsonl once"),
        (lambda plan: plan["trust"].update(coordinator=None), "come together"),
        (lambda plan: plan["head_parameters"][0].update(shape=[0]), "shape"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(edit: Callable[[Any], object], says: str) -> None:
    assert says in str(refusal("plan", edited("plan", edit)))


@pytest.mark.parametrize(
    ("kind", "edit", "says"),
    [
        ("profile", lambda d: d["layers"].pop(), "one value for each layer"),
        ("profile", lambda d: d["similarity"].update(scale="auto"), "not auto"),
        ("profile", lambda d: d["layers"][1].update(cka=0.95), "does not hold the value"),
        ("profile", lambda d: d["similarity"].update(min_examples=9), "above max_examples"),
        ("profile", lambda d: d["native_dtypes"].append(d["native_dtypes"][0]), "float32 among them"),
        ("profile", lambda d: d.update(native_dtypes=["bfloat16"]), "float32 among them"),
        ("profile", lambda d: d["native_dtypes"].clear(), "float32 among them"),
        ("state", lambda d: d.update(parent=None), "names its parent"),
        ("state", lambda d: d.update(round=0), "names its parent"),
        ("state", lambda d: d["files"].pop(0), "accepted.jsonl and participants.jsonl once each"),
        ("state", lambda d: d.update(participant_count=-1), "participant_count"),
        ("state", lambda d: d["tensors"][0].update(dtype="F16"), "tensors.0.dtype"),
        ("state", lambda d: d["files"][0].update(name="../tensors.safetensors"), "files.0.name"),
        ("update", lambda d: d.update(example_count=0), "example_count"),
        ("update", lambda d: d.update(steps=0), "steps"),
        ("update", lambda d: d["assignment"].update(layers=[3, 2]), "once each, in order"),
        ("update", lambda d: d["assignment"].update(layers=[2, 2]), "once each, in order"),
        ("update", lambda d: d["assignment"]["extra"].update({"Ranks": [1]}), "assignment.extra"),
        ("update", lambda d: d["numbers"].update({"../x": 1.0}), "numbers"),
        ("update", lambda d: d.update(plan=d["plan"].upper()), "plan"),
        ("evaluation", lambda d: d["confusion"][0].reverse() or d["confusion"].pop(), "row and a column"),
        ("evaluation", lambda d: d["confusion"][0].append(0), "row and a column"),
        ("evaluation", lambda d: d.update(labels=["a", "a"]), "row and a column"),
        ("evaluation", lambda d: d.update(example_count=11), "every example once"),
        ("evaluation", lambda d: d["confusion"][0].__setitem__(0, -5), "confusion.0.0"),
        ("benchmark", lambda d: d["scores"].clear(), "metrics must be named once"),
        ("benchmark", lambda d: d["scores"].append(d["scores"][0]), "metrics must be named once"),
        ("benchmark", lambda d: d["scores"][0]["groups"].reverse(), "groups must be named once"),
        ("benchmark", lambda d: d["scores"][0]["groups"].clear(), "groups must be named once"),
        ("benchmark", lambda d: d["scores"][0]["groups"][0].update(name="a b"), "groups.0.name"),
        ("benchmark", lambda d: d["scores"][0]["macro"].update(low=0.7), "does not hold its value"),
        ("benchmark", lambda d: d.update(example_count=9), "more questions than were asked"),
        ("benchmark", lambda d: d.update(shots=-1), "shots"),
        ("measured", lambda d: d.update(seconds=-1.0), "seconds"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(kind: str, edit: Callable[[Any], object], says: str) -> None:
    assert says in str(refusal(kind, edited(kind, edit)))


def test_a_profile_without_a_curve_is_accepted() -> None:
    assert ProfileManifest.from_bytes(edited("profile", lambda d: d["layers"].clear()), source="few").layers == ()


# Names.

BAD_NAMES = [
    *(
        "../x",
        "..",
        ".",
        "CON:",
        "con:",
        "a/b",
        "a\\b",
        "/x",
        "Clinic",
        "CLINIC",
        "clinic.",
        "clinic ",
        "clinic-",
        "clinic_",
    ),
    *(".hidden", "-x", "_x", "", " ", "a b", "a\n", "a\0b", "é", "a*", "a?", "a|b", "~", "$home", "a" * 65),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_leave_its_directory_or_a_stick_is_refused(name: str) -> None:
    for names in (DeviceName, FileName):
        with pytest.raises(ValidationError):
            TypeAdapter(names).validate_python(name)


@pytest.mark.parametrize("name", ["a1", "clinic-1", "tensors.safetensors", "a" * 64, "0.x_y-z"])
def test_a_plain_name_is_accepted(name: str) -> None:
    for names in (DeviceName, FileName):
        assert TypeAdapter(names).validate_python(name) == name


@settings(max_examples=100, deadline=None)
@given(name=st.text(alphabet=st.sampled_from("ab0._-/\\:A \n"), min_size=1, max_size=8))
def test_an_accepted_name_is_a_single_lower_case_part_of_a_path(name: str) -> None:
    try:
        TypeAdapter(DeviceName).validate_python(name)
    except ValidationError:
        return
    assert Path(name).parts == (name,)
    assert name == name.lower().strip(". \n")
    assert not set(name) & set('/\\:*?"<>| \n')


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "0" * 64, "md5:" + "0" * 64]
)
def test_a_digest_of_another_form_is_refused(digest: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Digest).validate_python(digest)


def test_a_window_prints_its_first_and_last_layer() -> None:
    assert [str(Window(start=2, stop=4)), str(Window(start=3, stop=4)), str(Window(start=4, stop=4))] == [
        "2-3",
        "3-3",
        "head",
    ]
    assert list(Window(start=2, stop=4).layers) == [2, 3]


def test_default_settings_are_valid() -> None:
    assert Settings.model_validate(Settings().model_dump()) == Settings()


# Bombs.


def bomb(kind: str, item: Any, count: int) -> bytes:
    """A canonical document with a list of `count` wrong items."""
    changed = document(kind)
    changed[{"plan": "curve", "update": "tensors"}[kind]] = [item] * count
    return canonical_json(changed)


@pytest.mark.parametrize("kind", ["plan", "update"])
def test_a_bomb_costs_nothing(kind: str) -> None:
    """Each of these took up to 2 GB and 8 s before lines were bounded and lists stopped at their first wrong item."""
    limit = CLASSES[kind].LIMIT_BYTES
    dense = golden(kind)[:-3] + b',\n  "zzz": [' + b"[]," * ((limit - len(golden(kind))) // 3 - 20) + b"[]]\n}\n"
    keys = canonical_json({**document(kind), **{f"k{number}": 0 for number in range(30_000)}})
    bombs = [bomb(kind, {}, limit // 9 - 1000), bomb(kind, 0, 30_000), bomb(kind, {}, 30_000), dense, keys]
    bombs += [canonical_json({**document(kind), "inputs": "y" * 900_000}), b"[" * limit, b"\n" * limit]
    for data in bombs:
        assert len(data) <= limit
        reset_peak()
        before = resident_bytes()
        refusal(kind, data)
        after = peak_bytes()
        assert after is not None
        assert before is not None
        assert after - before < 64 * 2**20
