"""Federations through Flower: simulated, and SuperNodes with TLS and keys; weights as in one process."""

import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cache_schema.manifest import write_manifest
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.config import TrainConfig
from training.federated import engine
from training.federated.client import LocalClients
from training.federated.work import Lost
from training.runlog import Silent, read_rounds

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
SETTINGS = {
    "rounds": 2,
    "local_epochs": 1,
    "batch_size": 16,
    "crop": 32,
    "weights": "none",
    "slices": "tumour",
    "learning_rate": 1e-3,
    "device": "cpu",
    "loader_workers": 0,
}
SETTINGS_3D = SETTINGS | {
    "model": "unetrpp",
    "model_options": {"size": "tiny"},
    "batch_size": 2,
    "slices": "all",
    "local_steps": 1,
}
PATIENCE_S = 600


@pytest.fixture(scope="module")
def cache(small_options, small_tree, tmp_path_factory) -> Path:
    """Three clients."""
    folder = tmp_path_factory.mktemp("three") / "cache"
    plan = make_plan([small_tree], small_options.model_copy(update={"clients": 3}))
    shards = [make_shard(s, folder, plan.preprocessing, lambda _: None) for s in plan.shards]
    write_manifest(folder, assemble_manifest(plan, shards))
    return folder


def own_part(cache, client, folder) -> Path:
    """What one hospital holds of a cache that was prepared at one place."""
    own = Path(f"clients/client-{client:02d}")
    shutil.copytree(cache / own, folder / own)
    shutil.copy(cache / "manifest.json", folder)
    return folder


def free_port() -> int:
    """Find a port below those that the system gives to whoever asks for any, until it is used."""
    while True:
        port = secrets.choice(range(20000, 32000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(home: Path) -> dict[str, str]:
    """Of Flower's processes; coverage is kept out of them.

    When `sys.path` changes it forgets the modules that other threads import at that moment, and Flower
    changes `sys.path` while it imports both apps in threads.
    """
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "FLWR_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return kept | QUIET | own


def run_config(settings, **options) -> str:
    named = {**settings, **options}
    for name in {"model_options"} & named.keys():
        named[name] = " ".join("=".join(option) for option in named[name].items())
    return " ".join(
        f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in named.items()
    )


def in_one_process(cache, run, settings) -> Path:
    engine.run_federation(TrainConfig(**settings), cache, run, Silent())
    return run


def same_weights(one: Path, other: Path) -> bool:
    first, second = ((run / "model.safetensors").read_bytes() for run in (one, other))
    return first == second


@contextmanager
def stopped_at_the_end(process):
    """Stop a process and those that it has started, by their ids."""
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


class SuperLink:
    """A SuperLink on this machine's own address, and what joins it."""

    def __init__(
        self, folder: Path, stack: ExitStack, *options: object, certificate: Path | None = None
    ) -> None:
        self.folder, self.stack = folder, stack
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        home = folder / "home"
        home.mkdir()
        trust = f'root-certificates = "{certificate}"' if certificate else "insecure = true"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n{trust}\n'
        )
        self.environment = environment(home)
        self.process = self.start(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", port),
            *("--control-api-address", f"127.0.0.1:{free_port()}"),
            *("--disable-runtime-dependency-installation", *options),
        )
        self.wait_for("superlink", "open port", lambda: socket_is_open(port))

    def start(self, name, *command, **changes) -> subprocess.Popen:
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment | changes,
            cwd=self.folder,
            start_new_session=True,
        )
        self.stack.callback(log.close)
        return self.stack.enter_context(stopped_at_the_end(process))

    def log(self, name) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name, what, is_there) -> None:
        end = time.monotonic() + PATIENCE_S
        while not is_there():
            assert time.monotonic() < end, f"no {what}: {self.log(name)}"
            time.sleep(0.1)

    def flwr(self, *words) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BIN / "flwr", *map(str, words)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def begin(self, name, settings, *words, **options) -> subprocess.Popen:
        """Start a run of three clients with the app, and show its log."""
        config = run_config(settings, run=str(self.folder / name), clients=3, **options)
        words = (*words, "--stream", "--run-config", config)
        return self.start(f"{name}-run", BIN / "flwr", "run", ROOT / "flower", "here", *words)

    def rounds(self, name):
        log = self.folder / name / "log.jsonl"
        return read_rounds(self.folder / name) if log.exists() else ()


class Deployment(SuperLink):
    """With TLS and keys, and hospitals that come and go."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.authority = write_certificates(folder)
        super().__init__(
            folder,
            stack,
            *("--ssl-certfile", folder / "server.pem", "--ssl-keyfile", folder / "server.key"),
            *("--ssl-ca-certfile", self.authority, "--database", folder / "superlink.db"),
            "--enable-supernode-auth",
            certificate=self.authority,
        )

    def make_site(self, name, client, cache) -> Path:
        site = self.folder / name
        words = ("init", site, "--client", client, "--cache", cache, "--device", "cpu")
        result = train_site(*words, "--loader-workers", 0)
        assert result.returncode == 0, result.stderr
        return site

    def register(self, site) -> None:
        result = self.flwr("supernode", "register", site / "node-key.pub", "here")
        assert result.returncode == 0, result.stdout + result.stderr

    def join(self, site) -> subprocess.Popen:
        """Start a SuperNode with the command that `train site check` prints."""
        result = train_site("check", site, "--superlink", self.address, "--ca", self.authority)
        assert result.returncode == 0, result.stderr
        command = result.stdout.strip().splitlines()[-1]
        return self.start(site.name, "sh", "-c", f"exec {command} --port {free_port()}")


def kill_with_all_descendants(process) -> None:
    """Kill -9 everything that a process has started, in whatever session."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=20)


def socket_is_open(port) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def train_site(*words) -> subprocess.CompletedProcess:
    code = "import cli; cli.run_train()"
    return subprocess.run(
        [sys.executable, "-c", code, "site", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def write_certificates(folder: Path) -> Path:
    """Make an authority and the SuperLink's certificate; give that of the authority."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("ca", "server")]
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)

    def certificate(subject, is_authority, *more):
        builder = x509.CertificateBuilder(
            issuer_name=names[0],
            subject_name=names[subject],
            public_key=keys[subject].public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(hours=1),
            not_valid_after=now + timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(keys[0], SHA256()).public_bytes(Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate(0, True))
    (folder / "server.pem").write_bytes(
        certificate(1, False, x509.SubjectAlternativeName([address]))
    )
    (folder / "server.key").write_bytes(
        keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder / "ca.pem"


@pytest.fixture
def deployment(tmp_path):
    with ExitStack() as stack:
        yield Deployment(tmp_path, stack)


def test_three_hospitals_and_one_that_dies_give_the_weights_of_one_process(
    deployment, cache, tmp_path, monkeypatch
):
    sites = [
        deployment.make_site(
            f"site-{client}", client, own_part(cache, client, tmp_path / f"c{client}")
        )
        for client in range(3)
    ]
    for site in sites:
        deployment.register(site)
    nodes = [deployment.join(site) for site in sites]

    whole = deployment.begin("whole", SETTINGS)
    whole.wait(PATIENCE_S)
    assert [len(record.clients) for record in deployment.rounds("whole")] == [3, 3], deployment.log(
        "whole-run"
    )
    assert same_weights(
        tmp_path / "whole", in_one_process(cache, tmp_path / "whole-alone", SETTINGS)
    )

    settings = {**SETTINGS_3D, "strategy": "scaffold"}
    process = deployment.begin("bereaved", settings)
    deployment.wait_for("bereaved-run", "round", lambda: deployment.rounds("bereaved"))
    os.killpg(nodes[1].pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    rounds = deployment.rounds("bereaved")
    assert [record.absent for record in rounds] == [(), (1,)], deployment.log("bereaved-run")
    honest = LocalClients.train

    def train(self, clients, order, observer):
        there = [client for client in clients if (order.round, client) != (2, 1)]
        yield from (Lost(client, "dead") for client in set(clients) - set(there))
        yield from honest(self, there, order, observer)

    monkeypatch.setattr(LocalClients, "train", train)
    alone = in_one_process(cache, tmp_path / "bereaved-alone", settings)
    assert same_weights(tmp_path / "bereaved", alone)


def test_strangers_and_a_number_taken_twice_are_refused_in_a_line(deployment, cache, tmp_path):
    known, twin, unknown = (
        deployment.make_site(name, client, cache)
        for name, client in (("known", 0), ("twin", 0), ("unknown", 1))
    )
    deployment.register(known)
    deployment.register(twin)
    other = tmp_path / "other"
    other.mkdir()
    impostor = write_certificates(other)
    result = train_site("check", known, "--superlink", deployment.address, "--ca", impostor)
    assert result.returncode == 1
    assert f"{deployment.address} has a certificate that {impostor} does not vouch" in result.stderr
    command = (
        *("flower-supernode", "--superlink", deployment.address, "--root-certificates", impostor),
        *("--auth-supernode-private-key", known / "node-key", "--port", free_port()),
    )
    deployment.start("deceived", *command)
    deployment.join(unknown)
    refusals = {"deceived": "certificate verify failed", "unknown": "Failed to activate SuperNode"}
    for name, line in refusals.items():
        deployment.wait_for(name, line, lambda n=name, x=line: x in deployment.log(n))

    deployment.join(known)
    deployment.join(twin)
    process = deployment.begin("twins", SETTINGS_3D)
    line = "client 0 has joined twice"
    deployment.wait_for("twins-run", line, lambda: line in deployment.log("twins-run"))
    process.wait(PATIENCE_S)
    assert not (tmp_path / "twins").exists()


@pytest.mark.skipif(not os.environ.get("FEDUNETMM_SLOW"), reason="a minute and a half of two cores")
def test_a_simulation_that_is_killed_goes_on_to_the_weights_of_one_process(cache, tmp_path):
    settings = {**SETTINGS, "strategy": "scaffold", "exchange": "bf16", "rounds": 3}
    resources = "num-supernodes=3 client-resources-num-cpus=1 client-resources-num-gpus=0"
    words = ("simulated", settings, "--federation-config", resources)
    with ExitStack() as stack:
        superlink = SuperLink(tmp_path, stack, "--insecure", "--simulation")
        superlink.begin(*words, cache=str(cache))
        superlink.wait_for("simulated-run", "round", lambda: superlink.rounds("simulated"))
        kill_with_all_descendants(superlink.process)
    rounds = len(superlink.rounds("simulated"))
    assert rounds < 3

    (tmp_path / "again").mkdir()
    (tmp_path / "again/simulated").symlink_to(tmp_path / "simulated")
    with ExitStack() as stack:
        superlink = SuperLink(tmp_path / "again", stack, "--insecure", "--simulation")
        process = superlink.begin(*words, cache=str(cache), resume=True)
        process.wait(PATIENCE_S)
        assert len(superlink.rounds("simulated")) == 3, superlink.log("simulated-run")
    alone = in_one_process(cache, tmp_path / "alone", settings)
    assert same_weights(tmp_path / "simulated", alone)
