"""Servers that are sealed, stopped, mute, false or forgetful; and environments that try to mislead the client."""

import base64
import contextlib
import http.server
import itertools
import logging
import shutil
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from keys.names import new_key_name
from keys.vault_errors import VaultDenied
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from tests.testbed.pki import CA, Pair
from tests.testbed.vault_world import World

JOBS = itertools.count(5000)


def new_key(node: str = "n1") -> str:
    return new_key_name(node, "test", str(next(JOBS)))


def everything_said(error: BaseException) -> str:
    return "".join([str(error), repr(error), getattr(error, "advice", ""), *traceback.format_exception(error)])


def token_of(client: VaultHead | VaultNode) -> str:
    token: str = client._session._token
    return token


@contextlib.contextmanager
def redirecting(pair: Pair, elsewhere: str) -> Iterator[str]:
    """The address of a TLS server that answers everything with "go to ``elsewhere``"."""

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307)
            self.send_header("Location", elsewhere + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_LIST = do_GET  # noqa: N815 - names of http.server

        def log_message(self, *args: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.private_key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def test_a_sealed_server_is_unavailable_and_comes_back(own_world: World) -> None:
    key = new_key()
    with own_world.head() as head, own_world.node("n1") as node:
        head.create_key(key)
        node.data_key(key)
        own_world.bao.seal()
        for act in (head.key_exists, head.create_key, head.delete_key, node.data_key):
            with pytest.raises(BackendUnavailable, match="sealed"):
                act(key)
        with own_world.head() as other, pytest.raises(BackendUnavailable, match="sealed"):
            other.list_grants()
        own_world.bao.unseal()
        assert head.key_exists(key)


def test_a_stopped_server_is_unavailable(own_world: World) -> None:
    with own_world.head() as head, own_world.node("n1") as node:
        head.list_grants()
        own_world.bao.stop()
        with pytest.raises(BackendUnavailable):
            head.list_grants()
        with pytest.raises(BackendUnavailable):
            head.key_exists(new_key())
        with pytest.raises(BackendUnavailable):
            node.read_grant("1")


def test_a_mute_server_is_unavailable_after_the_timeout(world: World, mute: str) -> None:
    with (
        world.head(address=mute, timeout=0.2) as head,
        pytest.raises(BackendUnavailable, match=r"no answer within 0\.2 s"),
    ):
        head.list_grants()


def test_a_server_of_another_ca_gets_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = CA(tmp_path / "stranger")
    # what the operating system trusts must not matter
    monkeypatch.setenv("SSL_CERT_FILE", str(world.bao.ca.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(world.bao.ca.certificate))
    monkeypatch.setenv("VAULT_CACERT", str(world.bao.ca.certificate))
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "1")
    for client in (world.head(ca_file=str(stranger.certificate)), world.node("n1", ca_file=str(stranger.certificate))):
        with client, pytest.raises(VaultDenied) as refused:
            client.read_grant(*(("n1",) if isinstance(client, VaultHead) else ()), "1")  # type: ignore[call-arg]
        assert refused.value.rule == "vault.tls"


def test_a_certificate_for_another_name_gets_nothing(world: World, tmp_path: Path) -> None:
    with redirecting(world.bao.ca.server("elsewhere", ["vault.example"], tmp_path), world.bao.url) as address:
        with world.head(address=address) as head, pytest.raises(VaultDenied) as refused:
            head.list_grants()
        assert refused.value.rule == "vault.tls"


@pytest.mark.parametrize("ca_file", ["", "/nonexistent/ca.crt"])
def test_without_a_ca_nothing_is_sent(world: World, ca_file: str) -> None:
    with pytest.raises(ConfigError):
        world.head(ca_file=ca_file).list_grants()


def test_plain_http_is_never_spoken(world: World) -> None:
    with pytest.raises(ConfigError):
        world.head(address=world.bao.url.replace("https", "http"))


@pytest.mark.parametrize(
    "common_name",
    ["x1", "head"],
)
def test_a_certificate_with_a_name_that_is_not_a_nodes_is_refused(world: World, common_name: str) -> None:
    with world.node(common_name) as node, pytest.raises(VaultDenied) as refused:
        node.read_grant("1")
    assert refused.value.rule == "vault.login"


def test_a_certificate_of_another_ca_is_refused(world: World, tmp_path: Path) -> None:
    CA(tmp_path / "stranger", "nodes").client("n1", tmp_path)
    vault = attrs.evolve(
        world.vault,
        node=attrs.evolve(world.vault.node, certificate=f"{tmp_path}/%n.crt", private_key=f"{tmp_path}/%n.key"),
    )
    with VaultNode.from_site(vault, "n1") as node, pytest.raises(VaultDenied) as refused:
        node.read_grant("1")
    assert refused.value.rule == "vault.login"


def test_a_server_certificate_of_the_nodes_ca_cannot_log_in(world: World, tmp_path: Path) -> None:
    world.node_ca.server("n1", ["n1"], tmp_path)
    node = attrs.evolve(world.vault.node, certificate=f"{tmp_path}/%n.crt", private_key=f"{tmp_path}/%n.key")
    with VaultNode.from_site(attrs.evolve(world.vault, node=node), "n1") as client, pytest.raises(SecureSlurmError):
        client.read_grant("1")


def test_a_node_without_its_certificate_is_a_matter_of_configuration(world: World, tmp_path: Path) -> None:
    node = attrs.evolve(world.vault.node, certificate=f"{tmp_path}/%n.crt")
    with VaultNode.from_site(attrs.evolve(world.vault, node=node), "n1") as client, pytest.raises(ConfigError):
        client.read_grant("1")


def test_a_wrong_secret_id_is_refused_and_not_repeated(world: World, tmp_path: Path) -> None:
    secret_id_file = tmp_path / "secret-id"
    secret_id_file.touch(mode=0o600)
    secret_id_file.write_text("00000000-1111-2222-3333-444444444444")
    head = world.head(head=attrs.evolve(world.vault.head, secret_id_file=str(secret_id_file)))
    with head, pytest.raises(VaultDenied) as refused:
        head.list_grants()
    assert refused.value.rule == "vault.login"
    assert "44444444" not in everything_said(refused.value)


@pytest.mark.parametrize("content", ["", "two words", "a\x00b", "\xff"])
def test_a_damaged_secret_id_file_is_not_sent(world: World, tmp_path: Path, content: str) -> None:
    secret_id_file = tmp_path / "secret-id"
    secret_id_file.touch(mode=0o600)
    secret_id_file.write_bytes(content.encode("latin-1"))
    head = world.head(head=attrs.evolve(world.vault.head, secret_id_file=str(secret_id_file)))
    with head, pytest.raises(ConfigError):
        head.list_grants()


def test_a_secret_id_that_all_can_read_is_not_used(world: World, tmp_path: Path) -> None:
    shutil.copy(world.vault.head.secret_id_file, tmp_path / "secret-id")
    (tmp_path / "secret-id").chmod(0o644)
    head = world.head(head=attrs.evolve(world.vault.head, secret_id_file=str(tmp_path / "secret-id")))
    with head, pytest.raises(ConfigError, match="open to all"):
        head.list_grants()


@pytest.mark.parametrize("who", ["head", "node"])
def test_a_token_that_has_ended_is_replaced_by_a_new_login(world: World, who: str) -> None:
    key = new_key()
    with world.head() as head, world.node("n1") as node:
        head.create_key(key)
        node.data_key(key)
        client: VaultHead | VaultNode = head if who == "head" else node
        ended = token_of(client)
        world.bao.request("POST", "auth/token/revoke", {"token": ended})
        assert head.key_exists(key)
        assert len(node.data_key(key)[0]) == 64
        assert token_of(client) not in {"", ended}


def test_a_token_near_its_end_is_replaced_before_it_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.head() as head:
        head.list_grants()
        first = token_of(head)
        head.list_grants()
        assert token_of(head) == first
        head._session._renew_at = 0.0
        head.list_grants()
        assert token_of(head) != first


def test_what_is_denied_stays_denied_after_the_new_login(world: World) -> None:
    with world.head() as head, world.node("n2") as node:
        key = new_key("n1")
        head.create_key(key)
        for _ in range(3):
            with pytest.raises(VaultDenied) as denied:
                node.data_key(key)
            assert denied.value.rule == "vault.denied"


def test_closing_revokes_the_token(world: World) -> None:
    head = world.head()
    head.list_grants()
    token = token_of(head)
    assert world.bao.status("POST", "auth/token/lookup", {"token": token})[0] == 200
    head.close()
    assert world.bao.status("POST", "auth/token/lookup", {"token": token})[0] == 403
    # and it can be used again
    head.list_grants()
    head.close()


def test_the_environment_lends_no_token_address_or_proxy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mute: str
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", world.bao.root_token)
    monkeypatch.setenv("VAULT_ADDR", mute)
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, mute.replace("https", "http"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".vault-token").write_text(world.bao.root_token)
    (tmp_path / ".netrc").write_text("default login root password root")
    with world.node("n2") as node, world.head() as head:
        key = new_key("n1")
        head.create_key(key)
        # root could
        with pytest.raises(VaultDenied):
            node.data_key(key)
        assert token_of(node) not in {"", world.bao.root_token}
        assert token_of(head) != world.bao.root_token


def test_a_redirect_is_not_followed(world: World, tmp_path: Path) -> None:
    """A server that sends the client elsewhere does not get the token sent there."""
    with redirecting(world.bao.ca.server("redirecting", ["127.0.0.1"], tmp_path), world.bao.url) as address:
        head = world.head(address=address)
        with pytest.raises(BackendUnavailable, match="redirects"):
            head.list_grants()


def failures(world: World, mute: str) -> list[Callable[[], object]]:
    """Acts that fail in every way, by clients that hold a token."""
    head, node = world.head(), world.node("n1")
    key, others = new_key("n1"), new_key("n2")
    head.create_key(key)
    head.create_key(others)
    _, wrapped = node.data_key(key)
    lost = world.head()
    lost.list_grants()
    lost._session._timeout = 0.2
    lost._session._address = mute
    lost._session._close_idle()
    return [
        lambda: node.data_key(others),
        lambda: node.unwrap(key, wrapped[:-4] + "AAA="),
        lambda: head.allow_deletion(new_key()),
        lost.list_grants,
        lambda: lost._session.call("use a broken client", lambda client: client.adapter.get("/v1/x", timeout=1e-9)),
    ]


def test_an_error_never_says_or_holds_a_secret(
    world: World, mute: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [world.bao.root_token, Path(world.vault.head.secret_id_file).read_text().strip()]
    said = []
    for act in failures(world, mute):
        with pytest.raises(SecureSlurmError) as raised:
            act()
        # neither does the chain of causes drag the request along, for a debugger or an error collector to dump
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None or raised.value.__suppress_context__
        assert not hasattr(raised.value.__context__, "request")
        said.append(everything_said(raised.value))
    client = world.head()
    client.list_grants()
    secrets.append(token_of(client))
    said += [caplog.text, *capfd.readouterr(), repr(client), repr(vars(client)), repr(client._session)]
    for secret in secrets:
        assert secret
        assert not [text for text in said if secret in text]


def test_the_data_key_is_in_no_log_and_no_audit_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = new_key()
    with world.head() as head, world.node("n1") as node:
        head.create_key(key)
        secret, wrapped = node.data_key(key)
        again = node.unwrap(key, wrapped)
        raw = bytes(secret.reveal())
        assert bytes(again.reveal()) == raw
        head.delete_key(key)
    logs = world.bao.audit_log.read_bytes() + world.bao.server_log.read_bytes() + caplog.text.encode()
    assert key.encode() in logs
    for form in (raw, raw.hex().encode(), base64.b64encode(raw), base64.b64encode(raw)[:40], wrapped.encode()):
        assert form not in logs


def test_threads_share_one_login(world: World) -> None:
    def logins() -> int:
        # the log has a line for the request and one for its answer
        return world.bao.audit_log.read_bytes().count(b'"path":"auth/approle/login"')

    with world.head() as head:
        before = logins()
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(head.key_exists, [new_key() for _ in range(32)])) == [False] * 32
        assert logins() - before == 2
