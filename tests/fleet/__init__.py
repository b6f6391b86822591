"""Everything that tests share: small real models, labelled texts, manifests, federations, and the stages as tests call
them.  No test imports another test.

    labelled_texts  and files of them
    recipes     settings for the tiny models
    models      models of many architectures, opened as the stages open them; random adapters
    manifests   profiles, plans and updates that were never computed
    server      a federation of made-up tensors: plan, states, updates, rounds
    stages      profile, plan, train-window, aggregate and eval, called in one place
    damage      files with one bit altered
    processes   the command line, in this process or in one of its own

What only a few tests need is imported by its module: `confined` (the command line within limits of the system),
`device` (one device trains), `federation` (a state to export), `speaker` (a model that answers questions),
`runs` (run folders as the commands leave them), `browser` (a real one), `benchmark_files`, `gguf_file`, `fork_server`
(`chainctl` for shell scripts).

A device here is a folder; what it sees of the world are the files carried to it.
"""

from tests.fleet.damage import flip, flip_weight
from tests.fleet.labelled_texts import LABELS, examples, save_texts, texts, token_ids
from tests.fleet.manifests import (
    MIB,
    TENSORS,
    ZERO,
    accepted_devices,
    decided,
    peak,
    plan_manifest,
    profile_manifest,
    rewrite,
    update_manifest,
    write_plan,
    write_update,
)
from tests.fleet.models import (
    DEPTH,
    FAMILIES,
    FINISHING,
    LANGUAGE_MODELS,
    WIDTH,
    adapted,
    batch,
    config_of,
    open_backbone,
    open_model,
    random_adapters,
    save_model,
    save_stored_as,
    save_tokenizer,
    stream,
    windows,
)
from tests.fleet.processes import ROOT, Done, chainctl, chainctl_process
from tests.fleet.recipes import LANGUAGE, settings, write_recipe
from tests.fleet.server import DEVICES, assigned, combine, make_update, make_world, trained_tensors, windows_of
from tests.fleet.stages import (
    ROOMY_BYTES,
    begin,
    places,
    run_aggregate,
    run_eval,
    run_plan,
    run_profile,
    run_train,
)

__all__ = [
    "DEPTH",
    "DEVICES",
    "FAMILIES",
    "FINISHING",
    "LABELS",
    "LANGUAGE",
    "LANGUAGE_MODELS",
    "MIB",
    "ROOMY_BYTES",
    "ROOT",
    "TENSORS",
    "WIDTH",
    "ZERO",
    "Done",
    "accepted_devices",
    "adapted",
    "assigned",
    "batch",
    "begin",
    "chainctl",
    "chainctl_process",
    "combine",
    "config_of",
    "decided",
    "examples",
    "flip",
    "flip_weight",
    "make_update",
    "make_world",
    "open_backbone",
    "open_model",
    "peak",
    "places",
    "plan_manifest",
    "profile_manifest",
    "random_adapters",
    "rewrite",
    "run_aggregate",
    "run_eval",
    "run_plan",
    "run_profile",
    "run_train",
    "save_model",
    "save_stored_as",
    "save_texts",
    "save_tokenizer",
    "settings",
    "stream",
    "texts",
    "token_ids",
    "trained_tensors",
    "update_manifest",
    "windows",
    "windows_of",
    "write_plan",
    "write_recipe",
    "write_update",
]
