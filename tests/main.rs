//! Drives the real program from outside: over sockets, signals, files and exit codes.

mod adoption;
mod chain;
mod clients;
mod crash;
mod faults;
mod util;
