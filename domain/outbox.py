"""How the outbox is shared out among publishers."""

from typing import Final

from pydantic import BaseModel

OUTBOX_SHARDS: Final = 4
"""So many publishers send side by side. The table's column `shard` counts the same way: another number
takes a migration."""


class OutboxShard(BaseModel):
    """The part of the outbox that one publisher sends: some devices, and all of their events."""

    number: int


class Published(BaseModel):
    """What a publisher got done in a round."""

    sent: int
