//! The plan in `src/lib.rs` as tests: who may know whom, and what is written nowhere.
//!
//! Rules are rows of data over the source text. Comments and unit tests are left out of it, and a
//! second table shows for each rule a text that breaks it.

use std::path::Path;

/// A room of the house: a module at the top of the library, and the rooms that it may use.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
}

const ROOMS: &[Room] = &[
    Room {
        name: "admin",
        uses: &[
            "archive",
            "backup",
            "config",
            "control",
            "credential",
            "doctor",
            "protocol",
            "storage",
            "tls",
            "transfer",
            "upkeep",
        ],
    },
    Room { name: "archive", uses: &["protocol", "storage"] },
    Room { name: "backup", uses: &["archive", "config", "storage"] },
    Room {
        name: "cli",
        uses: &["admin", "config", "control", "healthcheck", "lifecycle", "protocol", "tls"],
    },
    Room { name: "config", uses: &["protocol"] },
    Room { name: "control", uses: &["config", "storage"] },
    Room { name: "credential", uses: &[] },
    Room { name: "daemon", uses: &[] },
    Room { name: "doctor", uses: &["backup", "config", "healthcheck", "protocol", "storage", "tls"] },
    Room { name: "healthcheck", uses: &["config", "peer", "tls"] },
    Room {
        name: "http",
        uses: &["config", "credential", "metrics", "peer", "protocol", "storage", "workers"],
    },
    Room {
        name: "lifecycle",
        uses: &[
            "backup", "config", "control", "daemon", "http", "listen", "logging", "metrics", "service",
            "storage", "tls", "upkeep", "workers",
        ],
    },
    Room { name: "listen", uses: &["config", "http", "peer", "tls"] },
    Room { name: "logging", uses: &["config"] },
    Room { name: "metrics", uses: &[] },
    Room { name: "peer", uses: &["config"] },
    Room { name: "protocol", uses: &[] },
    Room { name: "service", uses: &["credential", "protocol", "storage"] },
    Room { name: "storage", uses: &["config", "credential", "protocol"] },
    Room { name: "tls", uses: &["config", "http", "peer"] },
    Room { name: "transfer", uses: &["protocol", "storage"] },
    Room { name: "upkeep", uses: &["protocol", "storage"] },
    Room { name: "workers", uses: &["credential", "metrics", "protocol", "service", "storage"] },
];

/// Words that stand in certain files only. A file counts where its path begins with one of these.
struct Wall {
    words: &'static [&'static str],
    only_in: &'static [&'static str],
    why: &'static str,
}

const WALLS: &[Wall] = &[
    Wall {
        words: &["tokio", "hyper", "hyper_util"],
        only_in: &[
            "listen/",
            "tls/",
            "http/",
            "workers",
            "lifecycle",
            "control.rs",
            "storage/postgres/link.rs",
        ],
        why: "async ends at the workers; below them, each connection to Postgres has a runtime of its own",
    },
    Wall {
        words: &["rustls", "tokio_rustls", "rustls_acme", "rcgen", "webpki_roots", "x509_parser"],
        only_in: &["tls/", "storage/postgres/tls.rs"],
        why: "certificates and handshakes are known to one room, and to one file for those of Postgres",
    },
    Wall {
        words: &["rusqlite", "r2d2", "r2d2_sqlite", "libsqlite3_sys", "tokio_postgres_rustls"],
        only_in: &["storage/"],
        why: "databases are known to the storage only",
    },
    Wall {
        words: &["tokio_postgres"],
        // The log leaves out what that crate says of itself: it would tell client IDs.
        only_in: &["storage/postgres/", "logging.rs"],
        why: "databases are known to the storage only",
    },
    Wall {
        words: &["daemonize::", "Daemonize"],
        only_in: &["daemon.rs"],
        why: "an unmaintained crate is confined to one file",
    },
    Wall {
        words: &["clap", "clap_complete", "roff"],
        only_in: &["cli.rs", "cli/"],
        why: "the command line is taken apart in one place",
    },
    Wall {
        words: &["std::env", "env::var", "env::vars", "env::var_os"],
        // The crate that speaks to the service manager reads the environment too.
        only_in: &["main.rs", "cli.rs", "cli/", "config/", "lifecycle/notify.rs"],
        why: "elsewhere the environment is an argument",
    },
    Wall {
        words: &["SystemTime", "UNIX_EPOCH", "now_v7", "new_v4", "getrandom", "rand"],
        only_in: &[
            "workers",
            "logging",
            "http/",
            "listen/",
            "tls/",
            "lifecycle",
            "control.rs",
            "healthcheck.rs",
            "admin/",
            "doctor/",
            "backup/",
        ],
        why: "below the workers, time and randomness are arguments",
    },
    Wall {
        words: &["println!", "eprintln!", "print!", "eprint!", "stdout"],
        only_in: &["main.rs", "cli.rs", "admin/"],
        why: "rooms return or log what they have to say",
    },
    Wall {
        words: &["thread_local!"],
        only_in: &["logging/line.rs", "lifecycle/notify.rs"],
        why: "global state; these two are a buffer to format in, and the memory of a plain function that \
              SQLite calls",
    },
    Wall {
        words: &[
            "static mut",
            "OnceLock",
            "LazyLock",
            "OnceCell",
            "LazyCell",
            "lazy_static",
            "set_boxed_logger",
        ],
        only_in: &["logging.rs"],
        why: "global state; the crate `log` knows no other way",
    },
    Wall {
        words: &["unwrap()", "unwrap_unchecked", "todo!", "unimplemented!", "dbg!", "#[allow", "unsafe"],
        only_in: &[],
        why: "not in a program that people rely on",
    },
];

/// Types whose statics would be state that everyone shares.
const SHARED: &[&str] = &["Mutex", "RwLock", "Atomic"];

/// Endings of names that say nothing.
const EMPTY_NAMES: &[&str] = &["Manager", "Helper", "Helpers", "Util", "Utils", "Impl"];

/// Lines of program, unit tests apart, that a file may have.
const LONGEST: usize = 450;

/// Files that are one flat table.
const TABLES: &[&str] = &["config/table.rs"];

/// Files that are compiled for tests only.
const TESTS: &[&str] = &[
    "storage/conformance.rs",
    "storage/conformance/contents.rs",
    "storage/conformance/copying.rs",
    "storage/conformance/devices.rs",
    "storage/conformance/upkeep.rs",
    "storage/postgres/tests.rs",
];

#[test]
fn the_source_keeps_to_the_plan() {
    let mut breaches = Vec::new();
    each_source(&mut |path, text| breaches.extend(breaches_of(path, text)));
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn every_room_is_in_the_plan_and_in_the_house() {
    let lib = std::fs::read_to_string(source().join("lib.rs")).expect("a library");
    let house: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")).collect();
    let plan: Vec<String> = ROOMS.iter().map(|room| format!("{};", room.name)).collect();
    assert_eq!(house, plan);
    for room in ROOMS {
        assert!(
            lib.contains(&format!("[`{}`]", room.name)),
            "the plan in lib.rs does not tell of {}",
            room.name
        );
    }
    assert!(lib.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn every_exception_is_still_needed() {
    for wall in WALLS {
        for exception in wall.only_in.iter().filter(|path| path.ends_with(".rs")) {
            assert!(source().join(exception).exists(), "{exception} is excepted and does not exist");
        }
    }
    for path in TABLES.iter().chain(TESTS) {
        assert!(source().join(path).exists(), "{path} is excepted and does not exist");
    }
}

#[test]
fn each_rule_can_be_broken() {
    let broken: &[(&str, &str, &str)] = &[
        ("service.rs", "use tokio::sync::oneshot;", "async ends"),
        ("storage/sqlite/mod.rs", "fn f() { hyper_util::x() }", "async ends"),
        ("listen/mod.rs", "use tokio_rustls::TlsAcceptor;", "one room"),
        ("workers.rs", "use rusqlite::Connection;", "databases"),
        ("lifecycle.rs", "use daemonize::Daemonize;", "unmaintained"),
        ("config/table.rs", "use clap::Arg;", "one place"),
        ("lifecycle.rs", "let x = std::env::var(\"X\");", "environment is an argument"),
        ("storage/mod.rs", "let now = SystemTime::now();", "time and randomness"),
        ("service.rs", "let id = Uuid::now_v7();", "time and randomness"),
        ("http/mod.rs", "eprintln!(\"x\");", "return or log"),
        ("http/mod.rs", "thread_local! { }", "global state"),
        ("workers.rs", "static LOCK: OnceLock<u8> = OnceLock::new();", "global state"),
        ("workers.rs", "static mut COUNT: u8 = 0;", "global state"),
        ("workers.rs", "static COUNT: AtomicU64 = AtomicU64::new(0);", "everyone shares"),
        ("workers.rs", "pub static STATE: Mutex<u8> = Mutex::new(0);", "everyone shares"),
        ("listen/mod.rs", "let x = y.unwrap();", "rely on"),
        ("listen/mod.rs", "todo!()", "rely on"),
        ("listen/mod.rs", "#[allow(dead_code)]", "rely on"),
        ("protocol.rs", "use crate::storage::Storage;", "protocol may not use storage"),
        ("protocol.rs", "fn f() { crate::http::x() }", "protocol may not use http"),
        ("storage/mod.rs", "use crate::{protocol::ClientId, workers};", "storage may not use workers"),
        (
            "storage/mod.rs",
            "use crate::{\n    protocol::{ClientId, X},\n    service::Y,\n};",
            "may not use service",
        ),
        ("listen/mod.rs", "struct ConnectionManager;", "says nothing"),
        ("listen/mod.rs", "mod utils { }", "says nothing"),
        ("listen/mod.rs", "pub fn get_peer() {}", "get_"),
        ("attic.rs", "", "no room"),
    ];
    for (path, text, expected) in broken {
        let breaches = breaches_of(path, &format!("//! Doc.\n{text}\n"));
        assert!(breaches.iter().any(|breach| breach.contains(expected)), "{path}: {text}: {breaches:?}");
    }
    assert!(breaches_of("listen/mod.rs", "use crate::http;\n")[0].contains("//!"));
    assert!(
        breaches_of("listen/mod.rs", &format!("//! Doc.\n{}", "x;\n".repeat(LONGEST)))[0].contains("lines")
    );
}

#[test]
fn what_is_allowed_is_not_refused() {
    let fine: &[(&str, &str)] = &[
        ("workers.rs", "use tokio::sync::oneshot;"),
        ("service.rs", "// tokio is not used here, nor is x.unwrap()"),
        ("service.rs", "/// [`tokio`] is not used here"),
        ("service.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn f() { x.unwrap(); println!(); }\n}"),
        ("service.rs", "let operand = 1; let unwrapped = x.unwrap_or_default();"),
        ("http/wire/mod.rs", "use crate::workers::Failure;"),
        ("http/wire/mod.rs", "use crate::http::App;"),
        ("workers.rs", "static NAMES: &[&str] = &[];"),
        ("http/wire/mod.rs", "fn forget_it() {} fn target() { get_snapshot() }"),
        ("storage/conformance.rs", "fn f() { x.unwrap(); Uuid::new_v4(); crate::service::f() }"),
    ];
    for (path, text) in fine {
        let breaches = breaches_of(path, &format!("//! Doc.\n{text}\n"));
        assert!(breaches.is_empty(), "{path}: {text}: {breaches:?}");
    }
}

/// Everything that is wrong with one file; `path` is relative to `src`.
fn breaches_of(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    if !text.starts_with("//!") {
        breaches.push("does not begin with //! and what the file is for".to_owned());
    }
    if TESTS.contains(&path) {
        return breaches;
    }
    let program = program_of(text);
    let length = program.lines().count();
    if length > LONGEST && !TABLES.contains(&path) {
        breaches.push(format!("has {length} lines of program: find the second noun in it"));
    }
    for wall in WALLS.iter().filter(|wall| !wall.only_in.iter().any(|place| path.starts_with(place))) {
        for word in wall.words.iter().filter(|word| contains(&program, word)) {
            breaches.push(format!("{word}: {}", wall.why));
        }
    }
    breaches.extend(program.lines().filter_map(bad_declaration));
    breaches.extend(wrong_ways(path, &program));
    breaches.into_iter().map(|breach| format!("src/{path}: {breach}")).collect()
}

/// The text without comments and without the unit tests at its end.
fn program_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let is_code = |line: &str| !line.trim_start().starts_with("//");
    text[..end].lines().map(|line| if is_code(line) { line } else { "" }).collect::<Vec<_>>().join("\n")
}

/// Whether the word stands in the text by itself, not as part of a longer one.
fn contains(text: &str, word: &str) -> bool {
    let is_part = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    text.match_indices(word).any(|(at, _)| {
        let behind = &text[at + word.len()..];
        let open = word.ends_with(|char: char| !char.is_alphanumeric());
        !is_part(text[..at].chars().next_back()) && (open || !is_part(behind.chars().next()))
    })
}

fn bad_declaration(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split(|char: char| !char.is_alphanumeric() && char != '_').collect();
    let declared =
        |kinds: &[&str]| words.windows(2).find(|pair| kinds.contains(&pair[0])).map(|pair| pair[1]);
    let code = line.trim_start();
    if (code.starts_with("static ") || code.starts_with("pub static "))
        && SHARED.iter().any(|kind| line.contains(kind))
    {
        return Some(format!("{code}: state that everyone shares is an argument instead"));
    }
    if let Some(name) = declared(&["struct", "enum", "trait", "type", "mod"]) {
        let ends = |end: &&&str| name.to_ascii_lowercase().ends_with(&end.to_ascii_lowercase());
        if EMPTY_NAMES.iter().find(ends).is_some() {
            return Some(format!("{name}: a name that says nothing"));
        }
    }
    declared(&["fn"]).filter(|name| name.starts_with("get_")).map(|name| format!("{name}: without get_"))
}

/// Uses of rooms that this file's room may not know.
fn wrong_ways(path: &str, program: &str) -> Vec<String> {
    let name = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
    if name == "main" || name == "lib" {
        return Vec::new();
    }
    let Some(room) = ROOMS.iter().find(|room| room.name == name) else {
        return vec![format!("{name} is no room of the plan")];
    };
    let knows = |used: &String| used == name || room.uses.contains(&used.as_str());
    let is_room = |used: &String| ROOMS.iter().any(|room| room.name == used);
    let wrong = rooms_used(program).into_iter().filter(|used| is_room(used) && !knows(used));
    wrong.map(|used| format!("{name} may not use {used}")).collect()
}

/// The first names behind `crate::`, those in braces included.
fn rooms_used(program: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, root) in program.match_indices("crate::") {
        let rest = &program[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(names_of_group(group)),
            None => used.push(name_at_start(rest)),
        }
    }
    used
}

fn names_of_group(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = Vec::new();
    let mut item = 0;
    for (at, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name_at_start(group[item..at].trim_start()));
                item = at + 1;
                if char == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn name_at_start(text: &str) -> String {
    text.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect()
}

fn source() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

fn each_source(visit: &mut dyn FnMut(&str, &str)) {
    let mut directories = vec![source().to_owned()];
    let mut count = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let relative = path.strip_prefix(source()).expect("below it").to_string_lossy().into_owned();
                visit(&relative, &std::fs::read_to_string(&path).expect("a text"));
                count += 1;
            }
        }
    }
    assert!(count > 10, "the source was not found");
}
