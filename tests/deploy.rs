//! The Slurm scripts on one machine: rank 0 with proxy, prefill engine and benchmark, and two peers with decode engines that
//! stop because the proxy's port closed. And what the other files of `deploy/` must say.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::PATIENCE;
use crate::support::binary::{BINARY, command, free_ports};

/// A script that runs. Ended by SIGTERM only: it stops its own engine then, which a killed script would leave behind.
struct Script {
    name: String,
    child: Child,
    log: std::path::PathBuf,
}

impl Script {
    fn start(name: &str, script: &str, folder: &Path, variables: &[(&str, &str)]) -> Script {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).unwrap();
        // What `command` takes from the surroundings must not reach the scripts either.
        let clean = command(&[]);
        let mut bash = Command::new("bash");
        for (variable, _) in clean.get_envs().filter(|(_, value)| value.is_none()) {
            bash.env_remove(variable);
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(script);
        let child = bash
            .arg(path)
            .env("MORIIO_PROXY_BINARY", BINARY)
            .env("LOG_DIR", folder)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let name = name.to_owned();
        Script { name, child, log }
    }

    /// The exit code; a failure shows every log of the folder.
    fn finish(&mut self) -> Option<i32> {
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not end: {}", self.name, self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn logs(&self) -> String {
        let folder = fs::read_dir(self.log.parent().unwrap()).unwrap();
        let files = folder.map(|entry| entry.unwrap().path());
        let shown =
            files.map(|path| format!("\n--- {}\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default()));
        shown.collect()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
            let _ = self.child.wait();
        }
    }
}

fn settings<'a>(http: &'a str, ping: &'a str) -> Vec<(&'static str, &'a str)> {
    let mut settings = vec![("PROXY_HTTP_PORT", http), ("PROXY_PING_PORT", ping), ("PROXY_HOST", "127.0.0.1")];
    settings.extend([("WATCH_INTERVAL", "0.3"), ("BARRIER_INTERVAL", "0.2")]);
    for limit in ["START_LIMIT", "BARRIER_LIMIT", "READY_LIMIT", "PORT_OPEN_LIMIT"] {
        settings.push((limit, "60"));
    }
    settings
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}

/// The instructions of the Dockerfile's last stage, each on one line.
fn image() -> Vec<String> {
    let text = read("Dockerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let all = lines.join("\n").replace("\\\n", " ");
    let stage = all.rsplit("\nFROM ").next().unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    stage.lines().map(words).filter(|line| !line.is_empty()).collect()
}

/// Launchers append a whole command to the image's name or have its shell run one, and mount folders that are root's for logs.
#[test]
fn the_image_is_as_launchers_need_it() {
    let image = image();
    let only = |name: &str| {
        let found: Vec<&str> = image.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).collect();
        assert!(found.len() < 2, "{name}: {found:?}");
        found.first().copied()
    };
    assert_eq!((only("ENTRYPOINT"), only("USER")), (None, None));
    assert_eq!(only("CMD"), Some(r#"["moriio-proxy", "serve"]"#));
    assert_eq!(only("COPY").and_then(|copy| copy.rsplit(' ').next()), Some("/usr/local/bin/moriio-proxy"));
    assert!(image.contains(&"RUN ln -s moriio-proxy /usr/local/bin/vllm-router".to_owned()), "{image:#?}");
    let installed = image.iter().find_map(|line| line.split_once(" install ")).unwrap().1;
    let installed: Vec<&str> = installed.split(" && ").next().unwrap().split(' ').collect();
    assert!(["bash", "curl"].iter().all(|name| installed.contains(name)), "{installed:?}");
}

/// What is not said there is taken from Cargo.toml, so that the two cannot differ.
#[test]
fn the_wheel_says_of_itself_what_the_crate_says() {
    let text = read("wheel/pyproject.toml");
    assert!(text.contains("manifest-path = \"../../Cargo.toml\"\nbindings = \"bin\""), "{text}");
    let tables: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(tables, ["[build-system]", "[tool.maturin]"]);
    let quick = read("wheel/quick.txt");
    assert!(text.contains(&format!("requires = [\"{}\"]", quick.trim())), "another maturin than {quick}");
}

#[test]
fn what_stops_the_proxy_gives_it_time_to_drain() {
    let drain = moriio_proxy::settings::options::Key::DrainTimeout.row().default.replace('s', " s");
    for file in ["Dockerfile", "moriio-proxy.service", "slurm-rank0.sh"] {
        let text = read(file);
        let line = text.lines().find(|line| line.contains("drain") && line.contains(" s")).unwrap_or_default();
        assert!(text.contains(&drain), "{file} names another time than {drain}: {line}");
    }
}

#[test]
fn a_job_of_three_nodes_runs_and_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [http, ping, prefill, first, second] = free_ports().map(|port: u16| port.to_string());
    let settings = settings(&http, &ping);
    let engine = |roles: &str, port: &str| {
        format!(
            "'{BINARY}' sim {roles} --mode read --registration 127.0.0.1:{ping} --http-port {port} --token-delay 0 \
             --ping-interval 1s"
        )
    };
    let mut peers = Vec::new();
    for (rank, port) in [("1", &first), ("2", &second)] {
        let command = engine("--prefill 0 --decode 1", port);
        let mut variables = settings.clone();
        variables.extend([("SLURM_PROCID", rank), ("RANK0_HOST", "127.0.0.1"), ("ENGINE_COMMAND", &command)]);
        peers.push(Script::start(&format!("peer{rank}"), "slurm-peer.sh", folder.path(), &variables));
    }
    let command = engine("--prefill 1 --decode 0", &prefill);
    let urls = [&prefill, &first, &second].map(|port| format!("http://127.0.0.1:{port}")).join(" ");
    let answer = folder.path().join("answer.json");
    let benchmark = format!(
        "for round in 1 2 3 4; do curl --silent --show-error --fail --noproxy '*' --max-time 60 \
         --output '{}' --header 'Content-Type: application/json' --data '{{\"model\": \"sim-model\", \"prompt\": \"a job\", \"max_tokens\": 9}}' \
         http://127.0.0.1:{http}/v1/completions || exit; done",
        answer.display()
    );
    let mut variables = settings.clone();
    variables.extend([("SLURM_PROCID", "0"), ("ENGINE_COMMAND", &command), ("ENGINE_URLS", &urls)]);
    variables.push(("BENCHMARK_COMMAND", &benchmark));
    let mut rank0 = Script::start("rank0", "slurm-rank0.sh", folder.path(), &variables);
    assert_eq!(rank0.finish(), Some(0), "{}", rank0.logs());
    let answer: serde_json::Value = serde_json::from_str(&fs::read_to_string(answer).unwrap()).unwrap();
    let expected = moriio_proxy::sim::expected_text(&"a job".into(), 8);
    assert_eq!(answer["choices"][0]["text"], expected);
    for mut peer in peers {
        assert_eq!(peer.finish(), Some(0), "{}", peer.logs());
        let log = fs::read_to_string(&peer.log).unwrap();
        assert!(log.contains("is closed, the job is over"), "{log}");
    }
}

/// An engine whose `GET /health` answers like this, one round of probes after the other, and then 200.
fn answering(rounds: &'static [Option<&'static str>]) -> String {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", engine.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut late = Vec::new();
        for answer in rounds.iter().copied().chain(std::iter::repeat(Some("200 OK"))) {
            let (mut probe, _) = engine.accept().unwrap();
            let _ = probe.read(&mut [0; 1024]);
            match answer {
                Some(status) => drop(write!(probe, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")),
                None => late.push(probe),
            }
        }
    });
    url
}

/// A busy node answers late: a job must not end of that. One that answers otherwise than before has had it.
#[test]
fn an_engine_may_be_late_but_not_unwell() {
    for (rounds, unwell, code) in [
        (&[Some("200 OK"), None, None][..], &[Some("503 Starting"); 3][..], 0),
        (&[Some("200 OK"), Some("500 Oh")], &[Some("503 Starting"); 3], 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [http, ping] = free_ports().map(|port: u16| port.to_string());
        let mut variables = settings(&http, &ping);
        let urls = format!("{} {}", answering(rounds), answering(unwell));
        variables.extend([("WAIT_FOR_READY", "0"), ("BENCHMARK_COMMAND", "exit 0"), ("ENGINE_URLS", &urls)]);
        let mut rank0 = Script::start("rank0", "slurm-rank0.sh", folder.path(), &variables);
        assert_eq!(rank0.finish(), Some(code), "{}", rank0.logs());
    }
}

#[test]
fn the_benchmarks_exit_code_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let [http, ping] = free_ports().map(|port: u16| port.to_string());
    let mut variables = settings(&http, &ping);
    variables.extend([("WAIT_FOR_READY", "0"), ("BENCHMARK_COMMAND", "exit 7")]);
    let mut rank0 = Script::start("rank0", "slurm-rank0.sh", folder.path(), &variables);
    assert_eq!(rank0.finish(), Some(7), "{}", rank0.logs());
}

#[test]
fn a_proxy_that_cannot_start_ends_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let [http, ping] = free_ports().map(|port: u16| port.to_string());
    let taken = TcpListener::bind(format!("127.0.0.1:{http}")).unwrap();
    let mut variables = settings(&http, &ping);
    variables.extend([("WAIT_FOR_READY", "0"), ("BENCHMARK_COMMAND", "exit 0")]);
    let mut rank0 = Script::start("rank0", "slurm-rank0.sh", folder.path(), &variables);
    assert_ne!(rank0.finish(), Some(0), "{}", rank0.logs());
    assert!(rank0.logs().contains(&http), "{}", rank0.logs());
    drop(taken);
}
