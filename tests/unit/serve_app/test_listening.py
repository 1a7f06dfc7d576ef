import pytest

from serve_app.listening import OpenToAll, is_loopback, refuse_open
from serve_app.settings import ApiSettings


@pytest.mark.parametrize(("key", "allow_open", "is_good"), [("", False, False), ("a", False, True), ("", True, True)])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_a_server_beyond_this_machine_needs_a_key_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, host: str, key: str, allow_open: bool, is_good: bool
) -> None:
    monkeypatch.setenv("ACESTEP_API_KEY", key)
    settings = ApiSettings(allow_open=allow_open)
    if is_good:
        refuse_open(host, settings)
    else:
        with pytest.raises(OpenToAll, match="no key is set"):
            refuse_open(host, settings)


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *[(host, True) for host in (None, "localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")],
        *[(host, False) for host in ("", "0.0.0.0", "::", "server.example", "10.0.0.1")],
    ],
)
def test_what_listens_on_loopback_is_reached_from_here_only(host: str | None, only_here: bool) -> None:
    assert is_loopback(host) is only_here


def test_the_v1_apis_own_port_is_not_open_to_all_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACESTEP_API_KEY", raising=False)
    refuse_open("127.0.0.1", ApiSettings(v1_host="0.0.0.0"))  # where there is no such port
    with pytest.raises(OpenToAll, match=r"api\.v1_host: 127"):
        refuse_open("127.0.0.1", ApiSettings(v1_host="0.0.0.0", v1_port=8019))
    refuse_open("127.0.0.1", ApiSettings(v1_host="0.0.0.0", v1_port=8019, allow_open=True))
