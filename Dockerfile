# The production image: the worker by default, and every other command of `thingbridge`.
# It contains neither the extra `embedded` (the servers of the dev stack) nor a development group.

FROM python:3.11.14-slim-bookworm AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/thingbridge
WORKDIR /src
# Dependencies first, so that a change of code does not download them again. Only files with a known hash, and
# only wheels: no dependency runs code at build time.
COPY deploy/requirements.txt deploy/requirements.txt
RUN uv venv "$VIRTUAL_ENV" \
    && uv pip sync --require-hashes --only-binary :all: deploy/requirements.txt
# .dockerignore admits the files of the wheel, and nothing else.
COPY . .
RUN uv pip install --no-deps .

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin thingbridge
COPY --from=build /opt/thingbridge /opt/thingbridge
ENV PATH="/opt/thingbridge/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/thingbridge
# On SIGTERM the worker accepts no new task and lets its activities end: give it a grace period.
STOPSIGNAL SIGTERM
ENTRYPOINT ["thingbridge"]
CMD ["worker"]
