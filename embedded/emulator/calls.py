"""Parse requests to the emulator with the service models of botocore."""

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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed.wsgi import WSGIEnvironment
    from botocore.model import OperationModel, ServiceModel

_SERVICE_OF_SIGNING_NAME = {"iotdata": "iot-data"}
"""The boto name of each service whose signatures contain another name."""

_UNSIGNED = "unsigned"
"""The service of a request that is not signed, and therefore names no service."""

_REST_SERVICES = ("iot", "iot-data", "iot-jobs-data")
"""Services whose operation follows from method and path. Requests to other services name the operation."""


@dataclass(frozen=True)
class Call:
    """One call of one AWS operation."""

    service: str
    name: str
    region: str
    parameters: Mapping[str, Any]
    environ: WSGIEnvironment
    body: bytes
    model: OperationModel | None = None

    @property
    def operation(self) -> str:
        """The service and operation by their boto names, e.g. `iot:CreateThing`."""
        return f"{self.service}:{self.name}"

    @property
    def is_signed(self) -> bool:
        """True if the request names its service."""
        return self.service != _UNSIGNED

    @property
    def changes_something(self) -> bool:
        """True if the call may change the state of the emulator."""
        return not self.name.startswith(("Describe", "Get", "List", "Search", "BatchGet"))

    def mentions(self, text: str) -> bool:
        """Return whether the path, the query, the body or a parameter header contains the text."""
        headers = [str(value) for name, value in self.environ.items() if name.startswith("HTTP_X_AMZN_")]
        path = str(self.environ.get("RAW_URI", ""))
        return any(
            text in held for held in [path, unquote(path), self.body.decode(errors="replace"), *headers]
        )


@dataclass(frozen=True)
class Response:
    """The HTTP response to a call."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    @property
    def is_success(self) -> bool:
        """True if the call succeeded."""
        return self.status < HTTPStatus.BAD_REQUEST

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Response:
        """Return a success whose output has these members."""
        return cls(HTTPStatus.OK, json.dumps(members).encode())


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
            headers = {"Content-Type": "application/json", "x-amzn-ErrorType": self.code}
            return Response(self.status, json.dumps(self.members).encode(), headers)
        if "HTTP_X_AMZ_TARGET" in call.environ:
            return Response(self.status, json.dumps({"__type": self.code, **self.members}).encode())
        error = f"<Code>{self.code}</Code><Message>{self.members['message']}</Message>"
        body = f"<ErrorResponse><Error>{error}</Error><RequestId>embedded</RequestId></ErrorResponse>"
        return Response(self.status, body.encode(), {"Content-Type": "text/xml"})


def read_call(environ: WSGIEnvironment, body: bytes) -> Call:
    """Parse a request."""
    service, region = _service_and_region(environ.get("HTTP_AUTHORIZATION", ""))
    if service in _REST_SERVICES:
        return _read_rest_call(service, region, environ, body)
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        name = target.rpartition(".")[2]
        model = _model(service).operation_model(name) if service == "secretsmanager" else None
        return Call(service, name, region, json.loads(body or b"{}"), environ, body, model)
    form = parse_qs(body.decode(errors="replace"))
    return Call(service, form.get("Action", ["Unknown"])[0], region, {}, environ, body)


def _service_and_region(authorization: str) -> tuple[str, str]:
    """Parse the credential scope of the signature: `Credential=KEY/DATE/REGION/SERVICE/aws4_request`."""
    scope = re.search(r"Credential=[^/]+/[^/]+/([^/]+)/([^/]+)/", authorization)
    if scope is None:
        return _UNSIGNED, "us-east-1"
    region, service = scope.groups()
    return _SERVICE_OF_SIGNING_NAME.get(service, service), region


def _read_rest_call(service: str, region: str, environ: WSGIEnvironment, body: bytes) -> Call:
    method, path = environ["REQUEST_METHOD"], environ["RAW_URI"].partition("?")[0]
    for template, model in _rest_operations(service)[method]:
        labels = template.fullmatch(path)
        if labels:
            parameters = _read_parameters(model, labels.groupdict(), environ, body)
            return Call(service, model.name, region, parameters, environ, body, model)
    return Call(service, f"{method} {path}", region, {}, environ, body)


def _read_parameters(
    model: OperationModel, labels: Mapping[str, str], environ: WSGIEnvironment, body: bytes
) -> dict[str, Any]:
    """Collect the input of the operation from path, query, headers and body, as its model declares."""
    if model.input_shape is None:
        return {}
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    payload = model.input_shape.serialization.get("payload")
    content = json.loads(body) if body and payload is None else {}
    parameters: dict[str, Any] = {}
    for name, shape in model.input_shape.members.items():
        location = shape.serialization.get("location")
        serialized_name = shape.serialization.get("name", name)
        if name == payload:
            parameters[name] = body
        elif location == "uri":
            parameters[name] = _typed(unquote(labels[_group(serialized_name)]), shape.type_name)
        elif location == "querystring" and serialized_name in query:
            parameters[name] = _typed(query[serialized_name][0], shape.type_name)
        elif location == "header":
            header = environ.get("HTTP_" + serialized_name.upper().replace("-", "_"))
            if header is not None:
                parameters[name] = _typed(header, shape.type_name)
        elif location is None and serialized_name in content:
            parameters[name] = content[serialized_name]
    return parameters


def _typed(text: str, type_name: str) -> Any:
    if type_name == "boolean":
        return text.lower() == "true"
    return int(text) if type_name in {"integer", "long"} else text


@cache
def _session() -> botocore.session.Session:
    return botocore.session.get_session()


@cache
def _model(service: str) -> ServiceModel:
    return _session().get_service_model(service)


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
