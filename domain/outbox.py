"""The shards of the outbox, each of which one publisher sends."""

from typing import Final

from domain.model import Message

OUTBOX_SHARDS: Final = 4
"""The number of shards. The table's column `shard` is computed with it: a change needs a migration."""


class OutboxShard(Message):
    """A part of the outbox: all events of some devices."""

    number: int


class Published(Message):
    """The number of events that a publisher sent in one round."""

    sent: int
