//! What the log says at the start: what runs where, and what to put into Taskwarrior.

use crate::config::{Config, Endpoint, Environment};
use crate::http::Entrance;
use crate::listen::Listener;
use crate::storage::location::Location;
use crate::storage::owner::quoted;
use crate::storage::registry::Registry;
use std::path::Path;

/// The first line.
pub fn begin() {
    log::info!("sync-server {}", env!("CARGO_PKG_VERSION"));
}

/// Which sockets are not the server's own.
pub fn handed(listeners: &[Listener]) {
    for listener in listeners {
        let option = match listener.entrance() {
            Entrance::Main => "listen",
            Entrance::Side => "http_listen",
            Entrance::Monitor => "metrics.listen",
        };
        log::info!(
            "{} is a socket of the service manager: the option {option} is not used",
            listener.url("/")
        );
    }
}

/// All that a person needs to know of a server that serves. `urls` are those of its listeners, `asides`
/// those of plain HTTP beside HTTPS.
pub fn serving(
    config: &Config,
    environment: &Environment,
    location: &Location,
    urls: &[String],
    asides: &[String],
) {
    match location.directory() {
        Some(data_dir) => {
            log::info!("data directory {}: {}", data_dir.display(), why(config, environment, data_dir));
        }
        None => log::info!("{location}"),
    }
    for url in urls {
        log::info!("listening on {url}");
    }
    for url in asides {
        log::info!("plain HTTP at {url} sends people to HTTPS, and refuses clients");
    }
    log::info!("{}", clients(config));
    if config.require_device {
        log::info!(
            "every request needs the name and token of a device: `sync-server admin add-device` makes them"
        );
    }
    let of_domain =
        || config.acme.domains.first().map(|domain| format!("https://{domain}{}", config.base_path));
    let url = config.public_url.clone().or_else(of_domain);
    let url = url.unwrap_or_else(|| reachable(&config.listen, urls));
    log::info!("Taskwarrior, on every device: task config sync.server.url {url}");
    log::info!(
        "Taskwarrior, on every device: task config sync.server.client_id UUID \
         (one for all devices; `sync-server admin add-client` makes one)"
    );
    log::info!(
        "Taskwarrior, on every device: task config sync.encryption_secret SECRET \
         (one for all devices; this server never learns it)"
    );
    if !config.listen.iter().all(Endpoint::is_local) && !url.starts_with("https://") {
        log::info!("plain http:// shows client IDs to whoever is on the way: a proxy in front can add TLS");
    }
}

/// Where whoever watches over the server asks.
pub fn watched(urls: &[String]) {
    for url in urls {
        log::info!("metrics at {url}");
    }
}

/// What to say where nobody can use the server yet: the one command that changes it.
pub fn nobody(config: &Config, registry: &dyn Registry) -> Option<String> {
    let is_empty = || registry.consulting(|reader| reader.search("", 1)).is_ok_and(|found| found.is_empty());
    if config.create_clients || !is_empty() {
        return None;
    }
    let place = config
        .data_dir
        .as_deref()
        .filter(|_| config.connection.is_none())
        .map_or(String::new(), |dir| format!(" --data-dir {}", quoted(dir)));
    Some(format!(
        "no client exists yet, and unknown ones are refused, so nobody can sync: `sync-server admin add-client{place}` \
         makes one and prints what to put into Taskwarrior"
    ))
}

/// Who chose the data directory.
fn why(config: &Config, environment: &Environment, data_dir: &Path) -> &'static str {
    let state = environment.var("STATE_DIRECTORY").and_then(|dirs| dirs.split(':').next());
    if config.data_dir.is_some() {
        "as configured"
    } else if state.is_some_and(|state| Path::new(state) == data_dir) {
        "as the service manager says"
    } else if data_dir.starts_with("/var/lib/taskchampion-sync-server") {
        "a database of taskchampion-sync-server is there"
    } else if data_dir.starts_with("/var/lib") {
        "the default"
    } else {
        "the user's own, because /var/lib/sync-server cannot be written"
    }
}

fn clients(config: &Config) -> String {
    let creates = if config.create_clients { "are created at their first sync" } else { "are refused" };
    match &config.client_id {
        None => format!("clients that are not known yet {creates}"),
        Some(allowed) => {
            let clients = if allowed.len() == 1 { "client" } else { "clients" };
            format!("{} {clients} may use this server; those not known yet {creates}", allowed.len())
        }
    }
}

/// The first listener's URL, under the name that the operator gave it, and with "all addresses"
/// replaced by what only the operator knows.
fn reachable(listen: &[Endpoint], urls: &[String]) -> String {
    let Some(url) = urls.iter().find(|url| url.starts_with("http")) else {
        return "URL (that of the proxy in front of this server)".to_owned();
    };
    let first = listen.iter().find_map(|endpoint| match endpoint {
        Endpoint::Tcp(address) => Some(address),
        Endpoint::Unix(_) => None,
    });
    if first.is_some_and(|address| address.starts_with("localhost:")) {
        return url.replace("//127.0.0.1:", "//localhost:").replace("//[::1]:", "//localhost:");
    }
    url.replace("//0.0.0.0:", "//NAME-OF-THIS-MACHINE:").replace("//[::]:", "//NAME-OF-THIS-MACHINE:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_for_taskwarrior_is_one_that_a_device_can_use() {
        let urls = |urls: &[&str]| urls.iter().map(|url| url.to_string()).collect::<Vec<_>>();
        let reachable = |urls: &[String]| reachable(&[], urls);
        assert_eq!(reachable(&urls(&["unix:/x", "http://localhost:8080/"])), "http://localhost:8080/");
        assert_eq!(reachable(&urls(&["http://0.0.0.0:80/t/"])), "http://NAME-OF-THIS-MACHINE:80/t/");
        assert_eq!(reachable(&urls(&["http://[::]:80/"])), "http://NAME-OF-THIS-MACHINE:80/");
        assert_eq!(reachable(&urls(&["https://[::]:443/"])), "https://NAME-OF-THIS-MACHINE:443/");
        assert!(reachable(&urls(&["unix:/x"])).contains("proxy"));
    }

    #[test]
    fn localhost_stays_localhost_whatever_its_first_address_is() {
        let listen = [Endpoint::Unix("/x".into()), Endpoint::Tcp("localhost:0".to_owned())];
        let urls =
            ["unix:/x".to_owned(), "http://[::1]:8080/".to_owned(), "http://127.0.0.1:8080/".to_owned()];
        assert_eq!(reachable(&listen, &urls), "http://localhost:8080/");
    }

    #[test]
    fn the_reason_for_the_data_directory_is_told() {
        let config = Config::default();
        let environment = Environment::from([("STATE_DIRECTORY", "/var/lib/private/x:/other")]);
        let why = |dir| why(&config, &environment, Path::new(dir));
        assert_eq!(why("/var/lib/private/x"), "as the service manager says");
        assert_eq!(
            why("/var/lib/taskchampion-sync-server/data"),
            "a database of taskchampion-sync-server is there"
        );
        assert_eq!(why("/var/lib/sync-server"), "the default");
        assert!(why("/home/me/.local/share/sync-server").contains("cannot be written"));
    }
}
