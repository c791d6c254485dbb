"""The documentation says what is so: its code runs, its error messages are the code's, and every public name is in it."""

import ast
import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

import pyrovi
from pyrovi import guides, models, plots

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
run_blocks = importlib.import_module("run_blocks")
sys.path.remove(str(DOCS))

PAGES = [
    "index.md",
    "tutorial.md",
    *sorted(str(path.relative_to(DOCS)) for path in (DOCS / "howto").glob("*.md")),
    "errors.md",
    "../README.md",
]
QUICK = ("tutorial.md", "howto/from_pymc.md", "errors.md")  # the others take some twenty seconds each


@pytest.mark.parametrize("page", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PAGES])
def test_the_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        printed = run_blocks.run((DOCS / page).read_text())
    finally:
        for path in tmp_path.glob("*.py"):
            sys.modules.pop(path.stem, None)
    assert [block for block, _ in printed if block.kind == "python"]
    following = zip(printed, printed[1:], strict=False)
    shown = [(before, after.text) for (_, before), (after, _) in following if after.kind == "text" and not after.file]
    for now, written in shown:
        assert words(now) == words(written)


def words(text):
    """What is printed, but for its numbers and its white space, which versions, machines and terminals change."""
    return "".join(re.sub(r"[-−+]?(\d[\d,]*\.?\d*(e-?\d+)?|\b(inf|nan)\b)", "#", text).split())


def literals():
    """The strings of the package, f-strings with … for what is put into them; parts joined as Python joins them."""
    for path in ROOT.glob("pyrovi/*.py"), ROOT.glob("guides/*.py"):
        for file in path:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_every_error_on_the_page_is_one_that_the_code_raises():
    known = set(literals())
    cells = re.findall(r"^\| (`.*?`) \| [^|]+ \|$", (DOCS / "errors.md").read_text().split("## No error")[0], re.M)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 40
    for message in messages:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.S)
        assert any(pattern.search(text) for text in known), message


def directives():
    """What the reference documents, by the directive that does it."""
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    found = re.findall(r"^\.\. (auto\w+|py:data):: (\S+)", text, re.M)
    return {name for kind, name in found if kind != "automodule"}, {name for kind, name in found if kind == "automodule"}


def test_every_public_name_is_in_the_reference():
    names, modules = directives()
    for name in pyrovi.__all__:
        assert f"pyrovi.{name}" in names | modules, name
    assert plots.__name__ in modules
    for package in (models, guides):
        for path in Path(package.__file__).parent.glob("[!_]*.py"):
            assert f"{package.__name__}.{path.stem}" in modules, path.stem


def test_what_the_reference_documents_exists():
    names, modules = directives()
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    for name in modules:
        assert importlib.import_module(name).__doc__, name


def test_every_recipe_has_a_page_with_a_formula_a_picture_and_a_command():
    for name in pyrovi.recipes:
        page = (DOCS / "recipes" / f"{name}.md").read_text()
        assert page.startswith(f"# `{name}`: ")
        assert "$$\n" in page
        assert f"pyrovi fit {name}" in page
        assert f"({name}.png)" in page
        assert (DOCS / "recipes" / f"{name}.png").stat().st_size < 80_000


def test_pages_and_pictures_that_are_linked_to_exist():
    for path in [*DOCS.glob("*.md"), *DOCS.glob("howto/*.md"), *DOCS.glob("recipes/*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # playwright's
def test_the_site_is_read_from_its_files_without_a_request_or_an_error():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    site = DOCS / "_build" / "html"
    pages = [path for path in sorted(site.rglob("*.html")) if "_modules" not in path.parts]
    if not pages:
        pytest.skip("the site is not built: make docs")
    wrong = []
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
        page.on("requestfailed", lambda r: wrong.append(r.url))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for path in pages:
            page.goto(path.as_uri(), wait_until="load")
            beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert beyond <= 0, f"{path.name} is wider than the window"
            assert not page.query_selector_all("img:not([alt]), svg[role=img]:not([aria-label])"), f"{path.name} has a mute picture"
        page.goto((site / "search.html").as_uri() + "?q=verdict")
        page.wait_for_selector("#search-results li")
        browser.close()
    assert not wrong
