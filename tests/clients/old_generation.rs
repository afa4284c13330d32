//! `taskchampion-py` 2.0.2: the generation up to Taskwarrior 3.4. It holds Python's lock while it
//! syncs, so every replica is a process.

use super::{Account, Device, Tasks};
use crate::util::tool;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use uuid::Uuid;

/// A Python that has the library.
pub fn python() -> Option<PathBuf> {
    tool("taskchampion-py", "python/bin/python")
}

pub struct OldGeneration {
    child: Child,
    answers: BufReader<ChildStdout>,
    account: Account,
}

impl OldGeneration {
    /// An empty replica in memory.
    pub fn new(python: &Path, account: &Account) -> OldGeneration {
        let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/old_generation.py");
        let mut command = Command::new(python);
        command.arg(driver).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python starts");
        let answers = BufReader::new(child.stdout.take().expect("standard output is piped"));
        OldGeneration { child, answers, account: account.clone() }
    }

    fn ask(&mut self, question: Value) -> Result<Value, String> {
        let mut questions = self.child.stdin.as_ref().expect("standard input is piped");
        writeln!(questions, "{question}").expect("the driver listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the driver answers");
        let mut answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {question}: {line:?}"));
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["answer"].take()),
        }
    }

    fn tell(&mut self, question: Value) {
        self.ask(question).expect("the driver does what it is told");
    }
}

impl Device for OldGeneration {
    fn add(&mut self, description: &str) -> Uuid {
        let task = Uuid::new_v4();
        self.tell(json!(["add", task.to_string(), description]));
        task
    }

    fn set(&mut self, task: Uuid, property: &str, value: &str) {
        self.tell(json!(["set", task.to_string(), property, value]));
    }

    fn complete(&mut self, task: Uuid) {
        self.tell(json!(["complete", task.to_string()]));
    }

    fn delete(&mut self, task: Uuid) {
        self.tell(json!(["delete", task.to_string()]));
    }

    fn purge(&mut self, task: Uuid) {
        self.tell(json!(["purge", task.to_string()]));
    }

    fn tasks(&mut self) -> Tasks {
        let tasks = self.ask(json!(["tasks"])).expect("the tasks");
        serde_json::from_value::<std::collections::BTreeMap<Uuid, _>>(tasks).expect("a map of tasks")
    }

    fn sync(&mut self, avoid_snapshots: bool) -> Result<(), String> {
        let Account { url, client, secret } = self.account.clone();
        self.ask(json!(["sync", url, client.to_string(), secret, avoid_snapshots])).map(|_| ())
    }
}

impl Drop for OldGeneration {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
