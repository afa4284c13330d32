//! What a device must be told: the lines for Taskwarrior, as text and as a QR code.

use super::{FAILURE, Refusal, refusal};
use crate::config::{Config, Endpoint};
use crate::protocol::ClientId;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

/// The URL that devices use, as far as the configuration tells, and a warning where it hardly does.
pub fn server_url(config: &Config) -> (String, Option<String>) {
    if let Some(url) = &config.public_url {
        return (url.clone(), None);
    }
    if let Some(domain) = config.acme.domains.first() {
        return (format!("https://{domain}{}", config.base_path), None);
    }
    let tcp = config.listen.iter().find_map(|endpoint| match endpoint {
        Endpoint::Tcp(address) => Some(address),
        Endpoint::Unix(_) => None,
    });
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let address = match tcp.and_then(|address| address.rsplit_once(':')) {
        Some(("0.0.0.0" | "[::]" | "*", port)) => format!("{node}:{port}"),
        Some((host, port)) => format!("{host}:{port}"),
        None => node,
    };
    let warning = "the URL is a guess: set the option public_url to the one that devices use";
    let warning = if is_local(config) {
        "the URL works on this machine only, as the server does: see listen and public_url"
    } else {
        warning
    };
    let scheme = if config.is_secure() { "https" } else { "http" };
    (format!("{scheme}://{address}{}", config.base_path), Some(warning.to_owned()))
}

/// Whether only this machine can reach the server itself.
pub fn is_local(config: &Config) -> bool {
    config.listen.iter().all(Endpoint::is_local)
}

/// The URL with a device's name and token, as both generations of clients take it. Neither needs to
/// be encoded there.
pub fn with_device(url: &str, name: &str, token: &str) -> String {
    url.replacen("://", &format!("://{name}:{token}@"), 1)
}

/// The command that tells Taskwarrior 3 where the server is.
pub fn url_command(url: &str) -> String {
    format!("task config sync.server.url {url}\n")
}

/// The commands that set up Taskwarrior 3, one a line. Without a secret the devices keep theirs.
pub fn commands(url: &str, client: ClientId, secret: Option<&str>) -> String {
    let mut lines = format!("{}task config sync.server.client_id {}\n", url_command(url), client.uuid());
    if let Some(secret) = secret {
        lines.push_str(&format!("task config sync.encryption_secret {secret}\n"));
    }
    lines
}

/// A text as a QR code for a terminal, dark on light.
pub fn qr(text: &str) -> Result<String, Refusal> {
    let code = QrCode::new(text.trim_end())
        .map_err(|error| refusal(FAILURE, format!("the settings do not fit into a QR code: {error}")))?;
    // Terminals are dark more often than not, and readers want the dark on light.
    let drawn = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Ok(format!("{drawn}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(listen: &[&str], public: Option<&str>, base_path: &str) -> (String, Option<String>) {
        let listen = listen.iter().map(|text| match text.strip_prefix("unix:") {
            Some(path) => Endpoint::Unix(path.into()),
            None => Endpoint::Tcp(text.to_string()),
        });
        server_url(&Config {
            listen: listen.collect(),
            public_url: public.map(str::to_owned),
            base_path: base_path.to_owned(),
            ..Config::default()
        })
    }

    #[test]
    fn a_device_stands_in_front_of_the_host() {
        let url = with_device("https://tasks.example.org/a://b/", "laptop", "t-0_k");
        assert_eq!(url, "https://laptop:t-0_k@tasks.example.org/a://b/");
    }

    #[test]
    fn the_url_is_the_public_one_or_a_guess_that_says_so() {
        let public = Some("https://tasks.example.org/");
        assert_eq!(url(&["0.0.0.0:80"], public, "/"), ("https://tasks.example.org/".to_owned(), None));
        let (local, warning) = url(&["unix:/s", "localhost:8080"], None, "/tasks/");
        assert_eq!(local, "http://localhost:8080/tasks/");
        assert!(warning.expect("a warning").contains("this machine only"));
        let (guess, warning) = url(&["[::]:81"], None, "/");
        assert!(guess.starts_with("http://") && guess.ends_with(":81/") && !guess.contains("::"), "{guess}");
        assert!(warning.expect("a warning").contains("public_url"));
    }
}
