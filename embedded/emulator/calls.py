"""Parse requests to the emulator with the service models of botocore, and form responses to them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import botocore.session
from botocore.model import ListShape, MapShape, StringShape, StructureShape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from botocore.model import OperationModel, ServiceModel, Shape

_SERVICE_OF_SIGNING_NAME = {"iotdata": "iot-data"}
"""The boto name of each service whose signatures contain another name."""

_REST_SERVICES = ("iot", "iot-data", "iot-jobs-data")
"""Services whose operation follows from method and path. Requests to other services name the operation."""

_CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]+/([^/]+)/([^/]+)/")
_CLASSES_OF_JAVA = {r"\p{Upper}": "A-Z", r"\p{Digit}": "0-9", r"\p{C}": r"\x00-\x1f\x7f"}


@dataclass(frozen=True)
class Call:
    """One call of one AWS operation."""

    service: str
    name: str
    region: str
    access_key_id: str
    parameters: Mapping[str, Any]
    headers: Mapping[str, str]
    path: str
    body: bytes
    model: OperationModel | None = None

    @property
    def operation(self) -> str:
        """The service and operation by their boto names, e.g. `iot:CreateThing`."""
        return f"{self.service}:{self.name}"

    @property
    def changes_something(self) -> bool:
        """True if the call may change the state of the emulator."""
        return not self.name.startswith(("Describe", "Get", "List", "Search", "BatchGet"))

    def mentions(self, text: str) -> bool:
        """Return whether the path, the query, the body or a parameter header contains the text."""
        headers = [value for name, value in self.headers.items() if name.startswith("x-amzn-")]
        places = [self.path, unquote(self.path), self.body.decode(errors="replace"), *headers]
        return any(text in place for place in places)

    def validate(self) -> None:
        """Refuse a text that violates the length or the pattern of its model, as AWS does for every text.

        Raises:
            AwsError: a parameter is invalid.
        """
        if self.model is None or self.model.input_shape is None:
            return
        for location, text, shape in _texts("", self.parameters, self.model.input_shape):
            limits = shape.metadata
            pattern = _pattern(limits["pattern"]) if "pattern" in limits else None
            fits = limits.get("min", 0) <= len(text) <= limits.get("max", len(text))
            if not fits or (pattern and not pattern.fullmatch(text)):
                code = "InvalidRequestException" if self.service in _REST_SERVICES else "ValidationException"
                message = f"1 validation error detected: Value at '{location}' does not satisfy {dict(limits)}"
                raise AwsError(400, code, message)


@dataclass(frozen=True)
class Response:
    """The HTTP response to a call."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})

    @property
    def is_success(self) -> bool:
        """True if the call succeeded."""
        return self.status < HTTPStatus.BAD_REQUEST

    @property
    def members(self) -> dict[str, Any]:
        """The members of a JSON body."""
        members: dict[str, Any] = json.loads(self.body)
        return members

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Response:
        """Return a success whose output has these members."""
        return cls(HTTPStatus.OK, json.dumps(members).encode())


if TYPE_CHECKING:
    Forward = Callable[[], Awaitable[Response]]
    """Forward the call to ministack and return the response of ministack."""

    Difference = Callable[[Call, Forward], Awaitable[Response]]
    """Handle a call as AWS does, for an operation that ministack implements differently."""


class AwsError(Exception):
    """An error response of AWS. In the caller, boto raises it as a ClientError with this code."""

    def __init__(self, status: int, code: str, message: str, **members: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.members = {"message": message, **members}

    def response(self, call: Call) -> Response:
        """Return the error in the protocol of the call, so that boto can parse it."""
        if call.service in _REST_SERVICES:
            headers = {"content-type": "application/json", "x-amzn-errortype": self.code}
            return Response(self.status, json.dumps(self.members).encode(), headers)
        if "x-amz-target" in call.headers:
            return Response(self.status, json.dumps({"__type": self.code, **self.members}).encode())
        error = f"<Code>{self.code}</Code><Message>{self.members['message']}</Message>"
        body = f"<ErrorResponse><Error>{error}</Error><RequestId>embedded</RequestId></ErrorResponse>"
        return Response(self.status, body.encode(), {"content-type": "text/xml"})


def read_call(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Parse a request. `path` is the path as it was sent, with its percent encoding."""
    signature = _CREDENTIAL.search(headers.get("authorization", ""))
    access_key_id, region, signing_name = signature.groups() if signature else ("", "us-east-1", "unsigned")
    service = _SERVICE_OF_SIGNING_NAME.get(signing_name, signing_name)
    name, parameters, model = _read_operation(service, method, path, query, headers, body)
    whole_path = f"{path}?{query}" if query else path
    return Call(service, name, region, access_key_id, parameters, headers, whole_path, body, model)


def _read_operation(
    service: str, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
) -> tuple[str, Mapping[str, Any], OperationModel | None]:
    if service in _REST_SERVICES:
        for template, model in _rest_operations(service)[method]:
            if labels := template.fullmatch(path):
                return model.name, _read_parameters(model, labels.groupdict(), query, headers, body), model
        return f"{method} {path}", {}, None
    if target := headers.get("x-amz-target"):
        name = target.rpartition(".")[2]
        known = _model(service).operation_model(name) if service == "secretsmanager" else None
        return name, json.loads(body or b"{}"), known
    form = parse_qs(body.decode(errors="replace"))
    return form.get("Action", ["Unknown"])[0], {}, None


def _read_parameters(
    model: OperationModel, labels: Mapping[str, str], query: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """Collect the input of the operation from path, query, headers and body, as its model declares."""
    if model.input_shape is None:
        return {}
    in_query = parse_qs(query, keep_blank_values=True)
    payload = model.input_shape.serialization.get("payload")
    content = json.loads(body) if body and payload is None else {}
    parameters: dict[str, Any] = {}
    for name, shape in model.input_shape.members.items():
        serialized_name = shape.serialization.get("name", name)
        match shape.serialization.get("location"):
            case "uri":
                parameters[name] = _typed(unquote(labels[_group(serialized_name)]), shape.type_name)
            case "querystring" if serialized_name in in_query:
                parameters[name] = _typed(in_query[serialized_name][0], shape.type_name)
            case "header" if serialized_name.lower() in headers:
                parameters[name] = _typed(headers[serialized_name.lower()], shape.type_name)
            case None if name == payload:
                parameters[name] = body
            case None if serialized_name in content:
                parameters[name] = content[serialized_name]
    return parameters


def _typed(text: str, type_name: str) -> Any:
    if type_name == "boolean":
        return text.lower() == "true"
    return int(text) if type_name in {"integer", "long"} else text


@cache
def _model(service: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(service)


@cache
def _rest_operations(service: str) -> Mapping[str, list[tuple[re.Pattern[str], OperationModel]]]:
    """Return the operations of a service by HTTP method, those with the fewest path labels first."""
    operations = defaultdict(list)
    service_model = _model(service)
    for name in service_model.operation_names:
        model = service_model.operation_model(name)
        path = model.http["requestUri"].partition("?")[0]
        literals_and_labels = re.split(r"\{(\w+)\+?\}", path)
        pattern = "".join(
            f"(?P<{_group(part)}>[^/]+)" if index % 2 else re.escape(part)
            for index, part in enumerate(literals_and_labels)
        )
        operations[model.http["method"]].append((len(literals_and_labels), re.compile(pattern), model))
    return {
        method: [(template, model) for _, template, model in sorted(found, key=lambda each: each[0])]
        for method, found in operations.items()
    }


def _group(label: str) -> str:
    """Return the name of the regular expression group for a path label."""
    return label.replace("-", "_")


def _texts(location: str, value: Any, shape: Shape) -> Iterator[tuple[str, str, Shape]]:
    match shape, value:
        case StringShape(), str():
            yield location, value, shape
        case StructureShape(), dict():
            for name in value.keys() & shape.members.keys():
                yield from _texts(f"{location}.{name}".lstrip("."), value[name], shape.members[name])
        case ListShape(), list():
            for member in value:
                yield from _texts(location, member, shape.member)
        case MapShape(), dict():
            for key, member in value.items():
                yield from _texts(location, key, shape.key)
                yield from _texts(location, member, shape.value)


@cache
def _pattern(text: str) -> re.Pattern[str] | None:
    """Compile a pattern of the model. Return None for the few patterns that only Java supports."""
    for java, python in _CLASSES_OF_JAVA.items():
        text = text.replace(java, python)
    try:
        return re.compile(text)
    except re.error:
        return None
