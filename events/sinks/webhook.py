"""Events as webhooks, signed according to the Standard Webhooks specification."""

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

from events.cloud_events import as_json
from events.sink import EventRefusedError, SinkGoneError, SinkUnavailableError, fingerprint

_CALL_SECONDS: Final = 9.0
# Shorter than the keep-alive timeout of common servers, so that no server closes a connection during a call.
_IDLE_CONNECTION_SECONDS: Final = 2.0
# A response is read to its end so that its connection can be reused, but only up to this size.
_RESPONSE_BYTES: Final = 65_536

# The statuses by which an endpoint refuses the event. The other client errors may pass: 401 and 403 mean the
# secret or a gateway, 404 a route that is not deployed yet, and 408, 409, 425 and 429 ask for a retry.
_REFUSAL_STATUSES: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)


class WebhookSink:
    """Posts events to an HTTP endpoint, which answers 2xx for each event it has accepted.

    Args:
        portal: the event loop that the client runs in.
        client: the HTTP client.
        url: the endpoint; it may contain a token.
        secrets: signing secrets, `whsec_…`; each request is signed with all of them.
        call_seconds: the timeout of a whole call, from resolving the host to the end of the response.
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
        """Post the event.

        Raises:
            EventRefusedError: the endpoint answered 400, 413 or 422.
            SinkGoneError: the endpoint answered 410.
            SinkUnavailableError: the endpoint answered with another status, or not at all.
        """
        status, headers = self._portal.call(self._post, event)
        # Only the host and the status: the URL may contain a token, and the response may repeat the request.
        reason = f"{self._url.host} answered {status} {_phrase(status)}".rstrip()
        if 200 <= status < 300:
            return
        if status == HTTPStatus.GONE:
            raise SinkGoneError(reason)
        if status in _REFUSAL_STATUSES:
            raise EventRefusedError(reason)
        raise SinkUnavailableError(reason, _retry_after(headers.get("retry-after")))

    async def _post(self, event: CloudEvent) -> tuple[int, Mapping[str, str]]:
        body = as_json(event)
        try:
            with fail_after(self._call_seconds):
                async with self._client.stream(
                    "POST", self._url, content=body, headers=self._headers(event.get_id(), body)
                ) as response:
                    read = 0
                    async for chunk in response.aiter_raw():
                        read += len(chunk)
                        if read > _RESPONSE_BYTES:
                            break
                    return response.status_code, response.headers
        except TimeoutError:
            raise SinkUnavailableError(
                f"{self._url.host} did not answer within {self._call_seconds:g} s"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise SinkUnavailableError(f"no answer from {self._url.host}: {reason}") from None

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
    """Open a sink with a connection pool, on an event loop in a thread of its own.

    Only an event loop can limit the duration of a call as a whole: the timeouts of an HTTP client start again
    with each received byte. Redirects are not followed, because the destination of events is a setting.
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


def _retry_after(value: str | None) -> timedelta | None:
    """Return the wait that a `Retry-After` header requests, in seconds or as a date; None without one."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        # A timedelta cannot hold arbitrarily many digits.
        return timedelta(seconds=float(value[:9]))
    try:
        return parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)
    except ValueError:
        return None
