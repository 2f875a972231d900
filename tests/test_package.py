"""The house: imports point down, importing needs torch and transformers only, files and functions stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "hf_eagle3"
FILES = sorted(PACKAGE.rglob("*.py"))
# A module may import from its own layer and from layers before it.
LAYERS = (
    (
        "_version",
        "compat",
        "checkpoint",
        "dialects",
        "vocabulary",
        "metrics",
        "training_options",
        "tree_config",
        "configuration_eagle3",
        "target",
    ),
    ("draft_layers", "modeling_eagle3", "fitting"),
    ("generation", "data", "hub"),
    ("training", "benchmarks"),
    ("__init__", "__main__", "cli", "embedded", "real"),
)
# Files that run the whole package, beside those that the whole package asks.
ON_TOP = (("compat", "contract"), ("compat", "__main__"))
COME_WITH_TRANSFORMERS = {"huggingface_hub", "packaging", "safetensors", "yaml"}


def layer_of(parts: tuple[str, ...]) -> int:
    name = parts[0] if parts and parts not in ON_TOP else "__init__"
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path: Path):
    """(imported module's path inside the package, whether at module level) for each relative import of a file."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            target = (*base, *(node.module.split(".") if node.module else ()))
            yield (target or (node.names[0].name,)), node in top
        elif isinstance(node, ast.Import) and any(a.name.startswith("hf_eagle3") for a in node.names):
            yield ("__init__",), node in top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    mine = layer_of(path.relative_to(PACKAGE).with_suffix("").parts)
    for target, _ in imports(path):
        assert layer_of(target) <= mine, f"{path.name} imports {'.'.join(target)}, a layer above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    assert source.count("\n") <= 420
    tree = ast.parse(source)
    assert path.stat().st_size == 0 or ast.get_docstring(tree), "a module opens with what it is"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise, with value and remedy"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 80, f"{node.name} is {node.end_lineno - node.lineno} lines long"


CORE = [
    f
    for f in FILES
    if layer_of(f.relative_to(PACKAGE).with_suffix("").parts) < 3 and f.parent.name != "data"  # `data` is for training
]


@pytest.mark.parametrize("path", CORE, ids=str)
def test_the_core_needs_torch_and_transformers_only(path):
    allowed = {*sys.stdlib_module_names, "torch", "transformers", *COME_WITH_TRANSFORMERS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {a.name.split(".")[0] for a in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] in allowed


def test_importing_twice_wraps_once():
    from transformers import GenerationMixin

    from hf_eagle3.generation.hook import install

    before = GenerationMixin._assisted_decoding
    install(lambda: None)
    assert GenerationMixin._assisted_decoding is before


def test_importing_brings_no_optional_package():
    """(accelerate and peft are imported by transformers itself where they are installed.)"""
    script = (
        "import sys, hf_eagle3, hf_eagle3.cli as c; c.parser('demo'); print({m.split('.')[0] for m in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"datasets", "matplotlib", "gradio", "tenacity"} & set(ast.literal_eval(found))
