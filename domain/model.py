"""Base classes of the pydantic models."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Message(BaseModel):
    """An immutable value. Workflows and activities exchange messages, which Temporal stores as JSON."""

    model_config = ConfigDict(frozen=True)


class CamelModel(BaseModel):
    """An immutable value that other systems read or write as JSON with camelCase names."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True)
