"""What is installed, here and in an image, is what the repository pins."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPLOYED = (ROOT / "deploy" / "requirements.txt").read_text()
OURS = canonicalize_name(PYPROJECT["project"]["name"])


def pins() -> dict[str, str]:
    """The version that pyproject.toml pins for each distribution, on this Python and platform."""
    found: dict[str, str] = {}
    for text in PYPROJECT["tool"]["uv"]["constraint-dependencies"]:
        pin = Requirement(text)
        (clause,) = pin.specifier
        assert clause.operator == "==", f"{text} is no exact pin"
        if pin.marker is None or pin.marker.evaluate():
            found[canonicalize_name(pin.name)] = clause.version
    return found


def deployed() -> dict[str, tuple[Requirement, list[str]]]:
    """Each requirement of deploy/requirements.txt with its hashes."""
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in DEPLOYED.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split("--hash")[0])
            found[canonicalize_name(requirement.name)] = (requirement, re.findall(r"--hash=(\S+)", line))
    return found


def names(requirements: list[str]) -> set[str]:
    """The distributions named by a list of requirements."""
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def needed_in_production() -> set[str]:
    """The project's dependencies, at whatever remove."""
    needed: set[str] = set()
    left = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if f"{name}[{extra}]" in needed:
                continue
            needed.add(f"{name}[{extra}]")
            for text in metadata.requires(name) or []:
                dependency = Requirement(text)
                if dependency.marker is None or dependency.marker.evaluate({"extra": extra}):
                    left.append(dependency)
    return {name.split("[")[0] for name in needed}


def test_every_installed_distribution_is_the_version_pinned() -> None:
    """A fresh clone installs what its authors tested, not what came out since."""
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions()}
    del installed[OURS]
    wrong = {
        name: f"{version} installed, {pins().get(name, 'nothing')} pinned"
        for name, version in installed.items()
        if pins().get(name) != version
    }
    assert not wrong, f"{wrong}: run scripts/pin where a dependency changed, uv sync where a pin did"


def test_production_installs_the_versions_pinned() -> None:
    """An image holds the versions that the tests ran on."""
    wrong = [
        str(requirement)
        for name, (requirement, _) in deployed().items()
        if (requirement.marker is None or requirement.marker.evaluate())
        and str(requirement.specifier) != f"=={pins().get(name)}"
    ]
    assert not wrong


def test_production_installs_every_dependency() -> None:
    """Nothing that the project needs at run time, at whatever remove, is left out of an image."""
    assert needed_in_production() <= deployed().keys()


def test_every_deployed_requirement_has_a_hash() -> None:
    """An image is built from known files only."""
    for requirement, hashes in deployed().values():
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found) for found in hashes), str(requirement)


def test_deployed_requirements_name_no_place() -> None:
    """Where packages come from is the machine's business: no address, no index, no path."""
    for line in DEPLOYED.splitlines():
        assert not re.search(r"://|--(extra-)?index|--find-links|file:|(^|\s)[./~]+/", line), line


@pytest.mark.parametrize("group", ["dev", "embedded"])
def test_production_installs_nothing_of_a_development_group(group: str) -> None:
    """The emulator, the embedded servers and the test tools stay out of an image, but for what it needs."""
    unwanted = names(PYPROJECT["dependency-groups"][group]) - needed_in_production()
    assert unwanted
    assert not unwanted & deployed().keys()


def test_no_distribution_brings_a_package_of_our_names() -> None:
    """Which of two were imported would rest on their order on the path."""
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    ours = {name.removesuffix(".py") for name in wheel["only-include"]}
    brought = metadata.packages_distributions()
    assert [name for name in ours if set(brought.get(name, [])) - {OURS}] == []
