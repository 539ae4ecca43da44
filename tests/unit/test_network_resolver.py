"""Which name servers a job is told."""

from pathlib import Path

import pytest

from common.errors import JobletError
from services.executor.network import resolver

HOST = """# made by hand
search example.org
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver 2001:db8::53
nameserver 169.254.169.253
nameserver
options edns0 trust-ad
sortlist 10.0.0.0
"""


def test_a_job_is_told_what_it_can_reach() -> None:
    """Servers of the host itself, of IPv6 and of blocked networks are left out; search and options stay."""

    def reachable(server: resolver.Server) -> bool:
        return not (server.is_loopback or server.is_link_local)

    expected = "search example.org\noptions edns0 trust-ad\nnameserver 192.0.2.53\n"
    assert resolver.conf_of_bridge(HOST, (), reachable) == expected
    assert resolver.conf_of_bridge("nameserver 127.0.0.1\n", (), reachable) == ""


def test_the_setting_comes_first() -> None:
    """With `dns` set the host's servers do not count; more than the C library reads are left out."""
    answer = resolver.conf_of_bridge(HOST, ("9.9.9.9", "1.1.1.1", "8.8.8.8", "8.8.4.4"), lambda _: True)
    assert resolver.servers_of(answer) == ["9.9.9.9", "1.1.1.1", "8.8.8.8"]
    assert answer.startswith("search example.org\n")


@pytest.mark.parametrize("text", ["", "2001:db8::53", "dns.example.org", "9.9.9.9\nnameserver 6.6.6.6"])
def test_a_wrong_server_is_refused_by_name(text: str) -> None:
    """The setting cannot hold anything but addresses."""
    with pytest.raises(JobletError, match=r"joblet\.networks\.dns"):
        resolver.parse_servers(("9.9.9.9", text))


def test_behind_a_local_stub_are_the_servers_of_systemd(tmp_path: Path) -> None:
    """Where the host asks itself, the file with the servers behind counts, if there is one."""
    host, systemd = tmp_path / "resolv.conf", tmp_path / "systemd.conf"
    assert resolver.read_upstream(str(host), str(systemd)) == ""
    host.write_text("nameserver 127.0.0.53\n")
    assert resolver.read_upstream(str(host), str(systemd)) == "nameserver 127.0.0.53\n"
    systemd.write_text("nameserver 192.0.2.53\n")
    assert resolver.read_upstream(str(host), str(systemd)) == "nameserver 192.0.2.53\n"
    host.write_text("nameserver 127.0.0.53\nnameserver 198.51.100.53\n")
    assert resolver.read_upstream(str(host), str(systemd)) == host.read_text()


def test_an_endless_file_is_read_to_its_bound(tmp_path: Path) -> None:
    """Bytes that are no text do no harm."""
    (tmp_path / "resolv.conf").write_bytes(b"nameserver 192.0.2.1\n\xff\n" + b"#" * 10**6)
    text = resolver.read_host(str(tmp_path / "resolv.conf"))
    assert len(text) <= resolver.READ_BYTES_MAX
    assert resolver.servers_of(text) == ["192.0.2.1"]


def test_own_addresses_are_known() -> None:
    """Loopback is this host's, a documentation address is not."""
    assert resolver.is_own_address(resolver.Server("127.0.0.1"))
    assert not resolver.is_own_address(resolver.Server("203.0.113.77"))
