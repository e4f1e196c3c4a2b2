"""What pages have in common: templates that escape, one style sheet, and a policy by which they load nothing."""

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_templates(package: str) -> Environment:
    """Return the Jinja templates that lie in a package; what they are given is escaped."""
    return Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_style(package: str, name: str) -> str:
    """Return the style sheet of all pages, and after it that of one page, which lies in a package."""
    sheets = (files("voxelgate.core.page") / "common.css", files(package) / name)
    return "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)


def policy_hash(text: str) -> str:
    """Return what a content security policy calls a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
