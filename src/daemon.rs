//! Going into the background, as services did before service managers.
//!
//! The only place that knows the crate `daemonize`. That crate is unmaintained and forks without
//! a care for threads, so it is called while there is exactly one, and with no database open.

use daemonize::{Daemonize, Outcome};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What the process in the background says when it serves. No error message is this.
const READY: &str = "ready";

/// The process in the background, as it sees itself.
pub struct Background {
    /// To the process that waits on the terminal.
    foreground: Option<PipeWriter>,
    pid_file: Option<PathBuf>,
}

/// Forks, and returns in the process in the background only, which has no terminal and works in `/`.
///
/// The calling process waits for [`Background::ready`] and exits with 0, so that whoever waits for
/// it finds a server that answers. It returns an error where that never comes.
pub fn detach(pid_file: Option<&Path>) -> Result<Background, String> {
    if threads().is_some_and(|threads| threads != 1) {
        return Err("daemonize: a defect in this program: a thread was started before the fork".to_owned());
    }
    let (reader, writer) = std::io::pipe().map_err(|error| format!("daemonize: no pipe: {error}"))?;
    let mut daemon = Daemonize::new();
    if let Some(path) = pid_file {
        daemon = daemon.pid_file(path);
    }
    match daemon.execute() {
        Outcome::Parent(Ok(_)) => {
            drop(writer);
            wait(reader)
        }
        Outcome::Parent(Err(error)) => Err(format!("daemonize: {}", explain(&error.to_string()))),
        Outcome::Child(Ok(_)) => {
            Ok(Background { foreground: Some(writer), pid_file: pid_file.map(Path::to_owned) })
        }
        Outcome::Child(Err(error)) => {
            let on = pid_file.map(|path| format!(" (pid_file {})", path.display())).unwrap_or_default();
            let message = format!("daemonize{on}: {}", explain(&error.to_string()));
            Background { foreground: Some(writer), pid_file: None }.failed(&message);
            // The process on the terminal says it, once.
            std::process::exit(1)
        }
    }
}

impl Background {
    /// Lets the process on the terminal exit with 0.
    pub fn ready(&mut self) {
        self.tell(READY);
    }

    /// Lets the process on the terminal, if it still waits, exit with this message.
    pub fn failed(&mut self, message: &str) {
        self.tell(message);
    }

    fn tell(&mut self, text: &str) {
        if let Some(mut foreground) = self.foreground.take() {
            // It may have been interrupted; that is no reason to stop.
            let _ = foreground.write_all(text.as_bytes());
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(path) = &self.pid_file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// How many threads this process has, where the system tells.
fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// The crate knows errors by their numbers only.
fn explain(error: &str) -> String {
    let numbered =
        error.rsplit_once(", errno ").and_then(|(what, number)| Some((what, number.parse().ok()?)));
    let Some((what, number)) = numbered else { return error.to_owned() };
    let error = std::io::Error::from_raw_os_error(number);
    if error.kind() == std::io::ErrorKind::WouldBlock {
        return format!("{what}: another process holds it: name another file, or end that process");
    }
    format!("{what}: {error}")
}

/// Exits without running what the two processes have in common to its end: the listeners and the
/// lock belong to the other one now.
fn wait(mut reader: PipeReader) -> Result<Background, String> {
    let mut text = String::new();
    let read = reader.read_to_string(&mut text);
    match text.as_str() {
        READY => std::process::exit(0),
        "" => Err(format!("daemonize: the process in the background ended without a word ({read:?})")),
        message => Err(message.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_words() {
        let missing = explain("unable to open pid file, errno 2");
        assert_eq!(missing, "unable to open pid file: No such file or directory (os error 2)");
        assert!(explain("unable to lock pid file, errno 11").contains("another process holds it"));
        assert_eq!(explain("unable to resolve group name"), "unable to resolve group name");
    }
}
