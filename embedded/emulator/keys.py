"""Access keys that the account has revoked: moto takes any key, AWS none that it does not know any more."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from embedded.emulator.calls import AwsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.calls import Call

_ACCESS_KEY_ID = re.compile(r"Credential=(\w+)/")


class RevokedKeys:
    """The ids of revoked keys, and how often each was refused since."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._ends: dict[str, float] = {}
        self._refused: Counter[str] = Counter()

    def add(self, access_key_id: str, grace_seconds: float) -> None:
        """Take this key for some seconds more, as AWS's parts do before all of them know, and then never."""
        with self._guard:
            self._ends[access_key_id] = time.monotonic() + grace_seconds

    def clear(self) -> None:
        """Take every key again."""
        with self._guard:
            self._ends.clear()
            self._refused.clear()

    def refused(self) -> Mapping[str, int]:
        """How many calls each of them has signed in vain."""
        with self._guard:
            return dict(self._refused)

    def refuse(self, call: Call) -> None:
        """Refuse a call that such a key has signed, under the code that the call's protocol has for it."""
        signed = _ACCESS_KEY_ID.search(call.environ.get("HTTP_AUTHORIZATION", ""))
        with self._guard:
            ends = self._ends.get(signed[1]) if signed else None
            if signed is None or ends is None or time.monotonic() < ends:
                return
            self._refused[signed[1]] += 1
        code = "InvalidClientTokenId" if call.service == "sts" else "UnrecognizedClientException"
        raise AwsError(403, code, "The security token included in the request is invalid.")
