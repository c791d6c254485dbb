r"""Run the code of a page, in order, in one folder and one namespace.

    python docs/run_blocks.py docs/tutorial.md       # and write what it prints into the page, where outputs are shown

What a page's blocks are: a `python` block is run, and a `text` block right after it shows what it prints; `{code-block}` with a
`:caption:` is a file, written under that name; of a `console` block the lines after `$ ` are run by the shell, and the rest is
what they print. A `py` block is code that is only to be read: another package's, say.
"""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(\{code-block\} )?(\w+)\n((?::[^\n]*\n)*)(.*?)^```$", re.M | re.S)
NOISE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the name of the file that it is (empty for none), its text and where that lies in the page."""

    kind: str
    file: str
    text: str
    start: int
    end: int


def blocks(page: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page):
        caption = re.search(r":caption: (\S+)", match[3])
        found.append(Block(match[2], caption[1] if caption else "", match[4].lstrip("\n"), *match.span(4)))
    return found


def run(page: str, *, shell: bool = False) -> list[tuple[Block, str]]:
    """What each block of the page leaves on the screen, run in the present folder; console blocks only where asked for."""
    space: dict[str, object] = {"__name__": "__main__"}
    printed = []
    for block in blocks(page):
        screen = io.StringIO()
        if block.file:
            Path(block.file).write_text(block.text)
            importlib.invalidate_caches()
        elif block.kind == "python":
            line = page.count("\n", 0, block.start) + 1
            with contextlib.redirect_stdout(screen):
                exec(compile("\n" * (line - 1) + block.text, "page", "exec"), space)
        elif block.kind == "console" and shell:
            for command in re.findall(r"^\$ (.*)$", block.text, re.M):
                done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
                screen.write(f"$ {command}\n{done.stdout}")
        printed.append((block, NOISE.sub("", screen.getvalue())))
    return printed


def written(page: str) -> str:
    """The page with the outputs that its blocks have now."""
    results = run(page, shell=True)
    for (block, before), output in reversed([*zip(results, [""] + [text for _, text in results], strict=False)]):
        shown = {"console": before, "text": output}.get(block.kind)
        if shown is not None and not block.file:
            lines = [line.rstrip() for line in shown.rstrip().splitlines()]
            page = page[: block.start] + "\n".join(lines) + "\n" + page[block.end :]
    return page


def main(names: list[str]) -> None:
    home = Path.cwd()
    for name in names:
        path = home / name
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
            path.write_text(written(path.read_text()))
            sys.path.remove(folder)
            os.chdir(home)


if __name__ == "__main__":
    main(sys.argv[1:])
