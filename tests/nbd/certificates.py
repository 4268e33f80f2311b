"""Certificates that openssl makes: an authority, a server, a client, and a client of somebody else's authority."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def _openssl(*words: object, folder: Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make_authority(folder: Path) -> None:
    """An authority: ca-key.pem, ca-cert.pem."""
    folder.mkdir()
    _openssl(
        "req", "-x509", *NEW_KEY, "-days", 30, "-subj", f"/CN=authority {folder.name}",
        "-keyout", "ca-key.pem", "-out", "ca-cert.pem", folder=folder,
    )  # fmt: skip


def make_certificate(authority: Path, folder: Path, kind: str) -> None:
    """A certificate for localhost: KIND-key.pem and KIND-cert.pem, and the authority's ca-cert.pem."""
    folder.mkdir(exist_ok=True)
    shutil.copy(authority / "ca-cert.pem", folder)
    (folder / "extensions").write_text(
        f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={kind}Auth\nkeyUsage=digitalSignature\n"
    )
    _openssl(
        "req", *NEW_KEY, "-subj", f"/CN={kind}", "-keyout", f"{kind}-key.pem", "-out", "request",
        folder=folder,
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", "request", "-CA", authority / "ca-cert.pem", "-CAkey", authority / "ca-key.pem",
        "-CAcreateserial", "-days", 30, "-extfile", "extensions", "-out", f"{kind}-cert.pem", folder=folder,
    )  # fmt: skip


def revoke(authority: Path, certificate: Path, folder: Path) -> None:
    """Puts into a folder the list, ca-crl.pem, by which the authority revokes a certificate."""
    (authority / "index").touch()
    (authority / "config").write_text(
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ndefault_md=sha256\ndefault_crl_days=30\n"
    )
    of = ["-config", "config", "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem"]
    _openssl("ca", *of, "-revoke", certificate, folder=authority)
    _openssl("ca", *of, "-gencrl", "-out", folder / "ca-crl.pem", folder=authority)
