"""The table of all measurements: what `--only` can name, in the order in which they are run. Not here: measuring."""

from collections.abc import Callable

from benchmarks import followers, growth, jobs, latency, logs, volumes
from benchmarks.client import Client
from benchmarks.results import Row
from benchmarks.scale import Scale
from tests.e2e.node import Node

MEASURES: dict[str, Callable[[Node, Client, Scale], list[Row]]] = {
    "services": jobs.service_memory,
    "start": jobs.start_latency,
    "rate": jobs.job_rate,
    "live": latency.live,
    "memory": jobs.job_memory,
    "log": logs.log_path,
    "query": logs.reading,
    "acknowledgement": latency.acknowledgement,
    "followers": followers.followers,
    "growth": growth.growth,
    "volumes": volumes.volumes,
}
