"""Imports in the package go one way: facts, reference, fast, machines, what pages use."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "kernels/chipmath"
LAYERS = {
    "facts": "formats devices processes",
    "reference": "quantize matmul occupancy noise nvfp4",
    "fast": "quantize_cpu on_gpu quantize_gpu quantize_kernels gluon_on_cpu matmul_gpu matmul_kernels matmul_tiles "
    "ilp ilp_gluon training.amdahl training.text training.recipes training.model training.probes training.run "
    "training.pairs training.torch_settings training.progress training.command training.__main__ training",
    "machines": "gpu crosscompile recordings experiments bench",
    "pages": "evidence measurements figures training.loss_figure",
}
LEVEL = {module: level for level, modules in enumerate(LAYERS.values()) for module in modules.split()}
FILES = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE]


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    return name if name in LEVEL else parts[0]


def imported(path):
    """Modules of the package that a file imports, at its top or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "chipmath":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chipmath."):
            yield node.module.removeprefix("chipmath.")
        elif isinstance(node, ast.Import):
            yield from (n.name.removeprefix("chipmath.") for n in node.names if n.name.startswith("chipmath."))


def level_of(module):
    return LEVEL[module] if module in LEVEL else LEVEL[module.split(".")[0]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_from_a_layer_above_its_own(path):
    above = [name for name in imported(path) if level_of(name) > LEVEL[module_of(path)]]
    assert not above


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_private_name_of_another(path):
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    imports = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module.startswith("chipmath")]
    assert not [name.name for node in imports for name in node.names if name.name.startswith("_")]


def test_every_module_that_is_given_a_layer_exists():
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    assert not LEVEL.keys() - modules
