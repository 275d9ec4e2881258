"""How pages are made: of Jinja2 templates, in which all text is escaped, with a policy that lets them run their own
scripts alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment(*loaders: BaseLoader) -> Environment:
    """Returns an environment in which all text is escaped, but for `Markup`, and a name that is not given is an error.

    Templates are looked for in `loaders`, then among those of reports. The filter `tojson` writes JSON that may stand
    in a script element whatever its texts are, and raises `ValueError` for NaN.
    """
    found = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("riebench.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    return found


#: The environment of reports; a site has one of its own.
ENVIRONMENT = environment()


@cache
def asset(name: str, package: str = "riebench.report") -> Markup:
    """Returns the text of a file of a package, a style sheet or a script, which goes into pages as it is."""
    return Markup(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def content_policy(style: str, scripts: Iterable[str], images: str = "'self' file:") -> str:
    """Returns the Content-Security-Policy of a page with these inline texts: they run and nothing else does, and
    nothing is loaded but pictures from `images`, by default the page's own place."""
    digests = " ".join(map(_policy_digest, scripts))
    return (
        f"default-src 'none'; img-src {images}; style-src {_policy_digest(style)}; script-src {digests}; "
        "base-uri 'none'; form-action 'none'"
    )


def _policy_digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
