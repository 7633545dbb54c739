"""Every kind of Redis that a URL can name, and what each says of how well it keeps what it is given."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis_states import assert_stands, created, opened, remembered, step, store_at

from optimd_service.errors import RedisNotDurable, RedisUnavailable
from optimd_service.store.redis.readiness import RedisReadiness
from optimd_service.store.redis.server import RedisServer as Server
from redis_server import DURABLE, RedisServer, free_port

SECRET = "sesame"  # noqa: S105  of a server that lives for a test


def assert_serves(url: str, session: str = "s") -> None:
    """Two processes train there in turn."""
    with store_at(url) as here, store_at(url) as there:
        state = created(here, session)
        step(state, 1.0, k=remembered(1))
        found = opened(there, session)
        step(found, 2.0)
        state.catch_up()
        assert_stands(state, 2, 2.0)
        assert session in there.ids()
        assert there.standing(session) == {"name": "first"}


def test_a_password_is_given() -> None:
    with RedisServer(secret=SECRET) as redis:
        assert_serves(redis.url)
        for wrong in ("", ":wrong@"):
            url = redis.url.replace(f":{SECRET}@", wrong)
            with store_at(url) as store, pytest.raises(RedisUnavailable, match="user or password") as caught:
                created(store)
            assert "wrong" not in caught.value.detail


def test_a_user_with_a_password_is_given() -> None:
    port = free_port()
    with RedisServer(port=str(port)) as redis:
        rights = {"categories": ["+@all", "-@dangerous"], "commands": ["+info"]}
        redis.client.acl_setuser("optimd", enabled=True, passwords=["+pass"], keys=["optimd:*"], **rights)
        redis.client.acl_setuser("default", enabled=True, categories=["-@all"])
        assert_serves(f"redis://optimd:pass@127.0.0.1:{port}/0")
        with store_at(f"redis://127.0.0.1:{port}") as store, pytest.raises(RedisUnavailable, match="user or password"):
            created(store)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its certificate for 127.0.0.1, in one file."""
    file = tmp_path / "both.pem"
    names = ["-subj", "/CN=optimd", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", file, "-out", file]
    subprocess.run(make, check=True, capture_output=True)
    return file


def test_a_server_with_tls_is_spoken_with_if_its_certificate_is_trusted(certificate: Path) -> None:
    port, file = free_port(), str(certificate)
    tls = {"tls_port": str(port), "tls_cert_file": file, "tls_key_file": file, "tls_ca_cert_file": file}
    with RedisServer(tls_auth_clients="no", **tls):
        assert_serves(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={file}")
        with store_at(f"rediss://127.0.0.1:{port}/0") as store, pytest.raises(RedisUnavailable):
            created(store)


SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))


@pytest.fixture
def cluster() -> Iterator[list[RedisServer]]:
    """Three nodes, each with a third of the slots."""
    with ExitStack() as stack:
        nodes = []
        for slots in SLOTS:
            ports = {"port": str(free_port()), "cluster_port": str(free_port())}
            node = stack.enter_context(RedisServer(cluster_enabled="yes", **ports, **DURABLE))
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
            if nodes:
                first = nodes[0].settings
                node.client.execute_command("CLUSTER MEET", "127.0.0.1", first["port"], first["cluster-port"])
            nodes.append(node)
        deadline = time.monotonic() + 30
        while not all(_knows_all(node) for node in nodes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield nodes


def _knows_all(node: RedisServer) -> bool:
    info = node.client.cluster("INFO")
    return (info["cluster_state"], info["cluster_known_nodes"], info["cluster_slots_assigned"]) == ("ok", "3", "16384")


def test_a_cluster_holds_every_session_on_one_of_its_nodes(cluster: list[RedisServer]) -> None:
    url = f"redis://127.0.0.1:{cluster[0].settings['port']}"
    sessions = [f"s{number}" for number in range(8)]
    for session in sessions:
        assert_serves(url, session)
    holding = [{key.partition("}")[0] for key in node.expiries() if "{" in key} for node in cluster]
    assert sum(map(len, holding)) == len(sessions)
    assert min(map(len, holding)) > 0
    with store_at(url) as store:
        for session in sessions:
            store.drop(session)
        assert store.ids() == []
    server = Server(url)
    assert RedisReadiness(server).warnings() == []
    cluster[2].client.config_set("appendfsync", "no")
    assert len(RedisReadiness(server).warnings()) == 1
    server.close()


def test_a_node_that_comes_back_is_found_again(cluster: list[RedisServer]) -> None:
    url = f"redis://127.0.0.1:{cluster[0].settings['port']}"
    with store_at(url) as store:
        states = {session: created(store, session) for session in ("s1", "s2", "s3", "s4", "s5")}
        cluster[1].kill()
        refused = 0
        for state in states.values():
            try:
                step(state, 1.0)
            except RedisUnavailable:
                refused += 1
        assert 0 < refused < len(states)
        cluster[1].start()
        deadline = time.monotonic() + 30
        while not all(_knows_all(node) for node in cluster):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for state in states.values():
            state.catch_up()
            step(state, 2.0)


def test_a_url_of_no_redis_is_refused() -> None:
    with pytest.raises(ValueError, match="redis"):
        Server("http://127.0.0.1")


WARNED = {
    "nothing on disk": ({"appendonly": "no"}, "keeps nothing on disk"),
    "snapshots": ({"appendonly": "no", "save": "3600 1"}, "snapshots alone"),
    "once a second": ({"appendonly": "yes", "appendfsync": "everysec"}, "once a second"),
    "never": ({"appendonly": "yes", "appendfsync": "no"}, "to the kernel"),
    "evicts": ({**DURABLE, "maxmemory_policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
}


@pytest.mark.parametrize("case", WARNED)
def test_a_redis_that_may_lose_what_it_acknowledged_is_named(case: str) -> None:
    settings, said = WARNED[case]
    with RedisServer(**settings) as redis:
        server = Server(redis.url)
        (warning,) = RedisReadiness(server).warnings()
        assert said in warning
        with pytest.raises(RedisNotDurable, match=said) as caught:
            RedisReadiness(server, required=True).require()
        assert caught.value.evidence == {"warnings": [warning]}
        assert RedisReadiness(server).require() == [warning]
        server.close()


def test_a_redis_that_does_not_tell_how_it_syncs_is_named() -> None:
    with RedisServer(**DURABLE) as redis:
        redis.client.acl_setuser("default", enabled=True, categories=["+@all"], commands=["-config"])
        server = Server(redis.url)
        (warning,) = RedisReadiness(server).warnings()
        assert "does not tell" in warning
        server.close()


def test_a_redis_that_keeps_what_it_acknowledged_is_not_warned_of() -> None:
    with RedisServer(**DURABLE, maxmemory_policy="volatile-ttl") as redis:
        server = Server(redis.url)
        assert RedisReadiness(server, required=True).require() == []
        server.close()
