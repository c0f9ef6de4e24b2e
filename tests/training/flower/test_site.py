import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from typer.testing import CliRunner

import cli
from cache_schema.errors import InputError
from training.flower.site import (
    Site,
    check_connection,
    check_site,
    init_site,
    make_site,
    read_site,
    supernode_command,
)


def test_a_site_has_a_key_pair_of_its_own_and_hides_the_private_one(site, own_cache, tmp_path):
    key = load_ssh_private_key((site / "node-key").read_bytes(), password=None)
    public = load_ssh_public_key((site / "node-key.pub").read_bytes())
    assert key.public_key() == public
    assert public.curve.name == "secp384r1"
    assert (site / "node-key").stat().st_mode & 0o777 == 0o600
    init_site(tmp_path / "other", Site(client=8, cache=str(own_cache), cache_client=1))
    assert (tmp_path / "other/node-key").read_bytes() != (site / "node-key").read_bytes()


def test_a_site_that_holds_its_own_client_alone_is_ready(site):
    seen = []
    assert check_site(site, on_shard=lambda name, total: seen.append((name, total))) == []
    assert {name.split("/")[1] for name, _ in seen} == {"client-01"}
    assert len(seen) == seen[0][1]


def test_a_damaged_slice_is_named(site, own_cache):
    shard = next((own_cache / "clients/client-01").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    problems = check_site(site)
    assert problems
    assert all(problem.startswith(f"clients/client-01/{shard.name}: ") for problem in problems)


def test_a_key_that_others_can_read_or_that_is_not_the_one_is_named(site, own_cache, tmp_path):
    (site / "node-key").chmod(0o644)
    init_site(tmp_path / "other", Site(client=8, cache=str(own_cache), cache_client=1))
    shutil.copy(tmp_path / "other/node-key.pub", site)
    open_key, other_key = check_site(site)
    assert "others can read it; `chmod 600" in open_key
    assert "belongs to another private key" in other_key
    (site / "node-key").write_text("nothing")
    (problem,) = check_site(site)
    assert "no private key" in problem


def test_a_device_that_is_not_there_is_named(site):
    path = site / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "device": "cuda:77"}))
    (problem,) = check_site(site)
    assert problem.startswith("--device cuda:77 cannot be used here")


def test_a_site_is_not_made_twice_nor_without_shards(site, own_cache, tmp_path):
    with pytest.raises(InputError, match=r"is a site already.*keep it"):
        init_site(site, Site(client=7, cache=str(own_cache), cache_client=1))
    with pytest.raises(InputError, match=r"no shards of client 5.*--cache-client"):
        init_site(tmp_path / "b", Site(client=5, cache=str(own_cache), cache_client=5))
    assert not (tmp_path / "b").exists()


def test_a_wrong_setting_names_its_option():
    with pytest.raises(InputError, match=r"^--client: .*greater than or equal to 0"):
        make_site(client=-1, cache="c", cache_client=0)


def test_a_folder_that_is_no_site_and_a_setting_of_another_release_are_named(site, tmp_path):
    with pytest.raises(InputError, match=r"site.json cannot be read .*train site init"):
        read_site(tmp_path)
    (site / "site.json").write_text('{"client": 1, "colour": "red"}')
    with pytest.raises(InputError, match=r"site.json: "):
        read_site(site)


def test_the_command_that_joins_names_absolute_paths(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = supernode_command(Path("site"), "host:1", Path("ca.pem"))
    assert command == (
        f"flower-supernode --superlink host:1 --root-certificates {tmp_path}/ca.pem "
        f"--auth-supernode-private-key {tmp_path}/site/node-key --node-config 'site=\"{tmp_path}/site\"'"
    )


def test_an_address_without_a_port_and_a_certificate_that_is_none_are_named(tmp_path):
    with pytest.raises(InputError, match="--superlink host: write it as HOST:PORT"):
        check_connection("host", tmp_path)
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(InputError, match=r"--ca .*ca.pem: no PEM certificate"):
        check_connection("127.0.0.1:1", tmp_path / "ca.pem")


def test_what_is_not_ready_ends_with_a_line_for_each_problem(site, tmp_path):
    (site / "node-key").chmod(0o644)
    (tmp_path / "ca.pem").write_text("nothing")
    words = [
        "site",
        "check",
        str(site),
        "--superlink",
        "127.0.0.1:1",
        "--ca",
        str(tmp_path / "ca.pem"),
    ]
    result = CliRunner().invoke(cli.train, words)
    assert isinstance(result.exception, InputError)
