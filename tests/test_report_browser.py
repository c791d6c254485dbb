"""The report in a browser: no error, no request, nothing that axe finds serious, and its tables sort by keyboard.

It needs the extra `browser` and a Chromium on the machine, of which it downloads none.
"""

import shutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest

import pyrovi

playwright = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra 'browser' is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # playwright's
]

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]

HOSTILE = "<img src='http://example.invalid/x'><script>document.title='owned'</script>"
DATA = {"x": [1.0, 2.0, 3.0, 1.5, 0.2, -0.4]}
PAGES = ["good", "bad", "hostile", "without settings", "stored", "many", "several"]


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def hostile(x):
    w = pyro.sample(HOSTILE, dist.Normal(0.0, 1.0))
    with pyro.plate(HOSTILE + " plate", len(x)):
        pyro.sample("x" + HOSTILE, dist.Normal(w, 1.0), obs=x)


def many(x):
    pyro.sample("v", dist.Normal(0.0, 1.0).expand([1_900]).to_event(1))
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages, by name."""
    folder = tmp_path_factory.mktemp("pages")
    pyro.clear_param_store()
    quick = {"steps": 300, "lr": 0.05, "progress": False}
    recipe = pyrovi.recipe("linear_regression")
    data = recipe.load()
    good, bad = recipe.fit(steps=2_000, progress=False), recipe.fit(steps=30, lr=1.0, progress=False)
    calibration = pyrovi.calibrate(model, "normal", DATA, replicates=24, steps=200, lr=0.05)
    own = pyrovi.fit(model, "normal", DATA, stop="auto", lr=0.05, progress=False)
    own.save(folder / "run", draws=300)
    exact = recipe.exact(**data)
    made = {
        "good": (good, {"exact": exact}),
        "bad": (bad, {"exact": exact}),
        "hostile": (pyrovi.fit(hostile, "normal", DATA, **quick), {}),
        "without settings": (pyrovi.fit(model, data=DATA, progress=False), {"calibration": calibration}),
        "stored": (pyrovi.load(folder / "run"), {}),
        "many": (pyrovi.fit(many, "normal", DATA, **quick), {}),
        "several": ({"mean-field": own, HOSTILE: pyrovi.fit(model, "delta", DATA, **quick)}, {}),
    }
    return {name: pyrovi.report(fit, folder / f"{name}.html", **options) for name, (fit, options) in made.items()}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages):
    """Opens a page and keeps what it said and asked for."""
    contexts = []

    def open_page(name, **options):
        context = browser.new_context(viewport={"width": 1_100, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.heard = []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on(
            "request", lambda request: page.heard.append(request.url) if not request.url.startswith(("file:", "data:")) else None
        )
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_page_makes_no_error_no_request_and_axe_finds_nothing_serious(opened, name, scheme):
    page = opened(name, color_scheme=scheme)
    assert page.heard == []
    assert not page.title().startswith("owned")
    assert page.locator("img").count() == 0
    checked = opened(name, color_scheme=scheme, bypass_csp=True)  # the policy would not let axe in
    found = axe.Axe().run(checked).response["violations"]
    serious = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


@pytest.mark.parametrize("name", PAGES)
def test_page_is_small_and_no_wider_than_a_phone(opened, pages, name):
    assert pages[name].stat().st_size < 3e6
    page = opened(name)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_tables_sort_by_keyboard_and_say_so(opened):
    page = opened("good")
    head = page.locator("table.sortable").first.locator("thead th").nth(1)
    column = page.locator("table.sortable").first.locator("tbody tr td:nth-child(2)")

    def numbers():
        return [float(text.replace(",", "")) for text in column.all_inner_texts()]

    before = numbers()
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(before)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(before, reverse=True)
    assert "Sorted by mean, descending." in page.locator("[role=status]").inner_text()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # the first column: names, by their numbers
    assert head.get_attribute("aria-sort") is None
    names = page.locator("table.sortable").first.locator("tbody th").all_inner_texts()
    assert names == [f"beta[{i}]" for i in range(10)]


def test_page_reads_without_its_script(opened):
    page = opened("good", java_script_enabled=False)
    assert page.locator("thead button").count() == 0
    assert "KL(q‖p)" in page.locator("main").inner_text()


def test_skip_link_is_the_first_stop_and_leads_to_the_content(opened):
    page = opened("good")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_figures_follow_the_colours_of_the_page(opened):
    ink = {}
    for scheme in ("light", "dark"):
        page = opened("good", color_scheme=scheme)
        ink[scheme] = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        page.emulate_media(media="print", color_scheme=scheme)
        printed = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert printed == "rgb(255, 255, 255)"  # paper is white, whatever the screen
    assert np.mean(_rgb(ink["light"])) < 60
    assert np.mean(_rgb(ink["dark"])) > 200


def _rgb(text):
    return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]
