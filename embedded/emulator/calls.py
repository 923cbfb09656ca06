"""Calls to the emulator, parsed with the service models of botocore, and responses to them."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any
from urllib.parse import parse_qs, unquote

import botocore.session
from botocore.model import OperationModel, ServiceModel, StringShape
from botocore.validate import ParamValidator

from embedded.emulator_control import Settings

_SERVICE_OF_SIGNING_NAME = {"iotdata": "iot-data"}
"""The boto name of each service whose signatures contain another name."""

_REST_SERVICES = ("iot", "iot-data", "iot-jobs-data")
"""Services whose operation follows from method and path. Requests to other services name the operation."""

_CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]+/([^/]+)/([^/]+)/")
_PER_PAGE = 25


@dataclass(frozen=True)
class Call:
    """One call of one AWS operation. The path includes the query; the labels are variables of the path."""

    method: str
    service: str
    name: str
    region: str
    access_key_id: str
    labels: Mapping[str, str]
    headers: Mapping[str, str]
    path: str
    body: bytes
    model: OperationModel | None

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

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The input of an operation whose model is known. It is valid after `validate`."""
        return _read_parameters(self, self.model) if self.model else {}

    def validate(self) -> None:
        """Refuse parameters that violate their model, as AWS does.

        Raises:
            AwsError: the body cannot be read, or a parameter is missing or invalid.
        """
        problem = ""
        try:
            if self.model and self.model.input_shape:
                problem = _Validator().validate(self.parameters, self.model.input_shape).generate_report()
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem:
            code = "InvalidRequestException" if self.service in _REST_SERVICES else "ValidationException"
            raise AwsError(400, code, problem)


@dataclass(frozen=True)
class Response:
    """The HTTP response to a call."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})

    @property
    def members(self) -> dict[str, Any]:
        """The members of a JSON body."""
        return dict(json.loads(self.body))

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> "Response":
        """Return a success whose output has these members."""
        return cls(200, json.dumps(members).encode())


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


class RefusedError(Exception):
    """Ministack refused the call with this response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


Forward = Callable[[], Awaitable[Response]]
"""Forward the call to ministack, and return its response, or raise `RefusedError`."""

Difference = Callable[[Call, Forward], Awaitable[Response]]
"""Handle a call as AWS does, for an operation that ministack implements differently."""

DIFFERENCES: dict[str, Difference] = {}

SETTINGS = Settings()


def difference(operation: str) -> Callable[[Difference], Difference]:
    """Return a decorator that registers a function as the difference of an operation."""

    def register(handle: Difference) -> Difference:
        DIFFERENCES[operation] = handle
        return handle

    return register


def paged(name: str, found: Mapping[str, object], call: Call, *, reverse: bool = False) -> Response:
    """Return one page of the entries, sorted by their keys, as this member of the response.

    The token is the last key of a page: the page after it is complete, also if that entry was deleted.
    """
    given = call.parameters
    try:
        after = b64decode(given.get("nextToken") or given.get("marker") or "", validate=True).decode()
    except ValueError:
        raise AwsError(400, "InvalidRequestException", "The token of the next page is invalid.") from None
    keys = sorted(found, reverse=reverse)
    if after:
        keys = [key for key in keys if (key < after if reverse else key > after)]
    page = keys[: given.get("maxResults") or given.get("pageSize") or _PER_PAGE]
    members: dict[str, object] = {name: [found[key] for key in page]}
    if len(keys) > len(page):
        token = "nextMarker" if name == "certificates" else "nextToken"
        members[token] = b64encode(page[-1].encode()).decode()
    return Response.of(members)


def read_call(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Parse a request. The path still has its percent encoding."""
    signature = _CREDENTIAL.search(headers.get("authorization", ""))
    key_id, region, signing_name = signature.groups() if signature else ("", "us-east-1", "unsigned")
    service = _SERVICE_OF_SIGNING_NAME.get(signing_name, signing_name)
    name, model, labels = f"{method} {path}", None, dict[str, str]()
    if service in _REST_SERVICES:
        for template, found in _rest_operations(service, method):
            if match := template.fullmatch(path):
                name, model, labels = found.name, found, match.groupdict()
                break
    elif target := headers.get("x-amz-target"):
        name = target.rpartition(".")[2]
        if service == "secretsmanager" and name in _model(service).operation_names:
            model = _model(service).operation_model(name)
    else:
        name = parse_qs(body.decode(errors="replace")).get("Action", [name])[0]
    return Call(method, service, name, region, key_id, labels, headers, f"{path}?{query}", body, model)


def _read_parameters(call: Call, model: OperationModel) -> dict[str, Any]:
    """Collect the input of the operation from path, query, headers and body, as its model declares."""
    if model.input_shape is None:
        return {}
    payload = model.input_shape.serialization.get("payload")
    is_blob = payload is not None and model.input_shape.members[payload].type_name == "blob"
    content: Any = call.body if is_blob else json.loads(call.body or b"{}")
    if not is_blob and not isinstance(content, dict):
        raise ValueError("the body is not a JSON object")
    query = parse_qs(call.path.partition("?")[2], keep_blank_values=True)
    places: dict[str | None, Mapping[str, Any]] = {
        "uri": {name: unquote(value) for name, value in call.labels.items()},
        "querystring": {name: values[0] for name, values in query.items()},
        "header": call.headers,
        None: {payload: content} if payload else content,
    }
    parameters: dict[str, Any] = {}
    for name, shape in model.input_shape.members.items():
        location, serialized_name = shape.serialization.get("location"), shape.serialization.get("name", name)
        found = places[location].get(serialized_name.lower() if location == "header" else serialized_name)
        if found is None and call.service == "secretsmanager" and shape.metadata.get("idempotencyToken"):
            raise ValueError(f"you must provide a {name} value")
        if found is not None:
            is_json = location and shape.type_name in {"boolean", "integer", "long"}
            parameters[name] = json.loads(found.lower()) if is_json else found
    return parameters


@cache
def _model(service: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(service)


@cache
def _rest_operations(service: str, method: str) -> list[tuple[re.Pattern[str], OperationModel]]:
    """Return the operations of a service with this HTTP method, those with the fewest path labels first."""
    models = [_model(service).operation_model(name) for name in _model(service).operation_names]
    models = [model for model in models if model.http["method"] == method]
    models.sort(key=lambda model: model.http["requestUri"].count("{"))
    paths = [re.escape(model.http["requestUri"].partition("?")[0]) for model in models]
    labelled = [re.sub(r"\\\{(\w+)(\\\+)?\\\}", r"(?P<\1>[^/]+)", path) for path in paths]
    return list(zip(map(re.compile, labelled), models, strict=True))


class _Validator(ParamValidator):
    """Also checks what botocore leaves to AWS: the longest length and the pattern of texts."""

    def _validate_string(self, param: Any, shape: StringShape, errors: object, name: str) -> None:
        super()._validate_string(param, shape, errors, name)  # type: ignore[misc] # missing in the stubs
        text, limits = str(param), shape.metadata
        pattern = _pattern(limits["pattern"]) if "pattern" in limits else None
        if len(text) > limits.get("max", len(text)) or (pattern and not pattern.fullmatch(text)):
            raise ValueError(f"1 validation error detected: {name} does not satisfy {dict(limits)}")


@cache
def _pattern(text: str) -> re.Pattern[str] | None:
    """Compile a pattern of the model. Return None for the few patterns that only Java supports."""
    try:
        return re.compile(text)
    except re.error:
        return None
