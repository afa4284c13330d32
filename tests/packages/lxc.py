"""Whether an OCI archive is what Proxmox VE takes as a container template.

    lxc.py FILE.tar ARCHITECTURE application|system
"""

import gzip
import io
import json
import sys
import tarfile

path, architecture, flavour = sys.argv[1:]


def must(truth, rule):
    if not truth:
        sys.exit(f"{path}: {rule}")


must(path.endswith(".tar"), "the name does not end in .tar")
archive = tarfile.open(path)
names = [name.removeprefix("./") for name in archive.getnames()]
for name in ("oci-layout", "index.json", "blobs/sha256"):
    must(any(entry == name or entry.startswith(name + "/") for entry in names), f"no {name} at its root")


def blob(digest):
    return archive.extractfile(f"blobs/{digest.replace(':', '/')}").read()


index = json.load(archive.extractfile("index.json"))
must(len(index["manifests"]) == 1, "more than one manifest, of which only the first would be taken")
manifest = json.loads(blob(index["manifests"][0]["digest"]))
must("layers" in manifest, "the manifest is an index of others")
must(manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json", "no image but an attestation")
config = json.loads(blob(manifest["config"]["digest"]))
must(config["architecture"] == architecture, f"made for {config['architecture']}")
must(config["os"] == "linux", "not for Linux")

files = {}
for layer in manifest["layers"]:
    data = blob(layer["digest"])
    must(layer["mediaType"].endswith(("tar", "tar+gzip")), f"a layer of the type {layer['mediaType']}")
    if layer["mediaType"].endswith("gzip"):
        data = gzip.decompress(data)
    for entry in (tar := tarfile.open(fileobj=io.BytesIO(data))):
        name = entry.name.removeprefix("./").rstrip("/")
        files[name] = tar.extractfile(entry).read() if entry.isfile() else b""

settings = config["config"]
for name in ("etc/passwd", "etc/group"):
    must(name in files, f"no /{name}, which an image with a user needs")
if flavour == "application":
    user, group = settings["User"].split(":")
    users = [line.split(":") for line in files["etc/passwd"].decode().splitlines()]
    groups = [line.split(":") for line in files["etc/group"].decode().splitlines()]
    must(any(entry[2] == user for entry in users), "its user is not in /etc/passwd")
    must(any(entry[2] == group for entry in groups), "its group is not in /etc/group")
    must(settings["Entrypoint"] == ["/usr/bin/sync-server"], "another program")
    must("usr/bin/sync-server" in files, "the program is not there")
    must("etc/os-release" not in files and "usr/lib/os-release" not in files, "a system that Proxmox does not know")
    for volume in settings.get("Volumes", {}):
        must(volume.strip("/") in files, f"the volume {volume} is no directory, and becomes nothing else")
else:
    release = files["usr/lib/os-release"].decode()
    must("ID=debian" in release.splitlines(), "a system that Proxmox does not know")
    must("sbin/init" in files or "usr/sbin/init" in files, "no /sbin/init")
    for key in ("User", "WorkingDir", "Entrypoint"):
        must(settings.get(key) in (None, "", [], "/"), f"it sets {key}")
    must(settings.get("Cmd") in (None, ["bash"], ["/bin/bash"]), "it sets a command")
print(f"{path}: a {flavour} template")
