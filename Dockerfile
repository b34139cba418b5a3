# syntax=docker/dockerfile:1
# The scorer, the trainer and the client in one image, without weights: bundles and backbones come by volume or hub.
#
#   docker build -t quorum .                                   the server, on the CPU
#   docker build -t quorum:cuda --build-arg DEVICE=cuda .      the same, on NVIDIA's GPUs
#   docker build -t quorum:trainer --build-arg EXTRAS=server,trainer,openai .
#
# It serves the newest bundle of each name in /bundles, and wants keys: docs/containers.md.
# TORCH_INDEX: PyTorch's index of wheels for the CPU makes a CPU image some gigabytes smaller; its installation page has it.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG EXTRAS=server,openai,traces,ui
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch by itself, before the sources: this layer is large and seldom changes.
RUN python -m venv /opt/quorum \
    && /opt/quorum/bin/pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY clients clients
COPY server server
COPY trainer trainer
RUN /opt/quorum/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim-bookworm
# cpu or cuda. A server that is to run on a GPU and finds none ends with an error, and does not quietly run slowly.
ARG DEVICE=cpu
LABEL org.opencontainers.image.title="Quorum" \
      org.opencontainers.image.description="Reward-model ensembles as a service" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/quorum quorum \
    && install -d -o quorum -g quorum /var/lib/quorum /var/cache/quorum /bundles
COPY --from=build /opt/quorum /opt/quorum
# Everything that is written lies in /var/lib/quorum (what is served), /var/cache/quorum (the hub's files) or /tmp, so
# that the rest can be mounted read-only.
ENV PATH=/opt/quorum/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/cache/quorum/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    GRADIO_TEMP_DIR=/tmp/gradio \
    QUORUM_DEVICE=${DEVICE} \
    QUORUM_HOST=0.0.0.0 \
    QUORUM_PORT=8000 \
    QUORUM_BUNDLE_ROOTS=/bundles \
    QUORUM_WATCH=/bundles
USER 10001:10001
WORKDIR /home/quorum
EXPOSE 8000
VOLUME ["/var/lib/quorum", "/var/cache/quorum"]
# Alive, not ready: a server that loads a large backbone is not to be killed for it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["quorum"]
CMD ["serve"]
