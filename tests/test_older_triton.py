"""PyPI's CUDA build of torch 2.13.0 brings Triton 3.7.1, so the pages must build beside it."""

from types import SimpleNamespace

import pytest
from chipmath.crosscompile import CompilerMissing
from chipmath.experiments import llvm_versions


def test_llvm_24_is_not_asked_of_an_older_triton(monkeypatch):
    monkeypatch.setattr(llvm_versions, "find_triton", lambda: SimpleNamespace(__version__="3.7.1"))
    with pytest.raises(CompilerMissing, match=r"no LLVM 24: that of Triton 3\.7\.1"):
        llvm_versions.by_triton("", "gfx950")
