"""Jinja templates: HTML pages and Markdown cards; every value is escaped for its format."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup
from PIL import Image

from meco_timm.common import UserError, located

THUMBNAIL = 160  # pixels of the longer side


def render_page(template: str, **values: Any) -> str:
    """Render an HTML page of reporting/templates; every value is escaped."""
    return _environment(PackageLoader("meco_timm.reporting"), autoescape=True).get_template(template).render(values)


def render_markdown(text: str, where: str, **values: Any) -> str:
    """Render a Markdown template; every value that is not Markup is escaped. `where`: the template's name in errors.

    Raises:
        UserError: the template has an error or an unknown field.
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
    """A value as literal text in Markdown and HTML; Markup is returned as it is."""
    if isinstance(value, Markup):
        return str(value)
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^[#+-])", r"\\\1", text)
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")  # else they would become links


def thumbnail(image: np.ndarray) -> str:
    """uint8 3×H×W → a data URI: PNG for small images, else a JPEG thumbnail."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    kind = "png" if max(picture.size) <= THUMBNAIL // 2 else "jpeg"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def read_template(path: str) -> str:
    """The text of a user's template.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"publish.card: the template {located(path)} cannot be read: {reason}.") from None


def builtin_template(name: str) -> str:
    """The text of a template of reporting/templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
