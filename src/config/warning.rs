//! What an operator is allowed to do but probably does not mean. Pure.

use super::resolve::Effective;
use super::setting::Setting;
use super::source::{Origin, Sources};
use super::{Config, Endpoint};
use std::time::Duration;

/// What is allowed but probably not meant.
pub fn warnings(config: &Config, sources: &Sources, effective: &[Effective]) -> Vec<String> {
    let mut warnings: Vec<String> = config.strangers().into_iter().collect();
    for Effective { setting, origin, .. } in effective.iter().filter(|effective| effective.setting.secret) {
        warnings.extend(exposure(setting, origin, sources));
    }
    warnings.extend(declared(config, sources));
    warnings.extend(belief(config, effective));
    warnings.extend(no_socket(config, effective));
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
    if config.backup.dir.is_some() && config.backup.interval.is_none() {
        warnings.push(
            "backup.dir: no backups are made there by themselves without backup.interval; give that as well, 24h for one"
                .to_owned(),
        );
    }
    if config.pid_file.is_some() && !config.daemonize {
        warnings.push("pid_file: it is written only where daemonize is true; leave it out".to_owned());
    }
    warnings
}

impl Config {
    /// What is amiss where others than this machine can reach the server.
    pub fn strangers(&self) -> Option<String> {
        let open: Vec<String> =
            self.listen.iter().filter(|endpoint| !endpoint.is_local()).map(address).collect();
        (!open.is_empty() && self.create_clients && self.client_id.is_none()).then(|| {
            format!(
                "listen ({}): others than this machine can reach the server, and everyone who does may store data; \
                 name the clients that may use it in CLIENT_ID, or set CREATE_CLIENTS=false once they all exist",
                open.join(", ")
            )
        })
    }
}

/// What is amiss with the proxies that are believed.
fn belief(config: &Config, effective: &[Effective]) -> Option<String> {
    let origin =
        |key| effective.iter().find(|effective| effective.setting.key == key).map(|found| &found.origin);
    if config.trusted_proxies.have_all() {
        return Some(format!(
            "trusted_proxies ({}): everybody is believed, so everybody can choose the address that is logged and \
             counted; name your proxies only",
            origin("trusted_proxies")?
        ));
    }
    let given = origin("real_address").filter(|origin| **origin != Origin::Default)?;
    config.trusted_proxies.are_none().then(|| {
        format!("real_address ({given}): of no use without trusted_proxies, which says whom to believe; give that as well")
    })
}

/// Who says who may connect to unix sockets, and has none.
fn no_socket(config: &Config, effective: &[Effective]) -> Option<String> {
    let is_unix = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Unix(_));
    if config.listen.iter().chain(&config.metrics_listen).any(is_unix) {
        return None;
    }
    let is_given = |one: &&Effective| {
        one.setting.key.starts_with("unix.") && one.origin != Origin::Default && !one.values.is_empty()
    };
    let Effective { setting, origin, .. } = effective.iter().find(is_given)?;
    Some(format!(
        "{} ({origin}): of no use without a unix socket in listen, unix:/run/sync-server/socket for example",
        setting.key
    ))
}

/// What is amiss with the clients that the file declares.
fn declared(config: &Config, sources: &Sources) -> Vec<String> {
    let (Some(first), Some(file)) = (config.clients.first(), &sources.file) else { return Vec::new() };
    let path = file.path.display();
    let mut warnings = Vec::new();
    if file.world_readable {
        warnings.push(format!(
            "clients ({path} line {}): every user of this machine can read the IDs; run chmod o-r {path}",
            first.line
        ));
    }
    let refused = |client| config.client_id.as_ref().is_some_and(|allowed| !allowed.contains(client));
    warnings.extend(config.clients.iter().filter(|declared| refused(&declared.client)).map(|declared| {
        format!(
            "clients ({path} line {}): the server refuses this client, for client_id lists others only; add its ID \
             there, or leave client_id out and set create_clients to false",
            declared.line
        )
    }));
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
mod tests {
    use super::*;
    use crate::config::file::File;
    use crate::config::resolve;
    use crate::config::source::{Flags, Secret};
    use std::path::PathBuf;

    const SECRET: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

    fn warned(sources: &Sources) -> String {
        resolve(sources).expect("nothing is wrong").config.warnings.join("\n")
    }

    fn of_environment<const N: usize>(variables: [(&str, &str); N]) -> String {
        warned(&Sources { environment: variables.into(), ..Sources::default() })
    }

    #[test]
    fn a_server_open_to_strangers_is_warned_of_and_both_ways_to_close_it_named() {
        let told = of_environment([("LISTEN", "localhost:1,0.0.0.0:8080")]);
        assert!(told.contains("0.0.0.0:8080") && !told.contains("localhost:1"), "{told}");
        assert!(told.contains("CLIENT_ID") && told.contains("CREATE_CLIENTS=false"), "{told}");
        assert_eq!(of_environment([("LISTEN", "0.0.0.0:8080"), ("CREATE_CLIENTS", "no")]), "");
        assert_eq!(of_environment([("LISTEN", "0.0.0.0:8080"), ("CLIENT_ID", SECRET)]), "");
        assert_eq!(of_environment([]), "");
    }

    #[test]
    fn what_makes_clients_fail_or_does_nothing_is_warned_of() {
        assert!(of_environment([("BODY_LIMIT", "1MiB")]).contains("body.limit"));
        assert!(of_environment([("IDLE_TIMEOUT", "60s")]).contains("idle.timeout"));
        assert!(of_environment([("BACKUP_DIR", "/backups")]).contains("backup.interval"));
        assert_eq!(of_environment([("BACKUP_DIR", "/backups"), ("BACKUP_INTERVAL", "24h")]), "");
        assert!(of_environment([("PID_FILE", "/run/s.pid")]).contains("pid_file"));
        assert!(of_environment([("REAL_ADDRESS", "forwarded")]).contains("trusted_proxies"));
        assert_eq!(of_environment([("REAL_ADDRESS", "forwarded"), ("TRUSTED_PROXIES", "unix")]), "");
        assert!(of_environment([("TRUSTED_PROXIES", "::/0")]).contains("everybody"));
        assert!(
            of_environment([("UNIX_MODE", "666")]).contains("unix.mode (environment UNIX_MODE): of no use")
        );
        assert_eq!(of_environment([("UNIX_GROUP", "www-data"), ("LISTEN", "unix:/s")]), "");
    }

    #[test]
    fn declared_clients_that_others_can_see_or_that_are_refused_are_warned_of() {
        let text = format!("[[clients]]\nid = '{SECRET}'");
        let of = |text: &str, world_readable| {
            let file = File { path: "/etc/c.toml".into(), text: Ok(text.to_owned()), world_readable };
            warned(&Sources { file: Some(file), ..Sources::default() })
        };
        assert_eq!(of(&text, false), "");
        assert!(of(&text, true).contains("clients (/etc/c.toml line 1): every user"), "{}", of(&text, true));
        let told = of(&format!("client_id = '{}'\n{text}", SECRET.replace('7', "8")), false);
        assert!(told.contains("clients (/etc/c.toml line 2): the server refuses"), "{told}");
        assert!(!told.contains("711d5cf3"), "{told}");
    }

    #[test]
    fn secrets_that_others_can_see_are_warned_of() {
        let path = PathBuf::from("/run/credentials/client_id");
        let file = File { path: path.clone(), text: Ok(SECRET.to_owned()), world_readable: false };
        let mut open = Secret { key: "client_id", origin: Origin::Credential(path), file };
        assert_eq!(warned(&Sources { secrets: vec![open.clone()], ..Sources::default() }), "");
        open.file.world_readable = true;
        let told = warned(&Sources { secrets: vec![open], ..Sources::default() });
        assert!(told.contains("chmod o-r /run/credentials/client_id"), "{told}");
        let flags = Flags::from([("client_id", vec![SECRET.to_owned()])]);
        assert!(warned(&Sources { flags, ..Sources::default() }).contains("CLIENT_ID_FILE"));
        let text = format!("client_id = '{SECRET}'");
        let file = Some(File { path: "/etc/c.toml".into(), text: Ok(text), world_readable: true });
        assert!(warned(&Sources { file, ..Sources::default() }).contains("chmod o-r /etc/c.toml"));
    }
}
