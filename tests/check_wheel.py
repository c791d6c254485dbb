"""Build the sdist, from it the wheel, and use the wheel outside the checkout. Run by `make wheel`."""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE = """
import pathlib, sys, pyrovi
from pyrovi.models import gamma_poisson
from pyrovi.guides import gamma_poisson as guide
assert pathlib.Path(pyrovi.__file__).is_relative_to(sys.argv[1]), pyrovi.__file__
data = gamma_poisson.load(m=5)
fit = pyrovi.fit(gamma_poisson.model, guide.guide, data, steps=20, particles=2)
fit.save("run")
print(pyrovi.compare(pyrovi.load("run"), gamma_poisson.exact(**data), draws=100).shape)
pyrovi.report(fit, "report.html")
"""


SOURCES = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml",
    "docs/command.md", "notebooks/execute.py", "benchmarks/bench.py", "tests/conftest.py", "tests/recipes/test_all.py",
)  # fmt: skip
"""What somebody who has the sdist alone needs to work on it; the wheel is built from the sdist."""


def data_files():
    folders = (ROOT / "pyrovi" / "datasets", ROOT / "pyrovi" / "templates")
    return [f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir() if path.is_file()]


def run(*command, **options):
    return subprocess.run([sys.executable, *command], check=True, **options)


def main():
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run("-m", "build", "--no-isolation", "--outdir", str(work / "dist"), str(ROOT), stdout=subprocess.DEVNULL)
        (wheel,) = (work / "dist").glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.split("/")[0] for name in names}
        assert {t for t in tops if not t.endswith(".dist-info")} == {"pyrovi"}, tops
        for part in ("py.typed", "models/gamma_poisson.py", "guides/auto.py", *data_files()):
            assert f"pyrovi/{part}" in names, part
        (sdist,) = (work / "dist").glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            packed = {name.partition("/")[2] for name in archive.getnames()}
        missing = {part for part in SOURCES if part not in packed}
        assert not missing, missing
        site = work / "site"
        run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
        outside = work / "elsewhere"
        outside.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
        run("-c", USE, str(site), cwd=outside, env=environment)
        run("-m", "pyrovi.cli", "list", cwd=outside, env=environment, stdout=subprocess.DEVNULL)
        run("-m", "pyrovi.cli", "new", "rain", cwd=outside, env=environment, stdout=subprocess.DEVNULL)
        fit = ("fit", "rain.py:model", "--guide", "guide", "--steps", "20", "--quiet")
        run("-m", "pyrovi.cli", *fit, cwd=outside, env=environment)
        print(f"{wheel.name}: {len(names)} files, used outside the checkout")


if __name__ == "__main__":
    main()
