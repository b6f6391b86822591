# chainctl on the CPU, from its wheel, without root.  Build the wheel first: `just release --rehearsal`.
# docs/install.md says how to run the image and how this file is checked.
FROM debian:bookworm-slim AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/*
# torch before all else: a layer that changes only with its version, from an index without CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/chainctl \
    && /opt/chainctl/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" torch==2.13.0
COPY dist/chainctl-*.whl /tmp/
RUN /opt/chainctl/bin/pip install --no-cache-dir "$(ls /tmp/chainctl-*.whl)[data,sign]"

FROM base
COPY --from=build /opt/chainctl /opt/chainctl
RUN useradd --uid 10001 --create-home chainctl \
    && install -d -m 0700 -o chainctl -g chainctl /home/chainctl /var/lib/chainctl /federation
ENV PATH=/opt/chainctl/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/chainctl \
    CHAINCTL_HOME=/var/lib/chainctl \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
# keys and trusted coordinators; the home; artifacts.  Mount the model at /model, read-only.
VOLUME ["/var/lib/chainctl", "/home/chainctl", "/federation"]
WORKDIR /federation
ENTRYPOINT ["chainctl"]
CMD ["--help"]
