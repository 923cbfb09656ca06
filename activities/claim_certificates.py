"""Activities of the claim certificate check: warnings of expiring certificates, and missing follow-ups."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity

from activities.bindings import transaction
from db.bindings import event_subject
from db.enrolment import activation_of, enrolled_without_follow_up, expiring_query, lock_if_expiring
from db.models import AwsThingBinding
from db.outbox import enqueue
from domain.claim_check import ClaimCursor, ClaimPage, ClaimWarnings, FollowUpPage, FollowUpsSent
from domain.enrolment import whole_days
from domain.lifecycle_event import LifecycleEvent
from domain.outgoing_event import ClaimCertificateExpiring
from observability.metrics import CLAIMS_EXPIRING, SWEEPS_DONE, SWEEPS_FOUND

_SWEEP: Final = "claim_certificates"


class ClaimCertificateActivities:
    """The activities of the check of devices that enrolled themselves.

    Args:
        engine: the bridge's database.
        send: sends a lifecycle event to the workflow of its device.
        warning_window: how long before its expiry a claim certificate is reported.
        page_size: the number of bindings per activity.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[LifecycleEvent], Awaitable[Any]],
        *,
        warning_window: timedelta,
        page_size: int,
    ) -> None:
        self._engine = engine
        self._send = send
        self._warning_window = warning_window
        self._page_size = page_size

    @activity.defn(name="warn_of_expiring_claims", no_thread_cancel_exception=True)
    def warn_of_expiring_claims(self, page: ClaimPage) -> ClaimWarnings:
        """Publish a warning, once a day, for each certificate of the page that expires soon or is expired."""
        after = (page.after.expires_at, page.after.binding_id) if page.after else None
        with Session(self._engine) as session:
            found = session.exec(expiring_query(page.at + self._warning_window, after, self._page_size)).all()
        for binding in found:
            # One transaction per binding: one for all would block the events of every device on the page.
            with transaction(self._engine) as session:
                # After the page was read, the device can have been decommissioned or enrolled again.
                warned = lock_if_expiring(session, binding) and enqueue(
                    session, _warning(binding, page.at), binding.id, page.at.date()
                )
            SWEEPS_FOUND.add(binding.tenant_id, _SWEEP)
            if warned:
                CLAIMS_EXPIRING.add(binding.tenant_id, "warn_of_expiring_claims")
                SWEEPS_DONE.add(binding.tenant_id, _SWEEP)
            activity.heartbeat()
        return ClaimWarnings(
            count=len(found), next=_cursor(found[-1]) if len(found) == self._page_size else None
        )

    @activity.defn(name="follow_up_enrolments")
    async def follow_up_enrolments(self, page: FollowUpPage) -> FollowUpsSent:
        """Signal the workflow of each enrolled device on the page whose follow-up has not run."""
        found = await asyncio.to_thread(self._without_follow_up, page.after)
        for binding in found:
            await self._send(activation_of(binding))
            activity.heartbeat()
        return FollowUpsSent(count=len(found), next=found[-1].id if len(found) == self._page_size else None)

    def _without_follow_up(self, after: UUID | None) -> Sequence[AwsThingBinding]:
        with Session(self._engine) as session:
            return enrolled_without_follow_up(session, after, self._page_size)


def _warning(binding: AwsThingBinding, at: datetime) -> ClaimCertificateExpiring:
    expires_at = _cursor(binding).expires_at
    return ClaimCertificateExpiring(
        **event_subject(binding),
        claim_certificate_expires_at=expires_at,
        day=at.date(),
        days_left=whole_days(expires_at - at),
    )


def _cursor(binding: AwsThingBinding) -> ClaimCursor:
    expires_at = binding.claim_certificate_expires_at
    assert expires_at is not None  # noqa: S101  # the query selects rows that have it
    return ClaimCursor(expires_at=expires_at, binding_id=binding.id)
