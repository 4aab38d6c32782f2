"""Reading and writing YAML 1.2 with ruamel.yaml: plain values, one document, no key twice, within limits.

Aliases (``*name``) and tags (``!!set``) are refused: no recipe needs them, and a few lines of aliases can spell an
enormous document.
"""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node

MAX_VALUES = 2_000
MAX_DEPTH = 32


class _StrictComposer(Composer):
    """Refuses aliases, tags, unpaired surrogates and documents beyond the limits as soon as it meets them."""

    values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.parser.peek_event()
        self.values += 1
        if self.values > MAX_VALUES:
            raise ComposerError(None, None, f"holds more than {MAX_VALUES} values", event.start_mark)
        if isinstance(event, AliasEvent):
            raise ComposerError(None, None, f"aliases such as *{event.anchor} are not allowed", event.start_mark)
        event.anchor = None  # Without aliases it has no meaning, and the library warns about some.
        if getattr(event, "ctag", None):
            raise ComposerError(None, None, f"tags such as {event.ctag} are not allowed", event.start_mark)
        str(getattr(event, "value", "")).encode()  # An unpaired surrogate could not be written to a file.
        return super().compose_node(parent, index)


class _PlainConstructor(SafeConstructor):
    """Reads dates and ``=`` as text, as YAML 1.2 does."""


for _kind in ("timestamp", "value"):
    _PlainConstructor.add_constructor(f"tag:yaml.org,2002:{_kind}", SafeConstructor.construct_yaml_str)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _PlainConstructor
    yaml.Composer = _StrictComposer
    yaml.max_depth = MAX_DEPTH
    yaml.width = 120
    yaml.allow_unicode = False  # ruamel.yaml would write some line breaks as they are and read them as blanks.
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.representer.ignore_aliases = lambda *_: True
    return yaml


def load(text: str) -> Any:
    """Return the value of a YAML document, None for an empty one.

    Raises:
        ValueError: the text is not one document of plain values; the message starts with the line where it is known.
    """
    try:
        return _yaml().load(text)
    except MaxDepthExceededError as error:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep") from error
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = str(error.problem)
        if problem.startswith("but "):  # Some messages of the library go on from their context.
            problem = f"{error.context}, {problem}"
        raise ValueError(line + problem) from error
    except (AssertionError, KeyError) as error:  # ruamel.yaml looks rules up by the version that the text declares.
        raise ValueError("declares a version of YAML that is not known; leave %YAML out") from error
    except (YAMLError, ValueError, OverflowError) as error:
        # An unacceptable character; a number, an escape or a YAML version out of range.
        raise ValueError(str(error).splitlines()[0]) from error


def dump(data: Any) -> str:
    """Return plain data as a YAML document: keys in the given order, innermost collections on one line."""
    text = io.StringIO()
    _yaml().dump(data, text)
    return text.getvalue()
