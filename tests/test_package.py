"""The house: imports point down, importing needs torch and transformers only, files and functions stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "hf_eagle3"
FILES = sorted(PACKAGE.rglob("*.py"))
# A module may import from layers before its own. In the first two, modules of a layer may import one another; in the
# others only what lies in the same folder.
LAYERS = (
    (
        "_version",
        "compat",
        "checkpoint",
        "dialects",
        "dialect_keys",
        "known_defects",
        "vocabulary",
        "metrics",
        "training_options",
        "training_plan",
        "tree_config",
        "token_ids",
        "dtypes",
        "errors",
        "configuration_eagle3",
        "target",
    ),
    ("draft_layers", "draft_model", "modeling_eagle3", "fitting", "draft_init"),
    ("generation", "data", "hub"),
    ("training",),
    ("drafters",),
    ("benchmarks", "embedded", "engines"),
    ("adaptation", "model_loading", "attachment", "doctor"),
    ("__init__", "__main__", "cli", "pairs", "paper", "smollm2"),
)
# Files that run the whole package, beside those that the whole package asks.
ON_TOP = (("compat", "contract"), ("compat", "__main__"))
# Floors of generation/: what a folder must not import of the others.
FLOORS = {
    "ops": ("auto", "batch", "call", "compiled", "draft", "loop", "sampling", "tree", "verify"),
    "tree": ("auto", "batch", "call", "compiled", "draft", "loop", "sampling", "verify"),
    "auto": ("batch", "call", "compiled", "draft", "loop", "sampling", "verify"),
    "sampling": ("auto", "call", "compiled", "draft", "loop", "tree", "verify"),
    "compiled": ("auto", "batch", "call", "draft", "loop", "sampling", "tree"),
    "draft": ("call", "loop", "verify"),
    "verify": ("auto", "call", "draft", "loop", "sampling"),
}
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
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    mine = layer_of(parts)
    for target, _ in imports(path):
        assert layer_of(target) <= mine, f"{path.name} imports {'.'.join(target)}, a layer above it"
        is_sibling = 1 < mine < len(LAYERS) - 1 and layer_of(target) == mine and target[0] != parts[0]
        assert not is_sibling, f"{path.name} imports {'.'.join(target)}, which is beside it"


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_of_generation(floor):
    """A policy, a drafter or a pass does not know the loop; trees know nobody who grows or verifies them."""
    for path in (PACKAGE / "generation" / floor).rglob("*.py"):
        for target, _ in imports(path):
            assert target[:1] != ("generation",) or target[1] not in FLOORS[floor], f"{path.name} imports {target}"


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring, which list arguments one by one."""
    has_docstring = ast.get_docstring(function) is not None
    first = function.body[1 if has_docstring and len(function.body) > 1 else 0]
    return function.end_lineno - first.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    source, inside = path.read_text(), path.relative_to(PACKAGE).parts
    assert source.count("\n") <= (300 if inside[0] == "generation" else 400)
    tree = ast.parse(source)
    assert path.stat().st_size == 0 or ast.get_docstring(tree), "a module opens with what it is"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise, with value and remedy"
        if isinstance(node, ast.FunctionDef):
            lines = body_lines(node)
            assert lines <= 60, f"{node.name} is {lines} lines long"
        if isinstance(node, ast.ClassDef) and inside[0] == "generation":
            assert node.end_lineno - node.lineno <= 200, f"{node.name} is {node.end_lineno - node.lineno} lines long"


CORE = [
    f
    for f in FILES
    if layer_of(f.relative_to(PACKAGE).with_suffix("").parts) < 3 and f.parent.name != "data"  # `data` is for training
]


@pytest.mark.parametrize("path", CORE, ids=str)
def test_the_core_needs_torch_and_transformers_only(path):
    allowed = {*sys.stdlib_module_names, "torch", "transformers", *COME_WITH_TRANSFORMERS}
    tree = ast.parse(path.read_text())
    optional = [
        node
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try) and any(getattr(h.type, "id", "") == "ImportError" for h in attempt.handlers)
        for node in attempt.body
    ]
    for node in ast.walk(tree):
        if node in optional:
            continue
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


@pytest.mark.parametrize("command", ["convert", "demo", "doctor", "generate", "inspect", "push", "serve"])
def test_commands_without_an_extra_need_no_optional_package(command):
    """As after `pip install hf-eagle3`: what the extras bring cannot be imported."""
    missing = (
        "accelerate",
        "datasets",
        "gguf",
        "gradio",
        "httpx",
        "jinja2",
        "matplotlib",
        "openai",
        "peft",
        "tenacity",
    )
    script = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); import hf_eagle3.cli.{command}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
