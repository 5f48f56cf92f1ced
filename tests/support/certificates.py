"""Certificates that tests make with the `openssl` command: a CA, another one, and what the first has signed."""

from __future__ import annotations

import subprocess
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Certificates:
    """A folder of a CA, another one, and what the first has signed."""

    def __init__(self, folder: Path):
        self._folder = folder
        for name in ("ca", "other"):
            self._openssl(
                "req", "-x509", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"
            )
        self.sign("good", "DNS:localhost,IP:127.0.0.1")
        self.sign("elsewhere", "DNS:elsewhere")
        self.sign("expired", "IP:127.0.0.1", days=-1)

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def server(self, name: str) -> dict[str, str]:
        """`tls` of a server's configuration."""
        return {"cert": self.path(f"{name}.pem"), "key": self.path(f"{name}.key")}

    def sign(self, name: str, names: str, days: int = 2) -> None:
        extensions = self._folder / "extensions"
        extensions.write_text(f"subjectAltName={names}\n")
        self._openssl("req", *NEW_KEY, "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={name}")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", extensions.name)
        self._openssl("x509", "-req", "-in", "request", *signer, "-days", str(days), "-out", f"{name}.pem")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True, timeout=30)
