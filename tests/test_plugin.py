"""The plugin in a host's worker: what it refuses, and which options of the host it keeps."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.envconfig import ClientConfig
from temporalio.worker import Worker

from db.migrate import SchemaOutdatedError
from embedded.stack import Addresses
from orchestration.codec import EncryptionCodec
from settings import Encryption, Settings
from tests.harness.command_line import empty_database
from thingbridge import HostRefusedError, ThingbridgePlugin


@workflow.defn(sandboxed=False)
class Nothing:
    """A workflow of a host."""

    @workflow.run
    async def run(self) -> None:
        """Do nothing."""


class Codec(PayloadCodec):
    """A host's codec, which changes no payload."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)


@pytest.fixture
def plugin(settings: Settings) -> ThingbridgePlugin:
    return ThingbridgePlugin(settings)


@pytest.fixture
def encrypting(settings: Settings) -> Settings:
    """Return settings with an encryption key and an own task queue."""
    keys = Encryption.model_validate({"keys": {"k": b64encode(bytes(32)).decode()}, "key_id": "k"})
    own = settings.worker.model_copy(update={"task_queue": f"encrypting-{uuid4()}"})
    return settings.model_copy(update={"encryption": keys, "worker": own})


def test_worker_with_another_task_queue_is_refused(client: Client, plugin: ThingbridgePlugin) -> None:
    """Otherwise no worker would run the bridge's workflows; the error names both queues."""
    with pytest.raises(HostRefusedError, match="task queue 'mine', the bridge on 'thingbridge'"):
        Worker(client, task_queue="mine", workflows=[Nothing], plugins=[plugin])


async def test_client_with_another_payload_converter_is_refused(
    stack: Addresses, plugin: ThingbridgePlugin
) -> None:
    """The error has both ways to fix that."""
    plain = await Client.connect(**ClientConfig.load_client_connect_config())
    with pytest.raises(HostRefusedError, match=r"give the plugin to Client\.connect, or data_converter="):
        Worker(plain, task_queue="thingbridge", workflows=[Nothing], plugins=[plugin])


async def test_codec_of_the_host_is_kept(stack: Addresses, plugin: ThingbridgePlugin) -> None:
    """A client with the plugin converts pydantic models and keeps the host's codec."""
    codec = Codec()
    own = await Client.connect(
        **ClientConfig.load_client_connect_config(),
        data_converter=replace(DataConverter.default, payload_codec=codec),
        plugins=[plugin],
    )
    assert own.data_converter.payload_converter_class is PydanticPayloadConverter
    assert own.data_converter.payload_codec is codec


async def test_pydantic_data_converter_gets_the_encryption_codec(
    stack: Addresses, encrypting: Settings
) -> None:
    """Payloads are encrypted also where the host names `pydantic_data_converter` beside the plugin."""
    own = await Client.connect(
        **ClientConfig.load_client_connect_config(),
        data_converter=pydantic_data_converter,
        plugins=[ThingbridgePlugin(encrypting)],
    )
    assert isinstance(own.data_converter.payload_codec, EncryptionCodec)
    Worker(own, task_queue=encrypting.worker.task_queue, workflows=[Nothing])


async def test_codec_without_the_keys_is_refused(engine: Engine, encrypting: Settings) -> None:
    """Otherwise encrypted events of the API would be rejected; a codec that passes them on is accepted."""
    url = SecretStr(empty_database(engine, encrypting.database_url.get_secret_value()))
    plugin = ThingbridgePlugin(encrypting.model_copy(update={"database_url": url}))

    class CodecWithKeys(Codec):
        async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
            assert encrypting.encryption.decoded_keys
            return await EncryptionCodec(encrypting.encryption.decoded_keys).decode(payloads)

    async def work(codec: PayloadCodec) -> None:
        client = await Client.connect(
            **ClientConfig.load_client_connect_config(),
            data_converter=replace(DataConverter.default, payload_codec=codec),
            plugins=[plugin],
        )
        async with Worker(client, task_queue=encrypting.worker.task_queue, workflows=[Nothing]):
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 60)

    with pytest.raises(HostRefusedError, match=r"the key k, and the client's codec .* cannot decrypt"):
        await asyncio.wait_for(work(Codec()), 120)
    # The next check is that of the database's schema.
    with pytest.raises(SchemaOutdatedError):
        await asyncio.wait_for(work(CodecWithKeys()), 120)


async def test_worker_with_an_unmigrated_database_is_refused(
    client: Client, engine: Engine, settings: Settings
) -> None:
    """The worker ends at once with the command to run, and does not wait for its own shutdown."""
    url = SecretStr(empty_database(engine, settings.database_url.get_secret_value()))
    # A worker of other tests in this process may use the bridge's own task queue.
    own = settings.worker.model_copy(update={"task_queue": "not-migrated"})
    plugin = ThingbridgePlugin(settings.model_copy(update={"database_url": url, "worker": own}))

    async def work() -> None:
        async with Worker(client, task_queue="not-migrated", workflows=[Nothing], plugins=[plugin]):
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 60)

    with pytest.raises(SchemaOutdatedError, match="run `thingbridge migrate`"):
        await asyncio.wait_for(work(), 120)


def test_host_that_logs_at_debug_logs_no_requests(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries would log requests with private keys at DEBUG."""
    library = logging.getLogger("botocore")
    monkeypatch.setattr(library, "level", logging.NOTSET)
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    ThingbridgePlugin(settings)
    assert logging.getLogger("botocore.endpoint").getEffectiveLevel() == logging.INFO
