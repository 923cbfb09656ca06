"""The sandbox in which all workflows run and are replayed."""

from dataclasses import replace
from typing import Final

from temporalio.worker import WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

_PASSED_THROUGH: Final = (
    # Otherwise each enum would exist twice, and a member from an activity would not be the workflow's.
    "domain",
    # Workflows only refer to them, to name activities. They import boto3 and SQLAlchemy, which the sandbox
    # cannot load.
    "activities",
    "aws",
    "db",
    "events",
    "observability",
    # Deterministic, and slow to import again for each workflow.
    "pydantic",
    "pydantic_core",
)


def with_passthrough_modules(runner: WorkflowRunner | None) -> WorkflowRunner:
    """Return the runner; if it is a sandbox, it imports the modules below only once, outside the sandbox."""
    if runner is None:
        runner = SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    return replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*_PASSED_THROUGH))


WORKFLOW_RUNNER: Final = with_passthrough_modules(None)
