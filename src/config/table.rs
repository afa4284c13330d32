//! Every option, declared once: flag, variable, key, documentation and meaning all come from here.

use super::setting::{Kind, Names, Setting, Shape};
use super::value::{self, Parsed};
use super::{LogFormat, RealAddress, acme};

const DERIVED: Names = Names { short: None, long: None, variable: None, alias: None };

const fn kind(name: &'static str, expects: &'static str) -> Kind {
    Kind { name, expects, shape: Shape::One, bare: false, names_file: false }
}

static ADDRESSES: Kind = Kind {
    shape: Shape::List,
    ..kind("ADDRESS", "a host and a port such as localhost:8080 or [::]:8080, or unix: and a path")
};
static TCP_ADDRESSES: Kind = Kind { shape: Shape::List, ..kind("ADDRESS", "a host and a port such as *:80") };
static DOMAINS: Kind = Kind { shape: Shape::List, ..kind("DOMAIN", "a host name such as tasks.example.com") };
static MAIL: Kind = kind("ADDRESS", "an e-mail address such as admin@example.com");
static DIRECTORY: Kind =
    kind("AUTHORITY", "production, staging, or a URL such as https://ca.example.org/directory");
static CHALLENGE: Kind = kind("CHALLENGE", "auto, tls-alpn-01 or http-01");
static CLIENT_IDS: Kind = Kind {
    shape: Shape::List,
    ..kind("CLIENT_ID", "a UUID such as a client ID of Taskwarrior, sync.server.client_id")
};
static SWITCH: Kind = Kind { shape: Shape::Switch, bare: true, ..kind("BOOL", "true or false") };
static OFF: Kind = Kind { shape: Shape::Off, bare: true, ..kind("BOOL", "true or false") };
static NUMBER: Kind = Kind { bare: true, ..kind("NUMBER", "a whole number such as 100") };
static PATH: Kind = Kind { names_file: true, ..kind("PATH", "a path") };
static SIZE: Kind = kind("SIZE", "a size such as 100MiB");
static TIME: Kind = kind("TIME", "a time such as 30s, 5m or 500ms");
static INTERVAL: Kind = kind("TIME", "a time such as 24h or 7days");
static PROXIES: Kind =
    Kind { shape: Shape::List, ..kind("ADDRESS", "an address, a network such as 10.0.0.0/8, or unix") };
static NETWORKS: Kind =
    Kind { shape: Shape::List, ..kind("ADDRESS", "an address or a network such as 203.0.113.0/24") };
static REAL_ADDRESS: Kind = kind("HEADER", "x-forwarded-for, forwarded or proxy-protocol");
static ORIGINS: Kind = Kind {
    shape: Shape::List,
    ..kind("ORIGIN", "an origin such as https://tasks.example.org or http://localhost:8000, or *")
};
static URL_PATH: Kind = kind("PATH", "a path such as /tasks/");
static URL: Kind = kind("URL", "a URL such as https://tasks.example.org/");
static LEVELS: Kind = kind(
    "LEVELS",
    "off, error, warn, info, debug or trace, for all or by module: warn,sync_server::http=debug",
);
static MODE: Kind = kind("MODE", "a mode in octal digits such as 660 or 666, in quotes in the file");
static GROUP: Kind = kind("GROUP", "the name or number of a group such as www-data");
static CONNECTION: Kind = kind("CONNECTION", "a URI such as postgresql://user:password@host/database");
static FORMAT: Kind = kind("FORMAT", "text or json");

/// What most options are like.
const PLAIN: Setting = Setting {
    key: "",
    section: "",
    kind: &PATH,
    default: None,
    unset: "",
    example: "",
    secret: false,
    in_file: true,
    names: DERIVED,
    doc: "",
    long: "",
    set: |_, _, _| Ok(String::new()),
};

const GENERAL: &str = "General";
const NETWORK: &str = "Network";
const TLS: &str = "TLS";
const ACME: &str = "Certificates by themselves";
const CLIENTS: &str = "Clients";
const SNAPSHOTS: &str = "Snapshots";
const STORAGE: &str = "Storage";
const BACKUPS: &str = "Backups";
const LIMITS: &str = "Limits";
const LOG: &str = "Log";
const METRICS: &str = "Metrics";
const PROCESS: &str = "Process";

/// Where the configuration is read from where nobody names a file.
pub const DEFAULT_FILE: &str = "/etc/sync-server/config.toml";

/// All options, in the order in which they are explained.
pub static TABLE: &[Setting] = &[
    Setting {
        key: "config",
        section: GENERAL,
        unset: "/etc/sync-server/config.toml where it exists",
        in_file: false,
        doc: "The configuration file",
        long: "A TOML file; `sync-server config example` prints one. A file that cannot be read is an error, \
               never skipped. /dev/null stands for no file.",
        set: |config, text, cwd| put_some(&mut config.file, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "listen",
        section: NETWORK,
        kind: &ADDRESSES,
        default: Some("localhost:8080"),
        names: Names { short: Some('l'), ..DERIVED },
        doc: "Where to listen",
        long: "Host names, IPv4 addresses, IPv6 addresses in brackets, each with a port, and unix sockets as \
               unix:/path; *:8080 is every address of this machine; several are separated by commas. With \
               tls.cert or acme.domain these are the HTTPS addresses. Beyond this machine use TLS, here or in front \
               of it, and decide who may use the server: see client_id and create_clients. With acme.domain the \
               default is *:443.",
        set: |config, text, cwd| push(&mut config.listen, value::endpoint(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "http_listen",
        section: NETWORK,
        kind: &TCP_ADDRESSES,
        unset: "none; with acme.domain *:80",
        example: "*:80",
        doc: "Where to speak plain HTTP beside HTTPS",
        long: "For certificate authorities (acme.domain, unless acme.challenge is tls-alpn-01) and people who type the name into a browser: they are sent to the HTTPS address. Clients are \
               refused there and never redirected, for a redirect loses what they upload, and the log names the \
               URL that they must use. /healthz and /readyz are answered. The HTTPS addresses are those of \
               listen.",
        set: |config, text, _| push(&mut config.http_listen, value::tcp_endpoint(text)),
        ..PLAIN
    },
    Setting {
        key: "unix.mode",
        section: NETWORK,
        kind: &MODE,
        default: Some("660"),
        doc: "The mode of unix sockets, by which it is decided who may connect",
        long: "Of those in listen and metrics.listen. Whoever may write may connect: with 660 the server's user and the \
               group, with 666 everyone who can reach the directory. Sockets from systemd have SocketMode= in their \
               unit.",
        set: |config, text, _| put(&mut config.unix.mode, value::mode(text)),
        ..PLAIN
    },
    Setting {
        key: "unix.group",
        section: NETWORK,
        kind: &GROUP,
        unset: "the server's own",
        example: "www-data",
        doc: "The group of unix sockets",
        long: "That of a proxy, for example. The server's user must be a member of it: by `usermod -a -G`, or \
               SupplementaryGroups= in its unit. Groups that /etc/group does not have are given by number.",
        set: |config, text, _| put_some(&mut config.unix.group, value::group(text)),
        ..PLAIN
    },
    Setting {
        key: "base_path",
        section: NETWORK,
        kind: &URL_PATH,
        default: Some("/"),
        doc: "The path under which the protocol is served",
        long: "For a proxy that passes paths on as they are. With /tasks/ the URL for Taskwarrior ends in \
               /tasks/; nothing is served elsewhere.",
        set: |config, text, _| put(&mut config.base_path, value::base_path(text)),
        ..PLAIN
    },
    Setting {
        key: "public_url",
        section: NETWORK,
        kind: &URL,
        unset: "that of acme.domain, else of the first listener",
        example: "https://tasks.example.org/",
        doc: "The URL that clients use",
        long: "What the server prints for people who set up Taskwarrior. Needed where a proxy stands in front.",
        set: |config, text, _| put_some(&mut config.public_url, value::url(text)),
        ..PLAIN
    },
    Setting {
        key: "cors.origins",
        section: NETWORK,
        kind: &ORIGINS,
        unset: "none",
        example: "https://tasks.example.org",
        doc: "The web pages whose programs may use the server, by their origins",
        long: "For TaskChampion programs that run in a browser: no other page's program is let through to the answers \
               by the browser. An origin is a scheme, a host, and the port where it is not the usual one. * is every \
               page, also those that only this machine or its network can see.",
        set: |config, text, _| push(&mut config.cors_origins, value::origin(text)),
        ..PLAIN
    },
    Setting {
        key: "trusted_proxies",
        section: NETWORK,
        kind: &PROXIES,
        unset: "none",
        example: "127.0.0.1",
        doc: "The proxies that are believed when they name a client's address",
        long: "Addresses and networks, and the word unix for whoever comes by a unix socket. The address that such a \
               proxy names is the one that is logged and counted; without this all who are behind a proxy look like \
               one. Never name a network from which clients come by themselves: they could call themselves anything.",
        set: |config, text, _| config.trusted_proxies.add(text),
        ..PLAIN
    },
    Setting {
        key: "real_address",
        section: NETWORK,
        kind: &REAL_ADDRESS,
        default: Some("x-forwarded-for"),
        doc: "How trusted proxies name a client's address",
        long: "By the header X-Forwarded-For, the header Forwarded (RFC 7239), or the PROXY protocol, version 1 or 2. \
               The last address that is no trusted proxy's counts. With proxy-protocol every connection of a trusted \
               proxy must begin with that header, before TLS too, and `sync-server healthcheck` sends one where its \
               own address is trusted.",
        set: |config, text, _| {
            config.real_address = match text {
                "x-forwarded-for" => RealAddress::XForwardedFor,
                "forwarded" => RealAddress::Forwarded,
                "proxy-protocol" => RealAddress::ProxyProtocol,
                _ => return Err("is no such header".to_owned()),
            };
            Ok(text.to_owned())
        },
        ..PLAIN
    },
    Setting {
        key: "tls.cert",
        section: TLS,
        unset: "none: plain HTTP",
        example: "/etc/sync-server/fullchain.pem",
        doc: "The server's own certificate, with its chain",
        long: "A PEM file: the server's certificate first, then those that lead to its authority. With it and \
               tls.key every TCP listener speaks HTTPS; unix sockets stay plain. Taken up anew on SIGHUP, on \
               `sync-server reload`, and some seconds after one of the files changed; where the new ones cannot \
               be used, the old ones stay in use and a warning says why. An expired certificate is served, and \
               warned of. Taskwarrior trusts the public authorities only.",
        set: |config, text, cwd| put_some(&mut config.tls.cert, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "tls.key",
        section: TLS,
        unset: "none",
        example: "/etc/sync-server/privkey.pem",
        doc: "The private key of that certificate",
        long: "A PEM file without a passphrase: PKCS#8, PKCS#1 or SEC1. Nobody but the server's own user should \
               be able to read it.",
        set: |config, text, cwd| put_some(&mut config.tls.key, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "tls.client_ca",
        section: TLS,
        unset: "none: clients show no certificate",
        example: "/etc/sync-server/client-ca.pem",
        doc: "The authorities whose certificates clients must show",
        long: "A PEM file. For proxies and programs of one's own: Taskwarrior has no certificate to show. Nor has \
               `sync-server healthcheck`, which asks a unix socket then: add one to listen.",
        set: |config, text, cwd| put_some(&mut config.tls.client_ca, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "acme.domain",
        section: ACME,
        kind: &DOMAINS,
        unset: "none",
        example: "tasks.example.com",
        doc: "The names for which the server gets and renews a certificate by itself",
        long: "All that is needed on a machine that the names lead to: HTTPS is served at port 443 then, and port \
               80 answers the authority. To name a domain is to agree to the terms of the authority, Let's Encrypt \
               unless acme.directory names another; the log names their URL. Account, keys and certificate are \
               kept in the data directory, in acme/.",
        set: |config, text, _| push(&mut config.acme.domains, acme::domain(text)),
        ..PLAIN
    },
    Setting {
        key: "acme.contact",
        section: ACME,
        kind: &MAIL,
        unset: "none",
        example: "admin@example.com",
        doc: "Where the authority may write to",
        long: "Not needed: the log and `sync-server admin cert status` tell of failures.",
        set: |config, text, _| put_some(&mut config.acme.contact, acme::contact(text)),
        ..PLAIN
    },
    Setting {
        key: "acme.directory",
        section: ACME,
        kind: &DIRECTORY,
        default: Some("production"),
        doc: "The authority that is asked",
        long: "production is Let's Encrypt, staging its other half, whose certificates nobody trusts and which may \
               be asked more often. Others by the URL of their ACME directory.",
        set: |config, text, _| put(&mut config.acme.directory, acme::directory(text)),
        ..PLAIN
    },
    Setting {
        key: "acme.root",
        section: ACME,
        unset: "the public authorities",
        example: "/etc/sync-server/acme-root.pem",
        doc: "Who vouches for that authority's server",
        long: "A PEM file, for authorities of one's own.",
        set: |config, text, cwd| put_some(&mut config.acme.root, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "acme.challenge",
        section: ACME,
        kind: &CHALLENGE,
        default: Some("auto"),
        doc: "How the server shows that it has its names",
        long: "tls-alpn-01 needs port 443 only, http-01 port 80; auto takes them in turn until one works, and \
               stays with it.",
        set: |config, text, _| put(&mut config.acme.challenge, acme::challenge(text)),
        ..PLAIN
    },
    Setting {
        key: "acme.retry",
        section: ACME,
        kind: &TIME,
        default: Some("5m"),
        doc: "How long after a failure the next attempt is made, at least",
        long: "Doubled after each further failure, up to 12 hours, and sooner as the end of a certificate in hand \
               nears. It is kept on disk: a restart does not make it shorter, for authorities count failures. \
               `sync-server admin cert renew` tries at once.",
        set: |config, text, _| put(&mut config.acme.retry, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "client_id",
        section: CLIENTS,
        kind: &CLIENT_IDS,
        unset: "all clients",
        example: "00000000-0000-4000-8000-000000000000",
        secret: true,
        names: Names { short: Some('C'), long: Some("allow-client-id"), ..DERIVED },
        doc: "The clients that may use the server",
        long: "Every other client is refused. A client ID is a credential: prefer CLIENT_ID_FILE (one ID a line, and `# remarks`) \
               or a systemd credential named client_id to a flag, which every user of the machine can see.",
        set: |config, text, _| {
            let (client, shown) = value::client_id(text)?;
            config.client_id.get_or_insert_default().insert(client);
            Ok(shown)
        },
        ..PLAIN
    },
    Setting {
        key: "create_clients",
        section: CLIENTS,
        kind: &OFF,
        default: Some("true"),
        names: Names { long: Some("no-create-clients"), ..DERIVED },
        doc: "Whether the first upload of an unknown client creates it",
        long: "With false, or the flag, only clients that the database knows may use the server. Clients that \
               client_id names are created by their first upload only while this is true.",
        set: |config, text, _| put(&mut config.create_clients, value::switch(text)),
        ..PLAIN
    },
    Setting {
        key: "require_device",
        section: CLIENTS,
        kind: &SWITCH,
        default: Some("false"),
        doc: "Whether every request needs the name and token of a device",
        long: "`sync-server admin add-device` makes them. With true an unknown client, one that client_id does not name,                one without devices, and a missing or wrong token all get the same answer, 401, so that nobody can find                out which clients exist. It needs create_clients to be false. Without it only clients that have devices                need a token.",
        set: |config, text, _| put(&mut config.require_device, value::switch(text)),
        ..PLAIN
    },
    Setting {
        key: "snapshot.versions",
        section: SNAPSHOTS,
        kind: &NUMBER,
        default: Some("100"),
        doc: "Ask for a new snapshot after this many versions",
        long: "Urgently after one and a half times as many. A snapshot spares a new replica the whole history.",
        set: |config, text, _| put(&mut config.snapshot.versions, value::number(text)),
        ..PLAIN
    },
    Setting {
        key: "snapshot.days",
        section: SNAPSHOTS,
        kind: &NUMBER,
        default: Some("14"),
        doc: "Ask for a new snapshot after this many days",
        long: "Urgently after one and a half times as many.",
        set: |config, text, _| put(&mut config.snapshot.days, value::number(text)),
        ..PLAIN
    },
    Setting {
        key: "retention_days",
        section: SNAPSHOTS,
        kind: &NUMBER,
        unset: "none: versions are kept forever",
        example: "180",
        doc: "Remove versions that are older than so many days and covered by a snapshot",
        long: "At least 30. The server does it by itself at quiet times, once a day and a little at a time, and `sync-server \
               admin prune` at once. A device that was away for longer cannot sync any more: it gets 410 and must be \
               set up anew.",
        set: |config, text, _| put_some(&mut config.retention_days, value::retention(text)),
        ..PLAIN
    },
    Setting {
        key: "data_dir",
        section: STORAGE,
        unset: "$STATE_DIRECTORY, else /var/lib/sync-server, else below the home directory",
        example: "/var/lib/sync-server",
        names: Names { short: Some('d'), ..DERIVED },
        doc: "The directory that holds the database",
        long: "Of no meaning with connection. The database is taskchampion-sync-server.sqlite3 there. One that taskchampion-sync-server wrote is \
               used as it is. Unless told otherwise the server takes $STATE_DIRECTORY, else \
               /var/lib/sync-server where that can be written, else sync-server in $XDG_DATA_HOME or \
               ~/.local/share; and where that holds no database, but /var/lib/taskchampion-sync-server or its \
               data directory does, that one. Where both do, the server asks to be told.",
        set: |config, text, cwd| put_some(&mut config.data_dir, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "connection",
        section: STORAGE,
        kind: &CONNECTION,
        unset: "none: SQLite in data_dir",
        example: "postgresql://sync-server@db.example.org/tasks?sslmode=verify-full",
        secret: true,
        names: Names { short: Some('c'), ..DERIVED },
        doc: "The Postgres database to use instead of SQLite",
        long: "A URI or keys and values, as libpq takes them; with it data_dir has no meaning. Several hosts are \
               tried in their order, for the one that takes writes. sslmode is disable, prefer, require, verify-ca or \
               verify-full, with the authorities in the PEM file sslrootcert, or else the public ones; sslcert and \
               sslkey name a certificate of our own. The tables are made by the first start; one of \
               taskchampion-sync-server-postgres is used as it is. Any number of servers may use one database.",
        set: |config, text, _| put_some(&mut config.connection, value::connection(text)),
        ..PLAIN
    },
    Setting {
        key: "postgres.connections",
        section: STORAGE,
        kind: &NUMBER,
        default: Some("16"),
        doc: "How many connections to Postgres may be open at once",
        long: "Of each server. All of them together must stay below max_connections of the database.",
        set: |config, text, _| put(&mut config.postgres.connections, value::count(text)),
        ..PLAIN
    },
    Setting {
        key: "postgres.connect_timeout",
        section: STORAGE,
        kind: &TIME,
        default: Some("3s"),
        doc: "How long a connection to Postgres may take to be made",
        long: "Of several hosts each may take as long. A request that needs a connection and gets none is answered 503.",
        set: |config, text, _| put(&mut config.postgres.connect_timeout, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "postgres.statement_timeout",
        section: STORAGE,
        kind: &TIME,
        default: Some("10s"),
        doc: "How long Postgres may take for one statement",
        long: "Then its request is answered 503. A request that waited as long for its turn is, too.",
        set: |config, text, _| put(&mut config.postgres.statement_timeout, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "postgres.idle_timeout",
        section: STORAGE,
        kind: &TIME,
        default: Some("10m"),
        doc: "After how long a connection to Postgres that is not used is closed",
        long: "One stays open.",
        set: |config, text, _| put(&mut config.postgres.idle_timeout, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "postgres.prepare",
        section: STORAGE,
        kind: &SWITCH,
        default: Some("true"),
        doc: "Whether statements are prepared once for each connection to Postgres",
        long: "Set it to false behind a pooler that hands connections on between transactions, as pgbouncer does with \
               pool_mode = transaction. Nothing is then set for a session: put timeouts into the role, with ALTER ROLE.",
        set: |config, text, _| put(&mut config.postgres.prepare, value::switch(text)),
        ..PLAIN
    },
    Setting {
        key: "migrate",
        section: STORAGE,
        kind: &OFF,
        default: Some("true"),
        names: Names { long: Some("no-migrate"), ..DERIVED },
        doc: "Whether the database's tables are brought up to date at the start",
        long: "With false, or the flag, a start on tables of another release fails and says what to do: \
               `sync-server admin migrate` does it, and with --dry-run prints the SQL.",
        set: |config, text, _| put(&mut config.migrate, value::switch(text)),
        ..PLAIN
    },
    Setting {
        key: "migration.copy",
        section: STORAGE,
        kind: &SWITCH,
        default: Some("true"),
        doc: "Whether a copy of the database is kept before its tables are changed",
        long: "Of SQLite only: make a dump of Postgres yourself. Made once before a new release, or the first start on a database of taskchampion-sync-server, \
               changes the tables of a database that holds data. It needs as much space as the database.",
        set: |config, text, _| put(&mut config.migration.copy, value::switch(text)),
        ..PLAIN
    },
    Setting {
        key: "migration.copy_dir",
        section: STORAGE,
        unset: "the data directory",
        example: "/var/backups/sync-server",
        doc: "Where that copy is kept",
        long: "For data directories on a file system without the space.",
        set: |config, text, cwd| put_some(&mut config.migration.copy_dir, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "backup.dir",
        section: BACKUPS,
        unset: "none",
        example: "/var/backups/sync-server",
        doc: "The directory for backups that the server makes by itself",
        long: "Best on another disk than the database. It is made if it is missing. With backup.interval the server \
               puts its backups there, named like sync-server-20260131T020000Z.backup; other files in it are left \
               alone.",
        set: |config, text, cwd| put_some(&mut config.backup.dir, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "backup.interval",
        section: BACKUPS,
        kind: &INTERVAL,
        unset: "none: the server makes no backups",
        example: "24h",
        doc: "How long after one backup the server makes the next",
        long: "Counted from the newest backup in backup.dir, so a restart makes none that is not due. A failure is an \
               error in the log, and tried again after 15 minutes.",
        set: |config, text, _| put_some(&mut config.backup.interval, value::interval(text)),
        ..PLAIN
    },
    Setting {
        key: "backup.keep",
        section: BACKUPS,
        kind: &NUMBER,
        default: Some("7"),
        doc: "How many backups the server keeps in that directory",
        long: "Older ones are removed after a new one was written and verified.",
        set: |config, text, _| put(&mut config.backup.keep, value::count(text)),
        ..PLAIN
    },
    Setting {
        key: "body.limit",
        section: LIMITS,
        kind: &SIZE,
        default: Some("100MiB"),
        doc: "The largest body of a request, decoded",
        long: "Larger ones are refused. Versions stay near 1 MB, but snapshots are never cut, and a snapshot that \
               is refused fails every sync of its user: keep it generous. At most 900MiB.",
        set: |config, text, _| put(&mut config.limits.body, value::body_size(text)),
        ..PLAIN
    },
    Setting {
        key: "body.memory",
        section: LIMITS,
        kind: &SIZE,
        default: Some("256MiB"),
        doc: "The memory that all bodies in flight may hold together",
        long: "Requests and responses. A quarter is kept for small bodies, so that large ones cannot block \
               everyone; the rest must have room for one body of body.limit.",
        set: |config, text, _| put(&mut config.limits.memory, value::size(text)),
        ..PLAIN
    },
    Setting {
        key: "body.wait",
        section: LIMITS,
        kind: &TIME,
        default: Some("30s"),
        doc: "How long a request waits for its share of that memory",
        long: "Then it is answered 503. Clients give up after 60 s.",
        set: |config, text, _| put(&mut config.limits.memory_wait, value::duration_or_none(text)),
        ..PLAIN
    },
    Setting {
        key: "body.timeout",
        section: LIMITS,
        kind: &TIME,
        default: Some("30s"),
        doc: "How long a body, sent or received, may make no progress",
        long: "Then it is given up and the connection closed; a request is answered 408 first.",
        set: |config, text, _| put(&mut config.limits.body_timeout, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "header.timeout",
        section: LIMITS,
        kind: &TIME,
        default: Some("10s"),
        doc: "How long the head of a request may take from its first byte to its last",
        long: "Then it is answered 408 and the connection closed.",
        set: |config, text, _| put(&mut config.limits.header_timeout, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "idle.timeout",
        section: LIMITS,
        kind: &TIME,
        default: Some("90s"),
        doc: "How long a connection may wait for its next request",
        long: "Clients do not repeat an upload that meets a connection closed just then, so their sync fails: \
               keep it at 75s or more, and longer than the same time of a proxy in front.",
        set: |config, text, _| put(&mut config.limits.idle_timeout, value::duration(text)),
        ..PLAIN
    },
    Setting {
        key: "connections.limit",
        section: LIMITS,
        kind: &NUMBER,
        default: Some("1024"),
        doc: "How many connections may be open at once",
        long: "Further ones wait in the kernel's queue, and connections that say nothing, idle or hardly move make room for \
               them. Each takes a file descriptor: the limit of open files is raised \
               as far as the system lets the server, and where that is not enough, fewer are let in.",
        set: |config, text, _| put(&mut config.limits.connections, value::count(text)),
        ..PLAIN
    },
    Setting {
        key: "address.connections",
        section: LIMITS,
        kind: &NUMBER,
        default: Some("128"),
        doc: "How many connections one address may have open",
        long: "Further ones are answered 429, or closed before a TLS handshake. An IPv6 address counts with its network \
               of 64 bits. This and address.requests hold neither for unix sockets nor for addresses of this machine and \
               of private networks, unless a proxy in trusted_proxies names them. 0 is no limit.",
        set: |config, text, _| put(&mut config.limits.address_connections, value::number(text)),
        ..PLAIN
    },
    Setting {
        key: "address.requests",
        section: LIMITS,
        kind: &NUMBER,
        default: Some("6000"),
        doc: "How many requests one address may send a minute",
        long: "A minute's worth is answered at once. Then requests are answered as often as that, so that a device \
               with a long history to fetch is slower and does not fail; who sends so many that they would wait longer \
               than 10 s is answered 429. 0 is no limit.",
        set: |config, text, _| put(&mut config.limits.address_requests, value::number(text)),
        ..PLAIN
    },
    Setting {
        key: "address.exempt",
        section: LIMITS,
        kind: &NETWORKS,
        unset: "none",
        example: "203.0.113.0/24",
        doc: "Addresses for which the limits by address do not hold",
        long: "Nor does the slowing down of wrong names and tokens of devices.",
        set: |config, text, _| config.address_exempt.add(text),
        ..PLAIN
    },
    Setting {
        key: "shutdown.timeout",
        section: LIMITS,
        kind: &TIME,
        default: Some("8s"),
        doc: "How long requests in flight may take once the server is told to stop",
        long: "Connections without a request are closed within a second. Keep it below the time after which a \
               container engine (10 s for Docker) or systemd (90 s) kills.",
        set: |config, text, _| put(&mut config.limits.shutdown_timeout, value::duration_or_none(text)),
        ..PLAIN
    },
    Setting {
        key: "log.level",
        section: LOG,
        kind: &LEVELS,
        default: Some("info"),
        names: Names { alias: Some("RUST_LOG"), ..DERIVED },
        doc: "What is logged",
        long: "A level for all, or levels by module, separated by commas. Requests are logged at info by \
               sync_server::request.",
        set: |config, text, _| put(&mut config.log.level, value::directives(text)),
        ..PLAIN
    },
    Setting {
        key: "log.format",
        section: LOG,
        kind: &FORMAT,
        default: Some("text"),
        doc: "How a line looks: text, or json with one object a line",
        set: |config, text, _| {
            config.log.format = match text {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err("is no format".to_owned()),
            };
            Ok(text.to_owned())
        },
        ..PLAIN
    },
    Setting {
        key: "log.file",
        section: LOG,
        unset: "standard error",
        example: "/var/log/sync-server.log",
        doc: "The file that the log goes to",
        long: "Opened anew on SIGHUP and `sync-server reload`, so that it can be rotated.",
        set: |config, text, cwd| put_some(&mut config.log.file, value::path(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "metrics.listen",
        section: METRICS,
        kind: &ADDRESSES,
        unset: "none",
        example: "localhost:9180",
        doc: "Where to tell what is counted",
        long: "Plain HTTP, for Prometheus at /metrics, and for people at /readyz?verbose, which says what is well and \
               what is not: the database, backups, what waits. Nothing there is secret, and nothing names a client, \
               but it need not be everyone's either.",
        set: |config, text, cwd| push(&mut config.metrics_listen, value::endpoint(text, cwd)),
        ..PLAIN
    },
    Setting {
        key: "daemonize",
        section: PROCESS,
        kind: &SWITCH,
        default: Some("false"),
        doc: "Whether to go into the background",
        long: "Only for systems without a service manager; systemd wants the program in the foreground, and \
               under it this is an error. Give log.file as well, since standard error is closed.",
        set: |config, text, _| put(&mut config.daemonize, value::switch(text)),
        ..PLAIN
    },
    Setting {
        key: "pid_file",
        section: PROCESS,
        unset: "none",
        example: "/run/sync-server.pid",
        doc: "The file that holds the process ID of the background process",
        long: "Written only where daemonize is true.",
        set: |config, text, cwd| put_some(&mut config.pid_file, value::path(text, cwd)),
        ..PLAIN
    },
];

/// The option with this key.
pub fn find(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.key == key)
}

/// The headings, in order.
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = TABLE.iter().map(|setting| setting.section).collect();
    sections.dedup();
    sections
}

fn put<T>(place: &mut T, parsed: Parsed<T>) -> Result<String, String> {
    let (value, shown) = parsed?;
    *place = value;
    Ok(shown)
}

fn put_some<T>(place: &mut Option<T>, parsed: Parsed<T>) -> Result<String, String> {
    let (value, shown) = parsed?;
    *place = Some(value);
    Ok(shown)
}

fn push<T>(place: &mut Vec<T>, parsed: Parsed<T>) -> Result<String, String> {
    let (value, shown) = parsed?;
    place.push(value);
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn no_name_is_used_twice() {
        let mut names = BTreeSet::new();
        let mut add = |name: String| assert!(names.insert(name.clone()), "{name} is used twice");
        for setting in TABLE {
            add(setting.key.replace('_', "."));
            add(format!("--{}", setting.flag()));
            add(setting.variable());
            let more = [setting.names.alias.map(str::to_owned), setting.file_variable()];
            let short = setting.names.short.map(|short| format!("-{short}"));
            more.into_iter().flatten().chain(short).for_each(&mut add);
        }
    }

    #[test]
    fn no_key_is_both_an_option_and_a_table() {
        for (a, b) in TABLE.iter().flat_map(|a| TABLE.iter().map(move |b| (a.key, b.key))) {
            assert!(!b.starts_with(&format!("{a}.")), "{a} and {b}");
        }
    }

    #[test]
    fn names_follow_from_the_key() {
        let setting = find("snapshot.versions").expect("it is there");
        assert_eq!(setting.flag(), "snapshot-versions");
        assert_eq!(setting.variable(), "SNAPSHOT_VERSIONS");
        let setting = find("migration.copy_dir").expect("it is there");
        assert_eq!(setting.flag(), "migration-copy-dir");
        assert_eq!(setting.variable(), "MIGRATION_COPY_DIR");
    }

    #[test]
    fn keys_are_words_that_every_notation_can_write() {
        for setting in TABLE {
            let good = |c: char| c.is_ascii_lowercase() || matches!(c, '.' | '_');
            assert!(setting.key.chars().all(good), "{}", setting.key);
        }
    }

    #[test]
    fn the_reference_servers_names_are_kept() {
        for (short, flag, variable) in [
            (Some('l'), "listen", "LISTEN"),
            (Some('C'), "allow-client-id", "CLIENT_ID"),
            (None, "no-create-clients", "CREATE_CLIENTS"),
            (None, "snapshot-versions", "SNAPSHOT_VERSIONS"),
            (None, "snapshot-days", "SNAPSHOT_DAYS"),
            (Some('d'), "data-dir", "DATA_DIR"),
        ] {
            let setting = TABLE.iter().find(|setting| setting.flag() == flag).expect(flag);
            assert_eq!((setting.names.short, setting.variable().as_str()), (short, variable));
        }
        assert_eq!(find("log.level").and_then(|setting| setting.names.alias), Some("RUST_LOG"));
    }

    #[test]
    fn every_default_and_every_example_is_valid() {
        for setting in TABLE {
            let mut config = Config::default();
            for text in
                [setting.default, Some(setting.example)].into_iter().flatten().filter(|text| !text.is_empty())
            {
                (setting.set)(&mut config, text, Path::new("/")).expect(setting.key);
            }
        }
    }

    #[test]
    fn every_option_says_what_it_is_and_what_holds_without_it() {
        for setting in TABLE {
            let key = setting.key;
            assert!(!setting.section.is_empty() && !setting.doc.is_empty(), "{key}");
            assert!(!setting.doc.ends_with('.') && setting.doc.len() < 80, "{key}: {}", setting.doc);
            assert!(setting.long.is_empty() || setting.long.ends_with('.'), "{key}: {}", setting.long);
            assert_eq!(setting.default.is_some(), setting.unset.is_empty(), "{key}");
            assert!(setting.default.is_some() || !setting.in_file || !setting.example.is_empty(), "{key}");
        }
    }

    #[test]
    fn every_secret_may_stand_in_a_file_of_its_own() {
        for setting in TABLE {
            assert_eq!(setting.file_variable().is_some(), setting.secret, "{}", setting.key);
            assert_eq!(setting.credential().is_some(), setting.secret, "{}", setting.key);
        }
        let client_id = find("client_id").expect("it is there");
        assert!(client_id.secret);
        assert_eq!(client_id.file_variable().as_deref(), Some("CLIENT_ID_FILE"));
        assert_eq!(client_id.credential().as_deref(), Some("client_id"));
    }

    #[test]
    fn the_options_of_a_section_stand_together() {
        let sections = sections();
        assert_eq!(sections.len(), sections.iter().collect::<BTreeSet<_>>().len(), "{sections:?}");
    }
}
