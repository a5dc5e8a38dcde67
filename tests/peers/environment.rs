//! The virtual environment that the Python peers run in, made once under `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/requirements.txt");
/// Package indexes fail now and then.
const TRIES: u32 = 3;

/// The interpreter of the environment. Without one the test fails; it is never left out.
pub fn python() -> &'static Path {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match MADE.get_or_init(make) {
        Ok(path) => path,
        Err(reason) => panic!("no Python environment for the tests: {reason}"),
    }
}

/// Makes the environment unless a complete one of the same requirements is there. The lock is for other test processes.
fn make() -> Result<PathBuf, String> {
    let told = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let wanted = fs::read_to_string(REQUIREMENTS).map_err(|error| told(REQUIREMENTS, error))?;
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("cargo names no target directory")?;
    let lock = File::create(target.join("python-peers.lock")).map_err(|error| told("lock file", error))?;
    lock.lock().map_err(|error| told("lock file", error))?;

    let home = target.join("python-peers");
    let (interpreter, stamp) = (home.join("bin/python"), home.join("complete"));
    if interpreter.exists() && fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
        return Ok(interpreter);
    }
    if home.exists() {
        fs::remove_dir_all(&home).map_err(|error| told("removing the old one", error))?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&home))
        .map_err(|why| format!("python3 with its venv module is needed: {why}"))?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--only-binary", ":all:"])
        .args(["--requirement", REQUIREMENTS]);
    let mut tries = 1;
    while let Err(why) = run(&mut pip) {
        if tries == TRIES {
            return Err(format!("pip could not install tests/python/requirements.txt in {TRIES} tries: {why}"));
        }
        tries += 1;
    }
    fs::write(&stamp, wanted).map_err(|error| told("the stamp", error))?;
    Ok(interpreter)
}

fn run(command: &mut Command) -> Result<(), String> {
    let ended = command.stdin(Stdio::null()).output();
    let output = ended.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&text).trim()))
}
