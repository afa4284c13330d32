"""Lints and renders the Helm chart with Helm itself, in the ways in which it is used."""

import pathlib
import sys

import helm_python
import yaml

HERE = pathlib.Path(__file__).parent
CHART = HERE.parent.parent / "packaging/helm/sync-server"


def render(**values):
    rendered = helm_python.Chart.load(str(CHART)).render(values, name="tasks", namespace="default")
    manifests = [text for path, text in rendered.items() if path.endswith(".yaml")]
    documents = [document for text in manifests for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    return {document["kind"]: document for document in documents}


def refused(words, **values):
    try:
        render(**values)
    except Exception as error:
        assert words in str(error), (words, error)
        return
    sys.exit(f"rendered, and should not be: {values}")


def pod(documents):
    return documents["Deployment"]["spec"]["template"]["spec"]


def variables(documents):
    return {entry["name"]: entry["value"] for entry in pod(documents)["containers"][0]["env"]}


def volumes(documents):
    return {volume["name"]: volume for volume in pod(documents)["volumes"]}


report = helm_python.lint(str(CHART))
found = [message for message in report["messages"] if message["severity"] > 1]
assert not found and not report["errors"], report

cargo = (HERE.parent.parent / "Cargo.toml").read_text()
chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
assert f'\nversion = "{chart["appVersion"]}"' in cargo, "the chart's appVersion is not the program's version"

plain = render()
assert set(plain) == {"Deployment", "Service", "PersistentVolumeClaim"}, set(plain)
container = pod(plain)["containers"][0]
assert container["image"].endswith(f"/sync-server:{chart['appVersion']}"), container["image"]
assert variables(plain)["CREATE_CLIENTS"] == "false"
assert pod(plain)["securityContext"]["runAsUser"] == 1092 and pod(plain)["securityContext"]["runAsNonRoot"]
assert container["securityContext"]["readOnlyRootFilesystem"] and container["securityContext"]["capabilities"]["drop"] == ["ALL"]
assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
assert plain["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
assert volumes(plain)["data"]["persistentVolumeClaim"]["claimName"] == plain["PersistentVolumeClaim"]["metadata"]["name"]

assert "PersistentVolumeClaim" not in render(persistence={"existingClaim": "mine"})
assert "emptyDir" in volumes(render(persistence={"enabled": False}))["data"]
assert variables(render(env={"SNAPSHOT_DAYS": "30"}))["SNAPSHOT_DAYS"] == "30"

ways = render(
    ingress={"enabled": True, "className": "nginx", "tlsSecret": "certificate"},
    httpRoute={"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["tasks.example.org"]},
    clientIds={"existingSecret": "clients"},
)
assert ways["Ingress"]["spec"]["tls"][0]["secretName"] == "certificate"
assert ways["HTTPRoute"]["spec"]["parentRefs"] == [{"name": "gateway"}]
assert ways["HTTPRoute"]["spec"]["rules"][0]["backendRefs"][0]["port"] == ways["Service"]["spec"]["ports"][0]["port"]
assert variables(ways)["CLIENT_ID_FILE"] == "/run/secrets/clients/client_id"

shared = render(replicas=3, postgres={"existingSecret": "database", "key": "uri"})
assert set(shared) == {"Deployment", "Service", "PodDisruptionBudget"}, set(shared)
assert shared["Deployment"]["spec"]["replicas"] == 3
assert shared["Deployment"]["spec"]["strategy"]["type"] == "RollingUpdate"
assert variables(shared)["CONNECTION_FILE"] == "/run/secrets/connection/uri"
assert variables(shared)["SYNC_SERVER_NEEDS"] == "connection"
assert volumes(shared)["connection"]["secret"]["secretName"] == "database" and "data" not in volumes(shared)
mounts = {mount["name"]: mount["mountPath"] for mount in pod(shared)["containers"][0]["volumeMounts"]}
assert mounts == {"connection": "/run/secrets/connection"}, mounts
selected = shared["Deployment"]["spec"]["template"]["metadata"]["labels"]
for selector in (
    shared["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    pod(shared)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    shared["Service"]["spec"]["selector"],
):
    assert selector.items() <= selected.items(), selector
assert shared["Service"]["spec"]["selector"] == shared["Deployment"]["spec"]["selector"]["matchLabels"]
# One server with Postgres, for whom nothing has to be spread.
assert set(render(postgres={"existingSecret": "database"})) == {"Deployment", "Service"}

refused("parentRefs", httpRoute={"enabled": True})
refused("replicas", replicas=2)
refused("replica", replica=2)
print("the chart renders")
