//! TLS with the operator's own certificate, on the real program, with a raw client.

use crate::clients::taskwarrior::{self, Taskwarrior};
use crate::clients::{Account, Device, two_devices_agree};
use crate::util::{Connection, NIL, PATIENCE, SEGMENT, Server, program};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion, version,
};
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CLIENT: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

/// An answer that came within this time was not held up by anything.
const PROMPT: Duration = Duration::from_secs(3);

/// A certificate authority and a directory for the files that a server is given.
pub struct Authority {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
        Authority { issuer: issuer.expect("a certificate"), dir: tempfile::tempdir().expect("a directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn issue(&self, params: CertificateParams) -> (CertificateDer<'static>, String, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.der().clone(), certificate.pem(), key)
    }

    /// Writes `cert` with its chain and `key` for localhost, and returns the certificate.
    pub fn write_pair(&self, cert: &str, key: &str) -> CertificateDer<'static> {
        self.write_pair_of(localhost(), cert, key)
    }

    pub fn write_pair_of(&self, params: CertificateParams, cert: &str, key: &str) -> CertificateDer<'static> {
        let (der, pem, pair) = self.issue(params);
        write(&self.path(cert), &format!("{pem}{}", self.issuer.pem()), 0o644);
        write(&self.path(key), &pair.serialize_pem(), 0o600);
        der
    }

    /// The flags for `cert.pem` and `key.pem`.
    pub fn flags(&self) -> [String; 2] {
        self.flags_for("cert.pem", "key.pem")
    }

    fn flags_for(&self, cert: &str, key: &str) -> [String; 2] {
        [
            format!("--tls-cert={}", self.path(cert).display()),
            format!("--tls-key={}", self.path(key).display()),
        ]
    }

    /// A server with `cert.pem` and `key.pem`.
    pub fn start(&self, more: &[&str]) -> Server {
        let [cert, key] = self.flags();
        Server::start(&[&[&*cert, &*key], more].concat())
    }

    /// A client that trusts this authority.
    pub fn client(&self) -> ClientConfig {
        self.client_of(&[&version::TLS12, &version::TLS13])
    }

    fn client_of(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut client = self.builder(versions).with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        client
    }

    fn builder(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        builder.with_protocol_versions(versions).expect("versions").with_root_certificates(roots)
    }
}

pub fn localhost() -> CertificateParams {
    CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names")
}

pub fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a file can be written");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

pub type Secure = StreamOwned<ClientConnection, TcpStream>;

pub fn shake_hands(address: &str, client: &Arc<ClientConfig>) -> io::Result<Secure> {
    shake_hands_on(TcpStream::connect(address)?, client)
}

/// The same on a connection on which something else was said before.
pub fn shake_hands_on(socket: TcpStream, client: &Arc<ClientConfig>) -> io::Result<Secure> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(client.clone(), name).expect("a client");
    let mut stream = StreamOwned::new(session, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

pub fn secure(server: &Server, client: ClientConfig) -> Secure {
    shake_hands(&server.address, &Arc::new(client)).expect("the handshake succeeds")
}

/// One request on a kept connection: the status and the body.
pub fn ask(stream: &mut Secure, request: &str, headers: &str, body: &str) -> io::Result<(u16, String)> {
    let length = body.len();
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let at = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = head[at..].to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok((status, String::from_utf8(body).expect("text")))
}

pub fn is_served(stream: &mut Secure) -> bool {
    ask(stream, "GET /", "", "").is_ok_and(|(status, body)| status == 200 && body.contains("TaskChampion"))
}

fn shown_certificate(server: &Server, client: &ClientConfig) -> CertificateDer<'static> {
    // Without the memory of earlier connections.
    let mut client = client.clone();
    client.resumption = rustls::client::Resumption::disabled();
    let stream = secure(server, client);
    stream.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().expect("the program runs")
}

/// What a start that is refused says, and its exit code.
fn refused(flags: &[String]) -> (String, Option<i32>) {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = dir.path().join("data");
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data_dir).args(flags);
    let output = command.output().expect("the program runs");
    assert!(!data_dir.exists(), "a refused start has touched the data directory");
    (String::from_utf8(output.stderr).expect("text"), output.status.code())
}

#[test]
fn both_versions_are_spoken_and_a_history_is_kept() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&[]);
    server.log().wait_for("listening on https://127.0.0.1:");
    server.log().wait_for("certificate for localhost, 127.0.0.1, valid until 4096-01-01");
    let mut parent = NIL.to_owned();
    for (version, expected) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let mut stream = secure(&server, authority.client_of(&[version]));
        assert_eq!(stream.conn.protocol_version(), Some(expected));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let headers = format!("X-Client-Id: {CLIENT}\r\nContent-Type: {SEGMENT}\r\n");
        let add = format!("POST /v1/client/add-version/{parent}");
        assert_eq!(ask(&mut stream, &add, &headers, "a segment").expect("an answer").0, 200);
        let fetch = format!("GET /v1/client/get-child-version/{parent}");
        let fetched = ask(&mut stream, &fetch, &format!("X-Client-Id: {CLIENT}\r\n"), "");
        assert_eq!(fetched.expect("an answer"), (200, "a segment".to_owned()));
        // The next one follows this one: a refusal names it.
        let (status, _) = ask(&mut stream, &add, &headers, "another").expect("an answer");
        assert_eq!(status, 409);
        let line = server.log().wait_for("path=/v1/client/get-child-version/");
        assert!(line.contains("peer=127.0.0.1:"), "{line}");
        parent = latest(&mut stream);
    }
    server.stop();
}

/// The client's latest version, which an AddVersion with a wrong parent is told.
fn latest(stream: &mut Secure) -> String {
    let wrong = uuid::Uuid::new_v4();
    let request = format!(
        "POST /v1/client/add-version/{wrong} HTTP/1.1\r\nHost: localhost\r\nX-Client-Id: {CLIENT}\r\n\
         Content-Type: {SEGMENT}\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    );
    stream.write_all(request.as_bytes()).expect("the server takes it");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and a clean end");
    let line = answer.lines().find_map(|line| line.strip_prefix("x-parent-version-id: "));
    line.unwrap_or_else(|| panic!("no latest version: {answer}")).to_owned()
}

#[test]
fn older_versions_and_other_protocols_are_refused() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&[]);
    let knock = |minor| {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.write_all(&hello(minor)).expect("the server takes it");
        stream
    };
    let mut answer = [0];
    knock(3).read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, [0x16], "TLS 1.2 is spoken, so that what follows is about the version");
    for minor in [1, 2] {
        let mut answer = Vec::new();
        knock(minor).read_to_end(&mut answer).expect("an alert and a clean close");
        // A fatal alert: protocol_version.
        assert_eq!((answer[0], &answer[answer.len() - 2..]), (0x15, &[2, 70][..]), "{answer:?}");
    }
    let mut client = authority.client();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let error =
        shake_hands(&server.address, &Arc::new(client.clone())).map(drop).expect_err("nothing in common");
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    client.alpn_protocols.clear();
    assert!(is_served(&mut secure(&server, client)), "ALPN is no duty");
    let stranger = Authority::new().client();
    shake_hands(&server.address, &Arc::new(stranger)).map(drop).expect_err("this authority is not trusted");
    server.log().wait_for("handshake with 127.0.0.1:");
}

/// Everything that is spoken: forward secrecy and authenticated encryption, nothing else.
#[test]
fn exactly_the_sound_cipher_suites_are_spoken() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let rsa_cert = format!("--tls-cert={}", fixtures.join("rsa-certificate.pem").display());
    let rsa_key = format!("--tls-key={}", fixtures.join("rsa-key-pkcs1.pem").display());
    let [ecdsa, rsa] = [authority.start(&[]), Server::start(&[&rsa_cert, &rsa_key])];
    let answer_to = |server: &Server, suite: [u8; 2]| {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.write_all(&hello_with(3, &suite)).expect("the server takes it");
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).expect("an answer");
        // A handshake goes on, or there is a fatal alert: handshake_failure.
        match answer {
            [0x16, ..] => true,
            [0x15, .., 2, 40] => false,
            _ => panic!("{suite:x?}: {answer:x?}"),
        }
    };
    // ECDHE with AES-128-GCM, AES-256-GCM and ChaCha20-Poly1305, by the key of the certificate.
    let of_ecdsa = [[0xc0, 0x2b], [0xc0, 0x2c], [0xcc, 0xa9]];
    let of_rsa = [[0xc0, 0x2f], [0xc0, 0x30], [0xcc, 0xa8]];
    for suite in of_ecdsa {
        assert!(answer_to(&ecdsa, suite) && !answer_to(&rsa, suite), "{suite:x?}");
    }
    for suite in of_rsa {
        assert!(answer_to(&rsa, suite) && !answer_to(&ecdsa, suite), "{suite:x?}");
    }
    for unsound in [
        [0x00, 0x00], // no encryption at all
        [0x00, 0x03], // export RC4
        [0x00, 0x05], // RC4
        [0x00, 0x0a], // 3DES
        [0x00, 0x2f], // RSA key exchange, AES-128-CBC
        [0x00, 0x35], // the same with AES-256
        [0x00, 0x9c], // RSA key exchange, AES-128-GCM
        [0x00, 0x9e], // finite-field Diffie-Hellman
        [0x00, 0x18], // anonymous
        [0xc0, 0x07], // ECDHE with RC4
        [0xc0, 0x09], // ECDHE-ECDSA with AES-128-CBC
        [0xc0, 0x13], // ECDHE-RSA with AES-128-CBC
        [0xc0, 0x24], // ECDHE-ECDSA with AES-256-CBC and SHA-384
    ] {
        assert!(!answer_to(&ecdsa, unsound) && !answer_to(&rsa, unsound), "{unsound:x?}");
    }
    let provider = rustls::crypto::ring::default_provider();
    for suite in provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some()) {
        let mut provider = provider.clone();
        provider.cipher_suites = vec![*suite];
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(&[&version::TLS13]).expect("versions");
        let client = builder.with_root_certificates(roots).with_no_client_auth();
        assert!(is_served(&mut secure(&ecdsa, client)), "{suite:?}");
    }
}

/// The first message of a client that speaks nothing newer than TLS 1.0 (1), 1.1 (2) or 1.2 (3).
pub fn hello(minor: u8) -> Vec<u8> {
    // ECDHE-ECDSA with AES-128, as TLS 1.2 has it (GCM) and as TLS 1.0 has it (CBC).
    hello_with(minor, &[0xc0, 0x2b, 0xc0, 0x09])
}

fn hello_with(minor: u8, suites: &[u8]) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0]);
    // Groups: P-256. Point formats: uncompressed. Signatures with SHA-256: ECDSA on P-256, RSA-PSS.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 6, 0, 4, 4, 3, 8, 4];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut message = vec![1, 0, 0, body.len() as u8];
    message.extend(&body);
    let mut record = vec![0x16, 3, 1, 0, message.len() as u8];
    record.extend(message);
    record
}

#[test]
fn a_session_is_resumed() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&[]);
    for version in [&version::TLS12, &version::TLS13] {
        let client = Arc::new(authority.client_of(&[version]));
        let kind = || {
            let mut stream = shake_hands(&server.address, &client).expect("the handshake succeeds");
            assert!(is_served(&mut stream));
            stream.conn.handshake_kind()
        };
        assert_eq!(kind(), Some(HandshakeKind::Full));
        assert_eq!(kind(), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

#[test]
fn every_form_of_key_is_taken() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    // PKCS#8 of a P-256 key ends in what SEC1 is: one sequence whose length is its second byte.
    let pkcs8 = KeyPair::from_pem(&fs::read_to_string(authority.path("key.pem")).expect("a key"));
    let pkcs8 = pkcs8.expect("a key").serialize_der();
    let at =
        (1..pkcs8.len()).find(|&at| pkcs8[at] == 0x30 && at + 2 + usize::from(pkcs8[at + 1]) == pkcs8.len());
    write(&authority.path("sec1.pem"), &pem("EC PRIVATE KEY", &pkcs8[at.expect("SEC1")..]), 0o600);
    let [cert, key] = authority.flags_for("cert.pem", "sec1.pem");
    assert!(is_served(&mut secure(&Server::start(&[&cert, &key]), authority.client())));

    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let cert = format!("--tls-cert={}", fixtures.join("rsa-certificate.pem").display());
    let key = format!("--tls-key={}", fixtures.join("rsa-key-pkcs1.pem").display());
    let server = Server::start(&[&cert, &key]);
    let check = run(&["healthcheck", "--listen", &server.address, &cert, &key]);
    assert!(check.status.success(), "{check:?}");
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for (group, bytes) in der.chunks(3).enumerate() {
        let bits =
            bytes.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - bytes.len()));
        for at in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at > bytes.len() { '=' } else { digit.into() });
        }
        if group % 16 == 15 {
            text.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", text.trim_end())
}

#[test]
fn what_cannot_be_used_is_refused_before_anything_is_touched() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    authority.write_pair("other.pem", "other-key.pem");
    write(&authority.path("empty.pem"), "nothing in here\n", 0o600);
    write(
        &authority.path("broken.pem"),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        0o600,
    );
    let text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    write(&authority.path("locked.pem"), text, 0o600);
    for (cert, key, told) in [
        ("cert.pem", "other-key.pem", "does not belong to"),
        ("missing.pem", "key.pem", "tls.cert: cannot read"),
        ("cert.pem", "missing.pem", "tls.key: cannot read"),
        ("empty.pem", "key.pem", "holds no certificate"),
        ("broken.pem", "key.pem", "is no sound PEM file"),
        ("cert.pem", "empty.pem", "holds no private key"),
        ("cert.pem", "locked.pem", "passphrase"),
    ] {
        let (said, code) = refused(&authority.flags_for(cert, key));
        assert!(said.contains(told) && code == Some(1), "{cert} {key}: {code:?} {said}");
        let named = if told.contains("belong") { vec![cert, key] } else { vec![] };
        assert!(
            named.iter().all(|file| said.contains(&authority.path(file).display().to_string())),
            "{said}"
        );
    }
    let mut flags = authority.flags().to_vec();
    flags.push(format!("--tls-client-ca={}", authority.path("empty.pem").display()));
    let (said, _) = refused(&flags);
    assert!(said.contains("tls.client_ca") && said.contains("holds no certificate"), "{said}");
    let (said, code) = refused(&authority.flags()[..1]);
    assert!(said.contains("tls.cert (flag --tls-cert): of no use without tls.key"), "{said}");
    assert_eq!(code, Some(78));
}

#[test]
fn what_is_doubtful_is_served_and_warned_of() {
    let authority = Authority::new();
    let mut params = localhost();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 2, 3);
    authority.write_pair_of(params, "cert.pem", "key.pem");
    fs::set_permissions(authority.path("key.pem"), Permissions::from_mode(0o644)).expect("it is ours");
    let server = authority.start(&[]);
    server.log().wait_for("EXPIRED on 2021-02-03");
    server.log().wait_for("run chmod o-r");
    let [cert, key] = authority.flags();
    let check = run(&["healthcheck", "--listen", &server.address, &cert, &key]);
    assert!(check.status.success(), "an expired certificate is no reason to stop: {check:?}");

    let mut params = CertificateParams::new([]).expect("no names");
    params.not_before = rcgen::date_time_ymd(2090, 1, 1);
    authority.write_pair_of(params, "cert.pem", "key.pem");
    server.signal("HUP");
    server.log().wait_for("is not valid before 2090-01-01");
    server.log().wait_for("names no host");
}

#[test]
fn a_hangup_takes_up_a_new_certificate_and_kept_connections_go_on() {
    let authority = Authority::new();
    let old = authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&[]);
    let mut kept = secure(&server, authority.client());
    assert!(is_served(&mut kept));
    let new = authority.write_pair("cert.pem", "key.pem");
    assert_eq!(shown_certificate(&server, &authority.client()), old);
    server.signal("HUP");
    let deadline = Instant::now() + PATIENCE;
    while shown_certificate(&server, &authority.client()) != new {
        assert!(Instant::now() < deadline, "{}", server.log().text());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_served(&mut kept));

    // Files that cannot be used change nothing, and whoever asks for the reload learns why.
    write(&authority.path("cert.pem"), "broken", 0o644);
    let data_dir = server.data_dir().to_str().expect("plain text").to_owned();
    let reload = run(&["reload", "--data-dir", &data_dir]);
    let said = String::from_utf8(reload.stderr).expect("text");
    assert_eq!(reload.status.code(), Some(1));
    assert!(said.contains("the old certificate stays in use") && said.contains("cert.pem"), "{said}");
    server.log().wait_for("not reloaded, the old certificate stays in use");
    assert_eq!(shown_certificate(&server, &authority.client()), new);
    assert!(is_served(&mut kept));
    server.stop();
}

#[test]
fn files_that_change_are_taken_up_unasked() {
    let authority = Authority::new();
    for folder in ["one", "two", "broken"] {
        fs::create_dir(authority.path(folder)).expect("a directory");
    }
    authority.write_pair("one/cert.pem", "one/key.pem");
    let new = authority.write_pair("two/cert.pem", "two/key.pem");
    authority.write_pair("broken/cert.pem", "broken/key.pem");
    authority.write_pair("other.pem", "broken/key.pem");
    // As Kubernetes does it: the files are links through a link that is replaced.
    let point_to = |folder: &str| {
        symlink(folder, authority.path("next")).expect("a link");
        fs::rename(authority.path("next"), authority.path("data")).expect("a link can be replaced");
    };
    point_to("one");
    for file in ["cert.pem", "key.pem"] {
        symlink(Path::new("data").join(file), authority.path(file)).expect("a link");
    }
    let server = authority.start(&[]);
    let mut kept = secure(&server, authority.client());
    point_to("two");
    let deadline = Instant::now() + PATIENCE;
    while shown_certificate(&server, &authority.client()) != new {
        assert!(Instant::now() < deadline, "{}", server.log().text());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(is_served(&mut kept));
    point_to("broken");
    server.log().wait_for("the old certificate stays in use: tls.key");
    assert_eq!(shown_certificate(&server, &authority.client()), new);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(server.log().text().matches("the old certificate stays in use").count(), 1, "said once");
}

#[test]
fn a_client_certificate_is_required_where_an_authority_is_named() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let guests = Authority::new();
    write(&authority.path("guests.pem"), &guests.issuer.pem(), 0o644);
    let client_ca = format!("--tls-client-ca={}", authority.path("guests.pem").display());
    let socket = format!("unix:{}", authority.path("socket").display());
    let server = authority.start(&["--listen", &socket, &client_ca]);
    let guest_of = |authority_of_guest: &Authority, version| {
        let mut params = CertificateParams::new([]).expect("no names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (der, _, key) = authority_of_guest.issue(params);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        authority.builder(&[version]).with_client_auth_cert(vec![der], key).expect("a pair")
    };
    for version in [&version::TLS12, &version::TLS13] {
        assert!(is_served(&mut secure(&server, guest_of(&guests, version))), "{version:?}");
        for stranger in [authority.client_of(&[version]), guest_of(&authority, version)] {
            // In TLS 1.3 the client learns only afterwards that it was not let in.
            let mut stream = shake_hands(&server.address, &Arc::new(stranger));
            assert!(!stream.as_mut().is_ok_and(is_served), "{version:?}");
        }
    }
    let [cert, key] = authority.flags();
    let check = ["healthcheck", "--listen", &server.address, &cert, &key, &client_ca];
    let alone = run(&check);
    let said = String::from_utf8(alone.stderr).expect("text");
    assert!(alone.status.code() == Some(1) && said.contains("add a unix socket to listen"), "{said}");
    let beside = run(&[&check[..], &["--listen", &socket]].concat());
    assert!(beside.status.success(), "{beside:?}");
}

#[test]
fn http_at_the_tls_door_is_told_so() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&[]);
    let client = [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT)];
    for _ in 0..3 {
        let mut connection = server.connect();
        let answer =
            connection.request("POST", &format!("/v1/client/add-version/{NIL}"), &client, &[1; 100_000]);
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("https://") && answer.text().ends_with(".\n"), "{}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
    let line = server.log().wait_for("speaks plain HTTP");
    assert!(line.contains("127.0.0.1:") && line.contains("change http:// to https://"), "{line}");
    assert_eq!(server.log().text().matches("speaks plain HTTP").count(), 1);
    assert!(is_served(&mut secure(&server, authority.client())));
}

/// Taskwarrior 3.5 asks the system whom to trust.
#[test]
fn taskwarrior_syncs_where_it_trusts_the_authority_and_only_there() {
    let Some(task) = taskwarrior::program() else { return };
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    write(&authority.path("root.pem"), &authority.issuer.pem(), 0o644);
    let server = authority.start(&[]);
    let port = server.address.rsplit(':').next().expect("a port");
    let url = format!("https://localhost:{port}/");
    let account = Account { url, client: uuid::Uuid::new_v4(), secret: "correct horse".to_owned() };
    let device = || Taskwarrior::new(&task, &account).trusting(&authority.path("root.pem"));
    two_devices_agree(&mut device(), &mut device());
    let stranger = Authority::new();
    write(&stranger.path("root.pem"), &stranger.issuer.pem(), 0o644);
    let mut other = Taskwarrior::new(&task, &account).trusting(&stranger.path("root.pem"));
    other.sync(false).expect_err("it does not know the authority");
    server.stop();
}

#[test]
fn tls_at_the_http_door_is_closed_cleanly() {
    let authority = Authority::new();
    let server = Server::start(&[]);
    for _ in 0..3 {
        let error = shake_hands(&server.address, &Arc::new(authority.client()))
            .map(drop)
            .expect_err("there is no TLS");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }
    let line = server.log().wait_for("speaks TLS");
    assert!(line.contains("127.0.0.1:") && line.contains("https:// to http://"), "{line}");
    assert_eq!(server.log().text().matches("speaks TLS").count(), 1);
    assert_eq!(server.request("GET", "/", &[], b"").status, 200);
}

#[test]
fn a_handshake_that_stalls_is_cut_and_holds_up_nobody_else() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&["--header-timeout", "2s"]);
    let start = Instant::now();
    let hello = hello(3);
    let mut stalled: Vec<_> = (0..30)
        .map(|n| {
            let mut connection = Connection::open(&server.address);
            // Some say nothing, some not all.
            connection.send(&hello[..n]);
            connection
        })
        .collect();
    let mut stream = secure(&server, authority.client());
    assert!(is_served(&mut stream));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for connection in &mut stalled {
        assert!(connection.is_closed());
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(2) + PROMPT, "{took:?}");
    assert!(is_served(&mut stream));
}

#[test]
fn a_handshake_counts_as_a_connection_and_ends_with_the_server() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&["--connections-limit", "1", "--header-timeout", "1s"]);
    let start = Instant::now();
    let stalled = server.connect();
    assert!(is_served(&mut secure(&server, authority.client())));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    drop(stalled);

    let server = authority.start(&["--header-timeout", "60s"]);
    let mut stalled = server.connect();
    assert!(is_served(&mut secure(&server, authority.client())));
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    assert!(stalled.is_closed());
}

#[test]
fn the_health_check_believes_its_own_listener_and_of_others_only_the_certified() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    authority.write_pair("other.pem", "other-key.pem");
    let server = authority.start(&[]);
    let [cert, key] = authority.flags();
    let check = run(&["healthcheck", "--listen", &server.address, &cert, &key]);
    assert!(check.status.success(), "{check:?}");

    // While the files change, the server serves what it has, and that is what is asked.
    let [cert, key] = authority.flags_for("other.pem", "other-key.pem");
    let changed = run(&["healthcheck", "--listen", &server.address, &cert, &key]);
    assert!(changed.status.success(), "{changed:?}");

    let url = format!("https://{}/readyz", server.address);
    let unknown = run(&["healthcheck", &url]);
    let said = String::from_utf8(unknown.stderr).expect("text");
    assert!(unknown.status.code() == Some(1) && said.contains("certificate"), "{said}");
    let [cert, key] = authority.flags();
    let known = run(&["healthcheck", &url, &cert, &key]);
    assert!(known.status.success(), "{known:?}");
    let plain = run(&["healthcheck", &url.replace("https", "http")]);
    assert!(String::from_utf8(plain.stderr).expect("text").contains("status 400"));
}
