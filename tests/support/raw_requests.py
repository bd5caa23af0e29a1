"""What a stranger may send over a bare socket, and how it has to be answered: data for the raw-socket suite.

In each `%t` is the path of what does not exist, of the service that is asked. `Sent.statuses` are those that the
answers have, in their order, and `None` is whatever may be said of what is never whole: at most a refusal.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

KIB = 1024
HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
END = HOST + CLOSE + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@dataclass(frozen=True)
class Sent:
    """Bytes, and the statuses of the answers; `half` are never whole, so the client stops in their midst."""

    data: bytes
    statuses: tuple[int, ...] = (400,)
    half: bool = False


def _get(line: bytes, *statuses: int, after: bytes = END) -> Sent:
    return Sent(line + b"\r\n" + after, statuses or (400,))


def _with(lines: bytes, *statuses: int, host: bytes = HOST) -> Sent:
    return Sent(b"GET %t HTTP/1.1\r\n" + host + CLOSE + lines + b"\r\n\r\n", statuses or (400,))


def _body(lines: bytes, body: bytes, *statuses: int) -> Sent:
    """A body where none is wanted: to GET, since both services have that."""
    return Sent(b"GET %t HTTP/1.1\r\n" + HOST + CLOSE + lines + b"\r\n" + body, statuses or (400,))


def _chunks(body: bytes, *statuses: int) -> Sent:
    return _body(CHUNKED, body, *statuses)


def _half(data: bytes) -> Sent:
    return Sent(data, (), half=True)


_LINES = {
    "HTTP/0.9": _get(b"GET %t"),
    "two spaces before the target": _get(b"GET  %t HTTP/1.1", 404),
    "two spaces before the version": _get(b"GET %t  HTTP/1.1", 404),
    "a tab before the target": _get(b"GET\t%t HTTP/1.1"),
    "a tab before the version": _get(b"GET %t\tHTTP/1.1"),
    "a space behind the version": _get(b"GET %t HTTP/1.1 "),
    "a word behind the version": _get(b"GET %t HTTP/1.1 x"),
    "HTTP/1.2": _get(b"GET %t HTTP/1.2"),
    "HTTP/2.0": _get(b"GET %t HTTP/2.0"),
    "HTTP/3": _get(b"GET %t HTTP/3"),
    "HTTP/1": _get(b"GET %t HTTP/1"),
    "HTTP/11": _get(b"GET %t HTTP/11"),
    "HTTP/1.10": _get(b"GET %t HTTP/1.10"),
    "HTTP/-1.1": _get(b"GET %t HTTP/-1.1"),
    "http/1.1 in lower case": _get(b"GET %t http/1.1"),
    "another protocol": _get(b"GET %t RTSP/1.0", 404),
    "no target": _get(b"GET HTTP/1.1"),
    "an empty target": _get(b"GET  HTTP/1.1"),
    "a relative target": _get(b"GET tasks HTTP/1.1"),
    "an asterisk": _get(b"GET * HTTP/1.1", 404),
    "an authority": _get(b"GET localhost:80 HTTP/1.1"),
    "a space in the target": _get(b"GET /a b HTTP/1.1"),
    "a NUL in the target": _get(b"GET /a\0b HTTP/1.1"),
    "a DEL in the target": _get(b"GET /a\x7fb HTTP/1.1"),
    "8 bits in the target": _get(b"GET /\xff\xfe HTTP/1.1"),
    "UTF-8 in the target": _get("GET /é HTTP/1.1".encode()),
    "a line break at the beginning": Sent(b"\r\nGET %t HTTP/1.1\r\n" + END, (404,)),
    "many line breaks at the beginning": Sent(b"\r\n" * 100 + b"GET %t HTTP/1.1\r\n" + END, (404,)),
    "a space at the beginning": _get(b" GET %t HTTP/1.1"),
    "a NUL at the beginning": _get(b"\0GET %t HTTP/1.1"),
    "a byte order mark": _get(b"\xef\xbb\xbfGET %t HTTP/1.1"),
    "a target of 60 KiB": _get(b"GET %t?" + b"x" * 60 * KIB + b" HTTP/1.1", 404),
    "a target of 70 KiB": _get(b"GET %t?" + b"x" * 70 * KIB + b" HTTP/1.1"),
    "a bare CR behind the line": Sent(b"GET %t HTTP/1.1\r" + END),
}
_TARGETS = {
    "absolute": _get(b"GET http://localhost%t HTTP/1.1", 404),
    "absolute with a port": _get(b"GET http://localhost:80%t HTTP/1.1", 404),
    "absolute, https": _get(b"GET https://localhost%t HTTP/1.1", 404),
    "absolute, of another host": _get(b"GET http://evil.example%t HTTP/1.1", 421),
    "absolute, another host in Host": Sent(
        b"GET http://localhost%t HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE + b"\r\n", (404,)
    ),
    "absolute, with a user": _get(b"GET http://user:pass@localhost%t HTTP/1.1", 404),
    "absolute, a bad port": _get(b"GET http://localhost:99999%t HTTP/1.1"),
    "absolute without a path": _get(b"GET http://localhost HTTP/1.1"),
    "absolute, ftp": _get(b"GET ftp://localhost%t HTTP/1.1", 404),
    "two slashes": _get(b"GET //evil.example%t HTTP/1.1", 404),
    "dots": _get(b"GET /../../etc/passwd HTTP/1.1", 404),
    "escaped dots": _get(b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", 404),
    "an escaped NUL": _get(b"GET /v1/tasks/%00 HTTP/1.1", 404),
    "an escaped line break": _get(b"GET /v1/tasks/a%0d%0aX:%20y HTTP/1.1", 404),
    "a bad escape": _get(b"GET /v1/tasks/%zz HTTP/1.1", 404),
    "half an escape": _get(b"GET /v1/tasks/% HTTP/1.1", 404),
    "escaped bad UTF-8": _get(b"GET /v1/tasks/%ff%fe HTTP/1.1", 404),
    "a backslash": _get(b"GET /v1\\tasks HTTP/1.1", 404),
    "a fragment": _get(b"GET %t#x HTTP/1.1", 404),
    "a query of escapes": _get(b"GET %t?%ff=%00&&&=&a=%zz HTTP/1.1", 404),
    "many parameters": _get(b"GET %t?" + b"a=1&" * 5000 + b" HTTP/1.1", 404),
    "a path of many parts": _get(b"GET " + b"/a" * 5000 + b" HTTP/1.1", 404),
}
_METHODS = {
    **{
        method: _get(f"{method} %t HTTP/1.1".encode(), 405)
        for method in ("PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "SEARCH", "PURGE", "M-SEARCH", "LINK", "LOCK")
    },
    "HEAD": _get(b"HEAD %t HTTP/1.1", 404),
    "OPTIONS": _get(b"OPTIONS %t HTTP/1.1", 204),
    "OPTIONS *": _get(b"OPTIONS * HTTP/1.1", 404),
    **{
        repr(method): _get(method + b" %t HTTP/1.1")
        for method in (b"get", b"Get", b"FOO", b"GETT", b"GE", b"G\0T", b"GET:", b"(GET)", b"\xff", b"X" * 70 * KIB)
    },
    "CONNECT": _get(b"CONNECT localhost:80 HTTP/1.1"),
    "CONNECT with a path": _get(b"CONNECT %t HTTP/1.1"),
    "PRI": Sent(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
}
_HEADERS = {
    "no colon": _with(b"nonsense"),
    "a space before the colon": _with(b"X-A : b"),
    "a tab before the colon": _with(b"X-A\t: b"),
    "no name": _with(b": b"),
    "a space in a name": _with(b"X A: b"),
    "a NUL in a name": _with(b"X\0A: b"),
    "8 bits in a name": _with(b"X\xe9: b"),
    "a bracket in a name": _with(b"X(A): b"),
    "a NUL in a value": _with(b"X-A: a\0b"),
    "a control character in a value": _with(b"X-A: a\x01b"),
    "a bare CR in a value": _with(b"X-A: a\rb"),
    "a bare LF in a value": _with(b"X-A: a\nb"),
    "a folded value": _with(b"X-A: a\r\n b"),
    "a folded first line": Sent(b"GET %t HTTP/1.1\r\n X-A: b\r\n" + END),
    "8 bits in a value": _with(b"X-A: \xff\xfe", 404),
    "an empty value": _with(b"X-A:", 404),
    "white space around a value": _with(b"X-A: \t b \t ", 404),
    "1,000 headers": _with(b"\r\n".join(b"X-%d: y" % number for number in range(1000)), 404),
    "20,000 headers": _with(b"\r\n".join(b"X-%d: y" % number for number in range(20_000))),
    "a value of 60 KiB": _with(b"X-A: " + b"x" * 60 * KIB, 404),
    "a value of 70 KiB": _with(b"X-A: " + b"x" * 70 * KIB),
    "a value of 4 MiB": _with(b"X-A: " + b"x" * 4096 * KIB),
    "two values of 40 KiB": _with(b"X-A: " + b"x" * 40 * KIB + b"\r\nX-B: " + b"x" * 40 * KIB),
    "a name of 70 KiB": _with(b"X" * 70 * KIB + b": y"),
    "an unknown expectation": _with(b"Expect: 200-ok", 404),
    "an expectation without a body": _with(b"Expect: 100-continue", 404),
    "a range": _with(b"Range: bytes=9999999999-1,-1,a", 404),
    "conditions": _with(b'If-Match: "\xff"\r\nIf-None-Match: *\r\nIf-Modified-Since: never', 404),
    "another method to override": _with(b"X-HTTP-Method-Override: DELETE\r\nX-Method-Override: PUT", 404),
    "a forwarded host": _with(b"X-Forwarded-Host: evil.example\r\nForwarded: host=evil.example", 404),
    "two tenants": _with(b"Mesh-Tenant: a\r\nMesh-Tenant: b"),
    "a bad tenant": _with(b"Mesh-Tenant: *"),
    "a cookie of 30 KiB": _with(b"Cookie: " + b"a=b; " * 6 * KIB, 404),
}
_HOSTS = {
    "none": _with(b"X: y", 400, host=b""),
    "twice": _with(b"X: y", 400, host=HOST + HOST),
    "another one": _with(b"X: y", 421, host=b"Host: evil.example\r\n"),
    "two in one": _with(b"X: y", 400, host=b"Host: localhost, evil.example\r\n"),
    "with a user": _with(b"X: y", 400, host=b"Host: user@localhost\r\n"),
    "with a path": _with(b"X: y", 400, host=b"Host: localhost/x\r\n"),
    "with a scheme": _with(b"X: y", 400, host=b"Host: http://localhost\r\n"),
    "with a port that is none": _with(b"X: y", 400, host=b"Host: localhost:x\r\n"),
    "with 8 bits": _with(b"X: y", 421, host=b"Host: \xff\r\n"),
    "with a NUL": _with(b"X: y", 400, host=b"Host: local\0host\r\n"),
    "a long one": _with(b"X: y", 421, host=b"Host: " + b"a." * 5000 + b"b\r\n"),
    "half an IPv6": _with(b"X: y", 400, host=b"Host: [::1\r\n"),
    "empty": _with(b"X: y", 404, host=b"Host:\r\n"),
    "none, in HTTP/1.0": Sent(b"GET %t HTTP/1.0\r\n\r\n", (404,)),
}
_LENGTHS = {
    **{
        repr(value): _body(b"Content-Length: " + value + b"\r\n", b"hello")
        for value in (
            *(b"-1", b"+5", b"0x5", b"5.0", b"5e0", b"5 5", b"5, 5", b"5, 6", b"5,", b"5;", b"five", b"\xff", b"5\x0b"),
            *(b"18446744073709551616", b"99999999999999999999999999", b"\xd9\xa5"),
        )
    },
    "empty": _body(b"Content-Length:\r\n", b""),
    "twice the same": _body(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "twice, different": _body(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
    "leading zeros": _body(b"Content-Length: 0000000005\r\n", b"hello", 404),
    "a body to GET": _body(b"Content-Length: 5\r\n", b"hello", 404),
    "beside chunks": _body(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"),
    "behind chunks": _body(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"),
    "a huge one": _body(b"Content-Length: 9223372036854775807\r\n", b"hello", 404),
}
_ENCODINGS = {
    **{
        repr(value): _body(b"Transfer-Encoding: " + value + b"\r\n", b"0\r\n\r\n")
        for value in (
            *(b"identity", b"gzip", b"xchunked", b"chunkedx", b"chunked, identity", b"chunked, gzip", b"chunked;q=1"),
            *(b"chunked, chunked", b"\x0bchunked", b"'chunked'", b"chunked\0", b""),
        )
    },
    "in upper case": _body(b"TRANSFER-ENCODING: CHUNKED\r\n", b"0\r\n\r\n", 404),
    "a space before the colon": _body(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "two, chunked last": _body(b"Transfer-Encoding: gzip\r\n" + CHUNKED, b"0\r\n\r\n", 404),
    "two, chunked first": _body(CHUNKED + b"Transfer-Encoding: gzip\r\n", b"0\r\n\r\n"),
    "with an underscore": _body(b"Transfer_Encoding: chunked\r\n", b"", 404),
    "in HTTP/1.0": Sent(b"GET %t HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n", (404,)),
}
_CHUNKS = {
    "no digit": _chunks(b"z\r\nhello\r\n0\r\n\r\n"),
    "no size": _chunks(b"\r\nhello\r\n0\r\n\r\n"),
    "negative": _chunks(b"-5\r\nhello\r\n0\r\n\r\n"),
    "with a plus": _chunks(b"+5\r\nhello\r\n0\r\n\r\n"),
    "with 0x": _chunks(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a space before the size": _chunks(b" 5\r\nhello\r\n0\r\n\r\n"),
    "17 digits": _chunks(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "32 digits": _chunks(b"f" * 32 + b"\r\nhello\r\n0\r\n\r\n"),
    "a bare LF behind the size": _chunks(b"5\nhello\r\n0\r\n\r\n"),
    "data that is longer": _chunks(b"3\r\nhello\r\n0\r\n\r\n"),
    "no line break behind the data": _chunks(b"5\r\nhello0\r\n\r\n"),
    "a bare LF behind the data": _chunks(b"5\r\nhello\n0\r\n\r\n"),
    "a NUL in an extension": _chunks(b"5;a=\0\r\nhello\r\n0\r\n\r\n"),
    "an extension": _chunks(b'5;a="b"\r\nhello\r\n0\r\n\r\n', 404),
    "leading zeros": _chunks(b"0005\r\nhello\r\n0\r\n\r\n", 404),
    "a trailer": _chunks(b"5\r\nhello\r\n0\r\nX-A: b\r\n\r\n", 404),
    "a bad trailer": _chunks(b"5\r\nhello\r\n0\r\nX A: b\r\n\r\n"),
    "a length in a trailer": _chunks(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "the largest size": _chunks(b"7fffffffffffffff\r\nhello", 404),
    "1,000 chunks": _chunks(b"1\r\na\r\n" * 1000 + b"0\r\n\r\n", 404),
}
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + END
_PIPELINES = {
    "two": Sent((b"GET %t HTTP/1.1\r\n" + HOST + b"\r\n") + b"GET %t HTTP/1.1\r\n" + END, (404, 404)),
    "twenty": Sent((b"GET %t HTTP/1.1\r\n" + HOST + b"\r\n") * 19 + b"GET %t HTTP/1.1\r\n" + END, (404,) * 20),
    "with bodies": Sent(
        (b"GET %t HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello") * 3 + b"GET %t HTTP/1.1\r\n" + END,
        (404,) * 4,
    ),
    "behind the last": Sent(b"GET %t HTTP/1.1\r\n" + END + _SMUGGLED, (404,)),
    "ten thousand": Sent((b"GET %t HTTP/1.1\r\n" + HOST + b"\r\n") * 10_000),
    "in a body by its length": _body(b"Content-Length: %d\r\n" % len(_SMUGGLED), _SMUGGLED, 404),
    "in a chunk": _chunks(b"%x\r\n" % len(_SMUGGLED) + _SMUGGLED + b"\r\n0\r\n\r\n", 404),
    "behind a length that chunks contradict": _body(b"Content-Length: 0\r\n" + CHUNKED, b"0\r\n\r\n" + _SMUGGLED),
    "behind an encoding that is none": _body(
        b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n" + _SMUGGLED
    ),
    "behind a line break": _body(b"Content-Length: 0\r\n", b"\r\n" + _SMUGGLED, 404),
}
_OTHERS = {
    "h2c": _with(b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk", 404),
    "a websocket": _with(
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13", 404
    ),
    "an upgrade that nobody asked for": _with(b"Upgrade: h2c", 404),
    "HTTP/2 without asking": Sent(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    "TLS": Sent(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "SSH": Sent(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "SMTP": Sent(b"EHLO localhost\r\n"),
    "Redis": Sent(b"*1\r\n$4\r\nPING\r\n"),
    "NATS": Sent(b'CONNECT {"verbose":false}\r\nPING\r\n'),
    "PROXY": Sent(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET %t HTTP/1.1\r\n" + END),
    "zeros": Sent(bytes(64 * KIB)),
    "letters": Sent(b"A" * 256 * KIB),
    "noise": Sent(b"\xf7" + random.Random(7).randbytes(64 * KIB)),
}
_WHOLE = b"GET /v1/tasks HTTP/1.1\r\n" + HOST + b"\r\n"
_HALVES = {
    **{f"{size} bytes of a head": _half(_WHOLE[:size]) for size in range(1, len(_WHOLE) - 1, 4)},
    "nothing": _half(b""),
    "a line break": _half(b"\r\n"),
    "a head without its end": _half(b"GET %t HTTP/1.1\r\n" + HOST + b"X-A: " + b"x" * 50 * KIB),
}

CASES: dict[str, dict[str, Sent]] = {
    "line": _LINES,
    "target": _TARGETS,
    "method": _METHODS,
    "header": _HEADERS,
    "host": _HOSTS,
    "length": _LENGTHS,
    "encoding": _ENCODINGS,
    "chunk": _CHUNKS,
    "pipeline": _PIPELINES,
    "protocol": _OTHERS,
    "half": _HALVES,
}
"""Kind → name → case."""
