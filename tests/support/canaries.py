"""Canaries: secrets that a test plants and then looks for in all that was written, in whatever form."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from mesh.archive.contents import Unreadable, packed_tasks
from mesh.broker.connection import Connection
from mesh.broker.requests import Requests
from mesh.errors import BrokerError
from tests.support import children

NO_MESSAGE = 10037
"""JetStream's error for a message that is gone."""


def made(name: str) -> str:
    """A canary of that name: a secret that is its own, can be in a header, a URL or base64, and is found anywhere."""
    return f"canary{name.title().replace('_', '')}" + "Qz7Kw3Xv9"


def whsec(name: str) -> str:
    """A canary that is a webhook's secret."""
    text = made(name).ljust(44, "A")
    return f"whsec_{text}"


def forms(secret: str) -> set[bytes]:
    """How a secret may be written, in lower case: as it is, in a URL, in base64 at any place, in hex."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), raw.hex().encode()}
    for shift in range(3):
        # What depends on its neighbours is cut off at both ends.
        encoded = base64.b64encode(b"x" * shift + raw)
        found.add(encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4])
    return {form.lower() for form in found}


def found_in(content: bytes, planted: Mapping[str, str]) -> list[str]:
    """The names of the canaries that are there."""
    lower = content.lower()
    return [name for name, secret in planted.items() if any(form in lower for form in forms(secret))]


class Written:
    """All that was written, by place."""

    def __init__(self) -> None:
        self.places: dict[str, list[bytes]] = {}

    def add(self, place: str, *contents: bytes | str) -> None:
        """More of a place."""
        self.places.setdefault(place, []).extend(
            each.encode(errors="replace") if isinstance(each, str) else each for each in contents
        )

    def leaks(self, planted: Mapping[str, str], allowed: Iterable[tuple[str, str]] = ()) -> list[str]:
        """Where a canary is: `<canary> in <place>: <what is around it>`. `allowed`: pairs of a canary and a place."""
        return [
            f"{name} in {place}: {_around(content, planted[name])}"
            for place, contents in self.places.items()
            for content in contents
            for name in found_in(content, planted)
            if not any(name == canary and re.fullmatch(pattern, place) for canary, pattern in allowed)
        ]

    def has(self, place: str, text: str) -> bool:
        """Whether a place that matches has that text: a search that reads nothing finds nothing."""
        return any(
            re.fullmatch(place, name) and any(text.encode() in content for content in contents)
            for name, contents in self.places.items()
        )


def _around(content: bytes, secret: str) -> str:
    at = content.lower().find(secret.lower().encode())
    return repr(content[max(0, at - 80) : at + 80]) if at >= 0 else "encoded"


async def stored(written: Written, connection: Connection) -> None:
    """Take all that every stream holds, buckets and object stores among them, and what is in packs."""
    requests = connection.requests
    listed = await requests.api("STREAM.LIST")
    for stream in listed["streams"]:
        name, state = stream["config"]["name"], stream["state"]
        for sequence in range(max(1, state["first_seq"]), state["last_seq"] + 1):
            message = await _message(requests, name, sequence)
            if message is not None:
                written.add(f"stream {name}", *message)
    async for packed in packed_tasks(requests, lambda _: True):
        assert not isinstance(packed, Unreadable), packed
        written.add("packs", repr(packed.record), *(bytes(each.event) for each in packed.events))


async def _message(requests: Requests, stream: str, sequence: int) -> tuple[bytes, ...] | None:
    try:
        found = (await requests.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
    except BrokerError as error:
        if error.number == NO_MESSAGE:
            return None
        raise
    return (
        found["subject"].encode(),
        base64.b64decode(found.get("hdrs") or b""),
        base64.b64decode(found.get("data") or b""),
    )


def files(written: Written, place: str, folder: Path, but: Iterable[Path] = ()) -> None:
    """Take all files of a folder, but for those that hold secrets."""
    left_out = set(but)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in left_out:
            written.add(f"{place} {path.relative_to(folder)}", path.read_bytes())


def command_lines(written: Written, pids: Iterable[int]) -> None:
    """Take the arguments of these processes and of all that they have started."""
    for pid in _with_children(set(pids)):
        try:
            written.add("arguments", Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue


def _with_children(pids: set[int]) -> Iterator[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    yield from pids


async def printed(
    written: Written, meshctl: list[str], commands: Iterable[list[str]], environment: Mapping[str, str]
) -> None:
    """Run commands, two at a time, and take what they print."""
    limit = asyncio.Semaphore(2)

    async def run(arguments: list[str]) -> None:
        async with limit:
            ended = await children.run([*meshctl, *arguments], environment)
        written.add(f"meshctl {' '.join(arguments[:2])}", ended.stdout, ended.stderr)

    await asyncio.gather(*(run(arguments) for arguments in commands))
