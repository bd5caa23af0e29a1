"""Headers that keep browsers from doing more with an answer than a page asked for. Every answer has them.

Answers are JSON and event streams, never a document: a browser that was led here shows, runs, frames and embeds
nothing of them. CORS stays what lets a page read them (`mesh.serving.browsers`).
"""

from __future__ import annotations

from typing import Final

PROBLEM_JSON: Final = "application/problem+json"
SECURITY_HEADERS: Final = (
    # Whatever an answer holds, it is of its own type: no script, no style, no document.
    ("x-content-type-options", "nosniff"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    # A page that embeds without CORS gets nothing into its process (Fetch, 3.7).
    ("cross-origin-resource-policy", "same-origin"),
    # Addresses name tasks, and a link's lets in: nobody that is linked to is told of them.
    ("referrer-policy", "no-referrer"),
)
HSTS_HEADER: Final = "strict-transport-security"


def security_headers(hsts_days: float) -> list[tuple[str, str]]:
    """What every answer of a server has. `hsts_days`: how long browsers are to ask by https alone; 0: say nothing.

    Without `includeSubDomains`: the names below a service's own are others' business (RFC 6797, 6.1).
    """
    hsts = [(HSTS_HEADER, f"max-age={round(hsts_days * 86_400)}")] if hsts_days else []
    return [*SECURITY_HEADERS, *hsts]


def written(status: str, body: bytes) -> bytes:
    """An answer with a problem document, as it goes over the wire, past any framework. The connection ends with it."""
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {PROBLEM_JSON}",
        "cache-control: no-store",
        *(f"{name}: {value}" for name, value in SECURITY_HEADERS),
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
