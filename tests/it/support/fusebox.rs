//! The program under test: started with a configuration, waited for, killed when dropped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use ::fusebox::clock::Clock;
use serde_json::Value;
use tempfile::TempDir;

use super::client::{Ask, Client};
use super::http1::Message;
use super::upstream::Upstream;
use super::{PATIENCE, eventually};

/// A configuration in YAML, made of blocks.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    listeners: String,
    upstreams: String,
    rules: String,
    more: String,
}

impl Config {
    /// One plain listener, `upstream` for everything, no rules.
    pub(crate) fn new(upstream: &Upstream) -> Self {
        Self::url(&upstream.url())
    }

    /// As [`Config::new`], with an upstream that need not be there.
    pub(crate) fn url(url: &str) -> Self {
        Self {
            listeners: "listeners:\n  - listen: 127.0.0.1:0\n".to_owned(),
            upstreams: format!("upstreams:\n  - name: double\n    url: {url}\n"),
            rules: "agent_incident_rules: []\n".to_owned(),
            more: String::new(),
        }
    }

    /// Other listeners: the whole block.
    pub(crate) fn listeners(mut self, block: &str) -> Self {
        self.listeners = ensure_line(block);
        self
    }

    /// Another setting of the upstream, as `key: value`.
    pub(crate) fn upstream(mut self, line: &str) -> Self {
        self.upstreams.push_str(&format!("    {line}\n"));
        self
    }

    /// Other rules: the whole block.
    pub(crate) fn rules(mut self, block: &str) -> Self {
        self.rules = ensure_line(block);
        self
    }

    /// More top-level keys.
    pub(crate) fn with(mut self, block: &str) -> Self {
        self.more.push_str(&ensure_line(block));
        self
    }

    /// The text of the file.
    pub(crate) fn text(&self, directory: &Path) -> String {
        let admin = if self.more.contains("admin:") {
            String::new()
        } else {
            "admin:\n  listen: 127.0.0.1:0\n".to_owned()
        };
        let observations = directory.join("observations.jsonl");
        format!(
            "{}{admin}observations:\n  file: {}\n{}{}{}",
            self.listeners,
            observations.display(),
            self.upstreams,
            self.rules,
            self.more
        )
    }
}

fn ensure_line(block: &str) -> String {
    if block.ends_with('\n') {
        block.to_owned()
    } else {
        format!("{block}\n")
    }
}

/// The running program.
pub(crate) struct Fusebox {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    directory: TempDir,
    /// Where clients are served, in the order of the configuration.
    pub(crate) listeners: Vec<String>,
    /// The admin listener.
    pub(crate) admin: String,
}

impl Fusebox {
    /// Starts the program with `config` and waits until it serves.
    pub(crate) async fn start(config: &Config) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), config, &[]).await
    }

    /// Starts the program with `config` written to `directory`, and with further environment variables.
    pub(crate) async fn start_in(directory: TempDir, config: &Config, env: &[(&str, &str)]) -> Self {
        let path = directory.path().join("fusebox.yaml");
        std::fs::write(&path, config.text(directory.path())).expect("the directory can be written");
        let path = path.display().to_string();
        Self::start_args(directory, &["--config", &path], env).await
    }

    /// Starts `fusebox run` with these arguments.
    pub(crate) async fn start_args(directory: TempDir, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = program();
        command.arg("run").args(args).envs(env.iter().copied());
        Self::start_command(directory, command).await
    }

    /// Starts `fusebox run` with these arguments where a shell has run `first`.
    pub(crate) async fn start_after(directory: TempDir, first: &str, args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("{first} && exec \"$0\" run \"$@\"");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_fusebox")])
            .args(args);
        Self::start_command(directory, command).await
    }

    async fn start_command(directory: TempDir, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().expect("a pipe");
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let mut started = Self {
            child,
            log,
            directory,
            listeners: Vec::new(),
            admin: String::new(),
        };
        let ready = eventually("the program says that it is ready", async || {
            if let Some(status) = started.child.try_wait().expect("the program can be looked at") {
                panic!("the program ended with {status}:\n{}", started.log_text());
            }
            started
                .log
                .lock()
                .unwrap()
                .iter()
                .find_map(|line| ready_fields(line))
        })
        .await;
        (started.listeners, started.admin) = ready;
        started
    }

    /// The first listener.
    pub(crate) fn address(&self) -> &str {
        self.listeners.first().expect("a listener")
    }

    /// A connection to the first listener.
    pub(crate) async fn client(&self) -> Client<tokio::net::TcpStream> {
        Client::connect(self.address()).await
    }

    /// One request over a connection of its own.
    pub(crate) async fn ask(&self, ask: &Ask) -> Message {
        self.client().await.ask(ask).await
    }

    /// The directory of its configuration.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.directory().join("fusebox.yaml")
    }

    /// Replaces its configuration file at once.
    pub(crate) fn write_config(&self, text: &str) {
        let new = self.directory().join("fusebox.yaml.new");
        std::fs::write(&new, text).expect("the directory can be written");
        std::fs::rename(&new, self.config_path()).expect("the file can be put in place");
    }

    /// An answer of the admin API.
    pub(crate) async fn admin(&self, ask: &Ask) -> Message {
        let ask = ask.clone().header("host", &self.admin);
        Client::connect(&self.admin).await.ask(&ask).await
    }

    /// A JSON answer of the admin API.
    pub(crate) async fn admin_json(&self, path: &str) -> Value {
        let answer = self
            .admin(&Ask::get(path).header("accept", "application/json"))
            .await;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Every observation so far, complete lines only.
    pub(crate) fn observations(&self) -> Vec<Value> {
        read_observations(&self.directory().join("observations.jsonl"))
    }

    /// The observation of a request, once it is there.
    pub(crate) async fn observation(&self, request_id: &str) -> Value {
        eventually(&format!("the observation of {request_id}"), async || {
            self.observations()
                .into_iter()
                .find(|o| o["request_id"] == request_id)
        })
        .await
    }

    /// The last observation, once there are `count`.
    pub(crate) async fn observed(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} observations"), async || {
            let all = self.observations();
            (all.len() >= count).then_some(all)
        })
        .await
    }

    /// Sends a signal: `HUP`, `TERM`, …
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.child.id())])
            .status()
            .expect("a shell");
        assert!(status.success(), "kill -{name}");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the program ends", async || {
            self.child.try_wait().expect("the program can be looked at")
        })
        .await
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("the program can be looked at")
            .is_none()
    }

    /// A line of what the system tells about it, `/proc/PID/FILE`.
    pub(crate) fn told(&self, file: &str, name: &str) -> Option<String> {
        let all = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).ok()?;
        all.lines().find(|l| l.starts_with(name)).map(str::to_owned)
    }

    /// The memory that it has now, in KiB, where the system tells.
    pub(crate) fn memory_kib(&self) -> Option<u64> {
        self.told("status", "VmRSS:")?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    }

    /// The most memory it had at once, in KiB, where the system tells.
    pub(crate) fn memory_peak_kib(&self) -> Option<u64> {
        self.told("status", "VmHWM:")?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    }

    /// What it has logged.
    pub(crate) fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl Drop for Fusebox {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let log = self.log_text();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- the program's last log lines");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// The program, as a command with a clean environment.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fusebox"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy().to_ascii_lowercase();
        if name_text.starts_with("fusebox") || name_text.ends_with("_proxy") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command that ends by itself; one that does not is killed and fails the test.
pub(crate) fn finished(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let drain = |mut pipe: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            pipe.read_to_end(&mut all).ok();
            all
        })
    };
    let stdout = drain(Box::new(child.stdout.take().expect("a pipe")));
    let stderr = drain(Box::new(child.stderr.take().expect("a pipe")));
    let clock = Clock::system();
    let begun = clock.mono();
    let mut in_time = true;
    while child.try_wait().expect("the program can be looked at").is_none() {
        if clock.mono().since(begun) > PATIENCE {
            child.kill().ok();
            in_time = false;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output = Output {
        status: child.wait().expect("an exit status"),
        stdout: stdout.join().expect("what it said"),
        stderr: stderr.join().expect("what it said"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(in_time, "{command:?} does not end; it said:\n{said}");
    output
}

/// Complete lines of an observations file.
pub(crate) fn read_observations(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = complete.lines().filter(|l| !l.is_empty());
    lines
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l:?}")))
        .collect()
}

/// The listeners and the admin listener of the line that says "ready".
fn ready_fields(line: &str) -> Option<(Vec<String>, String)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = if line["fields"].is_object() {
        &line["fields"]
    } else {
        &line
    };
    if fields["message"] != "ready" {
        return None;
    }
    let listeners = fields["listeners"].as_str()?;
    let listeners = listeners.split(',').map(|l| l.trim().to_owned()).collect();
    Some((listeners, fields["admin"].as_str().unwrap_or_default().to_owned()))
}
