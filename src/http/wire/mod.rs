//! The protocol's "HTTP Representation": what a request's head asks for, and what an outcome looks
//! like on the wire.
//!
//! Every path, header name, media type and status is here and nowhere else. Pure: knows no socket,
//! no body and no clock.

mod answers;
mod aside;
mod cors;
mod requests;

pub use self::answers::{
    Answer, HEAD_TIMED_OUT, NOT_SECURE, TOO_MANY_CONNECTIONS, banner, failure, health, insecure, metrics,
    moved, no_certificate, outcome, problem, proof, report, snapshot_head, wants_credential,
};
use self::answers::{PARENT_VERSION_ID, SNAPSHOT_REQUEST, VERSION_ID};
pub use self::aside::{Aside, ask as ask_aside};
pub use self::cors::Cors;
pub use self::requests::{Ask, Coding, Fetch, Problem, Upload, ask, ask_monitor, credential};

/// The media type of a history segment. Clients compare it whole, so it never gets parameters.
pub const SEGMENT: &str = "application/vnd.taskchampion.history-segment";
/// The media type of a snapshot.
pub const SNAPSHOT: &str = "application/vnd.taskchampion.snapshot";
