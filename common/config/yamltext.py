"""YAML text to plain values, with bounds: no objects, no alias bombs, no bottomless nesting, no key twice.

Reads what people write: the configuration file, client configurations. Not here: what the values mean.
"""

from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node

from common.errors import invalid

ALIASES_MAX: Final = 16
DEPTH_MAX: Final = 32
TEXT_CHARACTERS_MAX: Final = 1024 * 1024


def parse_yaml(text: str) -> Any:
    """The one document in `text`. Raises JobletError(INVALID) above a bound, yaml.YAMLError when it is no YAML."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise invalid(f"the text is longer than {TEXT_CHARACTERS_MAX} characters")
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself bounds neither aliases nor depth and lets the last of two keys win."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = 0
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > ALIASES_MAX:
                raise invalid(f"more than {ALIASES_MAX} aliases", "write the values out")
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise invalid(f"nested deeper than {DEPTH_MAX} levels", "this is no configuration")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  # PyYAML's signature
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise invalid(f"key {str(key.value)[:64]} twice, line {key.start_mark.line + 1}", "keep one of them")
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)
