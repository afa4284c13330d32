//! Certificates from a real authority, for the real program, with real clients.

pub mod pebble;

use crate::clients::taskwarrior::{self, Taskwarrior};
use crate::clients::{Account, Device};
use crate::tls::{is_served, shake_hands};
use crate::util::{Connection, Log, PATIENCE, Server, program};
use pebble::{Manners, Pebble, free_port};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A name that every machine knows to be itself.
const NAME: &str = "localhost";

/// Seconds that outlast any test.
const LONG: u32 = 90 * 24 * 60 * 60;

/// An authority, and a server's place that it comes to look at.
struct Place {
    pebble: Pebble,
    dir: tempfile::TempDir,
    listen: String,
    http_listen: String,
}

impl Place {
    fn new(life: u32) -> Option<Place> {
        Place::with(|manners| manners.life = life)
    }

    fn with(change: impl FnOnce(&mut Manners)) -> Option<Place> {
        let [tls_port, http_port] = [free_port(), free_port()];
        let mut manners = Manners { life: LONG, tls_port, http_port, sleep: 0 };
        change(&mut manners);
        Some(Place {
            pebble: Pebble::start(manners)?,
            dir: tempfile::tempdir().expect("a directory"),
            listen: format!("127.0.0.1:{tls_port}"),
            http_listen: format!("127.0.0.1:{http_port}"),
        })
    }

    fn flags(&self, more: &[&str]) -> Vec<String> {
        let mut flags = vec![
            format!("--data-dir={}", self.dir.path().display()),
            format!("--listen={}", self.listen),
            format!("--http-listen={}", self.http_listen),
            format!("--acme-domain={NAME}"),
        ];
        flags.extend(self.pebble.flags());
        flags.extend(more.iter().map(|flag| flag.to_string()));
        if !more.iter().any(|flag| flag.starts_with("--acme-retry")) {
            flags.push("--acme-retry=1s".to_owned());
        }
        flags
    }

    fn start(&self, more: &[&str]) -> Server {
        let mut command = program();
        command.args(self.flags(more));
        Server::spawn(command, self.dir.path())
    }

    fn admin(&self, verb: &[&str]) -> Output {
        program().arg("admin").args(verb).args(self.flags(&[])).output().expect("the program runs")
    }

    fn status(&self) -> Value {
        let output = self.admin(&["cert", "status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A file that the server keeps about the authority.
    fn file(&self, name: &str) -> PathBuf {
        let folder = fs::read_dir(self.dir.path().join("acme")).expect("a directory").next();
        folder.expect("one").expect("one").path().join(name)
    }
}

fn shown(address: &str, client: &ClientConfig) -> Option<CertificateDer<'static>> {
    let mut stream = shake_hands(address, &Arc::new(client.clone())).ok()?;
    assert!(is_served(&mut stream));
    Some(stream.conn.peer_certificates()?[0].clone().into_owned())
}

/// A client that takes whatever certificate it is shown, expired ones too.
fn lax_client() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("versions").dangerous();
    let mut client = builder.with_custom_certificate_verifier(Arc::new(Lax(provider))).with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    client
}

#[derive(Debug)]
struct Lax(Arc<CryptoProvider>);

impl ServerCertVerifier for Lax {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What whoever watches over the server is told: the report, and the numbers.
fn watched(server: &Server) -> (String, String) {
    let line = server.log().wait_for("metrics at http://");
    let address =
        line.split("://").nth(1).and_then(|rest| rest.strip_suffix("/metrics")).expect("an address");
    let get = |path| Connection::open(address).request("GET", path, &[], b"").text();
    (get("/readyz?verbose"), get("/metrics"))
}

fn eventually<T>(log: &Log, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never {what}; the server's log:\n{}", log.text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_certificate_is_got_by_each_challenge_kept_and_used_again() {
    for challenge in ["tls-alpn-01", "http-01"] {
        let Some(mut place) = Place::new(LONG) else { return };
        let challenge = format!("--acme-challenge={challenge}");
        let metrics = ["--metrics-listen", "127.0.0.1:0"];
        let server = place.start(&[&challenge, "--acme-contact=admin@example.com", metrics[0], metrics[1]]);
        server.log().wait_for("by acme.domain you have agreed to the terms at ");
        let line = server.log().wait_for("a new certificate for localhost, valid until ");
        assert!(line.contains(&challenge["--acme-challenge=".len()..]), "{line}");
        let client = place.pebble.client();
        let certificate = shown(&place.listen, &client).expect("it is trusted");
        let answer = Connection::open(&place.http_listen).request("GET", "/x", &[], b"");
        assert_eq!((answer.status, answer.header("location")), (301, Some("https://localhost/x")));

        let (report, page) = watched(&server);
        assert!(report.contains("+ certificate: valid until "), "{report}");
        assert!(page.contains("\nsync_server_certificate_problem 0\n"), "{page}");
        assert!(page.contains("\nsync_server_certificate_expiry_timestamp_seconds 1"), "{page}");

        let status = place.status();
        assert_eq!(status["names"][0], NAME);
        assert_eq!((&status["last_error"], &status["failures"]), (&Value::Null, &Value::from(0)));
        assert!(status["terms"].as_str().is_some_and(|url| url.starts_with("data:") || url.contains("://")));
        for name in ["account.der", "certificate.pem", "history.json"] {
            let mode = fs::metadata(place.file(name)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        server.stop();

        // Another start asks nobody.
        place.pebble.stop();
        let server = place.start(&[&challenge]);
        server.log().wait_for("certificate for localhost, valid until ");
        assert_eq!(shown(&place.listen, &client), Some(certificate));
        assert!(!server.log().text().contains("not renewed"));
        server.stop();
    }
}

#[test]
fn until_there_is_a_certificate_everyone_is_told_so() {
    let Some(mut place) = Place::new(LONG) else { return };
    place.pebble.stop();
    let mut server = place.start(&["--acme-retry=1h", "--metrics-listen", "127.0.0.1:0"]);
    let line = server.log().wait_for("no certificate yet, so nobody can sync");
    let (report, page) = watched(&server);
    assert!(report.contains("- certificate: there is no certificate yet: "), "{report}");
    assert!(page.contains("\nsync_server_certificate_problem 1\n"), "{page}");
    assert!(line.contains("Connection refused") && line.contains("the next attempt is at "), "{line}");
    let strict = crate::tls::Authority::new().client();
    let error = shake_hands(&place.listen, &Arc::new(strict)).map(drop).expect_err("there is none");
    assert!(error.to_string().contains("AccessDenied"), "a clear alert: {error}");
    let line = server.log().wait_for("was turned away: no certificate for localhost yet");
    assert!(line.contains("Connection refused"), "it says what is waited for: {line}");
    let mut aside = Connection::open(&place.http_listen);
    assert_eq!(aside.request("GET", "/readyz", &[], b"").status, 200);
    assert_eq!(aside.request("GET", "/", &[], b"").status, 503);
    let check = program().arg("healthcheck").args(place.flags(&[])).output().expect("the program runs");
    assert!(check.status.success(), "a server that waits is well: {check:?}");
    let doctor = String::from_utf8(place.admin(&["doctor"]).stdout).expect("text");
    let told = doctor.lines().find(|line| line.contains("there is no certificate yet: ")).expect(&doctor);
    assert!(told.contains("Connection refused") && told.contains("; the next attempt is at "), "{doctor}");
    let status = place.status();
    assert_eq!((&status["names"], &status["failures"]), (&Value::Null, &Value::from(1)));
    assert!(status["problem"].as_str().is_some_and(|why| why.contains("Connection refused")), "{status}");

    // An hour is long: the operator who has mended it need not wait, and neither need a crash loop begin.
    server.kill();
    let server = place.start(&["--acme-retry=1h"]);
    server.log().wait_for("the next attempt is at ");
    place.pebble.start_again();
    assert_eq!(place.pebble.orders(), 0);
    let renewed = place.admin(&["cert", "renew"]);
    assert!(renewed.status.success(), "{renewed:?}");
    assert!(String::from_utf8_lossy(&renewed.stdout).contains("a new certificate for localhost"));
    assert!(shown(&place.listen, &place.pebble.client()).is_some());
    let doctor = String::from_utf8(place.admin(&["doctor"]).stdout).expect("text");
    let told =
        doctor.lines().find(|line| line.contains("certificate for localhost, valid until ")).expect(&doctor);
    assert!(told.contains("; to be renewed at "), "{doctor}");
    server.stop();
}

#[test]
fn what_fails_by_one_challenge_works_by_the_other() {
    let closed = free_port();
    let Some(place) = Place::with(|manners| manners.tls_port = closed) else { return };
    let server = place.start(&["--acme-retry=1h"]);
    let line = server.log().wait_for("a new certificate for localhost");
    assert!(line.contains("(http-01)"), "{line}");
    assert_eq!(place.pebble.orders(), 2);
    // It stays with what worked.
    let renewed = place.admin(&["cert", "renew"]);
    assert!(String::from_utf8_lossy(&renewed.stdout).contains("(http-01)"), "{renewed:?}");
    assert_eq!(place.pebble.orders(), 3);
    server.stop();
}

#[test]
fn a_challenge_that_fails_is_told_and_a_crash_loop_asks_no_oftener() {
    let closed = [free_port(), free_port()];
    let Some(place) = Place::with(|manners| [manners.tls_port, manners.http_port] = closed) else { return };
    let mut server = place.start(&["--acme-retry=1h"]);
    let line = server.log().wait_for("no certificate yet, so nobody can sync");
    assert!(line.contains("did not find this server at localhost (tls-alpn-01: "), "{line}");
    assert!(line.contains("; then: ") && line.contains("(http-01: "), "both were tried: {line}");
    assert_eq!(place.pebble.orders(), 2);
    for _ in 0..5 {
        server.kill();
        server = place.start(&["--acme-retry=1h"]);
        let line = server.log().wait_for("the next attempt is at ");
        assert!(line.contains("did not find this server"), "the reason is not forgotten: {line}");
    }
    assert_eq!(place.pebble.orders(), 2, "an authority's allowance is not burnt");
    // By the operator's word it is tried once, by the other way in turn.
    let output = place.admin(&["cert", "renew"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did not find this server"), "{output:?}");
    assert_eq!(place.pebble.orders(), 3);
    assert_eq!(place.status()["failures"], 2);
    server.stop();
}

#[test]
fn a_restart_in_the_middle_of_an_attempt_waits_and_goes_on() {
    let Some(place) = Place::with(|manners| manners.sleep = 3) else { return };
    let mut server = place.start(&["--acme-retry=2s"]);
    place.pebble.log().wait_for("Added order");
    server.kill();
    let status = place.status();
    let failed = status["last_error"].as_str();
    let is_done = place.file("certificate.pem").exists();
    assert!(is_done || failed == Some("the attempt was interrupted"), "{status}");
    let server = place.start(&["--acme-retry=2s"]);
    eventually(server.log(), "a certificate", || shown(&place.listen, &place.pebble.client()));
    server.stop();
}

#[test]
fn what_cannot_be_read_is_got_anew() {
    let Some(place) = Place::new(LONG) else { return };
    let server = place.start(&[]);
    server.log().wait_for("a new certificate for localhost");
    server.stop();
    for name in ["certificate.pem", "account.der", "history.json"] {
        fs::write(place.file(name), "damaged").expect("a file");
    }
    let server = place.start(&[]);
    let line = server.log().wait_for("the certificate that was kept cannot be used");
    assert!(line.contains("certificate.pem"), "{line}");
    server.log().wait_for("history.json is damaged");
    // The account is of no use either, which is found out at the first attempt.
    server.log().wait_for("a new certificate for localhost");
    assert!(server.log().text().contains("the account is refused"), "{}", server.log().text());
    assert!(shown(&place.listen, &place.pebble.client()).is_some());
    assert!(place.file("account.refused").exists());
    server.stop();

    // With other names, what there is serves until there is better.
    let server = place.start(&["--acme-domain=tasks.example.test"]);
    server.log().wait_for("a new certificate for localhost, tasks.example.test");
    assert!(shown(&place.listen, &place.pebble.client()).is_some());
    server.stop();
}

#[test]
fn a_revoked_certificate_is_served_until_the_operator_has_another_got() {
    let Some(place) = Place::new(LONG) else { return };
    let server = place.start(&[]);
    server.log().wait_for("a new certificate for localhost");
    let client = place.pebble.client();
    let revoked = shown(&place.listen, &client);
    let pem = fs::read_to_string(place.file("certificate.pem")).expect("a file");
    assert_eq!(place.pebble.revoke(&pem).0, 200);
    let (status, said) = place.pebble.revoke(&pem);
    assert!(status == 400 && said.contains("alreadyRevoked"), "{said}");
    // Clients do not ask the authority, so it is better than none, and no reason to ask for one unbidden.
    assert_eq!(shown(&place.listen, &client), revoked);
    server.stop();
    let server = place.start(&[]);
    server.log().wait_for("certificate for localhost, valid until ");
    assert_eq!(shown(&place.listen, &client), revoked);
    assert_eq!(place.pebble.orders(), 1);
    let renewed = place.admin(&["cert", "renew"]);
    assert!(renewed.status.success(), "{renewed:?}");
    let new = shown(&place.listen, &client);
    assert!(new.is_some() && new != revoked);
    server.stop();
}

#[test]
fn a_place_where_nothing_can_be_kept_is_told_and_asks_no_oftener() {
    let Some(place) = Place::new(LONG) else { return };
    let server = place.start(&["--acme-retry=1h"]);
    server.log().wait_for("a new certificate for localhost");
    server.stop();
    // Root can read whatever has a mode, but no directory as a file.
    let kept = place.file("certificate.pem");
    fs::remove_file(&kept).expect("a file");
    fs::create_dir_all(kept.join("x")).expect("a directory");
    let server = place.start(&["--acme-retry=1h"]);
    let line = server.log().wait_for("the certificate that was kept cannot be used: cannot read ");
    assert!(line.contains("certificate.pem") && line.contains("another will be got"), "{line}");
    let renewed = place.admin(&["cert", "renew"]);
    assert!(renewed.status.success(), "{renewed:?}");
    let line =
        server.log().wait_for("the new certificate is served and will be lost when the server stops: ");
    assert!(line.contains("cannot write ") && line.contains("certificate.pem"), "{line}");
    assert!(shown(&place.listen, &place.pebble.client()).is_some());
    server.stop();
    let orders = place.pebble.orders();
    for _ in 0..3 {
        let mut server = place.start(&["--acme-retry=1h"]);
        server.log().wait_for("the next attempt is at ");
        server.kill();
    }
    assert_eq!(place.pebble.orders(), orders, "an authority's allowance is not burnt");
}

#[test]
fn a_certificate_is_tried_out_and_thrown_away() {
    let Some(place) = Place::new(LONG) else { return };
    let server = place.start(&[]);
    server.log().wait_for("a new certificate for localhost");
    let client = place.pebble.client();
    let before = shown(&place.listen, &client);
    let tried = place.admin(&["cert", "test", "--json"]);
    assert!(tried.status.success(), "{tried:?}");
    let tried: Value = serde_json::from_slice(&tried.stdout).expect("JSON");
    assert!(tried["outcome"].as_str().is_some_and(|said| said.contains("thrown away")), "{tried}");
    assert_eq!(shown(&place.listen, &client), before);
    server.stop();
    let alone = place.admin(&["cert", "test"]);
    assert!(String::from_utf8_lossy(&alone.stderr).contains("no server is running"), "{alone:?}");
}

/// Syncs without end, on a device of its own; counts, and says what went wrong.
fn sync_until(stop: &AtomicBool, device: &mut dyn Device) -> Result<usize, String> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        device.add(&format!("task {count}"));
        device.sync(false)?;
        count += 1;
    }
    Ok(count)
}

fn account(place: &Place) -> Account {
    let port = place.listen.rsplit(':').next().expect("a port");
    let url = format!("https://{NAME}:{port}/");
    Account { url, client: uuid::Uuid::new_v4(), secret: "correct horse".to_owned() }
}

fn trusting(root: &Path, place: &Place, account: &Account) -> Taskwarrior {
    Taskwarrior::new(root, account).trusting(&place.pebble.root())
}

#[test]
fn real_clients_sync_on_while_certificates_come_and_go_by_tls_alpn_01() {
    sync_on_while_certificates_come_and_go("tls-alpn-01");
}

#[test]
fn real_clients_sync_on_while_certificates_come_and_go_by_http_01() {
    sync_on_while_certificates_come_and_go("http-01");
}

fn sync_on_while_certificates_come_and_go(challenge: &str) {
    let Some(task) = taskwarrior::program() else { return };
    let Some(place) = Place::new(15) else { return };
    let server = place.start(&["--acme-retry=1s", &format!("--acme-challenge={challenge}")]);
    server.log().wait_for("a new certificate for localhost");
    let account = account(&place);
    let mut device = trusting(&task, &place, &account);
    let mut kept = shake_hands(&place.listen, &Arc::new(place.pebble.client())).expect("a handshake");
    let stop = AtomicBool::new(false);
    let synced = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| sync_until(&stop, &mut device));
        eventually(server.log(), "renewed three times", || {
            assert!(is_served(&mut kept), "a connection outlives the certificate");
            let log = server.log().text();
            let is_renewal = |line: &&str| line.contains("a new certificate for") && line.contains(challenge);
            let renewals = log.lines().filter(is_renewal).count();
            (renewals >= 4 || syncing.is_finished()).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        syncing.join().expect("no panic")
    });
    let synced = synced.unwrap_or_else(|why| panic!("{why}\n{}", server.log().text()));
    assert!(synced > 0);
    let mut fresh = trusting(&task, &place, &account);
    fresh.sync(false).expect("a fresh device syncs");
    assert_eq!(fresh.tasks().len(), synced);
    server.stop();
}

#[test]
fn an_authority_that_is_gone_at_renewal_is_waited_for() {
    let Some(mut place) = Place::new(15) else { return };
    let server = place.start(&["--acme-retry=1s"]);
    server.log().wait_for("a new certificate for localhost");
    let old = shown(&place.listen, &place.pebble.client());
    let lax = lax_client();
    place.pebble.stop();
    // Louder and louder, and what there is stays in use.
    server.log().wait_for("the certificate was not renewed: ");
    server.log().wait_for("THE CERTIFICATE EXPIRED at ");
    assert_eq!(shown(&place.listen, &lax), old);
    assert!(place.status()["problem"].as_str().is_some_and(|why| why.contains("expired")));
    place.pebble.start_again();
    let new = eventually(server.log(), "renewed", || shown(&place.listen, &place.pebble.client()));
    assert_ne!(Some(new), old);
    server.stop();
}
