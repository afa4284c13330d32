//! The configuration file: read, and taken apart into keys and texts.

use super::declared::{self, Declared};
use super::setting::{Setting, Shape};
use super::source::{Flags, Origin, Secret, Sources};
use super::table;
use super::{Environment, value};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A file that was read, or could not be.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds, or why that is unknown.
    pub text: Result<String, String>,
    /// Whether everyone on the machine may read it.
    pub world_readable: bool,
}

impl File {
    /// Reads a file; `None` where there is none.
    pub fn read(path: &Path) -> Option<File> {
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(format!("cannot read it: {error}")),
        };
        let world_readable = path.metadata().is_ok_and(|metadata| metadata.mode() & 0o004 != 0);
        Some(File { path: path.to_owned(), text, world_readable })
    }

    /// Reads a file that must be there.
    fn expect(path: &Path) -> File {
        File::read(path).unwrap_or_else(|| File {
            path: path.to_owned(),
            text: Err("there is no such file".to_owned()),
            world_readable: false,
        })
    }
}

/// Reads everything that flags and environment name. The configuration file at `default` is read
/// where neither names one and it exists.
pub fn gather(flags: Flags, environment: Environment, cwd: PathBuf, default: &Path) -> Sources {
    let named = flags.get("config").and_then(|texts| texts.last()).map(String::as_str);
    let named = named.or_else(|| environment.var("CONFIG"));
    let file = match named.map(|text| value::path(text, &cwd)) {
        Some(Ok((path, _))) => Some(File::expect(&path)),
        Some(Err(_)) => None,
        None => File::read(default),
    };
    let secrets = table::TABLE.iter().flat_map(|setting| secrets(setting, &environment, &cwd)).collect();
    Sources { flags, environment, file, secrets, cwd }
}

/// The files that hold this option alone.
fn secrets(setting: &Setting, environment: &Environment, cwd: &Path) -> Vec<Secret> {
    let key = setting.key;
    let mut secrets = Vec::new();
    if let Some(variable) = setting.file_variable()
        && let Some(path) = environment.var(&variable)
    {
        let path = cwd.join(path);
        let file = File::expect(&path);
        secrets.push(Secret { key, origin: Origin::SecretFile(variable, path), file });
    }
    if let Some(credential) = setting.credential()
        && let Some(directory) = environment.var("CREDENTIALS_DIRECTORY")
        && let Some(file) = File::read(&cwd.join(directory).join(credential))
    {
        secrets.push(Secret { key, origin: Origin::Credential(file.path.clone()), file });
    }
    secrets
}

/// What the configuration file says of one option.
#[derive(Clone, Debug)]
pub struct Found {
    /// The values as text.
    pub texts: Vec<String>,
    /// Whether they were written as an array.
    pub is_array: bool,
    /// The line, counted from 1.
    pub line: usize,
}

/// What the configuration file says.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// By the key of the option.
    pub options: BTreeMap<&'static str, Found>,
    /// The clients that it declares.
    pub clients: Vec<Declared>,
}

/// Takes the file apart; what is wrong with it as TOML, or with its keys, is added to `problems`.
pub fn parse(file: &File, problems: &mut Vec<String>) -> Content {
    let mut keys = Keys { file, text: "", content: Content::default(), problems: Vec::new() };
    let text = match &file.text {
        Ok(text) => text,
        Err(why) => {
            let path = file.path.display();
            problems.push(format!(
                "config ({path}): {why}; correct the path or the file's permissions, or name another file with \
                 --config"
            ));
            return keys.content;
        }
    };
    keys.text = text;
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let why = error.message().replace('\n', ", ");
        keys.complain(error.span().unwrap_or_default(), format!("this is no TOML: {why}; correct the line"));
    }
    if errors.is_empty() {
        keys.walk("", document.get_ref());
    }
    // As someone reads who goes through the file and corrects them.
    keys.problems.sort_by_key(|(line, _)| *line);
    problems.extend(keys.problems.into_iter().map(|(_, problem)| problem));
    keys.content
}

/// The keys of one file, on the way through its tables.
struct Keys<'a> {
    file: &'a File,
    text: &'a str,
    content: Content,
    /// With the line that each is on.
    problems: Vec<(usize, String)>,
}

impl Keys<'_> {
    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let line = self.line(name.span());
            match (table::find(&key).filter(|setting| setting.in_file), value.get_ref()) {
                (None, _) if key == declared::KEY => self.take_clients(value),
                (Some(setting), value) => self.take(setting, line, value, name.span()),
                (None, DeValue::Table(table)) if !table.is_empty() || is_section(&key) => {
                    self.walk(&format!("{key}."), table);
                }
                (None, _) => self.complain(name.span(), unknown(&key)),
            }
        }
    }

    fn take(&mut self, setting: &'static Setting, line: usize, value: &DeValue<'_>, span: Range<usize>) {
        let key = setting.key;
        let (texts, is_array) = match value {
            DeValue::Array(items) => (items.iter().map(|item| scalar(item.get_ref())).collect(), true),
            value => (scalar(value).map(|text| vec![text]), false),
        };
        let texts = match texts {
            Some(texts) if setting.kind.shape == Shape::List || !is_array => texts,
            _ => {
                let list = if setting.kind.shape == Shape::List { ", or an array of them" } else { "" };
                let kind = value.type_str();
                let expects = setting.kind.expects;
                return self.complain(span, format!("{key} cannot be this {kind}; give {expects}{list}"));
            }
        };
        if let Some(first) = self.content.options.get(key) {
            let first = first.line;
            return self.complain(span, format!("{key} is given on line {first} already; keep one of them"));
        }
        self.content.options.insert(key, Found { texts, is_array, line });
    }

    fn take_clients(&mut self, value: &Spanned<DeValue<'_>>) {
        let mut problems = Vec::new();
        self.content.clients = declared::read(value, |span| self.line(span), &mut problems);
        for (span, problem) in problems {
            self.complain(span, problem);
        }
    }

    fn complain(&mut self, span: Range<usize>, what: String) {
        let line = self.line(span);
        self.problems.push((line, format!("{} line {line}: {what}", self.file.path.display())));
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

/// The text of a value that is no table, array or date.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        _ => None,
    }
}

fn is_section(key: &str) -> bool {
    table::TABLE.iter().any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// What to say of a key that no option has.
fn unknown(key: &str) -> String {
    let shown = key.escape_debug();
    if is_section(key) {
        let inside = |setting: &&Setting| setting.key.starts_with(&format!("{key}."));
        let keys: Vec<&str> = table::TABLE.iter().filter(inside).map(|setting| setting.key).collect();
        return format!("{shown} is a table; give {}", keys.join(", "));
    }
    match nearest(key) {
        Some(nearest) => format!("there is no option {shown}; did you mean {nearest}?"),
        None => format!("there is no option {shown}; remove it (`sync-server config example` shows all)"),
    }
}

/// The option of which one of the names is most like this one.
fn nearest(key: &str) -> Option<&'static str> {
    let key = plain(key);
    let likeness = |setting: &Setting| {
        let names = [setting.key.to_owned(), setting.flag(), setting.variable()];
        names.iter().map(|name| strsim::jaro_winkler(&plain(name), &key)).fold(0.0, f64::max)
    };
    let settings = table::TABLE.iter().filter(|setting| setting.in_file);
    let names = settings.map(|setting| (likeness(setting), setting.key));
    let clients = (strsim::jaro_winkler(declared::KEY, &key), declared::KEY);
    let best = names.chain(std::iter::once(clients)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.8).map(|(_, key)| key)
}

/// A name without what tells flags, variables and keys apart.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Resolved, resolve};

    fn of_file(text: &str) -> Result<Resolved, Vec<String>> {
        let file = File { path: "/etc/c.toml".into(), text: Ok(text.to_owned()), world_readable: false };
        resolve(&Sources { file: Some(file), ..Sources::default() })
    }

    fn problem(text: &str) -> String {
        match &of_file(text).expect_err("something is wrong")[..] {
            [problem] => problem.clone(),
            problems => panic!("{problems:#?}"),
        }
    }

    #[test]
    fn tables_and_dotted_keys_are_the_same() {
        for text in [
            "[snapshot]\ndays = 5",
            "snapshot.days = 5",
            "snapshot = { days = 0x5 }",
            "'snapshot.days' = '5'",
        ] {
            assert_eq!(of_file(text).expect(text).config.snapshot.days, 5);
        }
        let told = problem("snapshot.days = 5\n'snapshot.days' = 6");
        assert!(told.contains("keep one of them"), "{told}");
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_nearest_name() {
        for (text, expected) in [
            (
                "\nsnapshot.version = 1",
                "/etc/c.toml line 2: there is no option snapshot.version; did you mean",
            ),
            (
                "\n\n[snapshots]\ndays = 1",
                "/etc/c.toml line 4: there is no option snapshots.days; did you mean",
            ),
            ("snapshots.days = 1", "did you mean snapshot.days?"),
            ("SNAPSHOT_DAYS = 1", "did you mean snapshot.days?"),
            ("allow-client-id = 'x'", "did you mean client_id?"),
            ("colour = 'blue'", "there is no option colour; remove it"),
            ("[colours]", "there is no option colours; remove it"),
            ("snapshot = 1", "snapshot is a table; give snapshot.versions, snapshot.days"),
            ("config = '/x'", "there is no option config; remove it"),
        ] {
            let told = problem(text);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn values_of_the_wrong_type_are_told() {
        for text in [
            "snapshot.days = 1.5",
            "snapshot.days = [1]",
            "listen = {}",
            "[[listen]]\na = 1",
            "data_dir = 2020-01-01",
        ] {
            let told = problem(text);
            assert!(told.contains("cannot be this"), "{told}");
        }
    }

    #[test]
    fn broken_toml_is_told_with_its_line_and_without_its_text() {
        let secret = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
        let problems = of_file(&format!("listen = 'a:1'\nclient_id = {secret}\n")).expect_err("it is broken");
        for told in problems {
            assert!(told.contains("/etc/c.toml line 2: this is no TOML"), "{told}");
            assert!(!told.contains("711d5cf3"), "{told}");
        }
    }
}
