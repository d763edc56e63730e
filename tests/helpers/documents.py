"""What people read: README, CONTRIBUTING and docs/*.md, their fenced blocks, commands and inline code."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
PAGES |= {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").glob("*.md"))}


def read(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def fenced(page: str, language: str) -> list[str]:
    """The fenced blocks of one language; "" for those without."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    return [text for named, text in found if named == language]


def inline(page: str) -> list[str]:
    """Code within the text, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL))


def commands(page: str) -> list[list[str]]:
    """Every command of the bash blocks, in words; `a && b` are two."""
    lines = [line for block in fenced(page, "bash") for line in block.splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [command for command in words if command]


def inline_commands(page: str) -> list[list[str]]:
    """Commands within the text."""
    return [
        shlex.split(code)
        for code in inline(page)
        if re.match(r"(python -m|meco-timm|train\.py|accelerate launch .*train\.py|torchrun|bash) ", code)
    ]
