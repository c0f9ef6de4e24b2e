"""A hospital's place in a federation: which client it is, where its shards lie, and its key."""

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from annotated_types import Ge
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from pydantic import BaseModel, ConfigDict, ValidationError

from cache_schema.documents import read_record
from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.manifest import read_manifest
from cache_schema.verify import verify_client
from training.config import describe
from training.device import choose_device

SITE_NAME: Final = "site.json"
KEY_NAME: Final = "node-key"
PUBLIC_KEY_NAME: Final = "node-key.pub"
MEMORY_FOLDER: Final = "memory"
CONNECT_SECONDS: Final = 10.0


class Site(BaseModel):
    """What a hospital has decided, kept in the folder of its site.

    Attributes:
        client: Its number in the federation, from 0; no two hospitals have the same.
        cache: Its shards, as `prep partition` wrote them.
        cache_client: Whose shards of the cache are trained on.
        device: Where to train.
        loader_workers: Processes that read shards.
        trust_cache: Do not hash its shards when a run begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    client: Annotated[int, Ge(0)]
    cache: str
    cache_client: Annotated[int, Ge(0)]
    device: str = "auto"
    loader_workers: Annotated[int, Ge(0)] = 1
    trust_cache: bool = False


def make_site(**settings: Any) -> Site:  # noqa: ANN401 - whatever a command line gives
    """Check what a hospital has decided.

    Raises:
        InputError: Naming the option that is wrong.
    """
    try:
        return Site(**settings)
    except ValidationError as error:
        raise InputError(describe(error)) from error


def init_site(folder: Path, site: Site) -> None:
    """Make the folder of a site: its settings and a new key pair, EC P-384 in OpenSSH's format.

    The private key never leaves the folder and only its owner can read it; the public key is for
    the coordinator.

    Raises:
        InputError: If there is a site already, or the cache has no such client.
    """
    if (folder / SITE_NAME).exists():
        raise InputError(
            f"{folder} is a site already; its key is known to the coordinator: keep it"
        )
    _require_client(site)
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    with os.fdopen(
        os.open(folder / KEY_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
    ) as file:
        file.write(private)
    write_atomically(folder / PUBLIC_KEY_NAME, public + b"\n")
    write_atomically(folder / SITE_NAME, site.model_dump_json(indent=1) + "\n")


def read_site(folder: Path) -> Site:
    """Read the settings of a site.

    Raises:
        InputError: If it is none, or its settings are not those of this release.
    """
    advice = "bring it back, or make a site with `train site init`"
    return read_record(folder / SITE_NAME, Site, advice)


def check_site(folder: Path, on_shard: Callable[[str, int], None] | None = None) -> list[str]:
    """Look at everything that a SuperNode needs before it is started, every slice included.

    Args:
        folder: Of the site.
        on_shard: Told each shard's path before it is looked at, and their number.

    Returns:
        One sentence for each problem; empty if there is none.

    Raises:
        InputError: If the site or its manifest cannot be read.
    """
    site = read_site(folder)
    cache = Path(site.cache)
    _require_client(site)
    return [
        *verify_client(cache, site.cache_client, on_shard=on_shard),
        *_key_problems(folder),
        *_device_problems(site),
    ]


def check_connection(superlink: str, certificate: Path) -> list[str]:
    """Reach the coordinator's SuperLink and check its certificate, as a SuperNode will.

    Args:
        superlink: HOST:PORT.
        certificate: The CA certificate that the coordinator has handed out.

    Returns:
        One sentence if that fails.

    Raises:
        InputError: If the address or the certificate cannot be read.
    """
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--superlink {superlink}: write it as HOST:PORT")
    try:
        context = ssl.create_default_context(cafile=certificate)
    except OSError as error:
        raise InputError(f"--ca {certificate}: no PEM certificate ({error})") from error
    try:
        with (
            socket.create_connection((host, int(port)), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return []
    except ssl.SSLCertVerificationError as error:
        problem = f"{superlink} has a certificate that {certificate} does not vouch for"
        return [f"{problem} ({error.verify_message}); ask the coordinator for the CA certificate"]
    except OSError as error:
        return [f"{superlink} cannot be reached ({error}); ask whether it runs, and your firewall"]


def supernode_command(folder: Path, superlink: str, certificate: Path) -> str:
    """Write the command that joins a federation.

    Args:
        folder: Of the site.
        superlink: HOST:PORT of the coordinator.
        certificate: The coordinator's CA certificate.
    """
    return (
        f"flower-supernode --superlink {superlink} --root-certificates {certificate.resolve()} "
        f"--auth-supernode-private-key {(folder / KEY_NAME).resolve()} "
        f"--node-config 'site=\"{folder.resolve()}\"'"
    )


def _require_client(site: Site) -> None:
    manifest = read_manifest(Path(site.cache))
    count = manifest.options.clients
    if site.cache_client >= count or not manifest.client_shards(site.cache_client):
        raise InputError(
            f"{site.cache} has no shards of client {site.cache_client}, but {count} clients from 0: choose "
            "one with --cache-client"
        )


def _key_problems(folder: Path) -> Iterator[str]:
    path = folder / KEY_NAME
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        yield f"{path}: no private key ({error}); bring back the one that the coordinator knows"
        return
    if path.stat().st_mode & 0o077:
        yield f"{path}: others can read it; `chmod 600 {path}`"
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    try:
        is_own = (folder / PUBLIC_KEY_NAME).read_bytes().strip() == public
    except OSError as error:
        yield f"{folder / PUBLIC_KEY_NAME} cannot be read ({error.strerror}); bring it back"
        return
    if not is_own:
        yield f"{folder / PUBLIC_KEY_NAME}: belongs to another private key"


def _device_problems(site: Site) -> Iterator[str]:
    try:
        choose_device(site.device)
    except InputError as error:
        yield str(error)
