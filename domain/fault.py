"""One thing that is wrong with what somebody sent."""

from pydantic import BaseModel, ConfigDict, Field


class Fault(BaseModel):
    """A field and what is wrong with it. The value is never repeated: it can be a secret, or harmful."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="The field or parameter at fault.")
    reason: str = Field(description="What is wrong with it; its value is not repeated.")

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"
