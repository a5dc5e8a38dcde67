"""Tables and plots from a run's JSON, so that they always say the same."""

from dataclasses import dataclass
from pathlib import Path

from harness import install, plots
from harness.figures import (
    Data, Figure, difference, failed_percent, late, part, per, per_chunk, per_exchange, spread, under_way,
)
from harness.subjects import NAMES
from harness.targets import TARGETS, added, grown, peak

BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


def _above_rest(sample: dict) -> float:
    return (sample["peak_kb"] - sample["resident_kb"]) / 1024


@dataclass
class Row:
    """One figure, for each subject."""

    label: str
    scene: str
    figure: Figure
    case: str = ""

    def cell(self, data: Data, subject: str) -> str:
        return spread(data.series(self.scene, subject, self.figure, self.case))


def _cases(scene: str, cases: list[str], label: str, figure: Figure) -> list[Row]:
    return [Row(label.format(case), scene, figure, case) for case in cases]


def _streams(scene: str, label: str) -> list[Row]:
    return [Row(f"{label}: {what}", scene, figure) for what, figure in (
        ("failed, %", failed_percent), ("gap p99, ms", late("p99")),
        ("longest gap, ms", late("longest")), ("CPU per chunk, µs", per_chunk))]


SIZES = ["1 MB", "20 MB", "200 MB"]
SECTIONS: dict[str, list[Row]] = {
    "CPU, µs": [
        Row("per exchange, 1 KB, 16 tokens, C=64", "exchange", per_exchange),
        Row("per chunk, streamed without delay, C=32", "chunk", per_chunk),
        Row("per chunk, one in 20 ms, C=64", "paced", per_chunk),
        Row("per exchange, 512 KB, C=16", "large", per_exchange),
        Row("per exchange, 4 MB of an agent's messages, C=8", "agents", per_exchange),
        Row("the engines' own, per exchange", "exchange", per("engines_cpu", "requests", 1e6)),
        Row("the engines' own, per chunk", "chunk", per("engines_cpu", "chunks", 1e6)),
        Row("the load's own, per exchange", "exchange", per("load_cpu", "requests", 1e6)),
        Row("the load's own, per chunk", "chunk", per("load_cpu", "chunks", 1e6)),
    ],
    "Streams": _streams("streams512", "512 of 20 ms") + _streams("streams2048", "2,048 of 100 ms")
    + [Row("64 of 20 ms: gap p99, ms", "paced", late("p99"))],
    "64 streams of 20 ms, a chunk from the engine's write to the client's read, ms": [
        Row(f"{label}, {what}", "stall", under_way(key), case)
        for case, what in (("0 MB", "alone"), ("20 MB", "while 20 MB bodies arrive"), ("200 MB", "while 200 MB bodies arrive"))
        for label, key in (("p99", "p99"), ("p99.9", "p999"), ("longest", "longest"))],
    "CPU per exchange by clients, µs":
        _cases("sweep", [f"C{count}" for count in (8, 16, 32, 64, 128, 256, 512)], "{}", per_exchange),
    "CPU per exchange by engines, µs":
        _cases("pool", ["1P1D", "2P2D", "4P4D", "16P16D", "16P16D dp 8"], "{}", per_exchange),
    "Saturation by threads that serve clients": [
        Row(f"{label}, --workers {count}", "workers", figure, f"{case}, --workers {count}")
        for case, label, figure in (
            ("exchange", "exchanges per second, C=256", per("requests", "seconds")), ("exchange", "CPU per exchange, µs", per_exchange),
            ("chunk", "chunks per second, C=64", per("chunks", "seconds")), ("chunk", "CPU per chunk, µs", per_chunk),
            ("exchange", "idle CPU meanwhile, %", part("idle", scale=100)))
        for count in (1, 2)],
    "Memory": [
        Row("at rest, four engines, MB", "static", part("resident_kb", scale=1 / 1024)),
        *_cases("memory", SIZES, "a prompt of {}, peak above rest, MB", _above_rest),
        Row("an idle stream, KB", "idle_streams", part("kb_each")),
        Row("streams open then", "idle_streams", part("open")),
        Row("with 10,000, extrapolated, MB", "idle_streams", part("mb_at_10000")),
    ],
    "Idle, start, size": [
        *_cases("idle", ["4 engines", "512 engines"], "{} pinging every 3 s, CPU ms per s", part("ms_per_s")),
        Row("start to the first 200 of /health, ms", "static", part("start_ms")),
        Row("the program, MB", "static", part("binary_bytes", scale=1 / 1048576)),
    ],
    "Counts": [
        Row("system calls per exchange", "counts", per("syscalls", "requests"), "exchange"),
        Row("system calls per chunk, no delay", "counts", per("syscalls", "chunks"), "chunk"),
        Row("system calls per chunk, 20 ms", "counts", per("syscalls", "chunks"), "paced"),
        Row("context switches per exchange", "counts", per("switches", "requests"), "exchange"),
        Row("context switches per chunk, no delay", "counts", per("switches", "chunks"), "chunk"),
        Row("context switches per chunk, 20 ms", "counts", per("switches", "chunks"), "paced"),
        *[Row(f"{label} per {unit}", "counts", part(key), case) for label, key in
          (("allocations", "allocations"), ("bytes allocated", "allocated_bytes"))
          for unit, case in (("exchange", "allocated, exchange"), ("chunk", "allocated, chunk"))],
    ],
}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _section(data: Data, rows: list[Row]) -> str:
    subjects = [name for name in NAMES if name in data.subjects({row.scene for row in rows})]
    cells = [[row.label, *(row.cell(data, name) for name in subjects)] for row in rows]
    # What has no figure for anybody was not measured.
    cells = [line for line in cells if any(cell != "–" for cell in line[1:])]
    used = [at for at in range(1, len(subjects) + 1) if any(line[at] != "–" for line in cells)]
    picked = [[line[0], *(line[at] for at in used)] for line in cells]
    return table(["", *(subjects[at - 1] for at in used)], picked) if picked else ""


def _first_output(data: Data) -> str:
    rows = []
    for name in NAMES[1:]:
        late = difference(data.series("ttft", name, part("first", "p99")), data.series("ttft", "direct", part("first", "p99")))
        if added(data, name):
            rows.append([name, spread(added(data, name)), spread(late)])
    return table(["added, µs", "p50", "p99"], rows) if rows else ""


def _growth(data: Data) -> str:
    rows = []
    for name in data.subjects({"stall"}):
        for case in ("20 MB", "200 MB"):
            if grown(data, name, case):
                rows.append([name, case, *(spread(grown(data, name, case, key)) for key in ("p99", "p999", "longest")),
                             *(spread(grown(data, name, case, beyond=other)) for other in ("direct", "floor"))])
    rows.sort(key=lambda row: (row[1], NAMES.index(row[0])))
    head = ["ms later", "bodies of", "p99", "p99.9", "longest", "p99.9 beyond direct's", "p99.9 beyond the floor's"]
    return table(head, rows) if rows else ""


def _peaks(data: Data) -> str:
    rows = [[name, spread(peak(data, name))] for name in NAMES if peak(data, name)]
    return table(["", "peak above rest by bodies in flight, 512 KB, C=16"], rows) if rows else ""


def page(result: dict) -> str:
    """The whole report."""
    data, machine = Data(result["samples"]), result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    text = [
        "# What it costs, measured\n",
        f"`{result['command']}` of {result['date']}, commit {result['commit']}, {result['seconds']} s. {machine['cores']} cores "
        f"of {machine['cpu']}, {machine['memory_mb']} MB, {machine['system']}, Linux {machine['kernel']}; {versions}.\n",
        "Medians of the rounds with their 95 % interval (all rounds where they are fewer than six); ratios are taken round by "
        "round.\n",
    ]
    if result["quick"]:
        text.append("**A quick run: rounds too short for a figure to be cited.**\n")
    text += [f"**Failed:** {failed}\n" for failed in result["failed"]]
    if data.void():
        text.append(f"{len(data.void())} rounds had under 15 % idle CPU: void for gaps between chunks, and left out there.\n")
    rows = [target.row(data) for target in TARGETS]
    text += ["## Targets\n", table(["Figure", "Measured", "Target", "Verdict"], rows)]
    text += ["![CPU by subject](cpu.svg)\n", "![CPU by clients](sweep.svg)\n"]
    sections = {title: _section(data, rows) for title, rows in SECTIONS.items()}
    sections |= {"Time to first output, one client": _first_output(data), "Memory of large bodies": _peaks(data),
                 "What large bodies add to a chunk's time under way": _growth(data)}
    text += [part for title, body in sections.items() if body for part in (f"## {title}\n", body)]
    why = {f"{one['subject']}: {one['why']}" for one in result["samples"] if one.get("why")}
    text += [f"Not counted: {one}.\n" for one in sorted(why)]
    return "\n".join(text)


def short(result: dict) -> str:
    """The table of the README."""
    data = Data(result["samples"])
    names = ["moriio-write", "moriio-read", "floor", "nginx-mirror", "vllm-router"]
    picked = [row for row in SECTIONS["CPU, µs"][:4]]
    rows = [[f"CPU {row.label}", *(row.cell(data, name) for name in names)] for row in picked]
    rows.append(["time added to first output, C=1", *(spread(added(data, name)) for name in names)])
    return table(["µs", *names], rows)


def put_in_readme(result: dict, folder: Path) -> None:
    """Between its markers, from a full run alone."""
    readme = install.ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise install.Missing(f"README.md has no {BEGIN} ... {END}")
    plot = (folder / "cpu.svg").resolve().relative_to(install.ROOT)
    readme.write_text(f"{before}{BEGIN}\n{short(result)}\n![CPU by subject]({plot})\n{END}{after}")


def all_of(result: dict, folder: Path, strict: bool) -> int:
    """Writes everything beside the JSON; the README too, where that is in bench/results. Prints the targets."""
    data = Data(result["samples"])
    (folder / "latest.md").write_text(page(result))
    (folder / "cpu.svg").write_text(plots.bars(data))
    (folder / "sweep.svg").write_text(plots.sweep(data))
    if folder.resolve() == install.ROOT / "bench" / "results" and not result["quick"]:
        put_in_readme(result, folder)
    print(page(result))
    missed = [target for target in TARGETS if target.verdict(data) == "missed"]
    return 3 if strict and missed else 0
