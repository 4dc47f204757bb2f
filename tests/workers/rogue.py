"""A worker that speaks our frames until it is asked for something: `python rogue.py HOW DESCRIPTOR PARENT`.

HOW is when it goes wrong, and with what. Only the first one that is started does: a file in the working directory,
`rogue`, says that there has been one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from mlx_roster.core import Capabilities, Counters, Delta, Device, Measured, Usage
from mlx_roster.workers import wire

HELLO = wire.Hello(1, Device("a chip", "cpu", 2**30, 2**30), {})
READY = wire.Ready(Measured(1), Capabilities(vocabulary=10, context=10, adapters=False))

#: What it writes instead of an answer.
GARBAGE = {
    "noise": b"\x00\x00\x00\x05hello",
    "length": b"\xff\xff\xff\xff",
    "hello": wire.pack(HELLO),
    "ready": wire.pack(READY),
    "command": wire.pack(wire.Stop()),
    "progress": wire.pack(wire.Progress(1, 1)),
    "memory": wire.pack(wire.Report(Measured(-5))),
    "tokens": wire.pack(wire.Step([Delta(1, "", tokens=2**62)])),
    "usage": wire.pack(wire.Step([Delta(1, "", "stop", Usage(-5, 1))])),
}

#: What it says that it counts before it answers, and answers well.
COUNTS = {
    "behind": (
        wire.Counted(Counters(steps=5, queried=8, hits=3, running=1, kv=10)),
        wire.Counted(Counters(steps=4, queried=9, hits=2, running=0, kv=20)),
    )
}


def commands(sock: socket.socket) -> Iterator[wire.Command]:
    unpacker = wire.Unpacker()
    while chunk := sock.recv(2**16):
        for payload in unpacker.feed(chunk):
            yield wire.decode(wire.command_decoder, payload)


def go_wrong(how: str, sock: socket.socket) -> None:
    match how:
        case "abort":
            os.kill(os.getpid(), signal.SIGABRT)
        case "exit":
            sys.exit(0)
        case "stay":
            sock.close()
            signal.pause()
        case _:
            sock.sendall(GARBAGE[how])


def serve(how: str, sock: socket.socket) -> None:
    def say(*events: wire.Event) -> None:
        sock.sendall(b"".join(map(wire.pack, events)))

    if how == "early":
        say(wire.Step([]))
    say(HELLO)
    for command in commands(sock):
        match command:
            case wire.Load():
                say(wire.Progress(1, 1), READY)
            case wire.Submit() if how == "honest" or how in COUNTS:
                # And for somebody who is not there: that may be, of one who has just given up.
                last = Delta(command.sequence, "fine", "stop", Usage(1, 1))
                say(*COUNTS.get(how, ()), wire.Step([Delta(99, "?"), last]), wire.Pulse(1))
            case wire.Submit():
                say(wire.Step([Delta(command.sequence, "so far")]))
                go_wrong(how, sock)
            case wire.Stop():
                return


if __name__ == "__main__":
    try:
        Path("rogue").touch(exist_ok=False)
    except FileExistsError:
        sys.argv[1] = "honest"
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
