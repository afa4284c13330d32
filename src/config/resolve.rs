//! Flags, environment, file and defaults become one configuration. Pure.

use super::file::{self, Content, Found};
use super::setting::{Setting, Shape};
use super::source::{Origin, Sources};
use super::{
    Acme, Backup, Config, Limits, Log, LogFormat, Migration, Networks, Postgres, Proxies, RealAddress, Tls,
    Unix,
};
use super::{acme, table, warning};
use crate::protocol::SnapshotPolicy;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What the variables begin with that hold an image's own defaults, which count less than anything that an
/// operator says: a plain LISTEN in the image would silence the one in an operator's configuration file.
const PACKAGED: &str = "SYNC_SERVER_DEFAULT_";

/// The variable in which an image names options that it cannot do without: the key of each.
const NEEDED: &str = "SYNC_SERVER_NEEDS";

/// A configuration and how it came about.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// Every option, in the table's order.
    pub effective: Vec<Effective>,
}

/// What holds for one option, and who said so.
#[derive(Clone)]
pub struct Effective {
    /// The option.
    pub setting: &'static Setting,
    /// Its values in canonical form, several only for a list; empty where there is none. Secrets too.
    pub values: Vec<String>,
    /// Where they came from.
    pub origin: Origin,
}

/// Without the values, which may be secret.
impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.setting.key, self.origin)
    }
}

/// Makes one configuration of all sources: for each option the flag counts before the environment,
/// the environment before the file, the file before the default.
///
/// # Errors
/// Everything that is wrong, one line each; never empty.
pub fn resolve(sources: &Sources) -> Result<Resolved, Vec<String>> {
    let mut problems = Vec::new();
    let mut config = blank();
    let found = match &sources.file {
        Some(file) => file::parse(file, &mut problems),
        None => Content::default(),
    };
    let mut effective = Vec::new();
    for setting in table::TABLE {
        match pick(setting, sources, &found.options) {
            Ok((origin, texts)) => {
                let values = apply(setting, &origin, &texts, sources, &mut config, &mut problems);
                effective.push(Effective { setting, values, origin });
            }
            Err(problem) => problems.push(problem),
        }
    }
    acme::follow(&mut config, &mut effective);
    config.clients = found.clients;
    config.file = sources.file.as_ref().map(|file| file.path.clone());
    problems.extend(needed(sources, &effective));
    if problems.is_empty() {
        problems.extend(contradiction(&config, &effective));
        problems.extend(acme::problems(&config, &effective));
        problems.extend(half_a_pair(&config, &effective));
        problems.extend(side_door_alone(&config, &effective));
        problems.extend(open_and_closed(&config, &effective));
        problems.extend(nowhere(&config.backup, &effective));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    config.warnings = warning::warnings(&config, sources, &effective);
    Ok(Resolved { config, effective })
}

/// Nothing decided yet. The table's defaults fill all of it that is not optional.
fn blank() -> Config {
    Config {
        file: None,
        listen: Vec::new(),
        http_listen: Vec::new(),
        metrics_listen: Vec::new(),
        unix: Unix { mode: 0, group: None },
        base_path: String::new(),
        public_url: None,
        cors_origins: Vec::new(),
        trusted_proxies: Proxies::default(),
        real_address: RealAddress::default(),
        tls: Tls::default(),
        acme: Acme::default(),
        connection: None,
        postgres: Postgres {
            connections: 0,
            connect_timeout: Duration::ZERO,
            statement_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            prepare: false,
        },
        migrate: false,
        data_dir: None,
        client_id: None,
        clients: Vec::new(),
        create_clients: false,
        require_device: false,
        snapshot: SnapshotPolicy { days: 0, versions: 0 },
        limits: Limits {
            body: 0,
            memory: 0,
            memory_wait: Duration::ZERO,
            connections: 0,
            address_connections: 0,
            address_requests: 0,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            shutdown_timeout: Duration::ZERO,
        },
        address_exempt: Networks::default(),
        log: Log { level: String::new(), format: LogFormat::Text, file: None },
        migration: Migration { copy: false, copy_dir: None },
        backup: Backup::default(),
        retention_days: None,
        daemonize: false,
        pid_file: None,
        warnings: Vec::new(),
    }
}

/// The source that counts for this option, and the texts that it gives.
fn pick(
    setting: &Setting,
    sources: &Sources,
    found: &BTreeMap<&str, Found>,
) -> Result<(Origin, Vec<String>), String> {
    if let Some(texts) = sources.flags.get(setting.key) {
        let texts = texts.iter().flat_map(|text| split(setting, text)).collect();
        return Ok((Origin::Flag(format!("--{}", setting.flag())), texts));
    }
    if let Some(given) = surroundings(setting, sources)? {
        return Ok(given);
    }
    if let (Some(found), Some(file)) = (found.get(setting.key), &sources.file) {
        let texts = match &found.texts[..] {
            [text] if !found.is_array => split(setting, text),
            texts => texts.to_vec(),
        };
        return Ok((Origin::File(file.path.clone(), found.line), texts));
    }
    let packaged = sources.environment.var(&format!("{PACKAGED}{}", setting.variable()));
    let texts = packaged.or(setting.default).map_or_else(Vec::new, |default| split(setting, default));
    Ok((Origin::Default, texts))
}

/// What the environment gives: the variable, its alias, or one of the files that hold secrets.
fn surroundings(setting: &Setting, sources: &Sources) -> Result<Option<(Origin, Vec<String>)>, String> {
    let mut given = Vec::new();
    for name in std::iter::once(setting.variable()).chain(setting.names.alias.map(str::to_owned)) {
        if sources.environment.is_garbled(&name) {
            return Err(format!(
                "{} (environment {name}): the value is not UTF-8; correct or unset it",
                setting.key
            ));
        }
        if let Some(text) = sources.environment.var(&name) {
            given.push((Origin::Environment(name), split(setting, text)));
            break;
        }
    }
    for secret in sources.secrets.iter().filter(|secret| secret.key == setting.key) {
        let text = secret.file.text.as_ref().map_err(|why| {
            format!("{} ({}): {why}; correct the path or the file's permissions", setting.key, secret.origin)
        })?;
        if setting.kind.shape == Shape::One {
            let text = text.trim();
            given.push((
                secret.origin.clone(),
                Some(text).filter(|text| !text.is_empty()).map(str::to_owned).into_iter().collect(),
            ));
            continue;
        }
        let lines = text.lines().map(|line| remark_off(setting, line));
        let lines = lines.flat_map(str::split_whitespace).flat_map(|text| split(setting, text)).collect();
        given.push((secret.origin.clone(), lines));
    }
    if given.len() > 1 {
        let origins: Vec<String> = given.iter().map(|(origin, _)| origin.to_string()).collect();
        return Err(format!(
            "{}: given more than once, by {}; keep one of them",
            setting.key,
            origins.join(" and ")
        ));
    }
    Ok(given.pop())
}

/// A list of many may say whose each one is, behind a `#`; a single secret may contain one.
fn remark_off<'a>(setting: &Setting, line: &'a str) -> &'a str {
    match line.split_once('#') {
        Some((value, _)) if setting.kind.shape == Shape::List => value,
        _ => line,
    }
}

fn split(setting: &Setting, text: &str) -> Vec<String> {
    if setting.kind.shape != Shape::List {
        return vec![text.to_owned()];
    }
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Puts the texts into the configuration and gives them in canonical form.
fn apply(
    setting: &Setting,
    origin: &Origin,
    texts: &[String],
    sources: &Sources,
    config: &mut Config,
    problems: &mut Vec<String>,
) -> Vec<String> {
    let key = setting.key;
    let advice = format!("give {}, or leave it out ({})", setting.kind.expects, setting.otherwise());
    if texts.is_empty() && *origin != Origin::Default {
        problems.push(format!("{key} ({origin}): there is no value; {advice}"));
    }
    let mut values = Vec::new();
    for text in texts {
        match (setting.set)(config, text, &sources.cwd) {
            Ok(value) => values.push(value),
            Err(why) => problems.push(format!("{key} ({origin}): {} {why}; {advice}", shown(setting, text))),
        }
    }
    values
}

/// The offending value, on one line, as far as it may be seen.
fn shown(setting: &Setting, text: &str) -> String {
    if setting.secret { "the value (not shown)".to_owned() } else { format!("{text:?}") }
}

/// What no single option can see.
fn contradiction(config: &Config, effective: &[Effective]) -> Option<String> {
    let limits = &config.limits;
    if limits.large_memory() >= limits.body {
        return None;
    }
    let (memory, body) = (effective_of(effective, "body.memory")?, effective_of(effective, "body.limit")?);
    let needed = limits.body.div_ceil(3).saturating_mul(4);
    let needed = format!("{}MiB", needed.div_ceil(1 << 20));
    Some(format!(
        "body.memory ({}): {:?} has no room for one body of body.limit, {:?} ({}), beside the quarter kept for \
         small bodies; give at least {needed}, or lower body.limit",
        memory.origin,
        memory.values.concat(),
        body.values.concat(),
        body.origin,
    ))
}

/// What an image is made for would otherwise be forgotten in silence: one for Postgres without a database
/// would begin an empty history in a container's own files.
fn needed(sources: &Sources, effective: &[Effective]) -> Vec<String> {
    let keys = sources.environment.var(NEEDED).unwrap_or_default().split(',');
    let missing = keys.filter_map(|key| effective_of(effective, key)).filter(|found| found.values.is_empty());
    let say = |missing: &Effective| {
        let Setting { key, kind, .. } = missing.setting;
        let variable = missing.setting.variable();
        format!("{key}: there is no value, and this image is made for one; give {variable}, {}", kind.expects)
    };
    missing.map(say).collect()
}

/// A certificate without its key is none, nor is a key without its certificate.
fn half_a_pair(config: &Config, effective: &[Effective]) -> Option<String> {
    let tls = &config.tls;
    let (given, missing) = match (&tls.cert, &tls.key, &tls.client_ca) {
        (Some(_), None, _) => ("tls.cert", "tls.key"),
        (None, Some(_), _) => ("tls.key", "tls.cert"),
        (None, None, Some(_)) if !config.acme.is_on() => ("tls.client_ca", "tls.cert and tls.key"),
        _ => return None,
    };
    let origin = &effective_of(effective, given)?.origin;
    Some(format!("{given} ({origin}): of no use without {missing}; give that as well, or leave {given} out"))
}

/// Beside plain HTTP there is nothing to send anyone to.
fn side_door_alone(config: &Config, effective: &[Effective]) -> Option<String> {
    if config.http_listen.is_empty() || config.is_secure() {
        return None;
    }
    let origin = &effective_of(effective, "http_listen")?.origin;
    Some(format!(
        "http_listen ({origin}): of no use without HTTPS, for listen speaks plain HTTP itself; give acme.domain, or \
         tls.cert and tls.key, or leave http_listen out"
    ))
}

/// A client that its first upload would create has no device yet.
fn open_and_closed(config: &Config, effective: &[Effective]) -> Option<String> {
    if !config.require_device || !config.create_clients {
        return None;
    }
    let (required, creates) =
        (effective_of(effective, "require_device")?, effective_of(effective, "create_clients")?);
    Some(format!(
        "require_device ({}): it cannot be while create_clients ({}) is true, for a client that is created by its \
         first upload has no device yet; set create_clients to false",
        required.origin, creates.origin
    ))
}

/// Backups that are made by themselves must be put somewhere.
fn nowhere(backup: &Backup, effective: &[Effective]) -> Option<String> {
    if backup.interval.is_none() || backup.dir.is_some() {
        return None;
    }
    let origin = &effective_of(effective, "backup.interval")?.origin;
    Some(format!(
        "backup.interval ({origin}): of no use without backup.dir, which says where the backups go; give that as \
         well, or leave backup.interval out"
    ))
}

/// What holds for one option.
pub fn effective_of<'a>(effective: &'a [Effective], key: &str) -> Option<&'a Effective> {
    effective.iter().find(|effective| effective.setting.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use crate::config::source::{Flags, Secret};
    use crate::config::{Endpoint, Environment};
    use std::path::PathBuf;

    const SECRET: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

    fn file(text: &str) -> File {
        File { path: "/etc/c.toml".into(), text: Ok(text.to_owned()), world_readable: false }
    }

    fn of_file(text: &str) -> Result<Resolved, Vec<String>> {
        resolve(&Sources { file: Some(file(text)), ..Sources::default() })
    }

    fn of_environment<const N: usize>(variables: [(&str, &str); N]) -> Result<Resolved, Vec<String>> {
        resolve(&Sources { environment: variables.into(), ..Sources::default() })
    }

    fn credential(text: &str) -> Secret {
        let path = PathBuf::from("/run/credentials/client_id");
        let file = File { path: path.clone(), text: Ok(text.to_owned()), world_readable: false };
        Secret { key: "client_id", origin: Origin::Credential(path), file }
    }

    fn problem(result: Result<Resolved, Vec<String>>) -> String {
        match &result.expect_err("something is wrong")[..] {
            [problem] => problem.clone(),
            problems => panic!("{problems:#?}"),
        }
    }

    #[test]
    fn an_image_replaces_defaults_and_nothing_else() {
        let image =
            [("SYNC_SERVER_DEFAULT_LISTEN", "0.0.0.0:8080"), ("SYNC_SERVER_DEFAULT_DATA_DIR", "/data")];
        let resolved = of_environment(image).expect("all is well");
        assert_eq!(resolved.config.listen, [Endpoint::Tcp("0.0.0.0:8080".to_owned())]);
        assert_eq!(resolved.config.data_dir, Some("/data".into()));
        assert!(resolved.effective.iter().all(|effective| effective.origin == Origin::Default));
        let file = Some(file("listen = [\"localhost:1\"]"));
        let resolved = resolve(&Sources { environment: image.into(), file, ..Sources::default() });
        assert_eq!(resolved.expect("all is well").config.listen, [Endpoint::Tcp("localhost:1".to_owned())]);
    }

    #[test]
    fn what_an_image_is_made_for_must_be_given() {
        let told = problem(of_environment([("SYNC_SERVER_NEEDS", "public_url"), ("PUBLIC_URL", "")]));
        assert!(told.contains("public_url") && told.contains("PUBLIC_URL"), "{told}");
        let given = [("SYNC_SERVER_NEEDS", "public_url"), ("PUBLIC_URL", "https://tasks.example.org/")];
        assert!(of_environment(given).is_ok());
    }

    #[test]
    fn the_flag_counts_before_the_environment_and_that_before_the_file() {
        let mut sources = Sources {
            flags: Flags::from([("snapshot.days", vec!["1".to_owned()])]),
            environment: [("SNAPSHOT_DAYS", "2")].into(),
            file: Some(file("snapshot.days = 3")),
            ..Sources::default()
        };
        let days = |sources: &Sources| {
            let resolved = resolve(sources).expect("nothing is wrong");
            let effective = effective_of(&resolved.effective, "snapshot.days").expect("it is there");
            (resolved.config.snapshot.days, effective.origin.to_string())
        };
        assert_eq!(days(&sources), (1, "flag --snapshot-days".to_owned()));
        sources.flags.clear();
        assert_eq!(days(&sources), (2, "environment SNAPSHOT_DAYS".to_owned()));
        sources.environment = Environment::default();
        assert_eq!(days(&sources), (3, "/etc/c.toml line 1".to_owned()));
        sources.file = None;
        assert_eq!(days(&sources), (14, "default".to_owned()));
    }

    #[test]
    fn one_name_of_the_log_level_counts_before_the_other() {
        let level = |resolved: Result<Resolved, _>| resolved.expect("nothing is wrong").config.log.level;
        assert_eq!(level(of_environment([("RUST_LOG", "warn")])), "warn");
        assert_eq!(level(of_environment([("RUST_LOG", "warn"), ("LOG_LEVEL", "debug")])), "debug");
    }

    #[test]
    fn a_list_is_an_array_or_has_commas() {
        for text in ["listen = ['a:1', 'b:2']", "listen = 'a:1, b:2,'"] {
            let listen = of_file(text).expect(text).config.listen;
            assert_eq!(listen, [Endpoint::Tcp("a:1".to_owned()), Endpoint::Tcp("b:2".to_owned())]);
        }
    }

    #[test]
    fn an_empty_list_is_not_the_default() {
        assert!(problem(of_file("client_id = []")).contains("there is no value"));
        assert!(problem(of_environment([("CLIENT_ID", " , ")])).contains("there is no value"));
        let secrets = vec![credential("\n")];
        assert!(problem(resolve(&Sources { secrets, ..Sources::default() })).contains("there is no value"));
    }

    #[test]
    fn all_problems_are_told_at_once_each_on_one_line() {
        let sources = Sources {
            flags: Flags::from([("listen", vec!["8080,x\ny:z".to_owned()])]),
            environment: [("SNAPSHOT_DAYS", "soon"), ("CLIENT_ID", "me,you")].into(),
            file: Some(file("a = 1\n\"b\\n\" = 2\nbody.limit = '''lots\nof it'''")),
            ..Sources::default()
        };
        let problems = resolve(&sources).expect_err("much is wrong");
        assert_eq!(problems.len(), 8, "{problems:#?}");
        assert!(problems.iter().all(|problem| !problem.contains('\n')), "{problems:#?}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_beside_everything_else() {
        let text = Err("cannot read it: no".to_owned());
        let file = Some(File { path: "/etc/c.toml".into(), text, world_readable: false });
        let environment = [("SNAPSHOT_DAYS", "soon")].into();
        let problems = resolve(&Sources { file, environment, ..Sources::default() }).expect_err("two things");
        assert_eq!(problems.len(), 2, "{problems:#?}");
    }

    #[test]
    fn a_secret_given_twice_is_refused_unless_a_flag_decides() {
        let mut sources = Sources {
            environment: [("CLIENT_ID", SECRET)].into(),
            secrets: vec![credential(SECRET)],
            ..Sources::default()
        };
        let told = problem(resolve(&sources));
        assert!(told.contains("environment CLIENT_ID and credential /run/credentials/client_id"), "{told}");
        sources.flags.insert("client_id", vec![SECRET.to_owned()]);
        resolve(&sources).expect("the flag decides");
    }

    #[test]
    fn a_secret_file_holds_one_value_a_line() {
        let other = SECRET.replace('7', "8");
        let secrets = vec![credential(&format!("{SECRET}\n  {other}\r\n"))];
        let resolved = resolve(&Sources { secrets, ..Sources::default() }).expect("nothing is wrong");
        assert_eq!(resolved.config.client_id.map(|clients| clients.len()), Some(2));
    }

    #[test]
    fn a_secret_is_in_no_message() {
        let wrong = format!("{SECRET}0");
        for told in [
            problem(of_environment([("CLIENT_ID", &wrong)])),
            problem(of_file(&format!("client_id = '{wrong}'"))),
            problem(resolve(&Sources { secrets: vec![credential(&wrong)], ..Sources::default() })),
        ] {
            assert!(!told.contains("711d5cf3"), "{told}");
        }
        let resolved = of_environment([("CLIENT_ID", SECRET)]).expect("nothing is wrong");
        assert!(!format!("{resolved:?}").contains("0cf0"), "{resolved:?}");
    }

    #[test]
    fn memory_without_room_for_the_largest_body_is_refused() {
        let told = problem(of_environment([("BODY_LIMIT", "300MiB")]));
        assert!(told.contains("body.memory (default)") && told.contains("environment BODY_LIMIT"), "{told}");
        assert!(told.contains("give at least 400MiB"), "{told}");
        of_environment([("BODY_LIMIT", "300MiB"), ("BODY_MEMORY", "400MiB")]).expect("this suffices");
    }

    #[test]
    fn a_certificate_needs_its_key_and_a_key_its_certificate() {
        let told = problem(of_environment([("TLS_CERT", "/c")]));
        assert!(
            told.contains("tls.cert (environment TLS_CERT)") && told.contains("without tls.key"),
            "{told}"
        );
        assert!(problem(of_environment([("TLS_KEY", "/k")])).contains("without tls.cert;"));
        assert!(problem(of_environment([("TLS_CLIENT_CA", "/a")])).contains("without tls.cert and tls.key"));
        let tls = of_environment([("TLS_CERT", "/c"), ("TLS_KEY", "/k")]).expect("both").config.tls;
        assert_eq!((tls.cert, tls.key), (Some("/c".into()), Some("/k".into())));
    }

    #[test]
    fn clients_that_create_themselves_cannot_need_a_device() {
        let told = problem(of_environment([("REQUIRE_DEVICE", "true")]));
        assert!(told.contains("require_device (environment REQUIRE_DEVICE)"), "{told}");
        assert!(
            told.contains("create_clients (default)") && told.contains("create_clients to false"),
            "{told}"
        );
        let both = of_environment([("REQUIRE_DEVICE", "true"), ("CREATE_CLIENTS", "false")]);
        assert!(both.expect("this is how it is meant").config.require_device);
    }

    #[test]
    fn an_interval_of_backups_needs_their_directory() {
        let told = problem(of_environment([("BACKUP_INTERVAL", "24h")]));
        assert!(told.contains("BACKUP_INTERVAL") && told.contains("without backup.dir"), "{told}");
        let both = of_environment([("BACKUP_INTERVAL", "7days"), ("BACKUP_DIR", "/b")]).expect("both");
        assert_eq!(both.config.backup.interval, Some(Duration::from_secs(7 * 86_400)));
        assert!(problem(of_environment([("BACKUP_KEEP", "0")])).contains("from 1"));
    }

    #[test]
    fn a_variable_that_is_not_utf_8_is_not_passed_over() {
        use std::os::unix::ffi::OsStringExt;
        let garbled = std::ffi::OsString::from_vec(vec![b'/', 0xff]);
        let environment = Environment::new([("DATA_DIR".into(), garbled)]);
        let told = problem(resolve(&Sources { environment, ..Sources::default() }));
        assert!(told.contains("DATA_DIR") && told.contains("UTF-8"), "{told}");
    }
}
