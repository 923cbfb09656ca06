"""The bases of the pydantic models that leave a process."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Message(BaseModel):
    """What a workflow and its activities pass to each other. Temporal keeps it in histories, as JSON."""

    model_config = ConfigDict(frozen=True)


class CamelModel(BaseModel):
    """What others read or write as JSON with camelCase names."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True)
