"""Dockerfile and docker-compose.yml against what they are made for; `make compose-test` builds and runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from optimd_service.cli import DRAIN_S
from optimd_service.config import Settings
from optimd_service.history.history import STOP_TIMEOUT_S

ROOT = Path(__file__).parents[1]
# Each instruction of the Dockerfile on a line of its own.
DOCKERFILE = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text())
COMPOSE_FILE = (ROOT / "docker-compose.yml").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE)["services"]


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def copied() -> set[str]:
    """What the image is built from, as paths from the root."""
    sources = [each.split()[:-1] for each in instructions("COPY") if not each.startswith("--from")]
    return {source for several in sources for source in several}


def test_every_setting_that_the_containers_give_is_one_of_the_servers(services: dict[str, Any]) -> None:
    in_image = re.findall(r"OPTIMD_(\w+)=", " ".join(instructions("ENV")))
    in_compose = [name.removeprefix("OPTIMD_") for name in services["optimd"]["environment"]]
    assert len(in_image) == 3
    assert {name.lower() for name in [*in_image, *in_compose]} <= Settings.model_fields.keys()


def test_everything_that_can_be_set_is_explained_with_its_default() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE_FILE))
    passed_on = dict.fromkeys(re.findall(r"^ +(OPTIMD_\w+):$", COMPOSE_FILE, re.MULTILINE))
    lines = re.findall(r"^(# )?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert {name: default for comment, name, default in lines if not comment} == used
    assert {name for comment, name, _ in lines if comment} == passed_on.keys()


def test_the_image_is_built_from_all_that_the_package_is_made_of() -> None:
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = {package.partition("/")[0] for package in build["packages"]}
    described = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert copied() == packages | build["force-include"].keys() | described


def test_the_builder_is_sent_what_it_copies_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied()


def test_every_place_names_the_same_release_of_torch() -> None:
    (pinned,) = (each for each in PROJECT["project"]["optional-dependencies"]["server"] if each.startswith("torch"))
    release = pinned.removeprefix("torch==")
    assert f"\nTORCH := {release}\n" in (ROOT / "Makefile").read_text()
    assert f"TORCH={release}+cpu" in instructions("ARG")
    assert f"TORCH: ${{TORCH:-{release}+cpu}}" in COMPOSE_FILE


def test_a_server_that_is_stopped_has_the_time_that_it_takes_to_end(services: dict[str, Any]) -> None:
    granted = int(services["optimd"]["stop_grace_period"].removesuffix("s"))
    assert granted > DRAIN_S + STOP_TIMEOUT_S


def test_every_service_that_stays_is_restarted_and_watched(services: dict[str, Any]) -> None:
    staying = {name: service for name, service in services.items() if name != "migrate"}
    assert {service["restart"] for service in staying.values()} == {"unless-stopped"}
    assert {name for name, service in staying.items() if "healthcheck" not in service} == {"optimd"}  # in its image
    assert len(instructions("HEALTHCHECK")) == 1


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_database_and_the_servers_address_of_it_have_one_password(services: dict[str, Any], name: str) -> None:
    password = f"${{{name.upper()}_PASSWORD:-optimd}}"
    (url,) = (url for url in services["optimd"]["environment"].values() if f"@{name}" in str(url))
    assert f":{password}@{name}" in url
    assert password in json.dumps(services[name])


@pytest.mark.usefixtures("over_tcp")
def test_the_health_check_passes_while_a_server_answers(server_url: str) -> None:
    assert health_check(urlsplit(server_url).port) == 0


def test_the_health_check_fails_where_none_does() -> None:
    assert health_check(1) != 0


def health_check(port: object) -> int:
    """The exit code of the image's own check of a server on that port."""
    (check,) = instructions("HEALTHCHECK")
    _, *arguments = json.loads(check.partition("CMD ")[2])
    environment = {**os.environ, "OPTIMD_PORT": str(port)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, check=False
    ).returncode
