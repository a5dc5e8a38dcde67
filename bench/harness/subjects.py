"""The relays that are compared: how each is started, and how one knows that it is ready."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from harness import install

# In the order of tables. `direct` is no relay: load straight to a decode engine.
NAMES = [
    "direct", "nginx", "haproxy", "nginx-mirror", "floor", "floor-serial",
    "vllm-router", "vllm-router-read", "moriio-write", "moriio-read",
]
LIMIT = 1 << 30


@dataclass
class Engines:
    """Addresses of the engines behind a subject."""

    prefill: list[int]
    decode: list[int]


@dataclass
class Kit:
    """The programs, found or made as they are first needed."""

    binary: Path | None = None
    profile: str = "release"
    found: dict[str, Path] = field(default_factory=dict)

    def get(self, name: str) -> Path:
        if name not in self.found:
            self.found[name] = self._find(name)
        return self.found[name]

    def _find(self, name: str) -> Path:
        if name == "moriio-proxy" and self.binary:
            return self.binary
        if name in ("moriio-proxy", "moriio-bench"):
            return install.build(name, self.profile)
        return install.router() if name == "vllm-router" else install.program(name)

    def versions(self) -> dict[str, str]:
        """Of what was used."""
        asked = {
            "moriio-proxy": (["--version"], r"moriio-proxy (\S+)"),
            "nginx": (["-v"], r"nginx/(\S+)"),
            "haproxy": (["-v"], r"version (\S+)"),
            "perf": (["--version"], r"perf version (\S+)"),
            "valgrind": (["--version"], r"valgrind-(\S+)"),
        }
        known = {name: install.version([str(path), *asked[name][0]], asked[name][1])
                 for name, path in self.found.items() if name in asked}
        if "vllm-router" in self.found:
            pip = self.found["vllm-router"].parent / "pip"
            known["vllm-router"] = install.version([str(pip), "show", "vllm-router"], r"Version: (\S+)")
        return known


@dataclass
class Command:
    """A subject's command line, and where it takes requests and registrations."""

    line: list[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    mode: str | None = None
    registration: int | None = None


def command(kit: Kit, name: str, engines: Engines, ports: list[int], folder: Path, workers: int = 1) -> Command:
    """How to start a subject. `ports` are free; `workers` are this proxy's."""
    port = ports[0]
    if name.startswith("nginx"):
        return _nginx(kit, name, engines, port, folder)
    if name == "haproxy":
        return _haproxy(kit, engines, port, folder)
    if name.startswith("floor"):
        line = [str(kit.get("moriio-bench")), "floor", "--port", str(port)]
        line += [f"--prefill=127.0.0.1:{port}" for port in engines.prefill]
        line += [f"--decode=127.0.0.1:{port}" for port in engines.decode]
        return Command(line + (["--serial"] if name == "floor-serial" else []), port)
    mode = "read" if name.endswith("-read") else "write"
    if name.startswith("vllm-router"):
        line = [str(kit.get("vllm-router")), *shlex.split(
            f"--vllm-pd-disaggregation --kv-connector moriio --vllm-discovery-address 127.0.0.1:{ports[1]} "
            f"--host 127.0.0.1 --port {port} --prometheus-port {ports[2]} --policy round_robin")]
        return Command(line, port, mode=mode, registration=ports[1])
    line = [str(kit.get("moriio-proxy")), *shlex.split(
        f"serve --host 127.0.0.1 --port {port} --ping-port {ports[1]} --decode-token-budget exact "
        f"--max-body-bytes {LIMIT} --expect-prefill {len(engines.prefill)} --expect-decode {len(engines.decode)} --workers {workers}")]
    return Command(line, port, mode=mode, registration=ports[1])


def _nginx(kit: Kit, name: str, engines: Engines, port: int, folder: Path) -> Command:
    """One worker a core, connections kept, no log, no answer buffered."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    temporary = "\n".join(f"{kind}_temp_path {place}/{kind};"
                          for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))

    def upstream(role: str, ports: list[int]) -> str:
        servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
        return f"upstream {role} {{ {servers} keepalive 1024; keepalive_requests 100000000; }}"

    mirror = name == "nginx-mirror"
    locations = "location / { mirror /mirror; proxy_pass http://decode; }\n" \
        "location = /mirror { internal; proxy_pass http://prefill$request_uri; }" if mirror \
        else "location / { proxy_pass http://decode; }"
    (place / "nginx.conf").write_text(f"""
daemon off;
user root;
worker_processes auto;
worker_rlimit_nofile 20000;
pid {place}/pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    {temporary}
    client_max_body_size {LIMIT};
    client_body_buffer_size 1m;
    keepalive_requests 100000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_read_timeout 3600s;
    {upstream("prefill", engines.prefill)}
    {upstream("decode", engines.decode)}
    server {{ listen 127.0.0.1:{port} backlog=4096; {locations} }}
}}
""")
    program = kit.get("nginx")
    line = [str(program), "-p", str(place), "-c", str(place / "nginx.conf"), "-e", "stderr"]
    return Command(line, port, install.libraries(program))


def _haproxy(kit: Kit, engines: Engines, port: int, folder: Path) -> Command:
    """As many threads as cores, which is its default. Without http-no-delay it would hold chunks back."""
    servers = "\n".join(f"    server decode{port} 127.0.0.1:{port}" for port in engines.decode)
    place = folder / "haproxy.cfg"
    place.write_text(f"""
global
    maxconn 9000
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
    http-reuse always
    option http-no-delay
frontend clients
    bind 127.0.0.1:{port}
    default_backend decode
backend decode
    balance roundrobin
{servers}
""")
    program = kit.get("haproxy")
    return Command([str(program), "-db", "-f", str(place)], port, install.libraries(program))
