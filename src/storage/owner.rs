//! Whose a file is, whose this process is, and the command that brings both together.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One sentence about a file that this process may not use: its owner, its mode and our user.
pub fn whose(file: &Path) -> String {
    let us = rustix::process::geteuid().as_raw();
    match file.metadata() {
        Ok(data) => format!(
            "{} belongs to uid {} with mode {:04o}, and this process runs as uid {us}",
            file.display(),
            data.uid(),
            data.mode() & 0o7777
        ),
        Err(error) => {
            format!("uid {us}, as which this process runs, cannot look at {} ({error})", file.display())
        }
    }
}

/// The command that lets this process use a directory and all that is in it, one file of which it
/// may not use.
pub fn give(directory: &Path, file: &Path) -> String {
    let (user, group) = us();
    if file.metadata().is_ok_and(|data| data.uid() == user) {
        return format!("chmod -R u+rwX {}", quoted(directory));
    }
    format!("sudo chown -R {user}:{group} {}", quoted(directory))
}

/// The command that makes a directory for this process' user alone.
pub fn make(directory: &Path) -> String {
    let (user, group) = us();
    format!("sudo install -d -m 700 -o {user} -g {group} {}", quoted(directory))
}

fn us() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn commands_can_be_pasted_whatever_the_path() {
        assert_eq!(quoted(Path::new("/var/lib/sync-server")), "/var/lib/sync-server");
        assert_eq!(quoted(Path::new("/home/a b/it's")), r"'/home/a b/it'\''s'");
        assert!(give(Path::new("/a;b"), Path::new("/a;b/c")).ends_with(" '/a;b'"));
    }

    #[test]
    fn what_is_ours_already_is_not_given_to_us() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(give(directory.path(), directory.path()).starts_with("chmod -R u+rwX /"));
        assert!(give(directory.path(), &directory.path().join("missing")).starts_with("sudo chown -R "));
    }

    #[test]
    fn a_file_and_its_absence_are_described() {
        let directory = tempfile::tempdir().expect("a directory");
        let us = rustix::process::geteuid().as_raw();
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(directory.path(), mode).expect("it is ours");
        let text = whose(directory.path());
        assert!(text.contains(&format!("belongs to uid {us} with mode 0700")), "{text}");
        assert!(whose(&directory.path().join("missing")).contains("No such file"));
    }
}
