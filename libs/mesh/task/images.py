"""Images that a tool's result holds, in the content blocks of the Model Context Protocol. Pure.

An event tells each by type and size: `{"type": "image", "mimeType": …, "bytes": …}`, or the same inside of
`{"type": "resource", "resource": …}`. The object store has the same list, with the bytes as base64 (RFC 4648) in
`data`, or in the resource's `blob`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Image:
    """An image as models take it. `data` is base64."""

    media_type: str
    data: str

    @property
    def size_bytes(self) -> int:
        """The size of the image itself."""
        return len(self.data.rstrip("=")) * 3 // 4


def are_told(result: Any) -> bool:
    """Whether a result, as its event has it, tells of images."""
    return isinstance(result, list) and any(_is_told(block) for block in result)


def images_in(content: Any) -> Iterator[Image]:
    """The images of a whole result, in its order; what is no PNG, JPEG, GIF or WebP is left out."""
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict):
            data = block.get("data") if block.get("type") == "image" else _resource(block).get("blob")
            image = _image(data) if isinstance(data, str) else None
            if image is not None:
                yield image


def _is_told(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    return block.get("type") == "image" or str(_resource(block).get("mimeType", "")).startswith("image/")


def _resource(block: dict[str, Any]) -> dict[str, Any]:
    resource = block.get("resource")
    return resource if isinstance(resource, dict) else {}


def _image(data: str) -> Image | None:
    try:
        media_type = _media_type(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return None
    return Image(media_type, data) if media_type is not None else None


def _media_type(data: bytes) -> str | None:
    """By the first bytes, not by what the tool says: APIs refuse an image of another type than they are told."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None
