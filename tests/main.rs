//! Drives the real program from outside: over sockets, signals, files and exit codes.

mod config;
mod house;
mod lifecycle;
mod limits;
mod util;
mod wire;
