//! The texts that the program makes of itself: the manual, and completions in real shells.

use crate::util::{program, skip};
use std::path::Path;
use std::process::{Command, Stdio};
use sync_server::config::table;

const PAGES: [(&str, &str); 3] =
    [("sync-server", "1"), ("sync-server-admin", "8"), ("sync-server.toml", "5")];

/// What the program prints for these arguments, whatever its configuration is.
fn printed(args: &[&str]) -> String {
    let output = program().env("CONFIG", "/nowhere/at/all").args(args).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Whether this command is installed.
fn has(command: &str) -> bool {
    let version = Command::new("sh").args(["-c", &format!("command -v {command}")]).output();
    let found = version.is_ok_and(|output| output.status.success());
    if !found {
        skip(&format!("{command} is not installed; `tests/run` installs it"));
    }
    found
}

/// A page of the manual as it is read in a terminal: words with single blanks between them.
fn read(roff: &str) -> String {
    let text = formatted(Command::new("mandoc").args(["-Tascii"]), roff);
    let mut letters: Vec<char> = Vec::new();
    for letter in text.chars() {
        // Bold letters are printed twice, underlined ones over a line.
        if letter == '\u{8}' {
            letters.pop();
        } else {
            letters.push(letter);
        }
    }
    letters.into_iter().collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a formatter makes of a page; its complaints go to standard error, which must stay empty.
fn formatted(command: &mut Command, roff: &str) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("page.1");
    std::fs::write(&path, roff).expect("the page can be written");
    let output = command.arg(&path).output().expect("the formatter runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn formatters_have_nothing_to_say_against_the_manual() {
    for (page, section) in PAGES {
        let roff = printed(&["man", page]);
        assert!(roff.contains(&format!(".TH {page} {section} ")), "{roff}");
        if has("mandoc") {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let path = dir.path().join("page");
            std::fs::write(&path, &roff).expect("the page can be written");
            let lint = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&path).output();
            let output = lint.expect("mandoc runs");
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            // The same program always prints the same page, so there is no date.
            let told: Vec<&str> = told.lines().filter(|line| !line.contains("missing date")).collect();
            assert_eq!(told, Vec::<&str>::new(), "{page}");
        }
        if has("man") && has("groff") {
            let mut man = Command::new("man");
            man.env_clear().envs([("LC_ALL", "C.UTF-8"), ("MANWIDTH", "80"), ("PATH", "/usr/bin:/bin")]);
            formatted(man.args(["--warnings", "-E", "UTF-8", "-Tutf8", "-l"]), &roff);
        }
    }
    assert_eq!(printed(&["man"]), printed(&["man", "sync-server"]));
}

#[test]
fn the_manual_tells_of_every_option_and_every_verb() {
    if !has("mandoc") {
        return;
    }
    let [program, admin, file] = PAGES.map(|(page, _)| read(&printed(&["man", page])));
    for setting in table::TABLE {
        assert!(program.contains(&format!("--{}", setting.flag())), "{}", setting.key);
        assert!(program.contains(&setting.variable()), "{}", setting.key);
        assert_eq!(file.contains(&format!("{}. ", setting.doc)), setting.in_file, "{}", setting.key);
    }
    for verb in ["config check", "healthcheck [URL]", "completions SHELL", "man [PAGE] [--out DIR]"] {
        assert!(program.contains(verb), "{verb}");
    }
    let verbs = printed(&["admin", "--help"]);
    let (_, verbs) = verbs.split_once("Commands:\n").expect("a list of verbs");
    let verbs = verbs.lines().take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = verbs.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.len() > 8, "{verbs:?}");
    for verb in verbs.into_iter().filter(|verb| *verb != "help") {
        assert!(admin.contains(verb), "{verb}");
    }
    assert!(admin.contains("add-client [--id UUID] [--label TEXT]"), "{admin}");
}

#[test]
fn all_pages_are_written_into_a_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("new/man");
    assert_eq!(printed(&["man", "--out", out.to_str().expect("plain text")]), "");
    for (page, section) in PAGES {
        let text = std::fs::read_to_string(out.join(format!("{page}.{section}"))).expect("the page");
        assert_eq!(text, printed(&["man", page]));
    }
    std::fs::write(dir.path().join("file"), "").expect("a file");
    let output = program().args(["man", "--out"]).arg(dir.path().join("file")).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("cannot make the directory") && told.contains("/file"), "{told}");
}

/// Runs a script with the completions' file and more arguments; returns what it prints.
fn in_shell(shell: &[&str], script: &str, completions: &Path, args: &[&str]) -> String {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("-c").arg(script);
    // The first argument behind a script is its name, for fish alone it is not.
    if shell[0] != "fish" {
        command.arg("test");
    }
    let home = completions.parent().expect("a directory");
    command.arg(completions).args(args).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home);
    let output = command.env("TERM", "dumb").stdin(Stdio::null()).output().expect("the shell runs");
    assert!(output.status.success(), "{shell:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The completions for a shell in a file of this name, and the directory that removes it.
fn completions(shell: &str, name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(name);
    std::fs::write(&path, printed(&["completions", shell])).expect("a file can be written");
    (dir, path)
}

/// Calls the function as bash does when somebody presses the tabulator.
const BASH: &str = r#"
    source "$1"; shift
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    spec=$(complete -p sync-server); function=${spec#*-F }; function=${function%% *}
    "$function" sync-server "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_completes_verbs_options_and_choices() {
    if !has("bash") {
        return;
    }
    let (_dir, path) = completions("bash", "sync-server");
    for (typed, expected) in [
        (["sync-server", "adm"].as_slice(), "admin\n"),
        (&["sync-server", "--snapshot-v"], "--snapshot-versions\n"),
        // The crate that makes the completions does not know what is behind a verb where the
        // program's name has a hyphen.
        (&["sync-server", "admin", "add-c"], "add-client\n"),
        (&["sync-server", "admin", "add-client", "--if"], "--if-missing\n"),
        (&["sync-server", "completions", "f"], "fish\n"),
    ] {
        assert_eq!(in_shell(&["bash", "--norc"], BASH, &path, typed), expected, "{typed:?}");
    }
}

#[test]
fn fish_completes_verbs_and_options() {
    if !has("fish") {
        return;
    }
    let (_dir, path) = completions("fish", "sync-server.fish");
    let script = "source $argv[1]; complete -C $argv[2]";
    for (typed, expected) in [
        ("sync-server adm", "admin\t"),
        ("sync-server --snapshot-v", "--snapshot-versions\t"),
        ("sync-server admin add-client --if", "--if-missing\t"),
    ] {
        let offered = in_shell(&["fish", "--no-config"], script, &path, &[typed]);
        assert!(offered.starts_with(expected) && offered.lines().count() == 1, "{typed}: {offered}");
    }
}

/// Types into an interactive zsh in a terminal of its own, and waits for what it makes of that.
const ZSH: &str = r#"
    zmodload zsh/zpty
    zpty shell zsh -f -i
    zpty -w shell "PS1=; fpath=(${(q)1:h} \$fpath); autoload -Uz compinit; compinit -D -u; print rea''dy"
    zpty -r -m shell line '*ready*'
    zpty -w -n shell "$2"$'\t'
    zpty -r -m shell line "*$3*" && print -r -- completed
    zpty -d shell
"#;

#[test]
fn zsh_completes_verbs_and_options() {
    if !has("zsh") {
        return;
    }
    let (_dir, path) = completions("zsh", "_sync-server");
    for (typed, expected) in [
        ("sync-server adm", "sync-server admin"),
        ("sync-server --snapshot-v", "sync-server --snapshot-versions"),
        ("sync-server admin add-client --if", "add-client --if-missing"),
    ] {
        let said = in_shell(&["timeout", "30", "zsh", "-f"], ZSH, &path, &[typed, expected]);
        assert_eq!(said, "completed\n", "{typed}");
    }
}

#[test]
fn an_unknown_shell_or_page_is_usage_and_the_known_ones_are_named() {
    for (args, known) in
        [(["completions", "tcsh"], "bash, fish, zsh"), (["man", "nothing"], "sync-server.toml")]
    {
        let output = program().args(args).output().expect("the program runs");
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(known), "{told}");
    }
}
