//! Drives the real program from outside: over sockets, signals, files and exit codes.

mod clients;
mod util;
