"""HTML pages in one file: what a page consists of, how it is written, and nothing about what it says."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fedrec.report.plots import DARK, LIGHT, Theme, png
from fedrec.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIVATE_DATA_NOTE = (
    "Metrics and diagnostics (losses, counts, norms, clipped fractions) are computed on private data. They are here "
    "for the experimenter; no epsilon covers them."
)


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes on light and on dark paper; `alt` says in words what it shows."""

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes

    @property
    def light_uri(self) -> str:
        """Return the light figure as a data URI."""
        return _data_uri(self.light)

    @property
    def dark_uri(self) -> str:
        """Return the dark figure as a data URI."""
        return _data_uri(self.dark)


@dataclass(frozen=True)
class Fold:
    """Detail that starts folded: tables, or text shown as it is."""

    summary: str
    tables: tuple[Table, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Section:
    """One section of a page."""

    heading: str
    texts: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folds: tuple[Fold, ...] = ()


@dataclass(frozen=True)
class Banner:
    """What the page says first: the privacy statement, or that there is none."""

    private: bool
    heading: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A number worth seeing at once."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page; all texts are plain and escaped when it is rendered."""

    title: str
    subtitle: str
    banner: Banner
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
    note: str = PRIVATE_DATA_NOTE
    footer: str = "Made by fedrec from run folders alone. The figures lie beside this page as PNG files."


def picture(name: str, alt: str, caption: str, draw: Callable[[Theme], Figure]) -> Picture:
    """Draw a figure on light and on dark paper."""
    return Picture(name, alt, caption, light=png(draw, LIGHT), dark=png(draw, DARK))


def render(page: Page) -> str:
    """Return the page as HTML that makes no outside request."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("fedrec.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)


def write_page(page: Page, target: Path) -> Path:
    """Write the page to `target` and its figures, on light paper, beside it.

    Returns:
        `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for section in page.sections:
        for figure in section.pictures:
            (target.parent / f"{figure.name}.png").write_bytes(figure.light)
    target.write_text(render(page), encoding="utf-8")
    return target


def page_path(out: Path, name: str) -> Path:
    """Return where a page goes: `out` itself if it is named *.html, else the file `name` in the folder `out`."""
    return out if out.suffix == ".html" else out / name


def sections_with_content(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Leave out sections that would be a bare heading."""
    return tuple(one for one in sections if one.texts or one.pictures or one.tables or one.folds)


def _data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
