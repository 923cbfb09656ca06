"""The OpenAPI document as an HTML page, without scripts and without requests to other servers."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
code, .type { font-family: ui-monospace, monospace; font-size: .9em; }
h2 { border-top: 1px solid #8886; padding-top: 1.5rem; margin-top: 2rem; }
h2 code { font-size: 1.1em; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
tr { border-bottom: 1px solid #8884; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
:root { color-scheme: light dark; }
"""

DOCS_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page: only its own style is allowed."""

_Schema = Mapping[str, Any]


def docs_page(document: _Schema) -> str:
    """Return the page for an OpenAPI document that `api.openapi` has made."""
    info = document["info"]
    at = "".join(server["url"] for server in document.get("servers", ()))
    body = [
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        f"<p>{escape(info['description'])}</p>",
        '<p>The document itself: <a href="openapi.json">openapi.json</a>, OpenAPI 3.1. Example: '
        f"<code>curl -H 'Authorization: Bearer KEY' …{escape(at)}/api/iot/bindings</code></p>",
        "<ul>",
    ]
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    body += [
        f'<li><a href="#{operation["operationId"]}"><code><span class="method">{method.upper()}</span> '
        f"{escape(at + path)}</code></a> {escape(operation['summary'])}</li>"
        for method, path, operation in operations
    ]
    body.append("</ul>")
    for method, path, operation in operations:
        body += _operation(method, at + path, operation)
    body.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        body += _schema(name, schema)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>"
    )


def _operation(method: str, path: str, operation: _Schema) -> Iterator[str]:
    yield (
        f'<h2 id="{operation["operationId"]}"><code>{method.upper()} {escape(path)}</code></h2>'
        f"<p>{escape(operation['summary'])}.</p>"
    )
    if body := operation.get("requestBody"):
        yield f"<p>Request body: {_media(body['content'])}.</p>"
    if parameters := operation.get("parameters"):
        yield from _table(
            ("Parameter", "In", "Type", "Description"),
            (
                (
                    _code(each["name"]),
                    each["in"] + (", required" if each.get("required") else ""),
                    _type(each["schema"]),
                    escape(each.get("description", "")),
                )
                for each in parameters
            ),
        )
    yield from _table(
        ("Status", "Meaning", "Content"),
        (
            (_code(status), escape(response["description"]), _media(response.get("content", {})))
            for status, response in operation["responses"].items()
        ),
    )


def _schema(name: str, schema: _Schema) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3>'
    yield f"<p>{escape(schema.get('description', ''))}</p>"
    required = schema.get("required", ())
    if fields := schema.get("properties"):
        yield from _table(
            ("Field", "Type", "Description"),
            (
                (
                    _code(field) + ("" if field in required else ", optional"),
                    _type(declared),
                    escape(declared.get("description", "")),
                )
                for field, declared in fields.items()
            ),
        )
    else:
        yield f"<p>{_type(schema)}</p>"


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _media(content: _Schema) -> str:
    return ", or ".join(f"{_type(held['schema'])} as {_code(media)}" for media, held in content.items())


def _type(schema: _Schema) -> str:
    """Return a short description of a schema."""
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_type, alternatives))
    if "enum" in schema:
        return "one of " + ", ".join(_code(value) for value in schema["enum"])
    if "const" in schema:
        return _code(schema["const"])
    kind = str(schema.get("format") or schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = [
        f"{label} {_code(schema[name])}"
        for name, label in (
            ("minimum", "from"),
            ("maximum", "to"),
            ("default", "default"),
            ("pattern", "matching"),
        )
        if schema.get(name) is not None
    ]
    return " ".join([f'<span class="type">{escape(kind)}</span>', *limits])


def _code(text: object) -> str:
    return f"<code>{escape(str(text))}</code>"
