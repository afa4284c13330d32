//! How many files this process may have open: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of our own beside the connections: the database several times, its log, sockets.
const OURS: u64 = 100;

/// Raises the limit of open files as far as `connections` need it and the system lets us. Where
/// that is not enough, fewer connections are let in: a database that cannot open its files fails
/// every request, a connection that waits none. Returns what the operator should know of that.
pub fn provide(connections: &mut usize) -> Option<String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = u64::try_from(*connections).unwrap_or(u64::MAX).saturating_add(OURS);
    let raised = needed.min(maximum.unwrap_or(needed));
    let allowed = match current {
        None => return None,
        Some(current) if current >= raised => current,
        Some(current) => match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
            Ok(()) => raised,
            Err(_) => current,
        },
    };
    if allowed >= needed {
        return None;
    }
    *connections = usize::try_from(allowed.saturating_sub(OURS).max(1)).unwrap_or(usize::MAX);
    Some(format!(
        "connections.limit: this process may open {allowed} files, so only {connections} connections are let in at \
         once; let it open {needed} (LimitNOFILE= in a systemd unit, `ulimit -n` in a shell), or lower the option"
    ))
}
