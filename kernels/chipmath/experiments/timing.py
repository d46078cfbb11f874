"""Times that can be compared: candidates take turns, each beside a reference of the same round; medians have a spread.

A GPU's clock moves while it is measured, and nobody here sets it. So every round times every candidate once, and what
is reported beside the time is its ratio to the reference of the same round. The order is drawn anew for every round: a
candidate that always ran after a hot one would find a slower clock than the others. An idle GPU's clock is low, so work
comes before the first round.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Candidate = Callable[[int], None]  # does the work once; the argument counts the calls, to rotate among buffers; -1 too
Stopwatch = Callable[[Candidate, int], float]  # seconds a call, over so many calls
BATCH_SECONDS = 4e-3  # long beside a launch, short beside what makes a clock drift
WARM_SECONDS = 0.2  # a clock rises within some tens of milliseconds


@dataclass(frozen=True)
class Spread:
    """Quantiles of repeated measurements: one in ten lies below p10, one in ten above p90."""

    p10: float
    p50: float
    p90: float


def spread(values: list[float]) -> Spread:
    """The quantiles of at least two values, interpolated between neighbours."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(deciles[0], statistics.median(values), deciles[8])


def take_turns(
    candidates: dict[str, Candidate], stopwatch: Stopwatch, *, rounds: int, batch_seconds: float = BATCH_SECONDS
) -> dict[str, list[float]]:
    """Seconds a call of every candidate in every round."""
    names, drawn = list(candidates), random.Random(0)
    for candidate in candidates.values():  # the first calls compile and load
        for i in range(2):
            candidate(i)
    worked, warm = 0.0, {}
    while worked < WARM_SECONDS:
        warm = {name: stopwatch(candidate, 2) for name, candidate in candidates.items()}
        worked += 2 * sum(warm.values())
    calls = {name: max(1, round(batch_seconds / its)) for name, its in warm.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in drawn.sample(names, len(names)):
            seconds[name].append(stopwatch(candidates[name], calls[name]))
    return seconds


def event_stopwatch(candidate: Candidate, calls: int) -> float:
    """Time on the GPU between two events, CUDA's or HIP's.

    A call before the first event keeps the GPU busy until the host has launched those that count.
    """
    import torch

    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    candidate(-1)  # whose buffers are those before the first call's
    start.record()
    for i in range(calls):
        candidate(i)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls


class GraphStopwatch:
    """Time on the GPU of calls that are captured once and replayed as a graph, CUDA's or HIP's.

    For kernels that end sooner than Python launches the next, which `event_stopwatch` would find idle in between. Every
    replay uses the buffers of the captured calls, so a batch must be long enough to rotate among them.
    """

    def __init__(self):
        """Nothing is captured yet; graphs live as long as this object, with the memory that they use."""
        self._graphs: dict[Candidate, tuple] = {}

    def __call__(self, candidate: Candidate, calls: int) -> float:
        """Seconds a call; the capture is not timed, nor the replay before each that counts."""
        import torch

        captured, graph = self._graphs.get(candidate, (0, None))
        if captured != calls:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(calls):
                    candidate(i)
            self._graphs[candidate] = calls, graph
        return event_stopwatch(lambda i: graph.replay(), 1) / calls


def host_stopwatch(candidate: Candidate, calls: int) -> float:
    """Time on the host: for rehearsals on a CPU, where work is done when the call returns."""
    start = time.perf_counter()
    for i in range(calls):
        candidate(i)
    return (time.perf_counter() - start) / calls
