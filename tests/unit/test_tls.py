"""Finding and reading PEM material."""

from pathlib import Path

import pytest

from common.config.layout import layout_of
from common.config.settings import Security, Settings
from common.errors import JobletError, Reason
from common.tls import PEM_BYTES_MAX, read_pem, server_material

CERT = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----\n"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    """A file with this text and mode."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_value_is_pem_text_or_a_path(tmp_path: Path) -> None:
    """Both forms give the same bytes."""
    assert read_pem(CERT, "certificate") == CERT.encode()
    assert read_pem(str(written(tmp_path / "a.crt", CERT, 0o644)), "certificate") == CERT.encode()


@pytest.mark.threat("D31")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """With the repair in the text."""
    path = written(tmp_path / "server.key", KEY, mode)
    with pytest.raises(JobletError) as caught:
        read_pem(str(path), "server key")
    assert caught.value.reason is Reason.PRECONDITION
    assert caught.value.detail == f"chmod 600 {path}"


def test_what_is_no_pem_is_told_by_name_and_path(tmp_path: Path) -> None:
    """Missing, empty, too large, not PEM, a directory, a NUL in the path."""
    big = written(tmp_path / "big", "x" * (PEM_BYTES_MAX + 1))
    plain = written(tmp_path / "plain", "hello")
    for value, words in (
        (str(tmp_path / "none"), "no server key at"),
        ("", "no server key given"),
        (str(big), "larger than"),
        (str(plain), "no PEM block"),
        (str(tmp_path), "cannot read"),
        ("a\0b", "cannot read"),
    ):
        with pytest.raises(JobletError, match=words):
            read_pem(value, "server key")


@pytest.mark.requirement("S0.37")
def test_server_material_comes_from_settings_or_from_the_base_directory(tmp_path: Path) -> None:
    """`security` wins; else {base}/certs."""
    settings = Settings()
    layout = layout_of(settings)._replace(certs=tmp_path / "certs")
    for name, text in (("server.crt", CERT), ("server.key", KEY), ("ca.crt", CERT)):
        written(layout.certs / name, text)
    material = server_material(settings, layout)
    assert (material.cert, material.key, material.ca) == (CERT.encode(), KEY.encode(), CERT.encode())

    other = CERT.replace("AAAA", "CCCC")
    own = Settings(security=Security(server_cert=other))
    assert server_material(own, layout).cert == other.encode()
    with pytest.raises(JobletError, match="no private key"):
        server_material(Settings(security=Security(server_key=CERT)), layout)


@pytest.mark.parametrize(
    "encrypted",
    [
        KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
        KEY.replace("PRIVATE", "RSA PRIVATE").replace(
            "BBBB", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nBBBB"
        ),
    ],
)
def test_an_encrypted_key_is_told_of(tmp_path: Path, encrypted: str) -> None:
    """Both forms, as text and as a file: a service has nobody to type a passphrase."""
    layout = layout_of(Settings())
    file = written(tmp_path / "server.key", encrypted)
    for value in (encrypted, str(file)):
        settings = Settings(security=Security(server_cert=CERT, server_key=value, ca_cert=CERT))
        with pytest.raises(JobletError, match="the server key is encrypted") as caught:
            server_material(settings, layout)
        assert "openssl pkey" in caught.value.detail
