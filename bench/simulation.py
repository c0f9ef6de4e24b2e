"""Flower's own simulation, run on this machine alone and cleared away afterwards."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray listens beyond 127.0.0.1
}
"""Environment in which Flower and Ray keep to this machine."""

SAMPLE_SECONDS: Final = 0.5
"""Between two looks at the memory of all processes."""

PATIENCE_SECONDS: Final = 600
STOP_SECONDS: Final = 20


def simulate(
    app: Path, config: Mapping[str, str | int | float], clients: int, home: Path
) -> tuple[dict[str, Any], int]:
    """Let `flwr run` start an app in simulation, each client on one core, and wait for its end.

    Args:
        app: Folder of the app.
        config: What to change in the configuration of the app, which gets `result` besides: the path of
            a JSON file to write at the end.
        clients: Number of simulated nodes.
        home: A folder for all that Flower and Ray keep; its path must be short, for the sake of sockets.

    Returns:
        What the app has written, and the most bytes that all processes took together. Memory that
        several share is counted once.

    Raises:
        RuntimeError: If the app has not come to its end; with what Flower said.
    """
    result = home / "result.json"
    port = _free_port()
    connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(f"{connection}insecure = true\n", encoding="utf-8")
    scripts = Path(sys.executable).parent
    environment = os.environ | QUIET | {"FLWR_HOME": str(home), "RAY_TMPDIR": str(home)}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    nodes = f"num-supernodes={clients} client-resources-num-cpus=1 client-resources-num-gpus=0"
    settings = " ".join(
        f"{name}={_as_toml(value)}" for name, value in {**config, "result": str(result)}.items()
    )
    run = [str(scripts / "flwr"), "run", str(app), "here", "--stream"]
    run += ["--federation-config", nodes, "--run-config", settings]
    said = home / "said.txt"
    with said.open("w") as output, _superlink(port, environment, home) as superlink:
        process = subprocess.Popen(run, env=environment, stdout=output, stderr=output)
        peak = _watch(process, superlink)
    if not result.exists():
        raise RuntimeError(said.read_text(encoding="utf-8")[-4000:])
    return json.loads(result.read_text(encoding="utf-8")), peak


def _as_toml(value: str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@contextmanager
def _superlink(port: int, environment: Mapping[str, str], home: Path) -> Iterator[Any]:
    """Run a SuperLink of our own, and end it with whatever it has started.

    Without one `flwr run` starts one on a fixed port and leaves it behind.
    """
    psutil: Any = import_module("psutil")  # Dask needs it
    address = ["--insecure", "--host", "127.0.0.1", "--port", str(port)]
    control = ["--control-api-address", f"127.0.0.1:{_free_port()}"]
    options = ["--simulation", "--disable-runtime-dependency-installation"]
    command = [Path(sys.executable).parent / "flower-superlink", *address, *control, *options]
    with (home / "superlink.txt").open("w") as output:
        superlink = psutil.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_for(port)
        yield superlink
    finally:
        family = _family(superlink)
        superlink.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _watch(process: subprocess.Popen[bytes], superlink: Any) -> int:  # noqa: ANN401
    peak, end = 0, time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            process.wait()
            break
        peak = max(peak, sum(map(_own_bytes, _family(superlink))))
        time.sleep(SAMPLE_SECONDS)
    return peak


def _family(process: Any) -> list[Any]:  # noqa: ANN401
    return [process, *process.children(recursive=True)]


def _own_bytes(process: Any) -> int:  # noqa: ANN401
    """Read what a process takes, of shared memory its part; nothing if it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except import_module("psutil").Error:
        return 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS / 10
    while time.monotonic() < end:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("Flower's SuperLink does not answer")
