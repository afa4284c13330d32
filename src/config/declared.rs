//! Clients that the configuration file declares: its entries `[[clients]]`.

use super::value;
use crate::protocol::ClientId;
use std::ops::Range;
use toml::Spanned;
use toml::de::DeValue;

/// The key of the entries.
pub const KEY: &str = "clients";

const KEYS: [&str; 2] = ["id", "label"];

const EXPECTED: &str = "write each as a table, [[clients]] and below it id = \"UUID\" and label = \"TEXT\"";

/// A client that there is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Its ID.
    pub client: ClientId,
    /// What to call it; without one it keeps the label that it has.
    pub label: Option<String>,
    /// The line of the file on which its entry begins, counted from 1.
    pub line: usize,
}

/// A problem and what it is about, as a range of the file.
pub type Problem = (Range<usize>, String);

/// Reads the value of the key; `line` tells on which line a range begins.
pub fn read(
    value: &Spanned<DeValue<'_>>,
    line: impl Fn(Range<usize>) -> usize,
    problems: &mut Vec<Problem>,
) -> Vec<Declared> {
    let mut clients: Vec<Declared> = Vec::new();
    let DeValue::Array(entries) = value.get_ref() else {
        problems.push((value.span(), format!("{KEY} is a list of entries; {EXPECTED}")));
        return clients;
    };
    for entry in entries {
        let Some(declared) = read_entry(entry, line(entry.span()), problems) else { continue };
        let same = |other: &&Declared| other.client == declared.client;
        if let Some(first) = clients.iter().find(same) {
            let first = first.line;
            problems.push((
                entry.span(),
                format!("the client of this entry is declared on line {first} already; keep one of them"),
            ));
            continue;
        }
        let same = |other: &&Declared| declared.label.is_some() && other.label == declared.label;
        if let Some(first) = clients.iter().find(same) {
            let (first, label) = (first.line, declared.label.as_deref().unwrap_or_default());
            problems.push((
                entry.span(),
                format!("the client on line {first} is called {label:?} already; choose another label"),
            ));
        }
        clients.push(declared);
    }
    clients
}

fn read_entry(entry: &Spanned<DeValue<'_>>, line: usize, problems: &mut Vec<Problem>) -> Option<Declared> {
    let DeValue::Table(table) = entry.get_ref() else {
        problems.push((
            entry.span(),
            format!("an entry of {KEY} cannot be this {}; {EXPECTED}", entry.get_ref().type_str()),
        ));
        return None;
    };
    let (mut client, mut label, before) = (None, None, problems.len());
    for (name, value) in table {
        let text = match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref()),
            _ => None,
        };
        let parsed = match (name.get_ref().as_ref(), text) {
            ("id", Some(text)) => value::client_id(text)
                .map(|(id, _)| client = Some(id))
                .map_err(|why| format!("the id (not shown) {why}; give a UUID")),
            ("label", Some(text)) => value::label(text)
                .map(|(text, _)| label = Some(text))
                .map_err(|why| format!("{why}; choose another one")),
            (key @ ("id" | "label"), None) => {
                Err(format!("{key} cannot be this {}; give a text in quotes", value.get_ref().type_str()))
            }
            (key, _) => Err(unknown(key)),
        };
        if let Err(why) = parsed {
            problems.push((name.span(), why));
        }
    }
    if client.is_none() && problems.len() == before {
        problems.push((entry.span(), format!("this entry of {KEY} has no id; give the client's UUID")));
    }
    Some(Declared { client: client?, label, line })
}

fn unknown(key: &str) -> String {
    let shown = key.escape_debug();
    let best = KEYS.map(|known| (strsim::jaro_winkler(known, key), known));
    match best.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((likeness, known)) if likeness > 0.8 => {
            format!("an entry of {KEY} has no {shown}; did you mean {known}?")
        }
        _ => format!("an entry of {KEY} has no {shown}; remove it (there are {})", KEYS.join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::file::File;
    use crate::config::{Resolved, Sources, resolve};

    const ID: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

    fn of_file(text: &str) -> Result<Resolved, Vec<String>> {
        let file = File { path: "/etc/c.toml".into(), text: Ok(text.to_owned()), world_readable: false };
        resolve(&Sources { file: Some(file), ..Sources::default() })
    }

    #[test]
    fn entries_are_clients_with_and_without_a_label() {
        let other = ID.replace('7', "8");
        let text = format!("\n[[clients]]\nid = '{ID}'\nlabel = 'alice'\n[[clients]]\nid = '{other}'");
        let clients = of_file(&text).expect("nothing is wrong").config.clients;
        let shown: Vec<_> = clients
            .iter()
            .map(|one| (one.client.uuid().to_string(), one.label.as_deref(), one.line))
            .collect();
        assert_eq!(shown, [(ID.to_owned(), Some("alice"), 2), (other, None, 5)]);
    }

    #[test]
    fn what_is_wrong_with_an_entry_is_told_with_its_line_and_without_the_id() {
        for (text, expected) in [
            ("clients = 5".to_owned(), "line 1: clients is a list of entries; write"),
            (format!("clients = ['{ID}']"), "line 1: an entry of clients cannot be this string"),
            (format!("[[clients]]\nid = '{ID}0'"), "line 2: the id (not shown) is not a UUID"),
            ("[[clients]]\nid = 5".to_owned(), "line 2: id cannot be this integer"),
            ("\n[[clients]]\nlabel = 'a'".to_owned(), "line 2: this entry of clients has no id"),
            (
                format!("[[clients]]\nid = '{ID}'\nlable = 'a'"),
                "line 3: an entry of clients has no lable; did you mean label?",
            ),
            (
                format!("[[clients]]\nid = '{ID}'\ncolour = 'a'"),
                "has no colour; remove it (there are id and label)",
            ),
            (format!("[[clients]]\nid = '{ID}'\nlabel = ' a'"), "line 3: the label \" a\" begins or ends"),
            (
                format!("[[clients]]\nid = '{ID}'\n[[clients]]\nid = '{ID}'"),
                "line 3: the client of this entry is declared on line 1",
            ),
            (
                format!(
                    "[[clients]]\nid = '{ID}'\nlabel = 'a'\n[[clients]]\nid = '{}'\nlabel = 'a'",
                    ID.replace('7', "8")
                ),
                "line 4: the client on line 1 is called \"a\" already",
            ),
            (format!("[[client]]\nid = '{ID}'"), "there is no option client; did you mean clients?"),
        ] {
            let problems = of_file(&text).expect_err(&text);
            assert_eq!(problems.len(), 1, "{problems:#?}");
            assert!(problems[0].contains(expected), "{problems:#?}");
            assert!(!problems[0].contains("711d5cf3"), "{problems:#?}");
        }
    }
}
