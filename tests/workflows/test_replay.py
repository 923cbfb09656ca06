"""The recorded histories replay: the workflows give the commands that they gave when they were recorded."""

import json

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Interceptor, Replayer
from temporalio.workflow import NondeterminismError

from orchestration.sandbox import WORKFLOW_RUNNER
from tests.workflows.record_histories import HISTORIES, SCENARIOS
from workflows.claim_certificate_check import ClaimCertificateCheck
from workflows.command_group_sweep import CommandGroupSweep
from workflows.device_command import DeviceCommand
from workflows.device_lifecycle import DeviceLifecycle
from workflows.erasure_sweep import ErasureSweep
from workflows.outbox_publisher import OutboxPublisher
from workflows.shadow_delta_poll import ShadowDeltaPoll

RECORDED = sorted(file.stem for file in HISTORIES.glob("*.json"))


def replayer(*interceptors: Interceptor) -> Replayer:
    return Replayer(
        workflows=[
            ClaimCertificateCheck,
            CommandGroupSweep,
            DeviceCommand,
            DeviceLifecycle,
            ErasureSweep,
            OutboxPublisher,
            ShadowDeltaPoll,
        ],
        data_converter=pydantic_data_converter,
        workflow_runner=WORKFLOW_RUNNER,
        interceptors=interceptors,
    )


def recorded(name: str) -> WorkflowHistory:
    return parsed((HISTORIES / f"{name}.json").read_text())


def parsed(text: str) -> WorkflowHistory:
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started["workflowId"], text)


@pytest.mark.parametrize("name", RECORDED)
async def test_recorded_history_replays(name: str) -> None:
    """The workflow gives the same commands in the same order."""
    await replayer().replay_workflow(recorded(name))


def test_every_scenario_is_recorded() -> None:
    """Each scenario of the recorder has its histories, and no history is left of an earlier scenario."""
    names = {name.rpartition("-")[0] for name in RECORDED}
    assert names == {scenario.__name__.replace("_", "-") for scenario in SCENARIOS}


async def test_replay_fails_with_another_activity() -> None:
    """The replay notices a changed command: a check that cannot fail would protect nothing."""
    history = recorded("provisioned-1")
    changed = parsed(history.to_json().replace('"ensure_thing"', '"another"'))
    with pytest.raises(NondeterminismError):
        await replayer().replay_workflow(changed)
