"""Holds an upload open in a container's network while a command upgrades the server there.

The server must go on to the end of that upload: half of it is sent before the command runs, the rest as
soon as no new connection is let in, which is when the old server was told to stop.
"""

import ctypes
import os
import socket
import subprocess
import sys
import time
import uuid

pid, command = sys.argv[1], sys.argv[2:]

# From here on this process is in the container's network.
with open(f"/proc/{pid}/ns/net") as network:
    if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network")


def connect():
    return socket.create_connection(("127.0.0.1", 8080), timeout=120)


body = os.urandom(100_000)
upload = connect()
upload.sendall(
    (
        f"POST /v1/client/add-version/{uuid.UUID(int=0)} HTTP/1.1\r\nHost: x\r\n"
        f"X-Client-Id: {uuid.uuid4()}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/vnd.taskchampion.history-segment\r\n\r\n"
    ).encode()
)
sent = 50_000
upload.sendall(body[:sent])
upgrade = subprocess.Popen(command, stdin=subprocess.DEVNULL)
deadline = time.monotonic() + 120
while True:
    try:
        connect().close()
    except ConnectionRefusedError:
        break
    if time.monotonic() > deadline:
        sys.exit("the server never stopped listening")
    # Slow, and not stuck, which the server would give up.
    upload.sendall(body[sent : sent + 1])
    sent += 1
    time.sleep(0.005)
upload.sendall(body[sent:])
answer = upload.recv(4096).decode()
print(answer)
if not answer.startswith("HTTP/1.1 200"):
    sys.exit("the upload was not finished")
if upgrade.wait(120) != 0:
    sys.exit("the upgrade failed")
