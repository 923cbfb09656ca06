"""Which serial numbers may enrol is the operator's to say: by patterns, by code of theirs, or both."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from api.app import create_app
from api.serial_policy import SerialGate, serial_gate
from domain.serial_policy import InvalidPatternError, SerialPatterns
from settings import ApiSettings, InvalidSettingsError
from tests.harness.bridge import Device
from tests.harness.enrolment import REGISTERED, VERIFY, EnrolmentHarness
from tests.harness.http_api import open_http_api, problem

TENANT, OTHER = uuid4(), uuid4()
POLICY = "IOT_AWS_FLEET_PROVISIONING__SERIAL_POLICY"
PATTERNS = "IOT_AWS_FLEET_PROVISIONING__SERIAL_PATTERNS"
asked: list[tuple[UUID | None, str]] = []


def only_odd(tenant_id: UUID | None, serial_number: str) -> bool:
    """A policy as an operator writes one."""
    asked.append((tenant_id, serial_number))
    return serial_number[-1] in "13579"


async def admits_all(tenant_id: UUID | None, serial_number: str) -> bool:
    return True


class Allowlist:
    """Another: an object that can be called."""

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
def test_each_tenants_serial_numbers_match_its_pattern_as_a_whole(
    tenant: UUID | None, serial_number: str, admitted: bool
) -> None:
    """A tenant without one has that of `*`, the null tenant that of the zero UUID."""
    patterns = {str(TENANT).upper(): r"SN-\d", "*": "A|B", str(UUID(int=0)): "NULL-.*"}
    assert SerialPatterns(patterns)(tenant, serial_number) is admitted


def test_where_there_are_patterns_a_tenant_without_one_may_not_enrol() -> None:
    """Whoever sets patterns wants what they do not name refused."""
    assert not SerialPatterns({str(TENANT): ".*"})(OTHER, "SN-1")


def test_a_pattern_takes_no_time_whatever_is_sent() -> None:
    """What brings a backtracking engine to a stand is a matter of microseconds."""
    patterns = SerialPatterns({"*": "(a|a)*(a+)+b"})
    assert not patterns(None, 94 * "a")


@pytest.mark.parametrize("pattern", ["(", "a)|(b", "(?=a)", r"(a)\1", "[z-a]", "(?P<n"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    """Also what would only be one between the anchors, or only for a backtracking engine."""
    with pytest.raises(InvalidPatternError, match=str(TENANT)):
        SerialPatterns({str(TENANT): pattern})


def raises(*_: Any) -> NoReturn:
    raise RuntimeError("the list is away")


def leaves(*_: Any) -> NoReturn:
    raise SystemExit


@pytest.mark.parametrize("answer", [raises, leaves, lambda *_: None, lambda *_: "yes", lambda *_: 1])
async def test_a_policy_that_does_not_say_true_denies(answer: Callable[..., Any]) -> None:
    """Whatever it raises or returns instead."""
    assert not await SerialGate(answer).admits(TENANT, "SN-1")


async def test_a_policy_that_hangs_denies_in_time() -> None:
    """And goes on denying once all its threads hang; who has no policy to ask is let in meanwhile."""
    released = threading.Event()
    gate = SerialGate(lambda *_: released.wait(60), patience_seconds=0.05)
    try:
        for _ in range(10):
            assert not await gate.admits(TENANT, "SN-1")
        assert await SerialGate().admits(TENANT, "SN-1")
    finally:
        released.set()


@pytest.fixture
def entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of an operator's that is installed, with a policy."""
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


async def test_a_policy_is_found_by_its_entry_point_or_path(entry_point: str) -> None:
    """A function, or an object that can be called."""
    for name in (entry_point, "tests.api.test_serial_policy:allowlist"):
        gate = serial_gate(name, None)
        assert await gate.admits(TENANT, "LISTED")
        assert not await gate.admits(TENANT, "SN-1")


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("no.such.module:policy", "No module named"),
        ("tests.api.test_serial_policy:no_such_thing", "no attribute 'no_such_thing'"),
        ("tests.api.test_serial_policy:Allowlist", "is not a function"),
        ("tests.api.test_serial_policy:a_number", "is not a function"),
        ("tests.api.test_serial_policy:admits_all", "is async"),
        ("tests.api.test_serial_policy:test_a_policy_that_hangs_denies_in_time", "is async"),
        ("os:getcwd", "does not take"),
        ("unheard-of", "no such entry point in thingbridge.serial_policies"),
    ],
)
def test_a_policy_that_cannot_be_asked_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, policy: str, why: str
) -> None:
    """With the setting's name, and what is wrong with it."""
    monkeypatch.setenv(POLICY, policy)
    with pytest.raises(InvalidSettingsError, match=POLICY) as refused:
        create_app(ApiSettings.load())
    assert why in str(refused.value)


@pytest.mark.parametrize("patterns", ["{", "[]", '{"*": 1}', '{"*": "("}', '{"someone": ".*"}'])
def test_patterns_that_are_wrong_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, patterns: str
) -> None:
    """With the setting's name."""
    monkeypatch.setenv(PATTERNS, patterns)
    with pytest.raises(InvalidSettingsError, match=PATTERNS):
        ApiSettings.load()


async def test_both_doors_ask_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """Patterns and policy both have to admit; what one refuses is denied by the hook, and not registered."""
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
    assert asked == 2 * [(tenant, "SN-1")] + 2 * [(tenant, "SN-2")]
