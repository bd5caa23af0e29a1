"""An OTLP receiver: a process that takes protobuf over HTTP, and writes what it got as JSON lines.

`python otlp_server.py <file>` prints its port, and serves until it is ended. It knows nothing of taskmesh.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtobufSpan


def _attributes(pairs: Any) -> dict[str, Any]:
    values = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
    return {key: value if isinstance(value, str | int | float) else str(value) for key, value in values.items()}


def _spans(body: bytes) -> list[dict[str, Any]]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        {
            "signal": "span",
            "name": span.name,
            "kind": ProtobufSpan.SpanKind.Name(span.kind),
            "trace": span.trace_id.hex(),
            "span": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "links": [link.trace_id.hex() for link in span.links],
            "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
            "failed": span.status.code == 2,  # STATUS_CODE_ERROR
            "attributes": _attributes(span.attributes),
            "resource": _attributes(of_resource.resource.attributes),
        }
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _metrics(body: bytes) -> list[dict[str, Any]]:
    request = ExportMetricsServiceRequest.FromString(body)
    found: list[dict[str, Any]] = []
    for of_resource in request.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                found += [
                    {
                        "signal": "metric",
                        "name": metric.name,
                        "unit": metric.unit,
                        "value": point.sum
                        if metric.HasField("histogram")
                        else getattr(point, point.WhichOneof("value")),
                        "count": point.count if metric.HasField("histogram") else None,
                        "attributes": _attributes(point.attributes),
                        "resource": _attributes(of_resource.resource.attributes),
                    }
                    for point in data.data_points
                ]
    return found


def serve(file: Path) -> None:
    """Serve for ever."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                found, answer = _spans(body), ExportTraceServiceResponse().SerializeToString()
            elif self.path == "/v1/metrics":
                found, answer = _metrics(body), ExportMetricsServiceResponse().SerializeToString()
            else:
                self.send_error(404)
                return
            with lock, file.open("a") as lines:
                lines.writelines(json.dumps(one) + "\n" for one in found)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
