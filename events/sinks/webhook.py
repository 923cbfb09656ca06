"""Events as webhooks, signed after the Standard Webhooks spec."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx2
from anyio import fail_after
from anyio.from_thread import BlockingPortal, start_blocking_portal
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook

from events.sink import EventRejectedError, SinkGoneError, SinkUnavailableError, as_json, fingerprint

_CALL_SECONDS: Final = 9.0
# Shorter than the least that servers are wont to keep a connection, so that none is closed under a call.
_IDLE_CONNECTION_SECONDS: Final = 2.0
# An answer is read to its end, so that the connection serves again, unless that end is far.
_ANSWER_BYTES: Final = 65_536

# What says that the event is at fault. Of the others, 401 and 403 mean the secret or a gateway, 404 a route
# that is not deployed yet, 408, 409, 425 and 429 try again: they pass with nothing lost.
_REFUSALS: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)


class WebhookSink:
    """An endpoint that takes events by POST and answers 2xx for those it has.

    Args:
        portal: where the client is at work.
        client: what calls the endpoint.
        url: the endpoint; it may hold a token.
        secrets: `whsec_…`; each of them signs.
        call_seconds: how long a call may take, from finding the host's address to the answer's end.
    """

    kind = "webhook"

    def __init__(
        self,
        portal: BlockingPortal,
        client: httpx2.AsyncClient,
        url: str,
        secrets: Sequence[str],
        call_seconds: float,
    ) -> None:
        self._portal = portal
        self._client = client
        self._call_seconds = call_seconds
        self._url = httpx2.URL(url)
        self._signers = [Webhook(secret) for secret in secrets]
        self.fingerprint = fingerprint(self.kind, url)

    def send(self, event: CloudEvent) -> None:
        """Post the event."""
        status, headers = self._portal.call(self._post, event)
        # Of the address the host alone, and nothing of the answer: it may repeat what was sent.
        answer = f"{self._url.host} answered {status} {_phrase(status)}".rstrip()
        if 200 <= status < 300:
            return
        if status == HTTPStatus.GONE:
            raise SinkGoneError(answer)
        if status in _REFUSALS:
            raise EventRejectedError(answer)
        raise SinkUnavailableError(answer, _wait(headers.get("retry-after")))

    async def _post(self, event: CloudEvent) -> tuple[int, Mapping[str, str]]:
        body = as_json(event)
        try:
            with fail_after(self._call_seconds):
                async with self._client.stream(
                    "POST", self._url, content=body, headers=self._headers(event.get_id(), body)
                ) as answer:
                    read = 0
                    async for chunk in answer.aiter_raw():
                        read += len(chunk)
                        if read > _ANSWER_BYTES:
                            break
                    return answer.status_code, answer.headers
        except TimeoutError:
            raise SinkUnavailableError(
                f"{self._url.host} did not answer within {self._call_seconds:g} s"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
            raise SinkUnavailableError(f"no answer from {self._url.host}: {why}") from None

    def _headers(self, event_id: str, body: str) -> dict[str, str]:
        now = datetime.now(UTC)
        return {
            "content-type": JSONFormat.CONTENT_TYPE,
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(event_id, now, body) for signer in self._signers),
        }


@contextmanager
def open_webhook(
    url: str, secrets: Sequence[str], call_seconds: float = _CALL_SECONDS
) -> Iterator[WebhookSink]:
    """A sink and its connections, on an event loop of their own.

    Only there can a call be given up as a whole: a client's own timeouts begin anew with each byte. Redirects
    are not followed: where events go is a setting.
    """
    client = httpx2.AsyncClient(
        timeout=call_seconds,
        limits=httpx2.Limits(keepalive_expiry=_IDLE_CONNECTION_SECONDS),
        follow_redirects=False,
        headers={"user-agent": "thingbridge"},
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        yield WebhookSink(portal, client, url, secrets, call_seconds)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _wait(retry_after: str | None) -> timedelta | None:
    """How long `Retry-After` asks to wait: seconds, or until a date."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        # Not as many as the digits say, which may be more than a timedelta holds.
        return timedelta(seconds=float(retry_after[:9]))
    try:
        return parsedate_to_datetime(retry_after).astimezone(UTC) - datetime.now(UTC)
    except ValueError:
        return None
