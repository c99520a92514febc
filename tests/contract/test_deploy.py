"""deploy/ by tools that need no engine: schemas, linters, and the commands themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cytosae_core.phantom import DEMO_SITES, generate_site
from cytosae_server.pki import Authority
from cytosae_server.proxy import caddy, caddyfile
from tests.lacking import lacking

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BIN = Path(sys.executable).parent
SCRIPTS = [DEPLOY / "systemd" / "install-site", DEPLOY / "slurm" / "embed-array.sh"]
COMPOSE = sorted((DEPLOY / "compose").glob("*.yaml"))


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **more)


def silent(*command: str | Path, **more: Any) -> None:
    done = run(*command, **more)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.stem)
def test_compose_files_follow_the_specification(path: Path, tmp_path: Path) -> None:
    schema = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    silent(BIN / schema[0], *schema[1:], path)
    broken = tmp_path / "broken.yaml"
    broken.write_text(path.read_text().replace("read_only: true", "read_only: [1]"))
    assert run(BIN / schema[0], *schema[1:], broken).returncode == 1


def test_the_containers_of_a_site_share_nothing_but_a_socket() -> None:
    site = yaml.safe_load((DEPLOY / "compose" / "site.yaml").read_text())["services"]
    assert set(site) == {"agent", "tunnel", "supernode", "relay"}
    assert len({service["user"] for service in site.values()}) == 4
    for service in site.values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "ports" not in service
    assert site["agent"]["network_mode"] == "none" and "networks" not in site["agent"]
    data = [volume for volume in site["agent"]["volumes"] if volume["target"] == "/data"]
    assert data[0]["read_only"] is True
    held = [{volume["target"] for volume in site[name]["volumes"]} for name in ("agent", "relay")]
    assert held[0] & held[1] == {"/run/cytosae"}
    assert not {"/data", "/home"} & (held[1] | {v["target"] for v in site["tunnel"]["volumes"]})


def test_commands_in_containers_are_commands_that_there_are() -> None:
    """Every option that a manifest gives to a program of ours is one that its parser knows."""
    helps = {
        "agent": run(BIN / "cytosae", "site", "agent", "--help").stdout,
        "tunnel": run(sys.executable, "-I", "-m", "cytosae_client.tunnel", "--help").stdout,
        "relay": run(sys.executable, "-I", "-m", "cytosae_client.relay", "--help").stdout,
        "supernode": run(BIN / "flower-supernode", "--help").stdout,
        "coordinator": run(BIN / "cytosae", "study", "start", "--help").stdout,
    }
    seen = set()
    for name, words in [*_compose_commands(), *_pod_commands()]:
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert f"{option} " in helps[name] or f"{option}\n" in helps[name] or f"[{option}]" in helps[name], (
                name, option,
            )  # fmt: skip
            seen.add((name, option))
    assert len({name for name, _ in seen}) == 5


def _compose_commands() -> list[tuple[str, list[str]]]:
    return [
        (name, [str(word) for word in service["command"]])
        for path in COMPOSE
        for name, service in yaml.safe_load(path.read_text())["services"].items()
    ]


def _pod_commands() -> list[tuple[str, list[str]]]:
    return [
        (container["name"], container["args"])
        for path in (DEPLOY / "kubernetes").glob("*/*.yaml")
        for found in yaml.safe_load_all(path.read_text())
        if found and found["kind"] == "StatefulSet"
        for container in found["spec"]["template"]["spec"]["containers"]
    ]


@pytest.mark.parametrize("name", ["site", "coordinator"])
def test_kubernetes_manifests_build_and_fit_the_api(name: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        lacking("kubectl on the path")
    built = run("kubectl", "kustomize", DEPLOY / "kubernetes" / name)
    assert built.returncode == 0, built.stderr
    path = tmp_path / "all.yaml"
    path.write_text(built.stdout)
    silent(BIN / "kubernetes-validate", "--strict", path)
    path.write_text(built.stdout.replace("replicas: 1", "replicas: one"))
    assert run(BIN / "kubernetes-validate", "--strict", path).returncode != 0


def test_pods_run_as_nobody_in_particular_and_a_site_has_no_way_in() -> None:
    for name, words in _pod_commands():
        assert words, name
    for path in (DEPLOY / "kubernetes").glob("*/*.yaml"):
        for found in filter(None, yaml.safe_load_all(path.read_text())):
            if found["kind"] == "NetworkPolicy":
                assert found["spec"]["ingress"] == [] and found["spec"]["policyTypes"] == [
                    "Ingress",
                    "Egress",
                ]
            if found["kind"] == "StatefulSet":
                _assert_confined(found["spec"]["template"]["spec"])


def _assert_confined(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False and container["resources"]["limits"]["memory"]


def test_the_container_file_is_clean() -> None:
    silent(BIN / "hadolint", DEPLOY / "compose" / "Containerfile")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean_and_say_what_they_want(path: Path) -> None:
    silent(BIN / "shellcheck", path)
    assert os.access(path, os.X_OK)
    done = run(path)
    assert done.returncode == 2 and "Hint:" in done.stderr


def test_the_proxy_s_text_for_reading_is_what_is_run_and_caddy_takes_it(tmp_path: Path) -> None:
    shown = (DEPLOY / "proxy" / "Caddyfile").read_text()
    assert shown == caddyfile(Path("/study/net"), "0.0.0.0:8443", superlink=9092, front=9093)
    net = tmp_path / "net"
    Authority(net, name="a study").server("server", ["study.example.org"])
    (tmp_path / "Caddyfile").write_text(shown.replace("/study/net", str(net)))
    check = ("validate", "--adapter", "caddyfile", "--config", tmp_path / "Caddyfile")
    silent(caddy(), *check, env={"HOME": str(tmp_path)})


def test_array_tasks_make_one_store(tmp_path: Path) -> None:
    generate_site(tmp_path / "cells", DEMO_SITES[0], patients=4, cells_per_patient=1, seed=1)
    words = [tmp_path / "cells", tmp_path / "store", "--encoder", "dinov2-s-demo", "--layer", "1", "--json"]
    answers = []
    for task in (5, 6):
        slurm = {"SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        more = {"SLURM_CPUS_PER_TASK": "1", "CYTOSAE": str(BIN / "cytosae")}
        done = run(SCRIPTS[1], *words, env={**os.environ, **slurm, **more})
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert [answer["shard"] for answer in answers] == ["0/2", "1/2"] and answers[1]["complete"]


def test_every_folder_is_in_the_table() -> None:
    text = (DEPLOY / "README.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)/` \|", text, re.M))
    assert listed == {path.name for path in DEPLOY.iterdir() if path.is_dir() and path.name != "__pycache__"}
