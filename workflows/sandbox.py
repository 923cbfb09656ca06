"""The sandbox all workflows run and are replayed in."""

from typing import Final

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

WORKFLOW_RUNNER: Final = SandboxedWorkflowRunner(
    restrictions=SandboxRestrictions.default.with_passthrough_modules(
        # Else its enums would exist twice, and `is` be false between an activity's and a workflow's.
        "domain",
        # Named by workflows through their typed references, never run there. With them come boto3 and
        # SQLAlchemy, which the sandbox could not load.
        "activities",
        # Pure, and slow to load once per workflow.
        "pydantic",
        "pydantic_core",
    )
)
