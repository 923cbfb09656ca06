"""The bridge in your own process: a plugin for your Temporal worker, and an application to mount.

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

from api.app import create_app
from composition import compose_activities, workflows_of
from domain.encryption import EncryptionKeys
from observability.logging import silence_request_logging
from orchestration.codec import EncryptionCodec, data_converter
from orchestration.sandbox import with_passthrough_modules
from settings import ApiSettings, InvalidSettingsError, Settings
from worker import INTERCEPTORS, background_services, open_aws, open_database, require_ready, worker_options

__all__ = [
    "ApiSettings",
    "HostRefusedError",
    "InvalidSettingsError",
    "Settings",
    "ThingbridgePlugin",
    "thingbridge_api",
]

_SLOT_OPTIONS: Final = (
    "max_concurrent_activities",
    "max_concurrent_local_activities",
    "max_concurrent_workflow_tasks",
)
# The SDK has defaults for these, so a host's own value cannot be distinguished from the default.
_FROM_SETTINGS: Final = (
    "graceful_shutdown_timeout",
    "max_cached_workflows",
    "max_heartbeat_throttle_interval",
)
_SHUTDOWN_RESERVE: Final = timedelta(seconds=30)


class HostRefusedError(RuntimeError):
    """The bridge cannot run in this worker or with this client; the message states what to change."""


def thingbridge_api(settings: ApiSettings) -> Starlette:
    """Return the bridge's HTTP application, to mount at any path of a Starlette or FastAPI application.

    Every call needs an API key of the bridge, as without a host. The application answers from the first
    request on. Its lifespan closes its connections, and frameworks do not run the lifespan of a mounted
    application: pass `lifespan=bridge.router.lifespan_context` to the host's application, or enter that
    context in the host's own lifespan.

    Args:
        settings: the result of `ApiSettings.load()`.
    """
    return create_app(settings)


class ThingbridgePlugin(SimplePlugin):
    """Add the bridge to a worker: workflows, activities, sandbox and background services.

    Pass it to `Client.connect`: then it also sets the data converter, and applies to every worker of that
    client. If it is passed to one worker only, the client needs `data_converter=pydantic_data_converter`.

    While the worker runs, the workers of the bridge's two other task queues run beside it, and the schedules
    are kept up to date. IOT_AWS_WORKER__… set the worker's options. The host sets all other options, and
    adds its own workflows and activities.

    Args:
        settings: the result of `Settings.load()`.

    Raises:
        AwsConfigurationError: there is no AWS region.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            "thingbridge",
            data_converter=partial(_with_pydantic, settings.encryption.decoded_keys),
            interceptors=INTERCEPTORS,
            workflows=workflows_of(settings.worker.areas),
            workflow_runner=with_passthrough_modules,
        )
        # A host may log at DEBUG, where the libraries would log requests with private keys.
        silence_request_logging()
        self._settings = settings
        self._engine = open_database(settings)
        self._aws = open_aws(settings)

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Add the bridge's options, workflows and activities to a worker.

        Raises:
            HostRefusedError: the worker has another task queue, or its client has another payload converter.
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
        if self._settings.encryption.decoded_keys and client.data_converter.payload_codec is None:
            raise HostRefusedError(
                "IOT_AWS_ENCRYPTION__KEYS is set, and the client's data converter has no codec: give the "
                "plugin to Client.connect, without a data_converter or with one that has a codec"
            )
        options = cast("dict[str, Any]", super().configure_worker(config))
        options["activities"] = [
            *(config.get("activities") or ()),
            *compose_activities(self._settings, client, self._aws, self._engine),
        ]
        for name, value in worker_options(own).items():
            # The SDK accepts a tuner or numbers of slots, not both.
            unset = options.get(name) is None and not (options.get("tuner") and name in _SLOT_OPTIONS)
            if unset or name in _FROM_SETTINGS:
                options[name] = value
        # The background services stop after the worker, and need as much time again.
        if timeout := options.get("plugin_shutdown_timeout"):
            at_least = timedelta(seconds=own.shutdown_grace_seconds) + _SHUTDOWN_RESERVE
            options["plugin_shutdown_timeout"] = max(timeout, at_least)
        return cast("WorkerConfig", options)

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Run the worker and the bridge's background services.

        Raises:
            HostRefusedError: the client cannot decrypt payloads under IOT_AWS_ENCRYPTION__KEYS.
            SchemaOutdatedError, WrongHashKeyError, SearchAttributesError, ScheduleError: the message has
                what to do first.
        """
        client = _without_plugins(worker.client)
        try:
            async with AsyncExitStack() as background:
                try:
                    await _require_decrypting(client, self._settings.encryption.decoded_keys)
                    await require_ready(self._settings, client, self._engine)
                    await background.enter_async_context(
                        background_services(self._settings, client, self._aws, self._engine)
                    )
                except BaseException:
                    await _end_before_start(worker, next)
                    raise
                await next(worker)
        finally:
            self._engine.dispose()


def _with_pydantic(encryption: EncryptionKeys | None, converter: DataConverter | None) -> DataConverter:
    """Return the host's data converter with its codec, changed so that it converts pydantic models."""
    if converter in (None, DataConverter.default, pydantic_data_converter):
        return data_converter(encryption)
    if converter.payload_converter_class is DefaultPayloadConverter:
        return replace(converter, payload_converter_class=PydanticPayloadConverter)
    # A payload converter of the host's own may derive from pydantic's; configure_worker refuses any other.
    return converter


async def _require_decrypting(client: Client, encryption: EncryptionKeys | None) -> None:
    """Check that the client's codec has the keys. Otherwise encrypted events would be rejected as invalid.

    Raises:
        HostRefusedError: the client's codec cannot decrypt.
    """
    codec = client.data_converter.payload_codec
    if encryption is None or codec is None:
        return
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b"null")
    for key_id in encryption.keys:
        sealed = await EncryptionCodec(replace(encryption, key_id=key_id)).encode([plain])
        try:
            read = await codec.decode(sealed)
        except Exception:  # noqa: BLE001  # a host's codec may raise anything
            read = []
        if read != [plain]:
            raise HostRefusedError(
                f"IOT_AWS_ENCRYPTION__KEYS has the key {key_id}, and the client's codec "
                f"({type(codec).__name__}) cannot decrypt payloads under it: call "
                "orchestration.codec.EncryptionCodec in that codec, or remove these keys"
            )


def _without_plugins(client: Client) -> Client:
    """Return the same client without plugins, so that the background workers do not get this plugin again."""
    # The active configuration has the converter and interceptors that the plugins have set.
    config = client.config(active_config=True)
    config["plugins"] = []
    return Client(**config)


async def _end_before_start(worker: Worker, run: Callable[[Worker], Awaitable[None]]) -> None:
    """Run and cancel a worker that was not started: the SDK's `async with` would wait for it for ever."""
    running = asyncio.ensure_future(run(worker))
    # At its first await the worker describes the namespace. It is cancelled there, before it polls.
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
