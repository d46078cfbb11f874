"""Several kernels compiled at once, which end together where one fails or a page would wait too long."""

import threading

import pytest
from chipmath.crosscompile import CompileError
from chipmath.experiments.at_once import compile_at_once


def test_each_is_compiled_once_and_two_at_a_time():
    """Each of two waits for the other to have begun."""
    both, compiled, told = threading.Barrier(2, timeout=30), [], []

    def compile_one(arch, chains):
        both.wait()
        compiled.append((arch, chains))
        return f"{arch} {chains}"

    cases = [("sm_90", 1), ("sm_90", 2), ("sm_90", 1)]
    kernels = compile_at_once(compile_one, cases, lambda done, case: told.append((done, case)), at_a_time=2)
    assert kernels == {("sm_90", 1): "sm_90 1", ("sm_90", 2): "sm_90 2"}
    assert sorted(compiled) == [("sm_90", 1), ("sm_90", 2)]
    assert told == [(0, ("sm_90", 1)), (1, ("sm_90", 2))]


def test_a_compiler_of_this_process_works_alone():
    at_work, most = set(), []

    def compile_one(number):
        at_work.add(number)
        most.append(len(at_work))
        at_work.remove(number)

    compile_at_once(compile_one, [(n,) for n in range(8)], lambda *a: None, at_a_time=1)
    assert most == [1] * 8


@pytest.mark.parametrize("who", ["compiler", "page"])
def test_what_has_not_begun_when_one_fails_never_does(who):
    begun = []

    def compile_one(number):
        begun.append(number)
        if who == "compiler":
            raise CompileError("no such chip")

    def tell(done, case):
        if who == "page" and done:
            raise TimeoutError("no such chip")

    with pytest.raises(CompileError if who == "compiler" else TimeoutError, match="no such chip"):
        compile_at_once(compile_one, [(n,) for n in range(1000)], tell, at_a_time=1)
    assert len(begun) < 1000
