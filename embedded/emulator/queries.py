"""The query language of the AWS IoT fleet index, without ranges.

It supports terms with or without a field, quoted phrases, the wildcards `*` and `?`, AND, OR, NOT, a hyphen
for NOT, parentheses, and parentheses after a field. Two adjacent terms are combined with AND. Case is
ignored. Queries that AWS refuses are refused.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from embedded.emulator.calls import AwsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Finds = Callable[[Mapping[str, Any]], bool]
    """Return whether a query finds a Thing, given its document in the index."""

_INDEXED = frozenset({"thingName", "thingId", "thingTypeName", "attributes", "shadow", "connectivity"})
_OPERATORS = frozenset({"AND", "OR", "NOT"})
_TERMS_AT_MOST = 12
_WORD = re.compile(r'\s*([()]|(?:\\.|"(?:\\.|[^"\\])+"|[^\s()"\\])+)\s*')
_FIELD = re.compile(r"([A-Za-z][\w.-]*):(.*)", re.DOTALL)
_PIECE = re.compile(r'"(?P<phrase>[^"]+)"|\\(?P<escaped>.)|(?P<wildcard>[*?])|(?P<plain>[\w.:+-])', re.DOTALL)
_WILDCARDS = {"*": ".*", "?": "."}


@cache
def read_query(query: str) -> Finds:
    """Parse a query. Raise the error of AWS if it is invalid."""
    return _Reader(query).read()


class _Reader:
    """A recursive descent parser of one query."""

    def __init__(self, query: str) -> None:
        self._query = query
        self._words = self._split()
        self._position = 0

    def read(self) -> Finds:
        finds = self._either("")
        if self._next is not None:
            raise self._refusal(f"{self._next!r} is unexpected")
        return finds

    @property
    def _next(self) -> str | None:
        return self._words[self._position] if self._position < len(self._words) else None

    def _take(self) -> str | None:
        word = self._next
        self._position += 1
        return word

    def _either(self, field: str) -> Finds:
        found = [self._all(field)]
        while self._next == "OR":
            self._take()
            found.append(self._all(field))
        return lambda document: any(finds(document) for finds in found)

    def _all(self, field: str) -> Finds:
        found = [self._one(field)]
        while self._next not in (None, "OR", ")"):
            if self._next == "AND":
                self._take()
            found.append(self._one(field))
        return lambda document: all(finds(document) for finds in found)

    def _one(self, field: str) -> Finds:
        word = self._take()
        if word == "NOT":
            found = self._one(field)
            return lambda document: not found(document)
        if word == "(":
            return self._group(field)
        if word is None or word == ")" or word in _OPERATORS:
            raise self._refusal(f"a term is expected instead of {'the end' if word is None else word}")
        if word.startswith("-") and len(word) > 1:
            self._position -= 1
            self._words[self._position] = word[1:]
            unwanted = self._one(field)
            return lambda document: not unwanted(document)
        return self._term(field, word)

    def _group(self, field: str) -> Finds:
        finds = self._either(field)
        if self._take() != ")":
            raise self._refusal("a parenthesis is not closed")
        return finds

    def _term(self, field: str, word: str) -> Finds:
        named = _FIELD.fullmatch(word)
        if named:
            field, word = named.groups()
            if field.partition(".")[0] not in _INDEXED:
                raise self._refusal(f"{field} is not a field of the index")
            if not word and self._next == "(":
                self._take()
                return self._group(field)
        pattern = self._pattern(word)
        return lambda document: any(pattern.fullmatch(text) for text in _texts(_at(document, field)))

    def _pattern(self, word: str) -> re.Pattern[str]:
        if not word:
            raise self._refusal("a field has no value")
        pieces, position = [], 0
        while position < len(word):
            piece = _PIECE.match(word, position)
            if piece is None:
                raise self._refusal(f"{word[position]!r} must be escaped")
            position = piece.end()
            text = piece["phrase"] or piece["escaped"] or piece["plain"]
            pieces.append(re.escape(text) if text else _WILDCARDS[piece["wildcard"]])
        return re.compile("".join(pieces), re.IGNORECASE | re.DOTALL)

    def _split(self) -> list[str]:
        query, words, position = self._query.strip(), [], 0
        while position < len(query):
            word = _WORD.match(query, position)
            if word is None:
                raise self._refusal(
                    "a quotation mark is not closed, or the query is empty or ends in a backslash"
                )
            words.append(word[1])
            position = word.end()
        if len([word for word in words if word not in _OPERATORS | {"(", ")"}]) > _TERMS_AT_MOST:
            raise self._refusal(f"it has more than {_TERMS_AT_MOST} terms")
        return words

    def _refusal(self, reason: str) -> AwsError:
        return AwsError(400, "InvalidQueryException", f"Invalid query {self._query!r}: {reason}")


def _at(document: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field, or the whole document if no field is named."""
    found: Any = document
    for name in field.split(".") if field else []:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _texts(value: Any) -> Iterator[str]:
    match value:
        case None:
            return
        case dict():
            for member in value.values():
                yield from _texts(member)
        case list():
            for member in value:
                yield from _texts(member)
        case bool():
            yield str(value).lower()
        case _:
            yield str(value)
