"""The import rules of CONTRIBUTING.md, checked on the source as text: nothing is imported."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

from tests import ROOT

# A room is a top-level package or module. Imports point down only. `settings` is for composition roots: below
# them, constructors take values.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "domain": frozenset(),
    "db": frozenset({"domain"}),
    "observability": frozenset({"db", "domain"}),
    "aws": frozenset({"domain", "observability"}),
    "events": frozenset({"aws", "db", "domain", "observability"}),
    "activities": frozenset({"aws", "db", "domain", "events", "observability"}),
    "orchestration": frozenset({"domain", "observability"}),
    "workflows": frozenset({"activities", "domain", "orchestration"}),
    "settings": frozenset({"domain"}),
    "api": frozenset({"db", "domain", "observability", "orchestration", "settings"}),
}
MAY_IMPORT["composition"] = frozenset(MAY_IMPORT) - {"api"}
MAY_IMPORT["worker"] = frozenset(MAY_IMPORT) - {"api"}
MAY_IMPORT["thingbridge"] = frozenset(MAY_IMPORT)
MAY_IMPORT["cli"] = frozenset(MAY_IMPORT) - {"thingbridge"} | {"embedded"}
MAY_IMPORT["embedded"] = frozenset()
BESIDE_THE_PRODUCT = frozenset({"tests", "benchmarks", "examples", "scripts"})
# The development servers are absent from production, and so is the example device that they run.
DEVELOPMENT = frozenset({"cli", "embedded"})

AWS_ROOM = "aws"
AWS_SDK = frozenset({"boto3", "botocore", "s3transfer", "aioboto3", "aiobotocore"})
# Lambda has the modules of the functions, the standard library, and the runtime's boto3.
LAMBDA = PurePosixPath("deploy/lambda")
LAMBDA_MAY_USE = frozenset({"boto3", "botocore", "thingbridge_api"}) | sys.stdlib_module_names
AWS_STUBS = re.compile(r"(types|mypy)_(boto3|aiobotocore)")
KNOWS_AWS_TYPES = frozenset({"aws", "events"})
WITHOUT_TEMPORAL = frozenset({"domain", "db", "aws", "events"})
DOMAIN_MAY_USE = frozenset({"pydantic", "pydantic_core"}) | sys.stdlib_module_names

RUNS_AN_ACTIVITY = re.compile(r"(execute|start)_(local_)?activity(_method|_class)?")
MEANINGLESS = frozenset({"util", "utils", "helper", "helpers", "common", "manager", "managers"})

# In parts, so that this file passes its own test.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("ftp", "debian", "org"),
        ("security", "debian", "org"),
    )
)


def room_of(path: PurePosixPath) -> str:
    """Return the room of a file."""
    return path.parts[0].removesuffix(".py")


def imports(path: PurePosixPath, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each imported module with its line: anywhere in the file, also for types only, also by name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield node.lineno, module
            case ast.ImportFrom():
                package = path.parent.parts[: len(path.parent.parts) - (node.level - 1)]
                tail = [node.module] if node.module else [alias.name for alias in node.names]
                yield from ((node.lineno, ".".join((*package, name))) for name in tail)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module


def broken_import_rule(path: PurePosixPath, module: str) -> str | None:
    """Return the rule that this file breaks by importing the module, if any."""
    room, imported = room_of(path), module.split(".")[0]
    if path.is_relative_to(LAMBDA):
        if imported in LAMBDA_MAY_USE or AWS_STUBS.match(imported):
            return None
        return f"{LAMBDA} is the standard library and boto3"
    if room in BESIDE_THE_PRODUCT:
        if imported == "embedded" and room not in {"tests", "benchmarks"}:
            return "embedded is imported by cli, tests and benchmarks alone"
        return None
    if room not in MAY_IMPORT:
        return f"no rule says what {room} may import: add it to MAY_IMPORT"
    if imported in MAY_IMPORT:
        if imported != room and imported not in MAY_IMPORT[room]:
            allowed = ", ".join(sorted(MAY_IMPORT[room])) or "nothing of ours"
            return f"{room} may import {allowed}"
        return None
    if imported in BESIDE_THE_PRODUCT:
        if room in DEVELOPMENT and (module == "examples.device" or module.startswith("examples.device.")):
            return None
        return f"the product imports nothing from {imported}"
    if room == "domain" and imported not in DOMAIN_MAY_USE:
        return "domain is the standard library and pydantic"
    if room == "embedded":
        return None
    if imported in AWS_SDK and room != AWS_ROOM:
        return f"{AWS_ROOM} alone imports the AWS SDK"
    if AWS_STUBS.match(imported) and room not in KNOWS_AWS_TYPES:
        return f"only {', '.join(sorted(KNOWS_AWS_TYPES))} use AWS's clients, also as types"
    if imported == "temporalio" and room in WITHOUT_TEMPORAL:
        return f"{room} knows nothing of Temporal"
    return None


def activities_named_by_text(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each call that runs an activity and does not pass the function itself."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = str(getattr(node.func, "attr", None) or getattr(node.func, "id", ""))
        if not RUNS_AN_ACTIVITY.fullmatch(called):
            continue
        activity = next(iter(node.args), None) or next(
            (keyword.value for keyword in node.keywords if keyword.arg == "activity"), None
        )
        if not isinstance(activity, ast.Name | ast.Attribute):
            yield node.lineno, called


def broken_rules(path: PurePosixPath, source: str) -> list[str]:
    """Return the rules that a Python file breaks, each with file and line."""
    broken = [
        f"{path}:1: a module named {word} is meaningless: name it after its concept"
        for part in path.parts
        for word in part.removesuffix(".py").split("_")
        if word in MEANINGLESS
    ]
    tree = ast.parse(source, filename=str(path))
    for line, module in imports(path, tree):
        if rule := broken_import_rule(path, module):
            broken.append(f"{path}:{line}: imports {module}: {rule}")
    if room_of(path) == "workflows":
        broken += [
            f"{path}:{line}: {called}: a workflow names its activities by reference, never by text"
            for line, called in activities_named_by_text(tree)
        ]
    return broken


def locations_named(text: str, machine: tuple[Path, ...]) -> Iterator[tuple[int, str]]:
    """Yield each line that names a package registry or a folder of the machine that runs the tests."""
    # A folder at the root (/app, /root) is common, and identifies no machine.
    folders = [re.escape(str(folder)) + r"(?![\w-])" for folder in machine if len(folder.parts) > 2]
    hosts = [r"(?<![\w-])" + re.escape(host) + r"(?![\w-])" for host in REGISTRIES]
    pattern = re.compile("|".join(hosts + folders), re.IGNORECASE)
    for number, line in enumerate(text.splitlines(), start=1):
        if found := pattern.search(line):
            yield number, found.group()


def repository_files() -> list[PurePosixPath]:
    """Return the files in git or about to be added: all that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # no checkout but an unpacked archive
        found = [
            Path(folder, name).relative_to(ROOT)
            for folder, _, names in os.walk(ROOT)
            for name in names
            if not any(part.startswith(".") for part in Path(folder).relative_to(ROOT).parts)
        ]
        return sorted(PurePosixPath(path) for path in found)
    return sorted(
        PurePosixPath(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()
    )


FILES = repository_files()


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".py"], ids=str)
def test_every_file_follows_the_import_rules(path: PurePosixPath) -> None:
    """Imports point down only, one room imports the AWS SDK, activities are named by reference."""
    broken = broken_rules(path, (ROOT / path).read_text())
    assert not broken, "\n".join(broken)


def test_no_file_names_a_registry_or_this_machine() -> None:
    """No file depends on the registry or the folder of one machine."""
    machine = (ROOT, Path.home())
    broken = [
        f"{path}:{line}: names {location}"
        for path in FILES
        for line, location in locations_named((ROOT / path).read_text(errors="ignore"), machine)
    ]
    assert not broken, "\n".join(broken)


PLANTED = [
    ("domain/names.py", "from db.models import Binding", "domain may import nothing of ours"),
    ("domain/names.py", "import temporalio", "domain is the standard library and pydantic"),
    ("domain/names.py", "from settings import Settings", "domain may import nothing of ours"),
    ("db/models.py", "from activities import things", "db may import domain"),
    ("db/models.py", "import workflows.device", "db may import domain"),
    ("db/models.py", "def f():\n    import api.app", "db may import domain"),
    ("db/models.py", "import temporalio.activity", "db knows nothing of Temporal"),
    ("observability/gauges.py", "from aws.clients import AwsClients", "observability may import db, domain"),
    ("aws/things.py", "from temporalio import activity", "aws knows nothing of Temporal"),
    ("aws/things.py", "from db.models import AwsThingBinding", "aws may import domain, observability"),
    (
        "aws/things.py",
        "from activities.things import ThingActivities",
        "aws may import domain, observability",
    ),
    ("events/publisher.py", "from temporalio import activity", "events knows nothing of Temporal"),
    ("events/publisher.py", "import activities.events", "events may import aws, db, domain"),
    ("activities/things.py", "from workflows.policies import QUICK", "activities may import aws, db, domain"),
    ("activities/things.py", "import settings", "activities may import aws, db, domain"),
    ("activities/things.py", "from api import app", "activities may import aws, db, domain"),
    ("activities/things.py", "import boto3", "aws alone imports the AWS SDK"),
    ("activities/things.py", "from botocore.exceptions import ClientError", "aws alone imports"),
    ("activities/things.py", "from types_boto3_iot import IoTClient", "also as types"),
    ("activities/jobs/run.py", "from ...db import models\nfrom ... import settings", "activities may import"),
    ("orchestration/client.py", "from workflows.device import Device", "orchestration may import domain"),
    ("orchestration/client.py", "import activities.things", "orchestration may import domain"),
    ("workflows/device.py", "from db import models", "workflows may import activities, domain"),
    ("workflows/device.py", "from aws.things import Things", "workflows may import activities, domain"),
    ("workflows/device.py", "import settings", "workflows may import activities, domain"),
    ("workflows/device.py", "import boto3", "aws alone imports the AWS SDK"),
    ("workflows/device.py", "with unsafe.imports_passed_through():\n    import db", "workflows may import"),
    ("workflows/device.py", "if TYPE_CHECKING:\n    from types_boto3_iot import IoTClient", "also as types"),
    ("workflows/device.py", "await workflow.execute_activity('ensure_thing', arg)", "never by text"),
    ("workflows/device.py", "execute_local_activity(f'ensure_{noun}')", "never by text"),
    ("workflows/device.py", "workflow.start_activity(activity='ensure_thing')", "never by text"),
    ("workflows/device.py", "import observability.metrics", "workflows may import activities, domain"),
    ("api/app.py", "from activities.things import Things", "api may import"),
    ("api/app.py", "from workflows.device import Device", "api may import"),
    ("api/app.py", "import worker", "api may import"),
    ("api/app.py", "import boto3", "aws alone imports the AWS SDK"),
    ("api/app.py", "from types_boto3_iot import IoTClient", "also as types"),
    ("worker.py", "from api.app import create", "worker may import"),
    ("worker.py", "import embedded", "worker may import"),
    ("worker.py", "import importlib\nimportlib.import_module('embedded.stack')", "worker may import"),
    ("settings/sections.py", "import workflows", "settings may import domain"),
    ("embedded/stack.py", "from domain.names import ThingName", "embedded may import nothing of ours"),
    ("examples/fleet.py", "import embedded", "cli, tests and benchmarks alone"),
    ("cli/fleet.py", "import tests.fleet", "the product imports nothing from tests"),
    ("cli/fleet.py", "import examples.host", "the product imports nothing from examples"),
    (
        "activities/things.py",
        "from examples.device import device",
        "the product imports nothing from examples",
    ),
    ("deploy/lambda/hook.py", "import requests", "the standard library and boto3"),
    ("deploy/lambda/hook.py", "from domain.names import thing_name", "the standard library and boto3"),
    ("shadows/poll.py", "import json", "add it to MAY_IMPORT"),
    ("activities/aws_utils.py", "", "named utils is meaningless"),
    ("db/helpers/rows.py", "", "named helpers is meaningless"),
]


@pytest.mark.parametrize(("path", "source", "rule"), PLANTED)
def test_a_planted_violation_is_found(path: str, source: str, rule: str) -> None:
    """Each rule reports the file and line that breaks it: a rule that cannot fail is useless."""
    (broken, *others) = broken_rules(PurePosixPath(path), source)
    assert rule in broken
    assert re.match(rf"{re.escape(path)}:[12]: ", broken)
    assert not others


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("domain/names.py", "import uuid\nfrom pydantic import BaseModel\nfrom domain.ids import DeviceId"),
        ("aws/clients.py", "import boto3\nfrom botocore.exceptions import ClientError"),
        (
            "activities/things.py",
            "from aws.things import Things\nfrom db import models\nfrom . import attempt",
        ),
        ("workflows/device.py", "import activities.things\nworkflow.execute_activity(Things.ensure, arg)"),
        ("workflows/device.py", "workflow.start_activity_method(activity=Things.ensure)"),
        ("cli.py", "import worker, embedded, api.app"),
        ("embedded/stack.py", "import boto3, moto.server"),
        ("embedded/stack.py", "from examples.device.device import Device"),
        ("cli/demo.py", "import examples.device"),
        ("tests/test_worker.py", "import worker, api, embedded, boto3"),
        ("benchmarks/fleet.py", "import worker, embedded"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    """The rules forbid nothing else."""
    assert broken_rules(PurePosixPath(path), source) == []


def test_a_planted_registry_or_path_is_found() -> None:
    """A registry's host or the path of the checkout is found with its line; a similar name is not."""
    text = "\n".join(
        [
            "nothing here",
            f"index = https://{REGISTRIES[0].upper()}/simple",
            f"mirror = files.{REGISTRIES[1]}",
            "at /srv/build/thingbridge/worker.py",
            "at /srv/build/thingbridge-two, my" + REGISTRIES[0],
        ]
    )
    machine = (Path("/srv/build/thingbridge"), Path("/root"))
    assert [line for line, _ in locations_named(text + "\n/root/x", machine)] == [2, 3, 4]


def test_the_modules_have_no_import_circle() -> None:
    """No module imports another that imports it, directly or through others, also within a function."""
    modules = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
        if path.suffix == ".py" and room_of(path) in MAY_IMPORT
    }
    imported = {
        name: imported_modules(path, set(modules)) - {name, name.rpartition(".")[0]}
        for name, path in modules.items()
    }
    order = list(TopologicalSorter(imported).static_order())
    assert set(order) == set(modules)


def imported_modules(path: PurePosixPath, modules: set[str]) -> set[str]:
    """Return the modules of the product that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # A name that is itself a module, or else a name of the module.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module} & modules
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
    return found


# Words of a private dialect that the project has given up, in parts so that this file passes its own test.
DIALECT = re.compile(
    r"\b(do" + r"ors?|he" + r"eds?|to" + r"ld|te" + r"lls|take[sn]? " + r"up|taken " + r"up|un" + r"heard|me"
    r"nd(s|ed)?|stan" + r"ding)\b",
    re.IGNORECASE,
)


def test_no_file_uses_the_private_dialect() -> None:
    """A stranger can read every name and sentence: CONTRIBUTING.md, "Language"."""
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in FILES
        if path.suffix in {".py", ".md", ".tf", ".yaml"}
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1)
        if DIALECT.search(line)
    ]
    assert not found, "\n".join(found)
