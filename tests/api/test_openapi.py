"""The endpoints behave as their OpenAPI document describes, with and without a key."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from embedded.processes import choose_ports
from tests.harness.bridge import Bridge, until
from tests.harness.command_line import running
from tests.harness.enrolment import EnrolmentHarness
from tests.harness.http_api import HttpApi

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest_asyncio.fixture(scope="module")
async def served(bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness) -> AsyncIterator[str]:
    """Run a server whose requests reach no worker, and return its URL."""
    (port,) = choose_ports(0)
    # Nothing reads its log while it runs, so a long log would fill the pipe and block the process.
    quiet = {"IOT_AWS_LOG__LEVEL": "ERROR", "IOT_AWS_WORKER__TASK_QUEUE": "without-a-worker"}
    async with running("api", "--port", str(port), **quiet):
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:

            async def alive() -> bool:
                try:
                    return (await http.get("/healthz")).status_code == 200
                except httpx2.ConnectError:
                    return False

            await until(alive, "the server responds")
        yield url


async def statuses_found(url: str, folder: Path, examples: int, *arguments: str) -> set[int]:
    """Run schemathesis, check that all its checks passed, and return the statuses of the responses."""
    report = folder / "report.json"
    process = await asyncio.create_subprocess_exec(
        SCHEMATHESIS, "run", f"{url}/openapi.json", "--checks", "all", "--continue-on-failure",
        "--max-examples", str(examples), "--generation-deterministic",
        "--suppress-health-check", "all", "--no-color", "--report-har-path", report, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()
    return {entry["response"]["status"] for entry in json.loads(report.read_text())["log"]["entries"]}


async def test_with_a_key_responses_match_the_document(
    served: str, http_api: HttpApi, tmp_path: Path
) -> None:
    """Every request that schemathesis generates gets a documented response, and valid ones succeed."""
    key = http_api.key(None)
    found = await statuses_found(served, tmp_path, 10, "-H", f"Authorization: Bearer {key}")
    assert found >= {200, 202, 400, 401, 404, 405, 422}
    assert found.isdisjoint({500, 503})


async def test_without_a_key_every_response_is_401(served: str, tmp_path: Path) -> None:
    """This holds for every request that schemathesis generates."""
    assert await statuses_found(served, tmp_path, 5) == {401}


async def test_the_documentation_page_lists_every_endpoint_and_fetches_nothing(http_api: HttpApi) -> None:
    """The page shows the same document as /openapi.json, without scripts and without other requests."""
    async with http_api.client() as http:
        document = (await http.get("/openapi.json")).json()
        page = await http.get("/docs")
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page.text
    links = set(re.findall(r'(?:href|src)="([^"#]*)', page.text))
    assert links == {"", "openapi.json"}
    assert not re.search(r"<script|<link|<img|@import|url\(", page.text)


@pytest.mark.parametrize("path", ["/api/iot/device-events", "/api/iot/commands"])
async def test_an_endpoint_documents_all_its_responses(http_api: HttpApi, path: str) -> None:
    """Each problem has its status, and the key is documented as the security scheme."""
    async with http_api.client() as http:
        document = (await http.get("/openapi.json")).json()
    responses = document["paths"][path]["post"]["responses"]
    assert responses.keys() >= {"202", "400", "401", "403", "404", "408", "413", "415", "422", "500", "503"}
    problems = {status for status, each in responses.items() if "application/problem+json" in each["content"]}
    assert problems == responses.keys() - {"202"}
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
