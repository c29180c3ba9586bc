"""Between `llm pull` and the hub: certificates, proxies, sockets; and beside it: other processes, and disks that are not ours."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import random_model
from fakehub import FakeHub, Fault, fakehub
from pulling import REPOSITORY, Puller, imported, pull, sharded, start, tensors_of, variables

__all__ = ["fakehub", "pull"]

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_model.write_folder(tmp_path / "source")


# Certificates


class Authority:
    """A certificate authority of this test."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.file = folder, folder / "ca.pem"
        self.openssl("req", "-x509", "-newkey", "ec:prime256v1", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")

    def openssl(self, *words: str) -> None:
        (self.folder / "prime256v1").write_text("")
        command = ["openssl", *(word.replace("ec:prime256v1", "ec") for word in words)]
        if "ec" in command:
            command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=20)

    def context(self, name: str = "IP:127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """What a server with a certificate for this name needs; valid for `days` from now, before which it has run out if negative."""
        (self.folder / "more").write_text(f"subjectAltName={name}\n")
        self.openssl("req", "-newkey", "ec:prime256v1", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=hub")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "more", "-days", str(days)]
        self.openssl("x509", "-req", "-in", "server.csr", *signing, "-out", "server.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    return Authority(tmp_path / "authority")


def test_a_certificate_of_ones_own(pull: Puller, authority: Authority, folder: Path, tmp_path: Path) -> None:
    with FakeHub(authority.context()) as hub:
        hub.add(REPOSITORY, folder)
        pull.hub = hub
        assert hub.url.startswith("https:") and pull(REPOSITORY, SSL_CERT_FILE=str(authority.file)) == 0, pull.err
        assert tensors_of(pull.path()) == imported(folder, tmp_path)


@pytest.mark.parametrize("fault", ["unknown", "name", "expired"])
def test_a_bad_certificate_is_refused(pull: Puller, authority: Authority, folder: Path, fault: str) -> None:
    context = authority.context("DNS:elsewhere.example" if fault == "name" else "IP:127.0.0.1", -1 if fault == "expired" else 2)
    with FakeHub(context) as hub:
        hub.add(REPOSITORY, folder)
        pull.hub = hub
        trusted = {} if fault == "unknown" else {"SSL_CERT_FILE": str(authority.file)}
        line = pull.error(5, REPOSITORY, HF_TOKEN="hf_secret", **trusted)
        reason = {"unknown": "unable to get local issuer", "name": "127.0.0.1", "expired": "expired"}[fault]
        assert "certificate is not valid" in line and reason in line and "SSL_CERT_FILE" in line
        assert hub.requests == []


# Proxies


class Proxy:
    """Passes CONNECT and plain requests on, and keeps their first lines and headers."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._pass, args=(self._socket.accept()[0],), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.seen.append(head.decode())
        found = re.match(rb"CONNECT ([\d.]+):(\d+)|GET http://([\d.]+):(\d+)", head)
        assert found
        server = socket.create_connection((found[1] or found[3], int(found[2] or found[4])))
        if found[1]:
            client.sendall(b"HTTP/1.1 200 connected\r\n\r\n")
        else:
            server.sendall(re.sub(rb"^GET http://[\d.:]+", b"GET ", head))
        with contextlib.suppress(OSError), client, server:
            while True:
                for ready in select.select([client, server], [], [], 10)[0]:
                    if not (data := ready.recv(65536)):
                        return
                    (server if ready is client else client).sendall(data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


def test_a_proxy_sees_addresses_only(pull: Puller, proxy: Proxy, authority: Authority, folder: Path, tmp_path: Path) -> None:
    with FakeHub(authority.context()) as hub:
        hub.add(REPOSITORY, folder, gated=True)
        pull.hub = hub
        more = {"https_proxy": proxy.url, "no_proxy": "", "SSL_CERT_FILE": str(authority.file), "HF_TOKEN": hub.token}
        assert pull(REPOSITORY, **more) == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)
    assert proxy.seen and all(head.startswith("CONNECT ") and "hf_right" not in head for head in proxy.seen)


def test_a_proxy_that_is_not_there(pull: Puller, fakehub: FakeHub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    more = {"https_proxy": f"http://user:secret@127.0.0.1:{port}", "no_proxy": "", "HF_ENDPOINT": "https://hub.example"}
    line = pull.error(5, REPOSITORY, **more)
    assert (
        f'https://hub.example through the proxy "127.0.0.1:{port}": Connection refused' in line
        and "secret" not in line
        and fakehub.requests == []
    )


# Sockets


def sockets(tmp_path: Path, words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """(exit code, what strace saw of the network) of a command."""
    log = tmp_path / "strace.log"
    # A family name in the filter would still let others through: all of `socket`, and what is local (AF_UNIX) is left out below.
    command = ["strace", "-f", "-qq", "-e", "trace=socket,connect", "-o", str(log), sys.executable, "-m", "llmcli", *words]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, "".join(line for line in log.read_text().splitlines(True) if "AF_INET" in line)


@needs_strace
def test_what_is_here_opens_no_socket(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, folder)
    assert pull(REPOSITORY) == 0, pull.err
    env = variables(fakehub, pull.home, LLMCLI_KERNELS=os.environ.get("LLMCLI_KERNELS", str(tmp_path / "kernels")))
    seen = sockets(tmp_path, ["pull", "org/other"], env)
    assert seen[0] == 4 and seen[1], "strace would see a connection"
    assert sockets(tmp_path, ["pull", REPOSITORY], env) == (0, "")
    assert sockets(tmp_path, ["run", "-m", REPOSITORY, "--device", "reference", "-n", "2", "a"], env) == (0, "")
    assert sockets(tmp_path, ["pull", "--offline", "org/other"], env) == (4, "")


# Other processes


def test_a_frozen_process_is_not_waited_for_for_ever(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, folder)
    fakehub.fault = Fault("slow", amount=40_000)
    first = start(fakehub, pull.home, REPOSITORY)
    try:
        deadline = time.monotonic() + 30
        while fakehub.sent < 20_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        line = pull.error(7, REPOSITORY, "--timeout", "0.5")
        assert f"process {first.pid} is still at work" in line and "--timeout" in line
        assert f"process {first.pid} is getting this model: waiting for it" in pull.err
        assert 0.5 <= time.monotonic() - begun < 5
    finally:
        first.kill()
        first.communicate()
    fakehub.fault = Fault("none")
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)


# Disks


def test_a_place_that_cannot_be_written(fakehub: FakeHub, folder: Path, tmp_path: Path) -> None:
    fakehub.add(REPOSITORY, folder)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    command = [sys.executable, "-m", "llmcli", "pull", REPOSITORY]
    if os.geteuid() == 0:  # who may write everywhere, until this is taken away
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not installed")
        command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command]
    try:
        done = subprocess.run(command, env=variables(fakehub, home), capture_output=True, text=True, timeout=60)
    finally:
        home.chmod(0o755)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("llm: error: ") and str(home) in line and "Traceback" not in done.stderr
    assert not any(home.iterdir())


@pytest.mark.parametrize("name", ["with spaces", "mit Umläuten und 漢字", "quote ' \" $HOME", "n" * 250])
def test_odd_names_of_folders(pull: Puller, fakehub: FakeHub, folder: Path, tmp_path: Path, name: str) -> None:
    pull.home = tmp_path / name
    fakehub.add(REPOSITORY, folder)
    assert pull(REPOSITORY) == 0, pull.err
    assert tensors_of(pull.path()) == imported(folder, tmp_path)


def test_models_on_another_disk_through_a_link(pull: Puller, fakehub: FakeHub, tmp_path: Path) -> None:
    """Neither links nor renames between file systems are needed: downloads and models may lie on different ones."""
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    place = other / f"llm-test-{os.getpid()}"
    place.mkdir()
    try:
        pull.home.mkdir()
        (pull.home / "data").symlink_to(place)
        source = sharded(tmp_path / "source", 3)
        fakehub.add(REPOSITORY, source)
        assert pull(REPOSITORY) == 0, pull.err
        assert tensors_of(pull.path()) == imported(source, tmp_path)
    finally:
        shutil.rmtree(place)
