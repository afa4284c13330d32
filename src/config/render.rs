//! The table of options as people read it: help, example file, documentation, effective values.

use super::resolve::{Effective, Resolved};
use super::setting::{Setting, Shape};
use super::source::Origin;
use super::{Config, Declared, table};

/// The lines of README.md between which [`markdown`] stands.
pub const MARKERS: (&str, &str) = ("<!-- options: begin -->", "<!-- options: end -->");

/// Lines of generated text are at most this long.
const WIDTH: usize = 90;

/// What `-h` says of an option.
pub fn help(setting: &Setting) -> String {
    format!("{} [env: {}] [{}]", sentence(setting), setting.variable(), setting.otherwise())
}

/// The sentence about an option, on the command line.
pub fn sentence(setting: &Setting) -> String {
    match setting.kind.shape {
        Shape::Off => format!("{}: with this flag, no", setting.doc),
        _ => setting.doc.to_owned(),
    }
}

/// What `--help` says of an option.
pub fn long_help(setting: &Setting) -> String {
    let mut paragraphs = vec![format!("{}.", sentence(setting))];
    if !setting.long.is_empty() {
        paragraphs.push(setting.long.to_owned());
    }
    paragraphs.push(names(setting));
    let wrapped: Vec<String> = paragraphs.iter().map(|text| wrap(text, WIDTH).join("\n")).collect();
    wrapped.join("\n")
}

/// The other names of an option and what holds without it, for help.
pub fn names(setting: &Setting) -> String {
    let mut names = format!("[env: {}", setting.variable());
    for other in [setting.names.alias.map(str::to_owned), setting.file_variable()].into_iter().flatten() {
        names.push_str(&format!(" or {other}"));
    }
    if setting.in_file {
        names.push_str(&format!("] [file: {}", setting.key));
    }
    format!("{names}] [{}]", setting.otherwise())
}

/// The configuration file with every option in it, each commented out.
pub fn example() -> String {
    let mut text = String::from(
        "# The configuration of sync-server, usually /etc/sync-server/config.toml.\n\
         #\n\
         # Every option is here, commented out, with its default or an example. The same options\n\
         # are environment variables and flags, whose names stand beside each: flags count before\n\
         # the environment, the environment before this file.\n\
         # `sync-server config check` checks, `sync-server config show` shows what holds and why.\n",
    );
    for section in table::sections() {
        let settings = table::TABLE.iter().filter(|setting| setting.section == section && setting.in_file);
        let entries: String = settings.map(example_entry).collect();
        if !entries.is_empty() {
            text.push_str(&format!("\n\n# ---- {section} ----\n{entries}"));
        }
    }
    text.push_str("\n\n# ---- Clients that there are to be ----\n\n");
    for line in wrap(DECLARED, WIDTH - 2) {
        text.push_str(&format!("# {line}\n"));
    }
    text.push_str(&DECLARED_EXAMPLE.lines().map(|line| format!("#{line}\n")).collect::<String>());
    text
}

/// What there is to know of the clients that the file declares.
pub const DECLARED: &str = "Each entry is a client that the server makes when it starts, where it does not exist, also \
     with create_clients = false. The label may be left out; where it is another than the client has, the client \
     gets it. Nothing is removed by leaving an entry out: `sync-server admin remove-client` does that. The IDs are \
     credentials: only root and the server's user should be able to read the file. Entries come last in the file, \
     and count from the next start on.";

/// An entry.
pub const DECLARED_EXAMPLE: &str =
    "[[clients]]\nid = \"00000000-0000-4000-8000-000000000000\"\nlabel = \"alice\"\n";

fn example_entry(setting: &Setting) -> String {
    let mut entry = String::from("\n");
    let explanation = format!("{}. {}", setting.doc, setting.long);
    for line in wrap(explanation.trim_end(), WIDTH - 2) {
        entry.push_str(&format!("# {line}\n"));
    }
    let facts =
        [format!("Type: {}", type_of(setting)), capitalised(&setting.otherwise()), elsewhere(setting)];
    for line in facts.iter().flat_map(|fact| wrap(fact, WIDTH - 2)) {
        entry.push_str(&format!("# {line}\n"));
    }
    entry.push_str(&format!("#{}\n", assignment(setting, &[setting.default.unwrap_or(setting.example)])));
    entry
}

/// What the file may hold for an option.
pub fn type_of(setting: &Setting) -> String {
    let many = if setting.kind.shape == Shape::List { "one or an array, each " } else { "" };
    format!("{many}{}", setting.kind.expects)
}

/// Where an option may be given beside the file.
pub fn elsewhere(setting: &Setting) -> String {
    let mut variables = vec![setting.variable()];
    variables.extend(setting.names.alias.map(str::to_owned));
    variables.extend(setting.file_variable());
    format!("Environment: {}; flag: {}", variables.join(" or "), flag(setting))
}

/// The options as tables in Markdown, one for each section.
pub fn markdown() -> String {
    let mut text = String::new();
    for section in table::sections() {
        text.push_str(&format!(
            "\n**{section}**\n\n| key in the file | environment | flag | default | meaning |\n"
        ));
        text.push_str("|---|---|---|---|---|\n");
        for setting in table::TABLE.iter().filter(|setting| setting.section == section) {
            text.push_str(&markdown_row(setting));
        }
    }
    text.push('\n');
    text
}

fn markdown_row(setting: &Setting) -> String {
    let key = if setting.in_file { format!("`{}`", setting.key) } else { String::new() };
    let mut variables = vec![setting.variable()];
    variables.extend(setting.names.alias.map(str::to_owned));
    variables.extend(setting.file_variable());
    let variables: Vec<String> = variables.iter().map(|name| format!("`{name}`")).collect();
    let default = match setting.default {
        Some(default) => format!("`{default}`"),
        None => setting.unset.to_owned(),
    };
    let row = [key, variables.join(", "), format!("`{}`", flag(setting)), default, setting.doc.to_owned()];
    format!("| {} |\n", row.map(|cell| cell.replace('|', "\\|")).join(" | "))
}

/// What holds for every option and who said so; secrets masked. Reads as TOML.
pub fn effective(resolved: &Resolved) -> String {
    let shown: Vec<(String, &Origin)> =
        resolved.effective.iter().map(|one| (shown(one), &one.origin)).collect();
    let width =
        shown.iter().map(|(text, _)| text.chars().count()).filter(|width| *width < 60).max().unwrap_or(0);
    let options = shown.iter().map(|(text, origin)| format!("{text:width$}  # {origin}\n"));
    options.chain(resolved.config.clients.iter().map(|client| declared(client, &resolved.config))).collect()
}

fn declared(declared: &Declared, config: &Config) -> String {
    let file = config.file.as_ref().map_or(String::new(), |file| file.display().to_string());
    let label = declared.label.as_deref();
    let label = label.map_or(String::new(), |label| format!("label = {}\n", toml::Value::from(label)));
    format!("[[clients]]  # {file} line {}\nid = \"********\"\n{label}", declared.line)
}

fn shown(Effective { setting, values, .. }: &Effective) -> String {
    if values.is_empty() {
        return format!("# {}: {}", setting.key, setting.unset);
    }
    if setting.secret {
        let masked = vec!["********"; values.len()];
        return assignment(setting, &masked);
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    assignment(setting, &values)
}

/// An option as a line of the file.
fn assignment(setting: &Setting, values: &[&str]) -> String {
    let values: Vec<String> = values
        .iter()
        .map(
            |value| {
                if setting.kind.bare { (*value).to_owned() } else { toml::Value::from(*value).to_string() }
            },
        )
        .collect();
    match setting.kind.shape {
        Shape::List => format!("{} = [{}]", setting.key, values.join(", ")),
        _ => format!("{} = {}", setting.key, values.concat()),
    }
}

/// How the flag is given.
pub fn flag(setting: &Setting) -> String {
    let (flag, value) = (setting.flag(), setting.kind.name);
    let short = setting.names.short.map_or_else(String::new, |short| format!("-{short}, "));
    match setting.kind.shape {
        Shape::One | Shape::List => format!("{short}--{flag} {value}"),
        Shape::Switch => format!("{short}--{flag}[={value}]"),
        Shape::Off => format!("{short}--{flag}"),
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Breaks a text into lines, between words only.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, resolve};

    #[test]
    fn every_option_is_in_every_text() {
        let resolved = resolve(&Sources::default()).expect("the defaults are valid");
        let (markdown, example, shown) = (markdown(), example(), effective(&resolved));
        for setting in table::TABLE {
            let (key, flag, variable) = (setting.key, flag(setting), setting.variable());
            let row = markdown.lines().find(|row| row.contains(&format!("`{flag}`"))).expect(key);
            assert!(row.contains(&format!("`{variable}`")) && row.contains(setting.doc), "{row}");
            assert_eq!(row.contains(&format!("`{key}`")), setting.in_file, "{row}");
            assert_eq!(example.contains(&format!("\n#{key} = ")), setting.in_file, "{key}");
            assert!(shown.contains(key), "{key} in\n{shown}");
            assert!(help(setting).contains(&variable) && long_help(setting).contains(&variable), "{key}");
        }
    }

    #[test]
    fn the_example_is_narrow() {
        let example = example();
        for line in example.lines().filter(|line| line.starts_with("# ") || line.is_empty()) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn texts_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable word", 4), ["unbreakable", "word"]);
    }
}
