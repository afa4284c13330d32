//! Flags, environment, file and defaults become one configuration. Pure.

use super::file::{self, File, Found};
use super::table::{self, Setting, Shape};
use super::{Config, Endpoint, Environment, Limits, Log, LogFormat, Migration};
use crate::protocol::SnapshotPolicy;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The values of the flags that were given, by the key of their option.
pub type Flags = BTreeMap<&'static str, Vec<String>>;

/// Everything that a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The flags.
    pub flags: Flags,
    /// The environment.
    pub environment: Environment,
    /// The configuration file.
    pub file: Option<File>,
    /// Files that hold one secret each.
    pub secrets: Vec<Secret>,
    /// The directory from which relative paths are meant.
    pub cwd: PathBuf,
}

/// A file that holds one secret.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The key of its option.
    pub key: &'static str,
    /// Who named the file.
    pub origin: Origin,
    /// The file, and whether everyone on the machine may read it.
    pub file: File,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag, with its dashes.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// A file that an environment variable names.
    SecretFile(String, PathBuf),
    /// A file in $CREDENTIALS_DIRECTORY.
    Credential(PathBuf),
    /// A line of the configuration file, counted from 1.
    File(PathBuf, usize),
    /// Nobody gave one.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Environment(variable) => write!(f, "environment {variable}"),
            Origin::SecretFile(variable, path) => {
                write!(f, "environment {variable}, file {}", path.display())
            }
            Origin::Credential(path) => write!(f, "credential {}", path.display()),
            Origin::File(path, line) => write!(f, "{} line {line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

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
        None => BTreeMap::new(),
    };
    let mut effective = Vec::new();
    for setting in table::TABLE {
        match pick(setting, sources, &found) {
            Ok((origin, texts)) => {
                let values = apply(setting, &origin, &texts, sources, &mut config, &mut problems);
                effective.push(Effective { setting, values, origin });
            }
            Err(problem) => problems.push(problem),
        }
    }
    config.file = sources.file.as_ref().map(|file| file.path.clone());
    if problems.is_empty() {
        problems.extend(contradiction(&config, &effective));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    config.warnings = warnings(&config, sources, &effective);
    Ok(Resolved { config, effective })
}

/// Nothing decided yet. The table's defaults fill all of it that is not optional.
fn blank() -> Config {
    Config {
        file: None,
        listen: Vec::new(),
        base_path: String::new(),
        public_url: None,
        data_dir: None,
        client_id: None,
        create_clients: false,
        snapshot: SnapshotPolicy { days: 0, versions: 0 },
        limits: Limits {
            body: 0,
            memory: 0,
            memory_wait: Duration::ZERO,
            connections: 0,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            shutdown_timeout: Duration::ZERO,
        },
        log: Log { level: String::new(), format: LogFormat::Text, file: None },
        migration: Migration { copy: false, copy_dir: None },
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
    let texts = setting.default.map_or_else(Vec::new, |default| split(setting, default));
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
        let lines = text.split_whitespace().flat_map(|text| split(setting, text)).collect();
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

fn effective_of<'a>(effective: &'a [Effective], key: &str) -> Option<&'a Effective> {
    effective.iter().find(|effective| effective.setting.key == key)
}

/// What is allowed but probably not meant.
fn warnings(config: &Config, sources: &Sources, effective: &[Effective]) -> Vec<String> {
    let mut warnings = Vec::new();
    let open: Vec<String> =
        config.listen.iter().filter(|endpoint| !endpoint.is_local()).map(address).collect();
    if !open.is_empty() && config.create_clients && config.client_id.is_none() {
        warnings.push(format!(
            "listen ({}): others than this machine can reach the server, and everyone who does may store data; \
             name the clients that may use it in CLIENT_ID, or set CREATE_CLIENTS=false once they all exist",
            open.join(", ")
        ));
    }
    for Effective { setting, origin, .. } in effective.iter().filter(|effective| effective.setting.secret) {
        warnings.extend(exposure(setting, origin, sources));
    }
    if config.limits.body < 2 << 20 {
        warnings.push(
            "body.limit: clients send versions of 1 MB and larger snapshots, and fail where one is \
             refused; give 2MiB or more"
                .to_owned(),
        );
    }
    if config.limits.idle_timeout < Duration::from_secs(75) {
        warnings.push(
            "idle.timeout: clients do not repeat an upload that meets a connection closed just then; \
             give 75s or more"
                .to_owned(),
        );
    }
    if config.daemonize && config.log.file.is_none() {
        warnings.push(
            "daemonize: standard error is closed in the background, so the log is lost; \
             give log.file as well"
                .to_owned(),
        );
    }
    warnings
}

fn address(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp(address) => address.clone(),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Who else can see a secret.
fn exposure(setting: &Setting, origin: &Origin, sources: &Sources) -> Option<String> {
    let key = setting.key;
    let path = match origin {
        Origin::Flag(flag) => {
            let file = setting.file_variable()?;
            return Some(format!(
                "{key} (flag {flag}): every user of this machine sees it in the list of processes; \
                 put it into a file and name that in {file}"
            ));
        }
        Origin::File(path, _) if sources.file.as_ref()?.world_readable => path,
        Origin::SecretFile(_, path) | Origin::Credential(path) => {
            let given = sources.secrets.iter().find(|secret| secret.origin == *origin)?;
            if !given.file.world_readable {
                return None;
            }
            path
        }
        _ => return None,
    };
    Some(format!(
        "{key} ({origin}): every user of this machine can read it; run chmod o-r {}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {}
