"""The manifests that start the images: readable, with words that the program knows, and with a health check."""

import re

import kubernetes_validate
import pytest
import yaml

from acouslic import __version__
from algorithm.arguments import COMMANDS, make_parser

MANIFESTS = [
    "compose.yaml",
    "compose.gpu.yaml",
    "kubernetes/cohort.yaml",
    "kubernetes/serve.yaml",
    "kubernetes/watch.yaml",
]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_command_in_a_manifest_parses(name, repository):
    """Each list or line of words that begins with a command of ours is one that the command line takes."""
    text = (repository / "deploy" / name).read_text()
    found = [words for document in yaml.safe_load_all(text) for words in commands_in(document)]
    assert found or "gpu" in name
    for words in found:
        assert make_parser().parse_args(words).command == words[0]


def test_all_manifests_are_tested(repository):
    """No manifest is forgotten."""
    deploy = repository / "deploy"
    assert sorted(path.relative_to(deploy).as_posix() for path in deploy.rglob("*.yaml")) == sorted(MANIFESTS)


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name.startswith("kubernetes/")])
def test_kubernetes_knows_every_field(name, repository):
    """Each object, and each pod that a RayJob describes, is valid by Kubernetes' own schemas; no field is unknown."""
    checked = 0
    for document in yaml.safe_load_all((repository / "deploy" / name).read_text()):
        for valid in pods_of_ray_job(document) if document["kind"] == "RayJob" else [document]:
            kubernetes_validate.validate(valid, "1.37", strict=True)
            checked += 1
    assert checked >= 2


def pods_of_ray_job(job):
    """The pods that KubeRay makes of a RayJob, one of each kind. Fails where the job has fields that KubeRay does not
    know (`apis/ray/v1` of its operator 1.2 to 1.4)."""
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    assert set(spec) <= {"entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(head) <= {"rayStartParams", "template"}
    assert all(
        set(group) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        for group in workers
    )
    for group in [head, *workers]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}


def test_an_unknown_field_of_kubernetes_is_found(repository):
    """The check of the schemas can fail: a probe with a word that does not exist."""
    deployment = next(yaml.safe_load_all((repository / "deploy/kubernetes/serve.yaml").read_text()))
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    probe["failureTreshold"] = probe.pop("failureThreshold")
    with pytest.raises(kubernetes_validate.ValidationError, match="failureTreshold"):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_the_server_image_has_a_health_check(repository):
    """The words of its health check are the program's."""
    (words,) = re.findall(
        r'^HEALTHCHECK .*CMD \["python3", "-m", "algorithm", (.*)\]$', (repository / "Dockerfile").read_text(), re.M
    )
    assert make_parser().parse_args([word.strip(' "') for word in words.split(",")]).command == "health"


def commands_in(node):
    """Every list of words below `node` that begins with one of our commands, after the start of Python if need be."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "profiles":  # names of Compose's own
                yield from commands_in(value)
    elif isinstance(node, str) and "-m algorithm" in node:
        yield node.split("-m algorithm", 1)[1].split()
    elif isinstance(node, list) and all(isinstance(word, str) for word in node):
        words = node[node.index("algorithm") + 1 :] if "algorithm" in node else node
        if words and words[0] in COMMANDS:
            yield words
    elif isinstance(node, list):
        for value in node:
            yield from commands_in(value)


def test_images_are_named_by_this_version(repository):
    """Manifests and documentation name the images that `./build.sh` makes of this version."""
    files = [*(repository / "deploy").rglob("*.yaml"), *(repository / "docs").glob("*.md"), repository / "README.md"]
    named = {
        (path.name, version)
        for path in files
        for version in re.findall(r"\bacouslic-\w+:(\d+\.\d+\.\d+)", path.read_text())
    }
    assert named
    assert {version for _, version in named} == {__version__}, named
