"""The sandbox all workflows run and are replayed in."""

from dataclasses import replace
from typing import Final

from temporalio.worker import WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

_PASSED_THROUGH: Final = (
    # Else its enums would exist twice, and `is` be false between an activity's and a workflow's.
    "domain",
    # Named by workflows through their typed references, never run there. With them come boto3 and
    # SQLAlchemy, which the sandbox could not load.
    "activities",
    "aws",
    "db",
    "events",
    "observability",
    # Pure, and slow to load once per workflow.
    "pydantic",
    "pydantic_core",
)


def passing_through(runner: WorkflowRunner | None) -> WorkflowRunner:
    """A runner that our workflows can run in, and otherwise as it was; one without a sandbox can as it is."""
    if runner is None:
        runner = SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    return replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*_PASSED_THROUGH))


WORKFLOW_RUNNER: Final = passing_through(None)
