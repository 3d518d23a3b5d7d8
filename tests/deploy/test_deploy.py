"""The files for clusters and CI: of their schemas, and asking for what `temper gate` and docker/ have."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships none
import pytest
import yaml  # type: ignore[import-untyped]  # ships none

from temper.cli.main import cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
WORKFLOW = DEPLOY / "gate-workflow.yaml"
SCHEMAS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "schemas.yaml").read_text())


def documents() -> list[dict[str, Any]]:
    """Every object for a cluster."""
    files = [path for path in sorted(DEPLOY.glob("*.yaml")) if path != WORKFLOW]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def find(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = (each for each in documents() if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return found


def check(document: dict[str, Any]) -> None:
    schema = {**SCHEMAS, "$ref": f"#/$defs/{document['kind']}"}
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def lint_workflow(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", "vendor.github-workflows", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pods() -> list[dict[str, Any]]:
    """KServe's, Argo's, and the gate's job's."""
    return [
        find("InferenceService")["spec"]["predictor"],
        find("Rollout")["spec"]["template"]["spec"],
        job()["template"]["spec"],
    ]


def options_of_gate() -> set[str]:
    return {name for each in cli.commands["gate"].params for name in each.opts}


def job() -> dict[str, Any]:
    (metric,) = find("AnalysisTemplate")["spec"]["metrics"]
    found: dict[str, Any] = metric["provider"]["job"]["spec"]
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_object_follows_its_schema(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("InferenceService", ["spec", "predictor", "canaryTrafficPercent"], 110),
        ("InferenceService", ["spec", "predictor", "canaryTrafficPercentage"], 10),
        ("InferenceService", ["apiVersion"], "serving.kserve.io/v1alpha1"),
        ("Rollout", ["spec", "strategy", "canary", "steps", 0, "setWeight"], "25"),
        ("Rollout", ["spec", "strategy", "canary", "steps", 1, "pause"], {}),
        ("Rollout", ["spec", "template", "spec", "volumes", 0, "persistentVolumeClaim"], {"claim": "models"}),
        ("AnalysisTemplate", ["spec", "metrics", 0, "provider", "job", "spec", "backOffLimit"], 0),
        (
            "AnalysisTemplate",
            ["spec", "metrics", 0, "provider", "job", "spec", "template", "spec", "restartPolicy"],
            "Always",
        ),
    ],
)
def test_schema_refuses_what_is_wrong(kind: str, path: list[str | int], value: object) -> None:
    wrong = copy.deepcopy(find(kind))
    place: Any = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(wrong)


def test_workflow_follows_githubs_schema(tmp_path: Path) -> None:
    done = lint_workflow(WORKFLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text(WORKFLOW.read_text().replace("timeout-minutes:", "timeout:"))
    assert lint_workflow(bad).returncode == 1


def test_job_asks_once_and_asks_the_canary() -> None:
    """A second try would be another look at the same images."""
    assert job()["backoffLimit"] == 0
    (metric,) = find("AnalysisTemplate")["spec"]["metrics"]
    assert (metric["count"], metric["failureLimit"]) == (1, 0)
    (container,) = job()["template"]["spec"]["containers"]
    words = container["args"]
    assert words[0] == "gate"
    assert {"--model", "--against", "--url", "--images", "--rule", "--json"} <= {*words}
    assert {word for word in words if word.startswith("--")} <= options_of_gate()
    (argument,) = find("AnalysisTemplate")["spec"]["args"]
    assert words[words.index("--url") + 1] == f"{{{{args.{argument['name']}}}}}"
    canary = find("Rollout")["spec"]["strategy"]["canary"]
    (step,) = (step["analysis"] for step in canary["steps"] if "analysis" in step)
    assert step["templates"] == [{"templateName": find("AnalysisTemplate")["metadata"]["name"]}]
    ((given),) = step["args"]
    host, _, port = given["value"].partition(":")
    assert given["name"] == argument["name"] and host == canary["canaryService"]
    assert int(port) in [each["port"] for each in find("Service", host)["spec"]["ports"]]


def test_rollout_and_services_find_one_another() -> None:
    spec = find("Rollout")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    names = {port["name"] for port in spec["template"]["spec"]["containers"][0]["ports"]}
    for kind in ("canaryService", "stableService"):
        service = find("Service", spec["strategy"]["canary"][kind])["spec"]
        assert service["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["ports"]} <= names


@pytest.mark.parametrize("pod", pods(), ids=["kserve", "rollout", "job"])
def test_pod_has_what_it_mounts_and_no_rights(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_images_are_those_that_docker_makes() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    made = {service["image"] for service in compose.values()}
    used = {container["image"] for pod in pods() for container in pod["containers"]}
    assert used == made
    # Where the image expects the repository, and its user.
    assert (
        "TEMPER_REPOSITORY           the model repository; /models/repository"
        in (ROOT / "docker/serve.py").read_text()
    )
    for pod in pods()[:2]:
        (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "models")
        assert mount["mountPath"] == "/models/repository" and mount["readOnly"] is True
        assert pod["securityContext"]["runAsUser"] == 1000


def test_workflow_asks_the_gate_for_a_summary_and_junit() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["gate"]["steps"]
    (command,) = (step["run"] for step in steps if "temper gate" in step.get("run", ""))
    assert re.search(r'temper gate \S+\.toml --markdown "\$GITHUB_STEP_SUMMARY" --junit (\S+)$', command)
    assert {*re.findall(r"--\S+", command)} <= options_of_gate()
    (kept,) = (step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
    assert command.rpartition(" ")[2] in kept.split()
