"""Bindings: duplicates, lost updates and illegal transitions are rejected."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from db.bindings import (
    Actor,
    IllegalTransitionError,
    StaleBindingError,
    advance,
    failed_at,
    newest_binding,
    open_binding,
)
from db.models import AwsThingBinding
from domain.provisioning_status import ProvisioningStatus as Status

TEST = Actor("a test")


def new_binding(session: Session, tenant: UUID | None = None) -> AwsThingBinding:
    binding = open_binding(
        session, device_id=uuid4(), tenant_id=tenant, thing_name=f"thing-{uuid4()}", actor=TEST
    )
    session.commit()
    return binding


@pytest.mark.parametrize("column", ["thing_name", "certificate_arn", "certificate_secret_arn"])
def test_live_bindings_cannot_share_a_resource(session: Session, column: str) -> None:
    """Thing name, certificate and secret are unique among live bindings. A deleted binding releases them."""
    shared, rows = str(uuid4()), [new_binding(session), new_binding(session)]
    setattr(rows[0], column, shared)
    session.commit()
    setattr(rows[1], column, shared)
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    advance(session, rows[0], Status.DECOMMISSIONED, TEST)
    setattr(rows[1], column, shared)
    session.commit()


@pytest.mark.parametrize("tenant", [None, uuid4()])
def test_device_has_one_live_binding(session: Session, tenant: UUID | None) -> None:
    """The rule also holds for a device of the null tenant: its unique index treats nulls as equal."""
    first = new_binding(session, tenant)
    with pytest.raises(IntegrityError):
        open_binding(session, device_id=first.device_id, tenant_id=tenant, thing_name=None, actor=TEST)


def test_concurrent_change_is_not_overwritten(session: Session) -> None:
    """Of two writers that read the same version, the second is rejected."""
    binding = new_binding(session)
    stale = AwsThingBinding.model_validate(binding.model_dump())
    advance(session, binding, Status.THING_CREATED, TEST)
    session.commit()
    with pytest.raises(StaleBindingError):
        advance(session, stale, Status.THING_CREATED, TEST)


def test_illegal_transition_writes_nothing(session: Session) -> None:
    """A rejected transition changes neither the status nor the audit."""
    binding = new_binding(session)
    with pytest.raises(IllegalTransitionError):
        advance(session, binding, Status.ACTIVE, TEST)
    session.rollback()
    assert newest_binding(session, binding.device_id) == binding


def test_retry_returns_to_the_status_of_the_last_failure(session: Session) -> None:
    """The audit contains that status. After two failures the last one counts."""
    binding = new_binding(session)
    for status in (Status.FAILED, Status.PENDING, Status.THING_CREATED, Status.FAILED):
        binding = advance(session, binding, status, TEST)
    assert failed_at(session, binding) is Status.THING_CREATED
