# The server's image: `docker build --build-arg ACCEL=cpu .`, or ACCEL=gpu. Weights stay outside: mount /app/checkpoints.
FROM python:3.11.14-slim-bookworm AS build
ARG ACCEL=cpu
WORKDIR /app
COPY requirements requirements
COPY scripts/setup.sh scripts/setup.sh
COPY pyproject.toml README.md ./
COPY models models
COPY serve_app serve_app
RUN LIST=requirements/$ACCEL-serve.txt scripts/setup.sh

FROM python:3.11.14-slim-bookworm
# A compiler: torch and triton make kernels where they run. wget: what KubeRay's probes call.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libc6-dev libgomp1 libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home acestep
WORKDIR /app
COPY --from=build /app /app
COPY configs configs
COPY serve_config.yaml ./
COPY scripts/start.sh scripts/start.sh
RUN mkdir data checkpoints adapters && chown acestep data checkpoints adapters
USER 10001
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
EXPOSE 8001
ENTRYPOINT ["scripts/start.sh"]
