"""The documentation against the code: what is there is described, and what is described is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optimd_service.config import Settings
from optimd_service.errors import every_problem
from optimd_service.optim.initialisers import INITIALISERS
from optimd_service.session.catalogue import page as page_of_optimizers
from reaching import http_client

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_setting_is_documented_and_no_other() -> None:
    described = set(re.findall(r"^\| `OPTIMD_(\w+)`", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    assert described == {name.upper() for name in Settings.model_fields}


def test_every_problem_stands_in_the_reference_with_its_status() -> None:
    rows = re.findall(
        r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (\d+)", (ROOT / "docs" / "http.md").read_text(), re.MULTILINE
    )
    described = {slug: int(status) for slugs, status in rows for slug in re.findall(r"[a-z-]+", slugs)}
    assert described == {cls.slug: cls.status for cls in every_problem()}


def test_every_initialiser_stands_in_the_reference() -> None:
    (row,) = re.findall(r"^\| `init` \|.*$", (ROOT / "docs" / "http.md").read_text(), re.MULTILINE)
    assert set(INITIALISERS) <= set(re.findall(r"`(\w+)`", row))


def test_every_route_parameter_and_field_of_the_api_stands_in_the_reference(server_url: str) -> None:
    with http_client(server_url) as http:
        api = http.get("/openapi.json").json()
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("http.md", "schedules.md", "advice.md"))
    described = set(re.findall(r"[A-Za-z_][\w-]*", pages))
    parts = {part for path in api["paths"] for part in path.split("/") if part and "{" not in part}
    calls = [call for methods in api["paths"].values() for call in methods.values()]
    parameters = {each["name"] for call in calls for each in call.get("parameters", []) if each["in"] != "path"}
    fields = {field for schema in api["components"]["schemas"].values() for field in schema.get("properties", {})}
    assert len(fields) > 100
    assert (parts | parameters | fields) - described == set()


def test_the_page_of_optimizers_is_the_catalogues() -> None:
    assert (ROOT / "docs" / "optimizers.md").read_text() == page_of_optimizers()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_make_target_that_the_pages_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"\bmake ([a-z][a-z-]+)\b(?=`|  |\n)", page.read_text())) <= targets, page
