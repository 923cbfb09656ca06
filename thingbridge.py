"""What adds the bridge to a process of your own: a plugin for its Temporal worker, an application to mount.

Worker(client, task_queue="thingbridge", plugins=[ThingbridgePlugin(Settings.load())], …)
app.mount("/bridge", thingbridge_api(ApiSettings.load()))
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, cast

from starlette.applications import Starlette
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import DataConverter, DefaultPayloadConverter
from temporalio.plugin import SimplePlugin
from temporalio.worker import Worker, WorkerConfig

from activities.attempt import AttemptInterceptor
from api.app import create_app
from composition import compose_activities, workflows_of
from domain.encryption import EncryptionKeys
from observability import telemetry
from orchestration.codec import EncryptionCodec, data_converter
from orchestration.interceptors import LogContextInterceptor
from orchestration.sandbox import passing_through
from settings import ApiSettings, InvalidSettingsError, Settings
from worker import background_services, open_aws, open_database, require_ready, worker_options

__all__ = [
    "ApiSettings",
    "HostRefusedError",
    "InvalidSettingsError",
    "Settings",
    "ThingbridgePlugin",
    "thingbridge_api",
]

_SLOTS: Final = (
    "max_concurrent_activities",
    "max_concurrent_local_activities",
    "max_concurrent_workflow_tasks",
)
# These have a default of the SDK's own, so that what a host has set cannot be told from it.
_BY_THE_SETTINGS: Final = (
    "graceful_shutdown_timeout",
    "max_cached_workflows",
    "max_heartbeat_throttle_interval",
)
_LAST_WORDS: Final = timedelta(seconds=30)


class HostRefusedError(RuntimeError):
    """The bridge cannot work in this worker or with this client; says what to change."""


def thingbridge_api(settings: ApiSettings) -> Starlette:
    """The bridge's HTTP doors, to be mounted at any path of a Starlette or FastAPI application.

    Every call carries a key of the bridge, as without a host. It answers from the first request on; its
    connections are closed by its lifespan, which no framework runs for what is mounted: have the host's be
    `lifespan=bridge.router.lifespan_context`, or enter that context in the host's own.

    Args:
        settings: as `ApiSettings.load()` reads them.
    """
    return create_app(settings)


class ThingbridgePlugin(SimplePlugin):
    """Adds the bridge to a worker: workflows, activities, sandbox, and what works beside it.

    Given to `Client.connect`, it sees to the data converter too, and every worker of that client has it.
    Given to one worker alone, its client needs `data_converter=pydantic_data_converter`.

    While the worker runs, the bridge's two other queues are worked on beside it, and its schedules are kept.
    The worker is as IOT_AWS_WORKER__… say; what they leave open, and its own workflows and activities, are
    the host's.

    Args:
        settings: as `Settings.load()` reads them.

    Raises:
        AwsConfigurationError: there is no AWS region.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            "thingbridge",
            data_converter=partial(_with_models, settings.encryption.in_use),
            interceptors=[LogContextInterceptor(), AttemptInterceptor()],
            workflows=workflows_of(settings.worker.areas),
            workflow_runner=passing_through,
        )
        # Whatever the host logs: at DEBUG the libraries would say private keys.
        telemetry.silence_request_logging()
        self._settings = settings
        self._engine = open_database(settings)
        self._aws = open_aws(settings)

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Add what the bridge has to a worker.

        Raises:
            HostRefusedError: the worker is on another task queue, or its client writes payloads otherwise.
        """
        own, client = self._settings.worker, config["client"]
        if config["task_queue"] != own.task_queue:
            raise HostRefusedError(
                f"the worker is on task queue {config['task_queue']!r}, the bridge on {own.task_queue!r}: "
                "make them the same (IOT_AWS_WORKER__TASK_QUEUE). Where a client has workers on several "
                "queues, give the plugin to the bridge's worker alone, not to the client"
            )
        converter = client.data_converter.payload_converter_class
        if not issubclass(converter, PydanticPayloadConverter):
            raise HostRefusedError(
                f"the client's payload converter is {converter.__name__}, the bridge needs pydantic's: "
                "give the plugin to Client.connect, or data_converter=pydantic_data_converter"
            )
        if self._settings.encryption.in_use and client.data_converter.payload_codec is None:
            raise HostRefusedError(
                "IOT_AWS_ENCRYPTION__KEYS is set, and the client's data converter has no codec: give the "
                "plugin to Client.connect, and that no data_converter of its own or one with a codec"
            )
        options = cast("dict[str, Any]", super().configure_worker(config))
        options["activities"] = [
            *(config.get("activities") or ()),
            *compose_activities(self._settings, client, self._aws, self._engine),
        ]
        for name, value in worker_options(own).items():
            # A tuner is instead of slots.
            unset = options.get(name) is None and not (options.get("tuner") and name in _SLOTS)
            if unset or name in _BY_THE_SETTINGS:
                options[name] = value
        # For what works beside the worker to end after it, in as much time.
        if patience := options.get("plugin_shutdown_timeout"):
            at_least = timedelta(seconds=own.shutdown_grace_seconds) + _LAST_WORDS
            options["plugin_shutdown_timeout"] = max(patience, at_least)
        return cast("WorkerConfig", options)

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Run the worker, and beside it what the bridge needs.

        Raises:
            HostRefusedError: the client cannot read what IOT_AWS_ENCRYPTION__KEYS encrypt.
            SchemaOutdatedError, WrongHashKeyError, SearchAttributesError, ScheduleError: what must be done
                before it may start.
        """
        client = _without_plugins(worker.client)
        try:
            async with AsyncExitStack() as beside:
                try:
                    await _require_decrypting(client, self._settings.encryption.in_use)
                    await require_ready(self._settings, client, self._engine)
                    await beside.enter_async_context(
                        background_services(self._settings, client, self._aws, self._engine)
                    )
                except BaseException:
                    await _end_before_it_works(worker, next)
                    raise
                await next(worker)
        finally:
            self._engine.dispose()


def _with_models(encryption: EncryptionKeys | None, converter: DataConverter | None) -> DataConverter:
    """A host's converter, its codec with it, that also converts pydantic's models."""
    if converter in (None, DataConverter.default, pydantic_data_converter):
        return data_converter(encryption)
    if converter.payload_converter_class is DefaultPayloadConverter:
        return replace(converter, payload_converter_class=PydanticPayloadConverter)
    # One of its own may be pydantic's all the same; else the worker refuses.
    return converter


async def _require_decrypting(client: Client, encryption: EncryptionKeys | None) -> None:
    """Refuse a codec that does not know the keys: it would have encrypted events rejected as none.

    Raises:
        HostRefusedError: the client has such a one.
    """
    codec = client.data_converter.payload_codec
    if encryption is None or codec is None:
        return
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b"null")
    for key_id in encryption.keys:
        sealed = await EncryptionCodec(replace(encryption, key_id=key_id)).encode([plain])
        try:
            read = await codec.decode(sealed)
        except Exception:  # noqa: BLE001  # whatever a host's codec makes of what it cannot read
            read = []
        if read != [plain]:
            raise HostRefusedError(
                f"IOT_AWS_ENCRYPTION__KEYS has the key {key_id}, and the client's codec "
                f"({type(codec).__name__}) cannot read what it encrypts: have it hand that to "
                "orchestration.codec.EncryptionCodec, or do without these keys"
            )


def _without_plugins(client: Client) -> Client:
    """The same client, for workers that are not to be given the plugin in their turn."""
    # What plugins made of it stays: converter and interceptors.
    made = client.config(active_config=True)
    made["plugins"] = []
    return Client(**made)


async def _end_before_it_works(worker: Worker, run: Callable[[Worker], Awaitable[None]]) -> None:
    """Have the SDK note the end of a worker that never began: its `async with` would wait for it for ever."""
    running = asyncio.ensure_future(run(worker))
    # It is then at asking for the namespace, before it takes any work, and notes that it was cancelled there.
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
