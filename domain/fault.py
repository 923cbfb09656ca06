"""An invalid field of a request, an event or a command."""

from pydantic import Field

from domain.model import Message


class Fault(Message):
    """A field and what is wrong with it. The value is never included: it can be a secret, or harmful."""

    field: str = Field(description="The field or parameter at fault.")
    reason: str = Field(description="What is wrong with it; its value is not repeated.")

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"
