"""What a stranger gets: metadata that agree with each other, and templates that ask for what is there."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

import pyrovi

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_the_same_everywhere():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changed = re.search(r"^## .*?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = {PROJECT["project"]["version"], cited[1], changed[1], pyrovi.__version__}
    assert versions == {importlib.metadata.version("pyrovi")}


def test_every_folder_of_the_package_is_packed():
    folders = {path.parent for path in (ROOT / "pyrovi").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    folders = {folder for folder in folders if "__pycache__" not in folder.parts}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"pyrovi.models", "pyrovi.guides"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names
    assert (ROOT / "pyrovi" / "py.typed").is_file()


def test_every_package_that_is_imported_at_the_top_is_a_dependency():
    wanted = {re.split(r"[>=\[]", line)[0].lower() for line in PROJECT["project"]["dependencies"]}
    imported = set()
    for folder in ("pyrovi", "models", "guides"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.partition(".")[0])
    known = {"pyro": "pyro-ppl"}
    packages = {known.get(name, name) for name in imported if name not in sys.stdlib_module_names}
    assert packages - {"pyrovi"} <= wanted


@pytest.mark.parametrize("template", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_is_one_and_asks_for_the_versions_by_a_command_that_prints_them(template):
    yaml = pytest.importorskip("yaml", reason="reads the forms; it comes with the extra docs")
    form = yaml.safe_load(template.read_text())
    assert {"name", "description", "body"} <= set(form)
    asked = {part["id"]: part for part in form["body"] if "id" in part}
    if template.stem != "feature":
        assert "`pyrovi --version`" in asked["versions"]["attributes"]["description"]
        assert asked["versions"]["validations"] == {"required": True}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))))
def test_the_contributing_guide_names_targets_that_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
