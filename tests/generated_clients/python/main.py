"""Runs a task through the generated client: submits it, waits for its end, reads how it stands, prints the answers."""

from __future__ import annotations

import json
import os
import sys

from generated_client import AuthenticatedClient
from generated_client.api.tasks import get_task, submit_task
from generated_client.models import Problem, TaskAccepted, TaskRecord, TaskRequest
from httpx import Timeout


def main(url: str) -> None:
    # On loopback nobody is asked for a key; the generator wants one wherever one may be asked for.
    key = os.environ.get("MESH_API_KEY", "none")
    client = AuthenticatedClient(base_url=url, token=key, timeout=Timeout(60))
    request = TaskRequest(input_="hello")
    accepted = submit_task.sync(client=client, body=request, idempotency_key="python")
    if not isinstance(accepted, TaskAccepted):
        raise SystemExit(f"submitted: {accepted}")
    ended = submit_task.sync(client=client, body=request, idempotency_key="python", prefer="wait=30")
    read = get_task.sync(accepted.id, client=client)
    absent = get_task.sync("nope", client=client)
    if not (isinstance(ended, TaskRecord) and isinstance(read, TaskRecord) and isinstance(absent, Problem)):
        raise SystemExit(f"waited: {ended}, read: {read}, read what is not there: {absent}")
    # A client may have one type for both answers.
    TaskRecord.from_dict(accepted.to_dict())
    answers = {"accepted": accepted.to_dict(), "ended": ended.to_dict(), "read": read.to_dict(), "absent": absent.code}
    print(json.dumps(answers))


main(sys.argv[1])
