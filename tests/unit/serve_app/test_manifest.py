"""The manifest of the cluster, with one mistake planted at a time."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serve_app.check import BadConfig, Given, check_file, main
from serve_app.settings import PROJECT

MANIFEST = PROJECT / "configs" / "kuberay" / "rayservice.yaml"
# the shape of KubeRay's published definition, cut down to what these tests plant mistakes in
CRD: dict[str, Any] = {
    "spec": {
        "versions": [
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "required": ["rayClusterConfig"],
                                "properties": {
                                    "serveConfigV2": {"type": "string"},
                                    "upgradeStrategy": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "rayClusterDeletionDelaySeconds": {"type": "integer"},
                                    "excludeHeadPodFromServeSvc": {"type": "boolean"},
                                    "rayClusterConfig": {
                                        "type": "object",
                                        "x-kubernetes-preserve-unknown-fields": True,
                                    },
                                },
                            },
                        },
                    }
                },
            }
        ]
    }
}

MISTAKES = [
    ("name: acestep\n", "name: 1-acestep\n", "metadata.name '1-acestep'"),
    ("name: acestep\n", f"name: {'a' * 48}\n", "at most 47"),
    ("initializing-timeout: 30m", "initializing-timeout: soon", "initializing-timeout 'soon'"),
    ("initializing-timeout: 30m", 'initializing-timeout: "0"', "initializing-timeout '0'"),
    ("type: NewCluster", "type: Rolling", "upgradeStrategy.type 'Rolling'"),
    ("type: NewCluster", "type: NewClusterWithIncrementalUpgrade", "gatewayClassName"),
    ("DeletionDelaySeconds: 1200", "DeletionDelaySeconds: 60", "rayClusterDeletionDelaySeconds 60"),
    ('rayVersion: "2.60.0"', 'rayVersion: "2.51.0"', "Ray 2.52"),
    ('num-cpus: "0"', "num-cpus: 0", "a text, in quotes"),
    ("dashboard-host: 0.0.0.0", "labels: a=b", "labels go into"),
    ("dashboard-host: 0.0.0.0", "redis-password: secret", "redisPassword"),
    ("groupName: gpu", "groupName: cpu", "two worker groups are called cpu"),
    ("replicas: 2\n        minReplicas: 2", "replicas: 9\n        minReplicas: 2", "replicas 9 is not from 2 to 6"),
    ("minReplicas: 1\n        maxReplicas: 8", "minReplicas: 1\n        maxReplicas: 1", "do not fit|at least"),
    ('SHUTDOWN_DRAIN_TIMEOUT_S, value: "630"', 'SHUTDOWN_DRAIN_TIMEOUT_S, value: "700"', "not shorter than"),
    ('SHUTDOWN_DRAIN_TIMEOUT_S, value: "630"', 'SHUTDOWN_DRAIN_TIMEOUT_S, value: "300"', "longer than the 300 s"),
    ("GracePeriodSeconds: 660", "GracePeriodSeconds: 30", "not shorter than"),
    ("image: &image acestep-serve:0.1.0-ray2.60.0-py311-cuda", "image: &image acestep-serve:latest", "pin it"),
    (
        "              image: &image acestep",
        "              image: other:1\n              name: &image acestep",
        "2 images",
    ),
    ("rayStartParams: {}\n", "suspend: true\n        rayStartParams: {}\n", "cannot be suspended"),
    (
        "terminationGracePeriodSeconds: 660",
        "terminationGracePeriodSeconds: 660\n            restartPolicy: Always",
        "restartPolicy is Never",
    ),
    (
        "env:\n                - {name: RAY_G",
        "env:\n                - {name: RAY_REDIS_ADDRESS, value: a}\n                - {name: RAY_G",
        "RAY_REDIS_ADDRESS is set",
    ),
    ("annotations:\n", 'annotations:\n    ray.io/ft-enabled: "true"\n', "ft-enabled"),
    ("max_ongoing_requests: 400", "max_ongoing_request: 400", "max_ongoing_request"),
    ("min_replicas: 0", "min_replica: 0", "autoscaling_config.min_replica"),
    ("- name: vae", "- name: vea", "'vea'"),
    ("num_gpus: 0.45", "num_gpus: 1.45", "num_gpus 1.45"),
    ("device: cuda", "device: cpu", "does not use"),
    ("data_is_shared: true", "data_is_shared: false", "a folder of each of 14 pods"),
    ("excludeHeadPodFromServeSvc", "excludeHeadPodsFromServeSvc", "excludeHeadPodsFromServeSvc"),
    ("DeletionDelaySeconds: 1200", "DeletionDelaySeconds: 20m", "rayClusterDeletionDelaySeconds"),
    (
        "          - name: conductor\n            num_replicas: 2",
        "          - name: conductor\n            num_replicas: 900",
        "CPUs at least",
    ),
]


@pytest.fixture
def crd(tmp_path: Path) -> Path:
    path = tmp_path / "crd.yaml"
    path.write_text(yaml.safe_dump(CRD))
    return path


def test_the_manifest_passes(crd: Path) -> None:
    check_file(MANIFEST, Given(crd))


@pytest.mark.parametrize(("right", "wrong", "told"), MISTAKES)
def test_a_mistake_in_the_manifest_is_told(tmp_path: Path, crd: Path, right: str, wrong: str, told: str) -> None:
    text = MANIFEST.read_text()
    assert right in text
    path = tmp_path / "manifest.yaml"
    path.write_text(text.replace(right, wrong, 1))
    with pytest.raises(BadConfig, match=told):
        check_file(path, Given(crd))


def test_shares_are_placed_on_as_many_gpus_as_there_are_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = str(PROJECT / "serve_config.yaml")
    assert main(["--gpus", "1", scenario]) == 0
    assert main(["--gpus", "0", scenario]) == 1
    assert "do not fit on 0 GPUs" in capsys.readouterr().err


def test_every_file_of_the_base_is_listed_and_is_what_kubernetes_takes() -> None:
    folder = MANIFEST.parent
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    for name in listed:
        for document in yaml.safe_load_all((folder / name).read_text()):
            if document["apiVersion"].split("/")[0] in ("ray.io", "monitoring.coreos.com"):
                continue
            kubernetes_validate.validate(document, "1.34", strict=True)
