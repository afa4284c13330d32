//! Taskwarrior 3.5 itself, unpacked from Debian's packages and run under its own loader.

use super::{Account, Device, Tasks};
use crate::util::tool;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use uuid::Uuid;

/// Where Taskwarrior's packages are unpacked.
pub fn program() -> Option<PathBuf> {
    tool("Taskwarrior 3.5", "taskwarrior")
}

pub struct Taskwarrior {
    root: PathBuf,
    home: tempfile::TempDir,
    /// A file with the authorities that it trusts, instead of its own.
    trusted: Option<PathBuf>,
}

impl Taskwarrior {
    /// A device where Taskwarrior was just installed.
    pub fn new(root: &Path, account: &Account) -> Taskwarrior {
        let home = tempfile::tempdir().expect("a temporary directory");
        let Account { url, client, secret } = account;
        let settings = format!(
            "data.location={}\nconfirmation=off\nrecurrence.confirmation=off\nhooks=off\n\
             sync.server.url={url}\nsync.server.client_id={client}\nsync.encryption_secret={secret}\n",
            home.path().display()
        );
        std::fs::write(home.path().join("taskrc"), settings).expect("the settings can be written");
        Taskwarrior { root: root.to_owned(), home, trusted: None }
    }

    /// The same device where only these authorities are trusted.
    pub fn trusting(self, authorities: &Path) -> Taskwarrior {
        Taskwarrior { trusted: Some(authorities.to_owned()), ..self }
    }

    fn task(&self, args: &[&str]) -> Output {
        let libraries = self.root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        let mut command = Command::new(loader(&libraries));
        command.arg("--library-path").arg(&libraries).arg(self.root.join("usr/bin/task")).args(args);
        // It finds its own files by a path relative to this directory.
        command.current_dir(self.root.join("usr/share/taskwarrior"));
        command.env_clear().env("TASKRC", self.home.path().join("taskrc")).env("HOME", self.home.path());
        command.envs(self.trusted.iter().map(|path| ("SSL_CERT_FILE", path)));
        command.stdin(Stdio::null()).output().expect("Taskwarrior starts")
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = self.task(args);
        assert!(output.status.success(), "task {args:?}: {}", said(&output));
        output
    }
}

impl Device for Taskwarrior {
    fn add(&mut self, description: &str) -> Uuid {
        let output = self.run(&["rc.verbose=new-uuid", "add", "--", description]);
        let said = said(&output);
        let uuid = said.split_whitespace().find_map(|word| word.trim_end_matches('.').parse().ok());
        uuid.unwrap_or_else(|| panic!("no UUID of the new task in {said:?}"))
    }

    fn set(&mut self, task: Uuid, property: &str, value: &str) {
        self.run(&[&task.to_string(), "modify", &format!("{property}:{value}")]);
    }

    fn complete(&mut self, task: Uuid) {
        self.set(task, "status", "completed");
    }

    fn delete(&mut self, task: Uuid) {
        self.set(task, "status", "deleted");
    }

    fn purge(&mut self, task: Uuid) {
        self.delete(task);
        self.run(&[&task.to_string(), "purge"]);
    }

    fn tasks(&mut self) -> Tasks {
        let output = self.run(&["rc.verbose=nothing", "rc.gc=off", "export"]);
        let tasks: Vec<serde_json::Map<String, Value>> =
            serde_json::from_slice(&output.stdout).expect("a list of tasks");
        let mut found = Tasks::new();
        for mut task in tasks {
            // The place in the list and the weight in it are this device's own.
            let _ = (task.remove("id"), task.remove("urgency"));
            let uuid = task.remove("uuid").and_then(|uuid| uuid.as_str()?.parse().ok());
            let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let properties = task.into_iter().map(|(name, value)| (name, text(value))).collect();
            found.insert(uuid.expect("a task has a UUID"), properties);
        }
        found
    }

    /// Taskwarrior decides about snapshots itself.
    fn sync(&mut self, _avoid_snapshots: bool) -> Result<(), String> {
        let output = self.task(&["sync"]);
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The loader of the unpacked C library: the machine's own may be older than the program.
fn loader(libraries: &Path) -> PathBuf {
    let entries = std::fs::read_dir(libraries).expect("the libraries are there").filter_map(Result::ok);
    let mut files = entries.map(|entry| entry.path());
    let is_loader = |path: &PathBuf| path.to_string_lossy().contains("/ld-linux");
    files.find(is_loader).unwrap_or_else(|| panic!("no loader in {}", libraries.display()))
}
