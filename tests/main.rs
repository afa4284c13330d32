//! Drives the real program from outside: over sockets, signals, files and exit codes.

mod admin;
mod adoption;
mod attacks;
mod backup;
mod chain;
mod clients;
mod config;
mod crash;
mod declared;
mod devices;
mod doctor;
mod faults;
mod house;
mod lifecycle;
mod limits;
mod logging;
mod metrics;
mod proxied;
mod proxies;
mod prune;
mod side_door;
mod texts;
mod tls;
mod upkeep;
mod util;
mod wire;
