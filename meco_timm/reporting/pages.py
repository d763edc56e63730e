"""12 · Templates: pages of HTML, where all text is escaped, and Markdown, where it is escaped as Markdown."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup
from PIL import Image

from meco_timm.common import UserError

THUMBNAIL = 160  # pixels of the longer side


def render_page(template: str, **values: Any) -> str:
    """A page of meco_timm/templates; every value is escaped."""
    return _environment(PackageLoader("meco_timm.reporting"), autoescape=True).get_template(template).render(values)


def render_markdown(text: str, where: str, **values: Any) -> str:
    """A Markdown template filled in; every value but Markup is escaped, so that it stays text.

    Raises:
        UserError: the template is wrong, or names a field that there is not; `where` says which template it is.
    """
    environment = _environment(BaseLoader(), finalize=escape_markdown)
    try:
        return environment.from_string(text).render(values)
    except TemplateError as error:
        number = getattr(error, "lineno", None)
        line = f":{number}" if number else ""
        raise UserError(f"{where}{line}: {error.message}. Fields of a card: {', '.join(sorted(values))}.") from None


def _environment(loader: BaseLoader, **options: Any) -> Environment:
    return Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        **options,
    )  # fmt: skip


def escape_markdown(value: Any) -> Any:
    """A value as text that neither Markdown nor the HTML in it can take for more; Markup is let through."""
    if isinstance(value, Markup):
        return str(value)
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^[#+-])", r"\\\1", text)
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")  # addresses would become links


def thumbnail(image: np.ndarray) -> str:
    """uint8 3×H×W → a data URI: PNG of small images, JPEG of what was made smaller."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    small = max(picture.size) <= THUMBNAIL // 2
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def read_template(path: str) -> str:
    """The text of a user's own template.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"publish.card: the template {path} cannot be read: {why}.") from None


def own_template(name: str) -> str:
    """The text of a template of meco_timm/templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
