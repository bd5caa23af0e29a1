"""What can go wrong on the operator's side. One line for people; `meshctl` ends with status 1."""

from __future__ import annotations

from contracts.errors import Problem, TaskmeshError


class MeshctlError(TaskmeshError):
    """The root of meshctl's own errors."""


class HomeBusy(MeshctlError):
    """Another `meshctl up` runs on the same MESH_HOME."""

    code = "conflict"


class StartFailed(MeshctlError):
    """The mesh did not come up. `failed` names the processes that are to blame, by their log's name."""

    def __init__(self, message: str, failed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.failed = failed


class ApiError(MeshctlError):
    """An answer that is a problem document. `code` is the problem's own."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title, code=problem.code)
        self.status = problem.status


class Unreachable(MeshctlError):
    """Nobody answers at a URL."""

    code = "unreachable"
    retryable = True


class MeshGone(Unreachable):
    """The mesh of a MESH_HOME was killed: its addresses are still there, and nobody answers at them."""


class StreamBroken(MeshctlError):
    """A stream that breaks the protocol: doubled, backwards or missing events, or no event stream at all."""

    code = "stream-broken"
