"""The doctor's checks of what several servers are: a cluster's servers and copies, and meshes that share an account."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.broker.other_meshes import REMEDY
from mesh.broker.replication import Copies
from mesh.wording import first_few
from meshctl.diagnosis.check import Check
from meshctl.diagnosis.checks import BrokerInfo, ClusterSeen, Facts


def diagnose_cluster(facts: Facts) -> list[Check]:
    """Every line there is something to say for: of a single server, and a mesh that is alone, there is nothing."""
    checks: list[Check] = []
    if isinstance(facts.broker, BrokerInfo) and facts.broker.servers > 1:
        checks.append(check_servers(facts.broker))
    if facts.cluster is not None:
        checks += check_copies(facts.cluster)
        if facts.cluster.other_meshes:
            detail = f"in the same account, each task runs again: {facts.cluster.other_meshes}"
            checks.append(Check("other_mesh", "fail", detail, f"{REMEDY}, or stop one of them"))
    return checks


def check_servers(broker: BrokerInfo) -> Check:
    """Whether all servers of MESH_NATS_URL answer."""
    if not broker.away:
        return Check("servers", "ok", f"all {broker.servers} of MESH_NATS_URL answer")
    detail = (
        f"{len(broker.away)} of {broker.servers} of MESH_NATS_URL are away: {first_few(broker.away, separator='; ')}"
    )
    return Check("servers", "warn", detail, "start them: while most of a cluster is away nothing is stored")


def check_copies(seen: ClusterSeen) -> list[Check]:
    """Whether a server of a cluster may go without taking streams along, and whether all copies are current."""
    clustered = [copies for copies in seen.copies if copies.is_on_cluster]
    if not clustered:
        return []
    single = [copies.stream for copies in clustered if copies.replicas == 1]
    if single and not seen.is_one_asked_for:
        which = f"all {len(single)}" if len(single) == len(clustered) else f"{len(single)} of {len(clustered)}"
        detail = f"R1 on a cluster: {which} streams and buckets have one copy, and stand still without its server"
        remedy = "`meshctl streams apply` gives them three (`storage.replicas` in mesh.toml says how many)"
        return [Check("replicas", "fail", detail, remedy)]
    if single:
        detail = f"R1 on a cluster, as mesh.toml asks: {len(single)} streams and buckets stand still without a server"
        return [Check("replicas", "warn", detail, "set `storage.replicas` to 3, then `meshctl streams apply`")]
    behind = [f"{copies.stream}: {copies.behind}" for copies in clustered if copies.behind]
    if behind:
        remedy = "wait until they are, before another server stops; look at the servers that are named"
        return [Check("replicas", "warn", f"not all copies are current: {first_few(behind, separator='; ')}", remedy)]
    return [Check("replicas", "ok", f"{_counts(clustered)} copies of each stream and bucket, all current")]


def _counts(copies: Sequence[Copies]) -> str:
    return " or ".join(map(str, sorted({each.replicas for each in copies})))
