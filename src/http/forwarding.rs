//! Who asks, where a proxy stands between.

use super::{App, Seldom};
use crate::config::RealAddress;
use crate::peer::{Peer, forwarded};
use hyper::header::{FORWARDED, HeaderMap, HeaderName};
use std::time::Instant;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What was last said of headers that proxies add.
#[derive(Default)]
pub struct Forwarding {
    stranger: Seldom,
    garbled: Seldom,
}

impl App {
    /// Who really asks: whom a trusted proxy names, or else the peer itself.
    pub(super) fn real(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        let Some(header) = self.trust.header(peer) else {
            self.warn_of_stranger(peer, headers);
            return peer;
        };
        let values = headers.get_all(name(header)).iter().map(|value| value.as_bytes());
        match forwarded::real(header, values, |address| self.trust.is_proxy(address)) {
            Ok(Some(address)) => Peer::Told(address),
            Ok(None) => peer,
            Err(forwarded::Garbled) => {
                if self.forwarding.garbled.is_due(Instant::now()) {
                    log::warn!(
                        "the header {} of a request of {peer}, a trusted proxy, names no address, so its sender is \
                         not known: let the proxy put the address there; said at most once a minute",
                        name(header)
                    );
                }
                peer
            }
        }
    }

    /// One that speaks its own protocol where it is not believed, or not asked.
    pub(super) fn warn_of_proxy(&self, peer: Peer) {
        if self.forwarding.stranger.is_due(Instant::now()) {
            log::warn!(
                "{peer} begins with a header of the PROXY protocol, which is not believed: if that is your proxy, name \
                 its address in the option trusted_proxies, and proxy-protocol in real_address; said at most once a minute"
            );
        }
    }

    /// A proxy that nobody declared looks like one client that does everything.
    fn warn_of_stranger(&self, peer: Peer, headers: &HeaderMap) {
        let Some(header) = [X_FORWARDED_FOR, FORWARDED].into_iter().find(|name| headers.contains_key(name))
        else {
            return;
        };
        // What a proxy told in its own protocol is not to be told again.
        if !matches!(peer, Peer::Told(_)) && self.forwarding.stranger.is_due(Instant::now()) {
            log::warn!(
                "a request of {peer} has the header {header}, which is not believed: if that is your proxy, name its \
                 address in the option trusted_proxies{}; said at most once a minute",
                if self.trust.believes(peer) { " and the header in real_address" } else { "" }
            );
        }
    }
}

fn name(header: RealAddress) -> HeaderName {
    match header {
        RealAddress::Forwarded => FORWARDED,
        RealAddress::XForwardedFor | RealAddress::ProxyProtocol => X_FORWARDED_FOR,
    }
}
