"""Where callers may have this server send something, and where not."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve_app.outbound import ForbiddenAddress, Outbound, Rules
from tests.receiver import NAME, Receiver, receiving

STRICT = Rules()
LOCAL = Rules(http_hosts=frozenset({NAME, "127.0.0.1"}), allows_private=True)
NEVER = [
    "0.0.0.0",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "ff02::1",
    "::7f00:1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
]
PRIVATE = ["127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "::1", "fd00::1", "::ffff:10.0.0.1"]
PUBLIC = ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


class Names:
    """A name server that answers each question with the next of its answers, and is asked no more than that often."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self._answers.pop(0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
async def system() -> AsyncIterator[Outbound]:
    outbound = Outbound(LOCAL)
    yield outbound
    outbound.close()


def url_of(receiver: Receiver, host: str = NAME, scheme: str = "http") -> str:
    return f"{scheme}://{host}:{receiver.port}/hook"


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_called(address: str) -> None:
    for rules in (STRICT, LOCAL):
        with pytest.raises(ForbiddenAddress, match="is not an address of the public internet"):
            rules.check_address(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_called_where_the_operator_says_so(address: str) -> None:
    with pytest.raises(ForbiddenAddress):
        STRICT.check_address(ipaddress.ip_address(address))
    LOCAL.check_address(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_called(address: str) -> None:
    STRICT.check_address(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.com/hook", "allowed is https$"),
        ("ftp://example.com/hook", "allowed is https"),
        ("//example.com/hook", "allowed is https"),
        ("https:///hook", "allowed is https://HOST:PORT/PATH"),
        ("https://anna:swordfish@example.com/", "without a user and a password"),
        ("https://127.0.0.1/", "not an address of the public internet"),
        ("https://[::ffff:127.0.0.1]/", "not an address of the public internet"),
        ("https://[::1]:8265/", "not an address of the public internet"),
        ("https://example.com:99999/", "allowed is https://HOST:PORT/PATH"),
        ("https://exa\nmple.com/", "is no URL"),
        ("https://example.com/" + "a" * 2048, "a URL of 2068 characters"),
    ],
)
def test_a_url_that_can_never_be_called_is_refused_at_once(url: str, told: str) -> None:
    with pytest.raises(ForbiddenAddress, match=told) as caught:
        STRICT.check_url(url)
    assert "swordfish" not in str(caught.value)


def test_http_is_for_listed_hosts_only() -> None:
    rules = Rules(http_hosts=frozenset({"intranet.example"}))
    rules.check_url("http://intranet.example/hook")
    rules.check_url("https://example.com/hook")
    with pytest.raises(ForbiddenAddress, match=r"allowed is https, http to intranet\.example"):
        rules.check_url("http://example.com/hook")


async def test_a_message_arrives_under_the_name_it_was_sent_to(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"])
    assert await Outbound(LOCAL, names).post(url_of(receiver), "la", {"x-a": "b"}) == 204
    (received,) = receiver.received
    assert (received.path, received.body, received.headers["x-a"]) == ("/hook", b"la", "b")
    assert received.headers["host"] == f"{NAME}:{receiver.port}"
    assert names.asked == [(NAME, receiver.port)]


async def test_the_system_is_asked_for_names_and_knows_numbers(system: Outbound, receiver: Receiver) -> None:
    assert await system.post(url_of(receiver, "127.0.0.1"), "la", {}) == 204


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1%1"], ["169.254.169.254"]]
)
async def test_a_name_that_leads_inside_is_not_called(receiver: Receiver, answer: list[str]) -> None:
    rules = Rules(http_hosts=frozenset({NAME}))
    with pytest.raises(ForbiddenAddress):
        await Outbound(rules, Names(answer)).post(url_of(receiver), "la", {})
    assert receiver.received == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
async def test_other_spellings_of_this_host_are_not_called(receiver: Receiver, host: str) -> None:
    outbound = Outbound(Rules(http_hosts=frozenset({host})))
    with pytest.raises((ForbiddenAddress, OSError)):
        await outbound.post(url_of(receiver, host), "la", {})
    outbound.close()
    assert receiver.received == []


async def test_a_name_that_changes_after_the_check_changes_nothing(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    outbound = Outbound(LOCAL, names)
    assert await outbound.post(url_of(receiver), "la", {}) == 204
    assert len(names.asked) == 1
    with pytest.raises(ForbiddenAddress):
        await outbound.post(url_of(receiver), "la", {})
    assert len(receiver.received) == 1


async def test_an_address_that_does_not_answer_is_followed_by_the_next(receiver: Receiver) -> None:
    assert await Outbound(LOCAL, Names(["127.0.0.2", "127.0.0.1"])).post(url_of(receiver), "la", {}) == 204
    with pytest.raises(httpx.ConnectError):
        await Outbound(LOCAL, Names([])).post(url_of(receiver), "la", {})


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.statuses = [302]
    assert await Outbound(LOCAL, Names(["127.0.0.1"])).post(url_of(receiver), "la", {}) == 302
    assert [received.path for received in receiver.received] == ["/hook"]


async def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await Outbound(LOCAL, Names(["127.0.0.1"])).post(url_of(receiver), "la", {}) == 204


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server that shows a certificate of this name, and a client that trusts whoever signed it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(today).not_valid_after(today + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=certificate.decode())


async def test_tls_is_with_the_name_although_the_connection_is_to_an_address(tmp_path: Path) -> None:
    server, client = certified(tmp_path, NAME)
    with receiving(server) as receiver:
        outbound = Outbound(LOCAL, Names(["127.0.0.1"]), client)
        assert await outbound.post(url_of(receiver, scheme="https"), "la", {}) == 204
    assert receiver.server_names == [NAME]


async def test_a_certificate_of_another_name_is_not_accepted(tmp_path: Path) -> None:
    server, client = certified(tmp_path, "elsewhere.test")
    with receiving(server) as receiver, pytest.raises(httpx.ConnectError, match="certificate"):
        await Outbound(LOCAL, Names(["127.0.0.1"]), client).post(url_of(receiver, scheme="https"), "la", {})
    assert receiver.received == []
