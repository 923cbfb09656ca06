"""The query language of the AWS IoT fleet index, a part of Lucene's, which luqum parses.

Source: "Query syntax" in the AWS IoT developer guide. Adjacent terms are combined with AND. Terms without a
field, except `*`, and ranges are refused, although AWS supports them.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from luqum import tree
from luqum.exceptions import ParseError
from luqum.parser import parser
from ministack.services import iot

from embedded.emulator.calls import AwsError

Finds = Callable[[Mapping[str, Any]], bool]
"""Return whether a query finds a Thing, given its document in the index."""

_FIELDS = ("thingName", "thingId", "thingTypeName", "thingGroupNames", "attributes", "shadow", "connectivity")


@cache
def read_query(query: str) -> Finds:
    """Parse a query.

    Raises:
        AwsError: AWS would refuse the query, or the emulator does not support it.
    """
    try:
        return _compiled(parser.parse(query), "")
    except (ParseError, ValueError) as error:
        raise AwsError(400, "InvalidQueryException", f"Invalid query {query!r}: {error}") from None


def _compiled(node: tree.Item, field: str) -> Finds:
    match node:
        case tree.SearchField():
            if node.name.partition(".")[0] not in _FIELDS:
                raise ValueError(f"{node.name} is not a field of the index")
            return _compiled(node.expr, node.name)
        case tree.BaseGroup():
            return _compiled(node.children[0], field)
        case tree.Not() | tree.Prohibit():
            unwanted = _compiled(node.children[0], field)
            return lambda document: not unwanted(document)
        case tree.OrOperation():
            either = [_compiled(child, field) for child in node.children]
            return lambda document: any(finds(document) for finds in either)
        case tree.AndOperation() | tree.UnknownOperation():
            every = [_compiled(child, field) for child in node.children]
            return lambda document: all(finds(document) for finds in every)
        case tree.Term() if field or node.value == "*":
            text = re.sub(r"\\(.)", r"\1", node.value.strip('"'))
            return lambda document: bool(iot._search_value_matches(_at(document, field or "thingName"), text))
    raise ValueError(f"{node} is not supported")


def _at(document: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field."""
    found: Any = document
    for name in field.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
