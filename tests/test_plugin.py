"""The plugin in a host's worker: where it refuses, and what of the host's it keeps."""

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
    """A host's codec, which changes nothing."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)


@pytest.fixture
def plugin(settings: Settings) -> ThingbridgePlugin:
    return ThingbridgePlugin(settings)


@pytest.fixture
def encrypting(settings: Settings) -> Settings:
    """Settings with a key, and with a queue of their own."""
    keys = Encryption.model_validate({"keys": {"k": b64encode(bytes(32)).decode()}, "key_id": "k"})
    own = settings.worker.model_copy(update={"task_queue": f"encrypting-{uuid4()}"})
    return settings.model_copy(update={"encryption": keys, "worker": own})


def test_a_worker_of_another_queue_is_refused(client: Client, plugin: ThingbridgePlugin) -> None:
    """Else the bridge's workflows would wait where nobody is; both queues are named."""
    with pytest.raises(HostRefusedError, match="task queue 'mine', the bridge on 'thingbridge'"):
        Worker(client, task_queue="mine", workflows=[Nothing], plugins=[plugin])


async def test_a_client_that_writes_payloads_otherwise_is_refused(
    stack: Addresses, plugin: ThingbridgePlugin
) -> None:
    """It is told of both ways to mend that."""
    plain = await Client.connect(**ClientConfig.load_client_connect_config())
    with pytest.raises(HostRefusedError, match=r"give the plugin to Client\.connect, or data_converter="):
        Worker(plain, task_queue="thingbridge", workflows=[Nothing], plugins=[plugin])


async def test_a_hosts_own_codec_is_kept(stack: Addresses, plugin: ThingbridgePlugin) -> None:
    """A client that is given the plugin converts pydantic's models, and encodes as the host says."""
    codec = Codec()
    own = await Client.connect(
        **ClientConfig.load_client_connect_config(),
        data_converter=replace(DataConverter.default, payload_codec=codec),
        plugins=[plugin],
    )
    assert own.data_converter.payload_converter_class is PydanticPayloadConverter
    assert own.data_converter.payload_codec is codec


async def test_keys_are_at_work_under_pydantics_own_converter(stack: Addresses, encrypting: Settings) -> None:
    """A host that names it beside the plugin has it encrypt all the same."""
    own = await Client.connect(
        **ClientConfig.load_client_connect_config(),
        data_converter=pydantic_data_converter,
        plugins=[ThingbridgePlugin(encrypting)],
    )
    assert isinstance(own.data_converter.payload_codec, EncryptionCodec)
    Worker(own, task_queue=encrypting.worker.task_queue, workflows=[Nothing])


async def test_a_codec_that_does_not_know_the_keys_is_refused(engine: Engine, encrypting: Settings) -> None:
    """Else events that the API has encrypted would be rejected; one that hands them on is taken."""
    url = SecretStr(empty_database(engine, encrypting.database_url.get_secret_value()))
    plugin = ThingbridgePlugin(encrypting.model_copy(update={"database_url": url}))

    class Knowing(Codec):
        async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
            assert encrypting.encryption.in_use
            return await EncryptionCodec(encrypting.encryption.in_use).decode(payloads)

    async def work(codec: PayloadCodec) -> None:
        client = await Client.connect(
            **ClientConfig.load_client_connect_config(),
            data_converter=replace(DataConverter.default, payload_codec=codec),
            plugins=[plugin],
        )
        async with Worker(client, task_queue=encrypting.worker.task_queue, workflows=[Nothing]):
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 60)

    with pytest.raises(HostRefusedError, match=r"the key k, and the client's codec .* cannot read"):
        await asyncio.wait_for(work(Codec()), 120)
    # Its next question is the database's schema.
    with pytest.raises(SchemaOutdatedError):
        await asyncio.wait_for(work(Knowing()), 120)


async def test_a_host_whose_database_is_not_migrated_is_refused(
    client: Client, engine: Engine, settings: Settings
) -> None:
    """Its worker ends at once, with what to run, and does not wait for its own end."""
    url = SecretStr(empty_database(engine, settings.database_url.get_secret_value()))
    # Another worker of this process, of other tests, may be on the bridge's own queue.
    own = settings.worker.model_copy(update={"task_queue": "not-migrated"})
    plugin = ThingbridgePlugin(settings.model_copy(update={"database_url": url, "worker": own}))

    async def work() -> None:
        async with Worker(client, task_queue="not-migrated", workflows=[Nothing], plugins=[plugin]):
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 60)

    with pytest.raises(SchemaOutdatedError, match="run `thingbridge migrate`"):
        await asyncio.wait_for(work(), 120)


def test_a_host_that_logs_all_has_no_key_logged(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests with private keys in them would be logged at DEBUG."""
    library = logging.getLogger("botocore")
    monkeypatch.setattr(library, "level", logging.NOTSET)
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    ThingbridgePlugin(settings)
    assert logging.getLogger("botocore.endpoint").getEffectiveLevel() == logging.INFO
