"""The host's Temporal client, configured by TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, …."""

from collections.abc import Sequence

from temporalio.client import Client, Plugin
from temporalio.envconfig import ClientConfig


async def connect(plugins: Sequence[Plugin] = ()) -> Client:
    """Connect a client with these plugins."""
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "localhost:7233")
    return await Client.connect(**config, plugins=plugins)
