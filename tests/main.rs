//! Drives the real program from outside: over sockets, signals, files and exit codes.

mod admin;
mod adoption;
mod chain;
mod clients;
mod config;
mod crash;
mod faults;
mod house;
mod lifecycle;
mod limits;
mod logging;
mod tls;
mod util;
mod wire;
