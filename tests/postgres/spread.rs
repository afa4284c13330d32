//! How evenly clients can be spread over databases, and that nothing stands in the way of it.

use super::cluster::Cluster;
use super::{DATABASE, done, serve, with_connection};
use crate::util::{NIL, Replica, Server, soak};
use std::time::Duration;

/// Shards that Citus makes of a table by itself.
const SHARDS: usize = 32;

/// The tables of a database that is spread, as `packaging/postgres.md` tells how to make them: a part for
/// each shard, which is what Postgres can do of it by itself. Its rule for keys is that of Citus.
fn split(cluster: &Cluster) {
    let mut migrate = with_connection(&cluster.local(DATABASE));
    let output = migrate.args(["admin", "migrate", "--dry-run"]).output().expect("the program runs");
    assert!(output.status.success(), "{}", crate::admin::stderr(&output));
    let sql = crate::admin::stdout(&output)
        .replace("CREATE UNLOGGED TABLE", "CREATE TABLE")
        .replace("CREATE UNIQUE INDEX sync_server_label", "CREATE INDEX sync_server_label");
    let mut parts = Vec::new();
    let statements = sql.split_inclusive(";\n").map(|statement| {
        let name =
            statement.trim_start().strip_prefix("CREATE TABLE ").and_then(|rest| rest.split(' ').next());
        let Some(name) = name.filter(|_| statement.contains("client_id")) else {
            return statement.to_owned();
        };
        for at in 0..SHARDS {
            let bounds = format!("FOR VALUES WITH (MODULUS {SHARDS}, REMAINDER {at})");
            parts.push(format!("CREATE TABLE {name}_{at} PARTITION OF {name} {bounds};"));
        }
        statement.replace(");\n", ") PARTITION BY HASH (client_id);\n")
    });
    let tables: String = statements.collect();
    assert_eq!(parts.len(), 7 * SHARDS, "{tables}");
    cluster.sql(DATABASE, &format!("{tables}{}", parts.join("\n")));
}

#[test]
fn tables_that_are_split_by_client_serve_like_whole_ones_and_each_request_asks_one_part() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    split(&cluster);
    let server = serve(&cluster, &["--no-migrate", "--snapshot-versions", "2"]);
    let mut others: Vec<Replica> = (0..20).map(|_| Replica::of_new_client(&server)).collect();
    for other in &mut others {
        let first = other.add_version(NIL, b"x").version();
        assert_eq!(other.add_version(&first, b"y").status, 200);
    }
    let used = "SELECT count(*) FROM (
                    SELECT DISTINCT substring(relname FROM '[0-9]+$') FROM pg_stat_user_tables
                    WHERE relname LIKE 'versions\\_%' AND coalesce(idx_scan, 0) + seq_scan > 0) parts";
    // What a connection did is counted at its end at the latest.
    let stop = |server: Server| {
        server.stop();
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sync-server'";
        while cluster.sql(DATABASE, gone) != "0" {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    stop(server);
    cluster.sql(DATABASE, "SELECT pg_stat_reset()");
    let server = serve(&cluster, &["--no-migrate", "--snapshot-versions", "2"]);
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"x").version();
    let second = replica.add_version(&first, &vec![1; 3 << 20]).version();
    assert_eq!(replica.add_version(NIL, b"z").status, 409);
    assert_eq!(replica.add_snapshot(&second, &vec![2; 3 << 20]).status, 200);
    assert_eq!((replica.walk(NIL).len(), replica.snapshot().body.len()), (2, 3 << 20));
    let chain = replica.walk(NIL);
    stop(server);
    assert_eq!(cluster.sql(DATABASE, used), "1");
    let server = serve(&cluster, &["--no-migrate"]);
    let mut replica = Replica::new(&server, &replica.client);
    for verb in
        [&["list-clients"][..], &["label-client", &replica.client, "alice"], &["show-client", "alice"]]
    {
        done(&cluster, verb);
    }
    done(&cluster, &["add-device", "alice", "laptop"]);
    assert_eq!(replica.child_version(NIL).status, 401);
    done(&cluster, &["remove-device", "alice", "laptop", "--yes"]);
    assert!(replica.walk(NIL) == chain, "the chain was changed");
    done(&cluster, &["remove-client", "alice", "--yes"]);
    server.stop();
    let check = super::admin(&cluster, &["check"]);
    assert!(check.status.success(), "{}", crate::admin::stdout(&check));
}

/// How full the fullest of so many shards is, where they are all the same in the mean: by the number of
/// clients, and by their load where the clients differ as Zipf says. The shards are those of Citus, which are
/// ranges of the hash that Postgres itself has for IDs.
#[test]
fn clients_are_spread_evenly_and_their_load_as_evenly_as_the_busiest_allow() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let clients = soak(100_000, 1_000_000);
    cluster.sql(
        DATABASE,
        &format!(
            "CREATE TABLE client AS SELECT gen_random_uuid() AS id, n FROM generate_series(1, {clients}) n"
        ),
    );
    eprintln!("{clients} clients: the fullest shard against the mean, by clients and by load");
    for shards in [4, 32, 128] {
        let fullest = |weight: &str| -> f64 {
            let sql = format!(
                "SELECT max(load) / avg(load) FROM (
                     SELECT ((uuid_hash(id)::BIGINT + 2147483648) * {shards}) >> 32 AS shard, sum({weight}) AS load
                     FROM client GROUP BY 1) shards"
            );
            cluster.sql(DATABASE, &sql).parse().expect("a number")
        };
        let (count, mild, strong) = (fullest("1"), fullest("n ^ -0.5::FLOAT8"), fullest("1.0 / n"));
        eprintln!("{shards:>4} shards: {count:.2}, Zipf 0.5: {mild:.2}, Zipf 1: {strong:.2}");
        assert!(count < 1.25 && mild < 1.4, "{shards} shards");
        // The busiest client alone has one part in ln(n) of all, which no spreading divides.
        let busiest = shards as f64 / ((clients as f64).ln() + 0.58);
        assert!(strong < 1.0 + 1.7 * busiest + 0.7, "{shards} shards: {strong}, {busiest}");
    }
}

/// How much a version takes, keys and indexes included.
#[test]
fn a_version_takes_little_more_than_its_bytes() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    serve(&cluster, &[]).stop();
    let versions = soak(50_000, 1_000_000);
    cluster.sql(
        DATABASE,
        &format!(
            "INSERT INTO clients (client_id, latest_version_id)
             SELECT md5(c::TEXT)::UUID, md5(c || '/100')::UUID FROM generate_series(1, {versions} / 100) c;
             INSERT INTO versions (client_id, version_id, parent_version_id, history_segment)
             SELECT md5(c::TEXT)::UUID, md5(c || '/' || v)::UUID, md5(c || '/' || v - 1)::UUID,
                    decode(repeat(md5(c::TEXT), 64), 'hex')
             FROM generate_series(1, 100) v, generate_series(1, {versions} / 100) c"
        ),
    );
    cluster.sql(DATABASE, "VACUUM ANALYZE versions");
    let sql = "SELECT pg_total_relation_size('versions') / count(*),
                      pg_indexes_size('versions') / count(*) FROM versions";
    let sizes = cluster.sql(DATABASE, sql);
    let sizes: Vec<u64> = sizes.split('|').map(|size| size.parse().expect("a number")).collect();
    eprintln!("a version of 1,024 bytes takes {} bytes, {} of them in indexes", sizes[0], sizes[1]);
    assert!(sizes[0] < 1024 + 400, "{sizes:?}");
}
