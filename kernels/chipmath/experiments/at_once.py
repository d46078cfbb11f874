"""Compile several kernels at once: nvcc and clang are processes of their own, and a thread can wait for each.

Where a page measures, a reader waits for its compilers: one after another they would take longer than all timing.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from chipmath.crosscompile import Binary


def compile_at_once(
    compile_one: Callable[..., Binary],
    cases: Iterable[tuple],
    tell: Callable[[int, tuple], None],
    at_a_time: int | None = None,
) -> dict[tuple, Binary]:
    """Arguments -> their kernel, each compiled once.

    tell       is told, in the caller's thread, how many are here and which is waited for. What it raises, or the first
               that does not compile, ends the whole: what has not begun never does
    at_a_time  as many as there are processors; 1 for a compiler in this process, such as Triton's
    """
    wanted = list(dict.fromkeys(cases))
    with ThreadPoolExecutor(at_a_time or os.cpu_count()) as pool:
        futures = {case: pool.submit(compile_one, *case) for case in wanted}
        kernels = {}
        try:
            for case, future in futures.items():
                tell(len(kernels), case)
                kernels[case] = future.result()
        finally:
            for future in futures.values():
                future.cancel()
    return kernels
