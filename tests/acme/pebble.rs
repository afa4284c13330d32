//! A real authority for tests, `pebble`, and the DNS that it believes.

use crate::tls::{Authority, ask, shake_hands, write};
use crate::util::{Log, PATIENCE, skip};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How an authority behaves.
#[derive(Clone)]
pub struct Manners {
    /// Seconds that its certificates live.
    pub life: u32,
    /// Where it comes to look, in place of the ports 443 and 80.
    pub tls_port: u16,
    pub http_port: u16,
    /// Seconds that it sleeps at most before it comes to look.
    pub sleep: u32,
}

/// A running authority. Killed when dropped.
pub struct Pebble {
    ca: Authority,
    ports: [u16; 4],
    manners: Manners,
    names: Child,
    child: Child,
    log: Log,
}

impl Pebble {
    /// Starts one; `None`, after a word about it, where it is not installed.
    pub fn start(manners: Manners) -> Option<Pebble> {
        for name in ["pebble", "pebble-challtestsrv"] {
            if Command::new(name).arg("-h").stderr(Stdio::null()).stdout(Stdio::null()).status().is_err() {
                skip(&format!("{name} is not installed; `tests/run` installs it"));
                return None;
            }
        }
        let ca = Authority::new();
        ca.write_pair("api.pem", "api.key");
        write(&ca.path("root.pem"), &ca.issuer.pem(), 0o644);
        let ports = [(); 4].map(|()| free_port());
        let names = Command::new("pebble-challtestsrv")
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &format!("127.0.0.1:{}", ports[2])])
            .args(["-management", &format!("127.0.0.1:{}", ports[3])])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let (child, log) = spawn(&ca, ports, &manners);
        let pebble = Pebble { ca, ports, manners, names, child, log };
        pebble.await_answers();
        Some(pebble)
    }

    /// The flags for a server that asks it.
    pub fn flags(&self) -> [String; 2] {
        [
            format!("--acme-directory=https://localhost:{}/dir", self.ports[0]),
            format!("--acme-root={}", self.ca.path("root.pem").display()),
        ]
    }

    /// Kills it. What it knew is gone.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts another at the same place, which knows nothing of what went before.
    pub fn start_again(&mut self) {
        self.stop();
        (self.child, self.log) = spawn(&self.ca, self.ports, &self.manners);
        self.await_answers();
    }

    /// What it said so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Orders that were placed.
    pub fn orders(&self) -> usize {
        self.log.text().matches("Added order").count()
    }

    /// A file with the root of the certificates that it gives.
    pub fn root(&self) -> PathBuf {
        let path = self.ca.path("issued-root.pem");
        let management = format!("127.0.0.1:{}", self.ports[1]);
        let mut stream = shake_hands(&management, &Arc::new(self.ca.client())).expect("a handshake");
        let (status, pem) = ask(&mut stream, "GET /roots/0", "", "").expect("an answer");
        assert_eq!(status, 200);
        write(&path, &pem, 0o644);
        path
    }

    /// A client that trusts the certificates that it gives.
    pub fn client(&self) -> ClientConfig {
        let pem = std::fs::read(self.root()).expect("a file");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).expect("a certificate")).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let mut client = builder.with_root_certificates(roots).with_no_client_auth();
        client.resumption = rustls::client::Resumption::disabled();
        client
    }

    /// Asks that a certificate be revoked, as whoever has its key may; the status and what is said.
    pub fn revoke(&self, pem: &str) -> (u16, String) {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::from_pkcs8(kind, key.secret_pkcs8_der(), &random).expect("a key");
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let directory: Value = serde_json::from_str(&self.talk("GET", "/dir", "").2).expect("JSON");
        let path_of = |name: &str| {
            let url = directory[name].as_str().expect("a URL").to_owned();
            let path = format!("/{}", url.splitn(4, '/').nth(3).expect("a path"));
            (url, path)
        };
        loop {
            let (_, head, _) = self.talk("HEAD", &path_of("newNonce").1, "");
            let nonce = head.lines().find_map(|line| line.strip_prefix("Replay-Nonce: ")).expect("a nonce");
            let (url, path) = path_of("revokeCert");
            let jwk = json!({"crv": "P-256", "kty": "EC", "x": encode(x), "y": encode(y)});
            let protected = json!({"alg": "ES256", "jwk": jwk, "nonce": nonce, "url": url}).to_string();
            let payload = json!({"certificate": encode(&certificate)}).to_string();
            let (protected, payload) = (encode(protected.as_bytes()), encode(payload.as_bytes()));
            let signed = format!("{protected}.{payload}");
            let signature = key.sign(&random, signed.as_bytes()).expect("a signature");
            let body =
                json!({"protected": protected, "payload": payload, "signature": encode(signature.as_ref())});
            let (status, _, said) = self.talk("POST", &path, &body.to_string());
            // It rejects some nonces on purpose.
            if !said.contains("badNonce") {
                return (status, said);
            }
        }
    }

    /// One request to the authority: status, head and body of the answer.
    fn talk(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let address = format!("127.0.0.1:{}", self.ports[0]);
        let mut stream = shake_hands(&address, &Arc::new(self.ca.client())).expect("a handshake");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/jose+json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.ports[0],
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("it takes it");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a whole answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_owned(), body.to_owned())
    }

    fn await_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        for port in [self.ports[0], self.ports[1]] {
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                assert!(Instant::now() < deadline, "pebble does not answer:\n{}", self.log.text());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}

/// Rejects nonces as often as it does by itself: 5 in 100 at least.
fn spawn(ca: &Authority, ports: [u16; 4], manners: &Manners) -> (Child, Log) {
    let config = format!(
        r#"{{"pebble": {{"listenAddress": "127.0.0.1:{}", "managementListenAddress": "127.0.0.1:{}",
        "certificate": {:?}, "privateKey": {:?}, "httpPort": {}, "tlsPort": {},
        "certificateValidityPeriod": {}}}}}"#,
        ports[0],
        ports[1],
        ca.path("api.pem"),
        ca.path("api.key"),
        manners.http_port,
        manners.tls_port,
        manners.life
    );
    write(&ca.path("pebble.json"), &config, 0o644);
    let mut command = Command::new("pebble");
    command.arg("-config").arg(ca.path("pebble.json"));
    command.args(["-dnsserver", &format!("127.0.0.1:{}", ports[2])]);
    match manners.sleep {
        0 => command.env("PEBBLE_VA_NOSLEEP", "1"),
        seconds => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
    };
    // An authority that remembers who has which name would not come to look again.
    command.env("PEBBLE_AUTHZREUSE", "0");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let log = Log::follow(child.stdout.take().expect("standard output is piped"));
    (child, log)
}

/// A port that nobody has, outside of the range from which the system gives free ones: it stays free
/// until it is used.
pub fn free_port() -> u16 {
    loop {
        let port = 10_000 + (uuid::Uuid::new_v4().as_u128() % 20_000) as u16;
        let is_free =
            TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if is_free {
            return port;
        }
    }
}
