"""The host's worker: its own workflow, and those of the bridge by one plugin.

python -m greenhouse.work
"""

import asyncio
import logging
import signal

from temporalio.worker import Worker

from greenhouse.connection import connect
from greenhouse.labels import LabelDevice, print_label
from thingbridge import Settings, ThingbridgePlugin


async def main() -> None:
    """Run the worker until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = Settings.load()
    client = await connect(plugins=[ThingbridgePlugin(settings)])
    async with Worker(
        client,
        task_queue=settings.worker.task_queue,
        workflows=[LabelDevice],
        activities=[print_label],
    ):
        await stop.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
