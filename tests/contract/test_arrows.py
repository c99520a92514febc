"""Import arrows of the design, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA_SIDE = (
    "cytosae_core.cohort",
    "cytosae_core.encoder",
    "cytosae_core.sae.train",
    "cytosae_core.sae.pursuit",
)


def imports(folder: str) -> dict[str, set[str]]:
    """Absolute names of everything that the modules below a folder import, by file."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parts, base] if base else parts)
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        found[str(path.relative_to(ROOT))] = names
    return found


def hits(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path}: {name}"
        for path, names in imports(folder).items()
        for name in names
        if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
    ]


SIDES = ("server", "client", "cytosae_server", "cytosae_client", "cytosae_local")


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("cytosae_core", ("flwr", "socket", "urllib", "requests", "http", "httpx", *SIDES)),
        ("server", ("torch", "timm", *DATA_SIDE, "client", "cytosae_client", "cytosae_local")),
        ("client", ("server", "cytosae_server", "cytosae_local")),
    ],
)
def test_forbidden_arrows(folder: str, forbidden: tuple[str, ...]) -> None:
    assert hits(folder, forbidden) == []


def test_the_finder_of_arrows_finds_them(tmp_path: Path) -> None:
    """The check above can fail."""
    assert hits("client", ("cytosae_core.egress",)) != []


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_server_runs_without_torch() -> None:
    names = ("study", "loop", "bundle", "replay")
    loaded = _modules_after("import " + ", ".join(f"cytosae_server.{name}" for name in names))
    assert not loaded & {"torch", "timm", "flwr"}


def test_help_is_light() -> None:
    code = "import sys\nfrom cytosae_local.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not _modules_after(code) & {"torch", "timm", "flwr", "numpy"}


def test_relay_touches_neither_torch_nor_data() -> None:
    loaded = _modules_after("import cytosae_client.relay")
    assert not loaded & {"torch", "timm", "cytosae_core.cohort", "cytosae_core.encoder", "cytosae_core.sae"}


def test_core_imports_nothing() -> None:
    assert ast.parse((ROOT / "cytosae_core" / "__init__.py").read_text()).body[1:] == []
