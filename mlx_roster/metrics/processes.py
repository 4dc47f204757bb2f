"""What is said of the server's own process: by the names that every Prometheus client has for it, and its tasks."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator

import psutil
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlx_roster.metrics.series import PREFIX


class OwnProcess:
    """prometheus-client has the same for Linux only."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        with self._process.oneshot():
            memory, times = self._process.memory_info(), self._process.cpu_times()
            started = self._process.create_time()
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of the server process.", memory.rss)
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory of the server process.", memory.vms)
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU time of the server process, user and system.", times.user + times.system
        )
        yield GaugeMetricFamily("process_start_time_seconds", "When the server was started, since 1970.", started)
        yield GaugeMetricFamily("process_open_fds", "Files and sockets that are open.", self._process.num_fds())
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield GaugeMetricFamily("process_max_fds", "How many may be.", limit)


class Tasks:
    """Where they only become more, something is never waited for. The scrape's own is one of them."""

    def collect(self) -> Iterator[Metric]:
        try:
            tasks = len(asyncio.all_tasks())
        except RuntimeError:  # not asked on an event loop, which only tests do
            tasks = 0
        yield GaugeMetricFamily(f"{PREFIX}event_loop_tasks", "Tasks of the server's event loop.", tasks)
