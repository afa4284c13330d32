//! The configuration as an operator meets it: flags, environment, file, messages, exit codes.

use crate::util::program;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CLIENT: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const OTHER: &str = "8ff00bf4-2e6b-4e1b-b1a5-bd7bf1b4b2d4";

/// The program with an environment of its own: no configuration file and a data directory that is
/// none of this machine's, unless a test names others.
fn sync_server(variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = program();
    command.env("CONFIG", "/dev/null").env("DATA_DIR", "/nowhere/data");
    run(command.envs(variables.iter().copied()).args(args))
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// What `config show` says of one option: the value and where it came from.
fn shown(variables: &[(&str, &str)], args: &[&str], key: &str) -> (String, String) {
    let output = sync_server(variables, &[args, &["config", "show"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let line = text.lines().find(|line| line.starts_with(&format!("{key} = ")));
    let line = line.unwrap_or_else(|| panic!("{key} is not in\n{text}"));
    let (assignment, origin) = line.rsplit_once("  # ").expect("a value and its origin");
    let value = assignment.split_once(" = ").expect("an assignment").1;
    (value.trim().to_owned(), origin.to_owned())
}

fn assert_shown(variables: &[(&str, &str)], args: &[&str], key: &str, value: &str, origin: &str) {
    let expected = (value.to_owned(), origin.to_owned());
    assert_eq!(shown(variables, args, key), expected, "{key} with {variables:?} and {args:?}");
}

/// A configuration file, and the directory that removes it.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).expect("a file can be written");
    let path = path.to_str().expect("plain text").to_owned();
    (dir, path)
}

#[test]
fn help_and_version_are_answered_whatever_the_configuration() {
    let broken = [("LISTEN", "nonsense"), ("CONFIG", "/nowhere/at/all")];
    for (args, expected) in [
        (["--version"].as_slice(), env!("CARGO_PKG_VERSION")),
        (&["--help"], "--snapshot-versions"),
        (&["-h"], "--snapshot-versions"),
        (&["help"], "healthcheck"),
        (&["config", "--help"], "example"),
        (&["config", "example"], "#snapshot.versions = 100"),
    ] {
        let output = sync_server(&broken, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).contains(expected), "{args:?}: {}", stdout(&output));
    }
}

#[test]
fn what_is_no_command_line_is_usage() {
    for args in [
        ["--lisen", "localhost:1"].as_slice(),
        &["serv"],
        &["config"],
        &["config", "chekc"],
        &["--listen"],
        &["--data-dir", "/a", "--data-dir", "/b"],
        &["serve", "more"],
    ] {
        let output = sync_server(&[], args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
    }
    let told = stderr(&sync_server(&[], &["--lisen", "localhost:1"]));
    assert!(told.contains("a similar argument exists: '--listen'"), "{told}");
}

#[test]
fn all_problems_are_told_at_once_and_exit_with_78() {
    let (_dir, path) = file("snapshot.version = 5\nlog.format = 'xml'\n");
    let variables = [("CONFIG", path.as_str()), ("CREATE_CLIENTS", "maybe"), ("CLIENT_ID", "secretish")];
    for verb in
        [["config", "check"].as_slice(), &["config", "show"], &["serve"], &[], &["reload"], &["healthcheck"]]
    {
        let output = sync_server(&variables, &[&["--idle-timeout", "5"], verb].concat());
        assert_eq!(output.status.code(), Some(78), "{verb:?}");
        let told = stderr(&output);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 5, "{told}");
        for expected in [
            format!("{path} line 1: there is no option snapshot.version; did you mean snapshot.versions?"),
            format!("log.format ({path} line 2): \"xml\" is no format; give text or json"),
            "create_clients (environment CREATE_CLIENTS): \"maybe\" is neither true nor false".to_owned(),
            "client_id (environment CLIENT_ID): the value (not shown) is not a UUID".to_owned(),
            "idle.timeout (flag --idle-timeout): \"5\" is not a time with its unit".to_owned(),
        ] {
            assert!(lines.iter().any(|line| line.contains(&expected)), "{expected} is not in\n{told}");
        }
        assert!(!told.contains("secretish"), "{told}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn the_flag_counts_before_the_environment_before_the_file_before_the_default() {
    let (_dir, path) =
        file("snapshot.days = 3\nlisten = ['localhost:3', '[::1]:3']\nmigration.copy = false\n");
    let at = |line: usize| format!("{path} line {line}");
    let all = [
        ("CONFIG", path.as_str()),
        ("SNAPSHOT_DAYS", "2"),
        ("LISTEN", "localhost:2,127.0.0.1:2"),
        ("MIGRATION_COPY", "on"),
    ];
    let flags = ["--snapshot-days=1", "-l", "localhost:1", "--listen=127.0.0.1:1", "--migration-copy=no"];
    for (key, by_flag, flag, by_variable, variable, by_file, line, default) in [
        ("snapshot.days", "1", "--snapshot-days", "2", "SNAPSHOT_DAYS", "3", 1, "14"),
        (
            "listen",
            r#"["localhost:1", "127.0.0.1:1"]"#,
            "--listen",
            r#"["localhost:2", "127.0.0.1:2"]"#,
            "LISTEN",
            r#"["localhost:3", "[::1]:3"]"#,
            2,
            r#"["localhost:8080"]"#,
        ),
        ("migration.copy", "false", "--migration-copy", "true", "MIGRATION_COPY", "false", 3, "true"),
    ] {
        assert_shown(&all, &flags, key, by_flag, &format!("flag {flag}"));
        assert_shown(&all, &[], key, by_variable, &format!("environment {variable}"));
        assert_shown(&all[..1], &[], key, by_file, &at(line));
        assert_shown(&[], &[], key, default, "default");
    }
}

#[test]
fn a_number_below_zero_is_told_of_by_its_option() {
    for (flag, key) in
        [("--snapshot-versions", "snapshot.versions"), ("--connections-limit", "connections.limit")]
    {
        let output = sync_server(&[], &[flag, "-1", "config", "check"]);
        assert_eq!(output.status.code(), Some(78));
        let told = stderr(&output);
        assert!(told.contains(&format!("{key} (flag {flag}): \"-1\" is not a whole number from")), "{told}");
    }
}

#[test]
fn flags_count_before_and_behind_the_verb() {
    for args in [["--snapshot-days", "5", "config", "show"], ["config", "show", "--snapshot-days", "5"]] {
        let output = sync_server(&[], &args);
        assert!(stdout(&output).contains("snapshot.days = 5 "), "{}", stdout(&output));
    }
}

#[test]
fn an_empty_variable_is_unset() {
    for (variable, key, value) in [
        ("LISTEN", "listen", r#"["localhost:8080"]"#),
        ("SNAPSHOT_DAYS", "snapshot.days", "14"),
        ("CREATE_CLIENTS", "create_clients", "true"),
        ("RUST_LOG", "log.level", "\"info\""),
    ] {
        assert_shown(&[(variable, "")], &[], key, value, "default");
    }
    assert!(
        stdout(&sync_server(&[("CLIENT_ID", "")], &["config", "show"])).contains("# client_id: all clients")
    );
}

#[test]
fn the_reference_servers_flags_work() {
    let args = ["-l", "localhost:1", "-C", CLIENT, "--no-create-clients", "--snapshot-versions", "7"];
    let args =
        [args.as_slice(), &["--snapshot-days", "8", "-d", "/data", "--allow-client-id", OTHER]].concat();
    assert_shown(&[], &args, "listen", r#"["localhost:1"]"#, "flag --listen");
    assert_shown(&[], &args, "client_id", r#"["********", "********"]"#, "flag --allow-client-id");
    assert_shown(&[], &args, "create_clients", "false", "flag --no-create-clients");
    assert_shown(&[], &args, "snapshot.versions", "7", "flag --snapshot-versions");
    assert_shown(&[], &args, "snapshot.days", "8", "flag --snapshot-days");
    assert_shown(&[], &args, "data_dir", "\"/data\"", "flag --data-dir");
}

#[test]
fn the_reference_servers_variables_work() {
    let clients = format!("{CLIENT},{OTHER}");
    let variables = [
        ("LISTEN", "0.0.0.0:8080,[::]:8080"),
        ("CLIENT_ID", clients.as_str()),
        ("CREATE_CLIENTS", "false"),
        ("SNAPSHOT_VERSIONS", "7"),
        ("SNAPSHOT_DAYS", "8"),
        ("DATA_DIR", "/data"),
        ("RUST_LOG", "warn,sync_server=debug"),
    ];
    for (key, value, variable) in [
        ("listen", r#"["0.0.0.0:8080", "[::]:8080"]"#, "LISTEN"),
        ("client_id", r#"["********", "********"]"#, "CLIENT_ID"),
        ("create_clients", "false", "CREATE_CLIENTS"),
        ("snapshot.versions", "7", "SNAPSHOT_VERSIONS"),
        ("snapshot.days", "8", "SNAPSHOT_DAYS"),
        ("data_dir", "\"/data\"", "DATA_DIR"),
        ("log.level", "\"warn,sync_server=debug\"", "RUST_LOG"),
    ] {
        assert_shown(&variables, &[], key, value, &format!("environment {variable}"));
    }
}

#[test]
fn switches_take_the_usual_words_from_the_environment() {
    for (text, value) in [("true", "true"), ("yes", "true"), ("ON", "true"), ("1", "true")] {
        assert_shown(&[("CREATE_CLIENTS", text)], &[], "create_clients", value, "environment CREATE_CLIENTS");
    }
    for (text, value) in [("false", "false"), ("no", "false"), ("off", "false"), ("0", "false")] {
        assert_shown(&[("CREATE_CLIENTS", text)], &[], "create_clients", value, "environment CREATE_CLIENTS");
    }
}

#[test]
fn relative_paths_are_meant_from_the_working_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = program();
    command.current_dir(dir.path()).args(["-d", "data", "--listen", "unix:s.sock", "config", "show"]);
    let text = stdout(&run(&mut command));
    let inside = |name: &str| dir.path().canonicalize().expect("it exists").join(name).display().to_string();
    assert!(text.contains(&format!("data_dir = \"{}\"", inside("data"))), "{text}");
    assert!(text.contains(&format!("listen = [\"unix:{}\"]", inside("s.sock"))), "{text}");
    assert!(text.contains(&format!("# data directory used: {}\n", inside("data"))), "{text}");
}

#[test]
fn secrets_come_from_files_and_credentials_and_are_never_shown() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ids = format!("# mine\n{CLIENT} # telephone and desk\n{OTHER}\n");
    let path = write_secret(dir.path(), "client_id", &ids, 0o600);
    let credential = [("CREDENTIALS_DIRECTORY", dir.path().to_str().expect("plain text"))];
    let named = [("CLIENT_ID_FILE", path.to_str().expect("plain text"))];
    let masked = r#"["********", "********"]"#;
    let from = format!("credential {}", path.display());
    assert_shown(&credential, &[], "client_id", masked, &from);
    let from = format!("environment CLIENT_ID_FILE, file {}", path.display());
    assert_shown(&named, &[], "client_id", masked, &from);
    for variables in [credential, named] {
        let output = sync_server(&variables, &["config", "show"]);
        assert!(!stdout(&output).contains("0cf0"), "{}", stdout(&output));
        assert_eq!(stdout(&sync_server(&variables, &["config", "check"])), "ok\n");
    }
}

#[test]
fn a_secret_given_twice_or_in_a_file_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = write_secret(dir.path(), "client_id", CLIENT, 0o600);
    let path = path.to_str().expect("plain text");
    for (variables, expected) in [
        ([("CLIENT_ID", CLIENT), ("CLIENT_ID_FILE", path)].as_slice(), "keep one of them"),
        (&[("CLIENT_ID_FILE", "/nowhere/id")], "file /nowhere/id): there is no such file"),
    ] {
        let output = sync_server(variables, &["config", "check"]);
        assert_eq!(output.status.code(), Some(78));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}

#[test]
fn a_secret_that_everyone_can_read_is_warned_of() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = write_secret(dir.path(), "id", CLIENT, 0o644);
    let path = path.to_str().expect("plain text");
    let output = sync_server(&[("CLIENT_ID_FILE", path)], &["config", "check"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(
        text.contains(&format!("warning: client_id (environment CLIENT_ID_FILE, file {path})")),
        "{text}"
    );
    assert!(text.contains(&format!("chmod o-r {path}\n")) && text.ends_with("ok\n"), "{text}");
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_never_skipped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().to_str().expect("plain text");
    for (path, expected) in [("/nowhere/c.toml", "there is no such file"), (dir, "cannot read it")] {
        for (variables, args) in [(&[][..], ["--config", path].as_slice()), (&[("CONFIG", path)], &[])] {
            let output = sync_server(variables, &[args, &["config", "check"]].concat());
            assert_eq!(output.status.code(), Some(78), "{path}");
            let told = stderr(&output);
            assert!(told.contains(&format!("config ({path}): {expected}")), "{told}");
        }
    }
}

#[test]
fn a_data_directory_that_nobody_can_choose_is_a_problem_of_the_configuration() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state");
    std::os::unix::fs::symlink("nowhere", &state).expect("a link");
    let mut command = program();
    command.env("CONFIG", "/dev/null").env("STATE_DIRECTORY", &state).args(["config", "check"]);
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(78));
    let told = stderr(&output);
    assert!(told.contains(&state.display().to_string()) && told.contains("DATA_DIR"), "{told}");
}

#[test]
fn what_serve_would_refuse_is_no_valid_configuration() {
    for args in [["config", "check"].as_slice(), &["serve"]] {
        let output = sync_server(&[("DAEMONIZE", "yes")], args);
        assert_eq!(output.status.code(), Some(78), "{args:?}");
        assert!(stderr(&output).contains("LOG_FILE"), "{}", stderr(&output));
    }
}

#[test]
fn problems_of_the_file_are_told_in_the_order_of_its_lines() {
    let (_dir, path) = file("zebra = 1\nant = 2\n[log]\nmouse = 3\ncat = 4\n");
    let output = sync_server(&[("CONFIG", path.as_str())], &["config", "check"]);
    let told = stderr(&output);
    let lines: Vec<&str> =
        told.lines().filter_map(|line| line.split(" line ").nth(1)?.split(':').next()).collect();
    assert_eq!(lines, ["1", "2", "4", "5"], "{told}");
}

#[test]
fn going_into_the_background_under_a_service_manager_is_usage() {
    for args in [["--daemonize"].as_slice(), &["serve", "--daemonize"], &["--daemonize=yes"]] {
        let output = sync_server(&[("NOTIFY_SOCKET", "/nowhere/notify")], args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(stderr(&output).contains("foreground"), "{}", stderr(&output));
    }
}

#[test]
fn a_reader_that_goes_away_breaks_nothing() {
    let mut command = program();
    command.args(["config", "example"]).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn every_line_of_the_example_is_valid() {
    let example = stdout(&sync_server(&[], &["config", "example"]));
    let is_option = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let options: Vec<&str> = example.lines().filter(is_option).map(|line| &line[1..]).collect();
    assert!(options.len() > 20, "{options:?}");
    // A certificate is the operator's own or got by itself, not both; by itself beside no Postgres.
    for others in [&["acme."][..], &["tls.", "connection "]] {
        let is_left_out = |line: &&str| others.iter().any(|other| line.starts_with(other));
        let options: Vec<&str> = options.iter().copied().filter(|line| !is_left_out(line)).collect();
        let (_dir, path) = file(&options.join("\n"));
        let variables = [("CONFIG", path.as_str()), ("DATA_DIR", "")];
        // Shown, not checked: the example's certificate is not on this machine.
        let output = sync_server(&variables, &["config", "show"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let shown = stdout(&output);
        // An entry of clients has three lines and one origin.
        assert_eq!(shown.matches(&format!("# {path} line ")).count(), options.len() - 2, "{shown}");
    }
    assert_eq!(stdout(&sync_server(&[], &["config", "check"])), "ok\n");
}

#[test]
fn declared_clients_are_checked_and_shown_without_their_ids() {
    let (_dir, path) = file(&format!("snapshot.days = 3\n[[clients]]\nid = '{CLIENT}'\nlabel = 'alice'\n"));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    let variables = [("CONFIG", path.as_str())];
    assert_eq!(stdout(&sync_server(&variables, &["config", "check"])), "ok\n");
    let shown = stdout(&sync_server(&variables, &["config", "show"]));
    let entry = format!("[[clients]]  # {path} line 2\nid = \"********\"\nlabel = \"alice\"\n");
    assert!(shown.contains(&entry) && !shown.contains("711d5cf3"), "{shown}");
    std::fs::write(&path, format!("[[clients]]\nid = '{CLIENT}x'\nlable = 'a'\n")).expect("it is ours");
    let output = sync_server(&variables, &["config", "check"]);
    assert_eq!(output.status.code(), Some(78));
    let told = stderr(&output);
    assert!(told.contains("line 2: the id (not shown)") && told.contains("did you mean label?"), "{told}");
}

#[test]
fn the_example_file_is_what_the_program_prints() {
    let expected = stdout(&sync_server(&[], &["config", "example"]));
    assert_current(&repository("config.example.toml"), &expected);
}

#[test]
fn the_table_of_options_in_the_readme_is_current() {
    use sync_server::config::render;
    let path = repository("README.md");
    let Ok(readme) = std::fs::read_to_string(&path) else { return };
    let (begin, end) = render::MARKERS;
    let Some((head, rest)) = readme.split_once(begin) else { return };
    let (_, tail) = rest.split_once(end).expect("the table's end is marked as well");
    assert_current(&path, &format!("{head}{begin}\n{}{end}{tail}", render::markdown()));
}

/// Compares a generated file with what it should hold, or writes it where that is wanted.
fn assert_current(path: &Path, expected: &str) {
    if std::env::var_os("SYNC_SERVER_BLESS").is_some() {
        std::fs::write(path, expected).expect("the file can be written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is stale: run the tests with SYNC_SERVER_BLESS=1 to write it",
        path.display()
    );
}

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn write_secret(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a file can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    path
}

#[test]
fn the_check_reads_the_certificate() {
    let output = sync_server(&[], &["config", "check", "--tls-cert=/nowhere.pem", "--tls-key=/nowhere.key"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).expect("text").contains("/nowhere.pem"));
}
