"""The image holds every package and command, and what Docker reads says the same as the code."""

from __future__ import annotations

import re
import tomllib

import yaml

import serve
from config.flags.serve import ServeConfig
from config.parser import parse_flags
from tests.cli.command import ROOT
from utils.libraries import OPTIONAL

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
OUTSIDE = {"tests", "benchmarks", "docs", "samples", "examples", "run_scripts"}  # for those who work on the code
SCRIPTS = {path.name for path in ROOT.glob("*.py")}
PACKAGES = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} - {f"{name}/" for name in OUTSIDE}


def copied() -> set[str]:
    """What the Dockerfile copies into the image."""
    return {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}


def test_the_image_holds_every_package_and_command() -> None:
    assert copied() == {"LICENSE", "pyproject.toml", "requirements.txt", "configs/"} | PACKAGES | SCRIPTS


def test_docker_may_read_what_is_copied_and_nothing_else() -> None:
    first, *others = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    allowed = {line[1:] for line in others if line.startswith("!")}
    assert allowed == copied() - SCRIPTS | {"*.py"}


def test_the_image_is_pinned_as_the_tests_are_and_runs_without_root() -> None:
    pins = dict(re.findall(r"([a-z0-9_-]+)==([\d.]+)", DOCKERFILE))
    held = (*serve.PACKAGES, "ctranslate2", "peft")
    assert pins == {name.replace("_", "-"): OPTIONAL[name] for name in held}
    base, tag = re.findall(r"^FROM (\w+):(\S+)$", DOCKERFILE, re.MULTILINE)[0]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert (base, tag[:4], wanted) == ("python", "3.11", ">=3.11")
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE) == ["1000"]
    installs = re.findall(r"pip install .*", DOCKERFILE)
    assert len(installs) == 2
    assert all("--no-cache-dir" in line for line in installs)


def test_the_server_of_compose_parses_and_reads_its_model_only() -> None:
    server = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["serve"]
    script, *flags = server["command"]
    config, _, problems = parse_flags(ServeConfig, flags)
    assert (script, problems, config.serve.model) == ("serve.py", [], ("/model",))
    assert config.serve.token_file == f"/run/secrets/{server['secrets'][0]}"
    assert server["volumes"][0].endswith(":/model:ro")
    assert f":{config.serve.port}/health" in server["healthcheck"]["test"][-1]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
