"""One replica of the old client generation, driven over standard input: a JSON list a line in,
a JSON object a line out."""

import json
import sys

from taskchampion import Operations, Replica, Status

PROPERTIES = ["description", "status", "project", "entry", "modified", "end"]

replica = Replica.new_in_memory()


def add(uuid, description):
    operations = Operations()
    task = replica.create_task(uuid, operations)
    task.set_description(description, operations)
    task.set_status(Status.Pending, operations)
    replica.commit_operations(operations)


def change(uuid, act):
    operations = Operations()
    act(replica.get_task(uuid), operations)
    replica.commit_operations(operations)


def set_value(uuid, name, value):
    change(uuid, lambda task, operations: task.set_value(name, value, operations))


def complete(uuid):
    change(uuid, lambda task, operations: task.set_status(Status.Completed, operations))


def delete(uuid):
    change(uuid, lambda task, operations: task.set_status(Status.Deleted, operations))


def purge(uuid):
    operations = Operations()
    replica.get_task_data(uuid).delete(operations)
    replica.commit_operations(operations)


def tasks():
    found = {}
    for uuid in replica.all_task_uuids():
        task = replica.get_task_data(uuid)
        found[uuid] = {name: task.get(name) for name in PROPERTIES if task.has(name)}
    return found


def sync(url, client, secret, avoid_snapshots):
    replica.sync_to_remote(url, client, secret, avoid_snapshots)


VERBS = {
    "add": add,
    "set": set_value,
    "complete": complete,
    "delete": delete,
    "purge": purge,
    "tasks": tasks,
    "sync": sync,
}

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = {"answer": VERBS[verb](*arguments)}
    except Exception as error:  # whatever it is, the test wants to know
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
