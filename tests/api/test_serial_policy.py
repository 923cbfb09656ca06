"""Serial policies: an operator admits serial numbers by patterns, by their own code, or by both."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from api.app import create_app
from api.serial_policy import SerialCheck, load_serial_check
from domain.serial_policy import InvalidPatternError, SerialPatterns
from settings import ApiSettings, InvalidSettingsError
from tests.harness.bridge import Device
from tests.harness.enrolment import REGISTERED, VERIFY, EnrolmentHarness
from tests.harness.http_api import open_http_api, problem

TENANT, OTHER = uuid4(), uuid4()
POLICY = "IOT_AWS_FLEET_PROVISIONING__SERIAL_POLICY"
PATTERNS = "IOT_AWS_FLEET_PROVISIONING__SERIAL_PATTERNS"
policy_calls: list[tuple[UUID | None, str]] = []


def only_odd(tenant_id: UUID | None, serial_number: str) -> bool:
    """A policy that is a function."""
    policy_calls.append((tenant_id, serial_number))
    return serial_number[-1] in "13579"


async def async_policy(tenant_id: UUID | None, serial_number: str) -> bool:
    return True


class Allowlist:
    """A policy that is a callable object."""

    def __call__(self, tenant_id: UUID | None, serial_number: str) -> bool:
        return serial_number == "LISTED"


allowlist = Allowlist()
a_number = 7


@pytest.mark.parametrize(
    ("tenant", "serial_number", "admitted"),
    [
        (TENANT, "SN-1", True),
        (TENANT, "SN-12", False),
        (TENANT, "xSN-1", False),
        (OTHER, "SN-1", False),
        (OTHER, "B", True),
        (None, "NULL-1", True),
        (None, "A", False),
    ],
)
def test_a_tenants_pattern_must_match_the_whole_serial_number(
    tenant: UUID | None, serial_number: str, admitted: bool
) -> None:
    """A tenant without a pattern has that of `*`, the null tenant that of the zero UUID."""
    patterns = {str(TENANT).upper(): r"SN-\d", "*": "A|B", str(UUID(int=0)): "NULL-.*"}
    assert SerialPatterns(patterns)(tenant, serial_number) is admitted


def test_patterns_deny_tenants_without_a_pattern() -> None:
    """Patterns list everything that may enrol."""
    assert not SerialPatterns({str(TENANT): ".*"})(OTHER, "SN-1")


def test_a_pattern_matches_in_linear_time() -> None:
    """A pattern that would block a backtracking engine is matched in microseconds."""
    patterns = SerialPatterns({"*": "(a|a)*(a+)+b"})
    assert not patterns(None, 94 * "a")


@pytest.mark.parametrize("pattern", ["(", "a)|(b", "(?=a)", r"(a)\1", "[z-a]", "(?P<n"])
def test_an_invalid_pattern_is_refused(pattern: str) -> None:
    """This includes patterns that are valid only between anchors or only in a backtracking engine."""
    with pytest.raises(InvalidPatternError, match=str(TENANT)):
        SerialPatterns({str(TENANT): pattern})


def raises(*_: Any) -> NoReturn:
    raise RuntimeError("the list is unavailable")


def exits(*_: Any) -> NoReturn:
    raise SystemExit


@pytest.mark.parametrize("answer", [raises, exits, lambda *_: None, lambda *_: "yes", lambda *_: 1])
async def test_a_policy_that_does_not_return_true_denies(answer: Callable[..., Any]) -> None:
    """Every exception and every other value denies."""
    assert not await SerialCheck(answer).admits(TENANT, "SN-1")


async def test_a_policy_that_hangs_denies_after_the_timeout() -> None:
    """It still denies once all its threads hang, and a check without a policy is not blocked."""
    released = threading.Event()
    check = SerialCheck(lambda *_: released.wait(60), timeout_seconds=0.05)
    try:
        for _ in range(10):
            assert not await check.admits(TENANT, "SN-1")
        assert await SerialCheck().admits(TENANT, "SN-1")
    finally:
        released.set()


@pytest.fixture
def entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install an operator's package with a policy, and return the name of its entry point."""
    about = tmp_path / "their_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-policies\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[thingbridge.serial_policies]\ntheirs = their_policies:checks.listed\n"
    )
    (tmp_path / "their_policies.py").write_text(
        "class checks:\n    @staticmethod\n    def listed(tenant_id, serial_number):\n"
        "        return serial_number == 'LISTED'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "theirs"
    sys.modules.pop("their_policies", None)


async def test_a_policy_is_loaded_by_entry_point_or_path(entry_point: str) -> None:
    """It may be a function or another callable object."""
    for name in (entry_point, "tests.api.test_serial_policy:allowlist"):
        check = load_serial_check(name, None)
        assert await check.admits(TENANT, "LISTED")
        assert not await check.admits(TENANT, "SN-1")


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("no.such.module:policy", "No module named"),
        ("tests.api.test_serial_policy:no_such_thing", "no attribute 'no_such_thing'"),
        ("tests.api.test_serial_policy:Allowlist", "is not a function"),
        ("tests.api.test_serial_policy:a_number", "is not a function"),
        ("tests.api.test_serial_policy:async_policy", "is async"),
        ("tests.api.test_serial_policy:test_a_policy_that_hangs_denies_after_the_timeout", "is async"),
        ("os:getcwd", "does not accept"),
        ("not-registered", "no such entry point in thingbridge.serial_policies"),
    ],
)
def test_a_policy_that_cannot_be_called_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, policy: str, reason: str
) -> None:
    """The error names the setting and the reason."""
    monkeypatch.setenv(POLICY, policy)
    with pytest.raises(InvalidSettingsError, match=POLICY) as refused:
        create_app(ApiSettings.load())
    assert reason in str(refused.value)


@pytest.mark.parametrize("patterns", ["{", "[]", '{"*": 1}', '{"*": "("}', '{"someone": ".*"}'])
def test_invalid_patterns_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, patterns: str
) -> None:
    """The error names the setting."""
    monkeypatch.setenv(PATTERNS, patterns)
    with pytest.raises(InvalidSettingsError, match=PATTERNS):
        ApiSettings.load()


async def test_verify_and_registered_check_the_policies(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """Patterns and policy must both admit; a number that either refuses is denied and not registered."""
    tenant = uuid4()
    monkeypatch.setenv(POLICY, "tests.api.test_serial_policy:only_odd")
    monkeypatch.setenv(PATTERNS, f'{{"{tenant}": "SN-\\\\d"}}')
    expected = {"SN-1": 200, "SN-2": 403, "XX-1": 403}
    async with open_http_api(engine) as http_api, http_api.tenant(tenant) as http:
        for serial_number, status in expected.items():
            device = Device(serial_number, tenant)
            verdict = await http.post(VERIFY, json={"serialNumber": serial_number})
            assert verdict.status_code == status
            assert verdict.json()["allowProvisioning"] is (status == 200)
            answer = await http.post(REGISTERED, json=enrolment.body(device))
            assert answer.status_code == status
            if status == 403:
                assert problem(answer)["detail"] == verdict.json()["reason"]
                assert enrolment.device_rows(device) == []
                assert enrolment.binding(device) is None
    assert policy_calls == 2 * [(tenant, "SN-1")] + 2 * [(tenant, "SN-2")]
